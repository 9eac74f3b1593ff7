// Registration, names and verifiers of `reuse`.
#include "dialects/reuse/ReuseDialect.h"

#include "dialects/Assembly.h"
#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/DialectImplementation.h"
#include "plans/limits.h"
#include "plans/traits.h"

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

int64_t chunks_of(mlir::Operation* tile) {
  auto plan = mlir::dyn_cast_or_null<PlanOp>(tile->getParentOp());
  return plan && plan.getChunks() ? static_cast<int32_t>(*plan.getChunks()) : 1;
}

Tile extent(plan::TileInterface tile) { return tile.describe(static_cast<int32_t>(chunks_of(tile))); }

/// Nothing: plain hidden states.
std::string maps_text(plan::AlignmentAttr m) {
  if (!m) return "not aligned";
  return fmt::format("aligned {} by {}", map_form_name(m.getForm()), map_side_name(m.getSide()));
}

/// All that the sender sends goes through maps of one form on one side, or none of it does.
mlir::LogicalResult verify_maps(PlanOp plan) {
  mlir::Operation* first = nullptr;
  plan::AlignmentAttr all;
  for (mlir::Operation& op : plan.getBody().front()) {
    plan::AlignmentAttr found;
    if (auto cut = mlir::dyn_cast<CutOp>(op)) {
      if (cut.getHidden().use_empty()) continue;
      auto align = mlir::dyn_cast<AlignOp>(*cut.getHidden().user_begin());
      if (align) found = align.getAlignment();
    } else if (auto restore = mlir::dyn_cast<RestoreOp>(op)) {
      if (restore.getLastLayer() == 0) continue;  // nothing is sent
      found = restore.getAlignmentAttr();
    } else {
      continue;
    }
    if (first && found != all) {
      mlir::InFlightDiagnostic d = op.emitOpError();
      d << "is " << maps_text(found)
        << "; expected all hidden states that one plan is sent to go through maps of one form, applied by "
           "one "
           "side";
      d.attachNote(first->getLoc()) << "this one is " << maps_text(all);
      return d;
    }
    first = &op;
    all = found;
  }
  return mlir::success();
}

}  // namespace

mlir::LogicalResult PlanOp::verifyRegions() {
  auto layers = static_cast<int32_t>(getLayers());
  if (layers < 1) return emitOpError() << "has " << layers << " layers, expected at least 1";

  int64_t chunks = getChunks() ? static_cast<int32_t>(*getChunks()) : 1;
  if (chunks < 1 || chunks > kMaxCells / layers) {
    return emitOpError() << "has " << chunks << " chunks of " << layers
                         << " layers, expected at least 1 and at most " << kMaxCells << " cells";
  }

  // Every cell lies in exactly one tile; tiles stand in the order of their first layers.
  std::vector<mlir::Operation*> owner(static_cast<size_t>(layers * chunks), nullptr);
  auto cell = [&](int64_t layer, int64_t chunk) -> mlir::Operation*& {
    return owner[static_cast<size_t>(layer * chunks + chunk)];
  };
  mlir::Operation* before = nullptr;
  int64_t at = 0;
  llvm::SmallVector<mlir::Value> caches;
  for (mlir::Operation& op : getBody().front()) {
    auto described = mlir::dyn_cast<plan::TileInterface>(op);
    if (!described) continue;
    const Tile rectangle = extent(described), *tile = &rectangle;
    if (tile->first_layer > tile->last_layer) {
      return op.emitOpError() << "covers layers " << tile->first_layer << " to " << tile->last_layer
                              << ", expected first <= last (both ends belong to it)";
    }
    if (tile->first_layer < 0 || tile->last_layer >= layers) {
      return op.emitOpError() << "covers layers up to " << tile->last_layer
                              << ", but the models have layers 0 to " << layers - 1;
    }
    if (tile->first_chunk < 0 || tile->first_chunk > tile->last_chunk || tile->last_chunk >= chunks) {
      return op.emitOpError() << "covers chunks " << tile->first_chunk << " to " << tile->last_chunk
                              << ", expected first <= last within 0 to " << chunks - 1;
    }
    if (before && tile->first_layer < at) {
      mlir::InFlightDiagnostic d = op.emitOpError();
      d << "starts at layer " << tile->first_layer << ", behind a tile that starts at layer " << at
        << "; expected tiles in the order of their first layers";
      d.attachNote(before->getLoc()) << "the other tile is here";
      return d;
    }
    before = &op;
    at = tile->first_layer;
    for (int64_t l = tile->first_layer; l <= tile->last_layer; ++l) {
      for (int64_t c = tile->first_chunk; c <= tile->last_chunk; ++c) {
        if (cell(l, c)) {
          mlir::InFlightDiagnostic d = op.emitOpError();
          d << "covers layer " << l << " of chunk " << c << " again; expected every cell in exactly one tile";
          d.attachNote(cell(l, c)->getLoc()) << "the other tile is here";
          return d;
        }
        cell(l, c) = &op;
      }
    }
    caches.push_back(op.getResult(0));
  }
  for (int64_t l = 0; l < layers; ++l) {
    for (int64_t c = 0; c < chunks; ++c) {
      if (!cell(l, c))
        return emitOpError() << "leaves out layer " << l << " of chunk " << c << "; every cell needs a tile";
    }
  }
  if (mlir::failed(verify_maps(*this))) return mlir::failure();
  auto answer = mlir::dyn_cast<AnswerOp>(getBody().front().back());
  if (!answer) return emitOpError() << "does not end with 'reuse.answer'";
  if (!llvm::equal(answer.getCaches(), caches)) {
    return answer.emitOpError() << "takes " << answer.getCaches().size()
                                << " caches, expected the caches of all " << caches.size()
                                << " tiles in the order in which they stand";
  }
  auto is = [](plan::RangeAttr range, int64_t low) {
    return range.getLow() == low && range.getHigh() == kNoLimit;
  };
  if (getFallback() && (!is(getTokens(), 1) || !is(getRate(), 0) || getLoad())) {
    return emitOpError() << "is the fall-back, which holds for tokens [1, inf) and rate [0, inf)";
  }
  return mlir::success();
}

Tile describe_tile(mlir::Operation* op, Mode mode, int32_t chunks) {
  auto number = [&](llvm::StringRef name, int64_t otherwise) {
    auto attr = op->getAttrOfType<mlir::IntegerAttr>(name);
    return static_cast<int32_t>(attr ? attr.getInt() : otherwise);
  };
  Tile tile{mode, number("first_layer", 0), number("last_layer", 0), number("first_chunk", 0),
            number("last_chunk", chunks - 1)};
  tile.cut = traits_of(mode).stands && llvm::any_of(op->getOperands(), [](mlir::Value v) {
               return mlir::isa_and_nonnull<CutOp, AlignOp>(v.getDefiningOp());
             });
  return tile;
}

void name_tile(mlir::Operation* op, SetName set) {
  const Tile tile = mlir::cast<plan::TileInterface>(op).describe(1);
  set(op->getResult(0), fmt::format("kv{}", tile.first_layer));
  if (op->getNumResults() > 1) set(op->getResult(1), fmt::format("out{}", tile.last_layer));
}

void CutOp::getAsmResultNames(SetName set) { set(getHidden(), fmt::format("cut{}", getLayer())); }

mlir::LogicalResult CutOp::verify() {
  if (static_cast<int32_t>(getLayer()) <= 0) {
    return emitOpError()
           << "at layer " << static_cast<int32_t>(getLayer())
           << ": the hidden states entering layer 0 are the receiver's own embeddings and are never "
              "sent; recompute from layer 0 without 'from'";
  }
  return mlir::success();
}

void AlignOp::getAsmResultNames(SetName set) {
  auto cut = getCut().getDefiningOp<CutOp>();
  set(getHidden(), cut ? fmt::format("map{}", cut.getLayer()) : std::string("map"));
}

mlir::LogicalResult AlignOp::verify() {
  if (!getCut().getDefiningOp<CutOp>()) {
    mlir::InFlightDiagnostic d = emitOpError();
    d << "maps hidden states that are not a cut; expected the sender's, which is what maps are fitted for";
    if (mlir::Operation* from = getCut().getDefiningOp())
      d.attachNote(from->getLoc()) << "they come from here";
    return d;
  }
  return mlir::success();
}

mlir::LogicalResult RestoreOp::verify() {
  if (getAlignment() && static_cast<int32_t>(getLastLayer()) == 0)
    return emitOpError()
           << "is aligned, but nothing is sent for layer 0; expected layers above it, or no maps";
  return mlir::success();
}

mlir::LogicalResult SelectOp::verify() {
  auto first = static_cast<int32_t>(getFirstLayer()), last = static_cast<int32_t>(getLastLayer());
  auto plan = mlir::cast<PlanOp>((*this)->getParentOp());
  if (chunks_of(*this) != 1) {
    return emitOpError() << "stands in a plan of " << chunks_of(*this)
                         << " chunks, expected one: tokens are chosen among all of the context";
  }
  if (first != 1 || last != static_cast<int32_t>(plan.getLayers()) - 1) {
    return emitOpError() << "covers layers " << first << " to " << last << ", expected 1 to "
                         << static_cast<int32_t>(plan.getLayers()) - 1
                         << ": what is chosen at layer 1 goes up to the last layer";
  }
  double share = getShare().convertToDouble();
  if (!(share > 0 && share <= 1)) {
    return emitOpError() << "recomputes a share of " << fmt::format("{}", share)
                         << " of the tokens, expected more than 0, at most 1";
  }
  auto below = getFrom().getDefiningOp<RecomputeOp>();
  if (!below || below.getFirstLayer() != 0 || below.getLastLayer() != 0) {
    return emitOpError()
           << "starts from other hidden states than those that leave a recomputed layer 0, expected "
              "'from' the output of 'recompute layers 0 to 0'";
  }
  return mlir::success();
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
  if (auto align = mlir::dyn_cast_or_null<AlignOp>(from)) from = align.getCut().getDefiningOp();
  if (auto cut = mlir::dyn_cast_or_null<CutOp>(from)) {
    if (static_cast<int32_t>(cut.getLayer()) == first) return mlir::success();
    mlir::InFlightDiagnostic d = emitOpError();
    d << "starts at layer " << first << " from the hidden states entering layer " << cut.getLayer();
    d.attachNote(cut.getLoc()) << "expected a cut at layer " << first;
    return d;
  }
  if (auto below = mlir::dyn_cast_or_null<RecomputeOp>(from)) {
    const Tile mine = extent(*this), theirs = extent(below);
    if (theirs.last_layer + 1 == first) {
      if (mine.first_chunk >= theirs.first_chunk && mine.last_chunk <= theirs.last_chunk)
        return mlir::success();
      mlir::InFlightDiagnostic d = emitOpError();
      d << "covers chunks " << mine.first_chunk << " to " << mine.last_chunk
        << " from the hidden states of chunks " << theirs.first_chunk << " to " << theirs.last_chunk;
      d.attachNote(below.getLoc()) << "expected a tile below that covers them all";
      return d;
    }
    mlir::InFlightDiagnostic d = emitOpError();
    d << "starts at layer " << first << " from the hidden states leaving layer " << below.getLastLayer();
    d.attachNote(below.getLoc()) << "expected a tile that ends at layer " << first - 1;
    return d;
  }
  return mlir::success();
}

}  // namespace ds::reuse
