#include <omp.h>

#include <algorithm>
#include <cstring>

#include "runtime/backends/cpu/matmul_internal.h"

namespace ds::cpu {
namespace {

using dnnl::memory;
using Tag = dnnl::memory::format_tag;

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

memory::data_type dnnl_type(DType t) {
  return t == DType::kBF16 ? memory::data_type::bf16
                           : (t == DType::kF16 ? memory::data_type::f16 : memory::data_type::f32);
}

/// Every size up to kExactRows, where rows are few and each costs; then so finely spaced that the work on
/// padding stays below a quarter, below a tenth from 128 rows on.
std::vector<int64_t> row_sizes(int64_t most) {
  std::vector<int64_t> sizes;
  for (int64_t rows = 1; rows < std::min(most, kExactRows); ++rows) sizes.push_back(rows);
  for (int64_t rows = kExactRows; rows < most; rows += rows < 64 ? 8 : rows < 128 ? 16 : 32)
    sizes.push_back(rows);
  sizes.push_back(most);
  return sizes;
}

/// Waking threads costs as much as some microseconds of work. With few rows, reading the weights is the work.
bool worth_threads(int64_t rows, int64_t in, int64_t out) {
  return (rows + 8) * in * out > (int64_t{1} << 21);
}

void convert_rows(const PackedWeights::Part& part, int64_t in, DType to, std::byte* out) {
#pragma omp parallel for schedule(static)
  for (int64_t row = 0; row < part.out; ++row) {
    const std::byte* from = part.data + row * in * dtype_size(part.dtype);
    std::byte* target = out + row * in * dtype_size(to);
    if (part.dtype == to) {
      std::memcpy(target, from, static_cast<size_t>(in * dtype_size(to)));
      continue;
    }
    for (int64_t i = 0; i < in; ++i) {
      uint16_t half = 0;
      float value = 0;
      if (part.dtype == DType::kF32) {
        std::memcpy(&value, from + i * 4, 4);
      } else {
        std::memcpy(&half, from + i * 2, 2);
        value = part.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
      }
      if (to == DType::kF32) {
        std::memcpy(target + i * 4, &value, 4);
      } else {
        half = f32_to_bf16(value);
        std::memcpy(target + i * 2, &half, 2);
      }
    }
  }
}

/// [out][in] -> panels of kPanel columns, each [in][kPanel], zero-padded.
template <typename T>
void pack_panels(const T* w, int64_t in, int64_t out, T* packed) {
#pragma omp parallel for schedule(static)
  for (int64_t panel = 0; panel < (out + kPanel - 1) / kPanel; ++panel) {
    T* target = packed + panel * in * kPanel;
    int64_t columns = std::min(kPanel, out - panel * kPanel);
    if (columns < kPanel) std::fill_n(target, in * kPanel, T{});
    for (int64_t k = 0; k < in; ++k)
      for (int64_t c = 0; c < columns; ++c) target[k * kPanel + c] = w[(panel * kPanel + c) * in + k];
  }
}

Status dnnl_failure(const dnnl::error& e, std::string_view what, int64_t rows, int64_t in, int64_t out) {
  return error(e.status == dnnl_out_of_memory ? Code::kExhausted : Code::kInternal,
               "{} of a product [{} x {}] . [{} x {}]: oneDNN: {} (status {})", what, rows, in, in, out,
               e.message, static_cast<int>(e.status));
}

}  // namespace

ThreadScope::ThreadScope(int threads) : before_(omp_get_max_threads()) { omp_set_num_threads(threads); }
ThreadScope::~ThreadScope() { omp_set_num_threads(before_); }

std::string dnnl_version() {
  const dnnl_version_t* v = dnnl::version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
}

Math choose_math(Isa isa, DType hidden) {
  if (hidden == DType::kBF16) return isa == Isa::kAvx512Bf16 ? Math::kDnnlBf16 : Math::kPortable;
  return isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16 ? Math::kDnnlF32 : Math::kPortable;
}

Result<std::shared_ptr<Product>> Product::make(Math math, const Kernels& kernels, DType weights_dtype,
                                               int64_t in, int64_t out, int64_t most_rows, DType out_dtype) {
  auto product = std::make_shared<Product>();
  product->math_ = math;
  product->kernels_ = kernels;
  product->weights_dtype_ = weights_dtype;
  product->out_dtype_ = out_dtype;
  product->in_ = in;
  product->out_ = out;
  if (math == Math::kPortable) return product;
  int64_t rows = most_rows;
  try {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    auto describe = [&](const memory::desc& weights) {
      return dnnl::matmul::primitive_desc(
          dnnl::matmul::desc({{rows, in}, dnnl_type(weights_dtype), Tag::ab}, weights,
                             {{rows, out}, dnnl_type(out_dtype), Tag::ab}),
          attributes, engine());
    };
    // One packed layout, the best for many rows, for every number of rows.
    product->packed_ = describe({{in, out}, dnnl_type(weights_dtype), Tag::any}).weights_desc();
    for (int64_t size : row_sizes(most_rows)) {
      rows = size;
      ThreadScope scope(worth_threads(size, in, out) ? omp_get_max_threads() : 1);
      auto d = describe(product->packed_);
      product->sizes_.push_back({size, d.src_desc(), d.dst_desc(), d.scratchpad_desc(), dnnl::matmul(d)});
    }
  } catch (const dnnl::error& e) {
    return dnnl_failure(e, "preparation", rows, in, out);
  }
  return product;
}

int64_t Product::packed_bytes() const {
  if (math_ != Math::kPortable) return static_cast<int64_t>(packed_.get_size());
  return (out_ + kPanel - 1) / kPanel * kPanel * in_ * dtype_size(weights_dtype_);
}

int64_t Product::scratch_bytes() const {
  int64_t most = 0;
  for (const Sized& s : sizes_) most = std::max(most, static_cast<int64_t>(s.scratch.get_size()));
  return most;
}

std::string Product::layout() const {
  std::string text = fmt::format("{} x {} {}", in_, out_, dtype_name(weights_dtype_));
  if (math_ == Math::kPortable) return text + fmt::format(" panels of {}", kPanel);
  const dnnl_blocking_desc_t& b = packed_.data.format_desc.blocking;
  text += fmt::format(" {} bytes, strides {} {}, blocks", packed_.get_size(), b.strides[0], b.strides[1]);
  for (int i = 0; i < b.inner_nblks; ++i)
    text += fmt::format(" {}{}", b.inner_blks[i], b.inner_idxs[i] == 0 ? "a" : "b");
  return text;
}

Result<PackedWeights> PackedWeights::view(const Product& product, const std::byte* data) {
  PackedWeights weights;
  weights.data_ = data;
  if (product.math_ == Math::kPortable) return weights;
  try {
    weights.memory_ = memory(product.packed_, engine(), const_cast<std::byte*>(data));
  } catch (const dnnl::error& e) {
    return dnnl_failure(e, "packing", 0, product.in_, product.out_);
  }
  return weights;
}

Status PackedWeights::pack(const Product& product, std::span<const Part> parts, HostBuffer& joined,
                           std::byte* to) {
  DType dtype = product.weights_dtype_;
  const std::byte* source = parts[0].data;
  if (parts.size() > 1 || parts[0].dtype != dtype) {
    int64_t bytes = product.in_ * product.out_ * dtype_size(dtype);
    if (joined.size() < bytes) {
      joined = HostBuffer();
      DS_ASSIGN(joined, HostBuffer::make(bytes, "weights being packed"));
    }
    std::byte* at = joined.data();
    for (const Part& part : parts) {
      convert_rows(part, product.in_, dtype, at);
      at += part.out * product.in_ * dtype_size(dtype);
    }
    source = joined.data();
  }
  if (product.math_ == Math::kPortable) {
    if (dtype == DType::kF32)
      pack_panels(reinterpret_cast<const float*>(source), product.in_, product.out_,
                  reinterpret_cast<float*>(to));
    else
      pack_panels(reinterpret_cast<const uint16_t*>(source), product.in_, product.out_,
                  reinterpret_cast<uint16_t*>(to));
    return ok_status();
  }
  try {
    dnnl::stream stream(engine());
    memory from({{product.in_, product.out_}, dnnl_type(dtype), Tag::ba}, engine(),
                const_cast<std::byte*>(source));
    memory packed(product.packed_, engine(), to);
    dnnl::reorder(from, packed).execute(stream, from, packed);
    stream.wait();
  } catch (const dnnl::error& e) {
    return dnnl_failure(e, "packing", 0, product.in_, product.out_);
  }
  return ok_status();
}

ProductRunner::ProductRunner(std::shared_ptr<const Product> product, bool allow_thin)
    : product_(std::move(product)), stream_(engine()), allow_thin_(allow_thin) {
  for (const Product::Sized& s : product_->sizes_)
    calls_.push_back({s.rows, memory(s.x, engine(), nullptr), memory(s.y, engine(), nullptr),
                      memory(s.scratch, engine(), nullptr), s.primitive});
}

Status ProductRunner::run(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y,
                          std::byte* scratch) {
  const Product& p = *product_;
  if (p.math_ == Math::kPortable) {
    // Depth in fixed blocks: what a panel needs of the weights stays in the first-level cache.
    int64_t panels = (p.out_ + kPanel - 1) / kPanel;
#pragma omp parallel for schedule(static) if (worth_threads(rows, p.in_, p.out_))
    for (int64_t panel = 0; panel < panels; ++panel)
      for (int64_t k = 0; k < p.in_; k += kPanelDepth)
        p.kernels_.panel_product(
            {.x = reinterpret_cast<const float*>(x) + k,
             .x_stride = p.in_,
             .w = weights.data_ + (panel * p.in_ + k) * kPanel * dtype_size(p.weights_dtype_),
             .y = reinterpret_cast<float*>(y) + panel * kPanel,
             .y_stride = p.out_,
             .rows = rows,
             .depth = std::min(kPanelDepth, p.in_ - k),
             .columns = std::min(kPanel, p.out_ - panel * kPanel),
             .accumulate = k > 0});
    return ok_status();
  }
  if (p.thin_ && allow_thin_ && rows <= kThinRows) {
    run_thin(weights, rows, x, y);
    return ok_status();
  }
  auto call = std::find_if(calls_.begin(), calls_.end(), [&](const Call& c) { return c.rows >= rows; });
  if (call == calls_.end())
    return error(Code::kInternal, "product of {} rows; made for at most {}", rows, calls_.back().rows);
  call->x.set_data_handle(const_cast<std::byte*>(x));
  call->y.set_data_handle(y);
  call->scratch.set_data_handle(scratch);
  dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, call->x.get()},
                                 {DNNL_ARG_WEIGHTS, weights.memory_.get()},
                                 {DNNL_ARG_DST, call->y.get()},
                                 {DNNL_ARG_SCRATCHPAD, call->scratch.get()}};
  dnnl_status_t status = dnnl_primitive_execute(call->primitive.get(), stream_.get(), 4, arguments);
  if (status == dnnl_success) status = dnnl_stream_wait(stream_.get());
  if (status != dnnl_success)
    return dnnl_failure(dnnl::error(status, "execution failed"), "run", rows, p.in_, p.out_);
  return ok_status();
}

void ProductRunner::run_thin(const PackedWeights& weights, int64_t rows, const std::byte* x,
                             std::byte* y) const {
  const Product& p = *product_;
  int64_t panels = (p.out_ + kThinPanel - 1) / kThinPanel, panel_bytes = p.packed_bytes() / panels;
#pragma omp parallel for schedule(static) if (worth_threads(rows, p.in_, p.out_))
  for (int64_t panel = 0; panel < panels; ++panel)
    p.kernels_.thin_product({.x = x,
                             .x_stride = p.in_,
                             .w = weights.data_ + panel * panel_bytes,
                             .y = y + panel * kThinPanel * dtype_size(p.out_dtype_),
                             .y_stride = p.out_,
                             .y_dtype = p.out_dtype_,
                             .rows = rows,
                             .pairs = p.in_ / 2,
                             .columns = std::min(kThinPanel, p.out_ - panel * kThinPanel)});
}

Status Product::try_thin(const PackedWeights& weights) {
  if (math_ != Math::kDnnlBf16 || in_ % 2 != 0 ||
      packed_ != memory::desc({in_, out_}, memory::data_type::bf16, Tag::BA16a64b2a))
    return ok_status();
  int64_t y_bytes = kThinRows * out_ * dtype_size(out_dtype_);
  DS_ASSIGN(HostBuffer x, HostBuffer::make(kThinRows * in_ * 2, "product being checked"));
  DS_ASSIGN(HostBuffer expected, HostBuffer::make(y_bytes, "product being checked"));
  DS_ASSIGN(HostBuffer found, HostBuffer::make(y_bytes, "product being checked"));
  DS_ASSIGN(HostBuffer scratch, HostBuffer::make(scratch_bytes(), "product being checked"));
  uint32_t state = 1;
  for (int64_t i = 0; i < kThinRows * in_; ++i) {
    state = state * 1664525u + 1013904223u;
    x.as<uint16_t>()[i] = f32_to_bf16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
  }
  std::shared_ptr<const Product> self(std::shared_ptr<const Product>(),
                                      this);  // lives longer than the runner
  ProductRunner runner(self, false);
  bool same = true;
  for (int64_t rows : {int64_t{1}, kThinRows}) {
    if (rows > sizes_.back().rows) continue;
    DS_TRY(runner.run(weights, rows, x.data(), expected.data(), scratch.data()));
    runner.run_thin(weights, rows, x.data(), found.data());
    same = same &&
           std::memcmp(expected.data(), found.data(), static_cast<size_t>(y_bytes / kThinRows * rows)) == 0;
  }
  thin_ = same;
  return ok_status();
}

}  // namespace ds::cpu
