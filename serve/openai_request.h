// Requests of OpenAI's API, and what vLLM and this project add to them, from JSON.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "serve/api_error.h"

namespace ds {

/// Text, or token ids.
struct Prompt {
  std::string text;
  std::vector<int32_t> ids;
  bool is_ids = false;
};

struct ApiRequest {
  static constexpr int64_t kMostChoices = 8, kMostPrompts = 64, kMostStops = 16, kMostLogprobs = 20;

  bool chat = false;
  std::string model;                    // "": the fleet's only one
  std::vector<Prompt> prompts;          // of completions
  nlohmann::ordered_json conversation;  // of chats: the request as Conversation::parse() takes it
  std::optional<int64_t> max_tokens;
  int64_t min_tokens = 0, n = 1;
  double temperature = 1, top_p = 1, min_p = 0;
  int64_t top_k = 0;  // 0: all
  LogitRules rules;
  std::optional<uint64_t> seed;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_ids;
  bool ignore_eos = false, stream = false, include_usage = false, continuous_usage = false;
  bool add_special_tokens = true, skip_special_tokens = true, return_token_ids = false;
  std::optional<int64_t> logprobs;  // how many others beside each token
  bool has_tools = false;           // that the model may call
  // What only this project knows.
  Reuse reuse = Reuse::kAuto;
  std::optional<double> slo_loss, slo_ttft_ms;
  std::string cache_salt;
};

/// Reads a request for /v1/completions or, where `out.chat` is set, /v1/chat/completions. Fields that nobody
/// knows are ignored; those that would change the answer and are not done are refused by name, unless they
/// ask for nothing.
ApiFault parse_request(std::string_view body, ApiRequest& out);

/// The fields of one JSON object: of the wrong ones the first is kept.
class Fields {
 public:
  explicit Fields(const nlohmann::ordered_json& object) : object_(object) {}
  bool has(const std::string& key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const nlohmann::ordered_json& at(const std::string& key) const { return object_.at(key); }
  std::optional<int64_t> integer(const std::string& key, int64_t low, int64_t high);
  std::optional<double> number(const std::string& key, double low, double high);
  std::optional<bool> boolean(const std::string& key);
  std::optional<std::string> text(const std::string& key);
  void fail(const std::string& key, std::string message);
  const ApiFault& fault() const { return fault_; }

 private:
  const nlohmann::ordered_json& object_;
  ApiFault fault_;
};

/// A list of token ids; nullopt: it is none.
std::optional<std::vector<int32_t>> token_ids(const nlohmann::ordered_json& list);
/// The object of a request's body.
ApiFault parse_body(std::string_view body, nlohmann::ordered_json& out);

}  // namespace ds
