#include "runtime/core/calibrate.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>
#include <tuple>

namespace ds {
namespace {

int64_t median(std::vector<int64_t>& v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

void nothing(void*, int64_t) {}

}  // namespace

Result<Calibration> calibrate(Backend& backend, DeviceModel& model, const std::vector<int64_t>& contexts,
                              int64_t suffix, const std::function<void(int64_t, int64_t)>& progress) {
  const ModelConfig& config = model.config();
  if (contexts.empty() || suffix < 1 || contexts.front() < 1 ||
      contexts.back() + suffix > config.max_positions) {
    return error(Code::kInvalidArgument, "context lengths must lie in [1, {}] with a suffix of {} tokens",
                 config.max_positions - suffix, suffix);
  }
  int64_t longest = contexts.back() + suffix;
  int64_t element = dtype_size(model.dtype());
  DS_ASSIGN(auto hidden, backend.allocate(longest * config.d_model * element));
  std::vector<std::unique_ptr<DeviceMemory>> caches;
  for (int64_t l = 0; l < config.layers; ++l) {
    DS_ASSIGN(auto cache, backend.allocate(longest * config.kv_row() * element));
    caches.push_back(std::move(cache));
  }
  DS_ASSIGN(auto workspace, model.make_workspace(longest));
  DS_ASSIGN(auto stream, backend.make_stream(StreamKind::kCompute, 4 * config.layers + 8));
  std::vector<std::unique_ptr<Event>> events;
  for (int64_t i = 0; i < 2 * config.layers; ++i) {
    DS_ASSIGN(auto event, backend.make_event());
    events.push_back(std::move(event));
  }
  std::vector<int32_t> ids(static_cast<size_t>(longest));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(config.vocab));

  // What ops of plans look like: whole contexts with and without queries, context and suffix together,
  // suffixes behind.
  std::set<std::tuple<int64_t, int64_t, int64_t>> points;
  for (int64_t n : contexts) {
    points.insert({n, n, 0});
    points.insert({n, 0, 0});
    points.insert({n + suffix, n + suffix, 0});
    points.insert({n + suffix, 1, 0});
    points.insert({n + suffix, suffix, 0});
    for (int64_t m : {int64_t{1}, suffix}) {
      points.insert({m, m, n});
      points.insert({m, 1, n});
    }
  }
  Calibration result;
  DS_ASSIGN(result.matmul_flops, backend.measure_matmul_flops(model.dtype()));
  std::vector<float> logits(static_cast<size_t>(config.vocab));
  std::vector<int64_t> heads, empties;
  int64_t done = 0, total = static_cast<int64_t>(points.size());
  for (auto [rows, query_rows, position] : points) {
    std::vector<int64_t> times;
    int64_t spent = 0;
    // Small models finish in microseconds: repeat until the median means something, within a bound on the
    // whole.
    for (int repeat = 0; repeat < 2 || (repeat < 40 && spent < 100'000'000); ++repeat) {
      // A request finds the threads asleep and the caches cold, not in the middle of a benchmark's loop.
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      model.embed(*stream, ids.data(), rows, hidden->data());
      for (int64_t l = 0; l < config.layers; ++l) {
        Event &begin = *events[static_cast<size_t>(2 * l)], &end = *events[static_cast<size_t>(2 * l + 1)];
        begin.reset();
        end.reset();
        stream->record(begin);
        model.layer(*stream, *workspace,
                    {l, hidden->data(), caches[static_cast<size_t>(l)]->data(), position, rows, query_rows});
        stream->record(end);
      }
      DS_TRY(stream->synchronize());
      int64_t all = 0;
      for (int64_t l = 0; l < config.layers; ++l) {
        all +=
            events[static_cast<size_t>(2 * l + 1)]->time_ns() - events[static_cast<size_t>(2 * l)]->time_ns();
      }
      spent += all;
      if (repeat > 0) times.push_back(all / config.layers);  // the first round warms up
      for (auto* out : {&empties, &heads}) {
        events[0]->reset();
        events[1]->reset();
        stream->record(*events[0]);
        if (out == &heads) {
          model.logits(*stream, *workspace, hidden->data(), logits.data());
        } else {
          stream->host({&nothing, nullptr, 0});
        }
        stream->record(*events[1]);
        DS_TRY(stream->synchronize());
        out->push_back(events[1]->time_ns() - events[0]->time_ns());
      }
    }
    result.layers.push_back({rows, query_rows, position, median(times)});
    if (progress) progress(++done, total);
  }
  result.head_ns = median(heads);
  result.op_overhead_ns = std::max<int64_t>(median(empties), 1);
  return result;
}

}  // namespace ds
