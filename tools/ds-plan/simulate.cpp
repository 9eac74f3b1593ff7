// ds-plan simulate: a plan at other lengths and rates.
#include "tools/ds-plan/actions.h"

#include "support/file.h"

namespace ds {
namespace {

struct Simulated {
  const Variant* variant;
  std::string why;
  Simulation sim;
};

Json simulation_json(const Simulated& s) {
  Json streams = Json::array();
  for (const StreamUse& u : s.sim.streams) {
    streams.push_back({{"kind", stream_kind_name(u.kind)}, {"busy_ns", u.busy_ns}, {"idle_ns", u.idle_ns}});
  }
  return {{"variant", s.variant->name},
          {"policy", s.variant->policy},
          {"scheduler", s.variant->scheduler},
          {"selected_because", s.why},
          {"context_tokens", s.sim.point.tokens},
          {"suffix_tokens", s.sim.point.suffix},
          {"link_rate", s.sim.point.rate},
          {"at_tuned_point", s.sim.point == tuned_point(*s.variant)},
          {"ttft_ns", s.sim.ttft_ns},
          {"plan_makespan_ns", s.variant->makespan_ns},
          {"bytes", s.sim.bytes},
          {"streams", streams}};
}

}  // namespace

Status simulate(const PlanOptions& o) {
  DS_ASSIGN(int64_t rate, link_rate(o));
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  // What the runtime would choose; what is not given is taken from the first variant's tuned point.
  const Variant& any = plan.variants.empty() ? plan.full_prefill : plan.variants[0];
  bool free = o.link_rate.empty() && o.context_length == 0 && o.suffix_length == 0 && o.waiting == 0;
  std::vector<Simulated> chosen;
  if (!o.variant.empty()) {
    DS_ASSIGN(const Variant* v, find_variant(loaded, o.variant));
    chosen.push_back({v, "named by --variant", {}});
  } else if (free) {
    for (const Variant& v : plan.variants)
      chosen.push_back({&v, "all variants, each at its own tuned point", {}});
    chosen.push_back({&plan.full_prefill, "the fall-back, at its own tuned point", {}});
  } else {
    Selected selected = select(plan, point_of(o, rate, any), o.waiting);
    chosen.push_back({selected.variant, selected.why, {}});
    if (selected.variant != &plan.full_prefill)
      chosen.push_back({&plan.full_prefill, "the fall-back, for comparison", {}});
  }
  for (Simulated& s : chosen) {
    // Points that are not given come from the variant at hand when it stands for itself, else from the first
    // one, so that the fall-back is compared at the same length.
    const Variant& base = free || !o.variant.empty() ? *s.variant : any;
    OperatingPoint point = point_of(o, rate, base);
    // Without transfers the rate plays no part: keep the variant's own, so that its tuned point is
    // recognised.
    bool sends = std::any_of(s.variant->streams.begin(), s.variant->streams.end(),
                             [](const Stream& stream) { return stream.kind == StreamKind::kLink; });
    if (!sends && rate == 0) point.rate = s.variant->tuned_rate;
    DS_ASSIGN(s.sim, simulate_variant(plan, *s.variant, point));
  }
  if (o.json) {
    Json results = Json::array();
    for (const Simulated& s : chosen) results.push_back(simulation_json(s));
    return write_file_atomically("-", json_text({{"schema", "droidspeak.simulation"},
                                                 {"version", 1},
                                                 {"plan", o.file},
                                                 {"estimate", true},
                                                 {"results", results}}));
  }
  std::string text =
      "Estimate: the schedule is replayed op by op; transfers are scaled by bytes / rate, kernels by "
      "multiply-adds, both\n"
      "from the tuned point, where they are the plan's own. Fixed costs of small kernels are not modelled.\n";
  for (const Simulated& s : chosen) {
    const Variant& v = *s.variant;
    bool tuned = s.sim.point == tuned_point(v);
    text += fmt::format("\nvariant {} ({}, {}): {}\n", v.name, v.policy, v.scheduler, s.why);
    text += fmt::format("  at        {} context and {} suffix tokens{}{}\n", format_count(s.sim.point.tokens),
                        format_count(s.sim.point.suffix),
                        s.sim.bytes > 0 ? ", link " + format_rate(static_cast<double>(s.sim.point.rate)) : "",
                        tuned ? " (the tuned point)" : "");
    text += fmt::format("  TTFT      {}{}\n", format_ns(s.sim.ttft_ns),
                        tuned && s.sim.ttft_ns != v.makespan_ns
                            ? fmt::format(" (the plan says {}: some of its ops start later than they could)",
                                          format_ns(v.makespan_ns))
                            : std::string());
    if (s.sim.bytes > 0) text += fmt::format("  loaded    {}\n", format_bytes(s.sim.bytes));
    for (const StreamUse& u : s.sim.streams) {
      text += fmt::format("  {:<9} busy {:>9}, idle {:>9}  ({:.1f} % busy)\n", stream_kind_name(u.kind),
                          format_ns(u.busy_ns), format_ns(u.idle_ns),
                          s.sim.ttft_ns > 0
                              ? 100.0 * static_cast<double>(u.busy_ns) / static_cast<double>(s.sim.ttft_ns)
                              : 0.0);
    }
  }
  return write_file_atomically("-", text);
}

}  // namespace ds
