// The answers to one request: prompts times choices, each a request of the engine, and what has come of them
// so far. The engine's thread leaves tokens here and goes on; whoever writes takes all that there is, so that
// a slow reader costs memory for its text and no time of the engine.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "serve/answer_text.h"
#include "serve/api_error.h"
#include "serve/loaded_fleet.h"
#include "serve/openai_request.h"
#include "serve/tool_calls.h"

namespace ds {

/// A token, its logarithmic probability, and those of the likeliest ones.
struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;
  std::vector<std::pair<int32_t, double>> top;
  static TokenLogprob of(int32_t token, std::span<const float> logits, int64_t top);
};

/// What came of one choice since it was asked last.
struct Piece {
  size_t choice = 0;
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<TokenLogprob> logprobs;
  std::vector<ToolCall> calls;  // which a ToolCallReader has taken out of the text
  bool ended = false;
};

/// One answer, once it has ended.
struct FinishedChoice {
  Status status;
  EngineAnswer answer;
  std::string finish_reason;           // "stop" or "length"
  nlohmann::ordered_json stop_reason;  // which text or token; null: the model's own end, or none
};

/// Why a request reuses nothing of a sender's before the engine has looked: a word for people; "": it may.
struct ReuseChoice {
  Reuse reuse = Reuse::kAuto;
  std::string why;
};

class Generation : public std::enable_shared_from_this<Generation> {
 public:
  struct Options {
    ServedModel* model = nullptr;
    std::vector<std::vector<int32_t>> prompts;
    const ApiRequest* request = nullptr;
    std::string salt;
  };
  /// Submits all of it, or nothing.
  static ApiFault start(LoadedFleet& fleet, Options options, std::shared_ptr<Generation>& out);
  ~Generation();

  size_t choices() const { return choices_.size(); }
  size_t prompt_of(size_t choice) const { return choice / static_cast<size_t>(n_); }
  const std::vector<std::vector<int32_t>>& prompts() const { return prompts_; }
  const ReuseChoice& reuse() const { return reuse_; }
  /// What came of the choice that has waited longest; nullopt: nothing in that time.
  std::optional<Piece> next(std::chrono::milliseconds most);
  bool done() const { return taken_ == choices_.size(); }
  /// Of a choice whose last piece was taken.
  const FinishedChoice& finished(size_t choice) const { return *choices_[choice].finished; }
  void cancel();

 private:
  struct Open {
    std::shared_ptr<Ticket> ticket;
    std::optional<AnswerText> text;
    Piece waiting;
    bool ended = false;  // for the engine
    Status decoding;
    std::optional<FinishedChoice> finished;
  };
  ApiFault submit(LoadedFleet& fleet, const Options& options);
  EngineRequest engine_request(LoadedFleet& fleet, const Options& options, size_t choice, int64_t context,
                               int64_t new_tokens);
  void finish(Open& open, Piece& piece);

  std::vector<std::vector<int32_t>> prompts_;
  int64_t n_ = 1;
  ReuseChoice reuse_;
  std::vector<int32_t> asked_stops_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Open> choices_;
  size_t next_ = 0, taken_ = 0;
};

}  // namespace ds
