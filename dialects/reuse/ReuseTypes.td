// Types of `reuse`: hidden states and caches.
#ifndef DROIDSPEAK_REUSE_TYPES
#define DROIDSPEAK_REUSE_TYPES

include "dialects/reuse/ReuseDialect.td"
include "mlir/IR/AttrTypeBase.td"

class Reuse_Type<string name, string typeMnemonic> : TypeDef<Reuse_Dialect, name>,
    BuildableType<"$_builder.getType<::ds::reuse::" # name # "Type>()"> {
  let mnemonic = typeMnemonic;
}

def Reuse_HiddenType : Reuse_Type<"Hidden", "hidden"> {
  let summary = "hidden states of the context that enter a layer";
}
def Reuse_CacheType : Reuse_Type<"Cache", "cache"> {
  let summary = "K and V of the context, for a run of layers";
}

#endif
