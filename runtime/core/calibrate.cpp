#include "runtime/core/calibrate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <span>
#include <thread>

#include <fmt/ranges.h>

#include "plans/work.h"
#include "runtime/core/landing.h"
#include "runtime/store/entry.h"
#include "support/clock.h"

namespace ds {
namespace {

int64_t median(std::vector<int64_t> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

double d(int64_t v) { return static_cast<double>(v); }

void nothing(void*, int64_t) {}

/// Permille by which `slower` exceeds `alone`.
int64_t excess(double slower, double alone) {
  return std::clamp<int64_t>(std::llround(1000 * (slower / alone - 1)), 0, 1'000'000);
}

constexpr int64_t kDisturbed = 150;  // permille

bool by_probe(const LayerTime& a, const LayerTime& b) { return a.probe_ns < b.probe_ns; }

class Calibrator {
 public:
  Calibrator(Backend& backend, DeviceModel& model, const CalibrationOptions& options, Calibration done)
      : backend_(backend),
        model_(model),
        config_(model.config()),
        options_(options),
        result_(std::move(done)),
        started_(now_ns() - result_.spent_ns) {}

  Result<Calibration> run() {
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

 private:
  bool stopped() const { return options_.stop != nullptr && options_.stop->load(); }
  int64_t spent() const { return now_ns() - started_; }

  Status step_done() {
    result_.spent_ns = spent();
    if (options_.progress)
      options_.progress(std::min(result_.spent_ns, options_.budget_ns), options_.budget_ns);
    return options_.measured ? options_.measured(result_) : ok_status();
  }

  Status reserve() {
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

  /// Touches all memory and leaves ordinary numbers in the caches, so that no call is the first to see a
  /// page.
  Status warm_up() {
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

  LayerCall call(int64_t layer, const CallSize& size) {
    return {layer,         hidden_->data(), caches_[static_cast<size_t>(layer)]->data(),
            size.position, size.rows,       size.query_rows};
  }

  /// Mean nanoseconds per call of one pass over `count` layers, going on where the last pass ended: by the
  /// time a layer's turn comes again, its weights have left the caches if a request would find them gone.
  Result<int64_t> pass(const CallSize& size, int64_t count) {
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

  Event& event(int64_t i) {
    Event& e = *events_[static_cast<size_t>(i)];
    e.reset();
    return e;
  }
  int64_t events_at(int64_t i) const { return events_[static_cast<size_t>(i)]->time_ns(); }

  /// From the nearest thing known: the matrix products' rate, and somewhat more for all the rest.
  int64_t expected_ns(const CallSize& s) const {
    LayerWork work = layer_work(config_.shape(), {s.position, s.rows, s.query_rows});
    const MachineTimes& m = *result_.machine;
    return std::llround((work.matmul / m.matmul_flops + work.attention / m.attention_flops) * 1.3e9);
  }

  /// Other work on a shared machine, or a change of clock, slows everything for a while. Points of such a
  /// while are taken again as long as there is time.
  Status measure_disturbed_again() {
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

  Status measure_layer(const CallSize& size, int64_t allowed_ns) {
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
    result_.layers.push_back(
        {size, median(times), *low, *high, static_cast<int64_t>(times.size()), probe_ns});
    return ok_status();
  }

  /// Of ordinary numbers, before the workspace that they need room in.
  Status load_maps() {
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

  // ---- what does not depend on the size of a call

  /// Nanoseconds of what `enqueue` puts on the compute stream.
  template <typename F>
  Result<int64_t> once(F enqueue) {
    Event &begin = event(0), &end = event(1);
    compute_->record(begin);
    enqueue();
    compute_->record(end);
    DS_TRY(compute_->synchronize());
    return std::max<int64_t>(events_at(1) - events_at(0), 1);
  }

  /// The median of some, after one that is not counted.
  template <typename F>
  Result<int64_t> timed(int repeats, F enqueue) {
    std::vector<int64_t> times;
    for (int i = 0; i <= repeats; ++i) {
      DS_ASSIGN(int64_t ns, once(enqueue));
      if (i > 0) times.push_back(ns);
    }
    return median(times);
  }

  Status measure_machine(MachineTimes& m) {
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

  /// A line through the times of few rows and of many. The layer before it, on the same rows, pushes the map
  /// out of the caches and leaves the threads awake, as between the kernels of a request.
  Status measure_align(MachineTimes& m) {
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

  /// What a call costs more at a great position is attention.
  Status measure_attention(MachineTimes& m) {
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

  Status measure_wakeup(MachineTimes& m) {
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

  /// A real entry of this model's shape in the store: look-up, reads, and reads beside kernels.
  Status measure_store(MachineTimes& m) {
    constexpr int64_t kMost = int64_t{64} << 20;
    const Shape shape = config_.shape();
    int64_t row = config_.kv_row() * element_;
    int64_t tokens = std::clamp<int64_t>(kMost / (row * config_.layers), 1, options_.contexts.back());
    std::span<const int32_t> context = std::span(ids_).first(static_cast<size_t>(tokens));
    ModelIdentity sender{.name = "ds-calibrate",
                         .fingerprint = std::string(64, 'c'),
                         .config = {},
                         .weights = {},
                         .tokenizer = {}};
    EntryIdentity identity{sender.fingerprint, hash_tokens(context), "ds-calibrate", tokens, model_.dtype()};
    // What lies in the caches, as ordinary as a request's.
    std::vector<EntrySource> sources;
    std::vector<std::byte> kept(static_cast<size_t>(config_.layers * tokens * row));
    for (int64_t l = 0; l < config_.layers; ++l) {
      auto rows =
          std::span(kept).subspan(static_cast<size_t>(l * tokens * row), static_cast<size_t>(tokens * row));
      compute_->copy(rows.data(), caches_[static_cast<size_t>(l)]->data(), tokens * row);
      sources.push_back({TensorKind::kKv, static_cast<int32_t>(l), rows});
      DS_TRY(compute_->synchronize());
    }
    DS_TRY(write_entry(*options_.store, identity, sender, shape, sources));
    Status status = measure_entry(m, identity, shape);
    Status removed = options_.store->remove(identity.key());
    return status.ok() ? removed : status;
  }

  Status measure_entry(MachineTimes& m, const EntryIdentity& identity, const Shape& shape) {
    std::vector<int64_t> lookups;
    for (int i = 0; i <= 20 && !stopped(); ++i) {
      int64_t begin = now_ns();
      (void)hash_tokens(ids_);  // a request hashes its context first
      DS_TRY(EntryReader::open(*options_.store, identity, shape));
      if (i > 0) lookups.push_back(now_ns() - begin);
    }
    DS_ASSIGN(EntryReader entry, EntryReader::open(*options_.store, identity, shape));
    int64_t row = config_.kv_row() * element_;
    int64_t all = identity.tokens, few = std::max<int64_t>(all / 16, 1);
    // Not into the caches: kernels will run on them meanwhile.
    DS_ASSIGN(auto landed, backend_.allocate(identity.tokens * config_.layers * row));
    DS_ASSIGN(auto landing, Landing::create(backend_, row));
    auto read = [&](int64_t layer, int64_t rows) -> Status {
      DS_TRY(landing->read(entry, {TensorKind::kKv, static_cast<int32_t>(layer), 0, rows},
                           landed->data() + layer * identity.tokens * row));
      return landing->synchronize();
    };
    std::vector<int64_t> wholes, parts;
    for (int round = 0; round < 4; ++round) {
      for (int64_t l = 0; l < config_.layers && !stopped(); ++l) {
        for (auto* times : {&parts, &wholes}) {
          int64_t begin = now_ns();
          DS_TRY(read(l, times == &parts ? few : all));
          if (round > 0) times->push_back(std::max<int64_t>(now_ns() - begin, 1));
        }
      }
    }
    if (stopped() || lookups.empty()) return ok_status();
    m.lookup_ns = median(lookups);
    int64_t whole = median(wholes), part = median(parts);
    if (all > few && whole > part) {
      m.read_bytes_per_s = d((all - few) * row) / d(whole - part) * 1e9;
      m.read_latency_ns = std::max<int64_t>(part - std::llround(d(few * row) / m.read_bytes_per_s * 1e9), 0);
    } else {
      m.read_bytes_per_s = d(all * row) / d(whole) * 1e9;
    }

    const int64_t copy_bytes = landed->size();
    DS_ASSIGN(auto there, backend_.allocate(copy_bytes, MemoryKind::kHost));
    DS_ASSIGN(int64_t copy, timed(4, [&] { compute_->copy(landed->data(), there->data(), copy_bytes); }));
    m.copy_bytes_per_s = d(copy_bytes) / d(copy) * 1e9;
    return measure_contention(m, [&](int64_t layer) { return read(layer, all); });
  }

  /// The reads of an entry, one after the other until told to end, on the link stream.
  struct Reads {
    std::function<Status(int64_t layer)> read;
    int64_t layers = 0;
    std::atomic<bool> end{false};
    std::vector<int64_t> times;
    Status status;

    static void run(void* context, int64_t) {
      auto& r = *static_cast<Reads*>(context);
      for (int64_t i = 0; !r.end && r.status.ok(); ++i) {
        int64_t begin = now_ns();
        r.status = r.read(i % r.layers);
        r.times.push_back(std::max<int64_t>(now_ns() - begin, 1));
      }
    }
  };

  Status measure_contention(MachineTimes& m, std::function<Status(int64_t)> read) {
    int64_t rows = std::min<int64_t>(longest_, 256);
    // Medians of a kernel's and a read's time; either may be left out.
    auto together = [&](bool kernels, bool transfers) -> Result<std::pair<double, double>> {
      Reads reads{read, config_.layers, false, {}, {}};
      if (transfers) link_->host({&Reads::run, &reads, 0});
      std::vector<int64_t> passes;
      Status status;
      for (int64_t begin = now_ns(); status.ok() && !stopped() && now_ns() - begin < 400'000'000;) {
        if (!kernels) {
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
          continue;
        }
        auto ns = pass({rows, rows, 0}, config_.layers);
        status = ns.status();
        if (ns.ok()) passes.push_back(*ns);
      }
      reads.end = true;
      DS_TRY(link_->synchronize());
      DS_TRY(status);
      DS_TRY(reads.status);
      return std::pair(passes.empty() ? 1.0 : d(median(passes)),
                       reads.times.empty() ? 1.0 : d(median(reads.times)));
    };
    DS_ASSIGN(auto kernel_alone, together(true, false));
    DS_ASSIGN(auto read_alone, together(false, true));
    DS_ASSIGN(auto both, together(true, true));
    m.kernel_slowdown_permille = excess(both.first, kernel_alone.first);
    m.transfer_slowdown_permille = excess(both.second, read_alone.second);
    return ok_status();
  }

  Backend& backend_;
  DeviceModel& model_;
  const ModelConfig& config_;
  const CalibrationOptions& options_;
  Calibration result_;
  int64_t started_;
  int64_t longest_ = 0, element_ = 0, next_layer_ = 0;
  std::unique_ptr<DeviceMemory> hidden_;
  std::vector<std::unique_ptr<DeviceMemory>> caches_;
  std::vector<std::pair<AlignTime, std::unique_ptr<DeviceMap>>> maps_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<CommandStream> compute_, link_;
  std::vector<std::unique_ptr<Event>> events_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

}  // namespace

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
  return Calibrator(backend, model, options, std::move(done)).run();
}

}  // namespace ds
