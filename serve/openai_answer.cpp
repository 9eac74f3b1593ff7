#include "serve/openai_answer.h"

#include <algorithm>

namespace ds {
namespace {
using Json = nlohmann::ordered_json;
}  // namespace

std::string json_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }
std::string sse_event(const Json& json) { return "data: " + json_text(json) + "\n\n"; }

Json Usage::json() const {
  return {{"prompt_tokens", prompt_tokens},
          {"completion_tokens", completion_tokens},
          {"total_tokens", prompt_tokens + completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", cached_tokens}}}};
}

AnswerWriter::AnswerWriter(const ApiRequest& request, std::string id, std::string model, int64_t created,
                           const Tokenizer* tokenizer, ToolFormat tools, const Generation& generation)
    : request_(request),
      id_(std::move(id)),
      model_(std::move(model)),
      created_(created),
      tokenizer_(tokenizer),
      generation_(generation),
      all_(generation.choices()),
      frames_(generation.choices()),
      calls_(generation.choices()),
      text_offsets_(generation.choices()),
      cached_(generation.prompts().size()) {
  if (request.chat && request.has_tools && tools != ToolFormat::kNone)
    readers_.assign(generation.choices(), ToolCallReader(tools));
}

void AnswerWriter::take_calls(Piece& piece) {
  if (readers_.empty()) return;
  ToolCallReader& reader = readers_[piece.choice];
  auto read = reader.push(piece.text);
  if (piece.ended) {
    auto rest = reader.finish();
    read.text += rest.text;
    read.calls.insert(read.calls.end(), rest.calls.begin(), rest.calls.end());
  }
  piece.text = std::move(read.text);
  piece.calls = std::move(read.calls);
}

/// An answer that was cut off says so, whatever calls are in it.
const std::string& AnswerWriter::finish_reason(size_t choice) const {
  static const std::string calls = "tool_calls";
  const std::string& reason = generation_.finished(choice).finish_reason;
  return reason == "stop" && calls_[choice] > 0 ? calls : reason;
}

Json AnswerWriter::call(size_t choice, size_t index, const ToolCall& call) const {
  return {{"id", fmt::format("call_{}_{}_{}", id_.substr(id_.find('-') + 1), choice, index)},
          {"type", "function"},
          {"function", {{"name", call.name}, {"arguments", call.arguments}}}};
}

Usage AnswerWriter::usage() const {
  Usage u;
  for (const auto& ids : generation_.prompts()) u.prompt_tokens += static_cast<int64_t>(ids.size());
  u.completion_tokens = new_tokens_;
  for (int64_t c : cached_) u.cached_tokens += c;
  return u;
}

void AnswerWriter::count(const Piece& piece, const AnswerSummary* summary) {
  new_tokens_ += static_cast<int64_t>(piece.tokens.size());
  if (summary == nullptr) return;
  // Of a prompt's choices the first one says what there was; the others find what it has left.
  if (piece.choice % static_cast<size_t>(request_.n) == 0)
    cached_[generation_.prompt_of(piece.choice)] = summary->cached_tokens;
}

std::string AnswerWriter::token_text(int32_t id) const {
  if (tokenizer_ == nullptr) return "";
  auto text = tokenizer_->decode({&id, 1}, false);
  return text.ok() ? *text : "";
}

Json AnswerWriter::head(bool chunk) const {
  return {
      {"id", id_},
      {"object", request_.chat ? (chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion"},
      {"created", created_},
      {"model", model_}};
}

Json AnswerWriter::logprobs(std::span<const TokenLogprob> of, int64_t first_offset) const {
  if (!request_.logprobs) return nullptr;
  if (request_.chat) {
    auto one = [&](int32_t token, double logprob) {
      const std::string text = token_text(token);
      Json bytes = Json::array();
      for (unsigned char c : text) bytes.push_back(c);
      return Json{{"token", text}, {"logprob", logprob}, {"bytes", bytes}};
    };
    Json content = Json::array();
    for (const TokenLogprob& t : of) {
      Json entry = one(t.token, t.logprob);
      entry["top_logprobs"] = Json::array();
      for (const auto& [token, logprob] : t.top) entry["top_logprobs"].push_back(one(token, logprob));
      content.push_back(std::move(entry));
    }
    return {{"content", content}};
  }
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(), offsets = Json::array();
  int64_t offset = first_offset;
  for (const TokenLogprob& t : of) {
    const std::string text = token_text(t.token);
    tokens.push_back(text);
    values.push_back(t.logprob);
    Json top = Json::object();
    for (const auto& [token, logprob] : t.top) top[token_text(token)] = logprob;
    tops.push_back(std::move(top));
    offsets.push_back(offset);
    offset += static_cast<int64_t>(text.size());
  }
  return {{"text_offset", offsets}, {"token_logprobs", values}, {"tokens", tokens}, {"top_logprobs", tops}};
}

Json AnswerWriter::opening(size_t choice) const {
  if (!request_.chat) return nullptr;
  Json json = head(true);
  json["choices"] = Json::array({{{"index", choice},
                                  {"delta", {{"role", "assistant"}, {"content", ""}}},
                                  {"logprobs", nullptr},
                                  {"finish_reason", nullptr}}});
  if (request_.return_token_ids)
    json["prompt_token_ids"] = generation_.prompts()[generation_.prompt_of(choice)];
  if (request_.continuous_usage) json["usage"] = usage().json();
  return json;
}

Json AnswerWriter::chunk(const Piece& piece, const AnswerSummary* summary) {
  Json json = head(true);
  Json choice = {{"index", piece.choice}};
  if (request_.chat) {
    Json& delta = choice["delta"] = Json::object();
    if (piece.calls.empty() || !piece.text.empty()) delta["content"] = piece.text;
    for (const ToolCall& one : piece.calls) {
      const size_t index = calls_[piece.choice]++;
      Json written = {{"index", index}};
      written.update(call(piece.choice, index, one));
      delta["tool_calls"].push_back(std::move(written));
    }
  } else {
    choice["text"] = piece.text;
  }
  choice["logprobs"] = logprobs(piece.logprobs, text_offsets_[piece.choice]);
  for (const TokenLogprob& t : piece.logprobs)
    text_offsets_[piece.choice] += static_cast<int64_t>(token_text(t.token).size());
  choice["finish_reason"] = nullptr;
  if (request_.return_token_ids) {
    if (!request_.chat && all_[piece.choice].tokens.empty())
      choice["prompt_token_ids"] = generation_.prompts()[generation_.prompt_of(piece.choice)];
    choice["token_ids"] = piece.tokens;
    all_[piece.choice].tokens.insert(all_[piece.choice].tokens.end(), piece.tokens.begin(),
                                     piece.tokens.end());
  }
  if (summary != nullptr) {
    choice["finish_reason"] = finish_reason(piece.choice);
    choice["stop_reason"] = generation_.finished(piece.choice).stop_reason;
  }
  json["choices"] = Json::array({std::move(choice)});
  if (summary != nullptr) json["droidspeak"] = summary->json();
  if (request_.continuous_usage) json["usage"] = usage().json();
  return json;
}

std::string AnswerWriter::event(const Piece& piece, const AnswerSummary* summary) {
  const bool first = request_.return_token_ids && all_[piece.choice].tokens.empty();
  if (summary != nullptr || !piece.calls.empty() || request_.logprobs || request_.continuous_usage || first)
    return sse_event(chunk(piece, summary));
  // Of most chunks all but text and token ids is the same.
  Frame& frame = frames_[piece.choice];
  if (frame.head.empty()) {
    constexpr std::string_view kText = R"("")", kIds = "[]";
    const std::string empty = sse_event(chunk({.choice = piece.choice}, nullptr));
    const size_t text = empty.rfind(kText) + kText.size(),
                 ids = request_.return_token_ids ? empty.rfind(kIds) + kIds.size() : empty.size();
    frame.head = empty.substr(0, text - kText.size());
    frame.middle = empty.substr(text, ids - text - (request_.return_token_ids ? kIds.size() : 0));
    frame.tail = empty.substr(ids);
  }
  std::string out = frame.head + json_text(piece.text) + frame.middle;
  if (request_.return_token_ids) out += json_text(piece.tokens);
  return out + frame.tail;
}

Json AnswerWriter::usage_chunk() const {
  Json json = head(true);
  json["choices"] = Json::array();
  json["usage"] = usage().json();
  return json;
}

void AnswerWriter::add(const Piece& piece) {
  Piece& all = all_[piece.choice];
  all.text += piece.text;
  all.calls.insert(all.calls.end(), piece.calls.begin(), piece.calls.end());
  calls_[piece.choice] = all.calls.size();
  all.tokens.insert(all.tokens.end(), piece.tokens.begin(), piece.tokens.end());
  all.logprobs.insert(all.logprobs.end(), piece.logprobs.begin(), piece.logprobs.end());
}

Json AnswerWriter::whole(const std::vector<AnswerSummary>& summaries) const {
  Json json = head(false);
  Json choices = Json::array();
  for (size_t c = 0; c < all_.size(); ++c) {
    Json choice = {{"index", c}};
    if (request_.chat) {
      Json& message = choice["message"] = {{"role", "assistant"}, {"content", all_[c].text}};
      if (!all_[c].calls.empty() && all_[c].text.empty()) message["content"] = nullptr;
      for (size_t i = 0; i < all_[c].calls.size(); ++i)
        message["tool_calls"].push_back(call(c, i, all_[c].calls[i]));
    } else {
      choice["text"] = all_[c].text;
    }
    choice["logprobs"] = logprobs(all_[c].logprobs, 0);
    choice["finish_reason"] = finish_reason(c);
    choice["stop_reason"] = generation_.finished(c).stop_reason;
    if (request_.return_token_ids) {
      if (!request_.chat) choice["prompt_token_ids"] = generation_.prompts()[generation_.prompt_of(c)];
      choice["token_ids"] = all_[c].tokens;
    }
    if (all_.size() > 1) choice["droidspeak"] = summaries[c].json();
    choices.push_back(std::move(choice));
  }
  json["choices"] = std::move(choices);
  json["usage"] = usage().json();
  if (request_.chat && request_.return_token_ids) json["prompt_token_ids"] = generation_.prompts()[0];
  if (all_.size() == 1) json["droidspeak"] = summaries[0].json();
  return json;
}

}  // namespace ds
