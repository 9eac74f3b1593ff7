// Registration, names and verifiers of `plan`'s files, variants and operations.
#include "dialects/plan/PlanDialect.h"

#include "dialects/Assembly.h"
#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/DialectImplementation.h"
#include "plans/traits.h"

#include "dialects/plan/PlanDialect.cpp.inc"
#include "dialects/plan/PlanEnums.cpp.inc"
#include "dialects/plan/PlanInterfaces.cpp.inc"

#define GET_TYPEDEF_CLASSES
#include "dialects/plan/PlanTypes.cpp.inc"

namespace ds::plan {
namespace {

Role role_of(const ds::Op& op) {
  if (!is_transfer(op)) return Role::compute;
  return traits_of(op).buffer == BufferKind::kHidden ? Role::load_e : Role::load_kv;
}

}  // namespace
}  // namespace ds::plan

#define GET_OP_CLASSES
#include "dialects/plan/PlanOps.cpp.inc"

namespace ds::plan {

void PlanDialect::initialize() {
  register_attributes();
  addTypes<
#define GET_TYPEDEF_LIST
#include "dialects/plan/PlanTypes.cpp.inc"
      >();
  addOperations<
#define GET_OP_LIST
#include "dialects/plan/PlanOps.cpp.inc"
      >();
}

namespace {

using SetName = mlir::OpAsmSetValueNameFn;

std::string with_chunk(std::string name, uint32_t chunk, std::optional<uint32_t> last) {
  if (last) return fmt::format("{}_c{}_{}", name, chunk, *last);
  return chunk == 0 ? name : fmt::format("{}_c{}", name, chunk);
}

int32_t i32(uint32_t n) { return static_cast<int32_t>(n); }
int32_t i32_or_none(std::optional<uint32_t> n) { return n ? static_cast<int32_t>(*n) : -1; }

mlir::LogicalResult verify_chunks(mlir::Operation* op, uint32_t first, std::optional<uint32_t> last) {
  if (!last || *last > first) return mlir::success();
  return op->emitOpError() << "is for chunks " << first << " to " << *last
                           << ", expected a last chunk behind the first (one chunk is written alone)";
}

/// `at` and a stream of the wrong kind are what people get wrong most when they write plans by hand.
mlir::LogicalResult verify_streamed(OperationInterface op, bool transfer) {
  if (auto stream = op.getStream().getDefiningOp<StreamOp>()) {
    const StreamKind expected = transfer ? StreamKind::kLink : StreamKind::kCompute;
    if (stream.getKind() != expected) {
      return op.emitOpError() << "'" << op.label() << "' stands on a " << stream_kind_name(stream.getKind())
                              << " stream, expected "
                              << "a " << stream_kind_name(expected) << " stream";
    }
  }
  if (op.getDuration() && static_cast<int64_t>(*op.getDuration()) < 0) {
    return op.emitOpError() << "takes " << static_cast<int64_t>(*op.getDuration())
                            << " ns, expected nothing below zero";
  }
  if (op.getAt() && static_cast<int64_t>(*op.getAt()) < 0)
    return op.emitOpError() << "starts at " << static_cast<int64_t>(*op.getAt())
                            << ", before the request does";
  if (op.getAt() && !op.getDuration())
    return op.emitOpError() << "has a start but no duration; a schedule needs both ('at' and 'for')";
  return mlir::success();
}

mlir::LogicalResult verify_buffer(OperationInterface op, mlir::Value value, BufferKind kind) {
  auto buffer = value.getDefiningOp<BufferOp>();
  if (!buffer || buffer.getKind() == kind) return mlir::success();
  return op.emitOpError() << "'" << op.label() << "' works on a " << buffer_kind_name(buffer.getKind())
                          << " buffer, expected a " << buffer_kind_name(kind) << " buffer";
}

mlir::LogicalResult verify_kernel(OperationInterface op, mlir::Value buffer) {
  if (mlir::failed(verify_streamed(op, false))) return mlir::failure();
  return verify_buffer(op, buffer, BufferKind::kHidden);
}

}  // namespace

mlir::LogicalResult verify_purpose(mlir::Operation* operation) {
  auto op = mlir::cast<PurposeInterface>(operation);
  struct Bound {
    const char* what;
    RangeAttr range;
    int64_t least;
  };
  for (auto [what, range, least] : {Bound{"tokens", op.getTokens(), 1}, Bound{"rate", op.getRate(), 0},
                                    Bound{"load", op.getLoadAttr(), 0}}) {
    if (!range || (range.getLow() >= least && range.getLow() < range.getHigh())) continue;
    return op->emitOpError() << what << " range [" << range.getLow() << ", " << range.getHigh()
                             << ") is empty or starts below " << least;
  }
  return mlir::success();
}

mlir::LogicalResult FileOp::verify() {
  ShapeAttr s = getShape();
  if (s.getLayers() < 1 || s.getDModel() < 1 || s.getHeads() < 1 || s.getKvHeads() < 1 ||
      s.getHeadDim() < 1 || s.getFf() < 1 || s.getVocab() < 1) {
    return emitOpError() << "shape has a size below 1: " << s;
  }
  if (getDtype() != "bf16" && getDtype() != "f32")
    return emitOpError() << "dtype is '" << getDtype() << "', expected 'bf16' or 'f32'";
  return mlir::success();
}

mlir::LogicalResult VariantOp::verifyRegions() {
  if (static_cast<int32_t>(getChunks()) < 1)
    return emitOpError() << "has " << static_cast<int32_t>(getChunks()) << " chunks, expected at least 1";
  AlignmentAttr maps = getAlignmentAttr();
  const bool aligns = maps && maps.getSide() == MapSide::kReceiver;
  OperationInterface timed, untimed;
  for (mlir::Operation& op : getBody().front()) {
    if (mlir::isa<AlignOp>(op) && !aligns) {
      return op.emitOpError() << "maps hidden states, but the variant is "
                              << (maps ? "aligned by the sender" : "not aligned")
                              << "; expected it only where the variant is 'aligned ... by receiver'";
    }
    auto described = mlir::dyn_cast<VariantOperationInterface>(op);
    if (const int32_t end = described ? described.describe().chunk_end() : 0; end > i32(getChunks())) {
      return op.emitOpError() << "is for chunk " << end - 1 << ", but the variant has " << getChunks()
                              << " chunks (0 to " << getChunks() - 1 << ")";
    }
    auto streamed = mlir::dyn_cast<OperationInterface>(op);
    if (!streamed) {
      if (mlir::isa<StreamOp, BufferOp, TileOp>(op)) continue;
      return op.emitOpError() << "is neither a stream, a buffer, a tile nor an operation of a variant";
    }
    (streamed.getAt() ? timed : untimed) = streamed;
    if (timed && untimed) {
      mlir::InFlightDiagnostic d = untimed.emitOpError();
      d << "'" << untimed.label() << "' has no start, but other operations of the variant have";
      d.attachNote(timed.getLoc()) << "'" << timed.label() << "' starts at " << *timed.getAt();
      return d;
    }
  }
  return mlir::success();
}

void StreamOp::getAsmResultNames(SetName set) { set(getResult(), stream_kind_name(getKind())); }

mlir::LogicalResult StreamOp::verify() {
  // A scheduling problem may have any streams.
  if (llvm::is_contained(kPlanStreams, getKind()) ||
      !mlir::isa_and_nonnull<VariantOp>((*this)->getParentOp()))
    return mlir::success();
  return emitOpError()
         << "is a " << stream_kind_name(getKind())
         << " stream, expected a link or compute stream: what is copied to a device goes behind "
            "the link";
}

void BufferOp::getAsmResultNames(SetName set) {
  if (getKind() == BufferKind::kKv) return set(getResult(), fmt::format("kv{}", getLayer()));
  set(getResult(), getWithContext() ? fmt::format("h{}", getLayer()) : std::string("hs"));
}

mlir::LogicalResult BufferOp::verify() {
  if (!getWithContext() && !getWithSuffix())
    return emitOpError() << "has neither context nor suffix rows, expected at least one of them";
  return mlir::success();
}

Tile TileOp::describe(int32_t) {
  return {getMode(), i32(getFirstLayer()), i32(getLastLayer()), i32(getFirstChunk()), i32(getLastChunk()),
          getCut()};
}

mlir::LogicalResult TileOp::verify() {
  if (getFirstLayer() > getLastLayer() || getFirstChunk() > getLastChunk()) {
    return emitOpError() << "covers layers " << getFirstLayer() << " to " << getLastLayer() << " and chunks "
                         << getFirstChunk() << " to " << getLastChunk()
                         << ", expected first <= last (both ends belong to it)";
  }
  if (getCut() && getMode() != Mode::kRecompute)
    return emitOpError() << "is " << traits_of(getMode()).done
                         << " but has a cut; only recomputed tiles start from hidden states";
  return mlir::success();
}

//===-- Operations ------------------------------------------------------------------------------------===//

std::string TransferOp::label() {
  return with_chunk(fmt::format("{}({})", payload_name(getPayload()), getLayer()), getChunk(),
                    getLastChunk());
}
ds::Op TransferOp::describe() {
  return {.kind = OpKind::kTransfer,
          .payload = getPayload(),
          .layer = i32(getLayer()),
          .chunk = i32(getChunk()),
          .last_chunk = i32_or_none(getLastChunk()),
          .source = i32(getSource().value_or(0))};
}
void TransferOp::getAsmResultNames(SetName set) {
  const char* name = role() == Role::load_e ? "e" : "t";
  set(getEvent(), with_chunk(fmt::format("{}{}", name, getLayer()), getChunk(), getLastChunk()));
}
mlir::LogicalResult TransferOp::verify() {
  if (mlir::failed(verify_streamed(*this, true)) ||
      mlir::failed(verify_chunks(*this, getChunk(), getLastChunk()))) {
    return mlir::failure();
  }
  const BufferKind kind = traits_of(describe()).buffer;
  const bool hidden = kind == BufferKind::kHidden;
  if (mlir::failed(verify_buffer(*this, getBuffer(), kind))) return mlir::failure();
  auto buffer = getBuffer().getDefiningOp<BufferOp>();
  // A hidden buffer is named after the layer that has it first; higher ones may have it after that.
  if (buffer && (hidden ? buffer.getLayer() > getLayer() : buffer.getLayer() != getLayer())) {
    return emitOpError() << "'" << label() << "' goes into a buffer of layer " << buffer.getLayer()
                         << ", expected one of layer " << getLayer() << (hidden ? " or below" : "");
  }
  if (getPayload() == Payload::kE && getLayer() == 0)
    return emitOpError() << "E of layer 0 is the receiver's own embedding and is never sent";
  return mlir::success();
}

std::string EmbedOp::label() { return fmt::format("embed {}", rows_name(getRows())); }
ds::Op EmbedOp::describe() {
  return {.kind = OpKind::kEmbed,
          .chunk = i32_or_none(getChunk()),
          .rows = getRows(),
          .last_chunk = i32_or_none(getLastChunk())};
}
void EmbedOp::getAsmResultNames(SetName set) { set(getEvent(), "embed"); }
mlir::LogicalResult EmbedOp::verify() {
  if ((traits_of(describe()).rows & bit(getRows())) == 0) {
    return emitOpError() << "embeds rows '" << rows_name(getRows())
                         << "', expected tokens of a chunk, the suffix or all";
  }
  if ((getRows() == Rows::kChunk) != getChunk().has_value())
    return emitOpError() << "names a chunk exactly where its rows are 'chunk'; rows are '"
                         << rows_name(getRows()) << "'";
  if (getLastChunk() && !getChunk()) return emitOpError() << "names a last chunk but no first one";
  if (getChunk() && mlir::failed(verify_chunks(*this, *getChunk(), getLastChunk()))) return mlir::failure();
  return verify_kernel(*this, getBuffer());
}

std::string RecomputeOp::label() {
  return with_chunk(fmt::format("recompute {}", getLayer()), getChunk().value_or(0), getLastChunk());
}
ds::Op RecomputeOp::describe() {
  return {.kind = OpKind::kRecompute,
          .layer = i32(getLayer()),
          .chunk = i32_or_none(getChunk()),
          .rows = getChunk() ? Rows::kChunk : Rows::kSelected,
          .queries = getQueries(),
          .last_chunk = i32_or_none(getLastChunk())};
}
void RecomputeOp::getAsmResultNames(SetName set) {
  set(getEvent(), with_chunk(fmt::format("r{}", getLayer()), getChunk().value_or(0), getLastChunk()));
}
mlir::LogicalResult RecomputeOp::verify() {
  if (getChunk() && mlir::failed(verify_chunks(*this, *getChunk(), getLastChunk()))) return mlir::failure();
  if (getLastChunk() && !getChunk()) return emitOpError() << "names a last chunk but no first one";
  if (getQueries() != Queries::kNone && getQueries() != Queries::kAll) {
    return emitOpError() << "has queries '" << queries_name(getQueries())
                         << "', expected 'all', or 'none' where nobody reads its output";
  }
  return verify_kernel(*this, getBuffer());
}

std::string SelectOp::label() { return fmt::format("select {}", getLayer()); }
ds::Op SelectOp::describe() { return {.kind = OpKind::kSelect, .layer = i32(getLayer()), .chunk = 0}; }
void SelectOp::getAsmResultNames(SetName set) { set(getEvent(), "select"); }
mlir::LogicalResult SelectOp::verify() { return verify_kernel(*this, getBuffer()); }

std::string AlignOp::label() {
  return with_chunk(fmt::format("align {}", getLayer()), getChunk(), getLastChunk());
}
ds::Op AlignOp::describe() {
  return {.kind = OpKind::kAlign,
          .layer = i32(getLayer()),
          .chunk = i32(getChunk()),
          .last_chunk = i32_or_none(getLastChunk())};
}
void AlignOp::getAsmResultNames(SetName set) {
  set(getEvent(), with_chunk(fmt::format("a{}", getLayer()), getChunk(), getLastChunk()));
}
mlir::LogicalResult AlignOp::verify() {
  if (mlir::failed(verify_chunks(*this, getChunk(), getLastChunk())) ||
      mlir::failed(verify_kernel(*this, getBuffer()))) {
    return mlir::failure();
  }
  auto buffer = getBuffer().getDefiningOp<BufferOp>();
  if (buffer && buffer.getLayer() > getLayer()) {
    return emitOpError() << "'" << label() << "' works in a buffer of layer " << buffer.getLayer()
                         << ", expected one of layer " << getLayer() << " or below, where E of it is sent";
  }
  if (getLayer() == 0)
    return emitOpError() << "E of layer 0 is the receiver's own embedding and needs no map";
  return mlir::success();
}

std::string SuffixOp::label() { return fmt::format("suffix {}", getLayer()); }
ds::Op SuffixOp::describe() {
  return {.kind = OpKind::kSuffix, .layer = i32(getLayer()), .rows = Rows::kSuffix, .queries = getQueries()};
}
void SuffixOp::getAsmResultNames(SetName set) { set(getEvent(), fmt::format("s{}", getLayer())); }
mlir::LogicalResult SuffixOp::verify() { return verify_kernel(*this, getBuffer()); }

std::string PrefillOp::label() { return fmt::format("prefill {}", getLayer()); }
ds::Op PrefillOp::describe() {
  return {.kind = OpKind::kPrefill, .layer = i32(getLayer()), .rows = Rows::kAll, .queries = getQueries()};
}
void PrefillOp::getAsmResultNames(SetName set) { set(getEvent(), fmt::format("p{}", getLayer())); }
mlir::LogicalResult PrefillOp::verify() { return verify_kernel(*this, getBuffer()); }

std::string HeadOp::label() { return "head"; }
ds::Op HeadOp::describe() { return {.kind = OpKind::kHead, .rows = Rows::kSuffix}; }
void HeadOp::getAsmResultNames(SetName set) { set(getEvent(), "head"); }
mlir::LogicalResult HeadOp::verify() { return verify_kernel(*this, getBuffer()); }

}  // namespace ds::plan
