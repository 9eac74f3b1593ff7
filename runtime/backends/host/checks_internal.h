// What every backend's model refuses, in the same words: checked before anything is enqueued or laid out.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backends/backend.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds::host {

/// A workspace that a call is to run in.
struct CallSpace {
  bool own = false;         // of the model that is called
  int64_t layers = 0;       // of the model
  int64_t max_context = 0;  // of the workspace
};

/// Whether a map's arrays fit its form and hidden states of `width`: kMismatch, kInvalidArgument.
Status check_map(const AlignmentMap& map, int64_t width);
// kInvalidArgument: names the layer, the rows and what is missing.
Status check_sequence(const CallSpace& space, int64_t layer, const std::byte* hidden,
                      const SequenceRows& sequence);
Status check_select(const CallSpace& space, const SelectCall& call);
Status check_selected(const CallSpace& space, const SelectedCall& call);

}  // namespace ds::host
