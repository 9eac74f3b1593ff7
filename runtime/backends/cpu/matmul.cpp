#include <omp.h>

#include <algorithm>
#include <atomic>
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

/// Most of a stripe's weights: what stays in a second-level cache while blocks of rows pass.
constexpr int64_t kStripeBytes = int64_t{1} << 20;

/// Waking threads costs as much as some microseconds of work. With few rows, reading the weights is the work.
bool worth_threads(int64_t rows, int64_t in, int64_t out) {
  return (rows + 8) * in * out > (int64_t{1} << 19);
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

ThreadScope::ThreadScope(int threads) : before_(omp_get_max_threads()) {
  omp_set_dynamic(0);  // oneDNN needs all the threads that it asks for, whatever OMP_DYNAMIC says
  omp_set_num_threads(threads);
}
ThreadScope::~ThreadScope() { omp_set_num_threads(before_); }

std::string dnnl_version() {
  const dnnl_version_t* v = dnnl::version();
  return fmt::format("{}.{}.{}", v->major, v->minor, v->patch);
}

Math choose_math(Isa isa, DType hidden) {
  if (hidden == DType::kBF16) return isa == Isa::kAvx512Bf16 ? Math::kDnnlBf16 : Math::kPortable;
  return isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16 ? Math::kDnnlF32 : Math::kPortable;
}

// ---- the library

namespace {

const Library kDnnl;
std::atomic<const Library*> library_in_use{&kDnnl};

/// Whether this implementation of the library's may add rows up in another order for other numbers of them:
/// those that use AMX choose how they cut the depth by the number of rows, which is seen here and there only
/// (1536 -> 576: 8 of 69 numbers). So they are not tried; nor is what may use it without saying so.
bool may_depend_on_rows(const std::string& implementation) {
  const auto amx = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_amx);
  const bool machine = (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & amx) == amx;
  return implementation.find("amx") != std::string::npos || (machine && implementation.rfind("brg:", 0) != 0);
}

/// Layouts of weights in panels of so many columns, panel after panel.
struct PanelLayout {
  Tag tag;
  int64_t columns;
};
constexpr PanelLayout kPanelLayouts[] = {{Tag::BA16a64b2a, 64}, {Tag::BA16a48b2a, 48}, {Tag::BA16a32b2a, 32},
                                         {Tag::BA16a16b2a, 16}, {Tag::BA16a64b, 64},   {Tag::BA16a48b, 48},
                                         {Tag::BA16a32b, 32},   {Tag::BA16a16b, 16}};

int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

/// Numbers in -1 .. 1 at random.
class Numbers {
 public:
  explicit Numbers(uint32_t seed) : state_(seed) {}
  void fill(std::byte* to, int64_t count, DType dtype) {
    for (int64_t i = 0; i < count; ++i) {
      state_ = state_ * 1664525u + 1013904223u;
      const float value = static_cast<float>(static_cast<int32_t>(state_)) * 0x1p-31f;
      const uint16_t half = f32_to_bf16(value);
      if (dtype == DType::kF32)
        std::memcpy(to + i * 4, &value, 4);
      else
        std::memcpy(to + i * 2, &half, 2);
    }
  }

 private:
  uint32_t state_;
};

constexpr const char* kChecked = "product being checked";

/// Chains that oneDNN has been seen to add up: of 512 where the depth is at most 1024.
constexpr int64_t kThinDepths[] = {1024, 512};

}  // namespace

std::string Library::implementation(const dnnl::matmul::primitive_desc& description) const {
  return description.impl_info_str();
}

dnnl_status_t Library::run(const Call& call) const {
  dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, call.x.get()},
                                 {DNNL_ARG_WEIGHTS, call.w.get()},
                                 {DNNL_ARG_DST, call.y.get()},
                                 {DNNL_ARG_SCRATCHPAD, call.scratch.get()}};
  dnnl_status_t status = dnnl_primitive_execute(call.primitive.get(), call.stream.get(), 4, arguments);
  return status == dnnl_success ? dnnl_stream_wait(call.stream.get()) : status;
}

const Library& Library::current() { return *library_in_use; }
LibraryScope::LibraryScope(const Library& library) { library_in_use = &library; }
LibraryScope::~LibraryScope() { library_in_use = &kDnnl; }

// ---- products

Result<std::shared_ptr<Product>> Product::make(Math math, const Kernels& kernels, DType weights_dtype,
                                               int64_t in, int64_t out, int64_t most_rows, DType out_dtype) {
  auto product = std::make_shared<Product>();
  Product& p = *product;
  p.library_ = &Library::current();
  p.math_ = math;
  p.kernels_ = kernels;
  p.weights_dtype_ = weights_dtype;
  p.out_dtype_ = out_dtype;
  p.in_ = in;
  p.out_ = out;
  p.most_rows_ = most_rows;
  if (math == Math::kPortable) return product;
  // One packed layout, the best for many rows, for every number of rows.
  try {
    auto d = p.describe(most_rows, out, {{in, out}, dnnl_type(weights_dtype), Tag::any}, out_dtype);
    p.packed_ = d.weights_desc();
    p.implementation_ = p.library_->implementation(d);
  } catch (const dnnl::error& e) {
    return dnnl_failure(e, "preparation", most_rows, in, out);
  }
  DS_TRY(may_depend_on_rows(p.implementation_) ? p.make_blocks() : p.make_sizes());
  return product;
}

dnnl::matmul::primitive_desc Product::describe(int64_t rows, int64_t columns,
                                               const dnnl::memory::desc& weights, DType out_dtype) const {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return dnnl::matmul::primitive_desc(
      dnnl::matmul::desc({{rows, in_}, dnnl_type(weights_dtype_), Tag::ab}, weights,
                         {{rows, columns}, dnnl_type(out_dtype), Tag::ab}),
      attributes, engine());
}

Result<Product::Sized> Product::size(int64_t rows, int64_t columns, const dnnl::memory::desc& weights,
                                     DType out_dtype) const {
  try {
    auto d = describe(rows, columns, weights, out_dtype);
    return Sized{rows,
                 columns,
                 library_->implementation(d),
                 d.src_desc(),
                 d.weights_desc(),
                 d.dst_desc(),
                 d.scratchpad_desc(),
                 dnnl::matmul(d)};
  } catch (const dnnl::error& e) {
    return dnnl_failure(e, "preparation", rows, in_, columns);
  }
}

Status Product::make_sizes() {
  for (int64_t rows : row_sizes(most_rows_)) {
    ThreadScope scope(worth_threads(rows, in_, out_) ? omp_get_max_threads() : 1);
    DS_ASSIGN(Sized sized, size(rows, out_, packed_, out_dtype_));
    sizes_.push_back(std::move(sized));
  }
  return ok_status();
}

Status Product::make_blocks() {
  Blocks b;
  b.lanes = omp_get_max_threads();
  b.stripes = 1;
  b.columns = out_;
  int64_t last_columns = out_;
  dnnl::memory::desc stripe = packed_, last = packed_;
  const dnnl::memory::data_type dtype = dnnl_type(weights_dtype_);
  for (const PanelLayout& layout : kPanelLayouts) {
    if (packed_ != dnnl::memory::desc({in_, out_}, dtype, layout.tag)) continue;
    const int64_t panels = (out_ + layout.columns - 1) / layout.columns,
                  panel_bytes = static_cast<int64_t>(packed_.get_size()) / panels,
                  panels_each = std::clamp<int64_t>(kStripeBytes / panel_bytes, 1, panels);
    b.stripes = (panels + panels_each - 1) / panels_each;
    b.columns = panels_each * layout.columns;
    b.stripe_bytes = panels_each * panel_bytes;
    // What pads the last panel is packed zeros; its products are thrown away.
    last_columns = (panels - (b.stripes - 1) * panels_each) * layout.columns;
    stripe = dnnl::memory::desc({in_, b.columns}, dtype, layout.tag);
    last = dnnl::memory::desc({in_, last_columns}, dtype, layout.tag);
    break;
  }
  // Threads take stripes; a stripe is one thread's.
  ThreadScope scope(1);
  auto pieces = [&](int64_t rows) -> Result<Pieces> {
    Pieces made{.rows = rows};
    DS_ASSIGN(made.stripe, size(rows, b.columns, stripe, DType::kF32));
    DS_ASSIGN(made.last, size(rows, last_columns, last, DType::kF32));
    return made;
  };
  std::vector<float> row, last_row, large_row, large_last_row;
  for (int64_t rows : kBlockSizes) {
    DS_ASSIGN(b.small, pieces(rows));
    DS_ASSIGN(row, row_of(b.small.stripe));
    DS_ASSIGN(last_row, row_of(b.small.last));
    b.rows = rows;
    if (!row.empty() && !last_row.empty()) break;
  }
  DS_ASSIGN(Pieces large, pieces(kLargeBlock));
  DS_ASSIGN(large_row, row_of(large.stripe));
  DS_ASSIGN(large_last_row, row_of(large.last));
  auto same = [](const std::vector<float>& a, const std::vector<float>& c) {
    return a.size() == c.size() && std::memcmp(a.data(), c.data(), a.size() * sizeof(float)) == 0;
  };
  if (same(row, large_row) && same(last_row, large_last_row)) b.large = std::move(large);
  size_t scratch = 0;
  for (const Pieces* p : {&b.small, &b.large})
    for (const Sized* s : {&p->stripe, &p->last})
      if (p->rows > 0) scratch = std::max(scratch, s->scratch.get_size());
  b.y_bytes = lines(std::max(b.rows, b.large.rows) * std::max(b.columns, last_columns) * 4);
  b.lane_bytes = b.y_bytes + lines(static_cast<int64_t>(scratch));
  b.x_bytes = lines(b.rows * in_ * dtype_size(weights_dtype_));
  blocks_ = std::move(b);
  sizes_.clear();
  return ok_status();
}

std::string Product::way() const {
  if (math_ == Math::kPortable) return "portable";
  if (blocks_.rows == 0) return implementation_;
  return fmt::format("{}, in blocks of {}{} row{}", blocks_.small.stripe.implementation, blocks_.rows,
                     blocks_.large.rows > 0 ? fmt::format(" and {}", blocks_.large.rows) : "",
                     blocks_.rows == 1 && blocks_.large.rows == 0 ? "" : "s");
}

// ---- how a library adds up

Result<std::vector<float>> Product::row_of(const Sized& block) const {
  const int64_t x_row = in_ * dtype_size(weights_dtype_), y_row = block.columns * 4;
  DS_ASSIGN(HostBuffer x, HostBuffer::make(block.rows * x_row, kChecked));
  DS_ASSIGN(HostBuffer w, HostBuffer::make(static_cast<int64_t>(block.w.get_size()), kChecked));
  DS_ASSIGN(HostBuffer y, HostBuffer::make(block.rows * y_row, kChecked));
  DS_ASSIGN(HostBuffer scratch, HostBuffer::make(static_cast<int64_t>(block.scratch.get_size()), kChecked));
  Numbers numbers(1);
  numbers.fill(x.data(), in_, weights_dtype_);
  for (int64_t r = 1; r < block.rows; ++r)
    std::memcpy(x.data() + r * x_row, x.data(), static_cast<size_t>(x_row));
  numbers.fill(w.data(), w.size() / dtype_size(weights_dtype_), weights_dtype_);
  ProductRunner::Call call(block);
  dnnl::stream stream(engine());
  if (dnnl_status_t status =
          ProductRunner::call(*library_, call, stream, x.data(), w.data(), y.data(), scratch.data());
      status != dnnl_success)
    return dnnl_failure(dnnl::error(status, "execution failed"), "check", block.rows, in_, block.columns);
  for (int64_t r = 1; r < block.rows; ++r)
    if (std::memcmp(y.data(), y.data() + r * y_row, static_cast<size_t>(y_row)) != 0)
      return std::vector<float>();
  return std::vector<float>(y.as<float>(), y.as<float>() + block.columns);
}

/// Whether rows give the same bits in calls of a few other numbers of them.
Result<bool> Product::rows_agree(const PackedWeights& weights) const {
  constexpr int64_t kTried[] = {1, kExactRows, 64};
  // Few rows go through our own kernel, which has been compared.
  if (thin_depth_ > 0 && most_rows_ <= kThinRows) return true;
  const int64_t most = std::min(most_rows_, kTried[std::size(kTried) - 1]);
  const int64_t y_row = out_ * dtype_size(out_dtype_);
  DS_ASSIGN(HostBuffer x, telling_rows(weights, most));
  DS_ASSIGN(HostBuffer expected, HostBuffer::make((most + kMaxPadding) * y_row, kChecked));
  DS_ASSIGN(HostBuffer found, HostBuffer::make((most + kMaxPadding) * y_row, kChecked));
  DS_ASSIGN(HostBuffer scratch, HostBuffer::make(scratch_bytes(), kChecked));
  ProductRunner runner(unowned(), false);
  DS_TRY(runner.run(weights, most, x.data(), expected.data(), scratch.data()));
  for (int64_t rows : kTried) {
    if (rows >= most) break;
    if (thin_depth_ > 0 && rows < kThinRows) continue;
    DS_TRY(runner.run(weights, rows, x.data(), found.data(), scratch.data()));
    if (std::memcmp(expected.data(), found.data(), static_cast<size_t>(rows * y_row)) != 0) return false;
  }
  return true;
}

Status Product::settle(const PackedWeights& weights) {
  if (math_ == Math::kPortable) return ok_status();
  DS_TRY(try_thin(weights));
  if (blocks_.rows > 0) return ok_status();
  DS_ASSIGN(bool alike, rows_agree(weights));
  if (alike) return ok_status();
  DS_TRY(make_blocks());
  return try_thin(weights);
}

Status Product::settle() {
  if (math_ == Math::kPortable) return ok_status();
  DS_ASSIGN(HostBuffer w, HostBuffer::make(in_ * out_ * dtype_size(weights_dtype_), kChecked));
  DS_ASSIGN(HostBuffer packed, HostBuffer::make(packed_bytes(), kChecked));
  Numbers(3).fill(w.data(), in_ * out_, weights_dtype_);
  HostBuffer joined;
  const PackedWeights::Part part{w.data(), weights_dtype_, out_};
  DS_TRY(PackedWeights::pack(*this, {&part, 1}, joined, packed.data()));
  return settle(PackedWeights::view(packed.data()));
}

int64_t Product::packed_bytes() const {
  if (math_ != Math::kPortable) return static_cast<int64_t>(packed_.get_size());
  return (out_ + kPanel - 1) / kPanel * kPanel * in_ * dtype_size(weights_dtype_);
}

int64_t Product::scratch_bytes() const {
  int64_t most = blocks_.x_bytes + blocks_.lanes * blocks_.lane_bytes;
  for (const Sized& s : sizes_) most = std::max(most, static_cast<int64_t>(s.scratch.get_size()));
  return most;
}

std::shared_ptr<const Product> Product::unowned() const { return {std::shared_ptr<const Product>(), this}; }

std::string Product::layout() const {
  std::string text = fmt::format("{} x {} {}", in_, out_, dtype_name(weights_dtype_));
  if (math_ == Math::kPortable) return text + fmt::format(" panels of {}", kPanel);
  const dnnl_blocking_desc_t& b = packed_.data.format_desc.blocking;
  text += fmt::format(" {} bytes, strides {} {}, blocks", packed_.get_size(), b.strides[0], b.strides[1]);
  for (int i = 0; i < b.inner_nblks; ++i)
    text += fmt::format(" {}{}", b.inner_blks[i], b.inner_idxs[i] == 0 ? "a" : "b");
  return text;
}

PackedWeights PackedWeights::view(const std::byte* data) {
  PackedWeights weights;
  weights.data_ = data;
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

ProductRunner::Call::Call(const Product::Sized& size)
    : rows(size.rows),
      columns(size.columns),
      x(size.x, engine(), nullptr),
      w(size.w, engine(), nullptr),
      y(size.y, engine(), nullptr),
      scratch(size.scratch, engine(), nullptr),
      primitive(size.primitive) {}

dnnl_status_t ProductRunner::call(const Library& library, Call& call, const dnnl::stream& stream,
                                  const std::byte* x, const std::byte* w, std::byte* y, std::byte* scratch) {
  call.x.set_data_handle(const_cast<std::byte*>(x));
  call.w.set_data_handle(const_cast<std::byte*>(w));
  call.y.set_data_handle(y);
  call.scratch.set_data_handle(scratch);
  return library.run({call.rows, call.columns, call.primitive, stream, call.x, call.w, call.y, call.scratch});
}

ProductRunner::ProductRunner(std::shared_ptr<const Product> product, bool allow_thin)
    : product_(std::move(product)), stream_(engine()), allow_thin_(allow_thin) {
  for (const Product::Sized& s : product_->sizes_) calls_.emplace_back(s);
  const Product::Blocks& b = product_->blocks_;
  const Product::Pieces& large = b.large.rows > 0 ? b.large : b.small;
  for (int lane = 0; b.rows > 0 && lane < b.lanes; ++lane)
    lanes_.push_back({dnnl::stream(engine()), Call(b.small.stripe), Call(b.small.last), Call(large.stripe),
                      Call(large.last)});
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
  if (p.thin_depth_ > 0 && allow_thin_ && rows <= kThinRows) {
    run_thin(weights, rows, x, y);
    return ok_status();
  }
  if (p.blocks_.rows > 0) return run_blocks(weights, rows, x, y, scratch);
  auto call = std::find_if(calls_.begin(), calls_.end(), [&](const Call& c) { return c.rows >= rows; });
  if (call == calls_.end())
    return error(Code::kInternal, "product of {} rows; made for at most {}", rows, calls_.back().rows);
  if (dnnl_status_t status = this->call(*p.library_, *call, stream_, x, weights.data_, y, scratch);
      status != dnnl_success)
    return dnnl_failure(dnnl::error(status, "execution failed"), "run", rows, p.in_, p.out_);
  return ok_status();
}

Status ProductRunner::run_blocks(const PackedWeights& weights, int64_t rows, const std::byte* x, std::byte* y,
                                 std::byte* scratch) {
  const Product& p = *product_;
  const Product::Blocks& b = p.blocks_;
  const int64_t x_row = p.in_ * dtype_size(p.weights_dtype_), element = dtype_size(p.out_dtype_);
  const int64_t large = b.large.rows > 0 ? rows / b.large.rows : 0, first_small = large * b.large.rows;
  const int64_t small = (rows - first_small + b.rows - 1) / b.rows, blocks = large + small;
  if (const int64_t left = (rows - first_small) % b.rows; left > 0) {
    // The last block has rows that nobody asked for: zeros, as what lies behind a caller's may be anything.
    std::memcpy(scratch, x + (rows - left) * x_row, static_cast<size_t>(left * x_row));
    std::memset(scratch + left * x_row, 0, static_cast<size_t>((b.rows - left) * x_row));
  }
  std::atomic<dnnl_status_t> failed{dnnl_success};
#pragma omp parallel num_threads(b.lanes) if (b.lanes > 1 && \
                                              worth_threads(first_small + small * b.rows, p.in_, p.out_))
  {
    const auto number = static_cast<size_t>(omp_get_thread_num());
    Lane& lane = lanes_[number];
    std::byte* product = scratch + b.x_bytes + static_cast<int64_t>(number) * b.lane_bytes;
#pragma omp for collapse(2) schedule(static)
    for (int64_t stripe = 0; stripe < b.stripes; ++stripe)
      for (int64_t block = 0; block < blocks; ++block) {
        const bool many = block < large, last = stripe + 1 == b.stripes;
        Call& call = many ? (last ? lane.large_last : lane.large) : (last ? lane.small_last : lane.small);
        const int64_t row = many ? block * b.large.rows : first_small + (block - large) * b.rows;
        const int64_t asked = std::min(call.rows, rows - row);
        dnnl_status_t status =
            this->call(*p.library_, call, lane.stream, asked < call.rows ? scratch : x + row * x_row,
                       weights.data_ + stripe * b.stripe_bytes, product, product + b.y_bytes);
        if (status != dnnl_success) failed = status;
        const int64_t column = stripe * b.columns, columns = std::min(call.columns, p.out_ - column);
        const auto* from = reinterpret_cast<const float*>(product);
        for (int64_t r = 0; r < asked; ++r, from += call.columns) {
          std::byte* to = y + ((row + r) * p.out_ + column) * element;
          if (p.out_dtype_ == DType::kF32)
            std::memcpy(to, from, static_cast<size_t>(columns) * 4);
          else
            p.kernels_.scale(from, 1.0f, columns, to);  // rounds, as the library would
        }
      }
  }
  if (failed != dnnl_success)
    return dnnl_failure(dnnl::error(failed, "execution failed"), "run", rows, p.in_, p.out_);
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
                             .columns = std::min(kThinPanel, p.out_ - panel * kThinPanel),
                             .depth = p.thin_depth_});
}

Result<HostBuffer> Product::telling_rows(const PackedWeights& weights, int64_t rows) const {
  DS_ASSIGN(HostBuffer x,
            HostBuffer::make((rows + kMaxPadding) * in_ * dtype_size(weights_dtype_), kChecked));
  Numbers(1).fill(x.data(), rows * in_, weights_dtype_);
  // Sums that are rounded to bf16 mostly hide it. So each row has a column whose sum is next to nothing: what
  // is left of it is what rounding on the way has left, and that differs where the order does.
  const dnnl_blocking_desc_t& b = packed_.data.format_desc.blocking;
  if (weights_dtype_ != DType::kBF16 || b.inner_nblks != 3 || b.inner_idxs[0] != 0 || b.inner_idxs[1] != 1 ||
      b.inner_idxs[2] != 0)
    return x;
  const int64_t columns = b.inner_blks[1], pair = b.inner_blks[2], deep = b.inner_blks[0] * pair;
  const auto* w = reinterpret_cast<const uint16_t*>(weights.data_);
  auto weight = [&](int64_t k, int64_t column) {
    return bf16_to_f32(w[k / deep * b.strides[0] + column / columns * b.strides[1] +
                         k % deep / pair * columns * pair + column % columns * pair + k % pair]);
  };
  constexpr int64_t kSteps = 4;  // each takes off what a bf16 number can of what is left
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t column = (row * 37 + 11) % out_;
    uint16_t* numbers = x.as<uint16_t>() + row * in_;
    int64_t at[kSteps];
    for (int64_t step = 0; step < kSteps; ++step) {
      at[step] = std::min(step, in_ - 1);
      for (int64_t k = step; k < in_; k += kSteps)
        if (std::abs(weight(k, column)) > std::abs(weight(at[step], column))) at[step] = k;
      numbers[at[step]] = 0;
    }
    double sum = 0;
    for (int64_t k = 0; k < in_; ++k) sum += static_cast<double>(bf16_to_f32(numbers[k])) * weight(k, column);
    for (int64_t k : at) {
      if (weight(k, column) == 0 || numbers[k] != 0) continue;
      numbers[k] = f32_to_bf16(static_cast<float>(-sum / weight(k, column)));
      sum += static_cast<double>(bf16_to_f32(numbers[k])) * weight(k, column);
    }
  }
  return x;
}

Status Product::try_thin(const PackedWeights& weights) {
  thin_depth_ = 0;
  if (math_ != Math::kDnnlBf16 || in_ % 2 != 0 ||
      packed_ != memory::desc({in_, out_}, memory::data_type::bf16, Tag::BA16a64b2a))
    return ok_status();
  int64_t y_bytes = kThinRows * out_ * dtype_size(out_dtype_);
  DS_ASSIGN(HostBuffer x, telling_rows(weights, kThinRows));
  DS_ASSIGN(HostBuffer expected, HostBuffer::make(y_bytes, kChecked));
  DS_ASSIGN(HostBuffer found, HostBuffer::make(y_bytes, kChecked));
  DS_ASSIGN(HostBuffer scratch, HostBuffer::make(scratch_bytes(), kChecked));
  ProductRunner runner(unowned(), false);
  const int64_t most = std::min(most_rows_, kThinRows);
  for (int64_t depth : kThinDepths) {
    thin_depth_ = depth;
    bool same = true;
    for (int64_t rows : {most, int64_t{1}}) {
      DS_TRY(runner.run(weights, rows, x.data(), expected.data(), scratch.data()));
      runner.run_thin(weights, rows, x.data(), found.data());
      same = same &&
             std::memcmp(expected.data(), found.data(), static_cast<size_t>(y_bytes / kThinRows * rows)) == 0;
      if (!same) break;
    }
    if (same) return ok_status();
  }
  thin_depth_ = 0;
  return ok_status();
}

}  // namespace ds::cpu
