// Every kernel against plain loops in double precision, at the shapes of models and at odd ones.
#include "runtime/backends/cuda/kernels_internal.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <string>

#include "tests/cuda/device_memory.h"

namespace ds::cuda {
namespace {

struct ModelShape {
  const char* name;
  int64_t d, heads, kv_heads, head_dim, ff;
  bool biases, norms;
};
const ModelShape kModels[] = {
    {"Llama-3.2-1B", 2048, 32, 8, 64, 8192, false, false},
    {"Llama-3.1-8B", 4096, 32, 8, 128, 14336, false, false},
    {"Qwen2.5-7B", 3584, 28, 4, 128, 18944, true, false},
    {"Qwen3-8B", 4096, 32, 8, 128, 12288, false, true},
    {"head of 80", 480, 6, 2, 80, 1000, true, true},
    {"head of 96", 384, 4, 4, 96, 1032, true, true},
    {"head of 256", 1024, 4, 1, 256, 520, true, true},
    {"head of 32", 64, 2, 1, 32, 72, true, true},
    {"odd sizes", 30, 3, 1, 10, 34, true, true},
    {"head of 2", 4, 2, 1, 2, 6, true, true},
    {"head of 130", 260, 2, 2, 130, 7, false, true},
};
constexpr DType kTypes[] = {DType::kBF16, DType::kF32};

using Kernels = DeviceTest;

// ---- copies

TEST_F(Kernels, EmbedCopiesRows) {
  Numbers numbers(1);
  for (DType dtype : kTypes)
    for (int64_t d : {2, 6, 30, 64, 2048, 3584, 4096})
      for (size_t offset : {0, 1}) {
        const int64_t vocab = 23, rows = 13;
        std::vector<float> table = numbers.normals(dtype, vocab * d);
        std::vector<int32_t> ids(rows);
        for (int32_t& id : ids) id = static_cast<int32_t>(numbers.below(vocab));
        ids[3] = vocab - 1;
        DeviceFloats from(dtype, table, offset), to(dtype, rows * d);
        DeviceArray<int32_t> index(ids);
        ASSERT_EQ(embed(stream(), dtype, index.data(), rows, from.bytes(), d, to.bytes()), cudaSuccess);
        synchronize();
        std::vector<float> got = to.get();
        for (int64_t r = 0; r < rows; ++r)
          for (int64_t i = 0; i < d; ++i)
            ASSERT_EQ(got[r * d + i], table[ids[r] * d + i])
                << dtype_name(dtype) << " d " << d << " row " << r;
      }
}

TEST_F(Kernels, GatherRowsOfAnySize) {
  for (int64_t row_bytes : {2, 4, 6, 12, 16, 48, 100, 2048, 2050, 8192}) {
    const int64_t from_rows = 40, rows = 29;
    std::vector<uint16_t> values(from_rows * row_bytes / 2);
    std::iota(values.begin(), values.end(), uint16_t{1});
    std::vector<int32_t> ids(rows);
    for (int64_t r = 0; r < rows; ++r) ids[r] = static_cast<int32_t>(r * 7 % from_rows);
    DeviceArray<uint16_t> from(values), to(rows * row_bytes / 2);
    DeviceArray<int32_t> index(ids);
    ASSERT_EQ(gather_rows(stream(), from.bytes(), index.data(), rows, row_bytes, to.bytes()), cudaSuccess);
    synchronize();
    std::vector<uint16_t> got = to.get();
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < row_bytes / 2; ++i)
        ASSERT_EQ(got[r * row_bytes / 2 + i], values[ids[r] * row_bytes / 2 + i])
            << row_bytes << " row " << r;
  }
}

// ---- norms

TEST_F(Kernels, RmsNorm) {
  Numbers numbers(2);
  for (DType dtype : kTypes)
    for (int64_t d : {2, 6, 30, 64, 100, 256, 768, 1024, 2048, 3584, 4096, 5120, 8192, 12288, 16384, 16392})
      for (bool indexed : {false, true})
        for (size_t offset : {0, 1}) {
          if (offset == 1 && d != 256) continue;
          const int64_t rows = d > 5000 ? 2 : 5, from_rows = indexed ? 7 : rows;
          const float eps = 1e-5f;
          std::vector<float> x = numbers.normals(dtype, from_rows * d), weight = numbers.normals(d, 0.1f, 1);
          std::vector<int64_t> index(rows);
          for (int64_t r = 0; r < rows; ++r) index[r] = indexed ? (r * 3 + 1) % from_rows : r;
          DeviceFloats from(dtype, x, offset), to(dtype, rows * d);
          DeviceArray<float> weights(weight);
          DeviceArray<int64_t> indexes(index);
          ASSERT_EQ(rms_norm(stream(), dtype, from.bytes(), indexed ? indexes.data() : nullptr,
                             weights.data(), eps, rows, d, to.bytes()),
                    cudaSuccess);
          synchronize();
          std::vector<float> got = to.get();
          for (int64_t r = 0; r < rows; ++r) {
            const float* row = x.data() + index[r] * d;
            double squares = 0;
            for (int64_t i = 0; i < d; ++i) squares += double{row[i]} * row[i];
            const double factor = 1 / std::sqrt(squares / static_cast<double>(d) + eps);
            for (int64_t i = 0; i < d; ++i) {
              const double want = row[i] * factor * weight[i];
              ASSERT_TRUE(close_to(got[r * d + i], want, dtype, std::abs(want)))
                  << dtype_name(dtype) << " d " << d << " row " << r << " element " << i;
            }
          }
        }
}

// ---- rotation and caches

/// One head, in doubles: bias, norm, rotation.
std::vector<double> head_reference(const float* x, int64_t dim, const float* bias, const float* norm,
                                   double eps, const float* cos, const float* sin) {
  std::vector<double> v(x, x + dim);
  if (bias != nullptr)
    for (int64_t i = 0; i < dim; ++i) v[i] += bias[i];
  if (norm != nullptr) {
    double squares = 0;
    for (double e : v) squares += e * e;
    const double factor = 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
    for (int64_t i = 0; i < dim; ++i) v[i] *= factor * norm[i];
  }
  if (cos == nullptr) return v;
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double a = v[i], b = v[half + i];
    v[i] = a * cos[i] - b * sin[i];
    v[half + i] = b * cos[i] + a * sin[i];
  }
  return v;
}

enum class Places { kFirst, kFirstAt, kPositions, kTargets };
enum class Parts { kAll, kKeysAndValues, kKeys, kQueries };

class RopeRun {
 public:
  RopeRun(const ModelShape& shape, DType dtype, Places places, Parts parts, size_t offset)
      : shape_(shape), dtype_(dtype), places_(places), parts_(parts), offset_(offset) {}

  void run(cudaStream_t stream) {
    const auto [name, d, heads, kv_heads, dim, ff, biases, norms] = shape_;
    const int64_t q_size = heads * dim, kv_size = kv_heads * dim, half = dim / 2, positions = 40, rows = 5;
    const bool queries = parts_ == Parts::kAll || parts_ == Parts::kQueries;
    const bool keys = parts_ != Parts::kQueries, values = keys && parts_ != Parts::kKeys;
    Numbers numbers(3);
    RopeCall call;
    call.stride = (queries ? q_size : 0) + (keys ? kv_size : 0) + (values ? kv_size : 0);
    if (queries) call.q_at = 0;
    if (keys) call.k_at = queries ? q_size : 0;
    if (values) call.v_at = call.k_at + kv_size;
    call.rows = rows;
    call.heads = heads;
    call.kv_heads = kv_heads;
    call.head_dim = dim;
    call.eps = 1e-6f;
    const std::vector<float> x = numbers.normals(dtype_, rows * call.stride),
                             bias = numbers.normals(q_size, 0.5f), norm = numbers.normals(dim, 0.1f, 1),
                             angles = numbers.normals(positions * half, 3);
    std::vector<float> cos_values, sin_values;
    for (float angle : angles) cos_values.push_back(std::cos(angle)), sin_values.push_back(std::sin(angle));
    std::vector<int32_t> at = {2, 3, 11, 12, 39};
    if (places_ == Places::kFirst || places_ == Places::kFirstAt) std::iota(at.begin(), at.end(), 17);

    DeviceFloats projected(dtype_, x, offset_), q_out(dtype_, rows * q_size);
    const std::vector<float> old_cache = numbers.normals(dtype_, positions * 2 * kv_size);
    DeviceFloats cache(dtype_, old_cache);
    DeviceArray<float> biases_of_q(bias), norm_weights(norm), cosines(cos_values), sines(sin_values);
    DeviceArray<int32_t> position_list(at), first_at(std::vector<int32_t>{12});
    std::vector<RowTarget> target_list;
    for (int32_t position : at)
      target_list.push_back({cache.bytes() + position * 2 * kv_size * dtype_size(dtype_), position});
    DeviceArray<RowTarget> targets(target_list);
    call.projected = projected.bytes();
    call.q_out = q_out.bytes();
    if (biases) call.q_bias = call.k_bias = call.v_bias = biases_of_q.data();
    if (norms) call.q_norm = call.k_norm = norm_weights.data();
    call.cos = cosines.data();
    call.sin = sines.data();
    if (places_ == Places::kTargets)
      call.places.targets = targets.data();
    else if (keys)
      call.places.cache = cache.bytes();
    if (places_ == Places::kPositions) call.places.positions = position_list.data();
    if (places_ == Places::kFirst) call.places.first = 17;
    if (places_ == Places::kFirstAt) call.places.first = 5, call.places.first_at = first_at.data();
    ASSERT_EQ(rope_scatter(stream, dtype_, call), cudaSuccess);
    ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);

    std::vector<float> expected_cache = old_cache, got_cache = cache.get(), got_q = q_out.get();
    auto check = [&](const float* got, int64_t from, const float* head_bias, const float* head_norm,
                     int64_t row, bool rotated, const char* what) {
      const int64_t position = at[row];
      std::vector<double> want = head_reference(
          x.data() + row * call.stride + from, dim, head_bias, head_norm, call.eps,
          rotated ? cos_values.data() + position * half : nullptr, sin_values.data() + position * half);
      for (int64_t i = 0; i < dim; ++i)
        ASSERT_TRUE(close_to(got[i], want[i], dtype_, 4)) << what << " row " << row << " element " << i;
    };
    const float *b = biases ? bias.data() : nullptr, *n = norms ? norm.data() : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; queries && h < heads; ++h)
        check(&got_q[(r * heads + h) * dim], call.q_at + h * dim, b ? b + h * dim : b, n, r, true, "q");
      float* row = &got_cache[at[r] * 2 * kv_size];
      for (int64_t h = 0; h < kv_heads; ++h) {
        if (keys) check(row + h * dim, call.k_at + h * dim, b ? b + h * dim : b, n, r, true, "k");
        if (values)
          check(row + kv_size + h * dim, call.v_at + h * dim, b ? b + h * dim : b, nullptr, r, false, "v");
      }
      // What was written is checked; all else must be as before.
      auto first = expected_cache.begin() + at[r] * 2 * kv_size;
      if (keys) std::copy_n(row, values ? 2 * kv_size : kv_size, first);
    }
    ASSERT_EQ(got_cache, expected_cache);
  }

 private:
  ModelShape shape_;
  DType dtype_;
  Places places_;
  Parts parts_;
  size_t offset_;
};

TEST_F(Kernels, RopeOfEveryShape) {
  for (const ModelShape& shape : kModels)
    for (DType dtype : kTypes) {
      SCOPED_TRACE(std::string(shape.name) + " " + std::string(dtype_name(dtype)));
      RopeRun(shape, dtype, Places::kFirst, Parts::kAll, 0).run(stream());
      if (HasFatalFailure()) return;
    }
}

TEST_F(Kernels, RopeToEveryPlace) {
  for (const ModelShape& shape : {kModels[0], kModels[2], kModels[8]})
    for (Places places : {Places::kFirstAt, Places::kPositions, Places::kTargets})
      for (Parts parts : {Parts::kAll, Parts::kKeysAndValues, Parts::kKeys, Parts::kQueries}) {
        SCOPED_TRACE(testing::Message() << shape.name << " places " << static_cast<int>(places) << " parts "
                                        << static_cast<int>(parts));
        RopeRun(shape, DType::kBF16, places, parts, 0).run(stream());
        if (HasFatalFailure()) return;
      }
}

TEST_F(Kernels, RopeOfRowsThatAreNotAligned) {
  RopeRun(kModels[0], DType::kBF16, Places::kFirst, Parts::kAll, 1).run(stream());
  RopeRun(kModels[3], DType::kF32, Places::kFirst, Parts::kAll, 1).run(stream());
}

TEST_F(Kernels, RopeRefusesHeadsThatItCannotDo) {
  RopeCall call;
  call.rows = call.heads = call.kv_heads = 1;
  call.q_at = 0;
  for (int64_t dim : {0, 7, 258}) {
    call.head_dim = dim;
    EXPECT_EQ(rope_scatter(stream(), DType::kBF16, call), cudaErrorInvalidValue) << dim;
  }
}

TEST_F(Kernels, GraphsReadThePositionWhenTheyRun) {
  const int64_t dim = 8;
  std::vector<float> x(3 * dim, 1), ones(16 * dim / 2, 1), zeros(16 * dim / 2, 0);
  DeviceFloats projected(DType::kF32, x), q(DType::kF32, dim),
      cache(DType::kF32, std::vector<float>(16 * 2 * dim, 0));
  DeviceArray<float> cos(ones), sin(zeros);
  DeviceArray<int32_t> first_at(std::vector<int32_t>{0});
  RopeCall call;
  call.projected = projected.bytes();
  call.stride = 3 * dim;
  call.q_at = 0;
  call.k_at = dim;
  call.v_at = 2 * dim;
  call.rows = call.heads = call.kv_heads = 1;
  call.head_dim = dim;
  call.cos = cos.data();
  call.sin = sin.data();
  call.q_out = q.bytes();
  call.places.cache = cache.bytes();
  call.places.first_at = first_at.data();
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(rope_scatter(stream(), DType::kF32, call), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream(), &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  for (int32_t position : {3, 9}) {
    first_at.set({position});
    ASSERT_EQ(cudaGraphLaunch(exec, stream()), cudaSuccess);
    synchronize();
  }
  std::vector<float> got = cache.get();
  for (int64_t p = 0; p < 16; ++p)
    for (int64_t i = 0; i < 2 * dim; ++i) EXPECT_EQ(got[p * 2 * dim + i], p == 3 || p == 9 ? 1 : 0) << p;
  ASSERT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

// ---- element by element

TEST_F(Kernels, SwigluOfEveryShape) {
  Numbers numbers(4);
  for (const ModelShape& shape : kModels)
    for (DType dtype : kTypes) {
      const int64_t ff = shape.ff, rows = 3;
      std::vector<float> x = numbers.normals(dtype, rows * 2 * ff);
      const float extremes[] = {-200, -88, -1e30f, 200, 88, 1e30f, 0, -0.0f};
      for (int64_t i = 0; i < std::min<int64_t>(ff, 8); ++i)  // exact in either type once rounded
        x[i] = dtype == DType::kF32 ? extremes[i] : bf16_to_f32(f32_to_bf16(extremes[i]));
      DeviceFloats from(dtype, x), to(dtype, rows * ff);
      ASSERT_EQ(swiglu(stream(), dtype, from.bytes(), rows, ff, to.bytes()), cudaSuccess);
      synchronize();
      std::vector<float> got = to.get();
      for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < ff; ++i) {
          const double gate = x[r * 2 * ff + i], up = x[r * 2 * ff + ff + i];
          const double want = gate / (1 + std::exp(-gate)) * up;
          ASSERT_TRUE(close_to(got[r * ff + i], want, dtype, std::abs(want)))
              << shape.name << " " << dtype_name(dtype) << " row " << r << " element " << i << " gate "
              << gate;
        }
    }
}

TEST_F(Kernels, AlignRowsAddsOnce) {
  Numbers numbers(5);
  for (DType dtype : kTypes)
    for (int64_t d : {2, 6, 30, 2048, 3584, 4096})
      for (bool with_product : {false, true})
        for (bool with_scale : {false, true}) {
          const int64_t rows = 3;
          std::vector<float> x = numbers.normals(dtype, rows * d), product = numbers.normals(rows * d),
                             scale = numbers.normals(d), bias = numbers.normals(d);
          DeviceFloats hidden(dtype, x);
          DeviceArray<float> p(product), s(scale), b(bias);
          ASSERT_EQ(align_rows(stream(), dtype, hidden.bytes(), with_product ? p.data() : nullptr,
                               with_scale ? s.data() : nullptr, b.data(), rows, d),
                    cudaSuccess);
          synchronize();
          std::vector<float> got = hidden.get();
          for (int64_t i = 0; i < rows * d; ++i) {
            const double v = x[i], add = (with_product ? product[i] : 0.0) +
                                         (with_scale ? scale[i % d] * v : 0.0) + bias[i % d];
            ASSERT_TRUE(close_to(got[i], v + add, dtype, 4))
                << dtype_name(dtype) << " d " << d << " element " << i;
          }
        }
}

TEST_F(Kernels, AMapThatAddsNothingKeepsEveryBit) {
  Numbers numbers(6);
  for (DType dtype : kTypes)
    for (int64_t d : {6, 64}) {
      std::vector<float> x = numbers.normals(dtype, 4 * d);
      x[1] = -0.0f;
      DeviceFloats hidden(dtype, x);
      DeviceArray<float> zeros(std::vector<float>(4 * d, 0));
      ASSERT_EQ(align_rows(stream(), dtype, hidden.bytes(), zeros.data(), zeros.data(), zeros.data(), 4, d),
                cudaSuccess);
      synchronize();
      std::vector<float> got = hidden.get();
      EXPECT_EQ(std::memcmp(got.data(), x.data(), x.size() * 4), 0) << dtype_name(dtype) << " " << d;
    }
}

// ---- selection

TEST_F(Kernels, DeviationsAreSumsInTheOrderOfTheElements) {
  Numbers numbers(7);
  for (DType dtype : kTypes)
    for (auto [rows, elements] :
         {std::pair<int64_t, int64_t>{1, 512}, {33, 1024}, {70, 512}, {5, 10}, {40, 70}, {3, 2}}) {
      const int64_t kv_row = 2 * elements;
      std::vector<float> k = numbers.normals(dtype, rows * elements),
                         cache = numbers.normals(dtype, rows * kv_row);
      if (rows > 2) k[2 * elements + 1] = NAN;
      DeviceFloats mine(dtype, k), other(dtype, cache);
      DeviceArray<float> deviation(rows);
      ASSERT_EQ(key_deviation(stream(), dtype, mine.bytes(), other.bytes(), rows, elements, kv_row,
                              deviation.data()),
                cudaSuccess);
      synchronize();
      std::vector<float> got = deviation.get();
      for (int64_t r = 0; r < rows; ++r) {
        volatile float sum = 0;  // each step rounded, as everywhere
        for (int64_t i = 0; i < elements; ++i) {
          volatile float difference = k[r * elements + i] - cache[r * kv_row + i],
                         square = difference * difference;
          sum = sum + square;
        }
        EXPECT_EQ(got[r], r == 2 ? INFINITY : sum)
            << dtype_name(dtype) << " " << rows << " x " << elements << " row " << r;
      }
    }
}

TEST_F(Kernels, TheLargestInOrderOfPosition) {
  Numbers numbers(8);
  for (int64_t rows : {1, 2, 31, 1000, 4096, 4097, 9000, 20000})
    for (int kind = 0; kind < 5; ++kind) {
      std::vector<float> values(rows);
      for (float& v : values) {
        const float n = std::abs(numbers.normal());
        v = kind == 0   ? n
            : kind == 1 ? std::floor(n * 2)
            : kind == 2 ? 1.5f
            : kind == 3 ? n * 1e-40f
            : n > 1.5f  ? INFINITY
                        : 0;
      }
      std::vector<int32_t> order(rows);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int32_t a, int32_t b) { return values[a] > values[b]; });
      DeviceArray<float> from(values);
      for (int64_t count : {int64_t{1}, rows / 7, rows / 2, rows - 1, rows}) {
        if (count < 1) continue;
        DeviceArray<int32_t> positions(count);
        ASSERT_EQ(select_largest(stream(), from.data(), rows, count, positions.data()), cudaSuccess);
        synchronize();
        std::vector<int32_t> want(order.begin(), order.begin() + count);
        std::sort(want.begin(), want.end());
        ASSERT_EQ(positions.get(), want) << "kind " << kind << ", " << count << " of " << rows;
      }
    }
  DeviceArray<float> one(std::vector<float>{1});
  DeviceArray<int32_t> position(1);
  EXPECT_EQ(select_largest(stream(), one.data(), 1, 2, position.data()), cudaErrorInvalidValue);
}

// ---- choice of a token

class Chooser {
 public:
  explicit Chooser(cudaStream_t stream) : stream_(stream), choice_(1), next_(1) {}
  int32_t operator()(const DeviceArray<float>& logits, const Choice& choice) {
    choice_.set({choice});
    next_.set({-1});
    EXPECT_EQ(choose_token(stream_, logits.data(), static_cast<int64_t>(logits.size()), choice_.data(),
                           next_.data()),
              cudaSuccess);
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    return next_.get()[0];
  }

 private:
  cudaStream_t stream_;
  DeviceArray<Choice> choice_;
  DeviceArray<int32_t> next_;
};

int32_t reference_choice(const std::vector<float>& logits, const Choice& choice) {
  std::vector<std::pair<float, int32_t>> scratch;
  return choose(logits, choice, scratch);
}

TEST_F(Kernels, GreedyChoices) {
  Numbers numbers(9);
  Chooser chooser(stream());
  for (size_t vocab : {1, 2, 31, 101, 5000, 32000, 128256, 151936})
    for (size_t offset : {0, 1}) {
      std::vector<float> values = numbers.normals(vocab, 3);
      if (vocab > 100) values[vocab / 2] = values[vocab / 3] = 50;  // of equal ones the first
      EXPECT_EQ(chooser(DeviceArray<float>(values, offset), {}), reference_choice(values, {})) << vocab;
    }
  const float inf = INFINITY, nan = NAN;
  for (const std::vector<float>& values : std::vector<std::vector<float>>{{-0.0f, 0.0f, 0.0f},
                                                                          {-inf, -inf},
                                                                          {-inf, -3, inf, inf},
                                                                          {1, nan, 3, nan, 2},
                                                                          {nan, 5},
                                                                          {-inf, nan},
                                                                          {nan, nan}})
    EXPECT_EQ(chooser(DeviceArray<float>(values), {}), reference_choice(values, {}));
}

TEST_F(Kernels, SampledChoicesAreThoseOfTheHost) {
  Numbers numbers(10);
  Chooser chooser(stream());
  struct Case {
    size_t vocab;
    int rounds;
  };
  int different_from_greedy = 0;
  for (auto [vocab, rounds] :
       {Case{1, 3}, Case{7, 40}, Case{101, 40}, Case{1000, 40}, Case{32000, 6}, Case{128256, 4}}) {
    for (int round = 0; round < rounds; ++round) {
      std::vector<float> values = numbers.normals(vocab, 1 + static_cast<float>(round % 4) * 2);
      if (round % 3 == 1)
        for (float& v : values) v = std::round(v * 2) / 2;  // many equal ones
      DeviceArray<float> logits(values, round % 2);
      const double temperatures[] = {0.1, 0.7, 1, 3}, shares[] = {1, 0.95, 0.5, 0.05, 0};
      Choice choice{temperatures[numbers.below(4)], shares[numbers.below(5)], numbers.uniform()};
      if (round % 4 == 3) choice.top_k = std::array{1, 5, 50, 2000}[numbers.below(4)];
      if (round % 5 == 2) choice.min_p = std::array{0.01, 0.3, 1.0}[numbers.below(3)];
      const int32_t want = reference_choice(values, choice);
      EXPECT_EQ(chooser(logits, choice), want)
          << vocab << " round " << round << " temperature " << choice.temperature << " top_p " << choice.top_p
          << " at " << choice.at << " top_k " << choice.top_k << " min_p " << choice.min_p;
      different_from_greedy += want != reference_choice(values, {}) ? 1 : 0;
    }
  }
  EXPECT_GT(different_from_greedy, 30);
}

TEST_F(Kernels, SampledChoicesAtTheEnds) {
  Chooser chooser(stream());
  const float inf = INFINITY, nan = NAN;
  const std::vector<float> values = {2, 5, -1, 5, 4, -inf};
  DeviceArray<float> logits(values);
  for (double at : {0.0, 0.3, 0.5, 0.7, 0.999999999})
    for (double top_p : {0.0, 0.3, 0.6, 1.0}) {
      const Choice choice{.temperature = 1, .top_p = top_p, .at = at};
      EXPECT_EQ(chooser(logits, choice), reference_choice(values, choice)) << at << " " << top_p;
    }
  EXPECT_EQ(chooser(logits, {.temperature = 1e-30, .at = 0.9}), 3);  // the second of the best two
  EXPECT_EQ(chooser(DeviceArray<float>(std::vector<float>{0, inf, 3}), {.temperature = 1, .at = 0.9}), 1);
  for (const std::vector<float>& odd :
       std::vector<std::vector<float>>{{nan, nan, nan}, {nan, 1, 2}, {-inf, -inf}}) {
    const int32_t chosen = chooser(DeviceArray<float>(odd), {.temperature = 1, .at = 0.5});
    EXPECT_GE(chosen, 0);
    EXPECT_LT(chosen, static_cast<int32_t>(odd.size()));
  }
}

// ---- measuring

TEST_F(Kernels, RandomNumbersAreNormalAndTheSameForASeed) {
  for (DType dtype : kTypes) {
    const size_t count = 40003;
    DeviceFloats a(dtype, count), b(dtype, count, 1), c(dtype, count);
    ASSERT_EQ(fill_random(stream(), dtype, a.bytes(), count, 1, 0.5f), cudaSuccess);
    ASSERT_EQ(fill_random(stream(), dtype, b.bytes(), count, 1, 0.5f), cudaSuccess);
    ASSERT_EQ(fill_random(stream(), dtype, c.bytes(), count, 2, 0.5f), cudaSuccess);
    synchronize();
    std::vector<float> values = a.get();
    EXPECT_EQ(values, b.get());
    EXPECT_NE(values, c.get());
    double sum = 0, squares = 0, fourth = 0, neighbours = 0;
    for (size_t i = 0; i < count; ++i) {
      const double v = values[i] / 0.5;
      ASSERT_TRUE(std::isfinite(v));
      sum += v;
      squares += v * v;
      fourth += v * v * v * v;
      if (i > 0) neighbours += v * values[i - 1] / 0.5;
    }
    const auto n = static_cast<double>(count);
    EXPECT_NEAR(sum / n, 0, 0.03);
    EXPECT_NEAR(squares / n, 1, 0.05);
    EXPECT_NEAR(fourth / n, 3, 0.3);
    EXPECT_NEAR(neighbours / n, 0, 0.03);
  }
}

TEST_F(Kernels, ReadAllAddsWhatItRead) {
  for (size_t vectors : {1, 255, 2048, 2049, 30000}) {
    std::vector<uint32_t> values(vectors * 4);
    uint32_t want = 5;
    for (size_t i = 0; i < values.size(); ++i) want += values[i] = static_cast<uint32_t>(i * 2654435761u);
    DeviceArray<uint32_t> data(values), sum(std::vector<uint32_t>{5});
    ASSERT_EQ(read_all(stream(), data.bytes(), static_cast<int64_t>(vectors * 16), sum.data()), cudaSuccess);
    synchronize();
    EXPECT_EQ(sum.get()[0], want) << vectors;
  }
  DeviceArray<uint32_t> data(8);
  EXPECT_EQ(read_all(stream(), data.bytes(), 20, data.data()), cudaErrorInvalidValue);
}

TEST_F(Kernels, NoRowsAreNoWork) {
  EXPECT_EQ(embed(stream(), DType::kBF16, nullptr, 0, nullptr, 8, nullptr), cudaSuccess);
  EXPECT_EQ(rms_norm(stream(), DType::kBF16, nullptr, nullptr, nullptr, 0, 0, 8, nullptr), cudaSuccess);
  EXPECT_EQ(rope_scatter(stream(), DType::kBF16, {}), cudaSuccess);
  EXPECT_EQ(swiglu(stream(), DType::kBF16, nullptr, 0, 8, nullptr), cudaSuccess);
  EXPECT_EQ(align_rows(stream(), DType::kBF16, nullptr, nullptr, nullptr, nullptr, 0, 8), cudaSuccess);
  EXPECT_EQ(key_deviation(stream(), DType::kBF16, nullptr, nullptr, 0, 8, 16, nullptr), cudaSuccess);
  EXPECT_EQ(select_largest(stream(), nullptr, 0, 0, nullptr), cudaSuccess);
  EXPECT_EQ(fill_random(stream(), DType::kBF16, nullptr, 0, 1, 1), cudaSuccess);
  EXPECT_EQ(read_all(stream(), nullptr, 0, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace ds::cuda
