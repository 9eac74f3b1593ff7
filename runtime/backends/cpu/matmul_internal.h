// Matrix products with prepacked weights: y[rows][out] = x[rows][in] . W[out][in]^T.
//
// Three ways: oneDNN in bf16 or f32 where the machine has AVX-512, and a portable product elsewhere (oneDNN's
// own there picks its loops by the number of rows, so that a row's result would depend on its neighbours). In
// all three a row's result is the same to the bit whatever the number of rows; the conformance suite checks.
#pragma once

#include <dnnl.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/cpu/kernels_internal.h"
#include "runtime/backends/cpu/memory_internal.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds::cpu {

enum class Math : uint8_t { kDnnlBf16, kDnnlF32, kPortable };

/// How a model of `hidden` dtype is computed on a machine of this instruction set.
Math choose_math(Isa isa, DType hidden);
inline const char* math_name(Math math) {
  return math == Math::kDnnlBf16 ? "dnnl_bf16" : math == Math::kDnnlF32 ? "dnnl_f32" : "portable";
}
/// What the products read: bf16 only with kDnnlBf16.
inline DType active_dtype(Math math) { return math == Math::kDnnlBf16 ? DType::kBF16 : DType::kF32; }

/// Rows above kExactRows are rounded up to one of few sizes, each with a primitive of its own, so that none
/// is made while a request runs. Operands must then have room for kMaxPadding rows more than are asked for.
inline constexpr int64_t kExactRows = 32;
inline constexpr int64_t kMaxPadding = 31;

class PackedWeights;

/// One product's shape, shared by all layers.
class Product {
 public:
  /// `most_rows`: in one call. `out_dtype`: kF32, or kBF16 with kDnnlBf16. `threads` as at run time.
  static Result<std::shared_ptr<Product>> make(Math math, const Kernels& kernels, DType weights_dtype,
                                               int64_t in, int64_t out, int64_t most_rows, DType out_dtype);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  int64_t packed_bytes() const;
  int64_t scratch_bytes() const;
  /// Names the packed layout: packed weights may be exchanged between products whose layouts are equal.
  std::string layout() const;
  /// Lets few rows go through a kernel of our own that reads memory faster, if on these weights it gives what
  /// oneDNN gives, to the bit: how oneDNN orders its sums is its own affair.
  Status try_thin(const PackedWeights& weights);

 private:
  friend class PackedWeights;
  friend class ProductRunner;
  struct Sized {
    int64_t rows = 0;
    dnnl::memory::desc x, y, scratch;
    dnnl::primitive primitive;
  };
  Math math_ = Math::kPortable;
  Kernels kernels_;
  DType weights_dtype_ = DType::kF32, out_dtype_ = DType::kF32;
  int64_t in_ = 0, out_ = 0;
  dnnl::memory::desc packed_;
  std::vector<Sized> sizes_;  // ascending
  bool thin_ = false;
};

/// A matrix as a product reads it; the memory belongs to somebody else.
class PackedWeights {
 public:
  PackedWeights() = default;
  /// `data`: product.packed_bytes() that pack() wrote, in this process or in another with the same
  /// product.layout().
  static Result<PackedWeights> view(const Product& product, const std::byte* data);

  /// Packs matrices [out_i][in] one after the other along `out`, whose sum is product.out(), into `to`.
  /// `joined` is scratch; it grows as needed.
  struct Part {
    const std::byte* data = nullptr;
    DType dtype = DType::kF32;
    int64_t out = 0;
  };
  static Status pack(const Product& product, std::span<const Part> parts, HostBuffer& joined, std::byte* to);

 private:
  friend class ProductRunner;
  const std::byte* data_ = nullptr;
  dnnl::memory memory_;
};

/// A product as one stream calls it; holds oneDNN's handles, so that a call allocates no memory of ours.
class ProductRunner {
 public:
  explicit ProductRunner(std::shared_ptr<const Product> product, bool allow_thin = true);
  /// Above kExactRows rows, x and y have room for kMaxPadding more (what lies there is arbitrary, and is
  /// overwritten in y).
  Status run(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y,
             std::byte* scratch);

 private:
  struct Call {
    int64_t rows = 0;
    dnnl::memory x, y, scratch;
    dnnl::primitive primitive;
  };
  friend class Product;
  void run_thin(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y) const;

  std::shared_ptr<const Product> product_;
  std::vector<Call> calls_;
  dnnl::stream stream_;
  bool allow_thin_;
};

/// Sets the number of OpenMP threads of the calling thread, on which oneDNN's choices depend, for a scope.
class ThreadScope {
 public:
  explicit ThreadScope(int threads);
  ThreadScope(const ThreadScope&) = delete;
  ~ThreadScope();

 private:
  int before_;
};

std::string dnnl_version();

}  // namespace ds::cpu
