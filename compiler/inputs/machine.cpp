#include "compiler/inputs/machine.h"

#include <algorithm>
#include <array>
#include <set>
#include <tuple>

#include "support/json.h"
#include "support/schema.h"

namespace ds {
namespace {

constexpr double kMost = 1e21;  // a thousand times what any machine of today does
constexpr int64_t kSecond = 1'000'000'000, kHour = 3600 * kSecond;
constexpr int64_t kRows = int64_t{1} << 32;
constexpr size_t kMostPoints = 4096;

template <typename S>
auto sizes_of(S& s) {
  return std::array{std::pair{"d_model", &s.d_model},   std::pair{"ff", &s.ff},
                    std::pair{"heads", &s.heads},       std::pair{"kv_heads", &s.kv_heads},
                    std::pair{"head_dim", &s.head_dim}, std::pair{"vocab", &s.vocab}};
}

Result<Shape> read_shape(const JsonObject& root) {
  DS_ASSIGN(JsonObject o, root.object("shape"));
  DS_TRY(check_keys(o, {"family", "layers", "d_model", "ff", "heads", "kv_heads", "head_dim", "vocab"}));
  Shape shape;
  DS_ASSIGN(shape.family, o.string("family"));
  DS_ASSIGN(shape.layers, o.integer("layers", 1, 1 << 16));
  for (auto& [key, value] : sizes_of(shape)) {
    DS_ASSIGN(*value, o.integer(key, 1, 1 << 28));
  }
  return shape;
}

Status read_points(const JsonObject& root, const std::string& path, bool with_spread, MachineModel& m) {
  DS_ASSIGN(const nlohmann::json* points, root.array("layer_ns"));
  if (points->size() > kMostPoints) {
    return error(Code::kInvalidArgument, "{}: {} points, expected at most {}", root.at("layer_ns"),
                 points->size(), kMostPoints);
  }
  std::set<std::tuple<int64_t, int64_t, int64_t>> seen;
  for (size_t i = 0; i < points->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*points)[i], fmt::format("{}: layer_ns[{}]", path, i)));
    LayerPoint p;
    DS_ASSIGN(p.rows, o.integer("rows", 1, kRows));
    DS_ASSIGN(p.query_rows, o.integer("query_rows", 0, p.rows));
    DS_ASSIGN(p.position, o.integer("position", 0, kRows));
    DS_ASSIGN(p.ns, o.integer("ns", 1, kHour));
    p.min_ns = p.max_ns = p.ns;
    if (with_spread) {
      DS_TRY(
          check_keys(o, {"rows", "query_rows", "position", "ns", "min_ns", "max_ns", "passes", "probe_ns"}));
      DS_ASSIGN(p.min_ns, o.integer("min_ns", 1, p.ns));
      DS_ASSIGN(p.max_ns, o.integer("max_ns", p.ns, kHour));
      DS_TRY(o.integer("passes", 1, INT32_MAX));
      DS_TRY(o.integer("probe_ns", 1, kHour));
    } else {
      DS_TRY(check_keys(o, {"rows", "query_rows", "position", "ns"}));
    }
    if (!seen.insert({p.rows, p.query_rows, p.position}).second) {
      return error(Code::kInvalidArgument,
                   "{}: rows {}, query_rows {}, position {} was measured before; expected one entry each",
                   o.where(), p.rows, p.query_rows, p.position);
    }
    m.layer_points.push_back(p);
  }
  return ok_status();
}

Status read_v1(const JsonObject& root, const std::string& path, MachineModel& m) {
  DS_TRY(check_keys(
      root, {"schema", "version", "name", "backend", "dtype", "compute", "link", "layer_ns", "head_ns"}));
  DS_ASSIGN(JsonObject compute, root.object("compute"));
  DS_TRY(check_keys(compute,
                    {"matmul_flops_per_s", "attention_flops_per_s", "memory_bytes_per_s", "op_overhead_ns"}));
  DS_ASSIGN(m.matmul_flops_per_s, compute.number("matmul_flops_per_s", 1, kMost));
  // Measured points, where there are some, already hold attention and memory; these two only shape what lies
  // between.
  MachineModel usual = MachineModel::stand_in(m.dtype);
  DS_ASSIGN(m.attention_flops_per_s,
            compute.number_or("attention_flops_per_s", 1, kMost,
                              m.matmul_flops_per_s * usual.attention_flops_per_s / usual.matmul_flops_per_s));
  DS_ASSIGN(m.memory_bytes_per_s,
            compute.number_or("memory_bytes_per_s", 1, kMost, usual.memory_bytes_per_s));
  DS_ASSIGN(m.op_overhead_ns, compute.integer("op_overhead_ns", 0, kSecond));
  DS_ASSIGN(JsonObject link, root.object("link"));
  DS_TRY(check_keys(link, {"rtt_ns"}));
  DS_ASSIGN(m.link_rtt_ns, link.integer("rtt_ns", 0, kHour));
  if (root.has("head_ns")) {
    DS_ASSIGN(m.head_ns, root.integer("head_ns", 1, kHour));
  }
  return root.has("layer_ns") ? read_points(root, path, false, m) : ok_status();
}

Status read_align(const JsonObject& root, const std::string& path, MachineModel& m) {
  if (!root.has("align")) return ok_status();
  DS_ASSIGN(const nlohmann::json* list, root.array("align"));
  if (list->size() > kMostPoints)
    return error(Code::kInvalidArgument, "{}: {} maps, expected at most {}", root.at("align"), list->size(),
                 kMostPoints);
  for (size_t i = 0; i < list->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*list)[i], fmt::format("{}: align[{}]", path, i)));
    DS_TRY(check_keys(o, {"form", "rank", "ns", "row_ns"}));
    DS_ASSIGN(std::string form, o.string("form"));
    AlignPoint p;
    DS_ASSIGN(p.form, parse_map_form(form, o.at("form")));
    const bool low_rank = p.form == MapForm::kLowRank;
    DS_ASSIGN(p.rank, o.integer("rank", low_rank ? 1 : 0, low_rank ? m.shape->d_model : 0));
    DS_ASSIGN(p.ns, o.integer("ns", 1, kHour));
    DS_ASSIGN(p.row_ns, o.number("row_ns", 0, 1e12));
    for (const AlignPoint& before : m.align)
      if (before.form == p.form && before.rank == p.rank)
        return error(Code::kInvalidArgument,
                     "{}: form '{}', rank {} was measured before; expected one entry each", o.where(), form,
                     p.rank);
    m.align.push_back(p);
  }
  return ok_status();
}

/// Versions from 2 on.
Status read_v2(const JsonObject& root, const std::string& path, int64_t version, MachineModel& m) {
  DS_TRY(check_keys(root, {"schema", "version", "name", "backend", "dtype", "machine", "shape", "compute",
                           "link", "contention", "embed", "head", "layer_ns", "align"}));
  if (root.has("align") && version < 3)
    return error(Code::kInvalidArgument, "{}: came with version 3, but the file has version 2",
                 root.at("align"));
  DS_TRY(root.object("machine"));
  DS_ASSIGN(m.shape, read_shape(root));
  DS_ASSIGN(JsonObject compute, root.object("compute"));
  DS_TRY(check_keys(compute, {"matmul_flops_per_s", "attention_flops_per_s", "memory_bytes_per_s",
                              "op_overhead_ns", "wakeup_ns"}));
  DS_ASSIGN(m.matmul_flops_per_s, compute.number("matmul_flops_per_s", 1, kMost));
  DS_ASSIGN(m.attention_flops_per_s, compute.number("attention_flops_per_s", 1, kMost));
  DS_ASSIGN(m.memory_bytes_per_s, compute.number("memory_bytes_per_s", 1, kMost));
  DS_ASSIGN(m.op_overhead_ns, compute.integer("op_overhead_ns", 0, kSecond));
  DS_ASSIGN(m.wakeup_ns, compute.integer("wakeup_ns", 0, kSecond));
  DS_ASSIGN(JsonObject link, root.object("link"));
  DS_TRY(check_keys(link, {"rtt_ns", "lookup_ns", "read_latency_ns", "read_bytes_per_s", "copy_bytes_per_s",
                           "staged_block_bytes"}));
  DS_ASSIGN(m.link_rtt_ns, link.integer("rtt_ns", 0, kHour));
  DS_ASSIGN(m.lookup_ns, link.integer("lookup_ns", 0, kHour));
  DS_ASSIGN(m.read_latency_ns, link.integer("read_latency_ns", 0, kHour));
  DS_ASSIGN(m.read_bytes_per_s, link.number("read_bytes_per_s", 1, kMost));
  DS_ASSIGN(m.copy_bytes_per_s, link.number("copy_bytes_per_s", 1, kMost));
  if (link.has("staged_block_bytes")) {
    DS_ASSIGN(m.staged_block_bytes, link.integer("staged_block_bytes", 1, INT64_MAX / 2));
  }
  DS_ASSIGN(JsonObject contention, root.object("contention"));
  if (version < 4) {
    DS_TRY(check_keys(contention, {"kernel_slowdown_permille", "transfer_slowdown_permille"}));
  } else {
    DS_TRY(check_keys(contention,
                      {"kernel_slowdown_permille", "transfer_slowdown_permille", "kernel_ns_per_transfer"}));
    DS_ASSIGN(m.kernel_ns_per_transfer, contention.integer("kernel_ns_per_transfer", 0, kSecond));
  }
  DS_ASSIGN(m.kernel_slowdown_permille, contention.integer("kernel_slowdown_permille", 0, 1'000'000));
  DS_ASSIGN(m.transfer_slowdown_permille, contention.integer("transfer_slowdown_permille", 0, 1'000'000));
  DS_ASSIGN(JsonObject embed, root.object("embed"));
  DS_TRY(check_keys(embed, {"ns", "row_ns"}));
  DS_ASSIGN(m.embed_ns, embed.integer("ns", 1, kHour));
  DS_ASSIGN(m.embed_row_ns, embed.number("row_ns", 0, 1e12));
  DS_ASSIGN(JsonObject head, root.object("head"));
  DS_TRY(check_keys(head, {"ns"}));
  DS_ASSIGN(m.head_ns, head.integer("ns", 1, kHour));
  if (version >= 3) DS_TRY(read_align(root, path, m));
  return read_points(root, path, true, m);
}

}  // namespace

Result<MachineModel> MachineModel::read(const std::string& path) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  constexpr int64_t kVersion = 4;
  DS_TRY(check_schema(root, "droidspeak.machine", kVersion));
  DS_ASSIGN(int64_t version, root.integer("version", 1, kVersion));
  MachineModel m;
  DS_ASSIGN(m.name, root.string("name"));
  DS_ASSIGN(m.backend, root.string("backend"));
  DS_ASSIGN(std::string dtype, root.string("dtype"));
  if (dtype != "bf16" && dtype != "f32")
    return error(Code::kInvalidArgument, "{}: found '{}', expected \"bf16\" or \"f32\"", root.at("dtype"),
                 dtype);
  m.dtype = dtype == "bf16" ? DType::kBF16 : DType::kF32;
  DS_TRY(version == 1 ? read_v1(root, path, m) : read_v2(root, path, version, m));
  return m;
}

Status MachineModel::check_shape(const std::string& path, const Shape& expected) const {
  if (!shape) return ok_status();
  auto found = sizes_of(*shape), wanted = sizes_of(expected);
  std::string differences;
  for (size_t i = 0; i < found.size(); ++i) {
    if (*found[i].second == *wanted[i].second) continue;
    differences += fmt::format("{}{}: found {}, expected {}", differences.empty() ? "" : "; ", found[i].first,
                               *found[i].second, *wanted[i].second);
  }
  if (differences.empty()) return ok_status();
  return error(Code::kMismatch,
               "{}: shape: layers of another model were measured ({}); run ds-calibrate for this one", path,
               differences);
}

Conditions MachineModel::conditions(int64_t rate) const {
  Conditions c{.kernels_ns = lookup_ns, .loads_ns = lookup_ns + link_rtt_ns};
  c.load_handover_ns = c.kernel_handover_ns = wakeup_ns;
  if (staged_block_bytes > 0)
    c.load_handover_ns += std::llround(static_cast<double>(staged_block_bytes) / copy_bytes_per_s * 1e9);
  if (read_bytes_per_s <= 0) return c;
  // Of the time in which a load runs, the share in which the store is read: the rest of it waits for the
  // link.
  const double share = std::min(1.0, static_cast<double>(rate) / read_bytes_per_s);
  c.kernel_ns_per_load = kernel_ns_per_transfer;
  c.kernel_slow_permille = std::llround(share * static_cast<double>(kernel_slowdown_permille));
  // A store that is slowed down matters where it becomes the slower of the two.
  const double slowed = share * static_cast<double>(1000 + transfer_slowdown_permille) - 1000;
  c.load_slow_permille = std::max<int64_t>(0, std::llround(slowed));
  return c;
}

MachineModel MachineModel::stand_in(DType dtype) {
  double scale = dtype == DType::kBF16 ? 1.0 : 0.5;
  return {.name = "stand-in: 2 cores with bf16 matrix units",
          .backend = "cpu",
          .dtype = dtype,
          .matmul_flops_per_s = 400e9 * scale,
          .attention_flops_per_s = 300e9 * scale,
          .memory_bytes_per_s = 9e9,
          .op_overhead_ns = 20'000,
          .link_rtt_ns = 0};
}

}  // namespace ds
