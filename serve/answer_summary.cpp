#include "serve/answer_summary.h"

#include <cmath>
#include <filesystem>

#include "plans/simulate.h"

namespace ds {

std::string miss_reason(const Status& miss) {
  // Stores run out of time before they run out of anything else.
  return miss.code() == Code::kExhausted ? "late" : std::string(code_name(miss.code()));
}

AnswerSummary AnswerSummary::of(const ServedModel& model, const Generation& generation, size_t choice) {
  const EngineAnswer& a = generation.finished(choice).answer;
  AnswerSummary s;
  s.prompt_tokens = static_cast<int64_t>(generation.prompts()[generation.prompt_of(choice)].size());
  s.new_tokens = static_cast<int64_t>(a.tokens.size());
  s.cached_tokens = std::max(a.cached_tokens, a.reused != nullptr ? a.reused_tokens : 0);
  s.prefix = a.cached_tokens > 0;
  s.cache = cache_status_name(a.cache);
  if (a.cache == CacheStatus::kMiss || a.cache == CacheStatus::kRepaired) s.reason = miss_reason(a.miss);
  if (!a.shorter.ok()) s.shorter = miss_reason(a.shorter);
  s.bytes = a.bytes_loaded;
  s.queue_ns = a.queue_ns;
  s.ttft_ns = a.ttft_ns;
  s.end_ns = a.ttft_ns + a.decode_ns;
  s.lost_ns = a.lost_ns;
  s.transfers = a.transfers;
  s.lost_transfers = a.lost_transfers;
  s.way = "full prefill";
  s.promised_loss = 0;
  const Variant* looked_at = a.reused;
  if (a.gate.checked) {
    s.gate = a.gate.alarmed ? "alarm" : "passed";
    s.gate_says = gate_verdict_text(a.gate);
    if (a.gate.alarmed) looked_at = a.gate.variant;
  }
  const int64_t rate = a.link_rate > 0 ? a.link_rate : kNoLimit - 1;
  if (const ServedPlan* p = model.plan_of(looked_at)) {
    s.sender = p->plan.sender.name;
    s.plan = std::filesystem::path(p->given.file).filename().string();
    s.variant = looked_at->name;
    if (a.reused != nullptr) {
      s.way = a.reused->way.empty() ? a.reused->name : a.reused->way;
      const Promise& promise = a.reused->promise;
      s.promised_loss = std::isnan(promise.loss_bound) ? promise.quality_loss : promise.loss_bound;
      if (!s.prefix)
        s.predicted_ttft_ns = ds::predicted_ttft_ns(
            p->plan, *a.reused, {a.reused_tokens, s.prompt_tokens - a.reused_tokens, rate});
    }
  }
  if (a.reused != nullptr) return s;
  if (!s.prefix && s.prompt_tokens > 1)
    for (const ServedPlan* p : model.plans)
      if (s.predicted_ttft_ns == 0)
        s.predicted_ttft_ns =
            ds::predicted_ttft_ns(p->plan, p->plan.full_prefill, {s.prompt_tokens - 1, 1, rate});
  if (s.gate == "alarm")
    s.why = "the gate raised an alarm, and a full prefill answered";
  else if (a.cache == CacheStatus::kMiss)
    s.why = "the store has no entry that could be used (" + s.reason + ")";
  else if (!generation.reuse().why.empty())
    s.why = generation.reuse().why;
  else if (s.prefix)
    s.why = "this model has computed the beginning itself";
  else
    s.why = "no plan within the loss that is allowed is for a context of this length";
  return s;
}

nlohmann::ordered_json AnswerSummary::json() const {
  using Json = nlohmann::ordered_json;
  auto text = [](const std::string& t) { return t.empty() ? Json() : Json(t); };
  auto ms = [](int64_t ns) { return ns == 0 ? Json() : Json(static_cast<double>(ns) / 1e6); };
  return {{"way", way},
          {"sender", text(sender)},
          {"plan", text(plan)},
          {"variant", text(variant)},
          {"cache", cache},
          {"reason", text(reason)},
          {"shorter", text(shorter)},
          {"why", text(why)},
          {"promised_loss", std::isnan(promised_loss) ? Json() : Json(promised_loss)},
          {"gate", {{"status", gate}, {"text", text(gate_says)}}},
          {"bytes", bytes},
          {"repaired", transfers == 0 ? Json() : Json{{"lost", lost_transfers}, {"of", transfers}}},
          {"queue_ms", static_cast<double>(queue_ns) / 1e6},
          {"predicted_ttft_ms", ms(predicted_ttft_ns)},
          {"ttft_ms", ms(ttft_ns)},
          {"lost_ms", static_cast<double>(lost_ns) / 1e6}};
}

}  // namespace ds
