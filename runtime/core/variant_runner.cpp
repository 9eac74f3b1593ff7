#include "runtime/core/variant_runner.h"

#include <algorithm>

#include "plans/traits.h"
#include "support/clock.h"

namespace ds {
namespace {

/// A compute stream's failure, with what was being computed.
Status failed_in(const Variant& variant, int64_t op, const Status& status) {
  if (op < 0 || op >= static_cast<int64_t>(variant.ops.size()))
    return status.with_context(fmt::format("variant '{}'", variant.name));
  const Op& of = variant.ops[static_cast<size_t>(op)];
  return status.with_context(fmt::format("variant '{}', op {} ({}){}", variant.name, op,
                                         op_label(of, variant.chunks),
                                         of.layer < 0 ? "" : fmt::format(", layer {}", of.layer)));
}

}  // namespace

/// One transfer op, ready to be called by the link stream.
struct VariantRunner::Transfer {
  VariantRunner* runner = nullptr;
  TransferInput input;
  OpCalls::Transfer rows;
  Event* ended = nullptr;  // that it records; null: its stream does
};

VariantRunner::~VariantRunner() = default;

Result<std::unique_ptr<VariantRunner>> VariantRunner::create(Backend& backend, const Plan& plan,
                                                             int64_t row_bytes, int64_t more_commands) {
  size_t ops = 1, waits = 0;
  auto count = [&](const Variant& v) {
    size_t all = 0;
    for (const Op& op : v.ops) all += op.waits.size();
    ops = std::max(ops, v.ops.size());
    waits = std::max(waits, all);
  };
  count(plan.full_prefill);
  for (const Variant& v : plan.variants) count(v);
  std::unique_ptr<VariantRunner> runner(new VariantRunner());
  DS_ASSIGN(runner->landing_, Landing::create(backend, row_bytes));
  // Per op: its waits, two events, itself; a select op copies besides.
  const int64_t capacity = static_cast<int64_t>(3 * ops + waits) + 1 + more_commands;
  DS_ASSIGN(runner->link_, backend.make_stream(StreamKind::kLink, capacity));
  DS_ASSIGN(runner->compute_, backend.make_stream(StreamKind::kCompute, capacity));
  for (size_t i = 0; i < ops; ++i) {
    DS_ASSIGN(auto begun, backend.make_event());
    DS_ASSIGN(auto ended, backend.make_event());
    runner->begun_.push_back(std::move(begun));
    runner->ended_.push_back(std::move(ended));
  }
  runner->transfers_.resize(ops);
  return runner;
}

void VariantRunner::run_transfer(void* context, int64_t) {
  auto& t = *static_cast<Transfer*>(context);
  VariantRunner& runner = *t.runner;
  if (!runner.transfer_failed_.load(std::memory_order_acquire)) {
    auto in_time = [&t]() -> Status {
      if (t.input.deadline_ns == 0 || now_ns() <= t.input.deadline_ns) return ok_status();
      return error(Code::kExhausted, "late: the deadline for transfers passed while {} of layer {} was read",
                   payload_name(t.rows.payload), t.rows.layer);
    };
    const LandingRows rows{t.rows.payload, t.rows.layer, t.rows.first, t.rows.rows,
                           t.rows.payload == Payload::kE ? t.input.map : std::string_view()};
    if (Status status = t.input.segments->read(*runner.landing_, t.rows.source, rows, t.rows.to, in_time);
        !status.ok()) {
      runner.transfer_status_ = std::move(status);
      runner.transfer_failed_.store(true, std::memory_order_release);
      runner.compute_->cancel();
    }
  }
  if (t.ended != nullptr) runner.landing_->record(*t.ended);
}

void VariantRunner::enqueue(const OpCalls& calls, const TransferInput& input) {
  const Variant& variant = calls.variant();
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    begun_[i]->reset();
    ended_[i]->reset();
  }
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    const Op& op = variant.ops[i];
    const bool sent = is_transfer(op);
    CommandStream& stream = sent ? *link_ : *compute_;
    for (int32_t w : op.waits) {
      if (variant.ops[static_cast<size_t>(w)].stream != op.stream)
        stream.wait(*ended_[static_cast<size_t>(w)]);
    }
    stream.begin_op(static_cast<int64_t>(i));
    stream.record(*begun_[i]);
    const bool behind = sent && landing_->staged();  // it ends when its copies have, behind the stream's back
    if (sent) {
      transfers_[i] = {this, input, calls.transfer(op), behind ? ended_[i].get() : nullptr};
      stream.host({&run_transfer, &transfers_[i], 0});
    } else {
      calls.kernel(op, stream);
    }
    if (!behind) stream.record(*ended_[i]);
    stream.begin_op(-1);
  }
}

Result<bool> VariantRunner::run(const OpCalls& calls, const TransferInput& input, Status& miss) {
  transfer_failed_.store(false, std::memory_order_relaxed);
  transfer_status_ = {};
  enqueue(calls, input);
  // The link first: its failure cancels the compute stream, and both must be idle before memory is used
  // again.
  Status link = link_->synchronize();
  if (Status copies = landing_->synchronize(); link.ok()) link = std::move(copies);
  // A fault of the store or the entry is a miss. One of the device or a kernel is none, even beside a miss:
  // it would never be seen if a full prefill covered it.
  if (Status compute = compute_->synchronize(); !compute.ok())
    return failed_in(calls.variant(), compute_->failed_op(), compute);
  DS_TRY(link);
  if (!transfer_failed_.load(std::memory_order_acquire)) return true;
  miss = transfer_status_;
  return false;
}

}  // namespace ds
