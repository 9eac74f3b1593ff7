#include "compiler/policy/policy.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "plans/work.h"

namespace ds {
namespace {

Way restored(const LayerRange& layers, int64_t) { return Way::restore(layers); }

constexpr PolicyTraits kPolicies[] = {
    {.name = "balanced",
     .draw = draw_balanced,
     .named_layers = way_of,
     .takes_share = false,
     .chooses = true,
     .sends_hidden = true,
     .may_lose = true},
    {.name = "droidspeak",
     .draw = draw_droidspeak,
     .named_layers = way_of,
     .takes_share = false,
     .chooses = true,
     .sends_hidden = true,
     .may_lose = true},
    {.name = "cake",
     .draw = draw_cake,
     .named_layers = nullptr,
     .takes_share = false,
     .chooses = false,
     .sends_hidden = false,
     .may_lose = true},
    {.name = "restore",
     .draw = draw_restore,
     .named_layers = restored,
     .takes_share = false,
     .chooses = true,
     .sends_hidden = true,
     .may_lose = true},
    {.name = "select",
     .draw = draw_select,
     .named_layers = nullptr,
     .takes_share = true,
     .chooses = true,
     .sends_hidden = false,
     .may_lose = true},
    {.name = "full-prefill",
     .draw = draw_full_prefill,
     .named_layers = nullptr,
     .takes_share = false,
     .chooses = false,
     .sends_hidden = false,
     .may_lose = false},
    {.name = "full-reuse",
     .draw = draw_full_reuse,
     .named_layers = nullptr,
     .takes_share = false,
     .chooses = false,
     .sends_hidden = false,
     .may_lose = true},
};

}  // namespace

std::span<const PolicyTraits> policies() { return kPolicies; }

std::vector<std::string_view> policy_names() {
  std::vector<std::string_view> names;
  for (const PolicyTraits& p : kPolicies) names.push_back(p.name);
  return names;
}

Result<const PolicyTraits*> find_policy(std::string_view name) {
  for (const PolicyTraits& p : kPolicies)
    if (p.name == name) return &p;
  return error(Code::kInvalidArgument, "unknown policy '{}'; known are {}", name,
               fmt::join(policy_names(), ", "));
}

Way way_of(const LayerRange& group, int64_t layers) {
  if (group.empty()) return Way::full_reuse();
  return group.size() == layers ? Way::full_prefill() : Way::group(group);
}

bool can_map(const PolicyInput& in, const Way& way, MapForm form) {
  const std::vector<int64_t> layers = way.sent_layers();
  return !layers.empty() && in.maps && std::all_of(layers.begin(), layers.end(), [&](int64_t l) {
    return in.maps->find(l, form) != nullptr;
  });
}

std::vector<Way> in_all_forms(const PolicyInput& in, const Way& plain) {
  if (plain.sent_layers().empty()) return {plain};
  struct Choice {
    Way way;
    double flops;
    const WayScore* score;
  };
  std::vector<Choice> choices;
  for (MapForm form : in.forms) {
    Way way = plain.aligned(form);
    const WayScore* score = in.quality ? in.quality->find(way) : nullptr;
    const bool named = in.recompute || !in.quality;
    if (form != MapForm::kNone && (!can_map(in, plain, form) || (!score && !named))) continue;
    choices.push_back({std::move(way), map_flops(form, in.maps ? in.maps->d_model : 0, in.map_rank), score});
  }
  auto bound = [&](const Choice& c) {
    return in.confidence > 0 ? in.quality->loss_bound(*c.score, in.confidence) : c.score->loss.value;
  };
  auto diverges_less = [&](const WayScore& a, const WayScore& b) {
    if (!in.by_divergence) return true;
    return a.divergence.value <= b.divergence.value &&
           (in.confidence == 0 ||
            in.quality->divergence_bound(a, in.confidence) <= in.quality->divergence_bound(b, in.confidence));
  };
  auto beaten = [&](const Choice& c) {
    return c.score && std::any_of(choices.begin(), choices.end(), [&](const Choice& other) {
             return other.score && other.flops < c.flops && other.score->loss.value <= c.score->loss.value &&
                    bound(other) <= bound(c) && diverges_less(*other.score, *c.score);
           });
  };
  std::vector<Way> ways;
  for (const Choice& c : choices)
    if (!beaten(c)) ways.push_back(c.way);
  return ways;
}

Tiling make_tiling(const PolicyInput& in, std::string what, std::vector<Tile> tiles, int32_t chunks,
                   Way way) {
  Tiling t{std::move(what), std::move(tiles), chunks, std::move(way)};
  if (t.way.map != MapForm::kNone) t.map_side = in.map_side;
  if (t.way.map == MapForm::kLowRank) t.map_rank = in.map_rank;
  if (t.way.is_full_prefill()) {
    t.loss = t.loss_stderr = 0;
    if (in.confidence > 0) t.loss_bound = 0;
    if (in.quality && in.quality->has_divergences()) {
      t.divergence = t.divergence_stderr = 0;
      if (in.confidence > 0) t.divergence_bound = 0;
    }
    return t;
  }
  t.loss = kUnknown;
  const WayScore* score = in.quality ? in.quality->find(t.way) : nullptr;
  if (score == nullptr) return t;
  t.loss = score->loss.value;
  t.loss_stderr = score->loss.standard_error;
  // As measured it may be below 0 by rounding.
  auto nats = [](double value) { return value < 0 ? 0 : value; };
  t.divergence = nats(score->divergence.value);
  t.divergence_stderr = score->divergence.standard_error;
  if (in.confidence > 0) {
    t.loss_bound = in.quality->loss_bound(*score, in.confidence);
    t.divergence_bound = nats(in.quality->divergence_bound(*score, in.confidence));
  }
  return t;
}

std::vector<Tile> tiles_for_group(const LayerRange& group, int64_t layers, int32_t chunks,
                                  int32_t from_embeddings, int32_t to_top) {
  std::vector<Tile> tiles;
  const int32_t last_chunk = chunks - 1;
  auto add = [&](Mode mode, int64_t first, int64_t last, int32_t first_chunk, int32_t end_chunk, bool cut) {
    if (first > last || first_chunk > end_chunk) return;
    tiles.push_back(
        {mode, static_cast<int32_t>(first), static_cast<int32_t>(last), first_chunk, end_chunk, cut});
  };
  const int32_t rest = from_embeddings;  // the first chunk of the group's band
  if (from_embeddings > 0) add(Mode::kRecompute, 0, layers - 1, 0, from_embeddings - 1, false);
  if (group.empty()) {
    add(Mode::kLoad, 0, layers - 1, rest, last_chunk, false);
    return tiles;
  }
  add(Mode::kLoad, 0, group.first - 1, rest, last_chunk, false);
  add(Mode::kRecompute, group.first, group.last, rest, last_chunk, group.first > 0);
  if (to_top > 0) add(Mode::kRecompute, group.last + 1, layers - 1, rest, rest + to_top - 1, false);
  add(Mode::kLoad, group.last + 1, layers - 1, rest + to_top, last_chunk, false);
  return tiles;
}

}  // namespace ds
