#include "compiler/emit/convert.h"

#include "llvm/ADT/STLExtras.h"
#include "plans/traits.h"

namespace ds {
namespace {

Status check_expressible(const Variant& v, size_t i) {
  const Op& op = v.ops[i];
  auto fault = [&](std::string_view what, auto found, std::string expected) {
    return error(Code::kUnsupported, "variant '{}': op {} ({}): {} is {}, expected {}", v.name, i,
                 op_name(op), what, found, expected);
  };
  const OpTraits& traits = traits_of(op);
  if ((traits.rows & bit(op.rows)) == 0)
    return fault("rows", static_cast<int>(op.rows), "those that such an op may have (plans/traits.h)");
  if (traits.queries == QueriesRule::kNone && op.queries != Queries::kNone)
    return fault("queries", static_cast<int>(op.queries), "none");
  if (traits.layered ? op.layer < 0 : op.layer != -1)
    return fault("layer", op.layer, traits.layered ? "a layer" : "-1");
  bool chunked = op.rows == Rows::kChunk;
  if (chunked ? op.chunk < 0 : op.chunk != -1) return fault("chunk", op.chunk, chunked ? "a chunk" : "-1");
  if (op.stream < 0 || static_cast<size_t>(op.stream) >= v.streams.size())
    return fault("stream", op.stream, fmt::format("one of {}", v.streams.size()));
  if (op.buffer < 0 || static_cast<size_t>(op.buffer) >= v.buffers.size())
    return fault("buffer", op.buffer, fmt::format("one of {}", v.buffers.size()));
  for (int32_t w : op.waits)
    if (w < 0 || static_cast<size_t>(w) >= i) return fault("waits", w, "an earlier op");
  return ok_status();
}

int32_t position_of(mlir::Value value) {
  int32_t n = 0;
  mlir::Operation* definer = value.getDefiningOp();
  for (mlir::Operation& op : *definer->getBlock()) {
    if (&op == definer) return n;
    if (op.getName() == definer->getName()) ++n;
  }
  return -1;
}

/// The operation of an op's kind. It is called as the kind is (a transfer's payload follows that name), and
/// has those attributes that the dialect gives it.
mlir::Value build_op(mlir::OpBuilder& b, mlir::Location loc, const Op& op,
                     llvm::ArrayRef<mlir::Value> streams, llvm::ArrayRef<mlir::Value> buffers,
                     llvm::ArrayRef<mlir::Value> events, bool scheduled) {
  auto* ctx = b.getContext();
  const std::string_view name = traits_of(op).name.substr(0, traits_of(op).name.find(' '));
  mlir::OperationState state(loc, fmt::format("{}.{}", plan::PlanDialect::getDialectNamespace().str(), name));
  state.addOperands({buffers[static_cast<size_t>(op.buffer)], streams[static_cast<size_t>(op.stream)]});
  for (int32_t w : op.waits) state.addOperands(events[static_cast<size_t>(w)]);
  state.addTypes(b.getType<plan::EventType>());
  const llvm::ArrayRef<mlir::StringAttr> known = state.name.getAttributeNames();
  auto add = [&](llvm::StringRef attribute, bool is_set, mlir::Attribute value) {
    if (is_set && llvm::is_contained(known, attribute)) state.addAttribute(attribute, value);
  };
  add("payload", true, plan::PayloadAttr::get(ctx, op.payload));
  add("rows", true, plan::RowsAttr::get(ctx, op.rows));
  add("layer", true, b.getI32IntegerAttr(op.layer));
  add("chunk", op.rows == Rows::kChunk, b.getI32IntegerAttr(op.chunk));
  add("last_chunk", op.last_chunk >= 0, b.getI32IntegerAttr(op.last_chunk));
  add("source", op.source != 0, b.getI32IntegerAttr(op.source));
  add("queries", true, plan::QueriesAttr::get(ctx, op.queries));
  add("at", scheduled, b.getI64IntegerAttr(op.start_ns));
  add("duration", scheduled, b.getI64IntegerAttr(op.duration_ns));
  return b.create(state)->getResult(0);
}

}  // namespace

void read_purpose(plan::PurposeInterface op, Variant& v) {
  v.name = mlir::SymbolTable::getSymbolName(op).str();
  v.live = op.getLive();
  v.policy = op.getPolicy().str();
  v.tokens_min = op.getTokens().getLow();
  v.tokens_max = op.getTokens().getHigh();
  v.rate_min = op.getRate().getLow();
  v.rate_max = op.getRate().getHigh();
  if (plan::RangeAttr load = op.getLoadAttr()) {
    v.load_min = load.getLow();
    v.load_max = load.getHigh();
  }
  v.tuned_tokens = op.getTuned().getTokens();
  v.tuned_suffix = op.getTuned().getSuffix();
  v.tuned_rate = op.getTuned().getRate();
  v.promise = op.getPromise().describe();
  if (plan::ChoiceAttr chosen = op.getChosenAttr()) chosen.read_into(v);
}

plan::FileOp build_file(mlir::OpBuilder& b, mlir::Location loc, const Plan& p) {
  auto* ctx = b.getContext();
  auto model = [&](const ModelIdentity& m) {
    return plan::ModelAttr::get(ctx, m.name, m.fingerprint, m.config, m.weights, m.tokenizer);
  };
  auto shape = [&](const Shape& s) {
    return plan::ShapeAttr::get(ctx, s.family, s.layers, s.d_model, s.ff, s.heads, s.kv_heads, s.head_dim,
                                s.vocab);
  };
  llvm::SmallVector<mlir::Attribute> inputs;
  for (const InputFile& f : p.provenance.inputs)
    inputs.push_back(plan::InputAttr::get(ctx, f.role, f.name, f.sha256));
  llvm::SmallVector<mlir::Attribute> sources;
  for (const Source& source : p.sources) {
    sources.push_back(plan::SourceAttr::get(ctx, source.rule, model(source.model), shape(source.shape)));
  }
  mlir::OperationState state(loc, plan::FileOp::getOperationName());
  auto& to = state.getOrAddProperties<plan::FileOp::Properties>();
  to.version = b.getI32IntegerAttr(p.format_version);
  to.dtype = b.getStringAttr(p.dtype);
  if (!p.backend.empty()) to.backend = b.getStringAttr(p.backend);
  to.sender = model(p.sender);
  to.receiver = model(p.receiver);
  to.shape = shape(p.shape);
  to.compiler = b.getStringAttr(p.provenance.compiler_version);
  to.flags = b.getStringAttr(p.provenance.flags);
  to.inputs = b.getArrayAttr(inputs);
  if (p.maps != MapsIdentity{}) to.maps = plan::MapsAttr::get(ctx, p.maps.name, p.maps.fingerprint);
  if (p.shared_vocab != 0) to.shared_vocab = b.getI64IntegerAttr(p.shared_vocab);
  if (!sources.empty()) to.sources = b.getArrayAttr(sources);
  state.addRegion();
  auto file = mlir::cast<plan::FileOp>(b.create(state));
  file.getBody().emplaceBlock();
  return file;
}

Result<plan::VariantOp> build_variant(mlir::OpBuilder& b, mlir::Location loc, const Variant& v, bool fallback,
                                      bool scheduled) {
  for (size_t i = 0; i < v.ops.size(); ++i) DS_TRY(check_expressible(v, i));
  mlir::OpBuilder::InsertionGuard guard(b);
  auto i64 = [&](int64_t n) { return b.getI64IntegerAttr(n); };
  auto unit = [&](bool set) { return set ? b.getUnitAttr() : mlir::UnitAttr(); };
  auto* ctx = b.getContext();
  mlir::OperationState state(loc, plan::VariantOp::getOperationName());
  auto& to = state.getOrAddProperties<plan::VariantOp::Properties>();
  write_purpose(b, v, fallback, to);
  to.scheduler = b.getStringAttr(v.scheduler);
  to.chunks = b.getI32IntegerAttr(v.chunks);
  if (scheduled) {
    to.makespan = i64(v.makespan_ns);
    to.lower_bound = i64(v.lower_bound_ns);
    to.proven_optimal = unit(v.proven_optimal);
  }
  if (v.select_share != 0) to.select_share = b.getF64FloatAttr(v.select_share);
  to.alignment = plan::AlignmentAttr::of(ctx, v);
  state.addRegion();
  auto variant = mlir::cast<plan::VariantOp>(b.create(state));
  b.setInsertionPointToStart(&variant.getBody().emplaceBlock());

  llvm::SmallVector<mlir::Value> streams, buffers, events;
  for (const Stream& s : v.streams)
    streams.push_back(b.create<plan::StreamOp>(loc, b.getType<plan::StreamType>(), s.kind));
  for (const Buffer& f : v.buffers) {
    buffers.push_back(
        b.create<plan::BufferOp>(loc, b.getType<plan::BufferType>(), plan::BufferKindAttr::get(ctx, f.kind),
                                 b.getI32IntegerAttr(f.layer), unit(f.with_context), unit(f.with_suffix)));
  }
  for (const Tile& t : v.tiles) {
    b.create<plan::TileOp>(loc, plan::ModeAttr::get(ctx, t.mode), b.getI32IntegerAttr(t.first_layer),
                           b.getI32IntegerAttr(t.last_layer), b.getI32IntegerAttr(t.first_chunk),
                           b.getI32IntegerAttr(t.last_chunk), unit(t.cut));
  }
  for (const Op& op : v.ops) events.push_back(build_op(b, loc, op, streams, buffers, events, scheduled));
  return variant;
}

Op export_op(plan::VariantOperationInterface described) {
  Op op = described.describe();
  auto interface = mlir::cast<plan::OperationInterface>(described.getOperation());
  op.stream = position_of(interface.getStream());
  op.buffer = position_of(described.getBuffer());
  op.start_ns = static_cast<int64_t>(interface.getAt().value_or(0));
  op.duration_ns = static_cast<int64_t>(interface.getDuration().value_or(0));
  return op;
}

Result<Variant> export_variant(plan::VariantOp variant) {
  Variant v;
  read_purpose(variant, v);
  v.scheduler = variant.getScheduler().str();
  v.chunks = static_cast<int32_t>(variant.getChunks());
  if (!variant.getMakespan() || !variant.getLowerBound())
    return error(Code::kUnsupported, "variant '{}' has not been scheduled (no makespan); run --plan-schedule",
                 v.name);
  v.makespan_ns = static_cast<int64_t>(*variant.getMakespan());
  v.lower_bound_ns = static_cast<int64_t>(*variant.getLowerBound());
  v.proven_optimal = variant.getProvenOptimal();
  if (variant.getSelectShare()) v.select_share = variant.getSelectShare()->convertToDouble();
  if (plan::AlignmentAttr maps = variant.getAlignmentAttr()) {
    v.map_form = maps.getForm();
    v.map_side = maps.getSide();
  }
  llvm::DenseMap<mlir::Value, int32_t> index;
  for (mlir::Operation& op : variant.getBody().front()) {
    if (auto stream = mlir::dyn_cast<plan::StreamOp>(op)) {
      v.streams.push_back({stream.getKind()});
    } else if (auto buffer = mlir::dyn_cast<plan::BufferOp>(op)) {
      v.buffers.push_back({buffer.getKind(), static_cast<int32_t>(buffer.getLayer()), buffer.getWithSuffix(),
                           buffer.getWithContext()});
    } else if (auto tile = mlir::dyn_cast<plan::TileOp>(op)) {
      v.tiles.push_back(tile.describe(v.chunks));
    } else if (auto described = mlir::dyn_cast<plan::VariantOperationInterface>(op)) {
      auto streamed = mlir::cast<plan::OperationInterface>(op);
      if (!streamed.getAt())
        return error(Code::kUnsupported, "variant '{}': '{}' has no start; run --plan-schedule", v.name,
                     streamed.label());
      Op exported = export_op(described);
      for (mlir::Value w : streamed.getAfter()) exported.waits.push_back(index.lookup(w));
      index[op.getResult(0)] = static_cast<int32_t>(v.ops.size());
      v.ops.push_back(std::move(exported));
    }
  }
  return v;
}

Result<Plan> export_file(plan::FileOp file) {
  Plan p;
  p.format_version = static_cast<int32_t>(file.getVersion());
  p.dtype = file.getDtype().str();
  p.backend = file.getBackend().value_or("").str();
  auto model = [](plan::ModelAttr m) {
    return ModelIdentity{m.getName().str(), m.getFingerprint().str(), m.getConfig().str(),
                         m.getWeights().str(), m.getTokenizer().str()};
  };
  p.sender = model(file.getSender());
  p.receiver = model(file.getReceiver());
  p.shape = file.getShape().describe();
  if (file.getSources())
    for (auto source : file.getSources()->getAsRange<plan::SourceAttr>())
      p.sources.push_back({source.getRule(), model(source.getModel()), source.getShape().describe()});
  p.shared_vocab = static_cast<int64_t>(file.getSharedVocab().value_or(0));
  p.provenance.compiler_version = file.getCompiler().str();
  p.provenance.flags = file.getFlags().str();
  for (auto input : file.getInputs().getAsRange<plan::InputAttr>())
    p.provenance.inputs.push_back({input.getRole().str(), input.getName().str(), input.getSha256().str()});
  if (plan::MapsAttr maps = file.getMapsAttr()) p.maps = {maps.getName().str(), maps.getFingerprint().str()};
  bool fallback = false;
  for (mlir::Operation& op : file.getBody().front()) {
    auto variant = mlir::dyn_cast<plan::VariantOp>(op);
    if (!variant) {
      return error(Code::kUnsupported, "'{}' in a plan file; expected variants only (has it been lowered?)",
                   op.getName().getStringRef().str());
    }
    DS_ASSIGN(Variant v, export_variant(variant));
    if (!variant.getFallback()) {
      p.variants.push_back(std::move(v));
    } else if (fallback) {
      return error(Code::kCorrupt, "variant '{}' is a second fall-back; expected one", v.name);
    } else {
      p.full_prefill = std::move(v);
      fallback = true;
    }
  }
  if (!fallback) return error(Code::kCorrupt, "no variant is marked 'fallback'; expected the full prefill");
  return p;
}

}  // namespace ds
