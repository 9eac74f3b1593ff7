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
  for (size_t i = 0; i < variant.buffers.size(); ++i)
    if (variant.buffers[i].kind == BufferKind::kHidden) buffers_.push_back(static_cast<int32_t>(i));
  held_.assign(buffers_.size(), std::vector<Held>(blocks()));
  cells_.assign(static_cast<size_t>(receiver.model().config().layers), std::vector<Cell>(blocks()));
  build();
}

size_t PlanRun::block_of(int64_t position) const {
  if (position < shape_.n) return static_cast<size_t>(position / kBlock);
  return context_blocks() + static_cast<size_t>(position / kBlock - shape_.n / kBlock);
}

int64_t PlanRun::begin_of(size_t block) const {
  const auto b = static_cast<int64_t>(block), context = static_cast<int64_t>(context_blocks());
  if (b < context) return b * kBlock;
  const int64_t begin = b == context ? shape_.n : (shape_.n / kBlock + b - context) * kBlock;
  return std::min(begin, shape_.n + shape_.m);
}

bool PlanRun::hidden(const Op& op) { return traits_of(op).buffer == BufferKind::kHidden; }

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
      transfers_.push_back({.op = static_cast<int32_t>(i), .first = at.first, .rows = at.rows});
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
    if (op.layer < 0 || calls_.back().selected() || traits_of(op).queries == QueriesRule::kNone) continue;
    for_blocks(at.first, at.first + at.rows,
               [&](size_t b) { cells_[static_cast<size_t>(op.layer)][b].own = true; });
  }
  all_or_nothing_ = selects();
  std::vector<std::vector<int32_t>> last(held_.size(), std::vector<int32_t>(blocks(), -1));
  for (Transfer& t : transfers_) {
    const Op& op = op_of(t);
    for (int32_t w : op.waits) {
      if (transfer_of[static_cast<size_t>(w)] >= 0) continue;
      while (t.after < calls_.size() && calls_[t.after].index <= w) ++t.after;
    }
    // A repair computes in the buffer that the suffix has, and takes it that a buffer's turns go upward.
    if (!hidden(op)) continue;
    auto& turns = last[static_cast<size_t>(hidden_index(*variant_, op.buffer))];
    all_or_nothing_ |= variant_->buffers[static_cast<size_t>(op.buffer)].with_suffix;
    for_blocks(t.first, t.first + t.rows, [&](size_t b) {
      all_or_nothing_ |= turns[b] >= op.layer;
      turns[b] = op.layer;
    });
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

std::vector<PlanRun::Held>& PlanRun::held_by(const Op& op) {
  return held_[static_cast<size_t>(hidden_index(*variant_, op.buffer))];
}

std::vector<TransferJob> PlanRun::take_transfers(const RunMemory& memory,
                                                 const std::shared_ptr<Segments>& segments, uint64_t owner,
                                                 int64_t start_ns) {
  const RowBytes& bytes = receiver_.row_bytes();
  std::vector<TransferJob> jobs;
  for (size_t i = 0; i < transfers_.size(); ++i) {
    Transfer& t = transfers_[i];
    if (t.state != Transfer::State::kPlanned) continue;
    if (done_.call < t.after) {
      if (!repaired_) break;  // the plan's order on its link
      continue;               // what has to run before it may wait for those behind it now
    }
    t.state = Transfer::State::kAsked;
    const Op& op = op_of(t);
    TransferJob job{.owner = owner,
                    .index = static_cast<int32_t>(i),
                    .segments = segments,
                    .source = op.source,
                    .payload = op.payload,
                    .layer = op.layer,
                    .first = t.first,
                    .rows = t.rows,
                    .map = {},
                    .needed_ns = start_ns + std::min(t.needed_ns, int64_t{1} << 60)};
    if (hidden(op)) {
      job.map = receiver_.entry_map(static_cast<size_t>(plan_), variant_->sent_form());
      job.bytes = t.rows * bytes.hidden;
      job.to = memory.hidden[static_cast<size_t>(hidden_index(*variant_, op.buffer))] +
               (t.first - shape_.first) * bytes.hidden;
      // What lay there is gone.
      for_blocks(t.first, t.first + t.rows, [&](size_t b) { held_by(op)[b] = {}; });
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
  t.state = Transfer::State::kThere;
  if (!t.needed) return;
  const Op& op = op_of(t);
  for_blocks(t.first, t.first + t.rows, [&](size_t b) {
    if (!hidden(op)) {
      // Where some tokens are repaired, a layer is right when that has been done.
      Cell& cell = cells_[static_cast<size_t>(op.layer)][b];
      cell.made |= !selects() && !cell.own;
    } else if (variant_->aligns()) {
      held_by(op)[b].sent = op.layer;
    } else {
      held_by(op)[b] = {.level = op.layer, .base = op.layer};
    }
  });
}

std::vector<PlanRun::Kept> PlanRun::kept() const {
  std::vector<Kept> all;
  auto add = [&](bool hidden, size_t index, size_t block) {
    const int64_t first = begin_of(block), rows = begin_of(block + 1) - first;
    const auto i = static_cast<int64_t>(index);
    if (!all.empty() && all.back().hidden == hidden && all.back().index == i &&
        all.back().first + all.back().rows == first)
      all.back().rows += rows;
    else
      all.push_back({hidden, i, first, rows});
  };
  for (size_t l = 0; l < cells_.size(); ++l)
    for (size_t b = 0; b < cells_[l].size(); ++b)
      if (cells_[l][b].made) add(false, l, b);
  for (size_t x = 0; x < held_.size(); ++x)
    for (size_t b = 0; b < held_[x].size(); ++b)
      if (held_[x][b].level >= 0 || held_[x][b].sent >= 0) add(true, x, b);
  return all;
}

bool PlanRun::has_cells() const {
  return std::any_of(cells_.begin(), cells_.end(), [](const auto& of_layer) {
    return std::any_of(of_layer.begin(), of_layer.end(), [](const Cell& cell) { return cell.made; });
  });
}

bool PlanRun::awaits_transfers() const {
  return std::any_of(transfers_.begin(), transfers_.end(), [](const Transfer& t) { return t.comes(); });
}

int64_t PlanRun::lost_transfers() const {
  return std::count_if(transfers_.begin(), transfers_.end(),
                       [](const Transfer& t) { return t.state == Transfer::State::kLost; });
}

bool PlanRun::computes(int64_t layer) const {
  const auto& cells = cells_[static_cast<size_t>(layer)];
  return std::any_of(cells.begin(), cells.begin() + static_cast<std::ptrdiff_t>(context_blocks()),
                     [](const Cell& cell) { return cell.own; });
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
    if (transfers_[static_cast<size_t>(t)].comes()) return std::nullopt;
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
  auto& held = held_by(op);
  const int64_t first = piece.at.first, end = first + piece.at.rows;
  switch (op.kind) {
    case OpKind::kEmbed:
      for_blocks(first, end, [&](size_t b) { held[b] = {.level = 0, .base = 0}; });
      break;
    case OpKind::kAlign:
      for_blocks(first, end, [&](size_t b) { held[b] = {.level = op.layer, .base = op.layer}; });
      break;
    case OpKind::kSelect:  // moves rows
      std::fill_n(held.begin(), context_blocks(), Held{});
      break;
    case OpKind::kHead:
      break;
    default: {
      auto& cells = cells_[static_cast<size_t>(op.layer)];
      if (call.selected()) {
        for (size_t b = 0; b < context_blocks(); ++b) cells[b].made = true;
        break;
      }
      // Rows without a query stay what they were; the queries are the last ones. A block of both is neither.
      for_blocks(first, end, [&](size_t b) {
        cells[b].made = true;
        cells[b].base = held[b].base;
        if (begin_of(b) >= end - piece.at.queries)
          held[b].level = op.layer + 1;
        else if (begin_of(b + 1) > end - piece.at.queries)
          held[b] = {};
      });
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
