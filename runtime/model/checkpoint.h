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

class Adapter;

struct TensorView {
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;                          // row-major
  std::span<const std::byte> data;                     // valid as long as the Checkpoint or `owner` lives
  std::shared_ptr<const std::byte[]> owner = nullptr;  // of data that were made for this view
  int64_t elements() const;
};

/// A tensor that the architecture needs.
struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;
};
/// All of them: embeddings, layers from 0 up, final norm, head unless tied.
std::vector<TensorSpec> required_tensors(const ModelConfig& config);

struct OpenOptions {
  std::string base;  // folder of the base, for an adapter that does not name it by a path that is here
  int64_t max_model_len = 0;  // positions that the model is used for; 0: all that it has (ModelConfig::read)
};

class Checkpoint {
 public:
  /// Opens config.json and model.safetensors, or the shards of model.safetensors.index.json. Maps, copies
  /// nothing (but a tensor that a file holds at an odd address); checks headers (sizes, offsets, overlaps,
  /// dtypes) and that every tensor of the architecture is there with its shape. Tensors without effect
  /// (tables of rotary frequencies, a head equal to the tied embeddings up to the narrower type) are dropped,
  /// unknown ones refused. `folder` may be whatever find_model_folder() takes.
  /// Does not read the weights: see check_finite(). Errors name file and tensor: kNotFound, kCorrupt,
  /// kMismatch, kUnsupported.
  ///
  /// A folder with a LoRA adapter (adapter.h) is a model too: its base's weights, merged with the adapter's
  /// tensor by tensor when they are asked for.
  static Result<Checkpoint> open(const std::string& folder, const OpenOptions& options = {});

  /// Random weights of a given architecture (normal, 1/sqrt(fan_in); norms one), for benchmarks; the same
  /// seed gives the same weights.
  static Result<Checkpoint> random(const ModelConfig& config, uint64_t seed);

  const ModelConfig& config() const { return config_; }
  const std::string& name() const { return name_; }
  /// Names as in Hugging Face checkpoints: "model.layers.0.self_attn.q_proj.weight". kNotFound names the
  /// tensor; with tied embeddings there is no "lm_head.weight". A tensor that an adapter changes is merged
  /// anew at every call and lives as long as its `owner`: kExhausted, kCorrupt where the sum is not finite.
  Result<TensorView> tensor(const std::string& name) const;
  /// Without merging.
  Result<std::vector<int64_t>> shape(const std::string& name) const;
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
  /// by whatever reads all weights, and by backends after they have loaded them. An adapter asks its base
  /// too.
  Status intact() const;

  /// The files that hold the weights; none for random ones. Of an adapter its own: its base has the others.
  std::span<const MappedFile> files() const { return files_; }
  const std::string& folder() const { return folder_; }
  /// Where `file` (a tokenizer's, a chat template) is to be read: the folder, or an adapter's base's where
  /// the adapter has none of its own.
  std::string folder_of(const std::string& file) const;
  int64_t weight_bytes() const;  // of all tensors, as the files hold them

  /// What an adapter was attached to, and the adapter; null for a model by itself.
  const Checkpoint* base() const { return base_.get(); }
  const Adapter* adapter() const { return adapter_.get(); }
  /// The hash of an adapter's weights on a base whose weights have the hash `base`.
  static std::string adapted_weights(const std::string& base, const Adapter& adapter);

 private:
  static Result<Checkpoint> open_adapter(const std::string& folder, const OpenOptions& options);
  struct Reading;
  Reading read_weights(const std::function<void(int64_t, int64_t)>& progress) const;
  std::string weights_hash(const Reading& reading) const;
  Status finite(const Reading& reading) const;
  ModelConfig config_;
  std::string name_, folder_;
  std::vector<MappedFile> files_;
  std::vector<std::vector<std::byte>> owned_;
  std::map<std::string, TensorView> tensors_;
  std::shared_ptr<const Checkpoint> base_;
  std::shared_ptr<const Adapter> adapter_;
};

}  // namespace ds
