// LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors beside a base model.
//
// What comes of base and adapter is what PEFT's forward pass computes, merged tensor by tensor as PEFT's
// `merge_and_unload` merges it in f32, whatever type the base's weights are stored in:
//
//     W' = W + (B A) * s            s = lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora
//     W' = (m / |W + (B A) * s|) * (W + (B A) * s)      with use_dora; norms by rows
//
// (B A) is one chain of fused multiply-adds over r for each element, then come a product and a sum, each
// rounded. PyTorch's product gives the same bits for r up to 192 (measured with MKL on shapes up to 8192 x
// 2048); beyond that it adds parts of the chain, and in that and in DoRA's norms the two differ in the last
// bits. In bf16 the merged f32 values are rounded once, as PEFT's in-place sum of a bf16 base does. (PEFT
// rounds the update of embeddings to bf16 before that sum.)
// In one case PEFT's forward pass and its merge disagree: LoRA on the embeddings or the head of a base that
// ties them. There merging changes both, though the adapter was trained with one; here they are untied.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/checkpoint.h"
#include "runtime/model/config.h"
#include "runtime/model/safetensors.h"
#include "support/file.h"
#include "support/status.h"

namespace ds {

class Adapter {
 public:
  /// Whether `folder` has an adapter_config.json and no weights of a whole model.
  static bool is_adapter(const std::string& folder);

  /// Reads and checks what the folder alone tells. What changes the result and is not done is refused by name
  /// (kUnsupported): other kinds than LORA, variants of LoRA, initialisations that change the base.
  /// kNotFound, kCorrupt as for other files.
  static Result<Adapter> open(const std::string& folder);

  /// The folder of the base: `given` where it is not empty, else `base_model_name_or_path`, absolute or
  /// relative to the adapter's folder or to the working directory. kNotFound where that is no folder here,
  /// kInvalidArgument where both places have a different one.
  Result<std::string> find_base(const std::string& given) const;

  /// Checks the adapter against its base: every tensor of the file belongs to a tensor of the base and has
  /// its shape, and every module that the config targets or saves has its tensors. Afterwards config() and
  /// tensors() describe the model that comes of both. `base` must outlive this. kCorrupt, kMismatch,
  /// kUnsupported name file and tensor.
  Status attach(const Checkpoint& base);

  /// The base's with the adapter's vocabulary; embeddings that are no longer tied are untied.
  const ModelConfig& config() const { return config_; }
  /// Every tensor that config() calls for, before it is merged: the base's or the adapter's own. Those that
  /// merges() names come out of merge() in f32, with the same shape.
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  bool merges(const std::string& name) const { return low_rank_.count(name) > 0; }
  /// On all cores. kExhausted; kCorrupt where the sum is not finite.
  Result<TensorView> merge(const std::string& name) const;
  /// Whether a tensor is the base's own, untouched.
  bool untouched(const std::string& name) const;

  /// The part of the model's identity that is the adapter's: its tensors' bytes and what of the config
  /// decides the merge. Keys without influence on the result do not count. Reads all of its tensors.
  std::string hash() const;
  /// What of the config decides the merge, tensor by tensor; part of hash().
  std::string decisions() const;
  /// kCorrupt with tensor and index for the first NaN or infinity.
  Status check_finite() const;

  /// Gives the mapping away; the tensors stay valid while it lives.
  MappedFile release() && { return std::move(file_); }

 private:
  /// A tensor of the file, in a type that is done; at an even address.
  struct Stored {
    std::string name;  // in the file
    TensorView view;
  };
  /// What the file has for one module of the model.
  struct Module {
    std::optional<Stored> a, b, b_bias, embedding_a, embedding_b, magnitude, weight, bias;
    bool low_rank() const { return a || b || b_bias || embedding_a || embedding_b || magnitude; }
  };
  struct LowRank {
    TensorView a, b;  // [r][columns], [rows][r]; of an embedding [r][rows], [columns][r]; of a bias b alone
    std::optional<TensorView> magnitude;  // [rows]
    double scaling = 1;
    bool embedding = false;
  };
  struct Settings {
    int64_t r = 8;
    double alpha = 8;
    bool rslora = false, dora = false, lora_bias = false, tie = false;
    std::string bias;
    std::vector<std::pair<std::string, int64_t>> rank_pattern;  // in the file's order: the first match counts
    std::vector<std::pair<std::string, double>> alpha_pattern;
    bool all_linear = false;
    std::optional<std::string> target_regex, exclude_regex;
    std::vector<std::string> targets, excludes, saved;
    std::optional<std::vector<int64_t>> layers;
    std::vector<std::string> layers_patterns;
  };
  Status read_config();
  Status read_tensors();
  Result<bool> targeted(const std::string& module) const;
  bool saved(const std::string& module) const;
  Status attach_low_rank(const std::string& name, const Module& module);
  Status attach_embeddings(const Checkpoint& base);

  std::string folder_, base_name_;
  MappedFile file_;
  Settings settings_;
  std::map<std::string, Module> modules_;  // by name: "model.layers.0.self_attn.q_proj"
  std::vector<std::vector<std::byte>> owned_;
  ModelConfig config_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, LowRank> low_rank_;
};

}  // namespace ds
