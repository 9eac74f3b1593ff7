// Answers in the form of OpenAI's API: objects, chunks of streams, usage, logprobs.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/model/tokenizer.h"
#include "serve/answer_summary.h"
#include "serve/generation.h"

namespace ds {

struct Usage {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0;
  nlohmann::ordered_json json() const;
};

/// One request's answers, as they are written.
class AnswerWriter {
 public:
  /// `tokenizer`: null: token ids stand for texts. `tools`: how calls stand in the text of chats with tools.
  AnswerWriter(const ApiRequest& request, std::string id, std::string model, int64_t created,
               const Tokenizer* tokenizer, ToolFormat tools, const Generation& generation);

  /// Takes the calls of tools out of a piece's text.
  void take_calls(Piece& piece);
  /// The first chunk of a choice: a chat's says who speaks. Null: there is none.
  nlohmann::ordered_json opening(size_t choice) const;
  /// `summary` null: the piece is not its choice's last.
  nlohmann::ordered_json chunk(const Piece& piece, const AnswerSummary* summary);
  /// The same as an event.
  std::string event(const Piece& piece, const AnswerSummary* summary);
  nlohmann::ordered_json usage_chunk() const;
  /// Adds a piece to the whole answer.
  void add(const Piece& piece);
  nlohmann::ordered_json whole(const std::vector<AnswerSummary>& summaries) const;
  Usage usage() const;
  void count(const Piece& piece, const AnswerSummary* summary);

 private:
  nlohmann::ordered_json head(bool chunk) const;
  nlohmann::ordered_json logprobs(std::span<const TokenLogprob> of, int64_t first_offset) const;
  std::string token_text(int32_t id) const;
  const std::string& finish_reason(size_t choice) const;
  nlohmann::ordered_json call(size_t choice, size_t index, const ToolCall& call) const;

  const ApiRequest& request_;
  std::string id_, model_;
  int64_t created_ = 0;
  const Tokenizer* tokenizer_;
  const Generation& generation_;
  std::vector<Piece> all_;               // by choice
  std::vector<ToolCallReader> readers_;  // by choice; none: calls are text
  struct Frame {
    std::string head, middle, tail;  // of a chunk, around its text and its token ids
  };
  std::vector<Frame> frames_;          // by choice
  std::vector<size_t> calls_;          // by choice, of what was written
  std::vector<int64_t> text_offsets_;  // of what was written, for logprobs of completions
  int64_t new_tokens_ = 0;
  std::vector<int64_t> cached_;  // by prompt
};

/// "data: {...}\n\n"
std::string sse_event(const nlohmann::ordered_json& json);
std::string json_text(const nlohmann::ordered_json& json);

}  // namespace ds
