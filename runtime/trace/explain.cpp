#include "runtime/trace/explain.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "plans/traits.h"
#include "plans/work.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/table_internal.h"
#include "runtime/trace/tracks.h"
#include "support/units.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kWithoutEnd = 1e6;  // a speed that leaves nothing of what it divides
constexpr int64_t kMaxRate = 1'000'000'000'000'000;

bool sends(const Variant& v) {
  return std::any_of(v.streams.begin(), v.streams.end(),
                     [](const Stream& s) { return s.kind == StreamKind::kLink; });
}

int64_t faster(int64_t rate, double speed) {
  return static_cast<int64_t>(std::min(static_cast<double>(rate) * speed, static_cast<double>(kMaxRate)));
}

std::string ratio(int64_t ns, int64_t to) {
  return to > 0 ? fmt::format("{:.2f}x", static_cast<double>(ns) / static_cast<double>(to)) : "-";
}

double share(int64_t part, const Explanation& e) { return percent(part, e.ttft_ns); }

/// How long the maps of a variant take that the sender has mapped for, by kernel that reads E: in proportion
/// to that kernel's arithmetic. Empty: not known, since a plan does not say the rank of its maps.
std::vector<int64_t> maps_ns(const Plan& plan, const Variant& v) {
  if (v.map_form == MapForm::kLowRank) return {};
  std::vector<int64_t> ns(v.ops.size(), 0);
  for (size_t i = 0; i < v.ops.size(); ++i) {
    const Op& op = v.ops[i];
    if (op.kind != OpKind::kRecompute || op.rows != Rows::kChunk) continue;
    bool reads = std::any_of(v.tiles.begin(), v.tiles.end(), [&](const Tile& t) {
      return t.first_layer <= op.layer && op.layer <= t.last_layer && t.first_chunk <= op.chunk &&
             op.chunk <= t.last_chunk && t.sends_e(op.layer);
    });
    OpRows rows = op_rows(op, v.chunks, v.tuned_tokens, v.tuned_suffix, v.select_share);
    LayerWork layer = layer_work(plan.shape, rows);
    double map = map_flops(v.map_form, plan.shape.d_model, 0) * static_cast<double>(rows.rows);
    if (reads && rows.rows > 0)
      ns[i] = std::llround(static_cast<double>(op.duration_ns) * map / (layer.matmul + layer.attention));
  }
  return ns;
}

/// What differs by who applies the maps. With those on the other side, what the variant's kernels take less
/// or more is simulated in the same order.
Result<std::vector<Explanation::Side>> compare_sides(const Plan& plan, const Variant& v) {
  std::vector<Explanation::Side> sides;
  if (v.map_form == MapForm::kNone || v.makespan_ns == 0) return sides;
  Variant other = v;
  int64_t mapped_ns = 0, rows = 0;
  std::set<int32_t> layers;
  std::vector<int64_t> estimates = v.aligns() ? std::vector<int64_t>() : maps_ns(plan, v);
  for (size_t i = 0; i < v.ops.size(); ++i) {
    const Op& op = v.ops[i];
    if (op.kind == OpKind::kAlign) {
      mapped_ns += op.duration_ns;
      other.ops[i].duration_ns = 0;
    } else if (!estimates.empty()) {
      mapped_ns += estimates[i];
      other.ops[i].duration_ns += estimates[i];
    }
    if (op.payload != Payload::kE) continue;
    layers.insert(op.layer);
    rows += op_rows(op, v.chunks, v.tuned_tokens, v.tuned_suffix, v.select_share).rows;
  }
  DS_ASSIGN(Simulation own, simulate_variant(plan, v, tuned_point(v)));
  DS_ASSIGN(Simulation moved, simulate_variant(plan, other, tuned_point(v)));
  const bool known = v.aligns() || !estimates.empty();
  // The sender maps whole layers, also the part that a request has from elsewhere.
  int64_t whole = static_cast<int64_t>(layers.size()) * v.tuned_tokens;
  int64_t at_sender = rows > 0 ? std::llround(static_cast<double>(mapped_ns) * static_cast<double>(whole) /
                                              static_cast<double>(rows))
                               : 0;
  for (MapSide side : {MapSide::kReceiver, MapSide::kSender}) {
    Explanation::Side s{.side = side, .ttft_ns = side == v.map_side ? v.makespan_ns : moved.ttft_ns};
    s.bytes = own.bytes;
    (side == MapSide::kReceiver ? s.receiver_ns : s.sender_ns) = !known                       ? -1
                                                                 : side == MapSide::kReceiver ? mapped_ns
                                                                                              : at_sender;
    if (!known && side != v.map_side) s.ttft_ns = -1;
    s.e_bytes = whole * plan.shape.e_row() * (plan.dtype == "f32" ? 4 : 2);
    sides.push_back(s);
  }
  return sides;
}

/// How many share an entry, in the table of sides.
constexpr int64_t kReceivers[] = {1, 2, 4, 8};

/// Of the other variants at a point, and of the choices over all variants, in text.
constexpr size_t kOthersShown = 8, kChoicesShown = 12;

/// The last `numbers` columns stand to the right. A row of one cell is a heading.
std::string table_text(const std::vector<std::vector<std::string>>& rows, size_t numbers) {
  const std::vector<size_t> widths = column_widths(rows);
  std::string out;
  for (const auto& row : rows) out += "  " + table_line(row, widths, widths.size() - numbers) + "\n";
  return out;
}

/// "recompute 3-6" of "recompute 3-6 in 8 chunks" and "recompute 3-6, 2 of 8 chunks to the top": what a
/// promise is of.
std::string way_text(const std::string& what) {
  return what.substr(0, std::min(what.find(", "), what.find(" in ")));
}

/// What all of them have alike, or "" where they differ, or there is none.
template <typename Of>
std::string common_text(const std::vector<const Variant*>& variants, Of of) {
  if (variants.empty()) return "";
  const std::string first = of(*variants[0]);
  bool same =
      std::all_of(variants.begin(), variants.end(), [&](const Variant* v) { return of(*v) == first; });
  return same ? first : "";
}

/// What else could have been had, over all variants: each way once.
struct Choices {
  double loss = kUnknown;
  double least = INFINITY, most = 0;  // its TTFT by the chosen one's
  size_t variants = 0;
};

std::string choices_text(const std::vector<Variant>& variants) {
  std::map<std::string, Choices> choices;
  for (const Variant& v : variants) {
    std::map<std::string, double> quickest;  // here, by way
    for (const Alternative& a : v.alternatives) {
      if (v.promise.ttft_ns <= 0) continue;
      const std::string way = way_text(a.what);
      const double ratio = static_cast<double>(a.ttft_ns) / static_cast<double>(v.promise.ttft_ns);
      auto [at, fresh] = quickest.try_emplace(way, ratio);
      at->second = std::min(at->second, ratio);
      if (fresh) choices[way].loss = a.quality_loss;
    }
    for (const auto& [way, ratio] : quickest) {
      Choices& c = choices[way];
      c.least = std::min(c.least, ratio);
      c.most = std::max(c.most, ratio);
      ++c.variants;
    }
  }
  if (choices.empty()) return "";
  std::vector<std::pair<std::string, Choices>> all(choices.begin(), choices.end());
  // Of many those that most variants had.
  const size_t more = all.size() - std::min(all.size(), kChoicesShown);
  std::stable_sort(all.begin(), all.end(),
                   [](const auto& a, const auto& b) { return a.second.variants > b.second.variants; });
  all.resize(all.size() - more);
  auto lost = [](const Choices& c) { return std::isnan(c.loss) ? INFINITY : c.loss; };
  std::stable_sort(all.begin(), all.end(),
                   [&](const auto& a, const auto& b) { return lost(a.second) < lost(b.second); });
  std::vector<std::vector<std::string>> rows = {{"what", "loss", "variants", "as long as the chosen one"}};
  for (const auto& [way, c] : all) {
    std::string ratio = fmt::format("{:.2f}", c.least);
    if (c.most > c.least) ratio += fmt::format(" to {:.2f}", c.most);
    rows.push_back({way, loss_text(c.loss), format_count(static_cast<int64_t>(c.variants)), ratio + "x"});
  }
  return "\nWhat could be had at the variants' tuned points (none of it beats another in loss and time)\n" +
         table_text(rows, 3) + (more > 0 ? fmt::format("  ({} more, in fewer variants)\n", more) : "");
}

}  // namespace

std::string why_selected(const Plan& plan, const Variant& variant, int64_t tokens, int64_t rate,
                         int64_t waiting, bool measured) {
  std::string where = format_count(tokens) + " tokens";
  if (rate > 0)
    where +=
        fmt::format(" at {}{}", format_rate(static_cast<double>(rate)), measured ? " (as measured)" : "");
  if (waiting > 0) where += fmt::format(" while {} wait", format_count(waiting));
  return &variant == &plan.full_prefill ? "the fall-back: no variant covers " + where
                                        : "its ranges cover " + where;
}

std::string_view bound_name(const Explanation& e) {
  for (StreamKind kind : kPlanStreams) {
    if (share(e.shares.stream_ns[static_cast<size_t>(kind)], e) >= 90) return stream_kind_name(kind);
  }
  return "chain";
}

Result<Explanation> explain_variant(const Plan& plan, const Variant& v, const OperatingPoint& point) {
  Explanation e;
  e.plan = &plan;
  e.variant = &v;
  e.point = point;
  e.tuned = point == tuned_point(v);
  DS_ASSIGN(Simulation sim, simulate_variant(plan, v, point));
  e.bytes = sim.bytes;
  e.streams = sim.streams;
  e.ttft_ns = e.simulated_ns = sim.ttft_ns;
  e.lower_bound_ns = sim.lower_bound_ns;
  std::vector<OpTime> times = sim.ops;
  if (e.tuned) {
    times.clear();
    for (const Op& op : v.ops) times.push_back({op.start_ns, op.start_ns + op.duration_ns});
    e.ttft_ns = v.makespan_ns;
    e.lower_bound_ns = v.lower_bound_ns;
    for (StreamUse& s : e.streams) s.idle_ns = v.makespan_ns - s.busy_ns;
  }
  e.critical = critical_path(v, times);
  e.shares = critical_shares(v, e.critical);

  auto other = [&](const Variant& o) {
    if (&o == &v) return;
    // A plan without times, or a rate that the other cannot be judged at, is no reason to explain nothing.
    Result<Simulation> s = simulate_variant(plan, o, point);
    if (s.ok()) e.others.push_back({&o, s->ttft_ns, s->bytes});
  };
  for (const Variant& o : plan.variants) other(o);
  other(plan.full_prefill);

  auto what_if = [&](std::string what, double link, double compute) -> Status {
    OperatingPoint at = point;
    if (sends(v)) at.rate = faster(point.rate, link);
    DS_ASSIGN(Simulation s, simulate_variant(plan, v, at, compute));
    e.what_ifs.push_back({std::move(what), link, compute, s.ttft_ns});
    return ok_status();
  };
  if (sends(v)) DS_TRY(what_if("link x 2", 2, 1));
  DS_TRY(what_if("compute x 2", 1, 2));
  if (sends(v)) {
    DS_TRY(what_if("both x 2", 2, 2));
    DS_TRY(what_if("link without limit", kWithoutEnd, 1));
    DS_TRY(what_if("compute without limit", 1, kWithoutEnd));
  }
  DS_ASSIGN(e.sides, compare_sides(plan, v));
  return e;
}

Result<std::string> explain_plan(const Plan& plan, const std::string& origin) {
  std::string out =
      fmt::format("Plan {}: {} variants and the full prefill; '{}' answers over what '{}' has\n", origin,
                  plan.variants.size(), plan.receiver.name, plan.sender.name);
  auto row = [&](std::string_view name, const std::string& text) {
    if (!text.empty()) out += fmt::format("  {:<21} {}\n", name, text);
    return !text.empty();
  };
  std::vector<const Variant*> all, idle, busy;  // by load: none waits, some wait
  for (const Variant& v : plan.variants) {
    all.push_back(&v);
    (v.load_min == 0 ? idle : busy).push_back(&v);
  }
  auto why = [](const Variant& v) { return v.why; };
  row("chosen by", common_text(idle, why));
  row("where some wait", common_text(busy, why));
  row("policy, scheduler", common_text(all, [](const Variant& v) { return v.policy + ", " + v.scheduler; }));
  row("suffix", common_text(all, [](const Variant& v) { return format_count(v.tuned_suffix) + " tokens"; }));
  row("maps", common_text(all, alignment_text));
  row("measured as", common_text(all, [](const Variant& v) { return v.way; }));
  const bool one_loss =
      row("quality loss", common_text(all, [](const Variant& v) { return promised_loss_text(v.promise); }));
  auto above = [](const Variant& v) {
    return v.proven_optimal
               ? std::string("proven optimal")
               : fmt::format("{:.2f} %", percent(v.makespan_ns - v.lower_bound_ns, v.lower_bound_ns));
  };
  const bool one_bound = row("above lower bound", common_text(all, above));
  row("full prefill",
      fmt::format("TTFT {} at {} context tokens", format_ns(plan.full_prefill.promise.ttft_ns),
                  format_count(plan.full_prefill.tuned_tokens)));

  out += "\nWhat differs: ranges, and at the tuned point (in the middle of them) time and what bounds it\n";
  std::vector<std::vector<std::string>> rows = {
      {"", "link", "tuned at", "recompute", "loss", "TTFT", "above bound", "regret", "bound by"}};
  std::string context;
  for (const Variant& v : plan.variants) {
    DS_ASSIGN(Explanation e, explain_variant(plan, v, tuned_point(v)));
    std::string tokens =
        fmt::format("{} context tokens (tuned at {})", tokens_range_text(v), format_count(v.tuned_tokens));
    if (tokens != context) rows.push_back({context = tokens});
    std::string link = rate_range_text(v), waiting = waiting_range_text(v);
    if (waiting != "any") link += fmt::format(", {} waiting", waiting);
    rows.push_back({v.name, link, sends(v) ? format_rate(static_cast<double>(v.tuned_rate)) : "-",
                    recomputed_text(v), loss_text(v.promise.quality_loss), format_ns(e.ttft_ns), above(v),
                    regret_text(v.regret), std::string(bound_name(e))});
  }
  auto drop = [&](std::string_view column) {
    auto at = std::find(rows[0].begin(), rows[0].end(), column) - rows[0].begin();
    for (auto& r : rows)
      if (r.size() > 1) r.erase(r.begin() + at);
  };
  if (one_loss) drop("loss");
  if (one_bound) drop("above bound");
  out += table_text(rows, rows[0].size() - 4);
  out += "  Regret: slower than the best choice, at worst in the ranges.";
  if (!one_loss) out += " Loss: of what every token gets at least; of stairs, their band's.";
  out += "\n";
  out += choices_text(plan.variants);
  out +=
      "\nOne variant in full: --variant NAME, or what a request would take: --context-length, --link-rate; "
      "all: --all\n";
  return out;
}

std::string explanation_text(const Explanation& e, const std::string& why, OthersShown shown) {
  const Variant& v = *e.variant;
  std::string out = fmt::format("Variant {} ({}, {}): {}\n", v.name, v.policy, v.scheduler, why);
  auto row = [&](std::string_view name, const std::string& text) {
    out += fmt::format("  {:<21} {}\n", name, text);
  };
  row("at", fmt::format("{} context and {} suffix tokens{}{}", format_count(e.point.tokens),
                        format_count(e.point.suffix),
                        sends(v) ? ", link " + format_rate(static_cast<double>(e.point.rate)) : "",
                        e.tuned ? " (the tuned point)" : " (scaled from the tuned point)"));
  row("tiling", tiling_text(v));
  row("TTFT", format_ns(e.ttft_ns) + " predicted");
  row("quality loss", promised_loss_text(v.promise));
  if (!std::isnan(v.promise.divergence)) row("divergence", promised_divergence_text(v.promise));
  if (!v.way.empty()) row("measured as", measured_text(v));
  if (e.bytes > 0) row("loads", format_bytes(e.bytes));

  out += "\nWhy this tiling\n";
  row("chosen by", v.why.empty() ? "not recorded" : v.why);
  row("regret",
      regret_text(v.regret) + (v.regret < 0 ? "" : " slower than the best choice, at worst in its ranges"));
  if (v.alternatives.empty()) row("alternatives", "none recorded");
  auto divergence = [](double nats) {
    return std::isnan(nats) ? std::string() : fmt::format(", divergence {:>6}", nats_text(nats));
  };
  for (const Alternative& a : v.alternatives) {
    row(&a == &v.alternatives.front() ? "alternatives" : "",
        fmt::format("TTFT {:>9} ({} of this), loss {:>9}{}, compute {:>9}: {}", format_ns(a.ttft_ns),
                    ratio(a.ttft_ns, v.promise.ttft_ns), loss_text(a.quality_loss), divergence(a.divergence),
                    format_ns(a.compute_ns), a.what));
  }
  if (!v.alternatives.empty() && !e.tuned) row("", "(all of them at the tuned point)");

  if (shown != OthersShown::kNone) {
    out += "\nThe same request by what else the plan holds\n";
    if (e.others.empty()) out += "  nothing that can be judged here\n";
    // In the plan's order, but of many only the quickest.
    std::vector<const Explanation::Other*> others;
    for (const Explanation::Other& o : e.others) others.push_back(&o);
    if (others.size() > kOthersShown) {
      std::stable_sort(others.begin(), others.end(), [&](auto* a, auto* b) {
        auto last = [&](auto* o) { return o->variant == &e.plan->full_prefill; };
        return std::pair(last(a), a->ttft_ns) < std::pair(last(b), b->ttft_ns);
      });
      others.erase(others.begin() + kOthersShown - 1, others.end() - 1);
    }
    for (const Explanation::Other* o : others) {
      const Promise& promise = o->variant->promise;
      row(o->variant->name,
          fmt::format("TTFT {:>9} ({} of this), recomputes {}, loads {}, loss {}{}", format_ns(o->ttft_ns),
                      ratio(o->ttft_ns, e.simulated_ns), recomputed_text(*o->variant), format_bytes(o->bytes),
                      loss_text(promise.quality_loss), divergence(promise.divergence)));
    }
    if (others.size() < e.others.size())
      row("", fmt::format("({} more variants take longer)", e.others.size() - others.size()));
  }

  if (!e.sides.empty()) {
    out += fmt::format("\nWho maps what is sent (one {} map for each cut; at the tuned point)\n",
                       map_form_name(v.map_form));
    auto known = [](int64_t ns) { return ns < 0 ? std::string("not known") : format_ns(ns); };
    out += fmt::format("  {:<21} {:>9}  {:>10}  {:>22}  {:>17}  {}\n", "", "TTFT", "over link",
                       "receiver, each request", "sender, per entry",
                       fmt::format("E in an entry for {} receivers", fmt::join(kReceivers, ", ")));
    for (const Explanation::Side& s : e.sides) {
      std::vector<std::string> bytes;
      for (int64_t n : kReceivers) bytes.push_back(format_bytes(s.e_bytes_for(n)));
      out +=
          fmt::format("  {:<21} {:>9}  {:>10}  {:>22}  {:>17}  {}\n",
                      fmt::format("{}{}", map_side_name(s.side), s.side == v.map_side ? " (as it is)" : ""),
                      known(s.ttft_ns), format_bytes(s.bytes), known(s.receiver_ns), known(s.sender_ns),
                      fmt::join(bytes, ", "));
    }
    out += v.aligns() ? "  The sender's TTFT is simulated: the same order, in which mapping takes no time.\n"
                      : "  The receiver's TTFT is simulated: the same order, with what mapping may take.\n";
  }

  out += "\nWhat bounds the time\n";
  std::string path;
  auto part = [&](std::string_view name, int64_t ns) {
    if (ns > 0)
      path += fmt::format("{}{} {} ({:.1f} %)", path.empty() ? "" : ", ", name, format_ns(ns), share(ns, e));
  };
  for (StreamKind kind : kPlanStreams)
    part(stream_kind_name(kind), e.shares.stream_ns[static_cast<size_t>(kind)]);
  part("time not in the plan", e.shares.gap_ns);
  row("critical path", path);
  std::vector<std::string> names = stream_names(v);
  for (size_t s = 0; s < e.streams.size(); ++s) {
    row(names[s], fmt::format("busy {}, idle {} ({:.1f} % busy)", format_ns(e.streams[s].busy_ns),
                              format_ns(e.streams[s].idle_ns), share(e.streams[s].busy_ns, e)));
  }
  double above = percent(e.ttft_ns - e.lower_bound_ns, e.lower_bound_ns);
  row("lower bound", fmt::format("{}: {}", format_ns(e.lower_bound_ns),
                                 e.tuned && v.proven_optimal
                                     ? std::string("no order of these operations ends earlier than this one")
                                     : fmt::format("this order ends {:.2f} % above it", above)));
  std::string_view bound = bound_name(e);
  row("so it is", bound == "chain" ? std::string("a chain: transfers and kernels that wait for one another")
                                   : fmt::format("bound by {}", bound));

  out += "\nWhat other hardware would bring (the same tiling in the same order)\n";
  for (const Explanation::WhatIf& w : e.what_ifs)
    row(w.what,
        fmt::format("TTFT {:>9}, {} as fast", format_ns(w.ttft_ns), ratio(e.simulated_ns, w.ttft_ns)));
  out += "  A plan compiled for that hardware may choose another tiling and gain more.\n";
  return out;
}

Json explanation_json(const Explanation& e, const std::string& why) {
  const Variant& v = *e.variant;
  auto number = [](double value) { return std::isnan(value) ? Json(nullptr) : Json(value); };
  Json streams = Json::array(), others = Json::array(), what_ifs = Json::array(), path = Json::array();
  Json alternatives = Json::array();
  for (const StreamUse& s : e.streams)
    streams.push_back({{"kind", stream_kind_name(s.kind)}, {"busy_ns", s.busy_ns}, {"idle_ns", s.idle_ns}});
  for (const Explanation::Other& o : e.others) {
    others.push_back({{"variant", o.variant->name},
                      {"ttft_ns", o.ttft_ns},
                      {"bytes", o.bytes},
                      {"recomputed_layers", recomputed_layers(*o.variant)},
                      {"quality_loss", number(o.variant->promise.quality_loss)},
                      {"divergence", number(o.variant->promise.divergence)}});
  }
  for (const Explanation::WhatIf& w : e.what_ifs) {
    what_ifs.push_back({{"what", w.what},
                        {"link_speed", w.link_speed},
                        {"compute_speed", w.compute_speed},
                        {"ttft_ns", w.ttft_ns}});
  }
  for (const Alternative& a : v.alternatives) {
    alternatives.push_back({{"what", a.what},
                            {"quality_loss", number(a.quality_loss)},
                            {"divergence", number(a.divergence)},
                            {"ttft_ns", a.ttft_ns},
                            {"compute_ns", a.compute_ns}});
  }
  Json alignment;  // null: plain cuts
  if (!e.sides.empty()) {
    auto known = [](int64_t ns) { return ns < 0 ? Json(nullptr) : Json(ns); };
    Json sides = Json::array();
    for (const Explanation::Side& s : e.sides) {
      Json bytes = Json::object();
      for (int64_t n : kReceivers) bytes[std::to_string(n)] = s.e_bytes_for(n);
      sides.push_back({{"side", map_side_name(s.side)},
                       {"ttft_ns", known(s.ttft_ns)},
                       {"bytes", s.bytes},
                       {"receiver_ns_per_request", known(s.receiver_ns)},
                       {"sender_ns_per_entry", known(s.sender_ns)},
                       {"entry_e_bytes", bytes}});
    }
    alignment = {{"form", map_form_name(v.map_form)}, {"side", map_side_name(v.map_side)}, {"sides", sides}};
  }
  static constexpr const char* kHeldBy[] = {"start", "stream", "wait"};
  for (const CriticalStep& s : e.critical) {
    path.push_back({{"op", s.op},
                    {"label", op_label(v.ops[static_cast<size_t>(s.op)], v.chunks)},
                    {"held_by", kHeldBy[static_cast<size_t>(s.by)]},
                    {"gap_ns", s.gap_ns},
                    {"time_ns", s.time_ns}});
  }
  return {{"schema", "droidspeak.explanation"},
          {"version", 1},
          {"variant", v.name},
          {"policy", v.policy},
          {"scheduler", v.scheduler},
          {"selected_because", why},
          {"context_tokens", e.point.tokens},
          {"suffix_tokens", e.point.suffix},
          {"link_rate", e.point.rate},
          {"at_tuned_point", e.tuned},
          {"tiling", tiling_text(v)},
          {"recomputes", recomputed_text(v)},
          {"way", v.way},
          {"quality_loss", number(v.promise.quality_loss)},
          {"loss_stderr", number(v.promise.loss_stderr)},
          {"loss_bound", number(v.promise.loss_bound)},
          {"divergence", number(v.promise.divergence)},
          {"divergence_stderr", number(v.promise.divergence_stderr)},
          {"divergence_bound", number(v.promise.divergence_bound)},
          {"confidence", v.promise.confidence},
          {"ttft_ns", e.ttft_ns},
          {"lower_bound_ns", e.lower_bound_ns},
          {"proven_optimal", e.tuned && v.proven_optimal},
          {"bytes", e.bytes},
          {"bound", bound_name(e)},
          {"streams", streams},
          {"critical_path",
           {{"link_ns", e.shares.stream_ns[0]},
            {"compute_ns", e.shares.stream_ns[2]},
            {"gap_ns", e.shares.gap_ns},
            {"steps", path}}},
          {"why", v.why},
          {"regret", v.regret < 0 ? Json(nullptr) : Json(v.regret)},
          {"alternatives", alternatives},
          {"alignment", alignment},
          {"others", others},
          {"what_if", what_ifs}};
}

}  // namespace ds
