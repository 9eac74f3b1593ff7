// Attributes of `plan`: the enumerations of plans/plan.h, the records of a file's head, and why a tiling is there.
#ifndef DROIDSPEAK_PLAN_ATTRS
#define DROIDSPEAK_PLAN_ATTRS

include "dialects/plan/PlanDialect.td"
include "mlir/IR/AttrTypeBase.td"
include "mlir/IR/EnumAttr.td"
include "mlir/IR/SymbolInterfaces.td"

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
  let extraClassDeclaration = "::ds::Shape describe();";
}

def Plan_SourceAttr : Plan_Attr<"Source", "source"> {
  let summary = "what transfers read (ds::Source)";
  let parameters = (ins Plan_Enumerator<"SourceRule", "source_rule_name">:$rule, "::ds::plan::ModelAttr":$model, "::ds::plan::ShapeAttr":$shape);
}

//===-- Why a tiling is there, for `reuse.plan` and `plan.variant` alike ----------------------------------===//

defvar notKnown = "::llvm::APFloat(::ds::kUnknown)";

// As short as it reads back exactly; `unknown` is NaN.
class Plan_Number<string otherwise = ""> : APFloatParameter<"a number, or `unknown`"> {
  let parser = "::ds::parse_number($_parser)";
  let printer = "::ds::print_number($_printer, $_self.convertToDouble())";
  let defaultValue = otherwise;
}

def Plan_RangeAttr : AttrDef<Plan_Dialect, "Range"> {
  let summary = "a half-open range; operations write it `[256, 1024)`, `[1, inf)`";
  let mnemonic = "range";
  let parameters = (ins "int64_t":$low, "int64_t":$high);
  let assemblyFormat = "`<` $low `to` $high `>`";
  let extraClassDeclaration = [{
    bool overlaps(RangeAttr other) const { return getLow() < other.getHigh() && other.getLow() < getHigh(); }
  }];
}

// `name(a = 1, b = 2)`; parameters with a default may be left out.
class Plan_Record<string name, string attrMnemonic> : AttrDef<Plan_Dialect, name> {
  let mnemonic = attrMnemonic;
  let assemblyFormat = "`(` struct(params) `)`";
}

def Plan_PointAttr : Plan_Record<"Point", "point"> {
  let summary = "the context length, suffix length and link rate for which times hold";
  let parameters = (ins "int64_t":$tokens, "int64_t":$suffix, "int64_t":$rate);
}

def Plan_PromiseAttr : Plan_Record<"Promise", "promise"> {
  let summary = "what quality and TTFT are promised, and how certain that is (ds::Promise)";
  let parameters = (ins Plan_Number<>:$loss, "int64_t":$ttft_ns, Plan_Number<notKnown>:$loss_stderr,
    Plan_Number<notKnown>:$loss_bound, Plan_Number<"::llvm::APFloat(0.0)">:$confidence, Plan_Number<notKnown>:$divergence,
    Plan_Number<notKnown>:$divergence_stderr, Plan_Number<notKnown>:$divergence_bound);
  let extraClassDeclaration = [{
    static PromiseAttr of(::mlir::MLIRContext* context, const ::ds::Promise& promise);
    ::ds::Promise describe();
  }];
  let genVerifyDecl = 1;
}

def Plan_AlternativeAttr : Plan_Record<"Alternative", "alternative"> {
  let summary = "another choice at the tuned point (ds::Alternative)";
  let parameters = (ins StringRefParameter<>:$what, Plan_Number<>:$loss, "int64_t":$ttft_ns, "int64_t":$compute_ns,
    Plan_Number<notKnown>:$divergence);
  let extraClassDeclaration = [{
    static AlternativeAttr of(::mlir::MLIRContext* context, const ::ds::Alternative& alternative);
    ::ds::Alternative describe();
  }];
  let genVerifyDecl = 1;
}

def Plan_Alternatives : OptionalArrayRefParameter<"::ds::plan::AlternativeAttr"> {
  let parser = "parse_alternatives($_parser)";
  let printer = "print_alternatives($_printer, $_self)";
}

def Plan_ChoiceAttr : Plan_Record<"Choice", "choice"> {
  let summary = "how a tiling came to be chosen";
  let description = [{
    `way`: whose loss in the quality profile is promised; `why`: the objective, for people; `regret`: how much longer
    than the best candidate it takes at the worst point of its ranges; `alternatives`: what else could be had.
  }];
  let parameters = (ins StringRefParameter<"", [{""}]>:$way, StringRefParameter<"", [{""}]>:$why,
    Plan_Number<"::llvm::APFloat(-1.0)">:$regret, Plan_Alternatives:$alternatives);
  let extraClassDeclaration = [{
    /// Nothing where nothing is known of it.
    static ChoiceAttr of(::mlir::MLIRContext* context, const ::ds::Variant& variant);
    void read_into(::ds::Variant& variant);
  }];
  let genVerifyDecl = 1;
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

// What operations of both dialects say of why they are there: those of PurposeInterface.
defvar Plan_PurposeArguments = (ins SymbolNameAttr:$sym_name, UnitAttr:$fallback, UnitAttr:$live, StrAttr:$policy,
  Plan_RangeAttr:$tokens, Plan_RangeAttr:$rate, OptionalAttr<Plan_RangeAttr>:$load, Plan_PointAttr:$tuned, Plan_PromiseAttr:$promise,
  OptionalAttr<Plan_ChoiceAttr>:$chosen);

#endif
