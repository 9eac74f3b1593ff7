// The functions of cuBLASLt that the backend uses, on the simulated device: products of bf16 or f32 with sums
// in f32, by OpenBLAS. As strict as the library is documented to be.
#include <cblas.h>
#include <cublasLt.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include "runtime/backends/cuda/simulated/device_internal.h"
#include "support/dtype.h"

using namespace ds::cuda::simulated;

namespace ds::cuda::simulated {
namespace {

struct [[gnu::may_alias]] Layout {  // in the library's opaque type
  cudaDataType type;
  uint64_t rows, columns;
  int64_t ld;
  int32_t order, batches;
};
struct [[gnu::may_alias]] Desc {
  cublasComputeType_t compute;
  cudaDataType scale;
  int32_t transpose_a, transpose_b, epilogue, bias_type, pointer_mode;
  const void* bias;
};
struct [[gnu::may_alias]] Preference {
  uint64_t workspace;
  uint32_t alignment[4];  // of A, B, C, D
};
/// What an algorithm is: one of kAlgorithms, and what it was found for.
struct [[gnu::may_alias]] Algorithm {
  uint64_t magic, id;
  uint32_t alignment[4];
};
constexpr uint64_t kMagic = 0x64736c74'616c676f;
constexpr int kAlgorithms = 4;

static_assert(sizeof(Layout) <= sizeof(cublasLtMatrixLayoutOpaque_t));
static_assert(sizeof(Desc) <= sizeof(cublasLtMatmulDescOpaque_t));
static_assert(sizeof(Preference) <= sizeof(cublasLtMatmulPreferenceOpaque_t));
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

template <typename T, typename Opaque>
T& as(Opaque* opaque) {
  return *reinterpret_cast<T*>(opaque->data);
}

size_t size_of(cudaDataType type) { return type == CUDA_R_16BF ? 2 : 4; }
bool known(cudaDataType type) { return type == CUDA_R_16BF || type == CUDA_R_32F; }

/// One product: D [m][n] (column-major) = alpha * op(A) [m][k] * op(B) [k][n] + beta * C, + bias of m
/// elements.
struct Product {
  Layout a, b, c, d;
  Desc desc;
  int64_t m = 0, n = 0, k = 0;

  size_t workspace(uint64_t id) const { return id == 2 ? static_cast<size_t>(2 * m * n) * 4 : 0; }
  bool takes(uint64_t id) const {
    return id < kAlgorithms && (id != 3 || (m % 8 == 0 && n % 8 == 0 && k % 8 == 0));
  }
};

/// What the library would not do, and so what is not to be asked of it.
cublasStatus_t check(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, Product& product) {
  if (desc == nullptr || a == nullptr || b == nullptr || c == nullptr || d == nullptr)
    return CUBLAS_STATUS_INVALID_VALUE;
  product = {as<Layout>(a), as<Layout>(b), as<Layout>(c), as<Layout>(d), as<Desc>(desc)};
  Product& p = product;
  const bool transpose_a = p.desc.transpose_a != CUBLAS_OP_N, transpose_b = p.desc.transpose_b != CUBLAS_OP_N;
  for (const Layout* layout : {&p.a, &p.b, &p.c, &p.d}) {
    if (layout->order != CUBLASLT_ORDER_COL || layout->batches != 1 || !known(layout->type))
      return CUBLAS_STATUS_NOT_SUPPORTED;
    if (layout->ld < static_cast<int64_t>(layout->rows) || layout->rows == 0 || layout->columns == 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  }
  if (p.desc.compute != CUBLAS_COMPUTE_32F || p.desc.scale != CUDA_R_32F || p.a.type != p.b.type ||
      p.c.type != p.d.type || (p.a.type == CUDA_R_32F && p.d.type != CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (p.desc.epilogue != CUBLASLT_EPILOGUE_DEFAULT && p.desc.epilogue != CUBLASLT_EPILOGUE_BIAS)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  // In f32 with bf16 operands the library's bias is in the type of D, unless it is told otherwise.
  if (p.desc.bias_type != -1 && p.desc.bias_type != p.d.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  p.m = static_cast<int64_t>(transpose_a ? p.a.columns : p.a.rows);
  p.k = static_cast<int64_t>(transpose_a ? p.a.rows : p.a.columns);
  p.n = static_cast<int64_t>(transpose_b ? p.b.rows : p.b.columns);
  const auto depth_b = static_cast<int64_t>(transpose_b ? p.b.columns : p.b.rows);
  auto fits = [&p](const Layout& x) {
    return static_cast<int64_t>(x.rows) == p.m && static_cast<int64_t>(x.columns) == p.n;
  };
  return depth_b == p.k && fits(p.c) && fits(p.d) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

bool in_memory(const void* data, const Layout& layout) {
  const size_t elements = static_cast<size_t>(layout.ld) * (layout.columns - 1) + layout.rows;
  return reinterpret_cast<uintptr_t>(data) % size_of(layout.type) == 0 &&
         in_device_memory(data, elements * size_of(layout.type));
}

float value_at(const void* data, cudaDataType type, size_t at) {
  return type == CUDA_R_32F ? static_cast<const float*>(data)[at]
                            : bf16_to_f32(static_cast<const uint16_t*>(data)[at]);
}

/// The matrix in f32, as it is or in `floats`.
const float* in_f32(const void* data, const Layout& layout, std::vector<float>& floats) {
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(data);
  floats.resize(static_cast<size_t>(layout.ld) * (layout.columns - 1) + layout.rows);
  for (size_t i = 0; i < floats.size(); ++i) floats[i] = bf16_to_f32(static_cast<const uint16_t*>(data)[i]);
  return floats.data();
}

void run(const Product& p, float alpha, float beta, const void* a, const void* b, const void* c, void* d,
         uint64_t id) {
  std::vector<float> a_floats, b_floats, sums(static_cast<size_t>(p.m * p.n));
  const float *x = in_f32(a, p.a, a_floats), *y = in_f32(b, p.b, b_floats);
  const bool transpose_a = p.desc.transpose_a != CUBLAS_OP_N, transpose_b = p.desc.transpose_b != CUBLAS_OP_N;
  // Algorithm 2 splits the depth: another order of the sum.
  for (int64_t k = 0, step = id == 2 && p.k > 1 ? (p.k + 1) / 2 : p.k; k < p.k; k += step) {
    cblas_sgemm(CblasColMajor, transpose_a ? CblasTrans : CblasNoTrans,
                transpose_b ? CblasTrans : CblasNoTrans, static_cast<int>(p.m), static_cast<int>(p.n),
                static_cast<int>(std::min(step, p.k - k)), 1.0f, x + (transpose_a ? k : k * p.a.ld),
                static_cast<int>(p.a.ld), y + (transpose_b ? k * p.b.ld : k), static_cast<int>(p.b.ld),
                k == 0 ? 0.0f : 1.0f, sums.data(), static_cast<int>(p.m));
  }
  for (int64_t column = 0; column < p.n; ++column) {
    for (int64_t row = 0; row < p.m; ++row) {
      float sum = alpha * sums[static_cast<size_t>(column * p.m + row)];
      if (beta != 0) sum += beta * value_at(c, p.c.type, static_cast<size_t>(column * p.c.ld + row));
      if (p.desc.epilogue == CUBLASLT_EPILOGUE_BIAS)
        sum += value_at(p.desc.bias, p.d.type, static_cast<size_t>(row));
      const auto at = static_cast<size_t>(column * p.d.ld + row);
      if (p.d.type == CUDA_R_32F)
        static_cast<float*>(d)[at] = sum;
      else
        static_cast<uint16_t*>(d)[at] = f32_to_bf16(sum);
    }
  }
}

template <typename T>
cublasStatus_t assign(T& to, const void* from, size_t bytes) {
  if (from == nullptr || bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t refused(const char* function) {
  cudaError_t error = enter(function);
  return error == cudaSuccess               ? CUBLAS_STATUS_SUCCESS
         : error == cudaErrorIllegalAddress ? CUBLAS_STATUS_EXECUTION_FAILED
                                            : CUBLAS_STATUS_NOT_INITIALIZED;
}

template <typename Opaque>
cublasStatus_t destroy(Opaque* opaque) {
  if (opaque == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  delete opaque;
  --Device::get().handles;
  return CUBLAS_STATUS_SUCCESS;
}
template <typename Opaque>
Opaque* create() {
  ++Device::get().handles;
  return new Opaque{};
}

}  // namespace
}  // namespace ds::cuda::simulated

struct cublasLtContext {
  uint64_t magic = kMagic;
};

#define DS_ENTER(function) \
  if (cublasStatus_t status = refused(#function); status != CUBLAS_STATUS_SUCCESS) return status

extern "C" {

size_t cublasLtGetVersion(void) { return CUBLAS_VERSION; }
size_t cublasLtGetCudartVersion(void) { return CUDART_VERSION; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    default:
      return "CUBLAS_STATUS_UNKNOWN";
  }
}
const char* cublasLtGetStatusString(cublasStatus_t status) { return cublasLtGetStatusName(status); }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  DS_ENTER(cublasLtCreate);
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *handle = create<cublasLtContext>();
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) { return destroy(handle); }

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size,
                                                 cudaDataType type, uint64_t rows, uint64_t columns,
                                                 int64_t ld) {
  if (layout == nullptr || size < sizeof(*layout)) return CUBLAS_STATUS_ALLOC_FAILED;
  as<Layout>(layout) = {type, rows, columns, ld, CUBLASLT_ORDER_COL, 1};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
  *layout = create<cublasLtMatrixLayoutOpaque_t>();
  return cublasLtMatrixLayoutInit_internal(*layout, sizeof(**layout), type, rows, columns, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) { return destroy(layout); }
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t name, const void* value,
                                                size_t bytes) {
  if (layout == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  Layout& to = as<Layout>(layout);
  switch (name) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
      return assign(to.type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
      return assign(to.order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
      return assign(to.rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
      return assign(to.columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
      return assign(to.ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return assign(to.batches, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t desc, size_t size,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
  if (desc == nullptr || size < sizeof(*desc)) return CUBLAS_STATUS_ALLOC_FAILED;
  as<Desc>(desc) = {
      compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, -1, CUBLASLT_POINTER_MODE_HOST,
      nullptr};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = create<cublasLtMatmulDescOpaque_t>();
  return cublasLtMatmulDescInit_internal(*desc, sizeof(**desc), compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) { return destroy(desc); }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name,
                                              const void* value, size_t bytes) {
  if (desc == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  Desc& to = as<Desc>(desc);
  switch (name) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
      return assign(to.compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
      return assign(to.scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
      return assign(to.pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return assign(to.transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return assign(to.transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return assign(to.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return assign(to.bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return assign(to.bias_type, value, bytes);
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t size) {
  if (preference == nullptr || size < sizeof(*preference)) return CUBLAS_STATUS_ALLOC_FAILED;
  as<Preference>(preference) = {0, {256, 256, 256, 256}};  // the library's own defaults
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = create<cublasLtMatmulPreferenceOpaque_t>();
  return cublasLtMatmulPreferenceInit_internal(*preference, sizeof(**preference));
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return destroy(preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name,
                                                    const void* value, size_t bytes) {
  if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  Preference& to = as<Preference>(preference);
  switch (name) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return assign(to.workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return assign(to.alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return assign(to.alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return assign(to.alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return assign(to.alignment[3], value, bytes);
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return CUBLAS_STATUS_SUCCESS;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t results[], int* found) {
  DS_ENTER(cublasLtMatmulAlgoGetHeuristic);
  if (handle == nullptr || handle->magic != kMagic) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (preference == nullptr || most <= 0 || found == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  *found = 0;
  Product product;
  if (cublasStatus_t status = check(desc, a, b, c, d, product); status != CUBLAS_STATUS_SUCCESS)
    return status;
  const Preference& wanted = as<Preference>(preference);
  for (uint64_t id = 0; id < kAlgorithms && *found < most; ++id) {
    if (!product.takes(id) || product.workspace(id) > wanted.workspace) continue;
    cublasLtMatmulHeuristicResult_t& result = results[(*found)++];
    result = {};
    Algorithm& algorithm = as<Algorithm>(&result.algo);
    algorithm = {kMagic, id, {}};
    std::copy_n(wanted.alignment, 4, algorithm.alignment);
    result.workspaceSize = product.workspace(id);
    result.state = CUBLAS_STATUS_SUCCESS;
    result.wavesCount = 1;
  }
  return *found > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  DS_ENTER(cublasLtMatmulAlgoCheck);
  if (handle == nullptr || handle->magic != kMagic) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (algo == nullptr || result == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  Product product;
  if (cublasStatus_t status = check(desc, a, b, c, d, product); status != CUBLAS_STATUS_SUCCESS)
    return status;
  const auto& algorithm = as<const Algorithm>(algo);
  if (algorithm.magic != kMagic) return CUBLAS_STATUS_INVALID_VALUE;
  if (!product.takes(algorithm.id)) return CUBLAS_STATUS_NOT_SUPPORTED;
  result->workspaceSize = product.workspace(algorithm.id);
  result->state = CUBLAS_STATUS_SUCCESS;
  result->wavesCount = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  DS_ENTER(cublasLtMatmul);
  if (handle == nullptr || handle->magic != kMagic) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (alpha == nullptr || beta == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  Product product;
  if (cublasStatus_t status = check(desc, a_layout, b_layout, c_layout, d_layout, product);
      status != CUBLAS_STATUS_SUCCESS)
    return status;
  if (product.desc.pointer_mode != CUBLASLT_POINTER_MODE_HOST) return CUBLAS_STATUS_NOT_SUPPORTED;
  const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
  if (!in_memory(a, product.a) || !in_memory(b, product.b) || !in_memory(d, product.d) ||
      (keep != 0 && !in_memory(c, product.c)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (c == d && product.c.ld != product.d.ld) return CUBLAS_STATUS_INVALID_VALUE;
  if (product.desc.epilogue == CUBLASLT_EPILOGUE_BIAS &&
      !in_device_memory(product.desc.bias, static_cast<size_t>(product.m) * size_of(product.d.type)))
    return CUBLAS_STATUS_INVALID_VALUE;
  Algorithm algorithm{kMagic, 0, {1, 1, 1, 1}};
  if (algo != nullptr) algorithm = as<const Algorithm>(algo);
  if (algorithm.magic != kMagic) return CUBLAS_STATUS_INVALID_VALUE;
  if (!product.takes(algorithm.id)) return CUBLAS_STATUS_NOT_SUPPORTED;
  // An algorithm is only good for what is aligned as its search was told.
  const std::pair<const void*, const Layout*> operands[] = {
      {a, &product.a}, {b, &product.b}, {c, &product.c}, {d, &product.d}};
  for (size_t i = 0; i < 4; ++i)
    if (reinterpret_cast<uintptr_t>(operands[i].first) % algorithm.alignment[i] != 0)
      return CUBLAS_STATUS_INVALID_VALUE;
  const size_t needed = product.workspace(algorithm.id);
  if (needed > workspace_bytes || (needed > 0 && !in_device_memory(workspace, needed)))
    return CUBLAS_STATUS_INVALID_VALUE;
  // A kernel for each algorithm and types.
  load_kernel(reinterpret_cast<const void*>(
                  static_cast<uintptr_t>(algorithm.id << 8 | product.a.type << 4 | product.d.type)),
              "an algorithm of cublasLtMatmul");
  cudaError_t raised = enqueue(stream, [=] { run(product, scale, keep, a, b, c, d, algorithm.id); });
  return raised == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
