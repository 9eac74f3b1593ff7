#include "runtime/trace/plan_json.h"

#include <cmath>

#include "plans/traits.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

Json limit(int64_t value) { return value == kNoLimit ? Json(nullptr) : Json(value); }

Json loss_json(double loss) { return std::isnan(loss) ? Json(nullptr) : Json(loss); }

Json op_json(const Variant& v, size_t i) {
  static constexpr const char* kRows[] = {"chunk", "suffix", "all", "selected"};
  static constexpr const char* kQueries[] = {"none", "all", "suffix", "last"};
  const Op& op = v.ops[i];
  Json j{{"op", i},
         {"label", op_label(op, v.chunks)},
         {"kind", op_name(op)},
         {"stream", op.stream},
         {"layer", op.layer},
         {"chunk", op.chunk},
         {"rows", kRows[static_cast<size_t>(op.rows)]},
         {"queries", kQueries[static_cast<size_t>(op.queries)]},
         {"last_chunk", op.chunk_end() - 1},
         {"buffer", op.buffer},
         {"start_ns", op.start_ns},
         {"duration_ns", op.duration_ns},
         {"waits", op.waits}};
  if (is_transfer(op)) j["source"] = op.source;
  return j;
}

Json variant_json(const Variant& v) {
  Json tiles = Json::array(), streams = Json::array(), buffers = Json::array(), ops = Json::array();
  for (const Tile& t : v.tiles) {
    tiles.push_back({{"mode", mode_name(t.mode)},
                     {"first_layer", t.first_layer},
                     {"last_layer", t.last_layer},
                     {"first_chunk", t.first_chunk},
                     {"last_chunk", t.last_chunk},
                     {"cut", t.cut}});
  }
  for (const Stream& s : v.streams) streams.push_back({{"kind", stream_kind_name(s.kind)}});
  for (const Buffer& b : v.buffers) {
    buffers.push_back({{"kind", b.kind == BufferKind::kKv ? "kv" : "hidden"},
                       {"layer", b.layer},
                       {"with_suffix", b.with_suffix},
                       {"with_context", b.with_context}});
  }
  for (size_t i = 0; i < v.ops.size(); ++i) ops.push_back(op_json(v, i));
  Json alternatives = Json::array();
  for (const Alternative& a : v.alternatives) {
    alternatives.push_back({{"what", a.what},
                            {"quality_loss", loss_json(a.quality_loss)},
                            {"divergence", loss_json(a.divergence)},
                            {"ttft_ns", a.ttft_ns},
                            {"compute_ns", a.compute_ns}});
  }
  return {{"name", v.name},
          {"policy", v.policy},
          {"scheduler", v.scheduler},
          {"tokens_min", v.tokens_min},
          {"tokens_max", limit(v.tokens_max)},
          {"rate_min", v.rate_min},
          {"rate_max", limit(v.rate_max)},
          {"load_min", v.load_min},
          {"load_max", limit(v.load_max)},
          {"why", v.why},
          {"regret", v.regret < 0 ? Json(nullptr) : Json(v.regret)},
          {"alternatives", alternatives},
          {"tuned_tokens", v.tuned_tokens},
          {"tuned_suffix", v.tuned_suffix},
          {"tuned_rate", v.tuned_rate},
          {"chunks", v.chunks},
          {"way", v.way},
          {"quality_loss", loss_json(v.promise.quality_loss)},
          {"loss_stderr", loss_json(v.promise.loss_stderr)},
          {"loss_bound", loss_json(v.promise.loss_bound)},
          {"divergence", loss_json(v.promise.divergence)},
          {"divergence_stderr", loss_json(v.promise.divergence_stderr)},
          {"divergence_bound", loss_json(v.promise.divergence_bound)},
          {"confidence", v.promise.confidence},
          {"select_share", v.select_share},
          {"map_form", map_form_name(v.map_form)},
          {"map_side", v.map_form == MapForm::kNone ? Json(nullptr) : Json(map_side_name(v.map_side))},
          {"live", v.live},
          {"promised_ttft_ns", v.promise.ttft_ns},
          {"makespan_ns", v.makespan_ns},
          {"lower_bound_ns", v.lower_bound_ns},
          {"proven_optimal", v.proven_optimal},
          {"recomputed_layers", recomputed_layers(v)},
          {"tiles", tiles},
          {"streams", streams},
          {"buffers", buffers},
          {"ops", ops}};
}

Json model_json(const ModelIdentity& m) {
  return {{"name", m.name},
          {"fingerprint", m.fingerprint},
          {"config", m.config},
          {"weights", m.weights},
          {"tokenizer", m.tokenizer}};
}

Json shape_json(const Shape& s) {
  return {{"family", s.family}, {"layers", s.layers},     {"d_model", s.d_model},   {"ff", s.ff},
          {"heads", s.heads},   {"kv_heads", s.kv_heads}, {"head_dim", s.head_dim}, {"vocab", s.vocab}};
}

}  // namespace

Json plan_to_json(const Plan& p) {
  Json inputs = Json::array(), variants = Json::array();
  for (const InputFile& i : p.provenance.inputs) {
    inputs.push_back({{"role", i.role}, {"name", i.name}, {"sha256", i.sha256}});
  }
  for (const Variant& v : p.variants) variants.push_back(variant_json(v));
  Json cuts = Json::array();
  for (const Cut& cut : published_cuts(p))
    cuts.push_back({{"layer", cut.layer}, {"form", map_form_name(cut.form)}});
  Json sources = Json::array();
  for (const Source& source : sources_of(p))
    sources.push_back({{"rule", source_rule_name(source.rule)},
                       {"model", model_json(source.model)},
                       {"shape", shape_json(source.shape)}});
  return {
      {"schema", "droidspeak.plan"},
      {"version", p.format_version},
      {"provenance",
       {{"compiler_version", p.provenance.compiler_version},
        {"flags", p.provenance.flags},
        {"inputs", inputs}}},
      {"sender", model_json(p.sender)},
      {"receiver", model_json(p.receiver)},
      {"shape", shape_json(p.shape)},
      {"sources", sources},
      {"shared_vocab", p.shared_vocab == 0 ? Json(nullptr) : Json(p.shared_vocab)},
      {"dtype", p.dtype},
      {"backend", p.backend.empty() ? Json(nullptr) : Json(p.backend)},
      {"cut_layers", cut_layers(p)},
      {"published_cuts", cuts},
      {"maps", p.maps == MapsIdentity{} ? Json(nullptr)
                                        : Json{{"name", p.maps.name}, {"fingerprint", p.maps.fingerprint}}},
      {"variants", variants},
      {"full_prefill", variant_json(p.full_prefill)}};
}

}  // namespace ds
