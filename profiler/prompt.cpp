#include "profiler/prompt.h"

#include <algorithm>
#include <charconv>

#include "support/file.h"
#include "support/hash.h"
#include "support/schema.h"

namespace ds {
namespace {

constexpr std::string_view kBuiltin =
    R"({"schema":"droidspeak.prompts","version":1,"tasks":{"*":{"prompt":"{context}{input}","max_new_tokens":64}}})";
constexpr int64_t kMostNewTokens = 1 << 20;
constexpr std::string_view kContext = "{context}", kInput = "{input}";
constexpr std::string_view kRule =
    "expected {context} once, then {input} at most once, and braces that are meant as such doubled: {{ }}";

/// Cuts a prompt into its texts. `where` is "prompts.json: tasks: notes_qa: prompt".
Status parse_prompt(std::string_view text, const std::string& where, PromptTemplate& out) {
  auto bad = [&](std::string_view found) {
    return error(Code::kInvalidArgument, "{}: found {}; {}", where, found, kRule);
  };
  bool has_context = false;
  std::string* to = &out.before_context;
  for (size_t at = 0; at < text.size();) {
    std::string_view rest = text.substr(at);
    if (rest.starts_with("{{") || rest.starts_with("}}")) {
      *to += rest[0];
      at += 2;
    } else if (rest.starts_with(kContext)) {
      if (has_context) return bad("a second {context}");
      has_context = true;
      to = &out.before_input;
      at += kContext.size();
    } else if (rest.starts_with(kInput)) {
      if (!has_context) return bad("{input} before {context}");
      if (out.has_input) return bad("a second {input}");
      out.has_input = true;
      to = &out.after_input;
      at += kInput.size();
    } else if (rest[0] == '{' || rest[0] == '}') {
      size_t end = std::min(rest.find_first_not_of("abcdefghijklmnopqrstuvwxyz_", 1), rest.size());
      if (end < rest.size() && rest[end] == '}') ++end;
      return bad(fmt::format("'{}' at byte {}", rest.substr(0, end), at));
    } else {
      *to += rest[0];
      ++at;
    }
  }
  if (!has_context) return bad("no {context}");
  if (!out.has_input && out.before_input.empty()) return bad("nothing after {context}, so no question");
  return ok_status();
}

Result<std::vector<std::string>> read_stops(const JsonObject& o) {
  std::vector<std::string> stops;
  if (!o.has("stop")) return stops;
  DS_ASSIGN(const nlohmann::json* list, o.array("stop"));
  for (size_t i = 0; i < list->size(); ++i) {
    if (!(*list)[i].is_string() || (*list)[i].get<std::string>().empty())
      return error(Code::kInvalidArgument, "{}[{}]: found {}, expected a text that is not empty",
                   o.at("stop"), i, (*list)[i].dump());
    stops.push_back((*list)[i].get<std::string>());
  }
  return stops;
}

/// dataset2prompt.json: texts by task, without a schema.
bool is_longbench(const nlohmann::json& json) {
  auto is_text = [](const nlohmann::json& value) { return value.is_string(); };
  return json.is_object() && !json.empty() && !json.contains("schema") &&
         std::all_of(json.begin(), json.end(), is_text);
}

Result<PromptTemplate> read_template(const JsonObject& o) {
  DS_TRY(
      check_keys(o, {"prompt", "max_new_tokens", "metric", "answer_prefix", "stop", "first_line", "chat"}));
  PromptTemplate t;
  DS_ASSIGN(std::string prompt, o.string("prompt"));
  DS_TRY(parse_prompt(prompt, o.at("prompt"), t));
  DS_ASSIGN(t.max_new_tokens, o.integer_or("max_new_tokens", 1, kMostNewTokens, t.max_new_tokens));
  if (o.has("metric")) {
    DS_ASSIGN(std::string name, o.string("metric"));
    Result<Metric> metric = parse_metric(name);
    if (!metric.ok()) return metric.status().with_context(o.at("metric"));
    t.metric = *metric;
  }
  DS_ASSIGN(t.answer_prefix, o.string_or("answer_prefix", *t.answer_prefix));
  DS_ASSIGN(t.stop, read_stops(o));
  if (o.has("first_line")) {
    DS_ASSIGN(t.first_line, o.boolean("first_line"));
  }
  if (o.has("chat")) {
    DS_ASSIGN(t.chat, o.boolean("chat"));
  }
  return t;
}

}  // namespace

Result<Prompt> render(const PromptTemplate& prompt, const Item& item) {
  Prompt out;
  out.context = prompt.before_context + item.context;
  out.suffix = prompt.before_input;
  if (prompt.has_input) out.suffix += item.input;
  out.suffix += prompt.after_input;
  if (out.suffix.empty()) {
    return error(
        Code::kInvalidArgument,
        "{}: nothing follows the context: 'input' is empty and so is the prompt template's text after "
        "{{context}}; expected at least one token that only the receiver sees (write a question into "
        "'input' or the template, for instance \"{{context}}\\nSummary:\")",
        item.where);
  }
  return out;
}

std::string reference_text(const PromptTemplate& prompt, const Prompt& text, const Item& item) {
  // Behind a chat template's begin of an answer the default is that of the text's end.
  const bool by_text = !prompt.answer_prefix || (text.templated && *prompt.answer_prefix == " ");
  if (!by_text) return *prompt.answer_prefix + item.answers[0];
  const char last = text.suffix.back();
  const bool spaced = last == ' ' || (last >= '\t' && last <= '\r') || (last & 0x80) != 0;
  return (spaced ? "" : " ") + item.answers[0];
}

bool wants_chat(const PromptTemplate& prompt, std::string_view task) {
  const LongBenchTask* of_longbench = longbench_task(task);
  return prompt.chat.value_or(of_longbench == nullptr || of_longbench->chat);
}

std::string_view cut_answer(const PromptTemplate& prompt, std::string_view task, std::string_view text) {
  size_t end = text.size();
  for (const std::string& stop : prompt.stop) end = std::min(end, text.find(stop));
  text = text.substr(0, end);
  return prompt.first_line.value_or(longbench_first_line(task)) ? first_line(text) : text;
}

Result<PromptTemplates> PromptTemplates::parse(std::string name, std::string_view text) {
  PromptTemplates templates;
  DS_ASSIGN(nlohmann::json json, parse_json(text, name));
  if (is_longbench(json)) {
    DS_ASSIGN(templates, parse_longbench(std::move(name), json));
    templates.sha256_ = sha256_hex(text);
    return templates;
  }
  DS_ASSIGN(JsonObject root, JsonObject::make(json, name));
  DS_TRY(check_schema(root, "droidspeak.prompts", kPromptsVersion));
  DS_TRY(check_keys(root, {"schema", "version", "tasks"}));
  DS_ASSIGN(JsonObject tasks, root.object("tasks"));
  for (const auto& [task, value] : tasks.json().items()) {
    DS_ASSIGN(JsonObject o, JsonObject::make(value, tasks.at(task)));
    DS_ASSIGN(PromptTemplate one, read_template(o));
    templates.tasks_.emplace(task, std::move(one));
  }
  if (templates.tasks_.empty())
    return error(Code::kInvalidArgument, "{}: empty; expected a template for each data set, or one for '*'",
                 tasks.where());
  templates.name_ = std::move(name);
  templates.sha256_ = sha256_hex(text);
  return templates;
}

Result<PromptTemplates> PromptTemplates::parse_longbench(std::string name, const nlohmann::json& prompts) {
  PromptTemplates templates;
  for (const auto& [task, text] : prompts.items()) {
    PromptTemplate t;
    DS_TRY(parse_prompt(text.get<std::string>(), fmt::format("{}: {}", name, task), t));
    t.max_new_tokens = 0;
    t.answer_prefix.reset();
    templates.tasks_.emplace(task, std::move(t));
  }
  templates.name_ = std::move(name);
  return templates;
}

Status PromptTemplates::set_max_new_tokens(const std::string& number_or_file) {
  int64_t number = 0;
  const char* last = number_or_file.data() + number_or_file.size();
  const bool is_number = std::from_chars(number_or_file.data(), last, number).ptr == last;
  std::string text = number_or_file;
  if (is_number) {
    if (number < 1 || number > kMostNewTokens)
      return error(Code::kInvalidArgument, "{} new tokens; expected 1 to {}", number, kMostNewTokens);
    for (auto& [task, t] : tasks_) t.max_new_tokens = number;
  } else {
    DS_ASSIGN(text, read_text_file(number_or_file, 64 << 20));
    DS_ASSIGN(nlohmann::json json, parse_json(text, number_or_file));
    DS_ASSIGN(JsonObject root, JsonObject::make(json, number_or_file));
    for (const auto& [task, value] : json.items()) {
      DS_ASSIGN(number, root.integer(task, 1, kMostNewTokens));
      auto listed = tasks_.find(task);
      if (auto star = tasks_.find("*"); listed == tasks_.end() && star != tasks_.end())
        listed = tasks_.emplace(task, star->second).first;
      if (listed != tasks_.end()) listed->second.max_new_tokens = number;
    }
  }
  sha256_ = sha256_hex(sha256_ + "\n" + text);
  return ok_status();
}

Status PromptTemplates::set_chat(std::shared_ptr<const ChatTemplate> chat_template, std::string system,
                                 std::optional<std::time_t> now) {
  // Stands for the template in what a run is known by: its text, with the special tokens and the date in it.
  Conversation first = Conversation::of(system, "{context}{input}");
  DS_ASSIGN(std::string shown, chat_template->render(first, now));
  chat_ = std::move(chat_template);
  system_ = std::move(system);
  now_ = now;
  sha256_ = sha256_hex(sha256_ + "\n" + shown);
  return ok_status();
}

Result<Prompt> PromptTemplates::render(const PromptTemplate& prompt, const Item& item) const {
  DS_ASSIGN(Prompt plain, ds::render(prompt, item));
  if (chat_ == nullptr || !wants_chat(prompt, item.task)) return plain;
  auto text = chat_->render_about(Conversation::of(system_, plain.suffix), plain.context, now_);
  if (!text.ok()) return text.status().with_context(item.where);
  if (text->shared == 0)
    return error(
        Code::kInvalidArgument,
        "{}: the chat template does not begin this prompt with what others about its context begin with, so "
        "that nothing can be reused; take another template, or none (--template none)",
        item.where);
  return Prompt{text->text.substr(0, text->shared), text->text.substr(text->shared), true};
}

const PromptTemplates& PromptTemplates::builtin() {
  static const PromptTemplates templates = parse("builtin", kBuiltin).value();
  return templates;
}

Result<PromptTemplates> PromptTemplates::read(const std::string& path) {
  DS_ASSIGN(std::string text, read_text_file(path, 64 << 20));
  return parse(path, text);
}

const PromptTemplate* PromptTemplates::listed(std::string_view task) const {
  auto it = tasks_.find(task);
  if (const LongBenchTask* named = longbench_task(task); it == tasks_.end() && named != nullptr)
    it = tasks_.find(named->name);
  if (it == tasks_.end()) it = tasks_.find("*");
  return it == tasks_.end() ? nullptr : &it->second;
}

Result<const PromptTemplate*> PromptTemplates::find(std::string_view task) const {
  if (const PromptTemplate* found = listed(task)) return found;
  std::vector<std::string_view> known;
  for (const auto& [name, t] : tasks_) known.push_back(name);
  return error(Code::kNotFound, "{}: no prompt for data set '{}' and none for '*'; found {}; add one", name_,
               task, fmt::join(known, ", "));
}

std::optional<Metric> PromptTemplates::metric(std::string_view task) const {
  const PromptTemplate* found = listed(task);
  return found && found->metric ? found->metric : longbench_metric(task);
}

Status check_max_new_tokens(const PromptTemplates& prompts, const std::vector<Dataset>& data) {
  for (const Dataset& set : data) {
    for (const Item& item : set.items) {
      DS_ASSIGN(const PromptTemplate* prompt, prompts.find(item.task));
      if (prompt->max_new_tokens > 0) continue;
      return error(Code::kInvalidArgument,
                   "{}: '{}' does not say how long an answer to '{}' may be; give a number or LongBench's "
                   "dataset2maxlen.json by --max-new-tokens",
                   item.where, prompts.name(), item.task);
    }
  }
  return ok_status();
}

}  // namespace ds
