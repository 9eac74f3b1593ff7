// Products of activations and weights, by cuBLASLt: row-major y [rows][out] = x [rows][in] * w^T, w
// [out][in].
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/cuda/algorithms_internal.h"
#include "runtime/backends/cuda/device_internal.h"
#include "support/dtype.h"

namespace ds::cuda {

inline constexpr int64_t kProductWorkspace = int64_t{32} << 20;

struct ProductShape {
  int64_t in = 0, out = 0;
  DType dtype = DType::kBF16, out_dtype = DType::kBF16;  // of x and w; of y. Sums are in f32
  bool add = false;                                      // y += instead of y =: the residual
  int64_t w_align = 256;  // bytes by which w is aligned at least; rows of x and y begin anywhere

  std::string text(int64_t rows) const;
};

/// Numbers of rows that share an algorithm: 1, 2, 4, .. 1024, then every 1024.
int64_t row_bucket(int64_t rows);        // index
int64_t row_bucket_rows(int64_t index);  // most rows in it

/// One shape's descriptors and algorithms, for one stream: nothing is made or searched when it runs.
class Product {
 public:
  static Result<std::unique_ptr<Product>> make(std::shared_ptr<Device> device, const ProductShape& shape,
                                               int64_t max_rows);
  /// For products of exactly `rows` rows, by the algorithm that the library itself takes.
  static Result<std::unique_ptr<Product>> make_single(std::shared_ptr<Device> device,
                                                      const ProductShape& shape, int64_t rows);
  ~Product();

  const ProductShape& shape() const { return shape_; }

  /// Finds the algorithm of each bucket: the device's choice where it is known, else by trying. `weights`:
  /// matrices to try with, in turn, so that none is in the caches because it was there before; x, y and
  /// `workspace` as in run(), with numbers in x (zeros would run faster). Each algorithm runs at least once,
  /// so that no request is the first to load its kernel.
  Status search(cudaStream_t stream, std::span<const std::byte* const> weights, const std::byte* x,
                std::byte* y, std::byte* workspace);

  /// `workspace`: kProductWorkspace bytes of the stream's.
  Status run(cudaStream_t stream, const std::byte* w, const std::byte* x, std::byte* y, int64_t rows,
             std::byte* workspace);

 private:
  struct Bucket {
    cublasLtMatmulAlgo_t best{}, first{};  // first: what the library itself would take
  };
  enum Way : uint8_t { kUnknown, kBest, kFirst, kOwn };
  struct Trial;

  Product(std::shared_ptr<Device> device, const ProductShape& shape, int64_t max_rows);
  Status set_rows(int64_t rows);
  bool accepts(const cublasLtMatmulAlgo_t& algo) const;
  Result<std::vector<cublasLtMatmulAlgo_t>> candidates(int most) const;
  Result<const cublasLtMatmulAlgo_t*> algorithm(int64_t rows);
  Status try_once(Trial& trial, const cublasLtMatmulAlgo_t& algo);
  /// Once, where it has not run.
  Status load(Trial& trial, const cublasLtMatmulAlgo_t& algo);
  /// Nanoseconds; roughly only where it is far from the best.
  Result<int64_t> measure(Trial& trial, const cublasLtMatmulAlgo_t& algo, int64_t best_ns);
  Result<Algorithm> fastest(Trial& trial, std::span<const cublasLtMatmulAlgo_t> among);
  Status multiply(cudaStream_t stream, const cublasLtMatmulAlgo_t& algo, const std::byte* w,
                  const std::byte* x, std::byte* y, std::byte* workspace);

  std::shared_ptr<Device> device_;
  ProductShape shape_;
  int64_t max_rows_ = 0, rows_ = 0;  // rows_: what the layouts are set to
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
  cublasLtMatmulPreference_t preference_ = nullptr;
  std::vector<Bucket> buckets_;
  std::vector<Way> ways_;                        // by rows: which algorithm takes exactly so many
  std::map<int64_t, cublasLtMatmulAlgo_t> own_;  // of rows that neither of their bucket takes
};

}  // namespace ds::cuda
