// oneDNN as it is on machines that this one may not be: rows of a product depend on how many there are, or on
// where they stand. What depends is the last bit of every element, as with another order of sums.
#pragma once

#include <atomic>
#include <cstring>
#include <string>

#include "runtime/backends/cpu/matmul_internal.h"

namespace ds::cpu {

class RowsDependent : public Library {
 public:
  struct Options {
    const char* implementation = nullptr;  // what it calls itself; null: as oneDNN does
    bool by_number = false;                // calls of other numbers of rows than blocks may have differ
    bool but_large = false;                // and so do large blocks
    int64_t by_place = 0;                  // rows at places from here on differ; 0: none
  };
  explicit RowsDependent(Options options) : options_(options) {}

  /// Until woken it is what oneDNN is: nothing can be found out about it.
  std::atomic<bool> awake{true};

  std::string implementation(const dnnl::matmul::primitive_desc& description) const override {
    return options_.implementation != nullptr ? options_.implementation
                                              : Library::implementation(description);
  }

  dnnl_status_t run(const Call& call) const override {
    const dnnl_status_t status = Library::run(call);
    if (!awake || status != dnnl_success) return status;
    const bool small = call.rows == 32 || call.rows == 16 || call.rows == 1;
    const bool odd = options_.by_number && !small && (options_.but_large || call.rows != kLargeBlock);
    const bool wide = call.y.get_desc().data_type() == dnnl::memory::data_type::f32;
    auto* y = static_cast<std::byte*>(call.y.get_data_handle());
    for (int64_t r = 0; r < call.rows; ++r) {
      if (!odd && (options_.by_place == 0 || r < options_.by_place)) continue;
      for (int64_t c = 0; c < call.columns; ++c) y[(r * call.columns + c) * (wide ? 4 : 2)] ^= std::byte{1};
    }
    return status;
  }

 private:
  Options options_;
};

}  // namespace ds::cpu
