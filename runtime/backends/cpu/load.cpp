// How a checkpoint becomes a model: which arrays it needs, how they are packed, and what an adapter shares
// with its base.
#include <algorithm>
#include <functional>
#include <initializer_list>
#include <numeric>

#include "runtime/backends/cpu/model_internal.h"
#include "runtime/backends/host/tensors_internal.h"
#include "runtime/model/adapter.h"
#include "support/units.h"

namespace ds::cpu {

/// Lists the arrays that a model needs of a checkpoint, checks their shapes, and says where each goes once
/// they are loaded.
class Loader {
 public:
  /// `changed_only`: matrices of which an adapter changes nothing are left out and stay where an earlier
  /// loader has put them.
  explicit Loader(const Checkpoint& checkpoint, bool changed_only = false)
      : checkpoint_(checkpoint), changed_only_(changed_only) {}

  struct Matrix {
    std::string name;
    int64_t out;
  };
  Status matrix(PackedWeights& to, Product& product, std::initializer_list<Matrix> matrices) {
    std::string name;
    if (std::all_of(matrices.begin(), matrices.end(), [&](const Matrix& m) { return left_out(m.name); })) {
      left_out_bytes_ += product.packed_bytes();
      return ok_status();
    }
    for (const Matrix& m : matrices) {
      DS_TRY(host::check_shape(checkpoint_, m.name, {m.out, product.in()}));
      name += m.name + " ";
    }
    matrices_.push_back({&to, &product, arrays_.size()});
    arrays_.push_back({name + product.layout(), product.packed_bytes(),
                       [this, &product, list = std::vector(matrices)](std::byte* out) -> Status {
                         // Only here: an adapter's tensors are merged when they are asked for.
                         std::vector<TensorView> views;
                         std::vector<PackedWeights::Part> parts;
                         for (const Matrix& m : list) {
                           DS_ASSIGN(TensorView view, take(m.name, {m.out, product.in()}));
                           parts.push_back({view.data.data(), view.dtype, m.out});
                           views.push_back(std::move(view));
                         }
                         return PackedWeights::pack(product, parts, joined_, out);
                       }});
    return ok_status();
  }

  Status rows(const std::byte*& to, const std::string& name, int64_t rows, int64_t columns, DType dtype) {
    const int64_t row_bytes = columns * dtype_size(dtype);
    if (left_out(name)) {
      left_out_bytes_ += rows * row_bytes;
      return ok_status();
    }
    DS_TRY(host::check_shape(checkpoint_, name, {rows, columns}));
    rows_.push_back({&to, arrays_.size()});
    arrays_.push_back({fmt::format("{} rows {}", name, dtype_name(dtype)), rows * row_bytes,
                       [=, this](std::byte* out) -> Status {
                         DS_ASSIGN(TensorView view, take(name, {rows, columns}));
#pragma omp parallel for schedule(static)
                         for (int64_t row = 0; row < rows; ++row)
                           host::convert(view, row * columns, columns, dtype, out + row * row_bytes);
                         return ok_status();
                       }});
    return ok_status();
  }

  /// Appends to `to`, in f32.
  Status vector(std::vector<float>& to, const std::string& name, int64_t n) {
    DS_ASSIGN(TensorView view, take(name, {n}));
    vectors_.push_back({&to, view});
    return ok_status();
  }

  /// Called once, after all have been listed.
  Result<Weights> load(std::string_view kind, const LoadOptions& options) {
    int64_t floats = 0;
    for (const Vector& v : vectors_) floats += v.view.elements();
    arrays_.push_back({"vectors f32", floats * 4, [this](std::byte* out) {
                         for (const Vector& v : vectors_) {
                           host::convert(v.view, 0, v.view.elements(), DType::kF32, out);
                           out += v.view.elements() * 4;
                         }
                         // The last of all arrays: what was read has to be what the files hold.
                         return checkpoint_.intact();
                       }});
    DS_ASSIGN(Weights weights, Weights::load(arrays_, kind, options));
    for (const auto& [to, array] : rows_) *to = weights.data() + arrays_[array].offset;
    std::vector<const Product*> settled;
    for (const auto& [to, product, array] : matrices_) {
      *to = PackedWeights::view(weights.data() + arrays_[array].offset);
      // By the first layer's weights; those of the others are added up alike.
      if (std::find(settled.begin(), settled.end(), product) != settled.end()) continue;
      DS_TRY(product->settle(*to));
      settled.push_back(product);
    }
    const auto* from = reinterpret_cast<const float*>(weights.data() + arrays_.back().offset);
    for (const Vector& v : vectors_) v.to->clear();
    for (const Vector& v : vectors_) {
      v.to->insert(v.to->end(), from, from + v.view.elements());
      from += v.view.elements();
    }
    return weights;
  }

  int64_t left_out_bytes() const { return left_out_bytes_; }

 private:
  struct PackedMatrix {
    PackedWeights* to;
    Product* product;
    size_t array;
  };
  struct Vector {
    std::vector<float>* to;
    TensorView view;
  };

  Result<TensorView> take(const std::string& name, std::initializer_list<int64_t> shape) {
    return host::tensor_of_shape(checkpoint_, name, shape);
  }

  bool left_out(const std::string& name) const {
    return changed_only_ && checkpoint_.adapter()->untouched(name);
  }

  const Checkpoint& checkpoint_;
  const bool changed_only_;
  int64_t left_out_bytes_ = 0;
  HostBuffer joined_;
  std::vector<WeightArray> arrays_;
  std::vector<PackedMatrix> matrices_;
  std::vector<std::pair<const std::byte**, size_t>> rows_;
  std::vector<Vector> vectors_;
};

namespace {

/// Whether it pays to map the base's packed weights and to pack beside them only what the adapter changes:
/// where that is no more than half.
bool shares_with_base(const Checkpoint& checkpoint, const LoadOptions& options) {
  const Adapter* adapter = checkpoint.adapter();
  if (adapter == nullptr || options.weight_cache.empty() || options.base_fingerprint.empty() ||
      checkpoint.config().canonical() != checkpoint.base()->config().canonical())
    return false;
  int64_t all = 0, untouched = 0;
  for (const TensorSpec& spec : required_tensors(checkpoint.config())) {
    const int64_t elements =
        std::accumulate(spec.shape.begin(), spec.shape.end(), int64_t{1}, std::multiplies<>());
    all += elements;
    if (adapter->untouched(spec.name)) untouched += elements;
  }
  return untouched >= all - untouched;
}

}  // namespace

Result<std::unique_ptr<DeviceModel>> CpuModel::load(const Checkpoint& checkpoint, const LoadOptions& options,
                                                    Isa isa, int threads) {
  const ModelConfig& c = checkpoint.config();
  ThreadScope scope(threads);
  auto model = std::make_unique<CpuModel>();
  CpuModel& m = *model;
  m.config_ = c;
  m.dtype_ = options.dtype;
  m.math_ = choose_math(isa, options.dtype);
  m.active_ = active_dtype(m.math_);
  m.threads_ = threads;
  m.kernels_ = select_kernels(isa, m.dtype_, m.active_);
  m.eps_ = static_cast<float>(c.rms_norm_eps);
  struct {
    std::shared_ptr<Product>& product;
    int64_t in, out, rows;
    DType out_dtype;
  } products[] = {
      {m.q_, c.d_model, c.heads * c.head_dim, kBlockRows, DType::kF32},
      {m.kv_, c.d_model, c.kv_row(), kBlockRows, DType::kF32},
      {m.o_, c.heads * c.head_dim, c.d_model, kBlockRows, DType::kF32},
      {m.gate_up_, c.d_model, 2 * c.ff, kBlockRows, m.active_},
      {m.down_, c.ff, c.d_model, kBlockRows, DType::kF32},
      {m.head_, c.d_model, c.vocab, kLogitRows, DType::kF32},
  };
  for (auto& p : products) {
    DS_ASSIGN(p.product, Product::make(m.math_, m.kernels_, m.dtype_, p.in, p.out, p.rows, p.out_dtype));
  }
  DS_TRY(check_memory(m.planned_bytes(),
                      fmt::format("weights of '{}' in {}", checkpoint.name(), dtype_name(m.dtype_))));
  DS_TRY(m.load_weights(checkpoint, options)
             .with_context(fmt::format("loading '{}' on the cpu backend", checkpoint.name())));
  return std::unique_ptr<DeviceModel>(std::move(model));
}

int64_t CpuModel::planned_bytes() const {
  return config_.layers * (q_->packed_bytes() + kv_->packed_bytes() + o_->packed_bytes() +
                           gate_up_->packed_bytes() + down_->packed_bytes()) +
         head_->packed_bytes() + config_.vocab * config_.d_model * dtype_size(dtype_);
}

Status CpuModel::load_weights(const Checkpoint& checkpoint, const LoadOptions& options) {
  const bool shares = shares_with_base(checkpoint, options);
  if (shares) {
    // The base as if it were loaded itself, so that whoever comes next, base or adapter, finds its file.
    LoadOptions of_base = options;
    LoadReport report;
    of_base.fingerprint = options.base_fingerprint;
    of_base.report = &report;
    Loader base(*checkpoint.base());
    DS_TRY(list_weights(base));
    DS_ASSIGN(base_weights_, base.load(math_name(math_), of_base));
  }
  Loader loader(checkpoint, shares);
  DS_TRY(list_weights(loader));
  DS_ASSIGN(weights_, loader.load(math_name(math_), options));
  shared_bytes_ = loader.left_out_bytes();
  if (options.report != nullptr) options.report->shared_bytes = shared_bytes_;
  return ok_status();
}

Status CpuModel::list_weights(Loader& loader) {
  const ModelConfig& c = config_;
  DS_TRY(loader.rows(embedding_, "model.embed_tokens.weight", c.vocab, c.d_model, dtype_));
  int64_t q_size = c.heads * c.head_dim, kv_size = c.kv_heads * c.head_dim;
  layers_.resize(static_cast<size_t>(c.layers));
  for (int64_t l = 0; l < c.layers; ++l) {
    std::string prefix = fmt::format("model.layers.{}.", l), attention = prefix + "self_attn.";
    Layer& layer = layers_[static_cast<size_t>(l)];
    DS_TRY(loader.matrix(layer.q, *q_, {{attention + "q_proj.weight", q_size}}));
    DS_TRY(loader.matrix(layer.kv, *kv_,
                         {{attention + "k_proj.weight", kv_size}, {attention + "v_proj.weight", kv_size}}));
    DS_TRY(loader.matrix(layer.o, *o_, {{attention + "o_proj.weight", c.d_model}}));
    DS_TRY(loader.matrix(layer.gate_up, *gate_up_,
                         {{prefix + "mlp.gate_proj.weight", c.ff}, {prefix + "mlp.up_proj.weight", c.ff}}));
    DS_TRY(loader.matrix(layer.down, *down_, {{prefix + "mlp.down_proj.weight", c.d_model}}));
    DS_TRY(loader.vector(layer.input_norm, prefix + "input_layernorm.weight", c.d_model));
    DS_TRY(loader.vector(layer.post_norm, prefix + "post_attention_layernorm.weight", c.d_model));
    if (c.qkv_bias) {
      DS_TRY(loader.vector(layer.q_bias, attention + "q_proj.bias", q_size));
      DS_TRY(loader.vector(layer.kv_bias, attention + "k_proj.bias", kv_size));
      DS_TRY(loader.vector(layer.kv_bias, attention + "v_proj.bias", kv_size));
    }
    if (c.o_bias) DS_TRY(loader.vector(layer.o_bias, attention + "o_proj.bias", c.d_model));
    if (c.mlp_bias) {
      DS_TRY(loader.vector(layer.gate_up_bias, prefix + "mlp.gate_proj.bias", c.ff));
      DS_TRY(loader.vector(layer.gate_up_bias, prefix + "mlp.up_proj.bias", c.ff));
      DS_TRY(loader.vector(layer.down_bias, prefix + "mlp.down_proj.bias", c.d_model));
    }
    if (c.qk_norm) {
      DS_TRY(loader.vector(layer.q_norm, attention + "q_norm.weight", c.head_dim));
      DS_TRY(loader.vector(layer.k_norm, attention + "k_norm.weight", c.head_dim));
    }
  }
  DS_TRY(loader.vector(final_norm_, "model.norm.weight", c.d_model));
  DS_TRY(loader.matrix(head_weights_, *head_,
                       {{c.tied_embeddings ? "model.embed_tokens.weight" : "lm_head.weight", c.vocab}}));
  return ok_status();
}

}  // namespace ds::cpu
