#include "runtime/backends/host/checks_internal.h"

namespace ds::host {

Status check_map(const AlignmentMap& map, int64_t width) {
  const bool full = map.form == MapForm::kFull, low_rank = map.form == MapForm::kLowRank;
  const std::string what = fmt::format("the {} map of layer {}", map_form_name(map.form), map.layer);
  auto size = [](const std::vector<float>& v) { return static_cast<int64_t>(v.size()); };
  if (map.form == MapForm::kNone)
    return error(Code::kInvalidArgument, "a map of layer {} without a form cannot be applied", map.layer);
  if (size(map.bias) != width)
    return error(Code::kMismatch, "{} is for hidden states of width {}, the model's have {}", what,
                 size(map.bias), width);
  if (size(map.weight) != (full ? width * width : 0) || size(map.scale) != (full ? 0 : width) ||
      map.rank < (low_rank ? 1 : 0) || map.rank > (low_rank ? width : 0) ||
      size(map.up) != width * map.rank || size(map.down) != width * map.rank)
    return error(
        Code::kInvalidArgument,
        "{} of rank {} has {} numbers in its weight, {} and {} in up and down, {} in its scale; these do "
        "not fit width {}",
        what, map.rank, size(map.weight), size(map.up), size(map.down), size(map.scale), width);
  return ok_status();
}

Status check_sequence(const CallSpace& space, int64_t layer, const std::byte* hidden, const SequenceRows& s) {
  if (space.own && layer >= 0 && layer < space.layers && s.rows >= 1 && s.position >= 0 &&
      s.position + s.rows <= space.max_context && s.query_rows >= 0 && s.query_rows <= s.rows &&
      s.prefix_rows >= 0 && s.prefix_rows <= s.position && (s.prefix != nullptr || s.prefix_rows == 0) &&
      hidden != nullptr && s.cache != nullptr)
    return ok_status();
  return error(Code::kInvalidArgument,
               "layer {} (of {}) over rows {} to {} with {} query rows behind a prefix of {}, {}, in a "
               "workspace {} for {} positions",
               layer, space.layers, s.position, s.position + s.rows, s.query_rows, s.prefix_rows,
               hidden == nullptr    ? "without hidden states"
               : s.cache == nullptr ? "without a cache"
                                    : "with hidden states and cache",
               space.own ? "of this model" : "of another model", space.max_context);
}

Status check_select(const CallSpace& space, const SelectCall& call) {
  const bool memory = call.hidden != nullptr && call.cache != nullptr && call.positions != nullptr;
  if (space.own && call.layer >= 0 && call.layer < space.layers && call.rows >= 1 &&
      call.rows <= space.max_context && call.count >= 1 && call.count <= call.rows && memory)
    return ok_status();
  return error(Code::kInvalidArgument,
               "select {} of {} rows at layer {} (of {}), {}, in a workspace {} for {} positions", call.count,
               call.rows, call.layer, space.layers,
               memory ? "with all memory" : "without hidden states, cache or positions",
               space.own ? "of this model" : "of another model", space.max_context);
}

Status check_selected(const CallSpace& space, const SelectedCall& call) {
  const bool memory = call.hidden != nullptr && call.cache != nullptr && call.positions != nullptr;
  if (space.own && call.layer >= 0 && call.layer < space.layers && call.rows >= 1 &&
      call.rows <= space.max_context && memory)
    return ok_status();
  return error(Code::kInvalidArgument,
               "layer {} (of {}) over {} selected rows, {}, in a workspace {} for {} positions", call.layer,
               space.layers, call.rows,
               memory ? "with all memory" : "without hidden states, cache or positions",
               space.own ? "of this model" : "of another model", space.max_context);
}

}  // namespace ds::host
