// Registration, names and verifiers of `reuse`.
#include "dialects/reuse/ReuseDialect.h"

#include "dialects/Assembly.h"
#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/DialectImplementation.h"

#include "dialects/reuse/ReuseDialect.cpp.inc"

#define GET_TYPEDEF_CLASSES
#include "dialects/reuse/ReuseTypes.cpp.inc"

#define GET_OP_CLASSES
#include "dialects/reuse/ReuseOps.cpp.inc"

namespace ds::reuse {

void ReuseDialect::initialize() {
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialects/reuse/ReuseTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/reuse/ReuseOps.cpp.inc"
      >();
}

namespace {
using SetName = mlir::OpAsmSetValueNameFn;

/// Layers of a tile; nothing for other ops.
std::optional<std::pair<int64_t, int64_t>> layers_of(mlir::Operation& op) {
  if (auto load = mlir::dyn_cast<LoadOp>(op))
    return std::pair<int64_t, int64_t>(static_cast<int32_t>(load.getFirstLayer()),
                                       static_cast<int32_t>(load.getLastLayer()));
  if (auto recompute = mlir::dyn_cast<RecomputeOp>(op))
    return std::pair<int64_t, int64_t>(static_cast<int32_t>(recompute.getFirstLayer()),
                                       static_cast<int32_t>(recompute.getLastLayer()));
  return std::nullopt;
}

}  // namespace

mlir::LogicalResult PlanOp::verifyRegions() {
  auto range = [&](const char* what, uint64_t low_bits, uint64_t high_bits,
                   int64_t least) -> mlir::LogicalResult {
    auto low = static_cast<int64_t>(low_bits), high = static_cast<int64_t>(high_bits);
    if (low >= least && low < high) return mlir::success();
    return emitOpError() << what << " range [" << low << ", " << high << ") is empty or starts below "
                         << least;
  };
  if (mlir::failed(range("tokens", getTokensMin(), getTokensMax(), 1)) ||
      mlir::failed(range("rate", getRateMin(), getRateMax(), 0))) {
    return mlir::failure();
  }
  auto layers = static_cast<int32_t>(getLayers());
  if (layers < 1) return emitOpError() << "has " << layers << " layers, expected at least 1";

  // Tiles stand in the order of their layers and leave no layer out.
  int64_t next = 0;
  mlir::Operation* below = nullptr;
  llvm::SmallVector<mlir::Value> caches;
  for (mlir::Operation& op : getBody().front()) {
    auto tile = layers_of(op);
    if (!tile) continue;
    auto [first, last] = *tile;
    if (first > last) {
      return op.emitOpError() << "covers layers " << first << " to " << last
                              << ", expected first <= last (both ends belong to it)";
    }
    if (first != next) {
      mlir::InFlightDiagnostic d = op.emitOpError();
      d << "starts at layer " << first << ", expected layer " << next << ": "
        << (first < next ? "a layer is covered twice" : "a layer is left out");
      if (below) d.attachNote(below->getLoc()) << "the tile below ends at layer " << next - 1;
      return d;
    }
    if (last >= layers) {
      return op.emitOpError() << "covers layers up to " << last << ", but the models have layers 0 to "
                              << layers - 1;
    }
    next = last + 1;
    below = &op;
    caches.push_back(op.getResult(0));
  }
  if (next != layers) {
    mlir::InFlightDiagnostic d = emitOpError();
    d << "covers layers 0 to " << next - 1 << " of 0 to " << layers - 1 << "; every layer needs a tile";
    return d;
  }
  auto answer = mlir::dyn_cast<AnswerOp>(getBody().front().back());
  if (!answer) return emitOpError() << "does not end with 'reuse.answer'";
  if (!llvm::equal(answer.getCaches(), caches)) {
    return answer.emitOpError() << "takes " << answer.getCaches().size()
                                << " caches, expected the caches of all " << caches.size()
                                << " tiles in the order of their layers";
  }
  if (getFallback() && (getTokensMin() != 1 || getTokensMax() != INT64_MAX || getRateMin() != 0 ||
                        getRateMax() != INT64_MAX)) {
    return emitOpError() << "is the fall-back, which holds for tokens [1, inf) and rate [0, inf)";
  }
  return mlir::success();
}

void CutOp::getAsmResultNames(SetName set) { set(getHidden(), fmt::format("cut{}", getLayer())); }

mlir::LogicalResult CutOp::verify() {
  if (static_cast<int32_t>(getLayer()) <= 0) {
    return emitOpError()
           << "at layer " << static_cast<int32_t>(getLayer())
           << ": the hidden states entering layer 0 are the receiver's own embeddings and are never "
              "sent; recompute from layer 0 without 'from'";
  }
  if (!getHidden().hasOneUse()) {
    auto uses = std::distance(getHidden().use_begin(), getHidden().use_end());
    return emitOpError() << "at layer " << getLayer() << " is read by " << uses
                         << " tiles, expected exactly one; what nobody reads must not be sent";
  }
  return mlir::success();
}

void LoadOp::getAsmResultNames(SetName set) { set(getCache(), fmt::format("kv{}", getFirstLayer())); }

void RecomputeOp::getAsmResultNames(SetName set) {
  set(getCache(), fmt::format("kv{}", getFirstLayer()));
  set(getHidden(), fmt::format("out{}", getLastLayer()));
}

mlir::LogicalResult RecomputeOp::verify() {
  auto first = static_cast<int32_t>(getFirstLayer());
  if (!getFrom()) {
    if (first == 0) return mlir::success();
    return emitOpError() << "starts at layer " << first << " from nothing; expected 'from' a cut at layer "
                         << first << " or the output of a tile that ends at layer " << first - 1;
  }
  if (first == 0) return emitOpError() << "starts at layer 0, from the embeddings; expected no 'from'";
  mlir::Operation* from = getFrom().getDefiningOp();
  if (auto cut = mlir::dyn_cast_or_null<CutOp>(from)) {
    if (static_cast<int32_t>(cut.getLayer()) == first) return mlir::success();
    mlir::InFlightDiagnostic d = emitOpError();
    d << "starts at layer " << first << " from the hidden states entering layer " << cut.getLayer();
    d.attachNote(cut.getLoc()) << "expected a cut at layer " << first;
    return d;
  }
  if (auto below = mlir::dyn_cast_or_null<RecomputeOp>(from)) {
    if (static_cast<int32_t>(below.getLastLayer()) + 1 == first) return mlir::success();
    mlir::InFlightDiagnostic d = emitOpError();
    d << "starts at layer " << first << " from the hidden states leaving layer " << below.getLastLayer();
    d.attachNote(below.getLoc()) << "expected a tile that ends at layer " << first - 1;
    return d;
  }
  return mlir::success();
}

}  // namespace ds::reuse
