// Paths, keys, models and tokens; who is let in.
#include <algorithm>
#include <ctime>

#include "runtime/model/joined_text.h"
#include "serve/api_internal.h"
#include "serve/chat_prompt.h"
#include "serve/openapi.h"
#include "serve/status_page.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

Api::Api(LoadedFleet& fleet, ApiOptions options)
    : fleet_(fleet), options_(std::move(options)), metrics_(fleet), started_s_(std::time(nullptr)) {}

Api::~Api() = default;

HttpReply Api::handle(const HttpCall& call) {
  HttpReply out = route(call);
  static constexpr std::string_view kPaths[] = {"/",
                                                "/health",
                                                "/status",
                                                "/metrics",
                                                "/openapi.json",
                                                "/v1/models",
                                                "/v1/completions",
                                                "/v1/chat/completions",
                                                "/tokenize",
                                                "/detokenize"};
  const bool known = std::find(std::begin(kPaths), std::end(kPaths), call.path) != std::end(kPaths);
  metrics_.http(known ? call.path : "other", out.status);
  return out;
}

HttpReply Api::route(const HttpCall& call) {
  const bool get = call.method == "GET" || call.method == "HEAD", post = call.method == "POST";
  if (get && call.path == "/health") return health();
  if (get && call.path == "/openapi.json") return {.body = std::string(openapi())};
  if (get && call.path == "/")
    return {.type = "text/html; charset=utf-8", .body = std::string(status_page())};
  Tenant* tenant = fleet_.tenant(call.key);
  const bool watched = get && (call.path == "/metrics" || call.path == "/status");
  if (tenant == nullptr && !(watched && fleet_.fleet().open_metrics))
    return reply(ApiError{401,
                          call.key.empty()
                              ? "no API key was given; expected the header 'Authorization: Bearer KEY'"
                              : "the API key is none of this server's",
                          "authentication_error", "", "invalid_api_key"});
  if (get && call.path == "/metrics")
    return {.type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_.text()};
  if (get && call.path == "/status") return status();
  if (get && call.path == "/v1/models") return list_models();
  if (post && call.path == "/v1/completions") return answer(call, *tenant, false);
  if (post && call.path == "/v1/chat/completions") return answer(call, *tenant, true);
  if (post && call.path == "/tokenize") return tokenize(call);
  if (post && call.path == "/detokenize") return detokenize(call);
  if (get && call.path.starts_with("/v1/models/")) {
    ServedModel* model = nullptr;
    if (ApiFault fault = find_model(call.path.substr(11), model)) return reply(*fault);
    const Json all = Json::parse(list_models().body);
    for (const Json& one : all["data"])
      if (one["id"] == model->given.name) return reply(one);
  }
  return reply(ApiError{404, fmt::format("{} {} is not served here", call.method, call.path),
                        "invalid_request_error", "", "not_found"});
}

HttpReply Api::health() const {
  std::lock_guard lock(mutex_);
  if (draining_) return {.status = 503, .body = R"({"status":"draining"})"};
  return {.body = R"({"status":"ok"})"};
}

HttpReply Api::list_models() const {
  Json data = Json::array();
  for (const auto& m : fleet_.models())
    data.push_back({{"id", m->given.name},
                    {"object", "model"},
                    {"created", started_s_},
                    {"owned_by", "droidspeak"},
                    {"root", m->identity.name},
                    {"parent", nullptr},
                    {"max_model_len", m->positions}});
  return reply(Json{{"object", "list"}, {"data", std::move(data)}});
}

ApiFault Api::find_model(const std::string& name, ServedModel*& out) const {
  if (name.empty() && fleet_.models().size() == 1) {
    out = fleet_.models().front().get();
    return std::nullopt;
  }
  if (name.empty())
    return ApiError::of_field("model", "'model' is missing; GET /v1/models lists those that are served");
  out = fleet_.find(name);
  if (out != nullptr) return std::nullopt;
  return ApiError{
      404, fmt::format("The model `{}` does not exist; GET /v1/models lists those that are served.", name),
      "invalid_request_error", "model", "model_not_found"};
}

ApiFault Api::prompt_ids(const ServedModel& model, const ApiRequest& request,
                         std::vector<std::vector<int32_t>>& out) const {
  auto encode = [&](const std::string& text, bool add_special) -> ApiFault {
    const char* field = request.chat ? "messages" : "prompt";
    if (!model.tokenizer)
      return ApiError::of_field(
          field, fmt::format("model '{}' has no tokenizer.json to read text with; give token ids",
                             model.given.name));
    auto ids = text_ids(*model.tokenizer, text, add_special);
    if (!ids.ok()) return ApiError::of_field(field, ids.status().message());
    out.push_back(std::move(*ids));
    return std::nullopt;
  };
  if (request.chat) {
    std::string text;
    if (ApiFault fault = render_chat(model, request.conversation, text)) return fault;
    return encode(text, request.add_special_tokens);
  }
  for (const Prompt& prompt : request.prompts) {
    if (prompt.is_ids)
      out.push_back(prompt.ids);
    else if (ApiFault fault = encode(prompt.text, request.add_special_tokens))
      return fault;
  }
  return std::nullopt;
}

HttpReply Api::tokenize(const HttpCall& call) {
  Json body;
  if (ApiFault fault = parse_body(call.body, body)) return reply(*fault);
  Fields f(body);
  ServedModel* model = nullptr;
  if (ApiFault fault = find_model(f.text("model").value_or(""), model)) return reply(*fault);
  ApiRequest request;
  request.chat = f.has("messages");
  request.add_special_tokens = f.boolean("add_special_tokens").value_or(!request.chat);
  const bool strings = f.boolean("return_token_strs").value_or(false);
  if (request.chat) {
    ApiRequest chat;
    chat.chat = true;
    if (ApiFault fault = parse_request(call.body, chat)) return reply(*fault);
    request.conversation = std::move(chat.conversation);
  } else {
    if (!f.has("prompt")) f.fail("prompt", "'prompt' or 'messages' is missing");
    request.prompts.push_back({f.text("prompt").value_or(""), {}, false});
  }
  if (f.fault()) return reply(*f.fault());
  std::vector<std::vector<int32_t>> ids;
  if (ApiFault fault = prompt_ids(*model, request, ids)) return reply(*fault);
  Json out = {{"count", ids[0].size()},
              {"max_model_len", model->positions},
              {"tokens", ids[0]},
              {"token_strs", nullptr}};
  if (strings) {
    out["token_strs"] = Json::array();
    for (int32_t id : ids[0]) {
      auto text = model->tokenizer->decode({&id, 1}, false);
      out["token_strs"].push_back(text.ok() ? *text : "");
    }
  }
  return reply(out);
}

HttpReply Api::detokenize(const HttpCall& call) {
  Json body;
  if (ApiFault fault = parse_body(call.body, body)) return reply(*fault);
  Fields f(body);
  ServedModel* model = nullptr;
  if (ApiFault fault = find_model(f.text("model").value_or(""), model)) return reply(*fault);
  if (!f.has("tokens"))
    return reply(ApiError::of_field("tokens", "'tokens' is missing; expected a list of token ids"));
  auto ids = token_ids(f.at("tokens"));
  if (!ids) return reply(ApiError::of_field("tokens", "'tokens' is no list of token ids"));
  if (!model->tokenizer)
    return reply(
        ApiError::of_field("model", fmt::format("model '{}' has no tokenizer.json", model->given.name)));
  auto text = model->tokenizer->decode(*ids, false);
  if (!text.ok()) return reply(ApiError::of(text.status()));
  return reply(Json{{"prompt", *text}});
}

bool Api::enter(Tenant& tenant, HttpReply& refusal) {
  std::lock_guard lock(mutex_);
  if (draining_) {
    refusal = reply(ApiError{503, "the server is shutting down; ask again, or ask another replica",
                             "server_error", "", "unavailable", 1});
    return false;
  }
  if (tenant.given.requests > 0 && tenant.running >= tenant.given.requests) {
    refusal = reply(ApiError{
        429,
        fmt::format("{} requests of this API key run already, which is its limit", tenant.given.requests),
        "rate_limit_error", "", "rate_limit_exceeded", 1});
    return false;
  }
  ++tenant.running;
  ++running_;
  return true;
}

void Api::leave(Tenant& tenant) {
  std::lock_guard lock(mutex_);
  --tenant.running;
  if (--running_ == 0) idle_.notify_all();
}

void Api::drain() {
  std::unique_lock lock(mutex_);
  draining_ = true;
  idle_.wait(lock, [&] { return running_ == 0; });
}

}  // namespace ds
