// What the parts of adapters share: files, the names of tensors, and the arithmetic of merging.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include <fmt/ranges.h>

#include "support/status.h"

namespace ds::lora {

inline constexpr const char* kConfigFile = "/adapter_config.json";
inline constexpr const char* kWeightFile = "/adapter_model.safetensors";
inline constexpr std::string_view kPrefix = "base_model.model.";  // of every tensor's name
inline constexpr const char* kEmbeddings = "model.embed_tokens";
inline constexpr const char* kHead = "lm_head";

inline std::string shape_text(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

enum class Part : uint8_t { kA, kB, kBBias, kEmbeddingA, kEmbeddingB, kMagnitude, kWeight, kBias };

/// The name of a tensor in the file, taken apart.
struct Key {
  std::string module, adapter;  // adapter: "default" and the like, where the name has one
  Part part = Part::kWeight;
};
/// Nothing: a name that PEFT does not give to parts of a LoRA adapter.
std::optional<Key> parse_key(std::string_view name);

/// re.match of Python's, or re.fullmatch with `whole`. Gives the text of the group `idx` where there is one.
/// kCorrupt: no pattern; `where` stands in front.
Result<bool> matches(const std::string& pattern, const std::string& text, bool whole,
                     const std::string& where, std::string* idx = nullptr);

/// A chain of multiply-adds per element, in the order of r. `row`: [columns], of the base, replaced by
/// row + (b a) * scaling. `b`: [r], `a`: [r][columns].
void merge_row(const float* b, const float* a, int64_t r, int64_t columns, float scaling, float* row);

/// Scales `row` to the length `magnitude`, as DoRA does: row * (magnitude / |row|).
void set_magnitude(float magnitude, int64_t columns, float* row);

}  // namespace ds::lora
