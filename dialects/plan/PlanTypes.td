// Types of `plan`: streams, buffers, events.
#ifndef DROIDSPEAK_PLAN_TYPES
#define DROIDSPEAK_PLAN_TYPES

include "dialects/plan/PlanDialect.td"
include "mlir/IR/AttrTypeBase.td"

class Plan_Type<string name, string typeMnemonic> : TypeDef<Plan_Dialect, name>,
    BuildableType<"$_builder.getType<::ds::plan::" # name # "Type>()"> {
  let mnemonic = typeMnemonic;
}

def Plan_StreamType : Plan_Type<"Stream", "stream"> {
  let summary = "a queue whose ops run one after another, in the order in which they stand";
}
def Plan_BufferType : Plan_Type<"Buffer", "buffer"> {
  let summary = "rows of one layer's cache, or rows of hidden states";
}
def Plan_EventType : Plan_Type<"Event", "event"> {
  let summary = "the moment at which an operation has ended";
}

#endif
