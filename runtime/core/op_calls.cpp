#include "runtime/core/op_calls.h"

#include <algorithm>

#include "plans/traits.h"

namespace ds {

int64_t hidden_index(const Variant& variant, int32_t buffer) {
  return std::count_if(variant.buffers.begin(), variant.buffers.begin() + buffer,
                       [](const Buffer& b) { return b.kind == BufferKind::kHidden; });
}

Result<DeviceMaps> load_maps(DeviceModel& model, const Plan& plan, const MapSet& maps) {
  DeviceMaps loaded;
  for (const Variant& v : plan.variants) {
    if (!v.aligns()) continue;
    for (const Op& op : v.ops) {
      if (op.kind != OpKind::kAlign) continue;
      std::unique_ptr<DeviceMap>& map = loaded[{op.layer, v.map_form}];
      if (map) continue;
      DS_ASSIGN(map, model.load_map(*maps.find(op.layer, v.map_form)));
    }
  }
  return loaded;
}

OpCalls::OpCalls(DeviceModel& model, const Variant& variant, const DeviceMaps* maps, const OpMemory& memory,
                 int64_t n, int64_t m)
    : model_(&model), variant_(&variant), maps_(maps), memory_(memory), n_(n), m_(m) {
  const Shape shape = model.config().shape();
  const int64_t element = dtype_size(model.dtype());
  hidden_row_ = shape.e_row() * element;
  kv_row_ = shape.kv_row() * element;
}

std::byte* OpCalls::hidden(const Op& op, int64_t row) const {
  return memory_.hidden[static_cast<size_t>(hidden_index(*variant_, op.buffer))] + row * hidden_row_;
}

int64_t OpCalls::selected() const {
  return variant_->select_share > 0 ? selected_rows(variant_->select_share, n_) : 0;
}

OpCalls::Transfer OpCalls::transfer(const Op& op) const {
  const OpRows at = op_rows(op, variant_->chunks, n_, m_, variant_->select_share);
  std::byte* to = traits_of(op).buffer == BufferKind::kHidden
                      ? hidden(op, at.first)
                      : memory_.caches[static_cast<size_t>(op.layer)] + at.first * kv_row_;
  return {op.source, op.payload, op.layer, at.first, at.rows, to};
}

void OpCalls::kernel(const Op& op, CommandStream& stream) const {
  const OpRows at = op_rows(op, variant_->chunks, n_, m_, variant_->select_share);
  // Buffers without context rows begin with the suffix.
  const bool context = variant_->buffers[static_cast<size_t>(op.buffer)].with_context;
  kernel(op, {at, op.rows == Rows::kSuffix ? (context ? n_ : 0) : at.first}, stream);
}

void OpCalls::kernel(const Op& op, const Piece& piece, CommandStream& stream) const {
  const auto [first, rows, queries] = piece.at;
  if (rows == 0) return;
  std::byte* cache = op.layer < 0 ? nullptr : memory_.caches[static_cast<size_t>(op.layer)];
  Workspace& workspace = *memory_.workspace;
  switch (op.kind) {
    case OpKind::kTransfer:
      break;  // transfer() says what the caller is to read
    case OpKind::kEmbed:
      model_->embed(stream, memory_.ids + first, rows, hidden(op, piece.row));
      break;
    case OpKind::kSelect: {
      const int64_t count = selected();
      model_->select(stream, workspace, {op.layer, hidden(op, 0), cache, rows, count, memory_.positions});
      if (memory_.selected == nullptr) break;
      stream.copy(reinterpret_cast<std::byte*>(memory_.selected),
                  reinterpret_cast<const std::byte*>(memory_.positions),
                  count * static_cast<int64_t>(sizeof(int32_t)));
      break;
    }
    case OpKind::kRecompute:
      if (op.rows == Rows::kSelected) {
        model_->layer_selected(stream, workspace,
                               {op.layer, hidden(op, 0), cache, memory_.positions, rows, queries > 0});
        break;
      }
      [[fallthrough]];
    case OpKind::kSuffix:
    case OpKind::kPrefill:
      if (memory_.prefix_rows == 0) {
        model_->layer(stream, workspace, {op.layer, hidden(op, piece.row), cache, first, rows, queries});
        break;
      }
      *piece.sequence = {
          cache, first, rows, queries, memory_.prefix[static_cast<size_t>(op.layer)], memory_.prefix_rows};
      model_->layer_batch(stream, workspace, op.layer, hidden(op, piece.row), {piece.sequence, 1});
      break;
    case OpKind::kAlign:
      if (maps_ == nullptr) break;
      model_->align(stream, workspace, *maps_->at({op.layer, variant_->map_form}), hidden(op, piece.row),
                    rows);
      break;
    case OpKind::kHead:
      model_->head(stream, workspace,
                   {hidden(op, piece.row + rows - 1), memory_.logits, memory_.choice, memory_.next_id});
      break;
  }
}

}  // namespace ds
