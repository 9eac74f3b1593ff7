// droidspeak: one contiguous group of layers is recomputed from a cut, the others are loaded.
//
// The group is the user's (--recompute), or chosen from a quality profile for one context length and link rate:
// with a bound on the loss, the fewest predicted nanoseconds within it; with a bound on the TTFT, the least loss
// within it; with both, the fewest nanoseconds that keep both. Full reuse and the full prefill take part, so a slow
// link leads to the full prefill by itself.
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
  if (in.slo_ttft_ns) wanted += fmt::format("{}a TTFT of at most {}", wanted.empty() ? "" : " and ", format_ns(*in.slo_ttft_ns));
  std::string message = fmt::format(
      "no group of layers promises {} at {} context tokens and {}; what can be had there:", wanted, in.point.tokens,
      format_rate(static_cast<double>(in.point.rate)));
  for (const Candidate& c : front) {
    message += fmt::format("\n  recompute {:<8} loss {:6.2f} points   TTFT {}", format_layers(c.group), c.loss,
                           format_ns(c.ttft_ns));
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
                 "policy 'droidspeak' needs to know which layers: give --recompute A-B, or --quality with --slo-loss or "
                 "--slo-ttft-ms");
  }
  std::vector<LayerRange> groups = {LayerRange{}, LayerRange{0, in.layers - 1}};
  for (const GroupScore& g : in.quality->groups)
    if (g.group.size() < in.layers) groups.push_back(g.group);
  std::vector<Candidate> all;
  for (const LayerRange& group : groups) {
    DS_ASSIGN(int64_t ttft, in.predict_ttft_ns(tiles_for_group(group, in.layers)));
    all.push_back({group, in.quality->loss(group), ttft});
  }
  std::vector<Candidate> front = pareto(std::move(all));
  const Candidate* chosen = nullptr;
  for (const Candidate& c : front) {
    if (in.slo_loss && c.loss > *in.slo_loss) continue;
    if (in.slo_ttft_ns && c.ttft_ns > *in.slo_ttft_ns) continue;
    // The front is sorted by time, loss falls along it: the first one is the fastest, the last one loses least.
    if (!chosen || !in.slo_loss) chosen = &c;
  }
  if (!chosen) return infeasible(in, front);
  return Choice{tiles_for_group(chosen->group, in.layers), Promise{chosen->loss, chosen->ttft_ns}};
}

}  // namespace ds
