// Attributes of `plan`: the enumerations of plans/plan.h under the same numbers, and the records of a file's head.
#ifndef DROIDSPEAK_PLAN_ATTRS
#define DROIDSPEAK_PLAN_ATTRS

include "dialects/plan/PlanDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"

class Plan_EnumAttr<string name, string summary, list<I32EnumAttrCase> cases> : I32EnumAttr<name, summary, cases> {
  let cppNamespace = "::ds::plan";
}

def Plan_StreamKindAttr : Plan_EnumAttr<"StreamKind", "what a stream is", [
  I32EnumAttrCase<"link", 0>, I32EnumAttrCase<"copy", 1>, I32EnumAttrCase<"compute", 2>]>;

def Plan_BufferKindAttr : Plan_EnumAttr<"BufferKind", "what a buffer holds", [
  I32EnumAttrCase<"kv", 0>, I32EnumAttrCase<"hidden", 1>]>;

def Plan_ModeAttr : Plan_EnumAttr<"Mode", "how a tile gets its K and V", [
  I32EnumAttrCase<"load", 0>, I32EnumAttrCase<"recompute", 1>, I32EnumAttrCase<"restore", 2>,
  I32EnumAttrCase<"select", 3>]>;

def Plan_PayloadAttr : Plan_EnumAttr<"Payload", "what a transfer moves", [
  I32EnumAttrCase<"e", 1>, I32EnumAttrCase<"kv", 2>]>;

def Plan_RowsAttr : Plan_EnumAttr<"Rows", "rows of hidden states an op works on", [
  I32EnumAttrCase<"chunk", 0>, I32EnumAttrCase<"suffix", 1>, I32EnumAttrCase<"all", 2>]>;

def Plan_QueriesAttr : Plan_EnumAttr<"Queries", "rows that go on through Q, attention and MLP", [
  I32EnumAttrCase<"none", 0>, I32EnumAttrCase<"all", 1>, I32EnumAttrCase<"suffix", 2>,
  I32EnumAttrCase<"last", 3>]>;

def Plan_MapFormAttr : Plan_EnumAttr<"MapForm", "what a map at a cut is made of", [
  I32EnumAttrCase<"diagonal", 1>, I32EnumAttrCase<"low_rank", 2>, I32EnumAttrCase<"full", 3>]>;

def Plan_MapSideAttr : Plan_EnumAttr<"MapSide", "who applies the maps", [
  I32EnumAttrCase<"receiver", 0>, I32EnumAttrCase<"sender", 1>]>;

def Plan_RoleAttr : Plan_EnumAttr<"Role", "what a task is to the simple strategies", [
  I32EnumAttrCase<"load_e", 0>, I32EnumAttrCase<"load_kv", 1>, I32EnumAttrCase<"compute", 2>]>;

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

def Plan_SourceRuleAttr : Plan_EnumAttr<"SourceRule", "how a source's rows came about", [
  I32EnumAttrCase<"prefix", 0>, I32EnumAttrCase<"segment", 1>]>;

def Plan_SourceAttr : Plan_Attr<"Source", "source"> {
  let summary = "what transfers read (ds::Source)";
  let parameters = (ins EnumParameter<Plan_SourceRuleAttr>:$rule, "::ds::plan::ModelAttr":$model, "::ds::plan::ShapeAttr":$shape);
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
