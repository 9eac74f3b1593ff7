#include "plans/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

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
      if (op.kind == OpKind::kTransferE) layers.insert(op.layer);
    }
  }
  return {layers.begin(), layers.end()};
}

std::vector<Cut> published_cuts(const Plan& plan) {
  std::set<Cut> cuts;
  for (const Variant& variant : plan.variants) {
    for (const Op& op : variant.ops)
      if (op.kind == OpKind::kTransferE) cuts.insert({op.layer, variant.sent_form()});
  }
  return {cuts.begin(), cuts.end()};
}

const Variant* select_variant(const Plan& plan, int64_t n, int64_t rate, int64_t waiting) {
  auto in = [](int64_t value, int64_t low, int64_t high) {
    return value >= low && (value < high || high == kNoLimit);
  };
  for (const Variant& v : plan.variants) {
    if (in(n, v.tokens_min, v.tokens_max) && in(rate, v.rate_min, v.rate_max) &&
        in(waiting, v.load_min, v.load_max)) {
      return &v;
    }
  }
  return nullptr;
}

std::string_view op_kind_name(OpKind kind) {
  switch (kind) {
    case OpKind::kTransferE:
      return "transfer e";
    case OpKind::kTransferKv:
      return "transfer kv";
    case OpKind::kEmbed:
      return "embed";
    case OpKind::kRecompute:
      return "recompute";
    case OpKind::kSuffix:
      return "suffix";
    case OpKind::kPrefill:
      return "prefill";
    case OpKind::kHead:
      return "head";
    case OpKind::kSelect:
      return "select";
    case OpKind::kAlign:
      return "align";
  }
  return "unknown";
}

std::string_view stream_kind_name(StreamKind k) {
  switch (k) {
    case StreamKind::kLink:
      return "link";
    case StreamKind::kCopy:
      return "copy";
    case StreamKind::kCompute:
      return "compute";
  }
  return "unknown";
}

std::string_view mode_name(Mode mode) {
  switch (mode) {
    case Mode::kLoad:
      return "load";
    case Mode::kRecompute:
      return "recompute";
    case Mode::kRestore:
      return "restore";
    case Mode::kSelect:
      return "select";
  }
  return "unknown";
}

std::string op_label(const Op& op, int32_t chunks) {
  std::string label;
  switch (op.kind) {
    case OpKind::kTransferE:
      label = fmt::format("e({})", op.layer);
      break;
    case OpKind::kTransferKv:
      label = fmt::format("kv({})", op.layer);
      break;
    case OpKind::kRecompute:
    case OpKind::kSuffix:
    case OpKind::kPrefill:
    case OpKind::kSelect:
    case OpKind::kAlign:
      label = fmt::format("{} {}", op_kind_name(op.kind), op.layer);
      break;
    default:
      label = op_kind_name(op.kind);
  }
  // With several chunks ".2" tells the chunk, ".2-5" the chunks: "recompute 4.2".
  if (op.rows == Rows::kChunk && op.chunk >= 0 && chunks > 1) {
    label += fmt::format(".{}", op.chunk);
    if (op.last_chunk > op.chunk) label += fmt::format("-{}", op.last_chunk);
  }
  return label;
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
