#include "profiler/prompt.h"

#include <algorithm>

#include "support/file.h"
#include "support/hash.h"
#include "support/schema.h"

namespace ds {
namespace {

constexpr std::string_view kBuiltin =
    R"({"schema":"droidspeak.prompts","version":1,"tasks":{"*":{"prompt":"{context}{input}","max_new_tokens":64}}})";
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

Result<PromptTemplate> read_template(const JsonObject& o) {
  DS_TRY(check_keys(o, {"prompt", "max_new_tokens", "metric", "answer_prefix", "stop", "first_line"}));
  PromptTemplate t;
  DS_ASSIGN(std::string prompt, o.string("prompt"));
  DS_TRY(parse_prompt(prompt, o.at("prompt"), t));
  DS_ASSIGN(t.max_new_tokens, o.integer_or("max_new_tokens", 1, 1 << 20, t.max_new_tokens));
  if (o.has("metric")) {
    DS_ASSIGN(std::string name, o.string("metric"));
    Result<Metric> metric = parse_metric(name);
    if (!metric.ok()) return metric.status().with_context(o.at("metric"));
    t.metric = *metric;
  }
  DS_ASSIGN(t.answer_prefix, o.string_or("answer_prefix", t.answer_prefix));
  DS_ASSIGN(t.stop, read_stops(o));
  if (o.has("first_line")) {
    DS_ASSIGN(t.first_line, o.boolean("first_line"));
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

std::string_view cut_answer(const PromptTemplate& prompt, std::string_view task, std::string_view text) {
  size_t end = text.size();
  for (const std::string& stop : prompt.stop) end = std::min(end, text.find(stop));
  text = text.substr(0, end);
  return prompt.first_line.value_or(longbench_first_line(task)) ? first_line(text) : text;
}

Result<PromptTemplates> PromptTemplates::parse(std::string name, std::string_view text) {
  PromptTemplates templates;
  DS_ASSIGN(nlohmann::json json, parse_json(text, name));
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

}  // namespace ds
