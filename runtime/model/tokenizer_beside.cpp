#include "runtime/model/tokenizer_beside_internal.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <map>
#include <optional>
#include <set>

namespace ds {
namespace {

using nlohmann::json;

// In the order in which they are added.
constexpr std::array<std::string_view, 7> kNamed = {"bos_token", "eos_token", "unk_token", "sep_token",
                                                    "pad_token", "cls_token", "mask_token"};

std::string shown(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace).substr(0, 60);
}

/// nullopt where there is no such file.
Result<std::optional<json>> read_if_there(const std::string& path) {
  Result<json> value = read_json_file(path);
  if (value.ok()) return std::optional<json>(std::move(*value));
  if (value.status().code() == Code::kNotFound) return std::optional<json>();
  return value.status();
}

/// {"content": "<s>", "lstrip": false, ..}; flags that are not there are off, but "normalized", which only a
/// special token is not.
Result<AddedToken> read_token(const JsonObject& object) {
  AddedToken token;
  DS_ASSIGN(token.content, object.string("content"));
  DS_ASSIGN(token.single_word, object.boolean_or("single_word", false));
  DS_ASSIGN(token.lstrip, object.boolean_or("lstrip", false));
  DS_ASSIGN(token.rstrip, object.boolean_or("rstrip", false));
  DS_ASSIGN(token.special, object.boolean_or("special", false));
  DS_ASSIGN(token.normalized, object.boolean_or("normalized", !token.special));
  return token;
}

/// A special token, by its text alone or with flags.
Result<AddedToken> read_special(const json& value, const std::string& where) {
  if (value.is_string()) {
    AddedToken token;
    token.content = value.get<std::string>();
    token.special = true;
    return token;
  }
  if (!value.is_object())
    return error(Code::kCorrupt, "{}: found {}, expected a token: its text, or an object with 'content'",
                 where, shown(value));
  json flags = value;
  flags["special"] = true;
  DS_ASSIGN(JsonObject object, JsonObject::make(flags, where));
  return read_token(object);
}

/// Special tokens by what they are for. Of one that two files name the later counts.
struct Specials {
  std::map<std::string, AddedToken, std::less<>> named;
  std::vector<AddedToken> named_extra, extra;

  Status read(const JsonObject& object) {
    for (const auto& [key, value] : object.json().items()) {
      if (value.is_null()) {
        named.erase(key);
      } else if (key == "extra_special_tokens" || key == "additional_special_tokens") {
        DS_TRY(read_extra(value, object.at(key)));
      } else if (std::find(kNamed.begin(), kNamed.end(), key) != kNamed.end() ||
                 (key.ends_with("_token") && value.is_string())) {
        DS_ASSIGN(named[key], read_special(value, object.at(key)));
      }
    }
    return ok_status();
  }
  /// A list, or an object of further names.
  Status read_extra(const json& value, const std::string& where) {
    if (!value.is_array() && !value.is_object())
      return error(Code::kCorrupt, "{}: found {}, expected a list of tokens", where, shown(value));
    for (const auto& [key, item] : value.items()) {
      DS_ASSIGN(AddedToken token, read_special(item, fmt::format("{}[{}]", where, key)));
      (value.is_object() ? named_extra : extra).push_back(std::move(token));
    }
    return ok_status();
  }
  bool has(std::string_view content) const {
    auto is = [&](const AddedToken& t) { return t.content == content; };
    return has_named(content) || std::any_of(extra.begin(), extra.end(), is);
  }
  bool has_named(std::string_view content) const {
    auto is = [&](const AddedToken& t) { return t.content == content; };
    return std::any_of(named.begin(), named.end(), [&](const auto& n) { return is(n.second); }) ||
           std::any_of(named_extra.begin(), named_extra.end(), is);
  }
  std::string name(std::string_view key) const {
    auto found = named.find(key);
    return found == named.end() ? "" : found->second.content;
  }
};

Status read_decoder(const JsonObject& decoder, std::map<int64_t, AddedToken>& by_id) {
  for (const auto& [key, value] : decoder.json().items()) {
    int64_t id = -1;
    auto [end, failure] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (failure != std::errc() || end != key.data() + key.size() || id < 0 || id > INT32_MAX)
      return error(Code::kCorrupt, "{}: found '{:.60}', expected the id of a token", decoder.where(), key);
    DS_ASSIGN(JsonObject object, JsonObject::make(value, decoder.at(key)));
    DS_ASSIGN(by_id[id], read_token(object));
  }
  return ok_status();
}

/// {"<|im_start|>": 32000}. `specials` says which of them are special.
Status read_added_tokens(const JsonObject& object, const Specials& specials,
                         std::map<int64_t, AddedToken>& by_id) {
  std::map<int64_t, std::string> seen;
  for (const auto& [content, value] : object.json().items()) {
    DS_ASSIGN(int64_t id, object.integer(content, 0, INT32_MAX));
    auto [other, fresh] = seen.emplace(id, content);
    if (!fresh)
      return error(Code::kCorrupt, "{}: id {} belongs to two tokens, '{}' and '{}'", object.where(), id,
                   other->second, content);
    AddedToken token;
    token.content = content;
    token.special = specials.has(content);
    token.normalized = !token.special;
    by_id[id] = std::move(token);
  }
  return ok_status();
}

}  // namespace

Result<BesideTokenizer> read_beside(const std::string& folder, const std::vector<AddedToken>& own) {
  BesideTokenizer beside;
  Specials specials;
  std::map<int64_t, AddedToken> by_id;
  bool has_decoder = false;
  const std::string config_path = folder + "/tokenizer_config.json";
  DS_ASSIGN(std::optional<json> config, read_if_there(config_path));
  if (config) {
    DS_ASSIGN(JsonObject object, JsonObject::make(*config, config_path));
    DS_TRY(specials.read(object));
    if (has_decoder = object.has("added_tokens_decoder"); has_decoder) {
      DS_ASSIGN(JsonObject decoder, object.object("added_tokens_decoder"));
      DS_TRY(read_decoder(decoder, by_id));
    }
    DS_ASSIGN(beside.add_bos, object.boolean_or("add_bos_token", false));
    DS_ASSIGN(beside.add_eos, object.boolean_or("add_eos_token", false));
    DS_ASSIGN(bool split, object.boolean_or("split_special_tokens", false));
    if (split)
      return error(Code::kUnsupported, "{}: special tokens in texts are always read as such; set it to false",
                   object.at("split_special_tokens"));
  }
  if (!has_decoder) {
    const std::string map_path = folder + "/special_tokens_map.json",
                      added_path = folder + "/added_tokens.json";
    DS_ASSIGN(std::optional<json> map, read_if_there(map_path));
    if (map) {
      DS_ASSIGN(JsonObject object, JsonObject::make(*map, map_path));
      DS_TRY(specials.read(object));
    }
    DS_ASSIGN(std::optional<json> added, read_if_there(added_path));
    if (added) {
      DS_ASSIGN(JsonObject object, JsonObject::make(*added, added_path));
      DS_TRY(read_added_tokens(object, specials, by_id));
    }
    for (const AddedToken& token : own) by_id[token.id] = token;
  }

  std::set<std::string, std::less<>> known;
  for (const AddedToken& token : own) known.insert(token.content);
  auto add = [&](const AddedToken& token) {
    if (token.content.empty()) return;
    known.insert(token.content);
    beside.tokens.push_back(token);
  };
  for (auto& [id, token] : by_id) {
    token.special |= specials.has_named(token.content);
    add(token);
  }
  auto add_new = [&](const AddedToken& token) {
    if (!known.contains(token.content)) add(token);
  };
  for (std::string_view key : kNamed) {
    if (auto found = specials.named.find(key); found != specials.named.end()) add_new(found->second);
  }
  for (const auto& [key, token] : specials.named) add_new(token);
  for (const AddedToken& token : specials.named_extra) add_new(token);
  for (const AddedToken& token : specials.extra) add_new(token);
  beside.bos_token = specials.name("bos_token");
  beside.eos_token = specials.name("eos_token");
  return beside;
}

}  // namespace ds
