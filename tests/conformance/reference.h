// What the kernels are held against: checkpoints with every weight random, and the layer in plain loops of
// doubles.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/maps.h"

namespace ds::conformance {

/// Normal numbers from a fixed seed, the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  double uniform();  // in (0, 1)
  double normal();
  int64_t below(int64_t n);

 private:
  uint64_t state_;
};

/// Writes config.json and model.safetensors of random weights (norms about 1, biases about 0.5, so that none
/// can be left out unseen) into a fresh folder and opens them. `stored`: element type in the file.
Result<Checkpoint> make_checkpoint(const ModelConfig& config, DType stored, uint64_t seed);

/// Elements of a buffer of this dtype, and back (rounded as the backend rounds).
std::vector<double> to_doubles(const std::byte* data, int64_t count, DType dtype);
void from_doubles(const std::vector<double>& values, DType dtype, std::byte* data);

/// A map of random numbers for rows of `width` elements, that changes them by about as much as they are.
AlignmentMap make_map(MapForm form, int64_t width, int64_t rank, uint64_t seed);
/// The same in doubles, on one row; matrices are rounded to `dtype` first, as a backend holds them.
std::vector<double> align(const AlignmentMap& map, const std::vector<double>& x, DType dtype);

/// The model in doubles; weights are rounded to `dtype` first, as a backend holds them.
class Reference {
 public:
  static Result<Reference> load(const Checkpoint& checkpoint, DType dtype);

  /// Rows of `hidden` [rows][d_model] at positions from `position` on -> K and V appended into `cache`
  /// [capacity][kv_row] (rows before `position` are read), and the layer's output of the last query_rows in
  /// place.
  void layer(int64_t layer, std::vector<double>& hidden, std::vector<double>& cache, int64_t position,
             int64_t rows, int64_t query_rows) const;
  /// Attention alone: queries [heads * head_dim] of one token at `position` over cache rows 0 .. position.
  std::vector<double> attend(const std::vector<double>& q, const std::vector<double>& cache,
                             int64_t position) const;
  std::vector<double> embed(int32_t id) const;
  std::vector<double> logits(const std::vector<double>& hidden) const;

 private:
  struct Layer {
    std::vector<double> q, k, v, o, gate, up, down, input_norm, post_norm, q_bias, k_bias, v_bias, o_bias,
        gate_bias, up_bias, down_bias, q_norm, k_norm;
  };
  std::vector<double> heads(const std::vector<double>& x, const std::vector<double>& w,
                            const std::vector<double>& bias, const std::vector<double>& norm, int64_t count,
                            int64_t position) const;
  std::vector<double> rms_norm(const double* x, const std::vector<double>& weight) const;

  ModelConfig config_;
  std::vector<float> frequencies_;
  std::vector<Layer> layers_;
  std::vector<double> embedding_, final_norm_, head_;
};

}  // namespace ds::conformance
