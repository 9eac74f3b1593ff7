// droidspeak: one contiguous group of layers is recomputed from a cut, the others are loaded.
//
// The group is the user's (--recompute), or chosen from a quality profile for one context length and link
// rate: with a bound on the loss, the fewest predicted nanoseconds within it; with a bound on the TTFT, the
// least loss within it; with both, the fewest nanoseconds that keep both. Full reuse and the full prefill
// take part, so a slow link leads to the full prefill by itself.
#include <algorithm>
#include <cmath>

#include "compiler/policy/policy.h"

namespace ds {
namespace {

struct Candidate {
  LayerRange group;
  double loss = 0;
  int64_t ttft_ns = 0;
};

/// Candidates that no other one beats in both loss and time, by time.
std::vector<Candidate> pareto(std::vector<Candidate> all) {
  std::stable_sort(all.begin(), all.end(), [](const Candidate& a, const Candidate& b) {
    return std::pair(a.ttft_ns, a.loss) < std::pair(b.ttft_ns, b.loss);
  });
  std::vector<Candidate> front;
  for (const Candidate& c : all)
    if (front.empty() || c.loss < front.back().loss) front.push_back(c);
  return front;
}

Status infeasible(const PolicyInput& in, const std::vector<Candidate>& front) {
  std::string wanted;
  if (in.slo_loss) wanted += fmt::format("a loss of at most {} points", *in.slo_loss);
  if (in.slo_ttft_ns)
    wanted +=
        fmt::format("{}a TTFT of at most {}", wanted.empty() ? "" : " and ", format_ns(*in.slo_ttft_ns));
  std::string message = fmt::format(
      "no group of layers promises {} at {} context tokens and {}; what can be had there:", wanted,
      in.point.tokens, format_rate(static_cast<double>(in.point.rate)));
  for (const Candidate& c : front) {
    message += fmt::format("\n  recompute {:<8} loss {:6.2f} points   TTFT {}", format_layers(c.group),
                           c.loss, format_ns(c.ttft_ns));
  }
  return Status(Code::kInfeasible, std::move(message));
}

}  // namespace

Result<Choice> choose_droidspeak(const PolicyInput& in) {
  if (in.recompute) {
    Choice c{.tiles = tiles_for_group(*in.recompute, in.layers)};
    bool all = in.recompute->size() == in.layers;
    c.promise.quality_loss = all ? 0 : in.quality ? in.quality->loss(*in.recompute) : std::nan("");
    DS_ASSIGN(c.promise.ttft_ns, in.predict_ttft_ns(c.tiles));
    return c;
  }
  if (!in.quality) {
    return error(Code::kInvalidArgument,
                 "policy 'droidspeak' needs to know which layers: give --recompute A-B, or --quality with "
                 "--slo-loss or "
                 "--slo-ttft-ms");
  }
  std::vector<LayerRange> groups = {LayerRange{}, LayerRange{0, in.layers - 1}};
  for (const GroupScore& g : in.quality->groups)
    if (g.group.size() < in.layers) groups.push_back(g.group);
  std::vector<Candidate> all;
  for (const LayerRange& group : groups) all.push_back({group, in.quality->loss(group)});
  std::stable_sort(all.begin(), all.end(),
                   [](const Candidate& a, const Candidate& b) { return a.loss < b.loss; });

  // Predicting is what takes time, so only candidates that can be chosen are predicted: with a bound on the
  // loss those within it, without one those that lose no more than the first that is fast enough.
  const Candidate* chosen = nullptr;
  size_t predicted = 0;
  for (; predicted < all.size(); ++predicted) {
    Candidate& c = all[predicted];
    bool out = in.slo_loss ? c.loss > *in.slo_loss : chosen && c.loss > chosen->loss;
    if (out) break;
    DS_ASSIGN(c.ttft_ns, in.predict_ttft_ns(tiles_for_group(c.group, in.layers)));
    if (in.slo_ttft_ns && c.ttft_ns > *in.slo_ttft_ns) continue;
    if (!chosen || c.ttft_ns < chosen->ttft_ns) chosen = &c;
  }
  if (!chosen) {
    for (; predicted < all.size(); ++predicted) {
      Candidate& c = all[predicted];
      DS_ASSIGN(c.ttft_ns, in.predict_ttft_ns(tiles_for_group(c.group, in.layers)));
    }
    return infeasible(in, pareto(std::move(all)));
  }
  return Choice{tiles_for_group(chosen->group, in.layers), Promise{chosen->loss, chosen->ttft_ns}};
}

}  // namespace ds
