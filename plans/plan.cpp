#include "plans/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "plans/traits.h"

namespace ds {

int64_t recomputed_layers(const Variant& variant) {
  std::set<int32_t> layers;
  for (const Tile& tile : variant.tiles) {
    if (tile.mode != Mode::kRecompute) continue;
    for (int32_t l = tile.first_layer; l <= tile.last_layer; ++l) layers.insert(l);
  }
  return static_cast<int64_t>(layers.size());
}

std::vector<int32_t> cut_layers(const Plan& plan) {
  std::set<int32_t> layers;
  for (const Variant& variant : plan.variants) {
    for (const Op& op : variant.ops) {
      if (op.payload == Payload::kE) layers.insert(op.layer);
    }
  }
  return {layers.begin(), layers.end()};
}

std::vector<Cut> published_cuts(const Plan& plan) {
  std::set<Cut> cuts;
  for (const Variant& variant : plan.variants) {
    for (const Op& op : variant.ops)
      if (op.payload == Payload::kE && op.source == 0) cuts.insert({op.layer, variant.sent_form()});
  }
  return {cuts.begin(), cuts.end()};
}

const Variant* select_variant(const Plan& plan, int64_t n, int64_t rate, int64_t waiting, bool live) {
  auto in = [](int64_t value, int64_t low, int64_t high) {
    return value >= low && (value < high || high == kNoLimit);
  };
  for (const Variant& v : plan.variants) {
    if (v.live == live && in(n, v.tokens_min, v.tokens_max) && in(rate, v.rate_min, v.rate_max) &&
        in(waiting, v.load_min, v.load_max)) {
      return &v;
    }
  }
  return live ? select_variant(plan, n, rate, waiting) : nullptr;
}

std::vector<Source> sources_of(const Plan& plan) {
  if (!plan.sources.empty()) return plan.sources;
  return {{SourceRule::kPrefix, plan.sender, plan.shape}};
}

namespace {

// By number.
constexpr std::string_view kStreamKindNames[] = {"link", "copy", "compute"};
constexpr std::string_view kBufferKindNames[] = {"kv", "hidden"};
constexpr std::string_view kRowsNames[] = {"chunk", "suffix", "all", "selected"};
constexpr std::string_view kQueriesNames[] = {"none", "all", "suffix", "last"};
constexpr std::string_view kSourceRuleNames[] = {"prefix", "segment"};
static_assert(std::size(kSourceRuleNames) == kSourceRules);

template <size_t n, typename Enum>
std::string_view name_in(const std::string_view (&names)[n], Enum value) {
  return static_cast<size_t>(value) < n ? names[static_cast<size_t>(value)] : "unknown";
}

}  // namespace

std::string_view stream_kind_name(StreamKind k) { return name_in(kStreamKindNames, k); }
std::string_view buffer_kind_name(BufferKind kind) { return name_in(kBufferKindNames, kind); }
std::string_view rows_name(Rows rows) { return name_in(kRowsNames, rows); }
std::string_view queries_name(Queries queries) { return name_in(kQueriesNames, queries); }
std::string_view source_rule_name(SourceRule rule) { return name_in(kSourceRuleNames, rule); }

std::string_view op_name(const Op& op) { return has_traits(op) ? traits_of(op).name : "unknown"; }

std::string_view mode_name(Mode mode) {
  return static_cast<size_t>(mode) < kModes ? traits_of(mode).name : "unknown";
}

std::string op_label(const Op& op, int32_t chunks) {
  std::string label(op_name(op));
  if (has_traits(op)) {
    const OpTraits& traits = traits_of(op);
    if (is_transfer(op))
      label = fmt::format("{}({})", traits.short_name, op.layer);
    else if (traits.layered)
      label += fmt::format(" {}", op.layer);
  }
  // With several chunks ".2" tells the chunk, ".2-5" the chunks: "recompute 4.2".
  if (op.rows == Rows::kChunk && op.chunk >= 0 && chunks > 1) {
    label += fmt::format(".{}", op.chunk);
    if (op.last_chunk > op.chunk) label += fmt::format("-{}", op.last_chunk);
  }
  return label;
}

bool Tile::sends_e(int32_t l) const {
  switch (traits_of(mode).sends_e) {
    case ModeTraits::SendsE::kNever:
      return false;
    case ModeTraits::SendsE::kAtCut:
      return cut && l == first_layer;
    case ModeTraits::SendsE::kAboveEmbeddings:
      return l > 0;
  }
  return false;
}

int64_t selected_rows(double share, int64_t n) {
  constexpr double kRounding = 1e-6;
  auto rows = static_cast<int64_t>(std::ceil(share * static_cast<double>(n) - kRounding));
  return std::clamp<int64_t>(rows, std::min<int64_t>(n, 1), n);
}

OpRows op_rows(const Op& op, int32_t chunks, int64_t n, int64_t m, double select_share) {
  OpRows r;
  switch (op.rows) {
    case Rows::kChunk:
      r.first = chunk_begin(n, chunks, op.chunk);
      r.rows = chunk_begin(n, chunks, op.chunk_end()) - r.first;
      break;
    case Rows::kSuffix:
      r.first = n;
      r.rows = m;
      break;
    case Rows::kAll:
      r.rows = n + m;
      break;
    case Rows::kSelected:
      r.rows = selected_rows(select_share, n);
      r.first = n - r.rows;
      break;
  }
  switch (op.queries) {
    case Queries::kNone:
      break;
    case Queries::kAll:
      r.queries = r.rows;
      break;
    case Queries::kSuffix:
      r.queries = std::min(m, r.rows);
      break;
    case Queries::kLast:
      r.queries = std::min<int64_t>(1, r.rows);
      break;
  }
  return r;
}

}  // namespace ds
