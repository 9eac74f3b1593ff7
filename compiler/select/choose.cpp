#include "compiler/select/choose.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "compiler/lowering/lower_tiles.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/sender_times.h"
#include "compiler/scheduling/variant_problem.h"
#include "plans/traits.h"

namespace ds {
namespace {

/// What is not known comes last.
double or_worst(double lost) { return std::isnan(lost) ? 1e9 : lost; }

/// A chunk of fewer rows than this wastes the matrix units on every machine that there is.
constexpr int64_t kLeastRows = 64;

int32_t restore_buffers(std::string_view scheduler) {
  return loads_come_first(scheduler) ? 0 : kRestoreBuffers;
}

}  // namespace

Result<int64_t> Chooser::predict_ttft_ns(const std::vector<Tile>& tiles, const TunedPoint& point) const {
  Variant v = lower_tiles(tiles, costs_.shape().layers, point.chunks, moves_whole_entry(scheduler_),
                          point.map_form != MapForm::kNone, restore_buffers(scheduler_));
  v.select_share = point.share;
  for (Op& op : v.ops) op.duration_ns = costs_.duration_ns(op, point);
  Problem problem = problem_of(v, costs_.machine().conditions(point.rate));
  if (live_) release_by_sender(SenderTimes(costs_, point.tokens), v.ops, v.chunks, problem);
  DS_ASSIGN(Schedule s, schedule(problem, scheduler_, false));
  return s.cost_ns;
}

Chooser::Chooser(std::vector<Tiling> tilings, Slo slo, const CostModel& costs, std::string scheduler,
                 bool live)
    : tilings_(std::move(tilings)),
      slo_(slo),
      costs_(costs),
      scheduler_(std::move(scheduler)),
      live_(live),
      kinds_(tilings_.size()),
      work_(tilings_.size()) {}

TunedPoint Chooser::tuned(size_t tiling, const Point& p) const {
  const Tiling& t = tilings_[tiling];
  return {p.tokens,  p.suffix, p.rate, t.chunks, t.way.share, t.aligns() ? t.way.map : MapForm::kNone,
          t.map_rank};
}

bool Chooser::fits(size_t tiling, const Point& p) const {
  return tilings_[tiling].chunks == 1 || p.tokens / tilings_[tiling].chunks >= kLeastRows;
}

const std::vector<Chooser::Kind>& Chooser::kinds(size_t tiling) {
  std::vector<Kind>& kinds = kinds_[tiling];
  if (!kinds.empty()) return kinds;
  const Tiling& t = tilings_[tiling];
  // Deep models have tens of thousands of operations, of a few hundred kinds.
  auto key = [](const Op& op) {
    return static_cast<uint64_t>(op.chunk + 1) << 32 | static_cast<uint64_t>(op.last_chunk + 1) << 8 |
           static_cast<uint64_t>(trait_row(op)) << 4 | static_cast<uint64_t>(op.rows) << 2 |
           static_cast<uint64_t>(op.queries);
  };
  std::unordered_map<uint64_t, size_t> index;
  for (Op& op : lower_tiles(t.tiles, costs_.shape().layers, t.chunks, moves_whole_entry(scheduler_),
                            t.aligns(), restore_buffers(scheduler_))
                    .ops) {
    auto [at, fresh] = index.try_emplace(key(op), kinds.size());
    if (fresh) {
      op.waits.clear();
      kinds.push_back({std::move(op), 0});
    }
    ++kinds[at->second].count;
  }
  return kinds;
}

const Chooser::Work& Chooser::work(size_t tiling, const Point& p) {
  std::vector<Work>& known = work_[tiling];
  for (const Work& w : known)  // a few lengths
    if (w.tokens == p.tokens) return w;
  TunedPoint at = tuned(tiling, p);
  Work w{.tokens = p.tokens};
  for (const Kind& k : kinds(tiling)) {
    if (is_transfer(k.op)) {
      w.bytes += k.count * costs_.transfer_bytes(k.op, at);
      continue;
    }
    auto [found, fresh] =
        durations_.try_emplace({p.tokens, at.chunks, k.op.chunk, k.op.last_chunk, static_cast<int>(k.op.kind),
                                static_cast<int>(k.op.rows), static_cast<int>(k.op.queries), at.share,
                                static_cast<int>(at.map_form)},
                               0);
    if (fresh) found->second = costs_.duration_ns(k.op, at);
    w.compute_ns += k.count * found->second;
  }
  known.push_back(w);
  return known.back();
}

Predicted Chooser::bound(size_t tiling, const Point& p) {
  const Work& w = work(tiling, p);
  double wire = static_cast<double>(w.bytes) / static_cast<double>(std::max<int64_t>(p.rate, 1)) * 1e9;
  int64_t link = std::llround(std::min(wire, 1e17));
  if (w.bytes == 0) return {w.compute_ns, w.compute_ns, link};
  Conditions from = costs_.machine().conditions(p.rate);
  // While a load runs, a kernel beside it loses its share; but for what runs before the first kernel may
  // start.
  const double lost = 1 - static_cast<double>(progress_per_ns(from.kernel_slow_permille)) / 1e6;
  const auto beside = static_cast<double>(std::max<int64_t>(0, link - from.kernels_ns));
  const int64_t kernels = from.kernels_ns + w.compute_ns + static_cast<int64_t>(lost * beside);
  return {std::max(kernels, from.loads_ns + link), w.compute_ns, link};
}

Result<Predicted> Chooser::predict(size_t tiling, const Point& p) {
  auto [found, fresh] = predicted_.try_emplace({tiling, p.tokens, p.rate});
  if (!fresh) return found->second;
  auto ttft = predict_ttft_ns(tilings_[tiling].tiles, tuned(tiling, p));
  if (!ttft.ok()) {
    predicted_.erase(found);
    return ttft.status();
  }
  found->second = bound(tiling, p);
  found->second.ttft_ns = *ttft;
  return found->second;
}

Result<int64_t> Chooser::ttft_with_mapped_cuts(size_t tiling, const Point& p) const {
  TunedPoint at = tuned(tiling, p);
  at.map_form = MapForm::kNone;
  return predict_ttft_ns(tilings_[tiling].tiles, at);
}

bool Chooser::keeps_slo(size_t tiling, const Predicted& p) const {
  if (!loses_little(tiling)) return false;
  return !slo_.ttft_ns || p.ttft_ns <= *slo_.ttft_ns;
}

double Chooser::excess(size_t a, const Predicted& pa, size_t b, const Predicted& pb, const Point& p) const {
  if (slo_.least_divergence || least_loss()) {
    double more = lost(a) - lost(b);
    return more > 0 ? INFINITY : more < 0 ? -1.0 : 0.0;
  }
  return static_cast<double>(cost(pa, p)) / static_cast<double>(std::max<int64_t>(cost(pb, p), 1)) - 1;
}

Result<size_t> Chooser::best(const Point& p) {
  auto known = best_.find({p.tokens, p.rate, p.waiting});
  if (known != best_.end()) return known->second;
  DS_ASSIGN(size_t found, find_best(p));
  best_[{p.tokens, p.rate, p.waiting}] = found;
  return found;
}

Result<size_t> Chooser::find_best(const Point& p) {
  struct Candidate {
    size_t tiling = 0;
    int64_t bound = 0;
    double loss = 0;
  };
  // Losses within the bounds are all the same, unless the least is what is wanted.
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < tilings_.size(); ++i) {
    if (!fits(i, p) || !loses_little(i)) continue;
    Predicted b = bound(i, p);
    candidates.push_back({i, cost(b, p), or_worst(lost(i))});
  }
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.loss, a.bound) < std::tie(b.loss, b.bound);
  });
  const Candidate* chosen = nullptr;
  std::pair<int64_t, int64_t> chosen_cost;
  for (const Candidate& c : candidates) {
    if (chosen && (c.loss > chosen->loss || c.bound > chosen_cost.first)) break;
    DS_ASSIGN(Predicted predicted, predict(c.tiling, p));
    if (!keeps_slo(c.tiling, predicted)) continue;
    std::pair cost(this->cost(predicted, p), predicted.ttft_ns);
    if (chosen && cost >= chosen_cost) continue;
    chosen = &c;
    chosen_cost = cost;
  }
  if (!chosen) return infeasible(p);
  return chosen->tiling;
}

Result<std::vector<Alternative>> Chooser::alternatives(const Point& p) {
  DS_ASSIGN(auto all, front(p));
  std::vector<Alternative> plain;
  for (auto& [alternative, tiling] : all) plain.push_back(std::move(alternative));
  return plain;
}

Result<std::vector<std::pair<Alternative, size_t>>> Chooser::front(const Point& p) {
  std::map<std::string, std::pair<int64_t, size_t>> quickest;  // by way: its least bound
  for (size_t i = 0; i < tilings_.size(); ++i) {
    if (!fits(i, p)) continue;
    std::pair candidate(bound(i, p).ttft_ns, i);
    auto [at, fresh] = quickest.try_emplace(tilings_[i].way.name(), candidate);
    if (!fresh) at->second = std::min(at->second, candidate);
  }
  using Choice = std::pair<Alternative, size_t>;
  std::vector<Choice> all;
  for (const auto& [way, candidate] : quickest) {
    DS_ASSIGN(Predicted predicted, predict(candidate.second, p));
    const Tiling& t = tilings_[candidate.second];
    all.push_back(
        {{t.what, t.loss, predicted.ttft_ns, predicted.compute_ns, t.divergence}, candidate.second});
  }
  auto lost = [&](const Choice& c) { return or_worst(loss(c.second)); };
  auto diverges = [&](const Choice& c) { return by_divergence() ? or_worst(divergence(c.second)) : 0; };
  std::stable_sort(all.begin(), all.end(), [&](const Choice& a, const Choice& b) {
    return std::tuple(a.first.ttft_ns, lost(a), diverges(a)) <
           std::tuple(b.first.ttft_ns, lost(b), diverges(b));
  });
  std::vector<Choice> front;
  for (Choice& c : all) {
    bool beaten = std::any_of(front.begin(), front.end(), [&](const Choice& quicker) {
      return lost(quicker) <= lost(c) && diverges(quicker) <= diverges(c);
    });
    if (!beaten) front.push_back(std::move(c));
  }
  return front;
}

std::string Chooser::bounds_text() const {
  std::vector<std::string> bounds;
  if (slo_.loss) bounds.push_back(fmt::format("a loss of at most {} points", *slo_.loss));
  if (slo_.divergence)
    bounds.push_back(fmt::format("a divergence of at most {} nats per token", *slo_.divergence));
  std::string text = fmt::format("{}", fmt::join(bounds, " and "));
  if (slo_.confidence > 0 && !text.empty())
    text += fmt::format(" with {:g} % confidence", 100 * slo_.confidence);
  if (slo_.ttft_ns)
    text += fmt::format("{}a TTFT of at most {}", text.empty() ? "" : " and ", format_ns(*slo_.ttft_ns));
  return text;
}

std::string Chooser::objective(const Point& p) const {
  const std::string bounds = bounds_text();
  std::string what = slo_.least_divergence ? "least divergence"
                     : least_loss()        ? "least loss"
                     : counts_busy(p)      ? "least time of the busiest stream"
                                           : "least TTFT";
  return bounds.empty() ? what : what + " with " + bounds;
}

Status Chooser::infeasible(const Point& p) {
  std::string message = fmt::format(
      "no group of layers promises {} at {} context tokens and {}; what can be had there:", bounds_text(),
      p.tokens, format_rate(static_cast<double>(p.rate)));
  DS_ASSIGN(auto all, front(p));
  size_t width = 0;
  for (const auto& [a, tiling] : all) width = std::max(width, a.what.size());
  for (const auto& [a, tiling] : all) {
    message += fmt::format("\n  {:<{}}   loss {:6.2f} points", a.what, width, a.quality_loss);
    if (slo_.confidence > 0) message += fmt::format(", bound {:6.2f}", loss(tiling));
    if (!std::isnan(a.divergence)) {
      message += fmt::format("   divergence {:7.4f} nats", a.divergence);
      if (slo_.confidence > 0) message += fmt::format(", bound {:7.4f}", divergence(tiling));
    }
    message += "   TTFT " + format_ns(a.ttft_ns);
  }
  auto unbounded = [&](const Tiling& t) {
    return slo_.confidence > 0 && !std::isnan(t.loss) && std::isnan(t.loss_bound);
  };
  if (auto few = std::count_if(tilings_.begin(), tilings_.end(), unbounded); few > 0) {
    message += fmt::format(
        "\n  {} of {} choices have no bound: the profile has too few contexts; profile more of them", few,
        tilings_.size());
  }
  return Status(Code::kInfeasible, std::move(message));
}

}  // namespace ds
