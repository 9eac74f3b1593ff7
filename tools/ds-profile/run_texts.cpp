// What a profiling run says: its cost before, its result after.
#include <numeric>

#include "profiler/task_notes.h"
#include "support/file.h"
#include "tools/ds-profile/run.h"

namespace ds {

double sum_of(const std::vector<double>& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

void say_cost(const RunOptions& o, const ProfileWork& work, const ModelConfig& config, DType dtype) {
  auto n = static_cast<int64_t>(work.contexts.size());
  fmt::print(
      stderr,
      "{} questions about {} contexts ({} tokens), {} ways to answer each\n"
      "per context {} layer-runs ({} if every way ran by itself), {} in all; {} of memory for caches\n",
      format_count(work.questions), format_count(n), format_count(work.tokens), work.ways.size(),
      work.layer_runs / n, work.naive_layer_runs / n, format_count(work.layer_runs),
      format_bytes(ProfileEngine::memory_bytes(config, dtype, work.ways, work.limits)));
  if (o.profile.race)
    fmt::print(
        stderr,
        "racing: groups that are beaten are dropped from context {} on; the risk that a best one is dropped "
        "is at most {:.0f} % (as far as means over contexts are normal)\n",
        o.profile.race_round, (1 - *o.profile.race) * 100);
}

void say_merged(const ProfileWork& work) {
  for (const auto& [task, merged] : work.merged)
    if (merged.items > 0)
      fmt::print(
          stderr,
          "warning: in {} of {} items of task '{}' the prompt's last token is another one once the answer "
          "follows (a line break or a space at its end joins what comes next): the model is asked behind a "
          "token that it does not know there; let the template end before it\n",
          format_count(merged.items), format_count(merged.of), task);
}

void say_time(const RunOptions& o, const Pace& pace, const TimeEstimate& time) {
  const double answers = sum_of(time.context_s);
  fmt::print(stderr, "about {}{}, at most {} where all answers are as long as they may be ({})\n",
             format_duration(time.fit_s + answers),
             time.fit_s > 0 ? fmt::format(", {} of them to fit maps", format_duration(time.fit_s)) : "",
             format_duration(time.fit_s + sum_of(time.longest_s)), basis_of(pace));
  if (o.profile.race) fmt::print(stderr, "racing shortens that by what it drops\n");
}

Result<std::vector<Offer>> offers(const RunOptions& o, const Pace& pace, const ProfileWork& work,
                                  const ModelConfig& config) {
  std::vector<Offer> all;
  if (!o.profile.ways.only.empty()) return all;
  ProfileWork other = work;
  for (int64_t g : {1, 2, 3, 4, 6, 8}) {
    constexpr int64_t kLeastBlocks = 4;
    if ((config.layers + g - 1) / g < kLeastBlocks) break;
    WayOptions ways = o.profile.ways;
    ways.granularity = g;
    DS_TRY(set_ways(other, config, ways));
    const TimeEstimate time = estimate_time(pace, other, config, o.profile.fit);
    all.push_back({g, static_cast<int64_t>(other.ways.size()),
                   other.layer_runs / static_cast<int64_t>(other.contexts.size()),
                   time.fit_s + sum_of(time.context_s)});
  }
  return all;
}

void say_offers(const std::vector<Offer>& all, int64_t chosen) {
  for (const Offer& offer : all)
    fmt::print(stderr, "{} granularity {}: {:>5} ways, {:>5} layer-runs a context, about {}\n",
               offer.granularity == chosen ? "*" : " ", offer.granularity, format_count(offer.ways),
               format_count(offer.layer_runs), format_duration(offer.seconds));
}

nlohmann::ordered_json cost_json(const ProfileWork& work, const ModelConfig& config, DType dtype,
                                 const WayOptions& ways, const TimeEstimate& time,
                                 const std::vector<Offer>& all, const std::string& given_up) {
  const auto n = static_cast<int64_t>(work.contexts.size());
  nlohmann::ordered_json json{
      {"schema", "droidspeak.profile-cost"},
      {"version", 1},
      {"questions", work.questions},
      {"contexts", n},
      {"context_tokens", work.tokens},
      {"fit_contexts", work.fit.size()},
      {"fit_tokens", work.fit_tokens},
      {"granularity", ways.granularity},
      {"ways", work.ways.size()},
      {"layer_runs_per_context", work.layer_runs / n},
      {"layer_runs_per_context_each_way_by_itself", work.naive_layer_runs / n},
      {"cache_bytes", ProfileEngine::memory_bytes(config, dtype, work.ways, work.limits)},
      {"seconds", time.fit_s + sum_of(time.context_s)},
      {"fit_seconds", time.fit_s},
      {"longest_seconds", time.fit_s + sum_of(time.longest_s)},
      {"given_up", given_up},
      {"granularities", nlohmann::ordered_json::array()}};
  for (const Offer& offer : all)
    json["granularities"].push_back({{"granularity", offer.granularity},
                                     {"ways", offer.ways},
                                     {"layer_runs_per_context", offer.layer_runs},
                                     {"seconds", offer.seconds}});
  return json;
}

void say_task_notes(const Quality& q) {
  for (const std::string& note : task_notes(q)) fmt::print(stderr, "warning: {}\n", note);
}

void say_result(const Quality& q, const ProfileWork& work, const EngineWork& done, double seconds) {
  auto s = [](int64_t ns) { return static_cast<double>(ns) / 1e9; };
  if (done.layer_runs > 0) {
    double total = s(done.sender_ns + done.runs_ns + done.answers_ns);
    fmt::print(stderr,
               "{:.0f} s: sender {:.0f} %, shared runs {:.0f} %, answers {:.0f} % ({} layer-runs, {} rows of "
               "questions and answers)\n",
               seconds, 100 * s(done.sender_ns) / total, 100 * s(done.runs_ns) / total,
               100 * s(done.answers_ns) / total, format_count(done.layer_runs),
               format_count(done.answer_rows));
  }
  int64_t dropped = 0;
  for (const WayScore& w : q.ways) dropped += w.dropped;
  if (dropped > 0) {
    fmt::print(stderr, "racing dropped {} of {} ways and saved {:.0f} % of the answers\n", dropped,
               q.ways.size(),
               100 * (1 - static_cast<double>(q.cost["answers"].get<int64_t>()) /
                              static_cast<double>(work.questions * static_cast<int64_t>(work.ways.size()))));
  }
  size_t width = 16;
  for (const std::string& name : q.pareto_aligned) width = std::max(width, name.size());
  fmt::print("{:<{}} {:>6}  {:>14}  {:>14}  {:>15}\n", "way", width, "layers", "score", "loss", "divergence");
  auto line = [&](const WayScore& w) {
    fmt::print("{:<{}} {:>6}  {:>6.2f} ± {:<5.2f}  {:>6.2f} ± {:<5.2f}  {:>6.4f} ± {:<6.4f}\n", w.way.name(),
               width, w.way.recomputed(q.layers), w.score.value, w.score.standard_error, w.loss.value,
               w.loss.standard_error, w.divergence.value, w.divergence.standard_error);
  };
  line(q.ways[0]);
  line(q.ways[1]);
  for (const auto* list : {&q.pareto, &q.pareto_aligned})
    for (const std::string& name : *list)
      for (const WayScore& w : q.ways)
        if (w.way.name() == name) line(w);
  if (const std::string tasks = task_table_text(q); !tasks.empty()) fmt::print("\n{}", tasks);
  say_task_notes(q);
}

Status write_stats(const RunOptions& o, const EngineWork& w, double seconds) {
  auto s = [](int64_t ns) { return static_cast<double>(ns) / 1e9; };
  nlohmann::ordered_json json{
      {"seconds", seconds},           {"sender_s", s(w.sender_ns)},  {"shared_runs_s", s(w.runs_ns)},
      {"answers_s", s(w.answers_ns)}, {"scores_s", s(w.scores_ns)},  {"layer_runs", w.layer_runs},
      {"kv_runs", w.kv_runs},         {"answer_rows", w.answer_rows}};
  for (size_t i = 0; i < kPhases; ++i)
    json["answer_phases_s"][std::string(kPhaseNames[i])] = s(w.answer_phases.ns[i]);
  return write_file_atomically(o.stats, json.dump(1) + "\n");
}

}  // namespace ds
