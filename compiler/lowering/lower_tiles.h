// Tiles -> transfers, kernels and what waits for what: the heart of reuse -> plan, on plain structures.
#pragma once

#include <cstdint>
#include <vector>

#include "plans/plan.h"

namespace ds {

/// One is filled while one is read, and one more evens out times that are not as predicted.
inline constexpr int32_t kRestoreBuffers = 3;

/// Streams, buffers and operations for a tiling of `layers` layers and `chunks` chunks of the context: every
/// cell in exactly one tile, in the order of the tiles' first layers. A recomputed tile starts from its cut,
/// from the embeddings (layer 0) or, without a cut, from recomputed cells below it. A restored tile is one
/// transfer of E and one kernel, for K and V only, per layer; its layer 0 starts from the embeddings. A
/// select tile stands on a recomputed layer 0: one choice of tokens, then one kernel per layer over those
/// tokens.
///
/// How finely operations are cut: E is sent chunk by chunk, and what starts from a cut is computed chunk by
/// chunk, so that it begins when the first chunk has arrived; every other tile is one operation per layer
/// over all of its chunks, since more rows at once are faster. `aligns`: the receiver maps what it is sent,
/// by one operation for each transfer of E, between it and what reads it. Where the whole context starts from
/// the embeddings in one chunk, the suffix goes along (prefill).
///
/// The hidden states of restored layers take turns in `restore_buffers` buffers for each tile: E of a layer
/// is sent into one when what it held before has been read. 0: each layer has its own, for schedulers whose
/// loads wait for no kernel (loads_come_first()).
///
/// Operations stand in an order in which each waits for earlier ones only: E, KV upward, kernels of the
/// context tile by tile (each behind its E where that had to wait for a buffer), suffix kernels upward, head.
/// No times. `whole_entry`: also transfers KV that is recomputed, as the entry holds it; nothing waits for
/// those transfers.
Variant lower_tiles(const std::vector<Tile>& tiles, int64_t layers, int32_t chunks, bool whole_entry,
                    bool aligns = false, int32_t restore_buffers = kRestoreBuffers);

}  // namespace ds
