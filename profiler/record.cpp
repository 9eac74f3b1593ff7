#include "profiler/record.h"

#include <cmath>

#include "support/hash.h"
#include "support/json.h"
#include "support/schema.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

/// By way; null where it was not scored.
Json column(const ItemRecord& item, double WayResult::*field) {
  Json values = Json::array();
  for (const WayResult& w : item.ways)
    values.push_back(w.scored && std::isfinite(w.*field) ? Json(w.*field) : Json(nullptr));
  return values;
}

Json item_json(const ItemRecord& item) {
  Json json{{"source", item.source},
            {"task", item.task},
            {"metric", metric_name(item.metric)},
            {"question", item.question},
            {"references", item.references}};
  json["score"] = column(item, &WayResult::score);
  json["exact"] = column(item, &WayResult::exact);
  json["divergence"] = column(item, &WayResult::divergence);
  json["entropy"] = column(item, &WayResult::entropy);
  json["margin"] = column(item, &WayResult::margin);
  // Most ways give one of a few answers.
  std::vector<std::string> texts;
  Json index = Json::array();
  for (const WayResult& w : item.ways) {
    size_t at = 0;
    while (at < texts.size() && texts[at] != w.text) ++at;
    if (at == texts.size()) texts.push_back(w.text);
    index.push_back(at);
  }
  json["texts"] = texts;
  json["text"] = std::move(index);
  return json;
}

Status read_column(const JsonObject& o, std::string_view key, size_t ways, double WayResult::*field,
                   ItemRecord& item) {
  DS_ASSIGN(const nlohmann::json* values, o.array(key));
  if (values->size() != ways)
    return error(Code::kCorrupt, "{}: {} values, expected one for each of {} ways", o.at(key), values->size(),
                 ways);
  for (size_t i = 0; i < ways; ++i) {
    const nlohmann::json& v = (*values)[i];
    if (!v.is_null() && !v.is_number())
      return error(Code::kCorrupt, "{}: {} is no number", o.at(key), v.dump());
    item.ways[i].*field = v.is_null() ? std::nan("") : v.get<double>();
  }
  return ok_status();
}

Result<ItemRecord> read_item(const JsonObject& o, size_t ways) {
  ItemRecord item;
  DS_ASSIGN(item.source, o.string("source"));
  DS_ASSIGN(item.task, o.string("task"));
  DS_ASSIGN(item.question, o.string("question"));
  DS_ASSIGN(std::string metric, o.string("metric"));
  DS_ASSIGN(item.metric, parse_metric(metric));
  DS_ASSIGN(const nlohmann::json* references, o.array("references"));
  for (const auto& r : *references)
    if (r.is_string()) item.references.push_back(r.get<std::string>());
  item.ways.resize(ways);
  DS_TRY(read_column(o, "score", ways, &WayResult::score, item));
  DS_TRY(read_column(o, "exact", ways, &WayResult::exact, item));
  DS_TRY(read_column(o, "divergence", ways, &WayResult::divergence, item));
  DS_TRY(read_column(o, "entropy", ways, &WayResult::entropy, item));
  DS_TRY(read_column(o, "margin", ways, &WayResult::margin, item));
  DS_ASSIGN(const nlohmann::json* texts, o.array("texts"));
  DS_ASSIGN(const nlohmann::json* index, o.array("text"));
  if (index->size() != ways)
    return error(Code::kCorrupt, "{}: {} entries, expected {}", o.at("text"), index->size(), ways);
  for (size_t i = 0; i < ways; ++i) {
    const nlohmann::json& at = (*index)[i];
    if (!at.is_number_unsigned() || at.get<size_t>() >= texts->size() ||
        !(*texts)[at.get<size_t>()].is_string())
      return error(Code::kCorrupt, "{}: {} is not the number of a text", o.at("text"), at.dump());
    item.ways[i].text = (*texts)[at.get<size_t>()].get<std::string>();
    item.ways[i].scored = std::isfinite(item.ways[i].score);
  }
  return item;
}

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string record_text(const ContextRecord& record) {
  Json content{{"index", record.index}, {"tokens", record.tokens}, {"k_deviation", record.k_deviation}};
  content["items"] = Json::array();
  for (const ItemRecord& item : record.items) content["items"].push_back(item_json(item));
  std::string text = dump(content);
  return dump(Json{{"schema", "droidspeak.profile-context"}, {"version", 1}, {"sha256", sha256_hex(text)}}) +
         "\n" + text + "\n";
}

Result<ContextRecord> parse_record(std::string_view text, const std::string& origin, size_t ways) {
  size_t line = text.find('\n');
  if (line == std::string_view::npos || text.size() < line + 2 || text.back() != '\n')
    return error(Code::kCorrupt, "'{}' is cut short after {} bytes; expected two lines", origin, text.size());
  std::string_view content = text.substr(line + 1, text.size() - line - 2);
  DS_ASSIGN(nlohmann::json head, parse_json(text.substr(0, line), origin));
  DS_ASSIGN(JsonObject root, JsonObject::make(head, origin));
  DS_TRY(check_schema(root, "droidspeak.profile-context", 1));
  DS_ASSIGN(std::string sha256, root.string("sha256"));
  if (sha256 != sha256_hex(content))
    return error(Code::kCorrupt,
                 "'{}': its checksum does not fit its content; the file was damaged or edited", origin);
  DS_ASSIGN(nlohmann::json json, parse_json(content, origin));
  DS_ASSIGN(JsonObject o, JsonObject::make(json, origin));
  ContextRecord record;
  DS_ASSIGN(record.index, o.integer("index", 0, INT32_MAX));
  DS_ASSIGN(record.tokens, o.integer("tokens", 1, INT32_MAX));
  DS_ASSIGN(record.k_deviation, o.number("k_deviation", 0, 1e12));
  DS_ASSIGN(const nlohmann::json* items, o.array("items"));
  for (size_t i = 0; i < items->size(); ++i) {
    DS_ASSIGN(JsonObject at, JsonObject::make((*items)[i], fmt::format("{}: items[{}]", origin, i)));
    DS_ASSIGN(ItemRecord item, read_item(at, ways));
    record.items.push_back(std::move(item));
  }
  return record;
}

}  // namespace ds
