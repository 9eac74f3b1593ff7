// Attributes of `plan`: between them and the structures of plans/, and what they must not say.
#include "dialects/Assembly.h"
#include "dialects/plan/PlanDialect.h"
#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/DialectImplementation.h"
#include "plans/traits.h"
#include "plans/verify/promises.h"

namespace ds::plan {
namespace {

/// `[(what = ...), (what = ...)]`
mlir::FailureOr<llvm::SmallVector<AlternativeAttr>> parse_alternatives(mlir::AsmParser& parser) {
  llvm::SmallVector<AlternativeAttr> all;
  auto one = [&]() -> mlir::ParseResult {
    return parser.parseCustomAttributeWithFallback(all.emplace_back());
  };
  if (parser.parseCommaSeparatedList(mlir::AsmParser::Delimiter::Square, one)) return mlir::failure();
  return all;
}

void print_alternatives(mlir::AsmPrinter& printer, llvm::ArrayRef<AlternativeAttr> all) {
  printer << '[';
  llvm::interleaveComma(all, printer, [&](AlternativeAttr a) { printer.printStrippedAttrOrType(a); });
  printer << ']';
}

using Fault = llvm::function_ref<mlir::InFlightDiagnostic()>;

/// `fault`: what a rule of plans/ says of a variant; nothing: it is kept.
mlir::LogicalResult verify_rule(Fault report, const std::string& fault) {
  if (fault.empty()) return mlir::success();
  return report() << "the variant " << fault;
}

}  // namespace
}  // namespace ds::plan

#define GET_ATTRDEF_CLASSES
#include "dialects/plan/PlanAttrs.cpp.inc"

namespace ds::plan {

using llvm::APFloat;

void PlanDialect::register_attributes() {
  addAttributes<
#define GET_ATTRDEF_LIST
#include "dialects/plan/PlanAttrs.cpp.inc"
      >();
}

PromiseAttr PromiseAttr::of(mlir::MLIRContext* context, const Promise& p) {
  return get(context, APFloat(p.quality_loss), p.ttft_ns, APFloat(p.loss_stderr), APFloat(p.loss_bound),
             APFloat(p.confidence), APFloat(p.divergence), APFloat(p.divergence_stderr),
             APFloat(p.divergence_bound));
}

Shape ShapeAttr::describe() {
  return {getFamily().str(), getLayers(),  getDModel(),  getFf(),
          getHeads(),        getKvHeads(), getHeadDim(), getVocab()};
}

Promise PromiseAttr::describe() {
  Promise p{getLoss().convertToDouble(), getTtftNs()};
  p.loss_stderr = getLossStderr().convertToDouble();
  p.loss_bound = getLossBound().convertToDouble();
  p.confidence = getConfidence().convertToDouble();
  p.divergence = getDivergence().convertToDouble();
  p.divergence_stderr = getDivergenceStderr().convertToDouble();
  p.divergence_bound = getDivergenceBound().convertToDouble();
  return p;
}

mlir::LogicalResult PromiseAttr::verify(Fault report, APFloat loss, int64_t ttft_ns, APFloat loss_stderr,
                                        APFloat loss_bound, APFloat confidence, APFloat divergence,
                                        APFloat divergence_stderr, APFloat divergence_bound) {
  Promise p{loss.convertToDouble(), ttft_ns};
  p.loss_stderr = loss_stderr.convertToDouble();
  p.loss_bound = loss_bound.convertToDouble();
  p.confidence = confidence.convertToDouble();
  p.divergence = divergence.convertToDouble();
  p.divergence_stderr = divergence_stderr.convertToDouble();
  p.divergence_bound = divergence_bound.convertToDouble();
  return verify_rule(report, fault_of(p));
}

AlternativeAttr AlternativeAttr::of(mlir::MLIRContext* context, const Alternative& a) {
  return get(context, a.what, APFloat(a.quality_loss), a.ttft_ns, a.compute_ns, APFloat(a.divergence));
}

Alternative AlternativeAttr::describe() {
  return {getWhat().str(), getLoss().convertToDouble(), getTtftNs(), getComputeNs(),
          getDivergence().convertToDouble()};
}

mlir::LogicalResult AlternativeAttr::verify(Fault report, llvm::StringRef what, APFloat loss, int64_t ttft_ns,
                                            int64_t compute_ns, APFloat divergence) {
  const std::string fault =
      fault_of({what.str(), loss.convertToDouble(), ttft_ns, compute_ns, divergence.convertToDouble()});
  return verify_rule(report, fault.empty() ? "" : "has an alternative with " + fault);
}

ChoiceAttr ChoiceAttr::of(mlir::MLIRContext* context, const Variant& v) {
  if (v.way.empty() && v.why.empty() && v.regret < 0 && v.alternatives.empty()) return {};
  llvm::SmallVector<AlternativeAttr> alternatives;
  for (const Alternative& a : v.alternatives) alternatives.push_back(AlternativeAttr::of(context, a));
  return get(context, v.way, v.why, APFloat(v.regret), alternatives);
}

void ChoiceAttr::read_into(Variant& v) {
  v.way = getWay().str();
  v.why = getWhy().str();
  v.regret = getRegret().convertToDouble();
  for (AlternativeAttr a : getAlternatives()) v.alternatives.push_back(a.describe());
}

mlir::LogicalResult ChoiceAttr::verify(Fault report, llvm::StringRef, llvm::StringRef, APFloat regret,
                                       llvm::ArrayRef<AlternativeAttr>) {
  return verify_rule(report, fault_of_regret(regret.convertToDouble()));
}

AlignmentAttr AlignmentAttr::of(mlir::MLIRContext* context, const Variant& v) {
  if (v.map_form == MapForm::kNone) return {};
  return get(context, v.map_form, v.map_side);
}

mlir::LogicalResult AlignmentAttr::verify(Fault report, MapForm form, MapSide) {
  if (form != MapForm::kNone) return mlir::success();
  return report() << "is aligned by maps of form 'none'; what goes through no map is not aligned";
}

}  // namespace ds::plan
