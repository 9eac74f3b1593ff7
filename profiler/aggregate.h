// Means over records, with errors that know what is independent: contexts, not questions.
#pragma once

#include <vector>

#include "plans/quality.h"
#include "profiler/record.h"

namespace ds {

/// Which contexts take part in a mean (by position in the records), and which task (all: -1).
struct ScorePart {
  const std::vector<bool>* contexts = nullptr;  // nullptr: all
  int64_t task = -1;
};

/// Index of records by task, for means over any ways and any part of the contexts.
class Scores {
 public:
  /// `records` outlive it.
  Scores(const std::vector<Way>& ways, const std::vector<ContextRecord>& records);

  const std::vector<QualityTask>& tasks() const { return tasks_; }  // by name
  size_t ways() const { return ways_.size(); }

  /// What a mean is taken of, for one item: points.
  using Value = double (*)(const WayResult&);
  static double score(const WayResult& r) { return 100 * r.score; }
  static double exact(const WayResult& r) { return 100 * r.exact; }
  static double divergence(const WayResult& r) { return r.divergence; }

  /// The mean over tasks of the means over their items; the error is cluster-robust, by context. Items that
  /// the way was not scored on are left out. NaN where none is left.
  Mean mean(size_t way, Value value, const ScorePart& part = {}) const;
  /// That of the differences a - b, over items that both were scored on.
  Mean difference(size_t a, size_t b, Value value, const ScorePart& part = {}) const;
  /// Items and contexts that the way was scored on.
  std::pair<int64_t, int64_t> count(size_t way) const;

 private:
  template <typename Get>
  Mean mean_of(Get get, const ScorePart& part) const;
  const std::vector<Way>& ways_;
  const std::vector<ContextRecord>& records_;
  std::vector<QualityTask> tasks_;
  std::vector<std::vector<size_t>> task_of_;  // [context][item]
};

struct AggregateOptions {
  int64_t layers = 0;
  uint64_t seed = 1;                    // of the splits in halves
  int64_t splits = 20;                  // into halves
  const Quality* other_pair = nullptr;  // another pair's profile, whose groups are looked up here
  std::vector<bool> dropped;            // ways that racing dropped; empty: none
};

/// Fills ways, tasks, Pareto list, selections, samples and examples of `quality` from the records (which may
/// stand in any order: they are sorted by index first).
void aggregate(const std::vector<Way>& ways, std::vector<ContextRecord> records,
               const AggregateOptions& options, Quality& quality);

}  // namespace ds
