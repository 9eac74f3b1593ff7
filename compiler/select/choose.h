// Which of a policy's tilings is best at one point: context length, link rate, load.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "compiler/policy/policy.h"
#include "compiler/scheduling/cost_model.h"
#include "support/status.h"

namespace ds {

/// With a bound on the loss, the divergence or both (with a confidence: on what they exceed with the rest of
/// the probability only), the fewest predicted nanoseconds within them; with a bound on the TTFT alone, the
/// least loss within it; with bounds of both kinds, the fewest nanoseconds that keep all; without any, the
/// fewest. Where the least divergence is wanted, that is minimised, within all bounds.
/// While other requests wait, a bound on the loss or the divergence asks for throughput instead of TTFT: the
/// least busy time of the busiest stream. With a fast link that is the least compute, as in the paper's
/// appendix B; with a slow one the link is what the waiting requests wait for.
struct Slo {
  std::optional<double> loss;  // points
  std::optional<int64_t> ttft_ns;
  double confidence = 0;                  // one-sided; 0: means are compared
  std::optional<double> divergence = {};  // nats per reference token
  bool least_divergence = false;
};

struct Point {
  int64_t tokens = 0, suffix = 0;
  int64_t rate = 0;      // bytes per second
  bool waiting = false;  // other requests wait
};

struct Predicted {
  int64_t ttft_ns = 0;
  int64_t compute_ns = 0, link_ns = 0;  // busy times
};

/// Predictions are made by lowering and scheduling a tiling (by the plan's scheduler, without its search) and
/// kept. Most tilings need none: link work and compute work bound the time from below, and only those are
/// predicted whose bound beats what has been found.
class Chooser {
 public:
  /// `live`: for a sender that begins to compute as the request comes.
  Chooser(std::vector<Tiling> tilings, Slo slo, const CostModel& costs, std::string scheduler,
          bool live = false);

  const std::vector<Tiling>& tilings() const { return tilings_; }
  /// What is minimised at this point: the busiest stream's time, or the TTFT.
  bool counts_busy(const Point& point) const {
    return point.waiting && (slo_.loss || slo_.divergence) && !slo_.least_divergence;
  }
  /// How much worse tiling a is than b, as a share of b's time; below 0: better. By loss or divergence alone
  /// where that is what is minimised: infinite, or 0, or below.
  double excess(size_t a, const Predicted& pa, size_t b, const Predicted& pb, const Point& point) const;

  Result<Predicted> predict(size_t tiling, const Point& point);
  /// The TTFT if the sender had mapped what it sends: without the receiver's align operations.
  Result<int64_t> ttft_with_mapped_cuts(size_t tiling, const Point& point) const;
  bool keeps_slo(size_t tiling, const Predicted& predicted) const;

  /// kInfeasible lists what can be had, by TTFT.
  Result<size_t> best(const Point& point);
  /// What else could be had: of each way the quickest tiling; none beats another in loss and TTFT (and, where
  /// the objective speaks of it, divergence). By TTFT.
  Result<std::vector<Alternative>> alternatives(const Point& point);
  /// In words: "fewest ns with a loss of at most 2 points".
  std::string objective(const Point& point) const;

 private:
  int64_t cost(const Predicted& p, const Point& point) const {
    return counts_busy(point) ? std::max(p.compute_ns, p.link_ns) : p.ttft_ns;
  }
  /// What objectives speak of: the mean, or with a confidence its bound; NaN: not known.
  double loss(size_t tiling) const {
    return slo_.confidence > 0 ? tilings_[tiling].loss_bound : tilings_[tiling].loss;
  }
  double divergence(size_t tiling) const {
    return slo_.confidence > 0 ? tilings_[tiling].divergence_bound : tilings_[tiling].divergence;
  }
  bool loses_little(size_t tiling) const {  // what is not known keeps no bound
    return (!slo_.loss || loss(tiling) <= *slo_.loss) &&
           (!slo_.divergence || divergence(tiling) <= *slo_.divergence);
  }
  bool by_divergence() const { return slo_.divergence || slo_.least_divergence; }
  bool least_loss() const { return slo_.ttft_ns && !slo_.loss && !by_divergence(); }
  /// What is minimised before any time: the loss or the divergence; 0 where it is time alone.
  double lost(size_t tiling) const {
    return slo_.least_divergence ? divergence(tiling) : least_loss() ? loss(tiling) : 0;
  }
  /// "a loss of at most 2 points and a TTFT of at most 20 ms".
  std::string bounds_text() const;

  /// Operations of a tiling that take equally long at every point, and how many they are.
  struct Kind {
    Op op;
    int64_t count = 0;
  };
  /// What a tiling moves and computes at one length, whatever the rate.
  struct Work {
    int64_t tokens = 0, bytes = 0, compute_ns = 0;
  };
  const Work& work(size_t tiling, const Point& point);
  Result<size_t> find_best(const Point& point);
  /// Of a tiling (aligned by the receiver where the point names a form of maps), without building IR: lower,
  /// cost, schedule.
  Result<int64_t> predict_ttft_ns(const std::vector<Tile>& tiles, const TunedPoint& point) const;
  TunedPoint tuned(size_t tiling, const Point& point) const;
  const std::vector<Kind>& kinds(size_t tiling);
  /// Busy times, and a TTFT that no schedule beats.
  Predicted bound(size_t tiling, const Point& point);
  bool fits(size_t tiling, const Point& point) const;
  Status infeasible(const Point& point);
  /// alternatives(), and which tilings they are.
  Result<std::vector<std::pair<Alternative, size_t>>> front(const Point& point);

  std::vector<Tiling> tilings_;
  Slo slo_;
  const CostModel& costs_;
  std::string scheduler_;
  const bool live_;
  std::vector<std::vector<Kind>> kinds_;
  std::vector<std::vector<Work>> work_;                                  // by tiling: the lengths so far
  std::map<std::tuple<int64_t, int64_t, bool>, size_t> best_;            // tokens, rate, waiting
  std::map<std::tuple<size_t, int64_t, int64_t>, Predicted> predicted_;  // tiling, tokens, rate
  // Durations of kernels at one length: by chunks, first and last chunk, kind, rows, queries, selected share,
  // form of maps (all low-rank ones are taken to have one rank).
  std::map<std::tuple<int64_t, int32_t, int32_t, int32_t, int, int, int, double, int>, int64_t> durations_;
};

}  // namespace ds
