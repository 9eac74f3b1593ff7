// cuDNN's attention, through cudnn-frontend's headers. cuDNN itself is opened when it is first asked for, so
// that a machine without it still has our own kernel. The only file that includes the frontend: it takes
// half a minute to compile.
#include "runtime/backends/cuda/attention_internal.h"

#ifndef DS_CUDNN

namespace ds::cuda {

namespace {
constexpr const char* kWithout =
    "built without cuDNN (its headers, or those of cudnn-frontend, were not found)";
}

Result<std::unique_ptr<LibraryAttention>> LibraryAttention::make(const AttentionShape&, int64_t, int64_t, int,
                                                                 std::string& why) {
  why = kWithout;
  return std::unique_ptr<LibraryAttention>();
}
std::string library_attention_version() { return ""; }
Result<std::string> plan_library_attention(const AttentionShape&, int64_t, int64_t, const std::string&, int) {
  return error(Code::kUnavailable, "planning cuDNN's attention: {}", kWithout);
}

}  // namespace ds::cuda

#else

#include <dlfcn.h>

#define NV_CUDNN_FRONTEND_USE_DYNAMIC_LOADING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include <cudnn_frontend.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <numeric>
#include <vector>

namespace cudnn_frontend {
void* cudnn_dlhandle = nullptr;  // where the frontend looks for cuDNN's functions
}

namespace ds::cuda {
namespace {

namespace fe = cudnn_frontend;

constexpr const char* kLibraryName = "libcudnn.so.9";
constexpr size_t kLeastVersion = 90600;  // causal from the bottom right at any lengths

std::string version_text(size_t version) {
  return fmt::format("cuDNN {}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

/// Whether cuDNN is there; opened once, for good.
struct Library {
  size_t version = 0;
  std::string why;  // it is not
};
Library open_library() {
  fe::cudnn_dlhandle = dlopen(kLibraryName, RTLD_NOW | RTLD_LOCAL);
  if (!fe::cudnn_dlhandle) return {.why = fmt::format("cuDNN is not there: {}", dlerror())};
  Library library{.version = fe::detail::get_backend_version()};
  if (library.version < kLeastVersion)
    library.why = fmt::format("{} is too old; {} or newer is needed", version_text(library.version),
                              version_text(kLeastVersion));
  return library;
}
const Library& library() {
  static const Library opened = [] {
    try {
      return open_library();
    } catch (const std::exception& e) {
      return Library{.why = fmt::format("cuDNN does not load: {}", e.what())};
    }
  }();
  return opened;
}

/// cuDNN's message on one line; those about plans list all that were tried.
std::string one_line(std::string text) {
  constexpr size_t kMost = 400;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text.size() <= kMost ? text : text.substr(0, kMost) + " ...";
}

std::string describe(const AttentionShape& s, int64_t rows, int64_t keys) {
  return fmt::format("{} rows over up to {} keys, {} heads, {} kv heads of {}, {}", rows, keys, s.heads,
                     s.kv_heads, s.head_dim, dtype_name(s.dtype));
}

/// Why the library is not even asked; "" where it is.
std::string refusal(const AttentionShape& s, int64_t max_context) {
  if (s.dtype != DType::kBF16) return fmt::format("it is used for bf16, not {}", dtype_name(s.dtype));
  if (s.head_dim % 8 != 0) return fmt::format("head_dim {} is not a multiple of 8", s.head_dim);
  // What cuDNN documents; it also plans wider ones.
  if (s.head_dim > kMaxHeadDim) return fmt::format("head_dim {} is more than {}", s.head_dim, kMaxHeadDim);
  if (max_context * 2 * s.kv_heads * s.head_dim > INT32_MAX)
    return fmt::format("{} keys of 2 x {} x {} elements are more than 32 bits count", max_context, s.kv_heads,
                       s.head_dim);
  return library().why;
}

const char* error_name(cudnnStatus_t status) {
  static auto name =
      reinterpret_cast<decltype(&cudnnGetErrorString)>(dlsym(fe::cudnn_dlhandle, "cudnnGetErrorString"));
  return name ? name(status) : "it failed";
}

// What a graph's tensors are called, in the order in which execute() wants their addresses.
enum Name : int64_t { kQ = 1, kK, kV, kO, kRows, kKeys, kQOffsets, kKVOffsets, kNames };

/// Attention of up to `rows` rows over up to `keys` keys: lengths come from device memory, and the sequence's
/// ends from offsets (cuDNN's ragged layout), so that rows of `out` behind the last stay as they are.
void describe_graph(fe::graph::Graph& graph, const AttentionShape& s, int64_t rows, int64_t keys) {
  using Tensor = fe::graph::Tensor_attributes;
  graph.set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const int64_t d = s.head_dim, q_row = s.heads * d, kv_row = 2 * s.kv_heads * d;
  auto integers = [&](const char* name, Name uid, int64_t count) {
    return graph.tensor(Tensor()
                            .set_name(name)
                            .set_uid(uid)
                            .set_dim({count, 1, 1, 1})
                            .set_stride({1, 1, 1, 1})
                            .set_data_type(fe::DataType_t::INT32));
  };
  auto q_offsets = integers("q_offsets", kQOffsets, 2), kv_offsets = integers("kv_offsets", kKVOffsets, 2);
  auto tensor = [&](const char* name, Name uid, int64_t heads, int64_t length, int64_t row, auto& offsets) {
    return graph.tensor(Tensor()
                            .set_name(name)
                            .set_uid(uid)
                            .set_dim({1, heads, length, d})
                            .set_stride({length * row, d, row, 1})
                            .set_ragged_offset(offsets));
  };
  auto q = tensor("q", kQ, s.heads, rows, q_row, q_offsets);
  auto k = tensor("k", kK, s.kv_heads, keys, kv_row, kv_offsets);
  auto v = tensor("v", kV, s.kv_heads, keys, kv_row, kv_offsets);
  auto options = fe::graph::SDPA_attributes()
                     .set_name("attention")
                     .set_generate_stats(false)
                     .set_attn_scale(1.0f / std::sqrt(static_cast<float>(d)))
                     .set_padding_mask(true)
                     .set_seq_len_q(integers("rows", kRows, 1))
                     .set_seq_len_kv(integers("keys", kKeys, 1))
                     .set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT)
                     .set_diagonal_band_right_bound(0);
  auto o = graph.sdpa(q, k, v, options)[0];
  o->set_output(true)
      .set_uid(kO)
      .set_dim({1, s.heads, rows, d})
      .set_stride({rows * q_row, d, q_row, 1})
      .set_ragged_offset(q_offsets);
}

/// `handle` is null where the graph is for a device that is described.
fe::error_t build(fe::graph::Graph& graph, cudnnHandle_t handle) {
  fe::error_t built = graph.validate();
  if (built.is_good()) built = handle ? graph.build_operation_graph(handle) : graph.build_operation_graph();
  if (built.is_good()) built = graph.create_execution_plans({fe::HeurMode_t::A});
  if (built.is_good()) built = graph.check_support();
  if (built.is_good()) built = graph.build_plans();
  if (built.is_bad()) return built;
  std::vector<int64_t> wanted(kNames - 1);
  std::iota(wanted.begin(), wanted.end(), int64_t{kQ});
  if (graph.get_variant_pack_uids_sorted() != wanted)
    return {fe::error_code_t::INVALID_VARIANT_PACK, "the plan asks for other tensors than are described"};
  return built;
}

class Cudnn final : public LibraryAttention {
 public:
  Cudnn(const AttentionShape& shape, int64_t max_context, int64_t max_rows)
      : shape_(shape), max_context_(max_context), max_rows_(max_rows) {}
  ~Cudnn() override {
    sizes_.clear();
    if (handle_) (void)fe::detail::destroy_handle(handle_);
  }

  /// Why the library does not do it; "" where it does.
  std::string prepare() {
    if (cudnnStatus_t made = fe::detail::create_handle(&handle_); made != CUDNN_STATUS_SUCCESS)
      return fmt::format("cudnnCreate: {}", error_name(made));
    // Throws where the frontend does not find CUDA's runtime (libcudart.so): now, and not in a request.
    (void)fe::detail::has_current_context();
    // Blocks behind the last row end at once, so that a few sizes are enough.
    for (int64_t rows = std::min(least_rows(), max_rows_);; rows = std::min(4 * rows, max_rows_)) {
      auto graph = std::make_unique<fe::graph::Graph>();
      const int64_t keys = std::max(max_context_, rows);
      describe_graph(*graph, shape_, rows, keys);
      int64_t bytes = 0;
      fe::error_t built = build(*graph, handle_);
      if (built.is_good()) built = graph->get_workspace_size(bytes);
      if (built.is_bad())
        return fmt::format("{} does not do {}: {}", library_attention_version(), describe(shape_, rows, keys),
                           one_line(built.get_message()));
      plan_bytes_ = std::max(plan_bytes_, (bytes + 255) / 256 * 256);
      sizes_.push_back({rows, std::move(graph)});
      if (rows == max_rows_) return "";
    }
  }

  int64_t workspace_bytes() const override {
    return plan_bytes_ + static_cast<int64_t>(sizeof(LibraryLengths));
  }
  // An estimate: the library gives a block 128 rows of one head and does not split keys, so that fewer rows
  // leave most multiprocessors idle.
  int64_t least_rows() const override { return 256; }

  Status run(cudaStream_t stream, const std::byte* q, std::byte* out, const AttentionSegment& segment,
             std::byte* workspace) override {
    Status ran = check(segment);
    if (ran.ok()) ran = start(stream, q, out, segment, workspace);
    if (ran.ok()) [[likely]]
      return ran;
    return ran.with_context("cuDNN's attention, " + describe(shape_, segment.rows, segment.keys));
  }

 private:
  struct Size {
    int64_t rows;
    std::unique_ptr<fe::graph::Graph> graph;
  };

  Status check(const AttentionSegment& segment) const {
    if (segment.prefix_rows == 0 && !segment.positions && segment.rows >= 1 && segment.rows <= max_rows_ &&
        segment.keys <= max_context_)
      return ok_status();
    return error(Code::kInternal,
                 "found {} prefix rows and {} positions; expected neither, 1 to {} rows and at most {} keys",
                 segment.prefix_rows, segment.positions ? segment.rows : 0, max_rows_, max_context_);
  }

  Status start(cudaStream_t stream, const std::byte* q, std::byte* out, const AttentionSegment& segment,
               std::byte* workspace) {
    auto* lengths = reinterpret_cast<LibraryLengths*>(workspace + plan_bytes_);
    if (cudaError_t raised = write_lengths(stream, shape_, segment, lengths); raised != cudaSuccess)
      return error(Code::kInternal, "writing the lengths: {}", cudaGetErrorString(raised));
    const int64_t at = segment.row * shape_.heads * shape_.head_dim * 2;
    auto* k = const_cast<std::byte*>(segment.cache);
    std::array<void*, kNames - 1> data = {const_cast<std::byte*>(q) + at,
                                          k,
                                          k + shape_.kv_heads * shape_.head_dim * 2,
                                          out + at,
                                          &lengths->rows,
                                          &lengths->keys,
                                          lengths->q_offsets,
                                          lengths->kv_offsets};
    auto fits = [&](const Size& size) { return segment.rows <= size.rows; };
    const fe::graph::Graph& graph = *std::find_if(sizes_.begin(), sizes_.end(), fits)->graph;
    std::lock_guard lock(mutex_);  // the handle's stream is part of its state
    if (cudnnStatus_t set = fe::detail::set_stream(handle_, stream); set != CUDNN_STATUS_SUCCESS)
      return error(Code::kInternal, "cudnnSetStream: {}", error_name(set));
    try {
      fe::error_t ran = graph.execute(handle_, data.data(), static_cast<int>(data.size()), workspace);
      if (ran.is_bad()) return error(Code::kInternal, "{}", one_line(ran.get_message()));
    } catch (const std::exception& e) {
      return error(Code::kInternal, "{}", e.what());
    }
    return ok_status();
  }

  AttentionShape shape_;
  int64_t max_context_, max_rows_, plan_bytes_ = 0;
  cudnnHandle_t handle_ = nullptr;
  std::vector<Size> sizes_;  // ascending
  std::mutex mutex_;
};

}  // namespace

Result<std::unique_ptr<LibraryAttention>> LibraryAttention::make(const AttentionShape& shape,
                                                                 int64_t max_context, int64_t max_rows,
                                                                 int device, std::string& why) {
  if (max_context < 1 || max_rows < 1)
    return error(Code::kInvalidArgument, "cuDNN's attention: found {} keys and {} rows; expected at least 1",
                 max_context, max_rows);
  why = refusal(shape, max_context);
  if (!why.empty()) return std::unique_ptr<LibraryAttention>();
  if (cudaError_t raised = cudaSetDevice(device); raised != cudaSuccess)
    return error(Code::kUnavailable, "cuDNN's attention: device {}: {}", device, cudaGetErrorString(raised));
  try {
    auto made = std::make_unique<Cudnn>(shape, max_context, max_rows);
    why = made->prepare();
    if (why.empty()) return std::unique_ptr<LibraryAttention>(std::move(made));
  } catch (const std::exception& e) {  // the frontend throws where it misses a function or CUDA's runtime
    why = fmt::format("{}: {}", library_attention_version(), e.what());
  }
  return std::unique_ptr<LibraryAttention>();
}

std::string library_attention_version() {
  return library().why.empty() ? version_text(library().version) : "";
}

Result<std::string> plan_library_attention(const AttentionShape& shape, int64_t max_context, int64_t rows,
                                           const std::string& properties, int sm) {
  const std::string what = fmt::format("planning cuDNN's attention for sm_{}, {}", sm,
                                       describe(shape, rows, std::max(max_context, rows)));
  if (std::string why = refusal(shape, max_context); !why.empty())
    return error(library().why.empty() ? Code::kUnsupported : Code::kUnavailable, "{}: {}", what, why);
  try {
    auto device = std::make_shared<fe::DeviceProperties>();
    fe::error_t built = device->deserialize({properties.begin(), properties.end()});
    fe::graph::Graph graph;
    graph.set_device_properties(device).set_sm_version(sm);
    describe_graph(graph, shape, rows, std::max(max_context, rows));
    if (built.is_good()) built = build(graph, nullptr);
    std::string name;
    if (built.is_good()) built = graph.get_plan_name(name);
    if (built.is_bad()) return error(Code::kUnsupported, "{}: {}", what, one_line(built.get_message()));
    return name;
  } catch (const std::exception& e) {
    return error(Code::kUnavailable, "{}: {}", what, e.what());
  }
}

}  // namespace ds::cuda

#endif
