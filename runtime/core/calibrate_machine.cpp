// What does not depend on the size of a call.
#include "plans/work.h"
#include "runtime/core/calibrate_internal.h"

namespace ds::calibration {
namespace {

void nothing(void*, int64_t) {}

}  // namespace

Status Calibrator::measure_machine(MachineTimes& m) {
  DS_ASSIGN(m.matmul_flops, backend_.measure_matmul_flops(model_.dtype()));
  DS_ASSIGN(m.memory_bytes_per_s, backend_.measure_read_bandwidth());
  DS_ASSIGN(m.op_overhead_ns, timed(200, [&] { compute_->host({&nothing, nullptr, 0}); }));
  DS_TRY(measure_wakeup(m));
  DS_TRY(measure_attention(m));
  int64_t rows = std::min<int64_t>(longest_, 1024);
  auto embed = [&](int64_t n) { model_.embed(*compute_, ids_.data(), n, hidden_->data()); };
  DS_ASSIGN(m.embed_ns, timed(20, [&] { embed(1); }));
  DS_ASSIGN(int64_t many, timed(20, [&] { embed(rows); }));
  m.embed_row_ns = d(std::max<int64_t>(many - m.embed_ns, 0)) / d(std::max<int64_t>(rows - 1, 1));
  // The layers in between push the head's weights out of the caches, as they do in a request.
  std::vector<int64_t> heads;
  for (int i = 0; i < 12 && !stopped(); ++i) {
    DS_TRY(pass({1, 1, 0}, config_.layers));
    DS_ASSIGN(int64_t head,
              once([&] { model_.logits(*compute_, *workspace_, hidden_->data(), logits_.data()); }));
    if (i > 0) heads.push_back(head);
  }
  if (!heads.empty()) m.head_ns = std::max<int64_t>(median(heads), 1);
  DS_TRY(measure_align(m));
  return measure_store(m);
}

Status Calibrator::measure_align(MachineTimes& m) {
  const int64_t many = std::min<int64_t>(longest_, 512), few = std::max<int64_t>(many / 8, 1);
  for (const auto& [form, map] : maps_) {
    auto measure = [&](int64_t rows) -> Result<int64_t> {
      std::vector<int64_t> times;
      for (int i = 0; i < 16 && !stopped(); ++i) {
        model_.embed(*compute_, ids_.data(), rows, hidden_->data());
        model_.layer(*compute_, *workspace_, call(0, {rows, rows, 0}));
        DS_ASSIGN(int64_t ns,
                  once([&] { model_.align(*compute_, *workspace_, *map, hidden_->data(), rows); }));
        if (i > 0) times.push_back(ns);
      }
      return times.empty() ? 1 : median(times);
    };
    DS_ASSIGN(int64_t few_ns, measure(few));
    DS_ASSIGN(int64_t many_ns, measure(many));
    AlignTime& t = m.aligns.emplace_back(form);
    if (many > few) t.row_ns = d(std::max<int64_t>(many_ns - few_ns, 0)) / d(many - few);
    // One row takes no less than a further one.
    t.row_ns = std::min(t.row_ns, d(many_ns) / d(many));
    t.ns = std::max<int64_t>(many_ns - std::llround(t.row_ns * d(many - 1)), 1);
  }
  return ok_status();
}

Status Calibrator::measure_attention(MachineTimes& m) {
  int64_t rows = std::min<int64_t>(longest_, 256), position = std::min<int64_t>(longest_ - rows, 4096);
  std::vector<int64_t> near, far;
  for (int i = 0; i < 6 && !stopped(); ++i) {
    int64_t count = std::min<int64_t>(config_.layers, 4);
    DS_ASSIGN(int64_t at_0, pass({rows, rows, 0}, count));
    DS_ASSIGN(int64_t behind, pass({rows, rows, position}, count));
    if (i > 0) near.push_back(at_0), far.push_back(behind);
  }
  m.attention_flops = m.matmul_flops;
  // Too short to tell.
  if (position == 0 || near.empty() || median(far) <= median(near)) return ok_status();
  const Shape shape = config_.shape();
  double more =
      layer_work(shape, {position, rows, rows}).attention - layer_work(shape, {0, rows, rows}).attention;
  m.attention_flops = std::min(m.matmul_flops, more / d(median(far) - median(near)) * 1e9);
  return ok_status();
}

Status Calibrator::measure_wakeup(MachineTimes& m) {
  std::vector<int64_t> times;
  for (int i = 0; i <= 100 && !stopped(); ++i) {
    Event &there = event(0), &here = event(1);
    compute_->wait(there);
    compute_->record(here);
    std::this_thread::sleep_for(std::chrono::microseconds(200));  // it sleeps by now
    link_->record(there);
    DS_TRY(link_->synchronize());
    DS_TRY(compute_->synchronize());
    if (i > 0) times.push_back(std::max<int64_t>(events_at(1) - events_at(0), 0));
  }
  if (!times.empty()) m.wakeup_ns = median(times);
  return ok_status();
}

}  // namespace ds::calibration
