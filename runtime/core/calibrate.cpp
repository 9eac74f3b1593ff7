#include "runtime/core/calibrate.h"

#include <fmt/ranges.h>

#include "plans/work.h"
#include "runtime/core/calibrate_internal.h"

namespace ds {
namespace {

constexpr int64_t kDisturbed = 150;  // permille

bool by_probe(const LayerTime& a, const LayerTime& b) { return a.probe_ns < b.probe_ns; }

}  // namespace

namespace calibration {

Result<Calibration> Calibrator::run() {
  DS_ASSIGN(std::vector<CallSize> grid, calibration_grid(config_, options_.contexts, options_.suffix));
  DS_TRY(reserve());
  DS_TRY(warm_up());
  result_.stopped = false;
  result_.left_out.clear();
  if (!result_.machine) {
    MachineTimes m;
    DS_TRY(measure_machine(m));
    if (!stopped()) result_.machine = m;
    DS_TRY(step_done());
  }
  int64_t left = static_cast<int64_t>(grid.size());
  for (const CallSize& size : grid) {
    if (stopped()) break;
    --left;
    auto same = [&](const LayerTime& t) { return t.size == size; };
    if (std::any_of(result_.layers.begin(), result_.layers.end(), same)) continue;
    int64_t remaining = options_.budget_ns - spent();
    // Cheap calls share what is left evenly; a dear one needs room for a pass and a second one.
    if (2 * expected_ns(size) > remaining) {
      result_.left_out.push_back(size);
      continue;
    }
    DS_TRY(measure_layer(size, std::clamp<int64_t>(remaining / (left + 1), 20'000'000, 400'000'000)));
    DS_TRY(step_done());
  }
  DS_TRY(measure_disturbed_again());
  result_.stopped = stopped();
  return std::move(result_);
}

Status Calibrator::step_done() {
  result_.spent_ns = spent();
  if (options_.progress)
    options_.progress(std::min(result_.spent_ns, options_.budget_ns), options_.budget_ns);
  return options_.measured ? options_.measured(result_) : ok_status();
}

Status Calibrator::reserve() {
  longest_ = options_.contexts.back() + options_.suffix;
  element_ = dtype_size(model_.dtype());
  DS_ASSIGN(hidden_, backend_.allocate(longest_ * config_.d_model * element_));
  for (int64_t l = 0; l < config_.layers; ++l) {
    DS_ASSIGN(auto cache, backend_.allocate(longest_ * config_.kv_row() * element_));
    caches_.push_back(std::move(cache));
  }
  if (!result_.machine) DS_TRY(load_maps());
  DS_ASSIGN(workspace_, model_.make_workspace(longest_));
  DS_ASSIGN(compute_, backend_.make_stream(StreamKind::kCompute, 4 * config_.layers + 8));
  DS_ASSIGN(link_, backend_.make_stream(StreamKind::kLink, 64));
  for (int64_t i = 0; i < std::max<int64_t>(2 * config_.layers, 4); ++i) {
    DS_ASSIGN(auto event, backend_.make_event());
    events_.push_back(std::move(event));
  }
  ids_.resize(static_cast<size_t>(longest_));
  for (size_t i = 0; i < ids_.size(); ++i)
    ids_[i] = static_cast<int32_t>(i * 7919 % static_cast<size_t>(config_.vocab));
  logits_.resize(static_cast<size_t>(config_.vocab));
  return ok_status();
}

Status Calibrator::warm_up() {
  model_.embed(*compute_, ids_.data(), longest_, hidden_->data());
  int64_t rows = std::min<int64_t>(longest_, 512);
  for (int64_t l = 0; l < config_.layers; ++l) {
    model_.layer(*compute_, *workspace_, call(l, {longest_, 0, 0}));
    model_.layer(*compute_, *workspace_, call(l, {rows, rows, 0}));
    DS_TRY(compute_->synchronize());
    if (stopped()) break;
  }
  return ok_status();
}

Result<int64_t> Calibrator::pass(const CallSize& size, int64_t count) {
  // A request finds the threads asleep, not in the middle of a benchmark's loop.
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  model_.embed(*compute_, ids_.data(), size.rows, hidden_->data());
  for (int64_t i = 0; i < count; ++i) {
    Event &begin = event(2 * i), &end = event(2 * i + 1);
    compute_->record(begin);
    model_.layer(*compute_, *workspace_, call(next_layer_, size));
    compute_->record(end);
    next_layer_ = (next_layer_ + 1) % config_.layers;
  }
  DS_TRY(compute_->synchronize());
  int64_t all = 0;
  for (int64_t i = 0; i < count; ++i) all += events_at(2 * i + 1) - events_at(2 * i);
  return std::max<int64_t>(all / count, 1);
}

int64_t Calibrator::expected_ns(const CallSize& s) const {
  LayerWork work = layer_work(config_.shape(), {s.position, s.rows, s.query_rows});
  const MachineTimes& m = *result_.machine;
  return std::llround((work.matmul / m.matmul_flops + work.attention / m.attention_flops) * 1.3e9);
}

Status Calibrator::measure_disturbed_again() {
  for (size_t tries = 2 * result_.layers.size(); tries > 0 && !stopped(); --tries) {
    if (result_.layers.empty()) break;
    auto worst = std::max_element(result_.layers.begin(), result_.layers.end(), by_probe);
    auto best = std::min_element(result_.layers.begin(), result_.layers.end(), by_probe);
    int64_t remaining = options_.budget_ns - spent();
    if (excess(d(worst->probe_ns), d(best->probe_ns)) <= kDisturbed ||
        2 * std::max(worst->ns, expected_ns(worst->size)) > remaining)
      break;
    LayerTime before = *worst;
    size_t at = static_cast<size_t>(worst - result_.layers.begin());
    DS_TRY(measure_layer(before.size, std::min<int64_t>(remaining / 4, 400'000'000)));
    if (stopped()) break;
    // In its place, if the machine was quicker now.
    if (result_.layers.back().probe_ns < before.probe_ns) result_.layers[at] = result_.layers.back();
    result_.layers.pop_back();
    DS_TRY(step_done());
  }
  return ok_status();
}

Status Calibrator::measure_layer(const CallSize& size, int64_t allowed_ns) {
  CallSize probe{std::min<int64_t>(longest_, 128), std::min<int64_t>(longest_, 128), 0};
  int64_t probe_ns = INT64_MAX;
  for (int i = 0; i < 3; ++i) {
    DS_ASSIGN(int64_t ns, pass(probe, 1));
    probe_ns = std::min(probe_ns, ns);
  }
  int64_t expected = std::max<int64_t>(expected_ns(size), 1);
  int64_t count = std::clamp<int64_t>(allowed_ns / 4 / expected, 1, config_.layers);
  std::vector<int64_t> times;
  int64_t begin = now_ns();
  // The first pass of a size prepares its kernels and is not counted, unless there is no time for more.
  for (int i = 0; i < 2 || (i < 40 && now_ns() - begin < allowed_ns); ++i) {
    if (stopped()) return ok_status();
    DS_ASSIGN(int64_t ns, pass(size, count));
    if (i > 0) times.push_back(ns);
  }
  auto [low, high] = std::minmax_element(times.begin(), times.end());
  result_.layers.push_back({size, median(times), *low, *high, static_cast<int64_t>(times.size()), probe_ns});
  return ok_status();
}

Status Calibrator::load_maps() {
  const int64_t width = config_.d_model;
  uint32_t state = 1;
  auto numbers = [&](int64_t count, int64_t depth) {
    std::vector<float> v(static_cast<size_t>(count));
    const float scale = 0x1p-31f / std::sqrt(static_cast<float>(depth));
    for (float& x : v) {
      state = state * 1664525u + 1013904223u;
      x = static_cast<float>(static_cast<int32_t>(state)) * scale;
    }
    return v;
  };
  for (MapForm form : {MapForm::kFull, MapForm::kLowRank, MapForm::kDiagonal}) {
    AlignmentMap map;
    map.form = form;
    map.bias = numbers(width, 1);
    if (form == MapForm::kFull) map.weight = numbers(width * width, width);
    if (form != MapForm::kFull) map.scale = numbers(width, 1);
    if (form == MapForm::kLowRank) {
      map.rank = std::max<int64_t>(1, width / 8);
      map.down = numbers(map.rank * width, width);
      map.up = numbers(width * map.rank, map.rank);
    }
    DS_ASSIGN(auto loaded, model_.load_map(map));
    maps_.emplace_back(AlignTime{form, map.rank}, std::move(loaded));
  }
  return ok_status();
}

}  // namespace calibration

using calibration::d;
using calibration::excess;

Result<std::vector<CallSize>> calibration_grid(const ModelConfig& config,
                                               const std::vector<int64_t>& contexts, int64_t suffix) {
  if (contexts.empty() || suffix < 1 || contexts.front() < 1 ||
      contexts.back() + suffix > config.max_positions) {
    return error(
        Code::kInvalidArgument,
        "context lengths {} and a suffix of {} tokens; expected lengths from 1 to {}, since the model "
        "has {} positions",
        fmt::join(contexts, ","), suffix, std::max<int64_t>(config.max_positions - suffix, 0),
        config.max_positions);
  }
  const int64_t longest = contexts.back() + suffix;
  struct Step {
    int64_t at;
    int tier;  // 0: says most
  };
  std::vector<Step> rows, positions{{0, 0}};
  for (int64_t r = 1, i = 0; r + r / 8 < longest; r *= r < 64 ? 4 : 2, ++i)
    rows.push_back({r, r == 1 || (r >= 64 && i % 2 == 1) ? 0 : 1});
  for (int64_t r : {suffix, longest}) {
    if (std::none_of(rows.begin(), rows.end(), [&](const Step& s) { return s.at == r; }))
      rows.push_back({r, r == suffix ? 0 : 1});
  }
  for (int64_t p = 512; p < longest; p *= 4) positions.push_back({p, 1});

  std::vector<std::pair<int, CallSize>> grid;
  for (const Step& r : rows) {
    grid.push_back({r.tier, {r.at, 0, 0}});
    // Up to where the longest context ends, and no two positions that tell the same.
    const int64_t last = longest - r.at;
    for (const Step& p : positions)
      if (p.at == 0 || p.at + p.at / 4 < last) grid.push_back({r.tier + p.tier, {r.at, r.at, p.at}});
    if (last > std::max<int64_t>(r.at / 4, 0)) grid.push_back({r.tier, {r.at, r.at, last}});
  }
  // The full prefill of each length: products round rows up, which nothing between two other points tells.
  for (int64_t context : contexts) {
    const CallSize whole{context + suffix, context + suffix, 0};
    if (std::none_of(grid.begin(), grid.end(), [&](const auto& g) { return g.second == whole; }))
      grid.push_back({1, whole});
  }
  std::stable_sort(grid.begin(), grid.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first, a.second.query_rows * (a.second.position + a.second.rows)) <
           std::pair(b.first, b.second.query_rows * (b.second.position + b.second.rows));
  });
  std::vector<CallSize> sizes;
  for (const auto& [tier, size] : grid) sizes.push_back(size);
  return sizes;
}

int64_t Calibration::disturbed_permille() const {
  if (layers.empty()) return 0;
  auto [best, worst] = std::minmax_element(layers.begin(), layers.end(), by_probe);
  return excess(d(worst->probe_ns), d(std::max<int64_t>(best->probe_ns, 1)));
}

Result<Calibration> calibrate(Backend& backend, DeviceModel& model, const CalibrationOptions& options,
                              Calibration done) {
  if (options.store == nullptr) return error(Code::kInvalidArgument, "calibrating: no store to read from");
  return calibration::Calibrator(backend, model, options, std::move(done)).run();
}

}  // namespace ds
