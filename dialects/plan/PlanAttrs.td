// Attributes of `plan`: the enumerations of plans/plan.h under the same numbers, and the records of a file's head.
#ifndef DROIDSPEAK_PLAN_ATTRS
#define DROIDSPEAK_PLAN_ATTRS

include "dialects/plan/PlanDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

class Plan_Enum<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::ds::plan";
  let genSpecializedAttr = 0;
}
class Plan_EnumAttr<EnumAttrInfo info, string mnemonic> : EnumAttr<Plan_Dialect, info, mnemonic>;

def Plan_StreamKind : Plan_Enum<"StreamKind", "what a stream is", [
  I32EnumAttrCase<"link", 0>, I32EnumAttrCase<"copy", 1>, I32EnumAttrCase<"compute", 2>]>;
def Plan_StreamKindAttr : Plan_EnumAttr<Plan_StreamKind, "stream_kind">;

def Plan_BufferKind : Plan_Enum<"BufferKind", "what a buffer holds", [
  I32EnumAttrCase<"kv", 0>, I32EnumAttrCase<"hidden", 1>]>;
def Plan_BufferKindAttr : Plan_EnumAttr<Plan_BufferKind, "buffer_kind">;

def Plan_Mode : Plan_Enum<"Mode", "how a tile gets its K and V", [
  I32EnumAttrCase<"load", 0>, I32EnumAttrCase<"recompute", 1>]>;
def Plan_ModeAttr : Plan_EnumAttr<Plan_Mode, "mode">;

def Plan_Payload : Plan_Enum<"Payload", "what a transfer moves", [
  I32EnumAttrCase<"e", 0>, I32EnumAttrCase<"kv", 1>]>;
def Plan_PayloadAttr : Plan_EnumAttr<Plan_Payload, "payload">;

def Plan_Rows : Plan_Enum<"Rows", "rows of hidden states an op works on", [
  I32EnumAttrCase<"chunk", 0>, I32EnumAttrCase<"suffix", 1>, I32EnumAttrCase<"all", 2>]>;
def Plan_RowsAttr : Plan_EnumAttr<Plan_Rows, "rows">;

def Plan_Queries : Plan_Enum<"Queries", "rows that go on through Q, attention and MLP", [
  I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"all", 1>, I32EnumAttrCase<"suffix", 2>,
  I32EnumAttrCase<"last", 3>]>;
def Plan_QueriesAttr : Plan_EnumAttr<Plan_Queries, "queries">;

def Plan_Role : Plan_Enum<"Role", "what a task is to the simple strategies", [
  I32EnumAttrCase<"load_e", 0>, I32EnumAttrCase<"load_kv", 1>, I32EnumAttrCase<"compute", 2>]>;
def Plan_RoleAttr : Plan_EnumAttr<Plan_Role, "role">;

def Plan_Objective : Plan_Enum<"Objective", "what a problem minimises", [
  I32EnumAttrCase<"makespan", 0>, I32EnumAttrCase<"sum", 1>]>;
def Plan_ObjectiveAttr : Plan_EnumAttr<Plan_Objective, "objective">;

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

def Plan_InputAttr : Plan_Attr<"Input", "input"> {
  let summary = "a file that the plan was made from (ds::InputFile)";
  let parameters = (ins StringRefParameter<>:$role, StringRefParameter<>:$name, StringRefParameter<>:$sha256);
}

#endif
