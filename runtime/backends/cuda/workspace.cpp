// Scratch of one stream on the device: its pieces, the tables of RoPE, and how its products are multiplied.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/backends/cuda/model_internal.h"
#include "support/units.h"

namespace ds::cuda {
namespace {

/// Whole buckets of rows, so that workspaces for similar contexts share the algorithms of products.
int64_t block_rows(int64_t max_context) {
  const int64_t rows = std::clamp(max_context, kLeastBlockRows, kMostBlockRows);
  return row_bucket_rows(row_bucket(rows));
}

}  // namespace

Result<std::unique_ptr<CudaWorkspace>> CudaWorkspace::make(const CudaModel& model, int64_t max_context) {
  model.device_->use();
  std::vector<int64_t> map_ranks;
  {
    std::lock_guard lock(model.map_mutex_);
    map_ranks = model.map_ranks_;
  }
  auto workspace = std::make_unique<CudaWorkspace>(model, max_context, std::move(map_ranks));
  CudaWorkspace& w = *workspace;
  const auto rows = static_cast<size_t>(w.block_rows_);
  for (auto* list : {&w.targets_, &w.query_targets_}) list->reserve(rows);
  for (auto* list : {&w.segments_, &w.own_segments_}) list->reserve(rows);
  w.gather_.reserve(rows);
  w.runs_.reserve(rows);
  w.tiles_.reserve(rows);
  w.graphs_.reserve(kStepGraphs);
  DS_TRY(check(cudaStreamCreateWithFlags(&w.side_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags of a workspace"));
  DS_TRY(w.allocate());
  model.device_->need_staging(w.request_staging());
  DS_TRY(w.make_tables());
  DS_TRY(w.make_products());
  DS_TRY(model.warm_up(w).with_context("a first run of the kernels"));
  return workspace;
}

CudaWorkspace::CudaWorkspace(const CudaModel& model, int64_t max_context, std::vector<int64_t> map_ranks)
    : Workspace(model, max_context, static_cast<int64_t>(map_ranks.size())),
      device_(model.device_),
      model_(model),
      map_ranks_(std::move(map_ranks)),
      block_rows_(block_rows(max_context)) {}

CudaWorkspace::~CudaWorkspace() {
  if (side_ == nullptr) return;
  device_->use();
  // Only what was searched and captured on it; others are not waited for.
  (void)cudaStreamSynchronize(side_);
  (void)cudaStreamDestroy(side_);
  for (StepGraph& step : graphs_) discard(step);
  if (library_ != nullptr)
    device_->releases().later([kept = std::shared_ptr<LibraryAttention>(std::move(library_))] {});
}

void CudaWorkspace::discard(StepGraph& step) {
  if (cudaGraphExec_t graph = std::exchange(step.graph, nullptr); graph != nullptr)
    device_->releases().later([graph] { (void)cudaGraphExecDestroy(graph); });
}

size_t CudaWorkspace::step_graphs() const {
  return static_cast<size_t>(
      std::count_if(graphs_.begin(), graphs_.end(), [](const StepGraph& s) { return s.graph != nullptr; }));
}

int64_t CudaWorkspace::request_staging() const {
  const CudaModel& m = model_;
  const int64_t blocks = max_context() / block_rows_ + 2;
  const int64_t tiles =
      max_context() / std::max<int64_t>(attention_tile_rows(m.attention_shape()), 1) + blocks;
  // Segments and tiles of each layer of a context in several chunks, ids, and some rows of logits.
  constexpr int64_t kChunks = 16, kLogits = 4;
  return m.config_.layers * (2 * tiles * static_cast<int64_t>(sizeof(AttentionTile)) +
                             (blocks + kChunks) * 2 * (static_cast<int64_t>(sizeof(AttentionSegment)) + 64)) +
         max_context() * 4 + kLogits * m.config_.vocab * 4;
}

Status CudaWorkspace::allocate() {
  const CudaModel& m = model_;
  const ModelConfig& c = m.config_;
  const AttentionShape shape = m.attention_shape();
  const int64_t rows = block_rows_, element = dtype_size(m.dtype_), q = m.q_size(), half = c.head_dim / 2;
  int64_t rank = 0;
  for (int64_t r : map_ranks_) rank = std::max(rank, r);
  map_products_.resize(map_ranks_.size());
  attention_scratch_bytes_ = attention_most_scratch_bytes(shape, m.device_->info().multiprocessors);
  struct Piece {
    int64_t bytes;
    std::byte** to;
  };
  std::byte *cos, *sin, *deviation, *logits, *state, *next, *tile, *segments;
  const Piece pieces[] = {
      {rows * c.d_model * element, &normed_},
      {rows * std::max((q + 2 * m.kv_size()) * element, std::max(2 * c.ff * element, c.d_model * 4)),
       &projected_},
      {rows * q * element, &q_},
      {rows * std::max({q, c.ff, c.d_model, rank}) * element, &attended_},
      {rows * c.d_model * element, &compact_},
      {kProductWorkspace, &product_workspace_},
      {attention_scratch_bytes_, &attention_scratch_},
      {max_context() * half * 4, &cos},
      {max_context() * half * 4, &sin},
      {max_context() * 4, &deviation},
      {kLogitRows * c.vocab * 4, &logits},
      {sizeof(StepState), &state},
      {sizeof(int32_t), &next},
      {sizeof(AttentionTile), &tile},
      {static_cast<int64_t>(kStepGraphs * sizeof(AttentionSegment)) * c.layers, &segments},
  };
  int64_t bytes = 0;
  for (const Piece& piece : pieces) bytes += aligned(piece.bytes);
  DS_ASSIGN(buffer_, DeviceBuffer::make(m.device_, bytes,
                                        fmt::format("workspace for a context of {} tokens", max_context())));
  std::byte* at = buffer_.data();
  for (const Piece& piece : pieces) *piece.to = std::exchange(at, at + aligned(piece.bytes));
  cos_ = reinterpret_cast<float*>(cos);
  sin_ = reinterpret_cast<float*>(sin);
  deviation_ = reinterpret_cast<float*>(deviation);
  logits_ = reinterpret_cast<float*>(logits);
  state_ = reinterpret_cast<StepState*>(state);
  next_ = reinterpret_cast<int32_t*>(next);
  one_tile_ = reinterpret_cast<AttentionTile*>(tile);
  step_segments_ = reinterpret_cast<AttentionSegment*>(segments);

  // The library reads K and V in whole tiles, which may begin with a cache's last row.
  static_assert(kCacheTileRows % kLibraryKeyTile == 0);
  if ((kLibraryKeyTile - 1) * m.cache_row() > kSlack) {
    library_why_ = fmt::format("rows of the cache have {} bytes each", m.cache_row());
    return ok_status();
  }
  DS_ASSIGN(library_,
            LibraryAttention::make(shape, max_context(), rows, m.device_->info().index, library_why_));
  if (library_ == nullptr) return ok_status();
  DS_ASSIGN(library_workspace_, DeviceBuffer::make(m.device_, library_->workspace_bytes(),
                                                   "workspace of the library's attention"));
  return ok_status();
}

Status CudaWorkspace::make_tables() {
  const ModelConfig& c = model_.config_;
  const std::vector<float> frequencies = c.rope.inverse_frequencies(c.head_dim);
  const float scaling = c.rope.attention_scaling();
  const int64_t half = c.head_dim / 2;
  std::vector<float> cos(static_cast<size_t>(max_context() * half)), sin(cos.size());
#pragma omp parallel for schedule(static)
  for (int64_t position = 0; position < max_context(); ++position)
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      const auto at = static_cast<size_t>(position * half + i);
      cos[at] = std::cos(angle) * scaling;
      sin[at] = std::sin(angle) * scaling;
    }
  const AttentionTile tile{.segment = 0, .first_row = 0, .rows = 1};
  auto upload = [&](void* to, const void* from, size_t bytes) {
    return check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy of {} bytes of tables",
                 bytes);
  };
  DS_TRY(upload(cos_, cos.data(), cos.size() * sizeof(float)));
  DS_TRY(upload(sin_, sin.data(), sin.size() * sizeof(float)));
  return upload(one_tile_, &tile, sizeof(tile));
}

Status CudaWorkspace::make_products() {
  const CudaModel& m = model_;
  const ModelConfig& c = m.config_;
  const int64_t d = c.d_model, q = m.q_size(), kv = m.kv_size(), element = dtype_size(m.dtype_);
  const DType t = m.dtype_;
  // Numbers, for the search: zeros run faster than anything that a model has.
  const int64_t wide = std::max(q, c.ff);
  DS_TRY(check(fill_random(side_, t, normed_, block_rows_ * d, 1, 1.0f), "fill_random"));
  DS_TRY(check(fill_random(side_, t, attended_, block_rows_ * wide, 2, 1.0f), "fill_random"));
  using Layer = LayerWeights;
  std::vector<const std::byte*> weights;
  auto make = [&](std::unique_ptr<Product>& to, const ProductShape& shape, int64_t rows, const std::byte* x,
                  std::byte* y) -> Status {
    DS_ASSIGN(to, Product::make(m.device_, shape, rows));
    return to->search(side_, weights, x, y, product_workspace_)
        .with_context(
            fmt::format("choosing how to multiply [{}][{}] in {}", shape.out, shape.in, dtype_name(t)));
  };
  auto layers = [&](const std::byte* Layer::*matrix, int64_t offset = 0) {
    weights.clear();
    for (const Layer& layer : m.weights_.layers()) weights.push_back(layer.*matrix + offset);
  };
  layers(&Layer::qkv);
  DS_TRY(
      make(qkv_, {.in = d, .out = q + 2 * kv, .dtype = t, .out_dtype = t}, block_rows_, normed_, projected_));
  DS_TRY(make(q_product_, {.in = d, .out = q, .dtype = t, .out_dtype = t}, block_rows_, normed_, projected_));
  const int64_t kv_at = q * d * element;
  layers(&Layer::qkv, kv_at);
  DS_TRY(make(kv_,
              {.in = d, .out = 2 * kv, .dtype = t, .out_dtype = t, .w_align = std::gcd(kv_at, kArrayAlign)},
              block_rows_, normed_, projected_));
  layers(&Layer::o);
  DS_TRY(make(o_, {.in = q, .out = d, .dtype = t, .out_dtype = t, .add = true}, block_rows_, attended_,
              compact_));
  layers(&Layer::gate_up);
  DS_TRY(make(gate_up_, {.in = d, .out = 2 * c.ff, .dtype = t, .out_dtype = t}, block_rows_, normed_,
              projected_));
  layers(&Layer::down);
  DS_TRY(make(down_, {.in = c.ff, .out = d, .dtype = t, .out_dtype = t, .add = true}, block_rows_, attended_,
              compact_));
  weights = {m.weights_.head()};
  DS_TRY(make(head_, {.in = d, .out = c.vocab, .dtype = t, .out_dtype = DType::kF32}, kLogitRows, normed_,
              reinterpret_cast<std::byte*>(logits_)));

  if (!map_products_.empty()) {
    DS_ASSIGN(DeviceBuffer matrix,
              DeviceBuffer::make(m.device_, (d + kRankAlign) * d * element, "a map to try with"));
    DS_TRY(check(fill_random(side_, t, matrix.data(), (d + kRankAlign) * d, 3, 1.0f), "fill_random"));
    weights = {matrix.data()};
    for (size_t i = 0; i < map_products_.size(); ++i) {
      const int64_t rank = map_ranks_[i];
      auto& [first, second] = map_products_[i];
      const DType f32 = DType::kF32;
      if (rank == 0) {
        DS_TRY(
            make(first, {.in = d, .out = d, .dtype = t, .out_dtype = f32}, block_rows_, normed_, projected_));
      } else {
        DS_TRY(
            make(first, {.in = d, .out = rank, .dtype = t, .out_dtype = t}, block_rows_, normed_, attended_));
        DS_TRY(make(second, {.in = rank, .out = d, .dtype = t, .out_dtype = f32}, block_rows_, attended_,
                    projected_));
      }
    }
  }
  DS_TRY(check(cudaStreamSynchronize(side_), "cudaStreamSynchronize of a workspace"));
  m.device_->algorithms().save();
  return ok_status();
}

}  // namespace ds::cuda
