// The weights of a checkpoint: named tensors, mapped from safetensors files or made up for benchmarks.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/model/config.h"
#include "support/dtype.h"
#include "support/file.h"
#include "support/status.h"

namespace ds {

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;       // row-major
  std::span<const std::byte> data;  // valid as long as the Checkpoint lives
  int64_t elements() const;
};

/// A tensor that the architecture needs.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};
/// All of them: embeddings, layers from 0 up, final norm, head unless tied.
std::vector<TensorSpec> required_tensors(const ModelConfig& config);

class Checkpoint {
 public:
  /// Opens config.json and model.safetensors, or the shards of model.safetensors.index.json. Maps, copies
  /// nothing (but a tensor that a file holds at an odd address); checks headers (sizes, offsets, overlaps,
  /// dtypes) and that every tensor of the architecture is there with its shape. Tensors without effect
  /// (tables of rotary frequencies, a head equal to the tied embeddings) are dropped, unknown ones refused.
  /// Does not read the weights: see check_finite(). Errors name file and tensor: kNotFound, kCorrupt,
  /// kMismatch, kUnsupported.
  static Result<Checkpoint> open(const std::string& folder);

  /// Random weights of a given architecture (normal, 1/sqrt(fan_in); norms one), for benchmarks; the same
  /// seed gives the same weights.
  static Result<Checkpoint> random(const ModelConfig& config, uint64_t seed);

  const ModelConfig& config() const { return config_; }
  const std::string& name() const { return name_; }
  /// Names as in Hugging Face checkpoints: "model.layers.0.self_attn.q_proj.weight". kNotFound names the
  /// tensor; with tied embeddings there is no "lm_head.weight".
  Result<TensorView> tensor(const std::string& name) const;
  bool has(const std::string& name) const { return tensors_.count(name) > 0; }

  /// The identity of this model: config with RoPE, weights (the same whether sharded or not), tokenizer.
  /// Reads all weights once.
  Result<ModelIdentity> identity() const;

  /// kCorrupt with tensor and index for the first NaN or infinity in any weight. Reads all weights once.
  Status check_finite() const;

  /// check_finite() and identity() in one reading, on all cores. `progress` (may be empty): bytes read so far
  /// and bytes in all.
  Result<ModelIdentity> verify(const std::function<void(int64_t, int64_t)>& progress) const;

  /// The identity with `weights`, the hash that an earlier reading of the same files gave.
  Result<ModelIdentity> identity_with(std::string weights) const;

  /// kCorrupt: a file was cut short since it was opened (MappedFile::intact()): tensors read as zeros. Asked
  /// by whatever reads all weights, and by backends after they have loaded them.
  Status intact() const;

  /// The files that hold the weights; none for random ones.
  std::span<const MappedFile> files() const { return files_; }
  const std::string& folder() const { return folder_; }
  int64_t weight_bytes() const;  // of all tensors, as the files hold them

 private:
  struct Reading;
  Reading read_weights(const std::function<void(int64_t, int64_t)>& progress) const;
  std::string weights_hash(const Reading& reading) const;
  Status finite(const Reading& reading) const;
  ModelConfig config_;
  std::string name_, folder_;
  std::vector<MappedFile> files_;
  std::vector<std::vector<std::byte>> owned_;
  std::map<std::string, TensorView> tensors_;
};

}  // namespace ds
