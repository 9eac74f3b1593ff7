#include "runtime/engine/plan_run.h"

#include <algorithm>
#include <utility>

#include "plans/traits.h"

namespace ds {
namespace {

int32_t hidden_index(const Variant& variant, int32_t buffer) {
  return static_cast<int32_t>(std::count_if(variant.buffers.begin(), variant.buffers.begin() + buffer,
                                            [](const Buffer& b) { return b.kind == BufferKind::kHidden; }));
}

}  // namespace

SequenceRows Sequence::rows(int64_t layer, int64_t position, int64_t rows, int64_t query_rows) const {
  SequenceRows r{
      .cache = at(layer, prefix_rows), .position = position, .rows = rows, .query_rows = query_rows};
  if (prefix_rows > 0) {
    r.prefix = base->range().layer(layer);
    r.prefix_rows = prefix_rows;
  }
  return r;
}

std::byte* Sequence::at(int64_t layer, int64_t position) const {
  return own->layer(layer) + (position - own_first) * own->row_bytes().kv;
}

PlanRun::PlanRun(const Receiver& receiver, int64_t plan, const Variant& variant, RunShape shape,
                 std::span<const int32_t> tokens)
    : receiver_(receiver), plan_(plan), variant_(&variant), shape_(shape), tokens_(tokens) {
  const auto hidden = std::count_if(variant.buffers.begin(), variant.buffers.end(),
                                    [](const Buffer& b) { return b.kind == BufferKind::kHidden; });
  const auto context = static_cast<size_t>(blocks());
  levels_.assign(static_cast<size_t>(std::max<int64_t>(hidden, 1)), std::vector<int32_t>(context, -1));
  made_.assign(static_cast<size_t>(receiver.model().config().layers), std::vector<bool>(context, false));
  build();
}

/// The variant's ops for these lengths: transfers apart, and kernels that have rows.
void PlanRun::build() {
  std::vector<int32_t> transfer_of(variant_->ops.size(), -1);
  std::vector<int32_t> waits;  // of ops without rows, too: what follows them on the stream waits as well
  for (size_t i = 0; i < variant_->ops.size(); ++i) {
    const Op& op = variant_->ops[i];
    auto [first, rows, queries] = op_rows(op, variant_->chunks, shape_.n, shape_.m, variant_->select_share);
    if (is_transfer(op)) {
      if (rows == 0) continue;
      transfer_of[i] = static_cast<int32_t>(transfers_.size());
      const bool e = traits_of(op.kind).payload == Payload::kE;
      transfers_.push_back({.op = static_cast<int32_t>(i),
                            .kind = e ? TensorKind::kE : TensorKind::kKv,
                            .layer = op.layer,
                            .hidden = e ? hidden_index(*variant_, op.buffer) : 0,
                            .first = first,
                            .rows = rows});
      for (int32_t w : op.waits)
        if (transfer_of[static_cast<size_t>(w)] < 0)
          transfers_.back().after = std::max(transfers_.back().after, w);
      exact_ = false;
      continue;
    }
    for (int32_t w : op.waits)
      if (transfer_of[static_cast<size_t>(w)] >= 0) waits.push_back(transfer_of[static_cast<size_t>(w)]);
    const int64_t end = first + rows;
    first = std::max(first, shape_.first);  // a prefix has what is before
    rows = end - first;
    if (rows <= 0) continue;
    Call call{.kind = op.kind,
              .op = static_cast<int32_t>(i),
              .layer = op.layer,
              .hidden = hidden_index(*variant_, op.buffer),
              .first = first,
              .rows = rows,
              .queries = std::min(queries, rows),
              .selected = op.rows == Rows::kSelected};
    if (op.kind == OpKind::kSelect || call.selected) call.first = 0;
    call.transfers = std::exchange(waits, {});
    calls_.push_back(std::move(call));
  }
  set_needs();
}

template <typename F>
void PlanRun::for_blocks(int64_t first, int64_t end, F&& f) const {
  if (first >= shape_.n) return;  // behind the context
  for (int64_t b = first / kBlock; b < blocks() && b * kBlock < end; ++b)
    if (end >= std::min((b + 1) * kBlock, shape_.n)) f(static_cast<size_t>(b));
}

/// When each transfer's first reader could start, as the plan predicts for these lengths. The plan's order
/// stands: what comes after something urgent is not more urgent than it.
void PlanRun::set_needs() {
  const double scale = variant_->tuned_tokens > 0
                           ? static_cast<double>(shape_.n) / static_cast<double>(variant_->tuned_tokens)
                           : 1;
  for (Transfer& t : transfers_) t.needed_ns = kNoLimit;
  for (const Call& c : calls_)
    for (int32_t t : c.transfers) {
      int64_t& needed = transfers_[static_cast<size_t>(t)].needed_ns;
      const int64_t start = variant_->ops[static_cast<size_t>(c.op)].start_ns;
      needed = std::min(needed, static_cast<int64_t>(static_cast<double>(start) * scale));
    }
  for (size_t i = transfers_.size(); i-- > 1;)
    transfers_[i - 1].needed_ns = std::min(transfers_[i - 1].needed_ns, transfers_[i].needed_ns);
}

std::vector<TransferJob> PlanRun::take_transfers(const Sequence& sequence, const RunMemory& memory,
                                                 const std::shared_ptr<EntryReader>& entry, uint64_t owner,
                                                 int64_t start_ns) {
  const RowBytes& bytes = receiver_.row_bytes();
  // Kernels of ops before this one have run.
  const int32_t next =
      done_.call < calls_.size() ? calls_[done_.call].op : static_cast<int32_t>(variant_->ops.size());
  std::vector<TransferJob> jobs;
  for (; asked_ < transfers_.size() && !repaired_; ++asked_) {
    Transfer& t = transfers_[asked_];
    if (t.after >= next) break;  // the plan's order on its link
    t.asked = true;
    TransferJob job{.owner = owner,
                    .index = static_cast<int32_t>(asked_),
                    .entry = entry,
                    .kind = t.kind,
                    .layer = t.layer,
                    .first = t.first,
                    .rows = t.rows,
                    .map = {},
                    .needed_ns = start_ns + std::min(t.needed_ns, int64_t{1} << 60)};
    if (t.kind == TensorKind::kE) {
      job.map = receiver_.entry_map(static_cast<size_t>(plan_), variant_->sent_form());
      job.to = memory.hidden[static_cast<size_t>(t.hidden)] + (t.first - shape_.first) * bytes.hidden;
      job.bytes = t.rows * bytes.hidden;
      // What lay there is gone.
      for_blocks(t.first, t.first + t.rows,
                 [&](size_t b) { levels_[static_cast<size_t>(t.hidden)][b] = -1; });
    } else {
      job.to = sequence.at(t.layer, t.first);
      job.bytes = t.rows * bytes.kv;
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void PlanRun::arrived(int32_t transfer) {
  Transfer& t = transfers_[static_cast<size_t>(transfer)];
  t.there = true;
  for_blocks(t.first, t.first + t.rows, [&](size_t b) {
    if (t.kind == TensorKind::kKv) {
      // Where some tokens are repaired, a layer is right when that has been done.
      if (!selects()) made_[static_cast<size_t>(t.layer)][b] = true;
    } else if (!variant_->aligns()) {
      levels_[static_cast<size_t>(t.hidden)][b] = t.layer;
    }
  });
}

void PlanRun::lose_transfers() {
  bool any = false;
  for (Transfer& t : transfers_)
    if (!t.there && !t.lost) any = t.lost = true;
  if (any) repair();
}

bool PlanRun::awaits_transfers() const {
  return std::any_of(transfers_.begin(), transfers_.end(),
                     [](const Transfer& t) { return !t.there && !t.lost; });
}

void PlanRun::repair() {
  repaired_ = true;
  const auto layers = static_cast<int32_t>(made_.size());
  const auto count = static_cast<size_t>(blocks());
  int32_t last = -1;
  std::vector<int32_t> lowest(count, layers);  // by block: its first cell that is missing
  for (int32_t l = layers - 1; l >= 0; --l)
    for (size_t b = 0; b < count; ++b)
      if (!made_[static_cast<size_t>(l)][b]) {
        lowest[b] = l;
        last = std::max(last, l);
      }
  calls_.clear();
  issued_ = done_ = {};
  // Hidden states that every block can go on from; of several, the highest.
  int32_t source = -1, best = -1;
  for (size_t i = 0; i < levels_.size(); ++i) {
    int32_t low = layers;
    for (size_t b = 0; b < count; ++b) {
      const int32_t level = levels_[i][b];
      low = std::min(low, level < 0 || level > lowest[b] ? -1 : level);
    }
    if (low > best) {
      best = low;
      source = static_cast<int32_t>(i);
    }
  }
  if (source < 0) source = 0;
  std::vector<int32_t> level = levels_[static_cast<size_t>(source)];
  if (last >= 0 && best < 0) {
    calls_.push_back({.kind = OpKind::kEmbed, .hidden = source, .first = 0, .rows = shape_.n});
    level.assign(count, 0);
  }
  for (int32_t l = 0; l <= last; ++l) {
    for (size_t b = 0; b < count;) {
      size_t end = b;
      while (end < count && level[end] == l) ++end;
      if (end == b) {
        ++b;
        continue;
      }
      const int64_t first = static_cast<int64_t>(b) * kBlock;
      const int64_t rows = std::min(static_cast<int64_t>(end) * kBlock, shape_.n) - first;
      calls_.push_back({.kind = OpKind::kRecompute,
                        .layer = l,
                        .hidden = source,
                        .first = first,
                        .rows = rows,
                        .queries = l < last ? rows : 0});
      std::fill(level.begin() + static_cast<int64_t>(b), level.begin() + static_cast<int64_t>(end), l + 1);
      b = end;
    }
  }
  // The suffix begins anew: layers that it has seen may be others now.
  calls_.push_back({.kind = OpKind::kEmbed, .hidden = source, .first = shape_.n, .rows = shape_.m});
  for (int32_t l = 0; l < layers; ++l)
    calls_.push_back({.kind = OpKind::kSuffix,
                      .layer = l,
                      .hidden = source,
                      .first = shape_.n,
                      .rows = shape_.m,
                      .queries = l + 1 < layers ? shape_.m : 1});
  calls_.push_back({.kind = OpKind::kHead, .hidden = source, .first = shape_.n, .rows = shape_.m});
  if (best < 0 && last == layers - 1) exact_ = true;  // from the embeddings through every layer
}

bool PlanRun::divisible(const Call& call) {
  switch (call.kind) {
    case OpKind::kEmbed:
    case OpKind::kAlign:
    case OpKind::kSuffix:
    case OpKind::kPrefill:
    case OpKind::kRecompute:
      return !call.selected;
    default:
      return false;
  }
}

double PlanRun::flops(const Call& call, int64_t first, int64_t rows, int64_t queries) const {
  const ModelConfig& c = receiver_.model().config();
  const auto d = static_cast<double>(c.d_model), q = static_cast<double>(c.heads * c.head_dim);
  const double kv = 2 * d * static_cast<double>(c.kv_row());
  const double whole = 4 * d * q + 6 * d * static_cast<double>(c.ff);
  switch (call.kind) {
    case OpKind::kEmbed:
      return static_cast<double>(rows) * d;
    case OpKind::kAlign:
      return static_cast<double>(rows) * 2 * d * d;
    case OpKind::kSelect:
      return static_cast<double>(rows) * kv;
    case OpKind::kHead:
      return 2 * d * static_cast<double>(c.vocab);
    default:
      break;
  }
  // Each query reads the keys up to its own.
  const double keys = static_cast<double>(first) + static_cast<double>(rows) / 2;
  return static_cast<double>(rows) * kv + static_cast<double>(queries) * (whole + 4 * keys * q);
}

std::optional<PlanRun::Piece> PlanRun::next(double most_flops) const {
  if (issued_.call >= calls_.size()) return std::nullopt;
  const Call& call = calls_[issued_.call];
  for (int32_t t : call.transfers)
    if (!transfers_[static_cast<size_t>(t)].there) return std::nullopt;
  const int64_t first = call.first + issued_.rows, left = call.rows - issued_.rows;
  auto piece = [&](int64_t rows) {
    // The queries are the last rows of the call.
    const int64_t begin = call.first + call.rows - call.queries;
    const int64_t queries = std::clamp<int64_t>(first + rows - begin, 0, rows);
    return Piece{issued_.call, first, rows, queries, flops(call, first, rows, queries)};
  };
  Piece whole = piece(left);
  if (whole.flops <= most_flops || !divisible(call)) return whole;
  auto rows = static_cast<int64_t>(static_cast<double>(left) * most_flops / whole.flops);
  // To a multiple of a block of positions.
  int64_t end = (first + rows) / kBlock * kBlock;
  if (end <= first) end = (first / kBlock + 1) * kBlock;
  return piece(std::min(end - first, left));
}

void PlanRun::issue(const Piece& piece, CommandStream& stream, Workspace& workspace, const Sequence& sequence,
                    const RunMemory& memory, SequenceRows& storage, const HeadCall& head) {
  const Call& call = calls_[piece.call];
  DeviceModel& model = receiver_.model();
  auto hidden = [&](int64_t position) {
    return memory.hidden[static_cast<size_t>(call.hidden)] +
           (position - shape_.first) * receiver_.row_bytes().hidden;
  };
  auto* positions = reinterpret_cast<int32_t*>(memory.positions);
  switch (call.kind) {
    case OpKind::kEmbed:
      model.embed(stream, tokens_.data() + piece.first, piece.rows, hidden(piece.first));
      break;
    case OpKind::kSelect:
      model.select(stream, workspace,
                   {call.layer, hidden(0), sequence.at(call.layer, 0), call.rows,
                    selected_rows(variant_->select_share, shape_.n), positions});
      break;
    case OpKind::kAlign:
      model.align(stream, workspace,
                  receiver_.map(static_cast<size_t>(plan_), {call.layer, variant_->map_form}),
                  hidden(piece.first), piece.rows);
      break;
    case OpKind::kHead: {
      HeadCall last = head;
      last.hidden = hidden(call.first + call.rows - 1);
      model.head(stream, workspace, last);
      break;
    }
    default:
      if (call.selected) {
        model.layer_selected(
            stream, workspace,
            {call.layer, hidden(0), sequence.at(call.layer, 0), positions, call.rows, call.queries > 0});
      } else if (sequence.prefix_rows == 0) {
        model.layer(stream, workspace,
                    {call.layer, hidden(piece.first), sequence.at(call.layer, 0), piece.first, piece.rows,
                     piece.queries});
      } else {
        storage = sequence.rows(call.layer, piece.first, piece.rows, piece.queries);
        model.layer_batch(stream, workspace, call.layer, hidden(piece.first), {&storage, 1});
      }
  }
  issued_.rows += piece.rows;
  if (issued_.rows >= call.rows) issued_ = {issued_.call + 1, 0};
}

void PlanRun::complete(const Piece& piece) {
  const Call& call = calls_[piece.call];
  done_.rows += piece.rows;
  if (done_.rows >= call.rows) done_ = {done_.call + 1, 0};
  auto& level = levels_[static_cast<size_t>(call.hidden)];
  const int64_t end = piece.first + piece.rows;
  switch (call.kind) {
    case OpKind::kEmbed:
      for_blocks(piece.first, end, [&](size_t b) { level[b] = 0; });
      break;
    case OpKind::kAlign:
      for_blocks(piece.first, end, [&](size_t b) { level[b] = call.layer; });
      break;
    case OpKind::kSelect:  // moves rows
      std::fill(level.begin(), level.end(), -1);
      break;
    case OpKind::kHead:
      break;
    default:
      if (call.selected) {
        made_[static_cast<size_t>(call.layer)].assign(made_[0].size(), true);
        break;
      }
      for_blocks(piece.first, end, [&](size_t b) { made_[static_cast<size_t>(call.layer)][b] = true; });
      // Rows without a query stay what they were; the queries are the last ones.
      for_blocks(end - piece.queries, end, [&](size_t b) { level[b] = call.layer + 1; });
  }
}

std::string PlanRun::label(const Piece& piece) const {
  const Call& call = calls_[piece.call];
  if (call.op >= 0) return op_label(variant_->ops[static_cast<size_t>(call.op)], variant_->chunks);
  Op op{.kind = call.kind, .layer = call.layer, .rows = Rows::kAll};
  return op_label(op, 1);
}

std::string PlanRun::transfer_label(int32_t transfer) const {
  const int32_t op = transfers_[static_cast<size_t>(transfer)].op;
  return op_label(variant_->ops[static_cast<size_t>(op)], variant_->chunks);
}

}  // namespace ds
