#include "runtime/engine/plan_run.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "plans/traits.h"

namespace ds {

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
  const auto hidden = hidden_index(variant, static_cast<int32_t>(variant.buffers.size()));
  const auto context = static_cast<size_t>(blocks());
  levels_.assign(static_cast<size_t>(hidden), std::vector<int32_t>(context, -1));
  made_.assign(static_cast<size_t>(receiver.model().config().layers), std::vector<bool>(context, false));
  build();
}

/// The variant's ops for these lengths: transfers apart, and kernels that have rows.
void PlanRun::build() {
  std::vector<int32_t> transfer_of(variant_->ops.size(), -1);
  std::vector<int32_t> waits;  // of ops without rows, too: what follows them on the stream waits as well
  for (size_t i = 0; i < variant_->ops.size(); ++i) {
    const Op& op = variant_->ops[i];
    OpRows at = op_rows(op, variant_->chunks, shape_.n, shape_.m, variant_->select_share);
    if (is_transfer(op)) {
      if (at.rows == 0) continue;
      transfer_of[i] = static_cast<int32_t>(transfers_.size());
      Transfer t{.op = static_cast<int32_t>(i), .first = at.first, .rows = at.rows};
      for (int32_t w : op.waits)
        if (transfer_of[static_cast<size_t>(w)] < 0) t.after = std::max(t.after, w);
      transfers_.push_back(t);
      exact_ = false;
      continue;
    }
    for (int32_t w : op.waits)
      if (transfer_of[static_cast<size_t>(w)] >= 0) waits.push_back(transfer_of[static_cast<size_t>(w)]);
    if (op.rows == Rows::kSelected) {
      at.first = 0;
    } else {  // a prefix has what is before
      const int64_t end = at.first + at.rows;
      at.first = std::max(at.first, shape_.first);
      at.rows = end - at.first;
      at.queries = std::min(at.queries, at.rows);
    }
    if (at.rows <= 0) continue;
    calls_.push_back({op, static_cast<int32_t>(i), at, std::exchange(waits, {})});
  }
  set_needs();
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
      needed = std::min(needed, static_cast<int64_t>(static_cast<double>(c.op.start_ns) * scale));
    }
  for (size_t i = transfers_.size(); i-- > 1;)
    transfers_[i - 1].needed_ns = std::min(transfers_[i - 1].needed_ns, transfers_[i].needed_ns);
}

template <typename F>
void PlanRun::for_blocks(int64_t first, int64_t end, F&& f) const {
  if (first >= shape_.n) return;  // behind the context
  for (int64_t b = first / kBlock; b < blocks() && b * kBlock < end; ++b)
    if (end >= std::min((b + 1) * kBlock, shape_.n)) f(static_cast<size_t>(b));
}

std::vector<int32_t>& PlanRun::levels_of(const Op& op) {
  return levels_[static_cast<size_t>(hidden_index(*variant_, op.buffer))];
}

std::vector<TransferJob> PlanRun::take_transfers(const RunMemory& memory,
                                                 const std::shared_ptr<Segments>& segments, uint64_t owner,
                                                 int64_t start_ns) {
  const RowBytes& bytes = receiver_.row_bytes();
  // Kernels of ops before this one have run.
  const int32_t next =
      done_.call < calls_.size() ? calls_[done_.call].index : static_cast<int32_t>(variant_->ops.size());
  std::vector<TransferJob> jobs;
  for (; asked_ < transfers_.size() && !repaired_; ++asked_) {
    const Transfer& t = transfers_[asked_];
    if (t.after >= next) break;  // the plan's order on its link
    const Op& op = variant_->ops[static_cast<size_t>(t.op)];
    const bool hidden = traits_of(op).buffer == BufferKind::kHidden;
    TransferJob job{.owner = owner,
                    .index = static_cast<int32_t>(asked_),
                    .segments = segments,
                    .source = op.source,
                    .payload = op.payload,
                    .layer = op.layer,
                    .first = t.first,
                    .rows = t.rows,
                    .map = {},
                    .needed_ns = start_ns + std::min(t.needed_ns, int64_t{1} << 60)};
    if (hidden) {
      job.map = receiver_.entry_map(static_cast<size_t>(plan_), variant_->sent_form());
      job.bytes = t.rows * bytes.hidden;
      job.to = memory.hidden[static_cast<size_t>(hidden_index(*variant_, op.buffer))] +
               (t.first - shape_.first) * bytes.hidden;
      // What lay there is gone.
      for_blocks(t.first, t.first + t.rows, [&](size_t b) { levels_of(op)[b] = -1; });
    } else {
      job.bytes = t.rows * bytes.kv;
      job.to = memory.caches[static_cast<size_t>(op.layer)] + t.first * bytes.kv;
    }
    jobs.push_back(std::move(job));
  }
  return jobs;
}

void PlanRun::arrived(int32_t transfer) {
  Transfer& t = transfers_[static_cast<size_t>(transfer)];
  t.there = true;
  const Op& op = variant_->ops[static_cast<size_t>(t.op)];
  for_blocks(t.first, t.first + t.rows, [&](size_t b) {
    if (traits_of(op).buffer != BufferKind::kHidden) {
      // Where some tokens are repaired, a layer is right when that has been done.
      if (!selects()) made_[static_cast<size_t>(op.layer)][b] = true;
    } else if (!variant_->aligns()) {
      levels_of(op)[b] = op.layer;
    }
  });
}

std::vector<PlanRun::Written> PlanRun::being_written() const {
  std::vector<Written> all;
  for (size_t i = 0; i < asked_; ++i) {
    const Transfer& t = transfers_[i];
    if (t.there) continue;
    const Op& op = variant_->ops[static_cast<size_t>(t.op)];
    const bool hidden = traits_of(op).buffer == BufferKind::kHidden;
    all.push_back({hidden, hidden ? hidden_index(*variant_, op.buffer) : op.layer, t.first, t.rows});
  }
  std::sort(all.begin(), all.end(), [](const Written& a, const Written& b) {
    return std::tie(a.index, a.first) < std::tie(b.index, b.first);
  });
  return all;
}

bool PlanRun::awaits_transfers() const {
  return !repaired_ &&
         std::any_of(transfers_.begin(), transfers_.end(), [](const Transfer& t) { return !t.there; });
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
  size_t source = 0;
  int32_t best = -1;
  for (size_t i = 0; i < levels_.size(); ++i) {
    int32_t low = layers;
    for (size_t b = 0; b < count; ++b)
      low = std::min(low, levels_[i][b] < 0 || levels_[i][b] > lowest[b] ? -1 : levels_[i][b]);
    if (low > best) {
      best = low;
      source = i;
    }
  }
  int32_t buffer = 0;
  while (variant_->buffers[static_cast<size_t>(buffer)].kind != BufferKind::kHidden ||
         hidden_index(*variant_, buffer) != static_cast<int64_t>(source))
    ++buffer;
  auto add = [&](OpKind kind, int32_t layer, OpRows at) {
    calls_.push_back({{.kind = kind, .layer = layer, .rows = Rows::kAll, .buffer = buffer}, -1, at, {}});
  };
  std::vector<int32_t> level = levels_[source];
  if (last >= 0 && best < 0) {
    add(OpKind::kEmbed, -1, {0, shape_.n, 0});
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
      add(OpKind::kRecompute, l, {first, rows, l < last ? rows : 0});
      std::fill(level.begin() + static_cast<int64_t>(b), level.begin() + static_cast<int64_t>(end), l + 1);
      b = end;
    }
  }
  // The suffix begins anew: layers that it has seen may be others now.
  const int64_t n = shape_.n, m = shape_.m;
  add(OpKind::kEmbed, -1, {n, m, 0});
  for (int32_t l = 0; l < layers; ++l) add(OpKind::kSuffix, l, {n, m, l + 1 < layers ? m : 1});
  add(OpKind::kHead, -1, {n, m, 0});
  if (best < 0 && last == layers - 1) exact_ = true;  // from the embeddings through every layer
}

bool PlanRun::divisible(const Call& call) {
  switch (call.op.kind) {
    case OpKind::kEmbed:
    case OpKind::kAlign:
    case OpKind::kSuffix:
    case OpKind::kPrefill:
    case OpKind::kRecompute:
      return !call.selected();
    default:
      return false;
  }
}

double PlanRun::layer_flops(const ModelConfig& c) {
  const auto d = static_cast<double>(c.d_model);
  return 2 * d * static_cast<double>(c.kv_row() + 2 * c.heads * c.head_dim) +
         6 * d * static_cast<double>(c.ff);
}

double PlanRun::flops(const Op& op, const OpRows& at) const {
  const ModelConfig& c = receiver_.model().config();
  const auto d = static_cast<double>(c.d_model), q = static_cast<double>(c.heads * c.head_dim),
             rows = static_cast<double>(at.rows);
  const double kv = 2 * d * static_cast<double>(c.kv_row());
  switch (op.kind) {
    case OpKind::kEmbed:
      return rows * d;
    case OpKind::kAlign:
      return rows * 2 * d * d;
    case OpKind::kSelect:
      return rows * kv;
    case OpKind::kHead:
      return 2 * d * static_cast<double>(c.vocab);
    default:
      break;
  }
  // Each query reads the keys up to its own.
  const double keys = static_cast<double>(at.first) + rows / 2;
  return rows * kv +
         static_cast<double>(at.queries) * (4 * d * q + 6 * d * static_cast<double>(c.ff) + 4 * keys * q);
}

std::optional<PlanRun::Piece> PlanRun::next(double most_flops) const {
  if (issued_.call >= calls_.size()) return std::nullopt;
  const Call& call = calls_[issued_.call];
  for (int32_t t : call.transfers)
    if (!transfers_[static_cast<size_t>(t)].there) return std::nullopt;
  const int64_t first = call.at.first + issued_.rows, left = call.at.rows - issued_.rows;
  auto piece = [&](int64_t rows) {
    // The queries are the last rows of the call.
    const int64_t begin = call.at.first + call.at.rows - call.at.queries;
    const OpRows at{first, rows, std::clamp<int64_t>(first + rows - begin, 0, rows)};
    return Piece{issued_.call, at, flops(call.op, at)};
  };
  const Piece whole = piece(left);
  if (whole.flops <= most_flops || !divisible(call)) return whole;
  // To a multiple of a block of positions.
  const auto rows = static_cast<int64_t>(static_cast<double>(left) * most_flops / whole.flops);
  int64_t end = (first + rows) / kBlock * kBlock;
  if (end <= first) end = (first / kBlock + 1) * kBlock;
  return piece(std::min(end - first, left));
}

void PlanRun::issue(const Piece& piece, CommandStream& stream, const RunMemory& memory,
                    SequenceRows& storage) {
  const Call& call = calls_[piece.call];
  OpMemory at{.caches = memory.caches,
              .prefix = memory.prefix,
              .prefix_rows = memory.prefix.empty() ? 0 : shape_.first,
              .hidden = memory.hidden,
              .workspace = memory.workspace,
              .ids = tokens_.data(),
              .positions = reinterpret_cast<int32_t*>(memory.positions),
              .logits = memory.logits,
              .next_id = memory.next,
              .choice = memory.choice};
  const OpCalls calls(receiver_.model(), *variant_,
                      plan_ < 0 ? nullptr : &receiver_.maps(static_cast<size_t>(plan_)), at, shape_.n,
                      shape_.m);
  calls.kernel(call.op, {piece.at, piece.at.first - shape_.first, &storage}, stream);
  issued_.rows += piece.at.rows;
  if (issued_.rows >= call.at.rows) issued_ = {issued_.call + 1, 0};
}

void PlanRun::complete(const Piece& piece) {
  const Call& call = calls_[piece.call];
  const Op& op = call.op;
  done_.rows += piece.at.rows;
  if (done_.rows >= call.at.rows) done_ = {done_.call + 1, 0};
  auto& level = levels_of(op);
  const int64_t first = piece.at.first, end = first + piece.at.rows;
  switch (op.kind) {
    case OpKind::kEmbed:
      for_blocks(first, end, [&](size_t b) { level[b] = 0; });
      break;
    case OpKind::kAlign:
      for_blocks(first, end, [&](size_t b) { level[b] = op.layer; });
      break;
    case OpKind::kSelect:  // moves rows
      std::fill(level.begin(), level.end(), -1);
      break;
    case OpKind::kHead:
      break;
    default: {
      auto& made = made_[static_cast<size_t>(op.layer)];
      if (call.selected()) {
        made.assign(made.size(), true);
        break;
      }
      for_blocks(first, end, [&](size_t b) { made[b] = true; });
      // Rows without a query stay what they were; the queries are the last ones.
      for_blocks(end - piece.at.queries, end, [&](size_t b) { level[b] = op.layer + 1; });
    }
  }
}

std::string PlanRun::label(const Piece& piece) const {
  return op_label(calls_[piece.call].op, variant_->chunks);
}

std::string PlanRun::transfer_label(int32_t transfer) const {
  const int32_t op = transfers_[static_cast<size_t>(transfer)].op;
  return op_label(variant_->ops[static_cast<size_t>(op)], variant_->chunks);
}

}  // namespace ds
