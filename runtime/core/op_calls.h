// One op of a variant as calls to a backend: which rows, at which addresses, which kernel. Nothing is owned
// or decided here: whose memory it is, on which stream and when an op runs is for the caller to say, be it a
// session with one request or an engine with many.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "plans/plan.h"
#include "runtime/backends/backend.h"
#include "runtime/core/landing.h"

namespace ds {

/// The maps that align ops apply.
using DeviceMaps = std::map<Cut, std::unique_ptr<DeviceMap>>;
/// Those of the plan's variants, of maps that check_maps() has found all right. Before workspaces are made,
/// which then have room for them.
Result<DeviceMaps> load_maps(DeviceModel& model, const Plan& plan, const MapSet& maps);

/// Which of a variant's hidden buffers `buffer` is, counting from 0.
int64_t hidden_index(const Variant& variant, int32_t buffer);

/// The memory of one request. All of it lives until the streams have run.
struct OpMemory {
  std::span<std::byte* const> caches = {};  // by layer, as in LayerCall: n + m rows
  // What many requests begin with, where it lies apart: by layer, only read. Row 0 of `caches` is then
  // position `prefix_rows`, and nothing is computed of what is before.
  std::span<const std::byte* const> prefix = {};
  int64_t prefix_rows = 0;
  std::span<std::byte* const> hidden = {};  // by hidden_index(): the rows that the variant's buffer has
  Workspace* workspace = nullptr;           // of the compute stream
  const int32_t* ids = nullptr;             // host memory: context, then suffix
  int32_t* positions = nullptr;             // device memory, n: what a select op chooses; null: none does
  int32_t* selected = nullptr;  // host memory, n: where these positions are copied to; null: nowhere
  float* logits = nullptr;      // of the first token, as in HeadCall
  int32_t* next_id = nullptr;
  Choice choice = {};
};

/// Of one variant, for one request of n context and m suffix tokens.
class OpCalls {
 public:
  /// `maps` has all that the variant's align ops apply; null: they do nothing (plain cuts).
  OpCalls(DeviceModel& model, const Variant& variant, const DeviceMaps* maps, const OpMemory& memory,
          int64_t n, int64_t m);

  const Variant& variant() const { return *variant_; }

  /// Rows of what is sent, by their positions in the context, and where the first of them lands.
  struct Transfer {
    int32_t source = 0;  // index into the plan's
    Payload payload = Payload::kKv;
    int32_t layer = 0;
    int64_t first = 0, rows = 0;
    std::byte* to = nullptr;
  };
  /// Of an op that is_transfer().
  Transfer transfer(const Op& op) const;

  /// Enqueues any other op: one kernel, and a copy where it selects; nothing where it has no rows.
  void kernel(const Op& op, CommandStream& stream) const;

  /// Some of an op's rows, and no op's that selects: `row` is where the first of them lies in its hidden
  /// buffer. `sequence` lives until the stream has run.
  struct Piece {
    OpRows at;
    int64_t row = 0;
    SequenceRows* sequence = nullptr;  // storage; needed where there is a prefix
  };
  void kernel(const Op& op, const Piece& piece, CommandStream& stream) const;

  /// How many tokens the variant's select op chooses.
  int64_t selected() const;

 private:
  std::byte* hidden(const Op& op, int64_t row) const;

  DeviceModel* model_;
  const Variant* variant_;
  const DeviceMaps* maps_;
  OpMemory memory_;
  int64_t n_, m_;
  int64_t hidden_row_, kv_row_;  // bytes
};

}  // namespace ds
