#include "runtime/backends/cuda/matmul_internal.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>

namespace ds::cuda {
namespace {

constexpr int64_t kStep = 1024;    // buckets are powers of two up to it, and multiples of it above
constexpr int64_t kSteps = 10;     // log2
constexpr int kCandidates = 8;     // of the library's, best first by its own guess
constexpr int kSamples = 5;        // medians of so many
constexpr float kSampleMs = 0.2f;  // as many runs in each as take about so long, but
constexpr int kMostRuns = 20;
constexpr float kLongMs = 20;  // one run is as good as many

cudaDataType_t data_type(DType t) { return t == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF; }

/// What rows of so many bytes are aligned by, wherever they begin.
uint32_t row_alignment(int64_t row_bytes) { return static_cast<uint32_t>(std::gcd(row_bytes, int64_t{256})); }

template <typename T>
Status set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what, T value) {
  return check(cublasLtMatmulPreferenceSetAttribute(preference, what, &value, sizeof(value)),
               "cublasLtMatmulPreferenceSetAttribute");
}

/// Times of work on a stream.
class Stopwatch {
 public:
  ~Stopwatch() {
    if (begin_ != nullptr) (void)cudaEventDestroy(begin_);
    if (end_ != nullptr) (void)cudaEventDestroy(end_);
  }
  Status start() {
    DS_TRY(check(cudaEventCreateWithFlags(&begin_, cudaEventDefault), "cudaEventCreateWithFlags"));
    return check(cudaEventCreateWithFlags(&end_, cudaEventDefault), "cudaEventCreateWithFlags");
  }
  template <typename F>
  Result<float> ms(cudaStream_t stream, F work) {
    DS_TRY(check(cudaEventRecord(begin_, stream), "cudaEventRecord"));
    DS_TRY(work());
    DS_TRY(check(cudaEventRecord(end_, stream), "cudaEventRecord"));
    DS_TRY(check(cudaEventSynchronize(end_), "cudaEventSynchronize of a search for algorithms"));
    float ms = 0;
    DS_TRY(check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime"));
    return ms;
  }

 private:
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

std::string ProductShape::text(int64_t rows) const {
  return fmt::format("{} x {} {} -> {}{}, {} rows, w at {}", out, in, dtype_name(dtype),
                     dtype_name(out_dtype), add ? " added" : "", rows, w_align);
}

int64_t row_bucket(int64_t rows) {
  if (rows <= kStep) return std::bit_width(static_cast<uint64_t>(rows - 1));
  return kSteps + (rows + kStep - 1) / kStep - 1;
}

int64_t row_bucket_rows(int64_t index) {
  return index <= kSteps ? int64_t{1} << index : (index - kSteps + 1) * kStep;
}

Product::Product(std::shared_ptr<Device> device, const ProductShape& shape, int64_t max_rows)
    : device_(std::move(device)), shape_(shape), max_rows_(max_rows) {}

Product::~Product() {
  if (preference_ != nullptr) (void)cublasLtMatmulPreferenceDestroy(preference_);
  for (cublasLtMatrixLayout_t layout : {w_, x_, y_})
    if (layout != nullptr) (void)cublasLtMatrixLayoutDestroy(layout);
  if (operation_ != nullptr) (void)cublasLtMatmulDescDestroy(operation_);
}

Result<std::unique_ptr<Product>> Product::make(std::shared_ptr<Device> device, const ProductShape& shape,
                                               int64_t max_rows) {
  device->use();
  std::unique_ptr<Product> product(new Product(std::move(device), shape, max_rows));
  Product& p = *product;
  // Column-major, as the library has it: w is [in][out], transposed; x [in][rows]; y [out][rows].
  DS_TRY(check(cublasLtMatmulDescCreate(&p.operation_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate"));
  const cublasOperation_t transposed = CUBLAS_OP_T;
  DS_TRY(check(cublasLtMatmulDescSetAttribute(p.operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                              sizeof(transposed)),
               "cublasLtMatmulDescSetAttribute"));
  const auto in = static_cast<uint64_t>(shape.in), out = static_cast<uint64_t>(shape.out);
  const auto rows = static_cast<uint64_t>(max_rows);
  DS_TRY(check(cublasLtMatrixLayoutCreate(&p.w_, data_type(shape.dtype), in, out, shape.in),
               "cublasLtMatrixLayoutCreate"));
  DS_TRY(check(cublasLtMatrixLayoutCreate(&p.x_, data_type(shape.dtype), in, rows, shape.in),
               "cublasLtMatrixLayoutCreate"));
  DS_TRY(check(cublasLtMatrixLayoutCreate(&p.y_, data_type(shape.out_dtype), out, rows, shape.out),
               "cublasLtMatrixLayoutCreate"));
  p.rows_ = max_rows;
  DS_TRY(check(cublasLtMatmulPreferenceCreate(&p.preference_), "cublasLtMatmulPreferenceCreate"));
  DS_TRY(
      set(p.preference_, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(kProductWorkspace)));
  const uint32_t x_align = row_alignment(shape.in * dtype_size(shape.dtype));
  const uint32_t y_align = row_alignment(shape.out * dtype_size(shape.out_dtype));
  DS_TRY(
      set(p.preference_, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(shape.w_align)));
  DS_TRY(set(p.preference_, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_align));
  DS_TRY(set(p.preference_, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, y_align));
  DS_TRY(set(p.preference_, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, y_align));
  p.buckets_.resize(static_cast<size_t>(row_bucket(max_rows) + 1));
  p.ways_.assign(static_cast<size_t>(max_rows + 1), kUnknown);
  return product;
}

Result<std::unique_ptr<Product>> Product::make_single(std::shared_ptr<Device> device,
                                                      const ProductShape& shape, int64_t rows) {
  DS_ASSIGN(std::unique_ptr<Product> product, make(std::move(device), shape, rows));
  DS_ASSIGN(std::vector<cublasLtMatmulAlgo_t> found, product->candidates(1));
  product->buckets_.back().best = product->buckets_.back().first = found.front();
  return product;
}

Status Product::set_rows(int64_t rows) {
  if (rows == rows_) return ok_status();
  const auto count = static_cast<uint64_t>(rows);
  for (cublasLtMatrixLayout_t layout : {x_, y_})
    DS_TRY(check(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &count, sizeof(count)),
                 "cublasLtMatrixLayoutSetAttribute"));
  rows_ = rows;
  return ok_status();
}

bool Product::accepts(const cublasLtMatmulAlgo_t& algo) const {
  cublasLtMatmulHeuristicResult_t result{};
  return cublasLtMatmulAlgoCheck(device_->cublas_lt(), operation_, w_, x_, y_, y_, &algo, &result) ==
             CUBLAS_STATUS_SUCCESS &&
         result.workspaceSize <= static_cast<size_t>(kProductWorkspace);
}

Result<std::vector<cublasLtMatmulAlgo_t>> Product::candidates(int most) const {
  cublasLtMatmulHeuristicResult_t results[kCandidates];
  int count = 0;
  DS_TRY(check(cublasLtMatmulAlgoGetHeuristic(device_->cublas_lt(), operation_, w_, x_, y_, y_, preference_,
                                              std::min(most, kCandidates), results, &count),
               "cublasLtMatmulAlgoGetHeuristic for {}", shape_.text(rows_)));
  std::vector<cublasLtMatmulAlgo_t> found;
  for (int i = 0; i < count; ++i)
    if (results[i].state == CUBLAS_STATUS_SUCCESS) found.push_back(results[i].algo);
  if (found.empty())
    return error(Code::kUnsupported, "cuBLASLt has no algorithm on {} for {}", device_->info().name,
                 shape_.text(rows_));
  return found;
}

Status Product::multiply(cudaStream_t stream, const cublasLtMatmulAlgo_t& algo, const std::byte* w,
                         const std::byte* x, std::byte* y, std::byte* workspace) {
  const float one = 1, zero = 0;
  return check(cublasLtMatmul(device_->cublas_lt(), operation_, &one, w, w_, x, x_, shape_.add ? &one : &zero,
                              y, y_, y, y_, &algo, workspace, static_cast<size_t>(kProductWorkspace), stream),
               "cublasLtMatmul of {}", shape_.text(rows_));
}

/// What algorithms are tried with, and those that have run.
struct Product::Trial {
  cudaStream_t stream;
  std::span<const std::byte* const> weights;
  const std::byte* x;
  std::byte *y, *workspace;
  size_t turn = 0;
  std::vector<cublasLtMatmulAlgo_t> loaded = {};
  Stopwatch watch = {};
};

Status Product::try_once(Trial& t, const cublasLtMatmulAlgo_t& algo) {
  return multiply(t.stream, algo, t.weights[t.turn++ % t.weights.size()], t.x, t.y, t.workspace);
}

Status Product::load(Trial& t, const cublasLtMatmulAlgo_t& algo) {
  auto same = [&](const cublasLtMatmulAlgo_t& l) { return std::memcmp(&l, &algo, sizeof(l)) == 0; };
  if (std::any_of(t.loaded.begin(), t.loaded.end(), same)) return ok_status();
  DS_TRY(try_once(t, algo));
  DS_TRY(check(cudaStreamSynchronize(t.stream), "cudaStreamSynchronize of a search, {}", shape_.text(rows_)));
  t.loaded.push_back(algo);
  return ok_status();
}

Result<int64_t> Product::measure(Trial& t, const cublasLtMatmulAlgo_t& algo, int64_t best_ns) {
  DS_ASSIGN(float once, t.watch.ms(t.stream, [&] { return try_once(t, algo); }));
  if (double ns = static_cast<double>(once) * 1e6;
      best_ns != 0 && ns > 3.0 * static_cast<double>(best_ns) + 2e4)
    return std::llround(ns);  // far off: not worth more
  if (once > kLongMs) return std::llround(static_cast<double>(once) * 1e6);
  const int runs = std::clamp(static_cast<int>(kSampleMs / std::max(once, 1e-4f)), 1, kMostRuns);
  float samples[kSamples];
  for (float& sample : samples) {
    DS_ASSIGN(float ms, t.watch.ms(t.stream, [&]() -> Status {
      for (int r = 0; r < runs; ++r) DS_TRY(try_once(t, algo));
      return ok_status();
    }));
    sample = ms / static_cast<float>(runs);
  }
  std::nth_element(samples, samples + kSamples / 2, samples + kSamples);
  return std::max<int64_t>(std::llround(static_cast<double>(samples[kSamples / 2]) * 1e6), 1);
}

Result<Algorithm> Product::fastest(Trial& t, std::span<const cublasLtMatmulAlgo_t> among) {
  std::vector<cublasLtMatmulAlgo_t> running;
  Status refused;
  for (const cublasLtMatmulAlgo_t& algo : among) {
    if (Status status = load(t, algo); status.ok())
      running.push_back(algo);
    else if (status.code() == Code::kUnavailable)
      return status;
    else
      refused = std::move(status);
  }
  if (running.empty()) return refused.with_context("no algorithm runs");
  Algorithm best{.algo = running.front()};
  if (running.size() == 1) return best;
  for (const cublasLtMatmulAlgo_t& algo : running) {
    DS_ASSIGN(int64_t ns, measure(t, algo, best.ns));
    if (best.ns == 0 || ns < best.ns) best = {algo, ns};
  }
  return best;
}

Status Product::search(cudaStream_t stream, std::span<const std::byte* const> weights, const std::byte* x,
                       std::byte* y, std::byte* workspace) {
  Algorithms& known = device_->algorithms();
  Trial trial{stream, weights, x, y, workspace};
  DS_TRY(trial.watch.start());
  for (size_t i = 0; i < buckets_.size(); ++i) {
    DS_TRY(set_rows(std::min(row_bucket_rows(static_cast<int64_t>(i)), max_rows_)));
    const std::string text = shape_.text(rows_);
    DS_ASSIGN(std::vector<cublasLtMatmulAlgo_t> found, candidates(kCandidates));
    buckets_[i].first = found.front();
    // What a request may need is loaded now, as loading it may wait for the device.
    if (Status status = load(trial, found.front()); status.code() == Code::kUnavailable) return status;
    std::optional<Algorithm> choice = known.find(text);
    if (!choice || !accepts(choice->algo) || !load(trial, choice->algo).ok()) {
      DS_ASSIGN(choice, fastest(trial, found));
      known.put(text, *choice);
    }
    buckets_[i].best = choice->algo;
  }
  std::fill(ways_.begin(), ways_.end(), kUnknown);
  return ok_status();
}

Result<const cublasLtMatmulAlgo_t*> Product::algorithm(int64_t rows) {
  Bucket& bucket = buckets_[static_cast<size_t>(row_bucket(rows))];
  Way& way = ways_[static_cast<size_t>(rows)];
  if (way == kUnknown) {
    if (accepts(bucket.best)) {
      way = kBest;
    } else if (accepts(bucket.first)) {
      way = kFirst;
    } else {
      DS_ASSIGN(std::vector<cublasLtMatmulAlgo_t> found, candidates(1));
      own_[rows] = found.front();
      way = kOwn;
    }
  }
  return way == kBest ? &bucket.best : way == kFirst ? &bucket.first : &own_.at(rows);
}

Status Product::run(cudaStream_t stream, const std::byte* w, const std::byte* x, std::byte* y, int64_t rows,
                    std::byte* workspace) {
  DS_TRY(set_rows(rows));
  DS_ASSIGN(const cublasLtMatmulAlgo_t* algo, algorithm(rows));
  return multiply(stream, *algo, w, x, y, workspace);
}

}  // namespace ds::cuda
