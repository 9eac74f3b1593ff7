#include "compiler/scheduling/sender_times.h"

#include <algorithm>
#include <cmath>

#include "plans/traits.h"

namespace ds {

SenderTimes::SenderTimes(const CostModel& costs, int64_t tokens)
    : tokens_(tokens), layers_(costs.shape().layers), within_{0}, within_last_{0} {
  for (int64_t at = 0; at < tokens; at += kLiveRows) {
    const int64_t rows = std::min(kLiveRows, tokens - at);
    within_.push_back(within_.back() + costs.layer_ns(rows, rows, at));
    // Of the last layer only K and V are wanted.
    within_last_.push_back(within_last_.back() + costs.layer_ns(rows, 0, at));
  }
}

int64_t SenderTimes::ready_ns(const Op& op, int32_t chunks) const {
  const OpRows rows = op_rows(op, chunks, tokens_, 0, 0);
  // Hidden states that enter a layer are all shown with the first piece that the layer has made of them.
  const int64_t end = op.payload == Payload::kE ? 1 : rows.first + rows.rows;
  const auto pieces = static_cast<size_t>((end + kLiveRows - 1) / kLiveRows);
  const std::vector<double>& within = op.layer + 1 == layers_ ? within_last_ : within_;
  return std::llround(op.layer * within_.back() + within[std::min(pieces, within.size() - 1)]);
}

void release_by_sender(const SenderTimes& sender, const std::vector<Op>& ops, int32_t chunks, Problem& p) {
  for (size_t i = 0; i < ops.size(); ++i)
    if (is_transfer(ops[i]))
      p.tasks[i].release_ns = std::max(p.tasks[i].release_ns, sender.ready_ns(ops[i], chunks));
}

}  // namespace ds
