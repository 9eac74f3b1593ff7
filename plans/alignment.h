// Aligned cuts: a map, fitted by the profiler, takes the sender's hidden states that enter a layer to the
// receiver's before the receiver's layers (or projections) run on them. Not in the paper.
//
// All forms are affine and written as what they add: y = x + W x + b, so that no map at all is W = 0, b = 0.
// Maps are an artefact of their own (runtime/model/maps.h) that a plan names by its fingerprint.
#pragma once

#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

/// What W is, for rows of d elements.
enum class MapForm : uint8_t {
  kNone = 0,      // no map: the plain cut
  kDiagonal = 1,  // d numbers
  kLowRank = 2,   // a diagonal and a product of [d][r] and [r][d]
  kFull = 3,      // [d][d]
};
inline constexpr std::string_view kMapFormNames[] = {"none", "diagonal", "low-rank", "full"};
inline constexpr size_t kMapForms = std::size(kMapFormNames);
inline std::string_view map_form_name(MapForm form) {
  return static_cast<size_t>(form) < kMapForms ? kMapFormNames[static_cast<size_t>(form)] : "unknown";
}
/// "diagonal", "low-rank", "full"; nothing for other names, "none" included.
std::optional<MapForm> map_form_named(std::string_view name);
/// The same; an error of that code says `where` and what was found.
Result<MapForm> parse_map_form(std::string_view name, std::string_view where,
                               Code code = Code::kInvalidArgument);

/// Who applies it. Where the sender does, the wire carries the receiver's own cut: nothing is left to do
/// before the first kernel, but an entry has such a cut for each receiver.
enum class MapSide : uint8_t { kReceiver = 0, kSender = 1 };
inline constexpr std::string_view kMapSideNames[] = {"receiver", "sender"};
inline std::string_view map_side_name(MapSide side) {
  return static_cast<size_t>(side) < std::size(kMapSideNames) ? kMapSideNames[static_cast<size_t>(side)]
                                                              : "unknown";
}

/// A file of maps, as plans and profiles name it.
struct MapsIdentity {
  std::string name;         // file name without folders, for people
  std::string fingerprint;  // SHA-256 of what is in it, hexadecimal; empty: there is none
  bool operator==(const MapsIdentity&) const = default;
};

}  // namespace ds
