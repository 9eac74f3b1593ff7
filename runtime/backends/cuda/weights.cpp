#include "runtime/backends/cuda/weights_internal.h"

#include <omp.h>

#include <algorithm>
#include <cmath>

#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/host/tensors_internal.h"
#include "support/units.h"

namespace ds::cuda {
namespace {

constexpr int64_t kPiece = int64_t{32} << 20;  // of a tensor, uploaded at a time
constexpr int kPieces = 2;                     // one is converted while the other is on its way

/// Pieces of host memory that go to the device in order while the next ones are made.
class Uploader {
 public:
  static Result<std::unique_ptr<Uploader>> make(std::shared_ptr<Device> device) {
    auto made = std::make_unique<Uploader>();
    DS_TRY(check(cudaStreamCreateWithFlags(&made->stream_, cudaStreamNonBlocking),
                 "cudaStreamCreateWithFlags of the weights' upload"));
    for (Slot& slot : made->slots_) {
      DS_ASSIGN(slot.memory, PinnedBuffer::make(device, kPiece, "staging of weights"));
      DS_TRY(check(cudaEventCreateWithFlags(&slot.free, cudaEventDisableTiming),
                   "cudaEventCreateWithFlags of the weights' upload"));
    }
    return made;
  }
  ~Uploader() {
    if (stream_ != nullptr) (void)cudaStreamSynchronize(stream_);
    for (Slot& slot : slots_)
      if (slot.free != nullptr) (void)cudaEventDestroy(slot.free);
    if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
  }

  /// Where the next piece is to be made: kPiece bytes.
  Result<std::byte*> next() {
    DS_TRY(check(cudaEventSynchronize(slots_[slot_].free), "cudaEventSynchronize of the weights' upload"));
    return slots_[slot_].memory.data();
  }
  Status send(std::byte* to, int64_t bytes) {
    Slot& slot = slots_[slot_];
    DS_TRY(check(
        cudaMemcpyAsync(to, slot.memory.data(), static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
        "cudaMemcpyAsync of {} of weights", format_bytes(bytes)));
    DS_TRY(check(cudaEventRecord(slot.free, stream_), "cudaEventRecord of the weights' upload"));
    slot_ = (slot_ + 1) % kPieces;
    return ok_status();
  }
  Status finish() {
    return check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize of the weights' upload");
  }

 private:
  struct Slot {
    PinnedBuffer memory;
    cudaEvent_t free = nullptr;
  };
  cudaStream_t stream_ = nullptr;
  Slot slots_[kPieces];
  int slot_ = 0;
};

/// On all cores: a copy alone is bound by one core's memory bandwidth.
void convert_all(const TensorView& from, int64_t first, int64_t count, DType to, std::byte* out) {
  constexpr int64_t kRun = int64_t{1} << 18;
#pragma omp parallel for schedule(static) if (count > kRun)
  for (int64_t at = 0; at < count; at += kRun)
    host::convert(from, first + at, std::min(kRun, count - at), to, out + at * dtype_size(to));
}

}  // namespace

int64_t Weights::lay_out(const ModelConfig& c, DType dtype) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  int64_t end = 0;
  // Parts that are packed follow each other without a gap; every other array begins aligned.
  auto add = [&](std::string name, int64_t rows, int64_t columns, DType type, bool packed = false) {
    if (!packed) end = aligned(end);
    places_.push_back({std::move(name), rows, columns, end, type});
    end += places_.back().bytes();
  };
  add("model.embed_tokens.weight", c.vocab, c.d_model, dtype);
  for (int64_t l = 0; l < c.layers; ++l) {
    const std::string prefix = fmt::format("model.layers.{}.", l), attention = prefix + "self_attn.";
    add(attention + "q_proj.weight", q, c.d_model, dtype);
    add(attention + "k_proj.weight", kv, c.d_model, dtype, true);
    add(attention + "v_proj.weight", kv, c.d_model, dtype, true);
    add(attention + "o_proj.weight", c.d_model, q, dtype);
    add(prefix + "mlp.gate_proj.weight", c.ff, c.d_model, dtype);
    add(prefix + "mlp.up_proj.weight", c.ff, c.d_model, dtype, true);
    add(prefix + "mlp.down_proj.weight", c.d_model, c.ff, dtype);
    add(prefix + "input_layernorm.weight", c.d_model, 0, DType::kF32);
    add(prefix + "post_attention_layernorm.weight", c.d_model, 0, DType::kF32);
    if (c.qkv_bias) {
      add(attention + "q_proj.bias", q, 0, DType::kF32);
      add(attention + "k_proj.bias", kv, 0, DType::kF32);
      add(attention + "v_proj.bias", kv, 0, DType::kF32);
    }
    if (c.o_bias) add(attention + "o_proj.bias", c.d_model, 0, DType::kF32);
    if (c.mlp_bias) {
      add(prefix + "mlp.gate_proj.bias", c.ff, 0, DType::kF32);
      add(prefix + "mlp.up_proj.bias", c.ff, 0, DType::kF32, true);
      add(prefix + "mlp.down_proj.bias", c.d_model, 0, DType::kF32);
    }
    if (c.qk_norm) {
      add(attention + "q_norm.weight", c.head_dim, 0, DType::kF32);
      add(attention + "k_norm.weight", c.head_dim, 0, DType::kF32);
    }
  }
  add("model.norm.weight", c.d_model, 0, DType::kF32);
  if (!c.tied_embeddings) add("lm_head.weight", c.vocab, c.d_model, dtype);
  return end;
}

Result<Weights> Weights::make(std::shared_ptr<Device> device, const ModelConfig& c, DType dtype,
                              std::string_view name) {
  Weights w;
  const int64_t bytes = w.lay_out(c, dtype);
  DS_ASSIGN(w.buffer_, DeviceBuffer::make(std::move(device), bytes,
                                          fmt::format("weights of '{}' in {}", name, dtype_name(dtype))));
  // In the order that they were laid out in.
  size_t next = 0;
  auto matrix = [&] { return static_cast<const std::byte*>(w.buffer_.data() + w.places_[next++].offset); };
  auto vector = [&] { return reinterpret_cast<const float*>(matrix()); };
  w.embedding_ = matrix();
  for (int64_t l = 0; l < c.layers; ++l) {
    LayerWeights& layer = w.layers_.emplace_back();
    layer.qkv = matrix();
    next += 2;
    layer.o = matrix();
    layer.gate_up = matrix();
    ++next;
    layer.down = matrix();
    layer.input_norm = vector();
    layer.post_norm = vector();
    if (c.qkv_bias) {
      layer.q_bias = vector();
      layer.k_bias = vector();
      layer.v_bias = vector();
    }
    if (c.o_bias) layer.o_bias = vector();
    if (c.mlp_bias) {
      layer.gate_up_bias = vector();
      ++next;
      layer.down_bias = vector();
    }
    if (c.qk_norm) {
      layer.q_norm = vector();
      layer.k_norm = vector();
    }
  }
  w.final_norm_ = vector();
  w.head_ = c.tied_embeddings ? w.embedding_ : matrix();
  return w;
}

Result<Weights> Weights::load(std::shared_ptr<Device> device, const Checkpoint& checkpoint,
                              const LoadOptions& options) {
  device->use();
  DS_ASSIGN(Weights w, make(device, checkpoint.config(), options.dtype, checkpoint.name()));
  int64_t total = 0, done = 0;
  for (const Place& p : w.places_) {
    DS_TRY(p.columns > 0 ? host::check_shape(checkpoint, p.name, {p.rows, p.columns})
                         : host::check_shape(checkpoint, p.name, {p.rows}));
    total += p.bytes();
  }
  DS_ASSIGN(std::unique_ptr<Uploader> uploader, Uploader::make(device));
  for (const Place& p : w.places_) {
    // One at a time: an adapter's tensors are merged when they are asked for.
    DS_ASSIGN(const TensorView view, checkpoint.tensor(p.name));
    const int64_t element = dtype_size(p.dtype), most = kPiece / element;
    for (int64_t at = 0; at < p.elements(); at += most) {
      const int64_t count = std::min(most, p.elements() - at);
      DS_ASSIGN(std::byte * piece, uploader->next());
      convert_all(view, at, count, p.dtype, piece);
      DS_TRY(uploader->send(w.buffer_.data() + p.offset + at * element, count * element));
      done += count * element;
      if (options.progress && done < total) options.progress(done, total);
    }
  }
  DS_TRY(uploader->finish());
  DS_TRY(checkpoint.intact());
  if (options.progress) options.progress(total, total);
  return w;
}

Result<Weights> Weights::random(std::shared_ptr<Device> device, const ModelConfig& config,
                                const LoadOptions& options, uint64_t seed) {
  device->use();
  DS_ASSIGN(Weights w, make(device, config, options.dtype, fmt::format("random-{}", seed)));
  int64_t total = 0, done = 0;
  for (const Place& p : w.places_) total += p.bytes();
  for (size_t i = 0; i < w.places_.size(); ++i) {
    const Place& p = w.places_[i];
    std::byte* to = w.buffer_.data() + p.offset;
    if (p.name.ends_with("norm.weight")) {
      const std::vector<float> ones(static_cast<size_t>(p.rows), 1.0f);
      DS_TRY(check(cudaMemcpy(to, ones.data(), ones.size() * sizeof(float), cudaMemcpyHostToDevice),
                   "cudaMemcpy of '{}'", p.name));
    } else {
      const int64_t fan_in = p.columns > 0 ? p.columns : config.d_model;
      DS_TRY(check(fill_random(nullptr, p.dtype, to, p.elements(), seed * 1'000'003 + i,
                               1.0f / std::sqrt(static_cast<float>(fan_in))),
                   "fill_random of '{}', {} elements", p.name, p.elements()));
    }
    done += p.bytes();
    if (options.progress && done < total) options.progress(done, total);
  }
  DS_TRY(check(cudaStreamSynchronize(nullptr), "fill_random of the weights"));
  if (options.progress) options.progress(total, total);
  return w;
}

}  // namespace ds::cuda
