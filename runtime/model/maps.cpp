#include "runtime/model/maps.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "runtime/model/identity.h"
#include "runtime/model/safetensors.h"
#include "support/hash.h"
#include "support/schema.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMostLayers = 4096, kMostWidth = int64_t{1} << 24;

/// The tensors of a map, by name and shape; the same list writes, reads and hashes.
template <typename Map, typename Visit>
Status visit_tensors(Map& m, int64_t d, Visit visit) {
  auto name = [&](std::string_view part) {
    return fmt::format("layers.{}.{}.{}", m.layer, map_form_name(m.form), part);
  };
  if (m.form == MapForm::kFull) DS_TRY(visit(name("weight"), m.weight, std::vector<int64_t>{d, d}));
  if (m.form == MapForm::kLowRank) {
    DS_TRY(visit(name("up"), m.up, std::vector<int64_t>{d, m.rank}));
    DS_TRY(visit(name("down"), m.down, std::vector<int64_t>{m.rank, d}));
  }
  if (m.form != MapForm::kFull) DS_TRY(visit(name("scale"), m.scale, std::vector<int64_t>{d}));
  return visit(name("bias"), m.bias, std::vector<int64_t>{d});
}

std::span<const std::byte> bytes_of(const std::vector<float>& v) { return std::as_bytes(std::span(v)); }

Json finite(double x) { return std::isfinite(x) ? Json(x) : Json(nullptr); }

Json fit_json(int64_t layer, MapForm form, int64_t rank, const MapFit& fit) {
  return {{"layer", layer},
          {"form", map_form_name(form)},
          {"rank", rank},
          {"tokens", fit.tokens},
          {"contexts", fit.contexts},
          {"held_out_tokens", fit.held_out_tokens},
          {"held_out_contexts", fit.held_out_contexts},
          {"massive_tokens", fit.massive_tokens},
          {"ridge", finite(fit.ridge)},
          {"error", finite(fit.error)},
          {"ordinary_error", finite(fit.ordinary_error)},
          {"plain_error", finite(fit.plain_error)},
          {"plain_ordinary_error", finite(fit.plain_ordinary_error)},
          {"gain_stderr", finite(fit.gain_stderr)}};
}

Result<MapFit> read_fit(const JsonObject& o) {
  constexpr double kNone = kUnknown;
  MapFit fit;
  DS_ASSIGN(fit.tokens, o.integer("tokens", 1, INT64_MAX));
  DS_ASSIGN(fit.contexts, o.integer("contexts", 1, INT64_MAX));
  DS_ASSIGN(fit.held_out_tokens, o.integer("held_out_tokens", 0, INT64_MAX));
  DS_ASSIGN(fit.held_out_contexts, o.integer("held_out_contexts", 0, INT64_MAX));
  DS_ASSIGN(fit.massive_tokens, o.integer_or("massive_tokens", 0, INT64_MAX, 0));
  DS_ASSIGN(fit.ridge, o.number_or("ridge", 0, 1e300, kNone));
  DS_ASSIGN(fit.error, o.number_or("error", 0, 1e300, kNone));
  DS_ASSIGN(fit.ordinary_error, o.number_or("ordinary_error", 0, 1e300, kNone));
  DS_ASSIGN(fit.plain_error, o.number_or("plain_error", 0, 1e300, kNone));
  DS_ASSIGN(fit.plain_ordinary_error, o.number_or("plain_ordinary_error", 0, 1e300, kNone));
  DS_ASSIGN(fit.gain_stderr, o.number_or("gain_stderr", 0, 1e300, kNone));
  return fit;
}

/// Layer, form and fit of an entry of `statistics` or `plain`.
template <typename Map>
Result<Map> read_entry(const JsonObject& o, int64_t layers, const std::vector<Map>& before) {
  Map m;
  DS_ASSIGN(m.layer, o.integer("layer", 0, layers - 1));
  DS_ASSIGN(std::string form, o.string("form"));
  DS_ASSIGN(m.form, parse_map_form(form, o.at("form"), Code::kCorrupt));
  DS_ASSIGN(m.fit, read_fit(o));
  if (!before.empty() && std::tie(before.back().layer, before.back().form) >= std::tie(m.layer, m.form))
    return error(Code::kCorrupt, "{}: layer {}, {}: not in ascending order, or twice", o.where(), m.layer,
                 form);
  return m;
}

}  // namespace

int64_t AlignmentMap::flops() const {
  const auto d = static_cast<int64_t>(bias.size());
  return form == MapForm::kFull ? 2 * d * d : form == MapForm::kLowRank ? 4 * d * rank + 2 * d : 2 * d;
}

const AlignmentMap* MapSet::find(int64_t layer, MapForm form) const {
  for (const AlignmentMap& m : maps)
    if (m.layer == layer && m.form == form) return &m;
  return nullptr;
}

std::string MapSet::fingerprint() const {
  std::string text = fmt::format("droidspeak.maps {}\n{}\n{}\n{} {} {}\n", kMapsVersion, sender_fingerprint,
                                 receiver_fingerprint, layers, d_model, dtype);
  for (const AlignmentMap& m : maps) {
    Status status =
        visit_tensors(m, d_model, [&](const std::string& name, const std::vector<float>& v, auto) {
          text += fmt::format("{} {}\n", name, sha256_hex(bytes_of(v)));
          return ok_status();
        });
    (void)status;  // the visitor never fails
  }
  return sha256_hex(text);
}

Status MapSet::write(const std::string& path) const {
  std::vector<NamedTensor> tensors;
  Json statistics = Json::array(), plain_layers = Json::array(), inputs = Json::array();
  for (const AlignmentMap& m : maps) {
    DS_TRY(visit_tensors(m, d_model, [&](const std::string& name, const std::vector<float>& v, auto shape) {
      tensors.push_back({name, DType::kF32, shape, bytes_of(v)});
      return ok_status();
    }));
    statistics.push_back(fit_json(m.layer, m.form, m.rank, m.fit));
  }
  for (const PlainLayer& p : plain) plain_layers.push_back(fit_json(p.layer, p.form, 0, p.fit));
  for (const InputFile& i : data)
    inputs.push_back({{"role", i.role}, {"name", i.name}, {"sha256", i.sha256}});
  Json pair{{"sender", {{"name", sender_name}, {"fingerprint", sender_fingerprint}}},
            {"receiver", {{"name", receiver_name}, {"fingerprint", receiver_fingerprint}}}};
  Json shape{{"layers", layers}, {"d_model", d_model}, {"dtype", dtype}};
  auto dump = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); };
  return write_safetensors(path, tensors,
                           {{"format", "droidspeak.maps"},
                            {"version", std::to_string(kMapsVersion)},
                            {"fingerprint", fingerprint()},
                            {"pair", dump(pair)},
                            {"shape", dump(shape)},
                            {"data", dump(inputs)},
                            {"statistics", dump(statistics)},
                            {"plain", dump(plain_layers)}});
}

Result<MapSet> MapSet::read(const std::string& path) {
  DS_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
  auto text = [&](const std::string& key) -> Result<std::string> {
    auto at = file.metadata().find(key);
    if (at == file.metadata().end())
      return error(
          Code::kMismatch,
          "'{}' has no '{}' in its metadata; expected a file of maps for aligned cuts, from ds-profile", path,
          key);
    return at->second;
  };
  DS_ASSIGN(std::string format, text("format"));
  DS_ASSIGN(std::string version_text, text("version"));
  if (format != "droidspeak.maps")
    return error(Code::kMismatch, "'{}' has format '{}'; expected 'droidspeak.maps', from ds-profile", path,
                 format);
  int64_t version = 0;
  const char* end = version_text.data() + version_text.size();
  if (std::from_chars(version_text.data(), end, version).ptr != end || version < 1)
    return error(Code::kCorrupt, "'{}': version is '{}', expected 1 to {}", path, version_text, kMapsVersion);
  if (version > kMapsVersion)
    return error(Code::kUnsupported,
                 "'{}' has version {}, this program reads up to {}; use a newer droidspeak", path, version,
                 kMapsVersion);

  MapSet set;
  auto parse = [&](const std::string& key) -> Result<nlohmann::json> {
    DS_ASSIGN(std::string json, text(key));
    return parse_json(json, fmt::format("{} ({})", path, key));
  };
  DS_ASSIGN(nlohmann::json pair_json, parse("pair"));
  DS_ASSIGN(JsonObject pair, JsonObject::make(pair_json, path + ": pair"));
  DS_ASSIGN(JsonObject sender, pair.object("sender"));
  DS_ASSIGN(JsonObject receiver, pair.object("receiver"));
  DS_ASSIGN(set.sender_name, sender.string("name"));
  DS_ASSIGN(set.sender_fingerprint, sender.string("fingerprint"));
  DS_ASSIGN(set.receiver_name, receiver.string("name"));
  DS_ASSIGN(set.receiver_fingerprint, receiver.string("fingerprint"));
  DS_ASSIGN(nlohmann::json shape_json, parse("shape"));
  DS_ASSIGN(JsonObject shape, JsonObject::make(shape_json, path + ": shape"));
  DS_ASSIGN(set.layers, shape.integer("layers", 1, kMostLayers));
  DS_ASSIGN(set.d_model, shape.integer("d_model", 1, kMostWidth));
  DS_ASSIGN(set.dtype, shape.string("dtype"));
  DS_ASSIGN(nlohmann::json data_json, parse("data"));
  if (!data_json.is_array()) return error(Code::kCorrupt, "{}: data: expected a list", path);
  for (const auto& entry : data_json) {
    DS_ASSIGN(JsonObject o, JsonObject::make(entry, path + ": data"));
    InputFile& input = set.data.emplace_back();
    DS_ASSIGN(input.role, o.string("role"));
    DS_ASSIGN(input.name, o.string("name"));
    DS_ASSIGN(input.sha256, o.string("sha256"));
  }
  auto parse_maps = [&](const std::string& key) -> Result<nlohmann::json> {
    DS_ASSIGN(nlohmann::json list, parse(key));
    if (!list.is_array() || list.size() > static_cast<size_t>(kMostLayers) * kMapForms)
      return error(Code::kCorrupt, "{}: {}: expected a list of maps", path, key);
    return list;
  };
  if (file.metadata().contains("plain")) {  // not in files from before there was a choice
    DS_ASSIGN(nlohmann::json list, parse_maps("plain"));
    for (size_t i = 0; i < list.size(); ++i) {
      DS_ASSIGN(JsonObject o, JsonObject::make(list[i], fmt::format("{}: plain[{}]", path, i)));
      DS_ASSIGN(PlainLayer p, read_entry(o, set.layers, set.plain));
      set.plain.push_back(p);
    }
  }
  DS_ASSIGN(nlohmann::json statistics, parse_maps("statistics"));
  size_t used = 0;
  for (size_t i = 0; i < statistics.size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make(statistics[i], fmt::format("{}: statistics[{}]", path, i)));
    DS_ASSIGN(AlignmentMap m, read_entry(o, set.layers, set.maps));
    const bool low_rank = m.form == MapForm::kLowRank;
    DS_ASSIGN(m.rank, o.integer("rank", low_rank ? 1 : 0, low_rank ? set.d_model : 0));
    auto read_tensor = [&](const std::string& name, std::vector<float>& v,
                           const std::vector<int64_t>& dims) -> Status {
      auto at = file.entries().find(name);
      if (at == file.entries().end())
        return error(Code::kCorrupt, "'{}': tensor '{}' is missing; fit the maps again", path, name);
      const SafetensorsEntry& e = at->second;
      if (e.dtype != "F32" || e.shape != dims)
        return error(Code::kCorrupt, "'{}': tensor '{}' is {} [{}]; expected F32 [{}]", path, name, e.dtype,
                     fmt::join(e.shape, ", "), fmt::join(dims, ", "));
      v.resize(e.data.size() / sizeof(float));
      if (!v.empty()) std::memcpy(v.data(), e.data.data(), e.data.size());
      auto bad = std::find_if(v.begin(), v.end(), [](float x) { return !std::isfinite(x); });
      if (bad != v.end())
        return error(Code::kCorrupt, "'{}': tensor '{}' has {} at element {}; expected finite numbers", path,
                     name, *bad, bad - v.begin());
      ++used;
      return ok_status();
    };
    DS_TRY(visit_tensors(m, set.d_model, read_tensor));
    set.maps.push_back(std::move(m));
  }
  if (used != file.entries().size())
    return error(Code::kCorrupt, "'{}' has {} tensors, its list of maps accounts for {}", path,
                 file.entries().size(), used);
  DS_ASSIGN(std::string stated, text("fingerprint"));
  if (std::string found = set.fingerprint(); found != stated)
    return error(Code::kCorrupt,
                 "'{}' states fingerprint {:.12}, its contents have {:.12}: damaged, fit the maps again",
                 path, stated, found);
  return set;
}

Status MapSet::check_pair(const std::string& path, const ModelIdentity& sender, const ModelIdentity& receiver,
                          int64_t model_layers, int64_t width) const {
  if (layers != model_layers || d_model != width)
    return error(Code::kMismatch, "maps '{}' are for {} layers of width {}, the models have {} of width {}",
                 path, layers, d_model, model_layers, width);
  auto same = [&](std::string_view role, const std::string& name, const std::string& found,
                  const ModelIdentity& model) -> Status {
    if (names_model(found, model)) return ok_status();
    return error(
        Code::kMismatch,
        "maps '{}' were fitted for {} '{}' (fingerprint {:.12}), this {} has {:.12}: they are of another "
        "pair, fit maps for this one with ds-profile",
        path, role, name, found, role, model_fingerprint(model));
  };
  DS_TRY(same("sender", sender_name, sender_fingerprint, sender));
  return same("receiver", receiver_name, receiver_fingerprint, receiver);
}

Status MapSet::check_plan(const std::string& path, const Plan& plan) const {
  DS_TRY(check_pair(path, plan.sender, plan.receiver, plan.shape.layers, plan.shape.d_model));
  if (std::string found = fingerprint(); found != plan.maps.fingerprint)
    return error(
        Code::kMismatch,
        "maps '{}' have fingerprint {:.12}, the plan was compiled with '{}' ({:.12}): of the same pair, but "
        "another fit; give that file, or compile the plan again with this one",
        path, found, plan.maps.name, plan.maps.fingerprint);
  return ok_status();
}

}  // namespace ds
