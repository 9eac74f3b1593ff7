// What tests of kernels share: memory of the device, numbers, and what is close enough. The programs are
// built for the simulated device and for a real one; without one they skip.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "support/dtype.h"

namespace ds::cuda {

/// Skips where there is no device; `stream()` is one of its own.
class DeviceTest : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    cudaError_t raised = cudaGetDeviceCount(&count);
    if (raised != cudaSuccess || count == 0)
      GTEST_SKIP() << "no CUDA device: "
                   << (raised == cudaSuccess ? "none found" : cudaGetErrorString(raised));
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override {
    if (stream_ != nullptr) {
      EXPECT_EQ(cudaStreamDestroy(stream_), cudaSuccess);
    }
  }
  cudaStream_t stream() const { return stream_; }
  void synchronize() { ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// An array in device memory that begins `offset` elements behind an aligned address.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, size_t offset = 0) : count_(count), offset_(offset) {
    EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), (count + offset) * sizeof(T)), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values, size_t offset = 0) : DeviceArray(values.size(), offset) {
    set(values);
  }
  DeviceArray(const DeviceArray&) = delete;
  ~DeviceArray() { (void)cudaFree(data_); }

  void set(const std::vector<T>& values) {
    const size_t bytes = values.size() * sizeof(T);
    EXPECT_EQ(cudaMemcpy(data(), values.data(), bytes, cudaMemcpyHostToDevice), cudaSuccess);
  }
  /// After the stream has run.
  std::vector<T> get() const {
    std::vector<T> values(count_);
    EXPECT_EQ(cudaMemcpy(values.data(), data(), count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }
  T* data() const { return data_ + offset_; }
  std::byte* bytes() const { return reinterpret_cast<std::byte*>(data()); }
  size_t size() const { return count_; }

 private:
  T* data_ = nullptr;
  size_t count_, offset_;
};

/// Elements of bf16 or f32 in device memory, seen as floats.
class DeviceFloats {
 public:
  DeviceFloats(DType dtype, size_t count, size_t offset = 0)
      : dtype_(dtype),
        count_(count),
        halves_(dtype == DType::kF32 ? 0 : count, offset),
        floats_(dtype == DType::kF32 ? count : 0, offset) {}
  DeviceFloats(DType dtype, const std::vector<float>& values, size_t offset = 0)
      : DeviceFloats(dtype, values.size(), offset) {
    set(values);
  }
  void set(const std::vector<float>& values) {
    if (dtype_ == DType::kF32) return floats_.set(values);
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i) halves[i] = f32_to_bf16(values[i]);
    halves_.set(halves);
  }
  std::vector<float> get() const {
    if (dtype_ == DType::kF32) return floats_.get();
    std::vector<float> values(count_);
    std::vector<uint16_t> halves = halves_.get();
    for (size_t i = 0; i < count_; ++i) values[i] = bf16_to_f32(halves[i]);
    return values;
  }
  std::byte* bytes() const { return dtype_ == DType::kF32 ? floats_.bytes() : halves_.bytes(); }

 private:
  DType dtype_;
  size_t count_;
  DeviceArray<uint16_t> halves_;
  DeviceArray<float> floats_;
};

class Numbers {
 public:
  explicit Numbers(uint64_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  double uniform() { return uniform_(engine_); }  // in [0, 1)
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  std::vector<float> normals(size_t count, float deviation = 1, float mean = 0) {
    std::vector<float> values(count);
    for (float& v : values) v = mean + deviation * normal();
    return values;
  }
  /// Numbers that this type holds exactly.
  std::vector<float> normals(DType dtype, size_t count) {
    std::vector<float> values = normals(count);
    if (dtype == DType::kBF16)
      for (float& v : values) v = bf16_to_f32(f32_to_bf16(v));
    return values;
  }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_;
  std::uniform_real_distribution<double> uniform_;
};

/// Whether `got` is `want` rounded once to the type, but for an error of f32 in sums of numbers of size
/// `terms`.
inline testing::AssertionResult close_to(float got, double want, DType dtype, double terms) {
  const double rounding = std::abs(want) * (dtype == DType::kF32 ? 0x1p-24 : 0x1p-8) * 1.01;
  const double allowed = rounding + terms * 4e-6 + 1e-37;
  if (std::abs(got - want) <= allowed) return testing::AssertionSuccess();
  return testing::AssertionFailure() << got << " is not " << want << " within " << allowed;
}

}  // namespace ds::cuda
