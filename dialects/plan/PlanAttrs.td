// Attributes of `plan`: the enumerations of plans/plan.h, and the records of a file's head.
#ifndef DROIDSPEAK_PLAN_ATTRS
#define DROIDSPEAK_PLAN_ATTRS

include "dialects/plan/PlanDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

// An enumerator of plans/, written as the name that `names`, a function there, has for it.
class Plan_Enumerator<string enum, string names> : AttrParameter<"::ds::" # enum, "an enumerator of plans/"> {
  let parser = "::ds::parse_enumerator<::ds::" # enum # ">($_parser, ::ds::" # names # ")";
  let printer = "::ds::print_enumerator($_printer, ::ds::" # names # "($_self))";
}

// The enumeration of that name of plans/ itself: there is no second one whose numbers would have to agree.
class Plan_EnumAttr<string enum, string attrMnemonic, string what, string names = attrMnemonic # "_name">
    : AttrDef<Plan_Dialect, enum> {
  let summary = what;
  let mnemonic = attrMnemonic;
  let parameters = (ins Plan_Enumerator<enum, names>:$value);
  let assemblyFormat = "$value";
  let returnType = "::ds::" # enum;
  let convertFromStorage = "$_self.getValue()";
  let constBuilderCall = "::ds::plan::" # enum # "Attr::get($_builder.getContext(), $0)";
}

def Plan_StreamKindAttr : Plan_EnumAttr<"StreamKind", "stream_kind", "what a stream is">;
def Plan_BufferKindAttr : Plan_EnumAttr<"BufferKind", "buffer_kind", "what a buffer holds">;
def Plan_ModeAttr : Plan_EnumAttr<"Mode", "mode", "how a tile gets its K and V">;
def Plan_PayloadAttr : Plan_EnumAttr<"Payload", "payload", "what a transfer moves">;
def Plan_RowsAttr : Plan_EnumAttr<"Rows", "rows", "rows of hidden states an op works on">;
def Plan_QueriesAttr : Plan_EnumAttr<"Queries", "queries", "rows that go on through Q, attention and MLP">;

def Plan_RoleAttr : I32EnumAttr<"Role", "what a task is to the simple strategies", [
    I32EnumAttrCase<"load_e", 0>, I32EnumAttrCase<"load_kv", 1>, I32EnumAttrCase<"compute", 2>]> {
  let cppNamespace = "::ds::plan";
}

class Plan_Attr<string name, string attrMnemonic> : AttrDef<Plan_Dialect, name> {
  let mnemonic = attrMnemonic;
  let assemblyFormat = "`<` struct(params) `>`";
}

def Plan_ModelAttr : Plan_Attr<"Model", "model"> {
  let summary = "what a model is, for identity checks (ds::ModelIdentity)";
  let parameters = (ins StringRefParameter<>:$name, StringRefParameter<>:$fingerprint,
    StringRefParameter<>:$config, StringRefParameter<>:$weights, StringRefParameter<>:$tokenizer);
}

def Plan_ShapeAttr : Plan_Attr<"Shape", "shape"> {
  let summary = "the architecture that both models share (ds::Shape)";
  let parameters = (ins StringRefParameter<>:$family, "int64_t":$layers, "int64_t":$d_model, "int64_t":$ff,
    "int64_t":$heads, "int64_t":$kv_heads, "int64_t":$head_dim, "int64_t":$vocab);
}

def Plan_SourceAttr : Plan_Attr<"Source", "source"> {
  let summary = "what transfers read (ds::Source)";
  let parameters = (ins Plan_Enumerator<"SourceRule", "source_rule_name">:$rule, "::ds::plan::ModelAttr":$model, "::ds::plan::ShapeAttr":$shape);
}

def Plan_AlignmentAttr : AttrDef<Plan_Dialect, "Alignment"> {
  let summary = "of which form the maps of the sender's hidden states are, and who applies them";
  let mnemonic = "alignment";
  let parameters = (ins Plan_Enumerator<"MapForm", "map_form_name">:$form, Plan_Enumerator<"MapSide", "map_side_name">:$side);
  let assemblyFormat = "$form `by` $side";
  let extraClassDeclaration = [{
    /// Nothing where a variant has no maps.
    static AlignmentAttr of(::mlir::MLIRContext* context, const ::ds::Variant& variant);
  }];
  let genVerifyDecl = 1;
}

def Plan_InputAttr : Plan_Attr<"Input", "input"> {
  let summary = "a file that the plan was made from (ds::InputFile)";
  let parameters = (ins StringRefParameter<>:$role, StringRefParameter<>:$name, StringRefParameter<>:$sha256);
}

def Plan_MapsAttr : Plan_Attr<"Maps", "maps"> {
  let summary = "the file of maps of all aligned cuts (ds::MapsIdentity)";
  let parameters = (ins StringRefParameter<>:$name, StringRefParameter<>:$fingerprint);
}

#endif
