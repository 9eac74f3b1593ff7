// GET /status: what the page at "/" shows.
#include <cmath>
#include <ctime>

#include "serve/api_internal.h"
#include "serve/registered_cuts.h"

namespace ds {

HttpReply Api::status() const {
  using Json = nlohmann::ordered_json;
  Json models = Json::array(), plans = Json::array(), registered = Json::array(), recent = Json::array();
  auto number = [](double x) { return std::isnan(x) ? Json() : Json(x); };
  for (const auto& m : fleet_.models()) {
    Json names = Json::array();
    for (const ServedPlan* p : m->plans) names.push_back(p->plan.sender.name);
    models.push_back({{"name", m->given.name},
                      {"reuse", m->given.approximate ? "approximate" : "exact"},
                      {"senders", names},
                      {"publishes", m->given.publish},
                      {"chat", m->chat_template.has_value()},
                      {"max_model_len", m->positions},
                      {"drifted", m->drifted.load()}});
  }
  for (const auto& p : fleet_.plans()) {
    Json variants = Json::array();
    for (const Variant& v : p->plan.variants)
      variants.push_back({{"name", v.name},
                          {"way", v.way},
                          {"tokens", {v.tokens_min, v.tokens_max == kNoLimit ? Json() : Json(v.tokens_max)}},
                          {"loss", number(v.promise.quality_loss)},
                          {"loss_bound", number(v.promise.loss_bound)},
                          {"ttft_ms", static_cast<double>(v.promise.ttft_ns) / 1e6}});
    Json one = {{"sender", p->plan.sender.name},
                {"receiver", p->plan.receiver.name},
                {"variants", variants},
                {"gate", p->gate.has_value()}};
    std::lock_guard lock(p->mutex);
    one["drift"] = p->gate ? Json(p->drift.text()) : Json();
    one["drifted"] = p->drift.state == DriftReport::State::kDrifted;
    plans.push_back(std::move(one));
  }
  if (fleet_.registered() != nullptr)
    for (const RegisteredCuts::Shown& one : fleet_.registered()->shown())
      registered.push_back({{"key", one.key},
                            {"sender", one.sender},
                            {"receiver", one.receiver},
                            {"models", one.models},
                            {"problem", one.problem.empty() ? Json() : Json(one.problem)}});
  const EngineStats s = fleet_.engine().stats();
  const Json engine = {{"submitted", s.submitted},
                       {"finished", s.finished},
                       {"failed", s.failed},
                       {"cancelled", s.cancelled},
                       {"refused", s.refused},
                       {"waiting", s.waiting},
                       {"running", s.running},
                       {"decoding", s.decoding},
                       {"steps", s.steps},
                       {"published", s.published},
                       {"publications_open", s.publications_open},
                       {"entry_hits", s.entry_hits},
                       {"entry_misses", s.entry_misses},
                       {"entry_repairs", s.entry_repairs},
                       {"gate_checks", s.gate_checks},
                       {"gate_alarms", s.gate_alarms},
                       {"prompt_tokens", s.prompt_tokens},
                       {"cached_tokens", s.cached_tokens},
                       {"new_tokens", s.new_tokens},
                       {"link_bytes", s.link_bytes},
                       {"link_rate", s.link_rate},
                       {"claimed_bytes", s.claimed_bytes},
                       {"peak_bytes", s.peak_bytes},
                       {"prefix_bytes", s.prefix_bytes},
                       {"evictions", s.evictions}};
  std::lock_guard lock(mutex_);
  for (const Json& line : recent_) recent.push_back(line);
  return reply(Json{{"time", std::time(nullptr)},
                    {"started", started_s_},
                    {"draining", draining_},
                    {"left_out", fleet_.left_out()},
                    {"cache_bytes", fleet_.fleet().cache_bytes},
                    {"models", models},
                    {"plans", plans},
                    {"registered_plans", registered},
                    {"engine", engine},
                    {"recent", recent}});
}

}  // namespace ds
