// What became of a request: as a run record, as JSON, for people.
#include <algorithm>

#include "plans/simulate.h"
#include "plans/traits.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/explain.h"
#include "tools/ds-run/run.h"

namespace ds {
namespace {

/// How hidden states of the sender were used: "plain", "aligned (full, receiver)"; "" where none were.
std::string cuts_text(const Variant& v, bool plain_cuts) {
  if (std::none_of(v.ops.begin(), v.ops.end(), [](const Op& op) { return op.payload == Payload::kE; }))
    return "";
  if (v.map_form == MapForm::kNone) return "plain";
  std::string aligned = fmt::format("aligned ({}, {})", map_form_name(v.map_form), map_side_name(v.map_side));
  return plain_cuts ? "plain, instead of " + aligned : aligned;
}

/// Tokens that the variant covered: fewer than the context's where the sender has published less of it.
int64_t by_plan(const Outcome& o) { return o.answer.reused_tokens > 0 ? o.answer.reused_tokens : o.n; }

/// Why this variant ran.
std::string choice(const Answer& answer, const Plan& plan, const std::string& mode, int64_t n) {
  if (mode != "plan") return "no plan was to be followed";
  if (answer.cache == CacheStatus::kMiss) return "the fall-back: " + answer.miss.message();
  if (answer.gate.alarmed)
    return fmt::format("the fall-back: the gate's alarm at variant '{}': {}", answer.gate.variant->name,
                       gate_verdict_text(answer.gate));
  return why_selected(plan, *answer.variant, n, answer.link_rate, answer.waiting,
                      answer.rate_source == RateSource::kMeasured);
}

RunRecord make_record(const Outcome& o) {
  const Answer& answer = o.answer;
  const Variant& variant = *answer.variant;
  RunRecord record;
  record.plan_sha256 = o.plan_sha256;
  record.variant = variant.name;
  record.policy = variant.policy;
  record.scheduler = variant.scheduler;
  record.choice = choice(answer, *o.plan, o.mode, by_plan(o));
  record.mode = o.mode;
  record.sender = answer.cache == CacheStatus::kUnused ? "" : o.plan->sender.name;
  record.receiver = o.loaded->identity.name;
  record.backend = o.loaded->backend->name();
  record.dtype = dtype_name(o.loaded->model->dtype());
  record.context_tokens = by_plan(o);
  record.suffix_tokens = o.n + o.m - by_plan(o);
  record.link_rate = answer.link_rate;
  record.waiting = answer.waiting;
  record.ttft_ns = answer.ttft_ns;
  record.bytes_loaded = answer.bytes_loaded;
  record.cache_status = cache_status_name(answer.cache);
  record.cache_reason = answer.miss.message();
  if (!answer.gate.alarmed) record.cache_shorter = answer.shorter.message();
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    const Op& op = variant.ops[i];
    OpRecord r;
    r.op = static_cast<int32_t>(i);
    r.label = op_label(op, variant.chunks);
    r.stream = stream_kind_name(variant.streams[static_cast<size_t>(op.stream)].kind);
    r.start_ns = answer.op_times[i].start_ns;
    r.end_ns = answer.op_times[i].end_ns;
    r.bytes = transfer_bytes(*o.plan, variant, op, by_plan(o));
    record.ops.push_back(std::move(r));
  }
  return record;
}

std::string cuts_of(const Outcome& o) { return cuts_text(*o.answer.variant, o.plain_cuts); }

int64_t predicted_ns(const Outcome& o) {
  const int64_t rate = o.answer.link_rate > 0 ? o.answer.link_rate : kNoLimit - 1, n = by_plan(o);
  return predicted_ttft_ns(*o.plan, *o.answer.variant, {n, o.n + o.m - n, rate});
}

}  // namespace

Status write_record(const std::string& path, const Outcome& o) {
  RunRecord record = make_record(o);
  if (const std::string cuts = plain_cuts_text(o); !cuts.empty())
    record.choice += "; with " + cuts + " cuts, for which the plan's promise does not hold";
  if (o.answer.gate.checked) record.gate = gate_record(o.answer, *o.gate);
  return write_run_record(path, record);
}

std::string plain_cuts_text(const Outcome& o) {
  return o.plain_cuts && o.answer.variant->map_form != MapForm::kNone ? cuts_of(o) : "";
}

nlohmann::ordered_json outcome_json(const Outcome& o) {
  const Answer& answer = o.answer;
  const Variant& variant = *answer.variant;
  const std::string cuts = cuts_of(o);
  const int64_t predicted = predicted_ns(o);
  auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
  nlohmann::ordered_json out;
  out["mode"] = o.mode;
  out["variant"] = variant.name;
  out["policy"] = variant.policy;
  out["schedule"] = variant.scheduler;
  out["ttft_ms"] = ms(answer.ttft_ns);
  out["parts_ms"] = {{"lookup", ms(answer.lookup_ns)},
                     {"lost_to_miss", answer.gate.alarmed ? 0 : ms(answer.lost_ns)},
                     {"lost_to_gate", answer.gate.alarmed ? ms(answer.lost_ns) : 0},
                     {"link_busy", ms(answer.link_ns)},
                     {"compute_busy", ms(answer.compute_ns)}};
  out["predicted_ttft_ms"] =
      predicted > 0 ? nlohmann::ordered_json(ms(predicted)) : nlohmann::ordered_json(nullptr);
  out["decode_ms"] = ms(answer.decode_ns);
  out["load_s"] = o.loaded->load_seconds;
  out["weight_cache"] = weight_cache_status_name(o.loaded->report.weight_cache);
  out["context_tokens"] = o.n;
  out["reused_tokens"] = answer.reused_tokens;
  out["entry_tokens"] = o.entry_tokens;
  out["prompt_token_ids"] = o.prompt;
  out["output_token_ids"] = answer.tokens;
  out["text"] = o.text ? nlohmann::ordered_json(*o.text) : nlohmann::ordered_json(nullptr);
  out["stop_reason"] = o.stop_reason;
  out["stop"] = o.stop_by;
  out["recomputed_layers"] = recomputed_layers(variant);
  out["bytes_loaded"] = answer.bytes_loaded;
  out["cuts"] = cuts.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(cuts);
  out["cache"] = {{"status", cache_status_name(answer.cache)},
                  {"reason", answer.miss.ok() ? nlohmann::ordered_json(nullptr)
                                              : nlohmann::ordered_json(answer.miss.message())},
                  {"live", answer.live},
                  {"shorter", answer.shorter.ok() ? nlohmann::ordered_json(nullptr)
                                                  : nlohmann::ordered_json(answer.shorter.message())}};
  out["gate"] = gate_json(answer, o.gate);
  out["dtype"] = dtype_name(o.loaded->model->dtype());
  out["backend"] = o.loaded->backend->description();
  return out;
}

std::string outcome_text(const Outcome& o) {
  const Answer& answer = o.answer;
  const Variant& variant = *answer.variant;
  const std::string cuts = cuts_of(o);
  std::string text = "TTFT " + format_ns(answer.ttft_ns);
  if (const int64_t predicted = predicted_ns(o); predicted > 0)
    text += fmt::format(" (predicted {})", format_ns(predicted));
  std::string way =
      variant.policy == variant.scheduler ? variant.policy : variant.policy + ", " + variant.scheduler;
  text += fmt::format("; {} + {} tokens; {}; layers recomputed, of {}: {}{}; {} loaded; cache {}{}{}\n", o.n,
                      o.m, way, o.plan->shape.layers, recomputed_text(variant),
                      variant.map_form == MapForm::kNone || cuts.empty() ? "" : ", cuts " + cuts,
                      format_bytes(answer.bytes_loaded), cache_status_name(answer.cache),
                      answer.miss.ok() ? "" : ": ", answer.miss.message());
  if (answer.reused_tokens > 0 && answer.reused_tokens < o.n)
    text += fmt::format(
        "the sender had published {} of the {} context tokens; the rest went through every "
        "layer{}{}\n",
        format_count(answer.reused_tokens), format_count(o.n), answer.shorter.ok() ? "" : ": ",
        answer.shorter.message());
  if (answer.live) text += "the sender was still computing it\n";
  if (o.templated && o.n > 0 && answer.miss.code() == Code::kNotFound)
    text +=
        "note: entries for requests through a chat template are published through it: ds-publish with "
        "--template of the receiver's folder, where the sender has another, and the same --system\n";
  if (o.gate != nullptr) text += gate_text(answer, *o.gate) + "\n";
  return text;
}

}  // namespace ds
