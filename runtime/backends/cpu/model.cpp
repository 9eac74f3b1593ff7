#include "runtime/backends/cpu/model_internal.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <numeric>

#include "runtime/backends/host/tensors_internal.h"
#include "runtime/model/adapter.h"
#include "support/units.h"

namespace ds::cpu {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

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

const float* or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

/// row += bias, where there is one. A row of its own: what the others of a call are does not matter.
void add_bias(const std::vector<float>& bias, std::byte* row, DType dtype) {
  for (size_t i = 0; i < bias.size(); ++i) {
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(row)[i] += bias[i];
    } else {
      auto* at = reinterpret_cast<uint16_t*>(row) + i;
      *at = f32_to_bf16(bf16_to_f32(*at) + bias[i]);
    }
  }
}

}  // namespace

// ---- loading

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

// ---- workspace

Result<std::unique_ptr<Workspace>> CpuModel::new_workspace(int64_t max_context) {
  DS_ASSIGN(std::unique_ptr<CpuWorkspace> workspace, CpuWorkspace::make(*this, max_context));
  return std::unique_ptr<Workspace>(std::move(workspace));
}

CpuWorkspace::CpuWorkspace(const CpuModel& model, int64_t max_context, int64_t map_shapes)
    : Workspace(model, max_context, map_shapes) {}

Result<std::unique_ptr<CpuWorkspace>> CpuWorkspace::make(const CpuModel& m, int64_t max_context) {
  const ModelConfig& c = m.config_;
  std::vector<MapProducts> map_products;
  {
    std::lock_guard lock(m.map_mutex_);
    map_products = m.map_products_;
  }
  auto workspace = std::make_unique<CpuWorkspace>(m, max_context, static_cast<int64_t>(map_products.size()));
  CpuWorkspace& w = *workspace;
  w.rows_.reserve(kBlockRows);
  w.query_rows_.reserve(kBlockRows);
  w.segments_.reserve(kBlockRows);
  int64_t rows = kBlockRows + kMaxPadding;
  int64_t active = dtype_size(m.active_), q_size = c.heads * c.head_dim;
  int64_t projected = aligned(rows * std::max({q_size, c.kv_row(), c.d_model}) * 4);
  int64_t normed = aligned(rows * c.d_model * active), attended = aligned(rows * q_size * active);
  int64_t gate_up = aligned(rows * 2 * c.ff * active), activated = aligned(rows * c.ff * active);
  int64_t table = aligned(max_context * (c.head_dim / 2) * 4), scratch = 0;
  int64_t chosen = aligned(max_context * 4), logits = aligned(c.vocab * 4);
  for (const auto* p : {&m.q_, &m.kv_, &m.o_, &m.gate_up_, &m.down_, &m.head_})
    scratch = std::max(scratch, aligned((*p)->scratch_bytes()));
  for (const MapProducts& p : map_products) {
    gate_up = std::max(gate_up, aligned(rows * p.rank * active));
    for (const auto* product : {&p.first, &p.second})
      if (*product) scratch = std::max(scratch, aligned((*product)->scratch_bytes()));
  }

  AttentionShape shape{c.heads, c.kv_heads, c.head_dim, m.dtype_, m.active_};
  int64_t bytes =
      normed + projected + attended + gate_up + activated + scratch + 2 * table + 2 * chosen + logits;
  std::string what = fmt::format("workspace for a context of {} tokens", max_context);
  DS_TRY(check_memory(bytes + Attention::scratch_bytes(shape, max_context, kBlockRows, m.threads_), what));
  DS_ASSIGN(w.buffer_, HostBuffer::make(bytes, what));
  DS_ASSIGN(Attention attention, Attention::make(shape, m.kernels_, max_context, kBlockRows, m.threads_));
  w.attention_ = std::make_unique<Attention>(std::move(attention));

  std::byte* at = w.buffer_.data();
  auto take = [&](int64_t size) { return std::exchange(at, at + size); };
  w.normed_ = take(normed);
  w.projected_ = reinterpret_cast<float*>(take(projected));
  w.attended_ = take(attended);
  w.gate_up_ = take(gate_up);
  w.activated_ = take(activated);
  w.scratch_ = take(scratch);
  w.cos_ = reinterpret_cast<float*>(take(table));
  w.sin_ = reinterpret_cast<float*>(take(table));
  w.deviation_ = reinterpret_cast<float*>(take(chosen));
  w.order_ = reinterpret_cast<int32_t*>(take(chosen));
  w.logits_ = reinterpret_cast<float*>(take(logits));

  const std::vector<float> frequencies = c.rope.inverse_frequencies(c.head_dim);
  const float scaling = c.rope.attention_scaling();
  int64_t half = c.head_dim / 2;
#pragma omp parallel for schedule(static) num_threads(m.threads_)
  for (int64_t position = 0; position < max_context; ++position)
    for (int64_t i = 0; i < half; ++i) {
      float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      w.cos_[position * half + i] = std::cos(angle) * scaling;
      w.sin_[position * half + i] = std::sin(angle) * scaling;
    }

  w.q_ = std::make_unique<ProductRunner>(m.q_);
  w.kv_ = std::make_unique<ProductRunner>(m.kv_);
  w.o_ = std::make_unique<ProductRunner>(m.o_);
  w.gate_up_product_ = std::make_unique<ProductRunner>(m.gate_up_);
  w.down_ = std::make_unique<ProductRunner>(m.down_);
  w.head_ = std::make_unique<ProductRunner>(m.head_);
  for (const MapProducts& p : map_products) {
    auto& runners = w.map_products_.emplace_back();
    runners.first = std::make_unique<ProductRunner>(p.first);
    if (p.second) runners.second = std::make_unique<ProductRunner>(p.second);
  }
  return workspace;
}

// ---- maps of aligned cuts

CpuMap::CpuMap(const CpuModel& model, int64_t shape) : DeviceMap(model, shape) {}

Result<int64_t> CpuModel::map_products(int64_t rank) {
  std::lock_guard lock(map_mutex_);
  for (size_t i = 0; i < map_products_.size(); ++i)
    if (map_products_[i].rank == rank) return static_cast<int64_t>(i);
  const int64_t d = config_.d_model;
  auto make = [&](int64_t in, int64_t out, DType out_dtype) -> Result<std::shared_ptr<Product>> {
    DS_ASSIGN(auto product, Product::make(math_, kernels_, dtype_, in, out, kBlockRows, out_dtype));
    // Not by a map's weights: those of a map that changes nothing are zeros, which tell nothing.
    DS_TRY(product->settle());
    return product;
  };
  MapProducts products;
  products.rank = rank;
  if (rank == 0) {
    DS_ASSIGN(products.first, make(d, d, DType::kF32));
  } else {
    DS_ASSIGN(products.first, make(d, rank, active_));
    DS_ASSIGN(products.second, make(rank, d, DType::kF32));
  }
  map_products_.push_back(std::move(products));
  return static_cast<int64_t>(map_products_.size()) - 1;
}

Result<std::unique_ptr<DeviceMap>> CpuModel::new_map(const AlignmentMap& map) {
  const int64_t d = config_.d_model;
  const bool full = map.form == MapForm::kFull, low_rank = map.form == MapForm::kLowRank;
  const std::string what = fmt::format("the {} map of layer {}", map_form_name(map.form), map.layer);

  ThreadScope scope(threads_);
  const int64_t rank = (map.rank + kRankAlign - 1) / kRankAlign * kRankAlign, vector = aligned(d * 4);
  int64_t shape = -1;
  MapProducts products;
  if (full || low_rank) {
    DS_ASSIGN(shape, map_products(rank));
    std::lock_guard lock(map_mutex_);
    products = map_products_[static_cast<size_t>(shape)];
  }
  auto loaded = std::make_unique<CpuMap>(*this, shape);
  CpuMap& m = *loaded;
  auto packed_bytes = [](const std::shared_ptr<Product>& p) { return p ? aligned(p->packed_bytes()) : 0; };
  DS_ASSIGN(m.memory_, HostBuffer::make(
                           packed_bytes(products.first) + packed_bytes(products.second) + 2 * vector, what));
  std::byte* at = m.memory_.data();
  HostBuffer joined;
  auto pack = [&](const std::shared_ptr<Product>& product, const std::vector<float>& weights,
                  PackedWeights& to) -> Status {
    const PackedWeights::Part part{reinterpret_cast<const std::byte*>(weights.data()), DType::kF32,
                                   product->out()};
    std::byte* data = std::exchange(at, at + packed_bytes(product));
    DS_TRY(PackedWeights::pack(*product, {&part, 1}, joined, data).with_context("packing " + what));
    to = PackedWeights::view(data);
    return ok_status();
  };
  if (full) DS_TRY(pack(products.first, map.weight, m.first_));
  if (low_rank) {
    std::vector<float> down(static_cast<size_t>(rank * d)), up(static_cast<size_t>(d * rank));
    std::copy(map.down.begin(), map.down.end(), down.begin());
    for (int64_t o = 0; o < d; ++o)
      std::copy_n(map.up.begin() + o * map.rank, map.rank, up.begin() + o * rank);
    DS_TRY(pack(products.first, down, m.first_));
    DS_TRY(pack(products.second, up, m.second_));
  }
  auto copy = [&](const std::vector<float>& v) -> const float* {
    if (v.empty()) return nullptr;
    auto* to = reinterpret_cast<float*>(std::exchange(at, at + vector));
    std::copy(v.begin(), v.end(), to);
    return to;
  };
  m.scale_ = copy(map.scale);
  m.bias_ = copy(map.bias);
  return std::unique_ptr<DeviceMap>(std::move(loaded));
}

// ---- enqueuing

namespace {

template <typename Work>
void on(CommandStream& stream, Work work) {
  static_cast<host::HostStream&>(stream).kernel(work);
}

}  // namespace

void CpuModel::enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) {
  on(stream, [=, this] { return run_embed(ids, rows, hidden); });
}

void CpuModel::enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] {
    const SequenceRows sequence{call.cache, call.position, call.rows, call.query_rows};
    return run_layer(*w, call.layer, call.hidden, {&sequence, 1});
  });
}

void CpuModel::enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                             std::span<const SequenceRows> sequences) {
  on(stream, [=, this, w = static_cast<CpuWorkspace*>(&workspace)] {
    return run_layer(*w, layer, hidden, sequences);
  });
}

void CpuModel::enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_select(*w, call); });
}

void CpuModel::enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_selected(*w, call); });
}

void CpuModel::enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map,
                             std::byte* hidden, int64_t rows) {
  on(stream, [=, this, w = static_cast<CpuWorkspace*>(&workspace), m = static_cast<const CpuMap*>(&map)] {
    return run_align(*w, *m, hidden, rows);
  });
}

void CpuModel::enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_head(*w, call); });
}

void CpuModel::enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                              std::span<const int64_t> rows, float* logits) {
  on(stream,
     [=, this, w = static_cast<CpuWorkspace*>(&workspace)] { return run_logits(*w, hidden, rows, logits); });
}

void CpuModel::enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_step(*w, call); });
}

// ---- running

namespace {

/// In f32 and in the order of the elements; infinite where one is not a number, which is as far off as can
/// be.
float squared_distance(const std::byte* a, const std::byte* b, int64_t n, DType dtype) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    float x, y;
    if (dtype == DType::kF32) {
      std::memcpy(&x, a + 4 * i, 4);
      std::memcpy(&y, b + 4 * i, 4);
    } else {
      uint16_t p, q;
      std::memcpy(&p, a + 2 * i, 2);
      std::memcpy(&q, b + 2 * i, 2);
      x = bf16_to_f32(p);
      y = bf16_to_f32(q);
    }
    float difference = x - y, square = difference * difference;
    sum += square;
  }
  return std::isnan(sum) ? INFINITY : sum;
}

}  // namespace

Status CpuModel::run_embed(const int32_t* ids, int64_t rows, std::byte* hidden) const {
  LapTimer timer(profile_);
  int64_t row = config_.d_model * dtype_size(dtype_);
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(hidden + i * row, embedding_ + ids[i] * row, static_cast<size_t>(row));
  timer.lap(Phase::kEmbed);
  return intact();
}

Status CpuModel::run_layer(CpuWorkspace& w, int64_t layer, std::byte* hidden,
                           std::span<const SequenceRows> sequences) const {
  int64_t row_bytes = config_.d_model * dtype_size(dtype_);
  int64_t kv_bytes = config_.kv_row() * dtype_size(dtype_);
  auto clear = [&] {
    w.rows_.clear();
    w.query_rows_.clear();
    w.segments_.clear();
  };
  auto flush = [&]() -> Status {
    DS_TRY(run_block(w, layers_[static_cast<size_t>(layer)])
               .with_context(fmt::format("layer {}, {} rows", layer, w.rows_.size())));
    clear();
    return ok_status();
  };
  clear();  // what a failed call left
  w.attention_->begin();
  for (const SequenceRows& s : sequences)
    for (int64_t at = 0; at < s.rows;) {
      int64_t used = static_cast<int64_t>(w.rows_.size()), count = std::min(kBlockRows - used, s.rows - at);
      int64_t first_query = std::max(at, s.rows - s.query_rows);
      if (first_query < at + count)
        w.segments_.push_back({s.cache, s.position + first_query, at + count - first_query,
                               static_cast<int64_t>(w.query_rows_.size()), s.prefix, s.prefix_rows});
      for (; count > 0; --count, ++at, hidden += row_bytes) {
        int64_t position = s.position + at;
        CpuWorkspace::Row row{hidden, s.cache + (position - s.prefix_rows) * kv_bytes, position};
        if (at >= first_query) w.query_rows_.push_back(row);
        w.rows_.push_back(row);
      }
      if (w.rows_.size() == kBlockRows) DS_TRY(flush());
    }
  return w.rows_.empty() ? ok_status() : flush();
}

Status CpuModel::run_selected(CpuWorkspace& w, const SelectedCall& call) const {
  int64_t row_bytes = config_.d_model * dtype_size(dtype_);
  int64_t kv_bytes = config_.kv_row() * dtype_size(dtype_);
  // Only now are they known.
  for (int64_t i = 0; i < call.rows; ++i) {
    if (call.positions[i] <= (i > 0 ? call.positions[i - 1] : -1) || call.positions[i] >= w.max_context())
      return error(Code::kInvalidArgument,
                   "layer {}: selected row {} of {} has position {}; expected ascending positions below {}",
                   call.layer, i, call.rows, call.positions[i], w.max_context());
  }
  w.attention_->begin();
  // K and V of a block are written before its queries read, and no query sees a position of a later block.
  for (int64_t at = 0; at < call.rows;) {
    int64_t count = std::min(kBlockRows, call.rows - at);
    w.rows_.clear();
    w.query_rows_.clear();
    w.segments_.clear();
    if (call.queries)
      w.segments_.push_back(
          {.cache = call.cache, .tokens = count, .at = 0, .positions = call.positions + at});
    for (int64_t end = at + count; at < end; ++at)
      w.rows_.push_back({.hidden = call.hidden + at * row_bytes,
                         .kv = call.cache + call.positions[at] * kv_bytes,
                         .position = call.positions[at]});
    if (call.queries) w.query_rows_ = w.rows_;
    DS_TRY(run_block(w, layers_[static_cast<size_t>(call.layer)])
               .with_context(fmt::format("layer {}, {} selected rows", call.layer, w.rows_.size())));
  }
  return ok_status();
}

Status CpuModel::run_select(CpuWorkspace& w, const SelectCall& call) const {
  const ModelConfig& c = config_;
  const Layer& layer = layers_[static_cast<size_t>(call.layer)];
  int64_t d = c.d_model, kv_size = c.kv_heads * c.head_dim, half = c.head_dim / 2;
  int64_t active = dtype_size(active_), wire = dtype_size(dtype_);
  LapTimer timer(profile_);
  for (int64_t first = 0; first < call.rows; first += kBlockRows) {
    int64_t rows = std::min(kBlockRows, call.rows - first);
    bool many = rows * d > (int64_t{1} << 15);
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < rows; ++r)
      kernels_.norm(call.hidden + (first + r) * d * wire, layer.input_norm.data(), eps_, d,
                    w.normed_ + r * d * active);
    timer.lap(Phase::kNorm);
    DS_TRY(w.kv_->run(layer.kv, rows, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_)
               .with_context(fmt::format("select at layer {}", call.layer)));
    timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < rows; ++r) {
      int64_t position = first + r;
      const float* x = w.projected_ + r * 2 * kv_size;
      const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
      const float* bias = or_null(layer.kv_bias);
      std::byte* mine = w.attended_ + r * kv_size * wire;
      for (int64_t h = 0; h < c.kv_heads; ++h)
        kernels_.key_head(x + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr, or_null(layer.k_norm),
                          eps_, cos, sin, c.head_dim, c.head_dim, mine + h * c.head_dim * wire);
      w.deviation_[position] =
          squared_distance(mine, call.cache + position * 2 * kv_size * wire, kv_size, dtype_);
    }
    timer.lap(Phase::kRope);
  }
  // The order is a total one, so that every machine chooses the same tokens.
  const float* deviation = w.deviation_;
  auto more = [deviation](int32_t a, int32_t b) {
    return deviation[a] != deviation[b] ? deviation[a] > deviation[b] : a < b;
  };
  int32_t* order = w.order_;
  std::iota(order, order + call.rows, 0);
  if (call.count < call.rows) std::nth_element(order, order + call.count, order + call.rows, more);
  std::sort(order, order + call.count);
  std::copy(order, order + call.count, call.positions);
  for (int64_t i = 0; i < call.count; ++i) {
    if (order[i] != i)
      std::memmove(call.hidden + i * d * wire, call.hidden + order[i] * d * wire,
                   static_cast<size_t>(d * wire));
  }
  timer.lap(Phase::kNorm);
  return intact();
}

Status CpuModel::run_block(CpuWorkspace& w, const Layer& layer) const {
  const ModelConfig& c = config_;
  const Kernels& k = kernels_;
  int64_t d = c.d_model, q_size = c.heads * c.head_dim, kv_size = c.kv_heads * c.head_dim,
          half = c.head_dim / 2;
  int64_t active = dtype_size(active_), wire = dtype_size(dtype_);
  auto rows = static_cast<int64_t>(w.rows_.size()), queries = static_cast<int64_t>(w.query_rows_.size());
  bool many = rows * d > (int64_t{1} << 15);  // less is not worth waking threads for
  LapTimer timer(profile_);

  // K and V of every row.
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < rows; ++r)
    k.norm(w.rows_[r].hidden, layer.input_norm.data(), eps_, d, w.normed_ + r * d * active);
  timer.lap(Phase::kNorm);
  DS_TRY(w.kv_->run(layer.kv, rows, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t position = w.rows_[r].position;
    const float* x = w.projected_ + r * 2 * kv_size;
    std::byte* out = w.rows_[r].kv;
    const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
    const float* bias = or_null(layer.kv_bias);
    for (int64_t h = 0; h < c.kv_heads; ++h)
      k.key_head(x + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr, or_null(layer.k_norm), eps_, cos,
                 sin, c.head_dim, c.head_dim, out + h * c.head_dim * wire);
    k.value(x + kv_size, bias ? bias + kv_size : nullptr, kv_size, out + kv_size * wire);
  }
  timer.lap(Phase::kRope);

  // The rest of the layer for the rows with a query only.
  if (queries == 0) return intact();
  if (queries < rows)
    for (int64_t r = 0, q = 0; q < queries; ++r)
      if (w.rows_[r].hidden == w.query_rows_[q].hidden)
        std::memmove(w.normed_ + q++ * d * active, w.normed_ + r * d * active,
                     static_cast<size_t>(d * active));
  DS_TRY(w.q_->run(layer.q, queries, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    int64_t position = w.query_rows_[r].position;
    const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
    const float* bias = or_null(layer.q_bias);
    for (int64_t h = 0; h < c.heads; ++h)
      k.query_head(w.projected_ + r * q_size + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr,
                   or_null(layer.q_norm), eps_, cos, sin, c.head_dim,
                   (c.head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign,
                   w.attention_->query(queries, r, h));
  }
  timer.lap(Phase::kRope);
  w.attention_->run(w.segments_, w.attended_, timer);
  DS_TRY(w.o_->run(layer.o, queries, w.attended_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kO);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    add_bias(layer.o_bias, reinterpret_cast<std::byte*>(w.projected_ + r * d), DType::kF32);
    k.add_norm(w.query_rows_[r].hidden, w.projected_ + r * d, layer.post_norm.data(), eps_, d,
               w.normed_ + r * d * active);
  }
  timer.lap(Phase::kNorm);
  DS_TRY(w.gate_up_product_->run(layer.gate_up, queries, w.normed_, w.gate_up_, w.scratch_));
  timer.lap(Phase::kGateUp);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    std::byte* gate = w.gate_up_ + r * 2 * c.ff * active;
    add_bias(layer.gate_up_bias, gate, active_);
    k.swiglu(gate, gate + c.ff * active, c.ff, w.activated_ + r * c.ff * active);
  }
  timer.lap(Phase::kSwiglu);
  DS_TRY(w.down_->run(layer.down, queries, w.activated_, reinterpret_cast<std::byte*>(w.projected_),
                      w.scratch_));
  timer.lap(Phase::kDown);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    add_bias(layer.down_bias, reinterpret_cast<std::byte*>(w.projected_ + r * d), DType::kF32);
    k.add_norm(w.query_rows_[r].hidden, w.projected_ + r * d, nullptr, eps_, d, nullptr);
  }
  timer.lap(Phase::kNorm);
  return intact();
}

Status CpuModel::run_align(CpuWorkspace& w, const CpuMap& map, std::byte* hidden, int64_t rows) const {
  const int64_t d = config_.d_model, active = dtype_size(active_), row_bytes = d * dtype_size(dtype_);
  LapTimer timer(profile_);
  for (; rows > 0; rows -= kBlockRows, hidden += kBlockRows * row_bytes) {
    const int64_t count = std::min(rows, kBlockRows);
    const bool many = count * d > (int64_t{1} << 15);
    const float* product = nullptr;
    if (map.shape() >= 0) {
      auto& [first, second] = w.map_products_[static_cast<size_t>(map.shape())];
      // A copy even where the types are the same: products may read some rows more.
#pragma omp parallel for schedule(static) if (many)
      for (int64_t r = 0; r < count; ++r)
        kernels_.activate(hidden + r * row_bytes, d, w.normed_ + r * d * active);
      auto* out = reinterpret_cast<std::byte*>(w.projected_);
      DS_TRY(first->run(map.first_, count, w.normed_, second ? w.gate_up_ : out, w.scratch_)
                 .with_context("align"));
      if (second) DS_TRY(second->run(map.second_, count, w.gate_up_, out, w.scratch_).with_context("align"));
      product = w.projected_;
    }
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < count; ++r)
      kernels_.align(hidden + r * row_bytes, product == nullptr ? nullptr : product + r * d, map.scale_,
                     map.bias_, d);
  }
  timer.lap(Phase::kAlign);
  return ok_status();
}

Status CpuModel::run_head(CpuWorkspace& w, const HeadCall& call) const {
  static constexpr int64_t kFirst = 0;
  float* logits = call.logits != nullptr ? call.logits : w.logits_;
  DS_TRY(run_logits(w, call.hidden, {&kFirst, 1}, logits));
  if (call.next != nullptr)
    *call.next = choose({logits, static_cast<size_t>(config_.vocab)}, call.choice, w.sorted_);
  return ok_status();
}

Status CpuModel::run_step(CpuWorkspace& w, const StepCall& call) const {
  DS_TRY(run_embed(&call.token, 1, call.hidden));
  for (int64_t l = 0; l < config_.layers; ++l) {
    SequenceRows sequence{call.caches[static_cast<size_t>(l)], call.position};
    DS_TRY(run_layer(w, l, call.hidden, {&sequence, 1}));
  }
  return run_head(w, {call.hidden, call.logits, call.choice, call.next});
}

Status CpuModel::run_logits(CpuWorkspace& w, const std::byte* hidden, std::span<const int64_t> rows,
                            float* logits) const {
  LapTimer timer(profile_);
  int64_t d = config_.d_model, active = dtype_size(active_);
  while (!rows.empty()) {
    auto count = std::min(static_cast<int64_t>(rows.size()), kLogitRows);
    for (int64_t i = 0; i < count; ++i)
      kernels_.norm(hidden + rows[i] * d * dtype_size(dtype_), final_norm_.data(), eps_, d,
                    w.normed_ + i * d * active);
    DS_TRY(w.head_->run(head_weights_, count, w.normed_, reinterpret_cast<std::byte*>(logits), w.scratch_)
               .with_context("logits"));
    logits += count * config_.vocab;
    rows = rows.subspan(static_cast<size_t>(count));
  }
  timer.lap(Phase::kLogits);
  return intact();
}

}  // namespace ds::cpu
