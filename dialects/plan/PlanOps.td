// Operations of `plan`: a file, its variants, what they declare, and one op per transfer and kernel.
#ifndef DROIDSPEAK_PLAN_OPS
#define DROIDSPEAK_PLAN_OPS

include "dialects/plan/PlanAttrs.td"
include "dialects/plan/PlanInterfaces.td"
include "dialects/plan/PlanTypes.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class Plan_Op<string mnemonic, list<Trait> traits = []> : Op<Plan_Dialect, mnemonic, traits>;

//===-- The file and its variants -----------------------------------------------------------------------===//

def Plan_FileOp : Plan_Op<"file", [IsolatedFromAbove, SymbolTable, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "a plan file: for whom it is, what it was made from, its variants (ds::Plan)";
  let description = [{
    Holds `reuse.plan`s before and `plan.variant`s after lowering. The element type `dtype` and the `backend`
    are those for which times hold. `shared_vocab` is there where the receiver's vocabulary goes on beyond the
    ids that the sender knows. `maps` is there where a variant has aligned cuts: what they are mapped with.
    `sources` is there from format 5 on: what transfers read.
  }];
  let arguments = (ins I32Attr:$version, StrAttr:$dtype, OptionalAttr<StrAttr>:$backend, Plan_ModelAttr:$sender, Plan_ModelAttr:$receiver,
    Plan_ShapeAttr:$shape, StrAttr:$compiler, StrAttr:$flags, TypedArrayAttrBase<Plan_InputAttr, "inputs">:$inputs,
    OptionalAttr<Plan_MapsAttr>:$maps, OptionalAttr<I64Attr>:$shared_vocab,
    OptionalAttr<TypedArrayAttrBase<Plan_SourceAttr, "sources">>:$sources);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    `version` $version `dtype` $dtype (`backend` $backend^)? `\n` `sender` $sender `\n` `receiver` $receiver `\n` `shape` $shape
    (`shared_vocab` $shared_vocab^)? `\n` `compiler` $compiler `flags` $flags `\n` `inputs` $inputs `\n` (`maps` $maps^ `\n`)?
    (`sources` $sources^ `\n`)?
    attr-dict-with-keyword $body
  }];
  let hasVerifier = 1;
}

def Plan_VariantOp : Plan_Op<"variant", [IsolatedFromAbove, Symbol, NoTerminator, SingleBlock, NoRegionArguments,
    Plan_PurposeInterface]> {
  let summary = "tiling and schedule for a range of context lengths and link rates (ds::Variant)";
  let description = [{
    Its operations speak of chunks of the context, not of tokens, so that it is right for every length in its
    range; times hold at the tuned point. `makespan`, `lower_bound` and `proven_optimal` are the scheduler's.
    `load` counts the other requests that wait: without it, it holds for any number. `selects` is there where
    tokens are selected: their share of the context. `aligned FORM by SIDE` is there where the sender's hidden
    states go through maps. `fallback` marks the full prefill that every file carries,
     `live` what waits for a sender that is computing.
  }];
  let arguments = !con(Plan_PurposeArguments, (ins StrAttr:$scheduler, I32Attr:$chunks, OptionalAttr<I64Attr>:$makespan,
    OptionalAttr<I64Attr>:$lower_bound, UnitAttr:$proven_optimal, OptionalAttr<F64Attr>:$select_share,
    OptionalAttr<Plan_AlignmentAttr>:$alignment));
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name (`fallback` $fallback^)? (`live` $live^)? `policy` $policy `scheduler` $scheduler `tokens` custom<Range>($tokens)
    `rate` custom<Range>($rate) custom<Load>($load) `\n`
    `tuned` `` $tuned `chunks` $chunks `promise` `` $promise (`\n` `chosen` `` $chosen^)?
    (`selects` custom<Number>($select_share)^)? (`aligned` `` $alignment^)? (`makespan` $makespan^)? (`lower_bound` $lower_bound^)?
    (`proven_optimal` $proven_optimal^)? attr-dict-with-keyword $body
  }];
  let hasRegionVerifier = 1;
}

//===-- What a variant declares -------------------------------------------------------------------------===//

def Plan_StreamOp : Plan_Op<"stream", [DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "a stream of operations that run one after another (ds::Stream)";
  let arguments = (ins Plan_StreamKindAttr:$kind);
  let results = (outs Plan_StreamType:$result);
  let assemblyFormat = "`` $kind attr-dict";
  let hasVerifier = 1;
}

def Plan_BufferOp : Plan_Op<"buffer", [DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>]> {
  let summary = "memory of a request (ds::Buffer)";
  let description = [{
    `kv`: the cache of one layer. `hidden`: hidden states; `layer` is where the chain that runs through it
    starts. `with` says which rows it has, the context's, the suffix's behind them, or both.
  }];
  let arguments = (ins Plan_BufferKindAttr:$kind, I32Attr:$layer, UnitAttr:$with_context, UnitAttr:$with_suffix);
  let results = (outs Plan_BufferType:$result);
  let assemblyFormat = "`` $kind `layer` $layer `with` (`context` $with_context^)? (`suffix` $with_suffix^)? attr-dict";
  let hasVerifier = 1;
}

def Plan_TileOp : Plan_Op<"tile", [DeclareOpInterfaceMethods<Plan_TileInterface>]> {
  let summary = "a rectangle of the layer x token plane and its mode (ds::Tile)";
  let description = "For people and pictures: the operations alone decide what runs.";
  let arguments = (ins Plan_ModeAttr:$mode, I32Attr:$first_layer, I32Attr:$last_layer, I32Attr:$first_chunk,
    I32Attr:$last_chunk, UnitAttr:$cut);
  let assemblyFormat = [{
    `` $mode `layers` $first_layer `to` $last_layer `chunks` $first_chunk `to` $last_chunk (`cut` $cut^)? attr-dict
  }];
  let hasVerifier = 1;
}

//===-- Transfers and kernels ---------------------------------------------------------------------------===//

// An operation on a stream. `extra` are its own attributes; all others have all operations.
class Plan_StreamedOp<string mnemonic, dag extra, dag event = (outs Plan_EventType:$event)> : Plan_Op<mnemonic, [
    DeclareOpInterfaceMethods<OpAsmOpInterface, ["getAsmResultNames"]>, Plan_OperationInterface,
    Plan_VariantOperationInterface]> {
  let arguments = !con(extra, (ins Plan_BufferType:$buffer, Plan_StreamType:$stream,
    Variadic<Plan_EventType>:$after, OptionalAttr<I64Attr>:$at, OptionalAttr<I64Attr>:$duration));
  let results = event;
  let extraClassDeclaration = [{
    ::std::string label();
    ::ds::plan::Role role();
    ::ds::Op describe();
  }];
  let extraClassDefinition = "::ds::plan::Role $cppClass::role() { return role_of(describe()); }";
  let hasVerifier = 1;
  string schedule = "`on` $stream (`after` $after^)? (`at` $at^)? (`for` $duration^)? attr-dict";
}

// What is sent is for those who wait for it: where nobody does, it is dead code, as an allocation is that nobody reads.
def Plan_TransferOp : Plan_StreamedOp<"transfer", (ins Plan_PayloadAttr:$payload, I32Attr:$layer,
    I32Attr:$chunk, OptionalAttr<I32Attr>:$last_chunk, OptionalAttr<I32Attr>:$source), (outs Res<Plan_EventType, "what has arrived", [MemAlloc]>:$event)> {
  let summary = "E or K and V of one layer and run of chunks, from a source into a buffer";
  let description = "`from` is the source's number in the file, where that is not 0, the sender. Without a reader it is dead code (--cse).";
  let assemblyFormat = "`` $payload `(` $layer `)` custom<Chunks>($chunk, $last_chunk) (`from` $source^)? `into` $buffer " # schedule;
}

def Plan_EmbedOp : Plan_StreamedOp<"embed", (ins Plan_RowsAttr:$rows, OptionalAttr<I32Attr>:$chunk,
    OptionalAttr<I32Attr>:$last_chunk)> {
  let summary = "the receiver's embeddings of rows of tokens";
  let assemblyFormat = "`` $rows (`chunk` $chunk^)? (`to` $last_chunk^)? `into` $buffer " # schedule;
}

def Plan_RecomputeOp : Plan_StreamedOp<"recompute", (ins I32Attr:$layer, OptionalAttr<I32Attr>:$chunk,
    OptionalAttr<I32Attr>:$last_chunk, Plan_QueriesAttr:$queries)> {
  let summary = "one layer over a run of chunks of the context, in place; its K and V go to the layer's cache";
  let description = [{
    `queries none`: K and V only, for the last layer of a group, whose output nobody reads. `selected` in place of
    chunks: the tokens that `plan.select` has chosen.
  }];
  let assemblyFormat = [{
    `layer` $layer custom<RecomputedRows>($chunk, $last_chunk) `queries` `` $queries `in` $buffer
  }] # schedule;
}

def Plan_SelectOp : Plan_StreamedOp<"select", (ins I32Attr:$layer)> {
  let summary = "chooses the tokens whose K deviates most from the sender's in this layer's cache";
  let description = [{
    The variant's `select_share` of the context. Their hidden states, which enter the layer, are moved to the front.
  }];
  let assemblyFormat = "`layer` $layer `in` $buffer " # schedule;
}

def Plan_AlignOp : Plan_StreamedOp<"align", (ins I32Attr:$layer, I32Attr:$chunk, OptionalAttr<I32Attr>:$last_chunk)> {
  let summary = "the sender's hidden states that enter a layer go through its map, in place";
  let description = [{
    Stands between the transfer of a run of chunks and what reads it, in variants that are aligned by the receiver.
  }];
  let assemblyFormat = "`layer` $layer custom<Chunks>($chunk, $last_chunk) `in` $buffer " # schedule;
}

def Plan_SuffixOp : Plan_StreamedOp<"suffix", (ins I32Attr:$layer, Plan_QueriesAttr:$queries)> {
  let summary = "one layer over the suffix";
  let assemblyFormat = "`layer` $layer `queries` `` $queries `in` $buffer " # schedule;
}

def Plan_PrefillOp : Plan_StreamedOp<"prefill", (ins I32Attr:$layer, Plan_QueriesAttr:$queries)> {
  let summary = "one layer over context and suffix together, from the embeddings up";
  let assemblyFormat = "`layer` $layer `queries` `` $queries `in` $buffer " # schedule;
}

def Plan_HeadOp : Plan_StreamedOp<"head", (ins)> {
  let summary = "final norm and logits of the last suffix token: the first token";
  let assemblyFormat = "`in` $buffer " # schedule;
}


#endif
