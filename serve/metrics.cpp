#include "serve/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <mutex>
#include <sstream>

namespace ds {
namespace {

using Counters = prometheus::Family<prometheus::Counter>;
using Gauges = prometheus::Family<prometheus::Gauge>;
using Histograms = prometheus::Family<prometheus::Histogram>;

const prometheus::Histogram::BucketBoundaries kSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                                          0.5,   1,      2.5,   5,    10,    25,   60,  120};
const prometheus::Histogram::BucketBoundaries kRatios = {0.25, 0.5,  0.67, 0.8, 0.9, 1,
                                                         1.1,  1.25, 1.5,  2,   4,   8};

double seconds(int64_t ns) { return static_cast<double>(ns) / 1e9; }

}  // namespace

struct Metrics::Families {
  prometheus::Registry registry;
  std::mutex mutex;  // of `last`
  EngineStats last;

  Counters& counter(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(std::string("droidspeak_") + name).Help(help).Register(registry);
  }
  Gauges& gauge(const char* name, const char* help) {
    return prometheus::BuildGauge().Name(std::string("droidspeak_") + name).Help(help).Register(registry);
  }
  Histograms& histogram(const char* name, const char* help) {
    return prometheus::BuildHistogram().Name(std::string("droidspeak_") + name).Help(help).Register(registry);
  }

  Histograms& ttft = histogram("time_to_first_token_seconds",
                               "From a request's submission to its first token, by what was done for it");
  Histograms& tbt = histogram("time_between_tokens_seconds", "Between two tokens of an answer");
  Histograms& e2e = histogram("request_duration_seconds", "From a request's submission to its last token");
  Histograms& queued = histogram("queue_seconds", "From a request's submission to the first work for it");
  Histograms& ratio = histogram(
      "ttft_measured_over_predicted_ratio",
      "Measured time to the first token over the one that the plan predicts, where it predicts one");
  Counters& requests = counter("requests_total", "Requests for answers, by model and outcome");
  Counters& http = counter("http_responses_total", "Responses, by path and status");
  Counters& objectives =
      counter("objective_misses_total", "Answers that missed an objective which was asked for");
  Counters& prompt_tokens = counter("prompt_tokens_total", "Tokens of prompts that were answered");
  Counters& cached_tokens =
      counter("cached_tokens_total",
              "Those of them whose caches were there, from the prefix cache or a sender's entry");
  Counters& new_tokens = counter("generated_tokens_total", "Tokens of answers");
  Counters& prefix =
      counter("prefix_lookups_total", "Answers by whether the prefix cache had their beginning");
  Counters& entries =
      counter("entry_lookups_total",
              "Answers for which the store was asked, by result, and of misses and repairs by reason");
  Counters& ways = counter("answers_total", "Answers by the way in which their context came about");
  Counters& checks = counter("gate_checks_total", "Answers that a gate has looked at");
  Counters& alarms = counter("gate_alarms_total", "Those of them that it threw away");
  Counters& link_bytes = counter("link_bytes_total", "Bytes of entries that came over the link");
  Counters& link_busy = counter("link_busy_seconds_total", "Time in which the link was busy");
  Counters& compute_busy = counter("compute_busy_seconds_total", "Time in which the device computed");
  Counters& steps = counter("engine_steps_total", "Steps of the engine");
  Counters& evictions = counter("prefix_evictions_total", "Finished caches that were given up for others");
  Counters& published = counter(
      "publications_total",
      "Contexts that became entries, by outcome: of others the store had it already, it hung (late), ...");
  Gauges& waiting = gauge("requests_waiting", "Requests that wait");
  Gauges& running = gauge("requests_running", "Requests that are worked on");
  Gauges& decoding = gauge("requests_decoding", "Those of them that are past their first token");
  Gauges& link_rate = gauge("link_rate_bytes_per_second", "The link's rate as measured lately; 0: not yet");
  Gauges& arena = gauge("arena_bytes",
                        "Memory of caches: the limit, what is claimed, the most that was, what the prefix "
                        "cache holds of it, and what is memory, idle ranges too");
  Gauges& publishing = gauge("publications_open", "Contexts that are being published");
  Gauges& drift = gauge("drift",
                        "By plan with a gate: 1 where the last requests are not like the profile's, 0 where "
                        "they are, -1 while there are too few");
};

Metrics::Metrics(const LoadedFleet& fleet) : fleet_(fleet), families_(std::make_unique<Families>()) {
  Families& f = *families_;
  // What has not happened yet is 0, not absent: rates need a beginning.
  for (const auto& m : fleet.models()) {
    const prometheus::Labels model = {{"model", m->given.name}};
    for (Counters* c : {&f.prompt_tokens, &f.cached_tokens, &f.new_tokens, &f.checks, &f.alarms})
      c->Add(model);
    for (const char* outcome : {"ok", "cancelled", "failed", "refused"})
      f.requests.Add({{"model", m->given.name}, {"outcome", outcome}});
    for (const char* result : {"hit", "miss"}) f.prefix.Add({{"model", m->given.name}, {"result", result}});
    f.entries.Add({{"model", m->given.name}, {"result", "hit"}, {"reason", ""}});
    f.entries.Add({{"model", m->given.name}, {"result", "miss"}, {"reason", "not found"}});
    f.entries.Add({{"model", m->given.name}, {"result", "repaired"}, {"reason", "late"}});
    f.ways.Add({{"model", m->given.name}, {"way", "full prefill"}});
    f.ttft.Add({{"model", m->given.name}, {"way", "full prefill"}}, kSeconds);
    for (Histograms* h : {&f.tbt, &f.e2e, &f.queued}) h->Add(model, kSeconds);
    f.ratio.Add(model, kRatios);
  }
  f.objectives.Add({{"objective", "ttft"}});
}

Metrics::~Metrics() = default;

void Metrics::answered(const ServedModel& model, const AnswerSummary& s, const EngineAnswer& answer) {
  Families& f = *families_;
  const std::string& name = model.given.name;
  const prometheus::Labels of = {{"model", name}};
  f.ttft.Add({{"model", name}, {"way", s.way}}, kSeconds).Observe(seconds(s.ttft_ns));
  f.ways.Add({{"model", name}, {"way", s.way}}).Increment();
  f.e2e.Add(of, kSeconds).Observe(seconds(s.end_ns));
  f.queued.Add(of, kSeconds).Observe(seconds(s.queue_ns));
  auto& tbt = f.tbt.Add(of, kSeconds);
  for (size_t i = 1; i < answer.token_ns.size(); ++i)
    tbt.Observe(seconds(answer.token_ns[i] - answer.token_ns[i - 1]));
  if (s.predicted_ttft_ns > 0)
    f.ratio.Add(of, kRatios)
        .Observe(static_cast<double>(s.ttft_ns) / static_cast<double>(s.predicted_ttft_ns));
  f.prompt_tokens.Add(of).Increment(static_cast<double>(s.prompt_tokens));
  f.cached_tokens.Add(of).Increment(static_cast<double>(s.cached_tokens));
  f.new_tokens.Add(of).Increment(static_cast<double>(s.new_tokens));
  f.prefix.Add({{"model", name}, {"result", s.prefix ? "hit" : "miss"}}).Increment();
  if (s.cache != "unused")
    f.entries.Add({{"model", name}, {"result", s.cache}, {"reason", s.reason}}).Increment();
  if (s.gate != "off") f.checks.Add(of).Increment();
  if (s.gate == "alarm") f.alarms.Add(of).Increment();
}

void Metrics::request(std::string_view model, std::string_view outcome) {
  families_->requests.Add({{"model", std::string(model)}, {"outcome", std::string(outcome)}}).Increment();
}

void Metrics::http(std::string_view path, int status) {
  families_->http.Add({{"path", std::string(path)}, {"status", std::to_string(status)}}).Increment();
}

void Metrics::objective_missed(std::string_view objective) {
  families_->objectives.Add({{"objective", std::string(objective)}}).Increment();
}

std::string Metrics::text() {
  Families& f = *families_;
  const EngineStats now = fleet_.engine().stats();
  {
    std::lock_guard lock(f.mutex);
    auto add = [](Counters& c, double more) { c.Add({}).Increment(more > 0 ? more : 0); };
    add(f.link_bytes, static_cast<double>(now.link_bytes - f.last.link_bytes));
    add(f.link_busy, seconds(now.link_busy_ns - f.last.link_busy_ns));
    add(f.compute_busy, seconds(now.compute_busy_ns - f.last.compute_busy_ns));
    add(f.steps, static_cast<double>(now.steps - f.last.steps));
    add(f.evictions, static_cast<double>(now.evictions - f.last.evictions));
    for (const auto& [outcome, count] : {std::pair("published", &EngineStats::published),
                                         {"already", &EngineStats::publications_already},
                                         {"late", &EngineStats::publications_late},
                                         {"cancelled", &EngineStats::publications_cancelled},
                                         {"failed", &EngineStats::publications_failed}})
      f.published.Add({{"outcome", outcome}}).Increment(static_cast<double>(now.*count - f.last.*count));
    f.last = now;
  }
  f.waiting.Add({}).Set(static_cast<double>(now.waiting));
  f.running.Add({}).Set(static_cast<double>(now.running));
  f.decoding.Add({}).Set(static_cast<double>(now.decoding));
  f.link_rate.Add({}).Set(static_cast<double>(now.link_rate));
  f.publishing.Add({}).Set(static_cast<double>(now.publications_open));
  f.arena.Add({{"what", "limit"}}).Set(static_cast<double>(fleet_.fleet().cache_bytes));
  f.arena.Add({{"what", "claimed"}}).Set(static_cast<double>(now.claimed_bytes));
  f.arena.Add({{"what", "peak"}}).Set(static_cast<double>(now.peak_bytes));
  f.arena.Add({{"what", "committed"}}).Set(static_cast<double>(now.committed_bytes));
  f.arena.Add({{"what", "prefix"}}).Set(static_cast<double>(now.prefix_bytes));
  for (const auto& p : fleet_.plans()) {
    if (!p->gate) continue;
    std::lock_guard lock(p->mutex);
    const double state = p->drift.state == DriftReport::State::kDrifted  ? 1
                         : p->drift.state == DriftReport::State::kInLine ? 0
                                                                         : -1;
    f.drift.Add({{"sender", p->plan.sender.name}, {"receiver", p->plan.receiver.name}}).Set(state);
  }
  std::ostringstream out;
  prometheus::TextSerializer().Serialize(out, f.registry.Collect());
  return out.str();
}

}  // namespace ds
