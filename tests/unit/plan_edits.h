// Finds, removes and adds operations of plans that tests break.
#pragma once

#include <gtest/gtest.h>

#include <span>
#include <string>

#include "plans/plan_file.h"

namespace ds::testing {

inline std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

struct Wanted {
  Wanted(OpKind op_kind, Payload what = Payload::kNone) : kind(op_kind), payload(what) {}
  OpKind kind;
  Payload payload;
};
inline const Wanted kTransferE(OpKind::kTransfer, Payload::kE), kTransferKv(OpKind::kTransfer, Payload::kKv);

inline int32_t find_op(const Variant& v, Wanted wanted, int32_t layer = -1, int32_t chunk = -1) {
  for (size_t i = 0; i < v.ops.size(); ++i) {
    if (v.ops[i].kind == wanted.kind && v.ops[i].payload == wanted.payload &&
        (layer < 0 || v.ops[i].layer == layer) && (chunk < 0 || v.ops[i].chunk == chunk)) {
      return static_cast<int32_t>(i);
    }
  }
  ADD_FAILURE() << "no such op";
  return 0;
}
inline Op& op_of(Variant& v, Wanted wanted, int32_t layer = -1, int32_t chunk = -1) {
  return v.ops[static_cast<size_t>(find_op(v, wanted, layer, chunk))];
}

/// Removes op i, its number in the waits of others, and keeps all else.
inline void remove_op(Variant& v, int32_t i) {
  v.ops.erase(v.ops.begin() + i);
  v.makespan_ns = 0;
  for (Op& op : v.ops) {
    std::erase(op.waits, i);
    for (int32_t& w : op.waits) w -= w > i ? 1 : 0;
    v.makespan_ns = std::max(v.makespan_ns, op.start_ns + op.duration_ns);
  }
  v.lower_bound_ns = 0;
}

/// Places an op at index `at`, at the time of the op that is there, for 0 ns.
inline void insert_op(Variant& v, int32_t at, Op op) {
  op.start_ns = v.ops[static_cast<size_t>(at)].start_ns;
  op.duration_ns = 0;
  for (Op& o : v.ops) {
    for (int32_t& w : o.waits) w += w >= at ? 1 : 0;
  }
  v.ops.insert(v.ops.begin() + at, std::move(op));
}

/// Of bytes that are no plan.
inline Status parse_failure(const std::string& bytes) {
  Result<Plan> plan = parse_plan(bytes_of(bytes), "x.dsplan");
  EXPECT_FALSE(plan.ok());
  return plan.status();
}

}  // namespace ds::testing
