// Architecture of a checkpoint, from a Hugging Face folder's config.json and generation_config.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds {

enum class Family : uint8_t { kLlama, kMistral, kQwen2, kQwen3 };
std::string_view family_name(Family family);

/// Rotary embedding; `kLlama3` rescales low frequencies (Llama 3.1), `kLinear` divides positions by `factor`,
/// `kYarn` divides by it the frequencies that turn less than `beta_slow` times within the original positions,
/// leaves those that turn more than `beta_fast` times, and blends between.
struct RopeConfig {
  enum class Type : uint8_t { kDefault, kLinear, kLlama3, kYarn };
  Type type = Type::kDefault;
  double theta = 10000;
  double factor = 1;                   // kLinear, kLlama3, kYarn
  double low_freq_factor = 1;          // kLlama3
  double high_freq_factor = 4;         // kLlama3
  int64_t original_max_positions = 0;  // kLlama3, kYarn
  double beta_fast = 32;               // kYarn
  double beta_slow = 1;                // kYarn
  bool truncate = true;                // kYarn: the blend begins and ends at whole pairs
  double attention_factor = 1;         // kYarn; 1 for the others
  bool operator==(const RopeConfig&) const = default;

  /// Angular frequency of each of the head_dim/2 pairs, in f32 as transformers computes them.
  std::vector<float> inverse_frequencies(int64_t head_dim) const;
  /// What cos and sin are multiplied with, of queries and of keys. Cached keys have it already: rotating them
  /// once more by a difference of positions must leave it out.
  float attention_scaling() const { return static_cast<float>(attention_factor); }
};

struct ModelConfig {
  Family family = Family::kLlama;
  int64_t layers = 0, d_model = 0, ff = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool qkv_bias = false;               // biases on q, k and v: Qwen2, and where 'attention_bias' says so
  bool o_bias = false;                 // on the attention's output: 'attention_bias' of Llama and Qwen3
  bool mlp_bias = false;               // on gate, up and down: 'mlp_bias' of Llama
  bool qk_norm = false;                // Qwen3: RMSNorm over each head of q and k
  bool tied_embeddings = false;        // lm_head shares the embedding matrix
  DType dtype = DType::kBF16;          // of the checkpoint, as config.json states it
  std::vector<int32_t> eos_token_ids;  // generation_config.json first, else config.json

  /// Reads `folder`/config.json (keys of transformers 4 and 5) and generation_config.json where there is one.
  /// Whatever changes the result and is not done here is refused by name (kUnsupported); impossible numbers
  /// are kInvalidArgument; a missing file is kNotFound, broken JSON or a missing key kCorrupt. Keys that may
  /// be absent take the defaults of transformers' class.
  ///
  /// `max_model_len`, where not 0: the model is used for that many positions only, and a sliding window that
  /// is no shorter is no obstacle. More than the model has is kInvalidArgument.
  static Result<ModelConfig> read(const std::string& folder, int64_t max_model_len = 0);

  /// Canonical text of everything that shapes the numbers, for identities; equal whatever keys it came from.
  /// Without the element type (the weights' hash covers it), max_positions and end-of-text ids. What it says
  /// of a model must never change: profiles, maps and entries name models by a hash of it.
  std::string canonical() const;
  Shape shape() const;
  int64_t kv_row() const { return 2 * kv_heads * head_dim; }  // elements per token and layer
};

/// Architectures for benchmarks with random weights: "llama-1b" (Llama 3.2 1B) and "llama-8b" (Llama 3.1 8B),
/// with ":N" for the first N layers only ("llama-8b:4"); or a Llama spelled out: "llama:" and KEY=NUMBER,...
/// with layers (12), d (1024), ff (2.75 d), heads (16), kv (heads / 4), head_dim (d / heads), vocab (32000),
/// positions (131072). kInvalidArgument lists the names.
Result<ModelConfig> preset_config(std::string_view name);

/// Empty when the two can share caches; else one line per differing field, with config.json's key:
/// "num_key_value_heads: sender 2, receiver 4". What is computed counts, not what it is called: a llama and a
/// mistral with the same numbers are one architecture. Vocabularies, tied embeddings and biases that only add
/// to hidden states do not count: no shape of a cache depends on them.
std::vector<std::string> architecture_differences(const ModelConfig& sender, const ModelConfig& receiver);
/// The same as a kMismatch that names both models.
Status check_same_architecture(const ModelConfig& sender, const ModelConfig& receiver,
                               const std::string& sender_name, const std::string& receiver_name);

}  // namespace ds
