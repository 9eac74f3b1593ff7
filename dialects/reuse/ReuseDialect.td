// The dialect `reuse`: what it is for. Order of the files: Dialect -> Types -> Ops.
#ifndef DROIDSPEAK_REUSE_DIALECT
#define DROIDSPEAK_REUSE_DIALECT

include "mlir/IR/OpBase.td"

def Reuse_Dialect : Dialect {
  let name = "reuse";
  let cppNamespace = "::ds::reuse";
  let summary = "What of a sender's caches a receiver takes, and what it computes itself";
  let description = [{
    The receiver needs K and V of every layer for every token of the context. A plan is a tiling of that
    plane: each tile is either *loaded*, the sender's K and V as they are, or *recomputed* by the receiver's
    own layers. Recomputing needs hidden states at the tile's lower edge. They come from the embeddings (a
    tile that starts at layer 0), from the tile below, or from a *cut*: the sender's hidden states entering
    that layer, which are sent.

    ```
      layer 11 |               |
        ...    |     load      |   the sender's K and V
      layer  7 |_______________|
      layer  6 |///////////////|
        ...    |// recompute //|   the receiver's own K and V
      layer  3 |///////////////|
               |==== cut 3 ====|   the sender's hidden states entering layer 3
      layer  2 |     load      |
      layer  0 |_______________|
                0   tokens    n
    ```

    A cut may be *aligned*: an affine map of its layer takes the sender's hidden states to the receiver's, so that
    what is recomputed starts nearer to where the receiver would be. The receiver applies it, or the sender
    before it stores them. All that one plan is sent goes through maps of one form, applied by one side.

    ```mlir
      %cut3 = reuse.cut layer 3
      %map3 = reuse.align %cut3 full by receiver
      %kv3, %out6 = reuse.recompute layers 3 to 6 from %map3
    ```

    Between load and recompute lies a third way: a tile can be *restored*, from the sender's hidden states that
    enter each of its layers. They are sent instead of K and V, and the receiver computes only its K and V of
    them. They may be aligned too, layer by layer.

    And a tile can be *selected*: the sender's K and V are taken, but for the tokens whose K deviates most from the
    receiver's at layer 1; those are chosen at run time and recomputed through all layers above.

    Values are what is made of what: `!reuse.hidden` are hidden states that enter a layer, `!reuse.cache` is
    K and V of a run of layers. The answer takes the caches of all layers; then the suffix, the tokens that
    only this request has, goes upward through every layer of the receiver.

    ```mlir
    reuse.plan @v0 policy "droidspeak" layers 12 tokens [256, 1024) rate [8000000, 40000000)
        tuned(tokens = 512, suffix = 32, rate = 20000000) promise(loss = 1.8, ttft_ns = 41200000) {
      %cut3 = reuse.cut layer 3
      %kv0 = reuse.load layers 0 to 2
      %kv3, %out6 = reuse.recompute layers 3 to 6 from %cut3
      %kv7 = reuse.load layers 7 to 11
      reuse.answer %kv0, %kv3, %kv7
    }
    ```

    Nothing here says when anything happens, how it is stored or how long it takes: that is the dialect
    `plan`. Layers count from 0, `A to B` includes both ends; ranges of tokens and rates (bytes per second) are
    half-open.
  }];
  let useDefaultTypePrinterParser = 1;
  let dependentDialects = ["::ds::plan::PlanDialect"];
}

#endif
