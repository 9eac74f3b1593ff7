// What every operation on a stream has in common.
#ifndef DROIDSPEAK_PLAN_INTERFACES
#define DROIDSPEAK_PLAN_INTERFACES

include "mlir/IR/OpBase.td"

def Plan_OperationInterface : OpInterface<"OperationInterface"> {
  let cppNamespace = "::ds::plan";
  let description = [{
    An operation that holds a stream for its whole time: every transfer and kernel of a variant, and the
    tasks of a `scheduling.problem`. Schedulers see nothing else of it.
  }];
  let methods = [
    InterfaceMethod<"The stream that it holds", "::mlir::Value", "getStream">,
    InterfaceMethod<"Events that it waits for", "::mlir::OperandRange", "getAfter">,
    InterfaceMethod<"The same, to be changed", "::mlir::MutableOperandRange", "getAfterMutable">,
    InterfaceMethod<"When it starts, ns; not there before it is scheduled", "::std::optional<uint64_t>", "getAt">,
    InterfaceMethod<"How long it takes, ns; not there before it is costed", "::std::optional<uint64_t>",
                    "getDuration">,
    InterfaceMethod<"Sets when it starts", "void", "setAt", (ins "::std::optional<uint64_t>":$ns)>,
    InterfaceMethod<"Sets how long it takes", "void", "setDuration", (ins "::std::optional<uint64_t>":$ns)>,
    InterfaceMethod<"For messages: \"recompute 4\", \"kv(0)\"", "::std::string", "label">,
    InterfaceMethod<"E load, KV load or kernel, as the simple strategies see it", "::ds::plan::Role", "role">,
  ];
}

def Plan_VariantOperationInterface : OpInterface<"VariantOperationInterface", [Plan_OperationInterface]> {
  let cppNamespace = "::ds::plan";
  let description = [{
    An operation of a variant: a transfer or a kernel. Which kind it is, and on what it works, is told as the
    executor knows it, so that plans/traits.h has its reads, its writes and its cost.
  }];
  let methods = [
    InterfaceMethod<"The buffer that it writes or updates", "::mlir::Value", "getBuffer">,
    InterfaceMethod<"Kind, layer, chunks, rows and queries; without stream, buffer, waits and times", "::ds::Op",
                    "describe">,
  ];
}

def Plan_PurposeInterface : OpInterface<"PurposeInterface"> {
  let cppNamespace = "::ds::plan";
  let description = [{
    A tiling, scheduled or not: for which requests it is, what it promises, how it came to be chosen. The same in
    both dialects.
  }];
  let methods = [
    InterfaceMethod<"Whether it is the full prefill that every file carries", "bool", "getFallback">,
    InterfaceMethod<"Whether it waits for what a sender shows that computes meanwhile", "bool", "getLive">,
    InterfaceMethod<"Who has drawn it", "::llvm::StringRef", "getPolicy">,
    InterfaceMethod<"Context lengths that it is for", "::ds::plan::RangeAttr", "getTokens">,
    InterfaceMethod<"Link rates that it is for, bytes per second", "::ds::plan::RangeAttr", "getRate">,
    InterfaceMethod<"How many other requests wait; nothing: any number", "::ds::plan::RangeAttr", "getLoadAttr">,
    InterfaceMethod<"Where times hold", "::ds::plan::PointAttr", "getTuned">,
    InterfaceMethod<"What it promises", "::ds::plan::PromiseAttr", "getPromise">,
    InterfaceMethod<"How it was chosen; nothing: not known", "::ds::plan::ChoiceAttr", "getChosenAttr">,
  ];
  let verify = "return ::ds::plan::verify_purpose($_op);";
}

def Plan_TileInterface : OpInterface<"TileInterface"> {
  let cppNamespace = "::ds::plan";
  let description = "A rectangle of the layer x token plane, of either dialect.";
  let methods = [
    InterfaceMethod<"As plans have it; `chunks`: how many the context has", "::ds::Tile", "describe",
                    (ins "int32_t":$chunks)>,
  ];
}

#endif
