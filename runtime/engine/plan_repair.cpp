// What is left of a run when a transfer does not come: a tiling again, and calls that compute it.
//
// A cell whose K and V were lost becomes R's own, and so does every cell below it down to the hidden states
// that it is computed from: the highest ones below it that its block has, or that are coming, else the
// embeddings. Hidden states that were lost are made the same way. Where a cell that was there is replaced,
// whatever was computed in its sight is computed anew: every recomputed cell has seen the K and V that are
// there at the end, at or before its position.
//
// The order: what needs no transfer first, then what needs the next one on the link, and so on; within that,
// layer by layer. A cell needs what is below it and, where it has queries, its layer's K and V before it.
#include <algorithm>
#include <tuple>
#include <utility>

#include "plans/traits.h"
#include "runtime/engine/plan_run.h"

namespace ds {

struct PlanRun::Repair {
  explicit Repair(PlanRun& r)
      : run(r),
        layers(r.cells_.size()),
        blocks(r.blocks()),
        context(r.context_blocks()),
        nodes(layers, std::vector<Node>(blocks)),
        coming_kv(layers, std::vector<int32_t>(blocks, -1)),
        coming_e(coming_kv),
        first_changed(layers, blocks) {
    while (!run.variant_->buffers[static_cast<size_t>(run.buffers_[suffix_buffer])].with_suffix)
      ++suffix_buffer;
  }

  void lose() {
    for (size_t i = 0; i < run.transfers_.size(); ++i) {
      Transfer& t = run.transfers_[i];
      const Op& op = run.op_of(t);
      const auto layer = static_cast<size_t>(op.layer);
      run.for_blocks(t.first, t.first + t.rows, [&](size_t b) {
        if (t.comes())
          (hidden(op) ? coming_e : coming_kv)[layer][b] = static_cast<int32_t>(i);
        else if (t.state == Transfer::State::kLost && !hidden(op) && !run.cells_[layer][b].made)
          run.cells_[layer][b].own = true;
      });
    }
    if (run.all_or_nothing_)  // nothing comes any more
      for (auto& cells : run.cells_)
        for (Cell& cell : cells) cell.own |= !cell.made;
  }

  /// Decides what every cell is computed from.
  void choose() {
    do {
      again = false;
      for (size_t b = 0; b < blocks; ++b) choose(b);
      for (size_t b = 0; b < blocks; ++b) forget_stale(b);
    } while (again);
    run.exact_ = true;
    for (size_t l = 0; l < layers; ++l)
      for (size_t b = 0; b < context; ++b) {
        const Cell& cell = run.cells_[l][b];
        run.exact_ &= cell.own && (cell.made ? cell.base : nodes[l][b].base) == 0;
      }
  }

  void make_calls() {
    drop_needless();
    std::vector<Step> steps = ordered_steps();
    run.calls_.clear();
    run.issued_ = run.done_ = {};
    for (size_t i = 0; i < steps.size();) {
      size_t end = i + 1;
      while (end < steps.size() && goes_with(steps[end - 1], steps[end])) ++end;
      add_call({steps.data() + i, end - i});
      i = end;
    }
    const RunShape& s = run.shape_;
    run.calls_.push_back(
        {{.kind = OpKind::kHead, .rows = Rows::kSuffix, .buffer = run.buffers_[suffix_buffer]},
         -1,
         {s.n, s.m, 0},
         {}});
    for (size_t i = 0; i < run.calls_.size(); ++i) hold_back(i);
  }

 private:
  enum class From : uint8_t { kNone, kBelow, kHeld, kSent, kEmbeddings };
  /// A cell that is computed.
  struct Node {
    From from = From::kNone;
    size_t buffer = 0;      // its hidden states are there, or come there
    int32_t transfer = -1;  // that brings them; -1: they are there, or come from below
    int32_t base = 0;       // as Held::base
    bool goes_on = false;   // the cell above is computed from what leaves it
    int64_t rank = -1;      // the last transfer that it needs, by index; -1: none that is still to come
  };
  struct Chain {
    int32_t level = -1;
    Node node;
  };
  enum class Stage : uint8_t { kEmbed, kAlign, kLayer };
  struct Step {
    int64_t rank;
    size_t layer;
    Stage stage;
    size_t block;
    auto key() const { return std::tie(rank, layer, stage, block); }
  };

  Chain best_source(size_t b, int32_t level, const Chain& going, bool embedded) const {
    Chain best = going;
    auto consider = [&](int32_t at, Node node) {
      if (at > best.level && at <= level) best = {at, node};
    };
    for (size_t x = 0; x < run.held_.size(); ++x) {
      const Held& held = run.held_[x][b];
      if (embedded && x == suffix_buffer) continue;
      consider(held.level, {.from = From::kHeld, .buffer = x, .base = held.base});
      consider(held.sent, {.from = From::kSent, .buffer = x, .base = held.sent});
    }
    for (int32_t l = level; l > best.level; --l) {
      const int32_t t = coming_e[static_cast<size_t>(l)][b];
      if (t < 0) continue;
      const auto& op = run.op_of(run.transfers_[static_cast<size_t>(t)]);
      consider(l, {.from = From::kSent,
                   .buffer = static_cast<size_t>(hidden_index(*run.variant_, op.buffer)),
                   .transfer = t,
                   .base = l});
    }
    consider(0, {.from = From::kEmbeddings, .buffer = suffix_buffer, .base = 0});
    return best;
  }

  void choose(size_t b) {
    for (auto& of_layer : nodes) of_layer[b] = {};
    Chain going;
    bool embedded = false;
    for (size_t l = 0; l < layers; ++l) {
      if (!run.cells_[l][b].own || run.cells_[l][b].made) continue;
      const Chain from = best_source(b, static_cast<int32_t>(l), going, embedded);
      embedded |= from.node.from == From::kEmbeddings;
      const auto start = static_cast<size_t>(from.level);
      const bool goes_on = from.level == going.level;
      if (!goes_on) nodes[start][b] = from.node;
      for (size_t j = start; j < l; ++j) {
        nodes[j][b].goes_on = true;
        nodes[j + 1][b] = {.from = From::kBelow, .buffer = from.node.buffer, .base = from.node.base};
        // Where it starts at R's own, that is computed from the same hidden states once more.
        if (!(j == start && run.cells_[j][b].own)) replace(j, b);
      }
      going = {static_cast<int32_t>(l), nodes[l][b]};
    }
  }

  void replace(size_t l, size_t b) {
    Cell& cell = run.cells_[l][b];
    if (cell.made) {
      first_changed[l] = std::min(first_changed[l], b);
      again = true;
    }
    cell = {.own = true, .made = false};
  }

  /// What was computed in sight of cells that are replaced.
  void forget_stale(size_t b) {
    int32_t last = -1;  // the highest layer below l in which it has seen one
    for (size_t l = 0; l <= layers; ++l) {
      for (auto& of_buffer : run.held_) {
        Held& held = of_buffer[b];
        if (held.level != static_cast<int32_t>(l) || held.base > last) continue;
        held = {};
        again = true;
      }
      if (l == layers) break;
      Cell& cell = run.cells_[l][b];
      if (cell.own && cell.made && cell.base <= last) replace(l, b);
      if (first_changed[l] <= b) last = static_cast<int32_t>(l);
    }
  }

  /// Whether a cell's K and V, or hidden states, are still made of what a transfer brings.
  bool uses(const Transfer& t, int32_t index) const {
    const Op& op = run.op_of(t);
    bool used = false;
    run.for_blocks(t.first, t.first + t.rows, [&](size_t b) {
      const auto l = static_cast<size_t>(op.layer);
      used |= hidden(op) ? nodes[l][b].transfer == index : !run.cells_[l][b].own;
    });
    return used;
  }

  void drop_needless() {
    for (size_t i = 0; i < run.transfers_.size(); ++i) {
      Transfer& t = run.transfers_[i];
      t.needed = uses(t, static_cast<int32_t>(i));
      if (t.needed || t.state != Transfer::State::kPlanned) continue;
      t.state = Transfer::State::kLost;
      run.for_blocks(t.first, t.first + t.rows, [&](size_t b) {
        (hidden(run.op_of(t)) ? coming_e : coming_kv)[static_cast<size_t>(run.op_of(t).layer)][b] = -1;
      });
    }
  }

  /// When it is asked for, it waits for what still uses its buffer.
  int64_t rank_of(int32_t transfer) const {
    const Transfer& t = run.transfers_[static_cast<size_t>(transfer)];
    int64_t rank = transfer;
    if (t.state != Transfer::State::kPlanned) return rank;
    const Op& op = run.op_of(t);
    const auto buffer = static_cast<size_t>(hidden_index(*run.variant_, op.buffer));
    run.for_blocks(t.first, t.first + t.rows, [&](size_t b) {
      for (size_t l = 0; l < static_cast<size_t>(op.layer); ++l)
        if (nodes[l][b].from != From::kNone && nodes[l][b].buffer == buffer)
          rank = std::max(rank, nodes[l][b].rank);
    });
    return rank;
  }

  /// Whether it reads its layer's K and V up to its own.
  bool reads(size_t l, size_t b) const { return nodes[l][b].goes_on || (l + 1 == layers && b + 1 == blocks); }

  std::vector<Step> ordered_steps() {
    std::vector<Step> steps;
    for (size_t l = 0; l < layers; ++l) {
      int64_t before = -1;
      for (size_t b = 0; b < blocks; ++b) {
        Node& node = nodes[l][b];
        const Cell& cell = run.cells_[l][b];
        if (node.from == From::kNone) {
          before = std::max<int64_t>(before, cell.made ? -1 : coming_kv[l][b]);
          continue;
        }
        if (node.from == From::kBelow) node.rank = nodes[l - 1][b].rank;
        if (node.transfer >= 0) node.rank = rank_of(node.transfer);
        node.rank = std::max<int64_t>(node.rank, coming_kv[l][b]);  // which it overwrites
        before = std::max(before, node.rank);
        if (reads(l, b)) node.rank = before;
        if (node.from == From::kEmbeddings) steps.push_back({node.rank, l, Stage::kEmbed, b});
        if (node.from == From::kSent && run.variant_->aligns())
          steps.push_back({node.rank, l, Stage::kAlign, b});
        steps.push_back({node.rank, l, Stage::kLayer, b});
      }
    }
    std::sort(steps.begin(), steps.end(), [](const Step& x, const Step& y) { return x.key() < y.key(); });
    return steps;
  }

  /// Whether one call does both: of context and suffix, too, which reads the weights once.
  bool goes_with(const Step& x, const Step& y) const {
    const Node &a = nodes[x.layer][x.block], &b = nodes[y.layer][y.block];
    return x.rank == y.rank && x.layer == y.layer && x.stage == y.stage && x.block + 1 == y.block &&
           a.buffer == b.buffer && (x.stage != Stage::kLayer || a.goes_on == b.goes_on);
  }

  void add_call(std::span<const Step> steps) {
    const auto& [rank, l, stage, first] = steps.front();
    const size_t last = steps.back().block;
    const Node& node = nodes[l][first];
    const int64_t begin = run.begin_of(first), rows = run.begin_of(last + 1) - begin;
    Call call{{.rows = Rows::kAll, .buffer = run.buffers_[node.buffer]}, -1, {begin, rows, 0}};
    switch (stage) {
      case Stage::kEmbed:
        call.op.kind = OpKind::kEmbed;
        break;
      case Stage::kAlign:
        call.op.kind = OpKind::kAlign;
        call.op.layer = static_cast<int32_t>(l);
        break;
      case Stage::kLayer:
        call.op.kind = first < context ? OpKind::kRecompute : OpKind::kSuffix;
        call.op.layer = static_cast<int32_t>(l);
        call.at.queries = node.goes_on ? rows : last + 1 == blocks && l + 1 == layers ? 1 : 0;
        break;
    }
    for (size_t b = first; b <= last; ++b) {
      if (nodes[l][b].transfer >= 0) call.transfers.push_back(nodes[l][b].transfer);
      if (coming_kv[l][b] >= 0) call.transfers.push_back(coming_kv[l][b]);
    }
    for (size_t b = 0; stage == Stage::kLayer && reads(l, last) && b < first; ++b)
      if (coming_kv[l][b] >= 0) call.transfers.push_back(coming_kv[l][b]);
    std::sort(call.transfers.begin(), call.transfers.end());
    call.transfers.erase(std::unique(call.transfers.begin(), call.transfers.end()), call.transfers.end());
    run.calls_.push_back(std::move(call));
  }

  /// What is yet to be asked for waits for calls before it that use its buffer.
  void hold_back(size_t index) {
    const Call& call = run.calls_[index];
    for (Transfer& t : run.transfers_) {
      if (t.state != Transfer::State::kPlanned) continue;
      const Op& op = run.op_of(t);
      if (index == 0) t.after = 0;
      if (op.buffer == call.op.buffer && call.op.layer < op.layer && call.at.first < t.first + t.rows &&
          t.first < call.at.first + call.at.rows)
        t.after = index + 1;
    }
  }

  PlanRun& run;
  const size_t layers, blocks, context;  // blocks: in all; context: of the context
  size_t suffix_buffer = 0;
  std::vector<std::vector<Node>> nodes;  // by layer and block
  // Transfers that are still to come, by layer and block; -1: none.
  std::vector<std::vector<int32_t>> coming_kv, coming_e;
  std::vector<size_t> first_changed;  // by layer: the first block whose K and V are replaced
  bool again = false;
};

bool PlanRun::lost(int32_t transfer) {
  Transfer& t = transfers_[static_cast<size_t>(transfer)];
  t.state = Transfer::State::kLost;
  if (!t.needed) return false;
  const Op& op = op_of(t);
  bool missing = false;
  for_blocks(t.first, t.first + t.rows, [&](size_t b) {
    const Cell& cell = cells_[static_cast<size_t>(op.layer)][b];
    missing |= !cell.made && cell.own == hidden(op);
  });
  missing_ |= missing;
  return missing;
}

void PlanRun::lose_transfers() {
  for (size_t i = 0; i < transfers_.size(); ++i)
    if (transfers_[i].comes()) lost(static_cast<int32_t>(i));
}

bool PlanRun::repair() {
  if (!std::exchange(missing_, false)) return false;
  repaired_ = true;
  Repair repair(*this);
  repair.lose();
  repair.choose();
  repair.make_calls();
  return true;
}

std::vector<int32_t> PlanRun::needless() const {
  std::vector<int32_t> all;
  for (size_t i = 0; i < transfers_.size(); ++i)
    if (!transfers_[i].needed && transfers_[i].state == Transfer::State::kAsked)
      all.push_back(static_cast<int32_t>(i));
  return all;
}

}  // namespace ds
