// How large a plan may be: what a reader accepts, and what a compiler therefore must not exceed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ds {

inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxDimension = int64_t{1} << 24;
inline constexpr int64_t kMaxVocab = INT32_MAX;
inline constexpr size_t kMaxVariants = 1024;
inline constexpr size_t kMaxOps = 10'000'000;
inline constexpr size_t kMaxStreams = 16;
inline constexpr size_t kMaxSources = 16;
inline constexpr size_t kMaxInputs = 4096;
inline constexpr size_t kMaxText = 4096;        // bytes
inline constexpr size_t kMaxFlags = 64 * 1024;  // bytes
inline constexpr int64_t kMaxChunks = 4096;
inline constexpr int64_t kMaxCells = int64_t{1} << 20;  // layers times chunks
inline constexpr size_t kMaxAlternatives = 4096;
inline constexpr int64_t kMaxTokens = int64_t{1}
                                      << 32;  // of a tuned point: sizes in bytes stay far below 2^63

}  // namespace ds
