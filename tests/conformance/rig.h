// What every backend must do, on every element type it computes in: the suite's setups, and a model on a
// backend with what a test needs around it. A backend joins by one line in setups() (rig.cpp).
//
// Rows are independent: on the CPU a row's K, V and output are the same to the bit however the rows are split
// into calls. That is what makes "S = R" exact there, so it is checked, not assumed. A device's libraries
// take other ways for other numbers of rows: there the same holds within rounding (Setup::exact_rows).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/backends/backends.h"
#include "tests/conformance/program.h"
#include "tests/conformance/reference.h"

namespace ds::conformance {

using testing::Values;

struct Setup {
  const char* name;
  Result<std::unique_ptr<Backend>> (*make)();
  DType dtype;
  double tolerance;  // of a layer's output: see difference()
  bool exact_rows = true;
  bool quick = false;  // the longest contexts are left out, and speeds: of a simulated device, or done before
  bool few_models() const { return quick && dtype == DType::kF32; }  // its slowest kernels
};

void PrintTo(const Setup& setup, std::ostream* out);
/// Without a device all tests are skipped.
Result<std::unique_ptr<Backend>> cuda();
Result<std::unique_ptr<Backend>> cpu();
/// On the device that the CPU simulates.
bool simulated();

#define ASSERT_OK(expr)                                   \
  do {                                                    \
    const Status status_ = ::ds::detail::status_of(expr); \
    ASSERT_TRUE(status_.ok()) << status_.message();       \
  } while (0)

template <typename T>
T take(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) std::abort();  // nothing after it means anything
  return std::move(result).value();
}

ModelConfig small(Family family);
ModelConfig shaped(Family family, int64_t d, int64_t ff, int64_t heads, int64_t kv_heads, int64_t head_dim);
/// GQA ratios 1, 2, 3, 4, 7, 8 and 80; head_dim != d / heads, not a multiple of 16, and up to 256; sizes that
/// no vector divides. `some`: three of them, one of each way that kernels go.
std::vector<std::pair<std::string, ModelConfig>> models(bool some = false);
/// Made once for all tests: they only read it.
const Checkpoint& checkpoint_of(const ModelConfig& config, DType stored, uint64_t seed);

/// A model on a backend, with one compute stream and room for `capacity` tokens in one layer's cache.
struct Rig {
  Rig(const Setup& setup, const ModelConfig& config, int64_t capacity_, DType stored = DType::kBF16,
      uint64_t seed = 1)
      : dtype(setup.dtype),
        capacity(capacity_),
        checkpoint(checkpoint_of(config, stored, seed)),
        reference(take(Reference::load(checkpoint, dtype))),
        backend(take(setup.make())),
        model(take(backend->load(checkpoint, {.dtype = dtype}))),
        workspace(take(model->make_workspace(capacity_))),
        stream(take(backend->make_stream(StreamKind::kCompute, 4096))),
        hidden(take(backend->allocate(capacity_ * config.d_model * dtype_size(dtype)))),
        cache(take(backend->allocate(capacity_ * config.kv_row() * dtype_size(dtype)))),
        tolerance(setup.tolerance),
        exact_rows(setup.exact_rows) {}

  const ModelConfig& config() const { return model->config(); }
  int64_t hidden_row() const { return config().d_model * dtype_size(dtype); }
  int64_t cache_row() const { return config().kv_row() * dtype_size(dtype); }
  std::byte* hidden_at(int64_t row) const { return hidden->data() + row * hidden_row(); }

  // Device memory is none of the host's: what it holds is copied.
  std::vector<std::byte> read(const std::byte* from, int64_t bytes) const {
    std::vector<std::byte> data(static_cast<size_t>(bytes));
    stream->copy(data.data(), from, bytes);
    EXPECT_TRUE(stream->synchronize().ok());
    return data;
  }
  void write(std::byte* to, const std::vector<std::byte>& data) const {
    stream->copy(to, data.data(), static_cast<int64_t>(data.size()));
    EXPECT_TRUE(stream->synchronize().ok());
  }
  void write(std::byte* to, const std::vector<double>& values) const {
    std::vector<std::byte> data(values.size() * static_cast<size_t>(dtype_size(dtype)));
    from_doubles(values, dtype, data.data());
    write(to, data);
  }
  std::vector<double> read_values(const std::byte* from, int64_t elements) const {
    return to_doubles(read(from, elements * dtype_size(dtype)).data(), elements, dtype);
  }

  void fill(DeviceMemory& memory, int64_t elements, uint64_t seed) const {
    Random random(seed);
    std::vector<double> values(static_cast<size_t>(elements));
    for (double& v : values) v = random.normal();
    write(memory.data(), values);
  }
  void fill_hidden(uint64_t seed) const { fill(*hidden, capacity * config().d_model, seed); }
  void fill_cache(uint64_t seed) const { fill(*cache, capacity * config().kv_row(), seed); }
  std::vector<std::byte> hidden_bytes() const { return read(hidden->data(), hidden->size()); }
  std::vector<std::byte> cache_bytes() const { return read(cache->data(), cache->size()); }
  std::vector<double> hidden_values() const {
    return read_values(hidden->data(), capacity * config().d_model);
  }
  std::vector<double> cache_values() const {
    return read_values(cache->data(), capacity * config().kv_row());
  }

  /// Whether the rows in `found` are those in `expected`: to the bit, or within rounding where the backend
  /// promises no more.
  testing::AssertionResult same_rows(const std::vector<std::byte>& found,
                                     const std::vector<std::byte>& expected) const;

  /// Rows of `hidden` are those of the positions from 0 on.
  void enqueue(int64_t layer, int64_t position, int64_t rows, int64_t query_rows) const {
    model->layer(*stream, *workspace,
                 {.layer = layer,
                  .hidden = hidden_at(position),
                  .cache = cache->data(),
                  .position = position,
                  .rows = rows,
                  .query_rows = query_rows});
  }

  DType dtype;
  int64_t capacity;
  const Checkpoint& checkpoint;
  Reference reference;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceModel> model;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<CommandStream> stream;
  std::unique_ptr<DeviceMemory> hidden, cache;
  double tolerance;
  bool exact_rows;
};

/// A rig whose workspace is made after its maps, with `rows` of context.
struct MapRig : Rig {
  MapRig(const Setup& setup, const ModelConfig& config, int64_t rows, const std::vector<AlignmentMap>& maps)
      : Rig(setup, config, rows) {
    for (const AlignmentMap& map : maps) loaded.push_back(take(model->load_map(map)));
    workspace = take(model->make_workspace(64));  // the rows of align() are no context's
  }
  std::vector<std::unique_ptr<DeviceMap>> loaded;
};

/// Difference of the two, as a root mean square relative to that of `expected`; a single element that is off
/// by ten times as much counts too.
double difference(const std::vector<double>& found, const std::vector<double>& expected);

class Conformance : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override;
};

}  // namespace ds::conformance
