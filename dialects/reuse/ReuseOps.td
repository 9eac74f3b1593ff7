// Operations of `reuse`: a plan, the cut, the tiles, the answer.
#ifndef DROIDSPEAK_REUSE_OPS
#define DROIDSPEAK_REUSE_OPS

include "dialects/plan/PlanAttrs.td"
include "dialects/plan/PlanInterfaces.td"
include "dialects/reuse/ReuseTypes.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"

class Reuse_Op<string mnemonic, list<Trait> traits = []> : Op<Reuse_Dialect, mnemonic, traits>;

// A tile: layers `first_layer` to `last_layer`, and `first_chunk` to `last_chunk` where it has them (else all), in the mode
// of that name in plans/plan.h. Its first result is its cache.
class Reuse_TileOp<string mnemonic, string mode> : Reuse_Op<mnemonic, [HasParent<"PlanOp">,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>, DeclareOpInterfaceMethods<Plan_TileInterface>]> {
  let extraClassDefinition = [{
    ::ds::Tile $cppClass::describe(int32_t chunks) { return describe_tile(*this, ::ds::Mode::k}] # mode # [{, chunks); }
    void $cppClass::getAsmResultNames(::mlir::OpAsmSetValueNameFn set) { name_tile(*this, set); }
  }];
}

def Reuse_PlanOp : Reuse_Op<"plan", [IsolatedFromAbove, Symbol, SingleBlock, NoRegionArguments, Plan_PurposeInterface]> {
  let summary = "one tiling, and for which context lengths and link rates it was chosen";
  let description = [{
    Its tiles cover every layer and every chunk of the context exactly once, from layer 0 upward. `chunks`
    says into how many the context is divided; without it there is one. `load` counts the other requests that
    wait: without it the plan holds for any number. `fallback` marks the full prefill that every plan file
    carries: all layers recomputed, right for every length and rate; `live` what is for a sender that computes
    the context as the request comes.
  }];
  let arguments = !con(Plan_PurposeArguments, (ins I32Attr:$layers, OptionalAttr<I32Attr>:$chunks));
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name (`fallback` $fallback^)? (`live` $live^)? `policy` $policy `layers` $layers (`chunks` $chunks^)?
    `tokens` custom<Range>($tokens) `rate` custom<Range>($rate) custom<Load>($load) `\n`
    `tuned` `` $tuned `promise` `` $promise (`\n` `chosen` `` $chosen^)? attr-dict-with-keyword $body
  }];
  let hasRegionVerifier = 1;
}

def Reuse_CutOp : Reuse_Op<"cut", [HasParent<"PlanOp">,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "the sender's hidden states that enter a layer; they are sent";
  let description = "Layer 0 has none: its hidden states are the receiver's own embeddings.";
  let arguments = (ins I32Attr:$layer);
  let results = (outs Reuse_HiddenType:$hidden);
  let assemblyFormat = "`layer` $layer attr-dict";
  let hasVerifier = 1;
}

def Reuse_AlignOp : Reuse_Op<"align", [HasParent<"PlanOp">,
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "a cut's hidden states, taken to the receiver's by a map of its layer";
  let description = "The maps are those of the plan file; where the sender applies them, it stores the mapped cut.";
  let arguments = (ins Reuse_HiddenType:$cut, Plan_AlignmentAttr:$alignment);
  let results = (outs Reuse_HiddenType:$hidden);
  let assemblyFormat = "$cut `` $alignment attr-dict";
  let hasVerifier = 1;
}

def Reuse_LoadOp : Reuse_TileOp<"load", "Load"> {
  let summary = "the sender's K and V of a run of layers, as they are";
  let description = "Without `chunks` all chunks of the context.";
  let arguments = (ins I32Attr:$first_layer, I32Attr:$last_layer, OptionalAttr<I32Attr>:$first_chunk,
    OptionalAttr<I32Attr>:$last_chunk);
  let results = (outs Reuse_CacheType:$cache);
  let assemblyFormat = [{
    `layers` $first_layer `to` $last_layer (`chunks` $first_chunk^ `to` $last_chunk)? attr-dict
  }];
}

def Reuse_RecomputeOp : Reuse_TileOp<"recompute", "Recompute"> {
  let summary = "the receiver's own K and V of a run of layers";
  let description = [{
    Starts `from` hidden states that enter its first layer: a cut there, aligned or as it is, or the output of the
    tile below; from layer 0 it starts from the embeddings and takes none. The second result are the hidden
    states that leave its last layer; where nobody uses them, that layer computes K and V only. Without `chunks` all chunks
    of the context; a tile above may take some of the chunks of the one below.
  }];
  let arguments = (ins I32Attr:$first_layer, I32Attr:$last_layer, OptionalAttr<I32Attr>:$first_chunk,
    OptionalAttr<I32Attr>:$last_chunk, Optional<Reuse_HiddenType>:$from);
  let results = (outs Reuse_CacheType:$cache, Reuse_HiddenType:$hidden);
  let assemblyFormat = [{
    `layers` $first_layer `to` $last_layer (`chunks` $first_chunk^ `to` $last_chunk)? (`from` $from^)? attr-dict
  }];
  let hasVerifier = 1;
}

def Reuse_RestoreOp : Reuse_TileOp<"restore", "Restore"> {
  let summary = "the receiver's projections of the sender's hidden states: K and V of a run of layers";
  let description = [{
    The sender's hidden states that enter each of these layers are sent, and the receiver computes K and V of
    them, layer by layer; nothing goes on upward, so no other tile can stand on this one. Layer 0 starts from
    the receiver's own embeddings, and nothing is sent for it. Without `chunks` all chunks of the context.
    `aligned`: what is sent goes through the maps of its layers.
  }];
  let arguments = (ins I32Attr:$first_layer, I32Attr:$last_layer, OptionalAttr<I32Attr>:$first_chunk,
    OptionalAttr<I32Attr>:$last_chunk, OptionalAttr<Plan_AlignmentAttr>:$alignment);
  let results = (outs Reuse_CacheType:$cache);
  let assemblyFormat = [{
    `layers` $first_layer `to` $last_layer (`chunks` $first_chunk^ `to` $last_chunk)?
    (`aligned` `` $alignment^)? attr-dict
  }];
  let hasVerifier = 1;
}

def Reuse_SelectOp : Reuse_TileOp<"select", "Select"> {
  let summary = "the sender's K and V, but the receiver's own for the tokens that deviate most";
  let description = [{
    Takes the hidden states that leave layer 0, which the receiver has recomputed for all tokens. Of them it
    computes K of layer 1 and compares it with the sender's; the `share` of the tokens whose K deviates most
    (rounded up) goes through layers 1 to the last, each token over the sender's K and V of what was not chosen
    and the receiver's of what was. One chunk only: the choice is among all tokens of the context.
  }];
  let arguments = (ins I32Attr:$first_layer, I32Attr:$last_layer, F64Attr:$share, Reuse_HiddenType:$from);
  let results = (outs Reuse_CacheType:$cache);
  let assemblyFormat = [{
    `layers` $first_layer `to` $last_layer `share` custom<Number>($share) `from` $from attr-dict
  }];
  let hasVerifier = 1;
}

def Reuse_AnswerOp : Reuse_Op<"answer", [HasParent<"PlanOp">, Terminator]> {
  let summary = "the suffix, upward through every layer, over these caches: the first token";
  let arguments = (ins Variadic<Reuse_CacheType>:$caches);
  let assemblyFormat = "$caches attr-dict";
}

#endif
