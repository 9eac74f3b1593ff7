#include "serve/openai_request.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <utility>

#include "support/json.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

std::string shown(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

/// JSON has one kind of numbers: 16.0 is the integer 16.
std::optional<int64_t> whole_number(const Json& v) {
  if (v.is_number_unsigned() && v.get<uint64_t>() > INT64_MAX) return std::nullopt;
  if (v.is_number_integer()) return v.get<int64_t>();
  constexpr double kExact = 9007199254740992;  // up to which doubles have every integer
  if (!v.is_number_float() || std::abs(v.get<double>()) > kExact) return std::nullopt;
  const double x = v.get<double>();
  return x == std::floor(x) ? std::optional(static_cast<int64_t>(x)) : std::nullopt;
}

void read_prompts(Fields& f, ApiRequest& out) {
  if (!f.has("prompt"))
    return f.fail("prompt", "'prompt' is missing; expected a text, token ids, or a list of either");
  const Json& given = f.at("prompt");
  auto add = [&](const Json& one) {
    Prompt p;
    if (one.is_string()) {
      p.text = one.get<std::string>();
    } else if (auto ids = token_ids(one)) {
      p.ids = std::move(*ids);
      p.is_ids = true;
    } else {
      return false;
    }
    out.prompts.push_back(std::move(p));
    return true;
  };
  bool good = true;
  if (given.is_array() && !given.empty() && !given[0].is_number()) {
    for (const Json& one : given) good = good && add(one);
  } else {
    good = add(given);
  }
  if (!good || out.prompts.empty())
    return f.fail("prompt",
                  "'prompt' is " + shown(given) + "; expected a text, token ids, or a list of either");
  if (static_cast<int64_t>(out.prompts.size()) > ApiRequest::kMostPrompts)
    f.fail("prompt", fmt::format("'prompt' has {} prompts; at most {} are taken in one request",
                                 out.prompts.size(), ApiRequest::kMostPrompts));
}

void read_stops(Fields& f, ApiRequest& out) {
  if (f.has("stop")) {
    const Json& given = f.at("stop");
    const Json list = given.is_string() ? Json::array({given}) : given;
    if (!list.is_array() || static_cast<int64_t>(list.size()) > ApiRequest::kMostStops)
      return f.fail("stop", fmt::format("'stop' is {}; expected a text or a list of at most {}", shown(given),
                                        ApiRequest::kMostStops));
    for (const Json& one : list) {
      if (!one.is_string() || one.get<std::string>().empty())
        return f.fail("stop", "'stop' has " + shown(one) + "; expected texts that are not empty");
      out.stops.push_back(one.get<std::string>());
    }
  }
  if (f.has("stop_token_ids")) {
    auto ids = token_ids(f.at("stop_token_ids"));
    if (!ids)
      return f.fail("stop_token_ids",
                    "'stop_token_ids' is " + shown(f.at("stop_token_ids")) + "; expected token ids");
    out.stop_ids = std::move(*ids);
  }
}

/// What tokens are chosen by, beside the logits.
void read_sampling(Fields& f, ApiRequest& out) {
  out.temperature = f.number("temperature", 0, 100).value_or(1);
  out.top_p = f.number("top_p", 0, 1).value_or(1);
  if (out.top_p == 0) f.fail("top_p", "'top_p' is 0; expected more than 0, and at most 1");
  out.top_k = std::max<int64_t>(0, f.integer("top_k", -1, std::numeric_limits<int32_t>::max()).value_or(0));
  out.min_p = f.number("min_p", 0, 1).value_or(0);
  if (auto seed = f.integer("seed", INT64_MIN, INT64_MAX)) out.seed = static_cast<uint64_t>(*seed);
  LogitRules& rules = out.rules;
  rules.presence = static_cast<float>(f.number("presence_penalty", -2, 2).value_or(0));
  rules.frequency = static_cast<float>(f.number("frequency_penalty", -2, 2).value_or(0));
  const auto repetition = f.number("repetition_penalty", 0, 100);
  rules.repetition = static_cast<float>(repetition.value_or(1));
  if (repetition && rules.repetition == 0)
    f.fail("repetition_penalty", "'repetition_penalty' is " + shown(f.at("repetition_penalty")) +
                                     "; expected more than 0, and at most 100");
  if (!f.has("logit_bias")) return;
  const Json& bias = f.at("logit_bias");
  bool good = bias.is_object();
  for (const auto& [key, value] : bias.items()) {
    int32_t id = -1;
    const auto read = std::from_chars(key.data(), key.data() + key.size(), id);
    good = good && read.ec == std::errc() && read.ptr == key.data() + key.size() && id >= 0 &&
           value.is_number() && std::abs(value.get<double>()) <= 100;
    if (good) rules.bias.emplace_back(id, value.get<float>());
  }
  if (!good)
    f.fail("logit_bias",
           "'logit_bias' is " + shown(bias) +
               R"(; expected an object of token ids and numbers from -100 to 100, {"50": -100})");
}

/// Completions count beside each token, chats say whether, and how many.
void read_logprobs(Fields& f, ApiRequest& out) {
  if (!out.chat) {
    out.logprobs = f.integer("logprobs", 0, ApiRequest::kMostLogprobs);
    return;
  }
  const bool wanted = f.boolean("logprobs").value_or(false);
  const auto count = f.integer("top_logprobs", 0, ApiRequest::kMostLogprobs);
  if (wanted) out.logprobs = count.value_or(0);
  if (!wanted && count.value_or(0) > 0) f.fail("top_logprobs", "'top_logprobs' needs 'logprobs': true");
}

/// What would change the answer and is not done here. A value that asks for nothing is let pass.
void refuse_others(Fields& f) {
  if (f.has("length_penalty") && f.at("length_penalty") != 1)
    f.fail("length_penalty", "'length_penalty' is " + shown(f.at("length_penalty")) +
                                 "; this server searches no beams: leave it out, or give 1");
  for (const char* key : {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "prompt_logprobs",
                          "audio", "functions", "function_call", "prompt_embeds"})
    if (f.has(key) && !f.at(key).empty())
      f.fail(key, fmt::format("'{}' is not done by this server; leave it out", key));
  for (const char* key : {"echo", "use_beam_search"})
    if (f.boolean(key).value_or(false))
      f.fail(key, fmt::format("'{}' is not done by this server; leave it out", key));
  if (f.has("suffix") && f.at("suffix") != "")
    f.fail("suffix", "'suffix' is not done by this server; leave it out");
  if (f.has("response_format")) {
    const Json& format = f.at("response_format");
    if (!format.is_object() || !format.contains("type") || format["type"] != "text")
      f.fail("response_format",
             "'response_format' is " + shown(format) + R"(; only {"type": "text"} is done)");
  }
  if (f.has("tool_choice")) {
    const Json& choice = f.at("tool_choice");
    if (choice != "auto" && choice != "none")
      f.fail("tool_choice", "'tool_choice' is " + shown(choice) + "; only auto and none are done");
  }
}

/// Clients send arguments of tool calls as JSON in a string; templates want the object.
void open_arguments(Json& messages) {
  if (!messages.is_array()) return;
  for (Json& message : messages) {
    if (!message.is_object() || !message.contains("tool_calls") || !message["tool_calls"].is_array())
      continue;
    for (Json& call : message["tool_calls"]) {
      if (!call.is_object() || !call.contains("function") || !call["function"].is_object()) continue;
      Json& function = call["function"];
      if (!function.contains("arguments") || !function["arguments"].is_string()) continue;
      auto parsed = parse_ordered_json(function["arguments"].get<std::string>(), "arguments");
      if (parsed.ok() && parsed->is_object()) function["arguments"] = std::move(*parsed);
    }
  }
}

void read_conversation(Fields& f, ApiRequest& out) {
  if (!f.has("messages") || !f.at("messages").is_array() || f.at("messages").empty())
    return f.fail("messages",
                  "'messages' is missing or no list; expected [{\"role\": \"user\", \"content\": ...}]");
  out.conversation = Json::object();
  for (const char* key : {"messages", "documents", "chat_template_kwargs", "add_generation_prompt"})
    if (f.has(key)) out.conversation[key] = f.at(key);
  for (const char* key : {"tools", "documents"}) {
    if (!f.has(key)) continue;
    bool good = f.at(key).is_array();
    for (size_t i = 0; good && i < f.at(key).size(); ++i) good = f.at(key)[i].is_object();
    if (!good)
      return f.fail(key, fmt::format("'{}' is {}; expected a list of objects", key, shown(f.at(key))));
  }
  if (f.has("chat_template_kwargs") && !f.at("chat_template_kwargs").is_object())
    return f.fail("chat_template_kwargs", "'chat_template_kwargs' is " + shown(f.at("chat_template_kwargs")) +
                                              "; expected an object");
  f.boolean("add_generation_prompt");
  if (f.has("tools") && !(f.has("tool_choice") && f.at("tool_choice") == "none") && !f.at("tools").empty())
    out.conversation["tools"] = f.at("tools");
  out.has_tools = out.conversation.contains("tools");
  for (const Json& message : out.conversation["messages"]) {
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      return f.fail("messages",
                    "'messages' has " + shown(message) + "; expected an object with the text 'role'");
    if (!message.contains("content") || message["content"].is_null() || message["content"].is_string())
      continue;
    if (!message["content"].is_array())
      return f.fail("messages", "a message's content is " + shown(message["content"]) +
                                    "; expected a text, or a list of parts");
    for (const Json& part : message["content"])
      if (!part.is_object() || !part.contains("type") || part["type"] != "text" || !part.contains("text") ||
          !part["text"].is_string())
        return f.fail("messages", "a message's content has the part " + shown(part) +
                                      R"(; only {"type": "text", "text": ...} is done)");
  }
  open_arguments(out.conversation["messages"]);
}

}  // namespace

std::optional<std::vector<int32_t>> token_ids(const nlohmann::ordered_json& list) {
  if (!list.is_array()) return std::nullopt;
  std::vector<int32_t> ids;
  for (const Json& id : list) {
    const auto number = whole_number(id);
    if (!number || *number < 0 || *number > INT32_MAX) return std::nullopt;
    ids.push_back(static_cast<int32_t>(*number));
  }
  return ids;
}

void Fields::fail(const std::string& key, std::string message) {
  if (!fault_) fault_ = ApiError::of_field(key, std::move(message));
}

std::optional<int64_t> Fields::integer(const std::string& key, int64_t low, int64_t high) {
  if (!has(key)) return std::nullopt;
  const Json& v = at(key);
  const auto number = whole_number(v);
  if (number && *number >= low && *number <= high) return number;
  fail(key, fmt::format("'{}' is {}; expected an integer from {} to {}", key, shown(v), low, high));
  return std::nullopt;
}

std::optional<double> Fields::number(const std::string& key, double low, double high) {
  if (!has(key)) return std::nullopt;
  const Json& v = at(key);
  if (v.is_number() && v.get<double>() >= low && v.get<double>() <= high) return v.get<double>();
  fail(key, fmt::format("'{}' is {}; expected a number from {:g} to {:g}", key, shown(v), low, high));
  return std::nullopt;
}

std::optional<bool> Fields::boolean(const std::string& key) {
  if (!has(key)) return std::nullopt;
  if (at(key).is_boolean()) return at(key).get<bool>();
  fail(key, fmt::format("'{}' is {}; expected true or false", key, shown(at(key))));
  return std::nullopt;
}

std::optional<std::string> Fields::text(const std::string& key) {
  if (!has(key)) return std::nullopt;
  if (at(key).is_string()) return at(key).get<std::string>();
  fail(key, fmt::format("'{}' is {}; expected a text", key, shown(at(key))));
  return std::nullopt;
}

ApiFault parse_body(std::string_view body, nlohmann::ordered_json& out) {
  auto json = parse_ordered_json(body, "the request's body");
  if (!json.ok()) return ApiError{400, json.status().message()};
  if (!json->is_object())
    return ApiError{400, "the request's body is " + shown(*json) + "; expected a JSON object"};
  out = std::move(*json);
  return std::nullopt;
}

ApiFault parse_request(std::string_view body, ApiRequest& out) {
  Json json;
  if (ApiFault fault = parse_body(body, json)) return fault;
  Fields f(json);
  out.model = f.text("model").value_or("");
  if (out.chat)
    read_conversation(f, out);
  else
    read_prompts(f, out);
  // The newer name counts where both are given.
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  out.max_tokens = f.integer("max_completion_tokens", 1, kMost);
  if (auto older = f.integer("max_tokens", 1, kMost); !out.max_tokens) out.max_tokens = older;
  out.min_tokens = f.integer("min_tokens", 0, kMost).value_or(0);
  out.n = f.integer("n", 1, ApiRequest::kMostChoices).value_or(1);
  if (auto best = f.integer("best_of", 1, ApiRequest::kMostChoices); best && *best != out.n)
    f.fail("best_of", "'best_of' is not done by this server; leave it out, or give n");
  read_sampling(f, out);
  read_stops(f, out);
  read_logprobs(f, out);
  out.ignore_eos = f.boolean("ignore_eos").value_or(false);
  out.add_special_tokens = f.boolean("add_special_tokens").value_or(!out.chat);
  out.skip_special_tokens = f.boolean("skip_special_tokens").value_or(true);
  out.return_token_ids = f.boolean("return_token_ids").value_or(false);
  out.stream = f.boolean("stream").value_or(false);
  if (f.has("stream_options")) {
    const Json& options = f.at("stream_options");
    if (!options.is_object()) {
      f.fail("stream_options", "'stream_options' is " + shown(options) + "; expected an object");
    } else {
      Fields o(options);
      out.include_usage = o.boolean("include_usage").value_or(false);
      out.continuous_usage = o.boolean("continuous_usage_stats").value_or(false);
      if (o.fault()) f.fail("stream_options", "'stream_options': " + o.fault()->message);
    }
  }
  refuse_others(f);
  if (auto reuse = f.text("reuse")) {
    if (*reuse == "exact")
      out.reuse = Reuse::kExact;
    else if (*reuse == "off")
      out.reuse = Reuse::kOff;
    else if (*reuse != "auto")
      f.fail("reuse", "'reuse' is '" + *reuse + "'; expected auto, exact or off");
  }
  out.slo_loss = f.number("slo_loss", 0, 100);
  out.slo_ttft_ms = f.number("slo_ttft_ms", 0, 1e9);
  out.cache_salt = f.text("cache_salt").value_or("");
  return f.fault();
}

}  // namespace ds
