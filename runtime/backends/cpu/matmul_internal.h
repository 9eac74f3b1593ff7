// Matrix products with prepacked weights: y[rows][out] = x[rows][in] . W[out][in]^T.
//
// Three ways: oneDNN in bf16 or f32 where the machine has AVX-512, and a portable product elsewhere (oneDNN's
// own there picks its loops by the number of rows, so that a row's result would depend on its neighbours). In
// all three a row's result is the same to the bit whatever the number of rows; the conformance suite checks.
//
// With AVX-512 alone oneDNN adds a row up in one order, whatever the number of rows, and one of its calls
// does a product. With AMX it does not: there every product is made of blocks of one fixed number of rows and
// a fixed number of columns, one and the same primitive for all, so that rows cannot differ. The same is done
// wherever a product is caught at depending on its number of rows when a model is loaded.
#pragma once

#include <array>
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

/// Numbers of rows that blocks may have, the best first. 32 fill the tiles of AMX, and so few cost decoding
/// little, as reading the weights takes longer; a row by itself has no place that its bits could depend on.
inline constexpr std::array<int64_t, 3> kBlockSizes = {32, 16, 1};
/// Where there are many rows, blocks of so many go first, if a row has the same bits in them: fewer calls.
inline constexpr int64_t kLargeBlock = 128;

/// oneDNN as products see it. Tests put one in its place whose rows depend on each other.
class Library {
 public:
  virtual ~Library() = default;
  /// The library's name for how it does a product: "brg:avx512_core_bf16".
  virtual std::string implementation(const dnnl::matmul::primitive_desc& description) const;
  struct Call {
    int64_t rows = 0, columns = 0;
    const dnnl::primitive& primitive;
    const dnnl::stream& stream;
    const dnnl::memory &x, &w, &y, &scratch;
  };
  virtual dnnl_status_t run(const Call& call) const;

  static const Library& current();
};

/// Makes `library` that of all products that are made in a scope; it outlives them. For tests: one at a time.
class LibraryScope {
 public:
  explicit LibraryScope(const Library& library);
  LibraryScope(const LibraryScope&) = delete;
  ~LibraryScope();
};

class PackedWeights;

/// One product's shape, shared by all layers.
class Product {
 public:
  /// `most_rows`: in one call. `out_dtype`: kF32, or kBF16 with kDnnlBf16. The calling thread has as many
  /// OpenMP threads as there are at run time.
  static Result<std::shared_ptr<Product>> make(Math math, const Kernels& kernels, DType weights_dtype,
                                               int64_t in, int64_t out, int64_t most_rows, DType out_dtype);

  int64_t in() const { return in_; }
  int64_t out() const { return out_; }
  int64_t packed_bytes() const;
  int64_t scratch_bytes() const;  // once it is settled
  /// Names the packed layout: packed weights may be exchanged between products whose layouts are equal.
  std::string layout() const;

  /// Finds out, by these weights, how rows keep their bits: whether the library gives them the same ones for
  /// other numbers of rows (else they go in blocks), and whether a kernel of our own, which reads memory
  /// faster, gives the same as well for few rows: how a library orders its sums is its own affair. Before a
  /// runner is made.
  Status settle(const PackedWeights& weights);
  /// The same by weights at random.
  Status settle();
  /// Rows of a block; 0: products of any number of rows are one call.
  int64_t block_rows() const { return blocks_.rows; }
  /// How many numbers our own kernel for few rows adds up at once; 0: the library does them.
  int64_t few_rows_depth() const { return thin_depth_; }
  const std::string& implementation() const { return implementation_; }  // the library's name; "": portable
  /// "brg:avx512_core_amx_bf16, in blocks of 32 and 128 rows"
  std::string way() const;

 private:
  friend class PackedWeights;
  friend class ProductRunner;
  struct Sized {
    int64_t rows = 0, columns = 0;
    std::string implementation;
    dnnl::memory::desc x, w, y, scratch;
    dnnl::primitive primitive;
  };
  /// A block of rows times a stripe of columns, the last stripe being narrower; to f32.
  struct Pieces {
    int64_t rows = 0;  // 0: none
    Sized stripe, last;
  };
  /// A product is cut into blocks of rows and stripes of columns. A stripe of the weights stays in a core's
  /// cache while all blocks of rows pass over it.
  struct Blocks {
    int64_t rows = 0;                  // 0: none
    int64_t stripes = 0, columns = 0;  // of a stripe but the last
    int64_t stripe_bytes = 0;          // of the packed weights
    Pieces small, large;
    int lanes = 1;  // threads
    // Of scratch: a last block's rows; a thread's, in it those of y.
    int64_t x_bytes = 0, y_bytes = 0, lane_bytes = 0;
  };
  dnnl::matmul::primitive_desc describe(int64_t rows, int64_t columns, const dnnl::memory::desc& weights,
                                        DType out_dtype) const;
  Result<Sized> size(int64_t rows, int64_t columns, const dnnl::memory::desc& weights, DType out_dtype) const;
  std::shared_ptr<const Product> unowned() const;  // for a runner that it outlives
  Status make_sizes();
  Status make_blocks();
  /// What one row at random gives in all places of a block; nothing where places differ.
  Result<std::vector<float>> row_of(const Sized& block) const;
  Result<bool> rows_agree(const PackedWeights& weights) const;
  Status try_thin(const PackedWeights& weights);
  /// `rows` rows that show in which order sums are made.
  Result<HostBuffer> telling_rows(const PackedWeights& weights, int64_t rows) const;

  const Library* library_ = nullptr;
  Math math_ = Math::kPortable;
  Kernels kernels_;
  DType weights_dtype_ = DType::kF32, out_dtype_ = DType::kF32;
  int64_t in_ = 0, out_ = 0, most_rows_ = 0;
  dnnl::memory::desc packed_;
  std::string implementation_;
  std::vector<Sized> sizes_;  // ascending; or none, and
  Blocks blocks_;
  int64_t thin_depth_ = 0;  // of our own kernel's chains for few rows; 0: it is not used
};

/// A matrix as a product reads it; the memory belongs to somebody else.
class PackedWeights {
 public:
  PackedWeights() = default;
  /// `data`: packed_bytes() of a product that pack() wrote, in this process or in another with the same
  /// layout().
  static PackedWeights view(const std::byte* data);

  /// Packs matrices [out_i][in] one after the other along `out`, whose sum is product.out(), into `to`.
  /// `joined` is scratch; it grows as needed.
  struct Part {
    const std::byte* data = nullptr;
    DType dtype = DType::kF32;
    int64_t out = 0;
  };
  static Status pack(const Product& product, std::span<const Part> parts, HostBuffer& joined, std::byte* to);

 private:
  friend class Product;
  friend class ProductRunner;
  const std::byte* data_ = nullptr;
};

/// A product as one stream calls it; holds oneDNN's handles, so that a call allocates no memory of ours.
class ProductRunner {
 public:
  /// Of a product that is settled.
  explicit ProductRunner(std::shared_ptr<const Product> product, bool allow_thin = true);
  /// Above kExactRows rows, x and y have room for kMaxPadding more (what lies there is arbitrary, and is
  /// overwritten in y).
  Status run(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y,
             std::byte* scratch);

 private:
  struct Call {
    explicit Call(const Product::Sized& size);
    int64_t rows = 0, columns = 0;
    dnnl::memory x, w, y, scratch;
    dnnl::primitive primitive;
  };
  struct Lane {  // of one thread
    dnnl::stream stream;
    Call small, small_last, large, large_last;
  };
  friend class Product;
  static dnnl_status_t call(const Library& library, Call& call, const dnnl::stream& stream,
                            const std::byte* x, const std::byte* w, std::byte* y, std::byte* scratch);
  Status run_blocks(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y,
                    std::byte* scratch);
  void run_thin(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y) const;

  std::shared_ptr<const Product> product_;
  std::vector<Call> calls_;
  dnnl::stream stream_;
  std::vector<Lane> lanes_;
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
