#include "compiler/inputs/machine.h"

#include "compiler/inputs/schema.h"
#include "support/json.h"

namespace ds {

Result<MachineModel> MachineModel::read(const std::string& path) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_TRY(check_schema(root, "droidspeak.machine", 1));
  DS_TRY(check_keys(
      root, {"schema", "version", "name", "backend", "dtype", "compute", "link", "layer_ns", "head_ns"}));
  MachineModel m;
  DS_ASSIGN(m.name, root.string("name"));
  DS_ASSIGN(m.backend, root.string("backend"));
  DS_ASSIGN(std::string dtype, root.string("dtype"));
  if (dtype != "bf16" && dtype != "f32")
    return error(Code::kInvalidArgument, "{}: found '{}', expected \"bf16\" or \"f32\"", root.at("dtype"),
                 dtype);
  m.dtype = dtype == "bf16" ? DType::kBF16 : DType::kF32;

  constexpr double kMost = 1e21;  // a thousand times what any machine of today does
  DS_ASSIGN(JsonObject compute, root.object("compute"));
  DS_TRY(check_keys(compute,
                    {"matmul_flops_per_s", "attention_flops_per_s", "memory_bytes_per_s", "op_overhead_ns"}));
  DS_ASSIGN(m.matmul_flops_per_s, compute.number("matmul_flops_per_s", 1, kMost));
  // Measured points, where there are some, already hold attention and memory; these two only shape what lies
  // between.
  MachineModel usual = stand_in(m.dtype);
  DS_ASSIGN(m.attention_flops_per_s,
            compute.number_or("attention_flops_per_s", 1, kMost,
                              m.matmul_flops_per_s * usual.attention_flops_per_s / usual.matmul_flops_per_s));
  DS_ASSIGN(m.memory_bytes_per_s,
            compute.number_or("memory_bytes_per_s", 1, kMost, usual.memory_bytes_per_s));
  DS_ASSIGN(m.op_overhead_ns, compute.integer("op_overhead_ns", 0, 1'000'000'000));
  DS_ASSIGN(JsonObject link, root.object("link"));
  DS_TRY(check_keys(link, {"rtt_ns"}));
  DS_ASSIGN(m.link_rtt_ns, link.integer("rtt_ns", 0, 3'600'000'000'000));
  if (root.has("head_ns")) {
    DS_ASSIGN(m.head_ns, root.integer("head_ns", 1, 3'600'000'000'000));
  }
  if (root.has("layer_ns")) {
    DS_ASSIGN(const nlohmann::json* points, root.array("layer_ns"));
    for (size_t i = 0; i < points->size(); ++i) {
      DS_ASSIGN(JsonObject o, JsonObject::make((*points)[i], fmt::format("{}: layer_ns[{}]", path, i)));
      DS_TRY(check_keys(o, {"rows", "query_rows", "position", "ns"}));
      LayerPoint p;
      constexpr int64_t kRows = int64_t{1} << 32;
      DS_ASSIGN(p.rows, o.integer("rows", 1, kRows));
      DS_ASSIGN(p.query_rows, o.integer("query_rows", 0, p.rows));
      DS_ASSIGN(p.position, o.integer("position", 0, kRows));
      DS_ASSIGN(p.ns, o.integer("ns", 1, 3'600'000'000'000));
      for (const LayerPoint& q : m.layer_points) {
        if (q.rows == p.rows && q.query_rows == p.query_rows && q.position == p.position)
          return error(Code::kInvalidArgument,
                       "{}: rows {}, query_rows {}, position {} was measured before; expected one entry each",
                       o.where(), p.rows, p.query_rows, p.position);
      }
      m.layer_points.push_back(p);
    }
  }
  return m;
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
