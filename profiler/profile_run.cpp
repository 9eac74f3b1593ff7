// The loop of a run: which context is next, which ways race on, and what a context's answers score.
#include <algorithm>
#include <cmath>
#include <set>
#include <thread>

#include "profiler/aggregate.h"
#include "profiler/profile_run_internal.h"
#include "support/file.h"
#include "support/student.h"

namespace ds {
namespace {

Result<ContextRecord> work_on(const ProfileWork& work, const Tokenizer& tokenizer, ProfileEngine& engine,
                              int64_t index, const std::vector<bool>& active) {
  const ProfileContext& context = work.contexts[static_cast<size_t>(index)];
  DS_ASSIGN(ContextAnswers answers, engine.run(context.tokens, context.questions, active, context.other));
  ContextRecord record{index, static_cast<int64_t>(context.tokens.size()), answers.k_deviation, {}};
  for (size_t q = 0; q < context.questions.size(); ++q) {
    const ProfileContext::Origin& origin = context.origins[q];
    ItemRecord item{origin.source,       origin.task,          origin.item->input,
                    origin.item->metric, origin.item->answers, {}};
    item.ways.resize(work.ways.size());
    for (size_t w = 0; w < work.ways.size(); ++w) {
      if (answers.ways[w].empty()) continue;
      const WayAnswer& a = answers.ways[w][q];
      WayResult& r = item.ways[w];
      DS_ASSIGN(std::string text, tokenizer.decode(a.tokens, true));
      r.text = std::string(cut_answer(*origin.prompt, origin.task, text));
      r.scored = true;
      r.score = score(item.metric, r.text, item.references, {origin.item->classes, work.words.get()});
      r.exact = score(Metric::kExactMatch, r.text, item.references);
      r.divergence = a.divergence;
      r.entropy = a.entropy;
      r.margin = a.margin;
    }
    record.items.push_back(std::move(item));
  }
  return record;
}

}  // namespace

std::vector<bool> racing_ways(const std::vector<Way>& ways, int64_t layers,
                              const std::vector<ContextRecord>& records, const ProfileOptions& o,
                              int64_t index) {
  std::vector<bool> active(ways.size(), true);
  if (!o.race) return active;
  std::vector<size_t> groups;
  for (size_t i = 0; i < ways.size(); ++i)
    if (ways[i].is_group()) groups.push_back(i);
  // Every comparison of every look may err; all together no more often than 1 - confidence.
  const auto pairs = static_cast<double>(groups.size() * groups.size());
  const Scores scores(ways, records);
  for (int64_t end = o.race_round; end <= index; end += o.race_round) {
    std::vector<bool> seen(records.size());
    int64_t count = 0;
    for (size_t i = 0; i < records.size(); ++i) {
      seen[i] = records[i].index < end;
      count += seen[i];
    }
    // Looks have shares of the risk that halve, so that the total does not depend on how many follow.
    auto look = static_cast<double>(end / o.race_round);
    double risk = (1 - *o.race) / pairs * std::pow(0.5, look);
    double t = student_quantile(1 - risk, std::max<int64_t>(count - 1, 1));
    std::vector<bool> before = active;
    for (size_t g : groups) {
      if (!before[g]) continue;
      for (size_t h : groups) {
        if (h == g || !before[h] || ways[h].recomputed(layers) > ways[g].recomputed(layers)) continue;
        // Groups with other maps are other lists: one does not beat the other's.
        if (map_key(ways[h]) != map_key(ways[g])) continue;
        Mean d = scores.difference(h, g, Scores::score, {&seen});
        // Contexts that all agree have no spread to judge by: one more that says the opposite is thinkable.
        double floor = 100.0 / static_cast<double>(count * count);
        if (d.value - t * std::max(d.standard_error, floor) > 0) {
          active[g] = false;
          break;
        }
      }
    }
  }
  return active;
}

Status run_contexts(const std::string& folder, const ProfileWork& work, const ProfileOptions& options,
                    const Tokenizer& tokenizer, int64_t layers, ProfileEngine& engine,
                    const std::atomic<bool>& stop, const std::function<void(const RunProgress&)>& progress) {
  const auto total = static_cast<int64_t>(work.contexts.size());
  std::set<int64_t> done;
  DS_ASSIGN(RunRecords before, read_records(folder, work.ways.size()));
  for (const ContextRecord& r : before.records)
    if (r.index < total) done.insert(r.index);
  auto interrupted = [&]() -> Status {
    return error(
        Code::kInfeasible,
        "stopped after {} of {} contexts; they are kept in '{}', and the same command goes on from there",
        done.size(), total, folder);
  };
  auto weight = [&](int64_t index) {
    return work.seconds.empty() ? 1.0 : work.seconds[static_cast<size_t>(index)];
  };
  double all = 0;
  for (int64_t index = 0; index < total; ++index) all += weight(index);
  auto report = [&] {
    double sum = 0;
    for (int64_t index : done) sum += weight(index);
    progress({static_cast<int64_t>(done.size()), total, sum / all});
  };
  std::vector<bool> active(work.ways.size(), true);
  int64_t decided = -1;  // the round that `active` is for
  while (static_cast<int64_t>(done.size()) < total) {
    bool worked = false;
    for (int64_t index = 0; index < total; ++index) {
      if (stop.load()) return interrupted();
      report();
      if (done.contains(index)) continue;
      const std::string path = record_path(folder, index, "jsonl");
      if (read_record(path, work.ways.size()).ok()) {
        done.insert(index);  // by another process, meanwhile
        continue;
      }
      if (int64_t round = options.race ? index / options.race_round : 0; options.race && round != decided) {
        // All of the earlier rounds must be there, wherever they were made.
        bool complete = true;
        for (int64_t i = 0; i < round * options.race_round; ++i) complete = complete && done.contains(i);
        if (!complete) break;
        DS_ASSIGN(RunRecords seen, read_records(folder, work.ways.size()));
        active = racing_ways(work.ways, layers, seen.records, options, round * options.race_round);
        decided = round;
      }
      FileLock lock;
      DS_ASSIGN(bool mine, lock.take(record_path(folder, index, "lock")));
      if (!mine) continue;
      if (!read_record(path, work.ways.size()).ok()) {
        DS_ASSIGN(ContextRecord record, work_on(work, tokenizer, engine, index, active));
        DS_TRY(
            write_file_atomically(path, record_text(record), {.owner_only = true})
                .with_context(fmt::format("{} contexts are kept in '{}'; the same command goes on from there",
                                          done.size(), folder)));
      }
      done.insert(index);
      worked = true;
    }
    if (!worked && static_cast<int64_t>(done.size()) < total)
      std::this_thread::sleep_for(std::chrono::milliseconds(200));  // others work on what is left
  }
  report();
  return ok_status();
}

}  // namespace ds
