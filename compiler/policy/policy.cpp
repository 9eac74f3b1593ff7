#include "compiler/policy/policy.h"

#include <fmt/ranges.h>

namespace ds {
namespace {

struct Entry {
  std::string_view name;
  Policy choose;
};
constexpr Entry kPolicies[] = {{"droidspeak", choose_droidspeak},
                               {"full-prefill", choose_full_prefill},
                               {"full-reuse", choose_full_reuse}};

}  // namespace

std::vector<std::string_view> policy_names() {
  std::vector<std::string_view> names;
  for (const Entry& e : kPolicies) names.push_back(e.name);
  return names;
}

Result<Policy> find_policy(std::string_view name) {
  for (const Entry& e : kPolicies)
    if (e.name == name) return e.choose;
  return error(Code::kInvalidArgument, "unknown policy '{}'; known are {}", name,
               fmt::join(policy_names(), ", "));
}

std::vector<Tile> tiles_for_group(const LayerRange& group, int64_t layers) {
  auto tile = [](Mode mode, int64_t first, int64_t last, bool cut) {
    return Tile{.mode = mode,
                .first_layer = static_cast<int32_t>(first),
                .last_layer = static_cast<int32_t>(last),
                .cut = cut};
  };
  if (group.empty()) return {tile(Mode::kLoad, 0, layers - 1, false)};
  std::vector<Tile> tiles;
  if (group.first > 0) tiles.push_back(tile(Mode::kLoad, 0, group.first - 1, false));
  tiles.push_back(tile(Mode::kRecompute, group.first, group.last, group.first > 0));
  if (group.last + 1 < layers) tiles.push_back(tile(Mode::kLoad, group.last + 1, layers - 1, false));
  return tiles;
}

}  // namespace ds
