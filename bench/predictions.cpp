// Do predicted times come true? Runs full prefills, chunked recomputations and requests over a shaped link on
// a model of random weights, at lengths that were not measured, beside what the cost model says of them.
//
//   predictions MACHINE.json SHAPE [LENGTHS]
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>

#include "compiler/lowering/lower_tiles.h"
#include "compiler/scheduling/schedulers.h"
#include "plans/full_prefill.h"
#include "runtime/core/session.h"
#include "runtime/store/entry.h"

namespace ds {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

int64_t median(std::vector<int64_t> v) {
  std::sort(v.begin(), v.end());
  return v[v.size() / 2];
}

int cells = 0, close_cells = 0;

void report(const std::string& what, int64_t n, double predicted, int64_t measured,
            const Coverage* coverage) {
  double error = 100 * (static_cast<double>(measured) / predicted - 1);
  ++cells;
  if (std::abs(error) <= 10) ++close_cells;
  fmt::print("{:<26} {:>6} {:>10.2f} {:>10.2f} {:>+7.1f} %  {}\n", what, n, predicted / 1e6,
             static_cast<double>(measured) / 1e6, error, coverage != nullptr ? coverage->note() : "");
  std::fflush(stdout);
}

/// Operations in the order of a schedule; `ttft_ns` is its length.
Result<Variant> scheduled(Variant v, const CostModel& costs, const TunedPoint& at, int64_t& ttft_ns) {
  for (Op& op : v.ops) op.duration_ns = costs.duration_ns(op, at);
  DS_ASSIGN(Schedule s, schedule(problem_of(v, costs.machine().releases()), "e-first"));
  std::vector<size_t> order(v.ops.size()), index(v.ops.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return s.start_ns[a] < s.start_ns[b]; });
  for (size_t k = 0; k < order.size(); ++k) index[order[k]] = k;
  std::vector<Op> ops;
  for (size_t i : order) {
    Op op = v.ops[i];
    op.start_ns = s.start_ns[i];
    for (int32_t& w : op.waits) w = static_cast<int32_t>(index[static_cast<size_t>(w)]);
    std::sort(op.waits.begin(), op.waits.end());
    ops.push_back(std::move(op));
  }
  v.ops = std::move(ops);
  v.name = "v0";
  ttft_ns = s.cost_ns;
  return v;
}

struct Check {
  const CostModel& costs;
  Backend& backend;
  DeviceModel& model;
  const Shape shape;
  int64_t suffix = 16;
  std::vector<int32_t> ids;

  Request request(int64_t n) {
    Request r;
    r.context = std::span(ids).first(static_cast<size_t>(n));
    r.suffix = std::span(ids).subspan(static_cast<size_t>(n), static_cast<size_t>(suffix));
    return r;
  }

  Status full_prefill(int64_t n) {
    Plan plan = full_prefill_plan({}, shape, std::string(dtype_name(model.dtype())));
    DS_ASSIGN(auto session, Session::create(backend, model, plan, {n, suffix, 1}));
    DS_TRY(session->warm_up());
    std::vector<int64_t> times;
    for (int i = 0; i < (n > 4096 ? 2 : 4); ++i) {
      Request r = request(n);
      r.full_prefill = true;
      DS_ASSIGN(Answer answer, session->run(r));
      times.push_back(answer.ttft_ns);
    }
    TunedPoint at{.tokens = n, .suffix = suffix, .rate = 1};
    double predicted = 0;
    for (const Op& op : plan.full_prefill.ops) predicted += costs.duration(op, at).ns;
    Coverage coverage = costs.coverage(plan.full_prefill, at);
    report("full prefill", n, predicted, median(times), &coverage);
    return ok_status();
  }

  /// All layers over the context, chunk by chunk upward.
  Status chunked(int64_t n, int64_t chunks) {
    int64_t element = dtype_size(model.dtype());
    DS_ASSIGN(auto hidden, backend.allocate(n * shape.d_model * element));
    std::vector<std::unique_ptr<DeviceMemory>> caches;
    for (int64_t l = 0; l < shape.layers; ++l) {
      DS_ASSIGN(auto cache, backend.allocate(n * shape.kv_row() * element));
      caches.push_back(std::move(cache));
    }
    DS_ASSIGN(auto workspace, model.make_workspace(n));
    DS_ASSIGN(auto stream, backend.make_stream(StreamKind::kCompute, (shape.layers + 1) * chunks + 8));
    std::vector<int64_t> times;
    double predicted = 0;
    for (int i = 0; i < 4; ++i) {
      int64_t begin = now_ns();
      predicted = 0;
      for (int64_t c = 0; c < chunks; ++c) {
        int64_t first = chunk_begin(n, chunks, c), rows = chunk_begin(n, chunks, c + 1) - first;
        std::byte* row = hidden->data() + first * shape.d_model * element;
        model.embed(*stream, ids.data() + first, rows, row);
        for (int64_t l = 0; l < shape.layers; ++l) {
          model.layer(*stream, *workspace,
                      {l, row, caches[static_cast<size_t>(l)]->data(), first, rows, rows});
          predicted += costs.layer_ns(rows, rows, first);
        }
      }
      DS_TRY(stream->synchronize());
      if (i > 0) times.push_back(now_ns() - begin);
    }
    report(fmt::format("{} chunks", chunks), n, predicted, median(times), nullptr);
    return ok_status();
  }

  /// A third of the layers recomputed, from a cut; the rest and the cut over a link of `rate`.
  Status linked(int64_t n, double rate, Store& plain, Store& shaped) {
    auto first = static_cast<int32_t>(shape.layers / 3),
         last = static_cast<int32_t>(2 * shape.layers / 3 - 1);
    std::vector<Tile> tiles = {{Mode::kLoad, 0, first - 1, 0, 0, false},
                               {Mode::kRecompute, first, last, 0, 0, true},
                               {Mode::kLoad, last + 1, static_cast<int32_t>(shape.layers - 1), 0, 0, false}};
    TunedPoint at{.tokens = n, .suffix = suffix, .rate = static_cast<int64_t>(rate)};
    int64_t predicted = 0;
    Plan plan = full_prefill_plan({}, shape, std::string(dtype_name(model.dtype())));
    plan.sender.fingerprint = std::string(64, 'a');
    DS_ASSIGN(Variant v, scheduled(lower_tiles(tiles, shape.layers, 1, false), costs, at, predicted));
    v.tiles = tiles;
    plan.variants = {std::move(v)};

    Request r = request(n);
    EntryIdentity identity{plan.sender.fingerprint, hash_tokens(r.context), "", n, model.dtype()};
    int64_t element = dtype_size(model.dtype());
    std::vector<std::byte> bytes(static_cast<size_t>(n * std::max(shape.kv_row(), shape.e_row()) * element));
    std::vector<EntrySource> sources;
    auto part = [&](int64_t row) { return std::span(bytes).first(static_cast<size_t>(n * row * element)); };
    sources.push_back({TensorKind::kE, first, part(shape.e_row())});
    for (int32_t l = 0; l < shape.layers; ++l) sources.push_back({TensorKind::kKv, l, part(shape.kv_row())});
    DS_TRY(write_entry(plain, identity, plan.sender, shape, sources));

    DS_ASSIGN(auto session, Session::create(backend, model, plan, {n, suffix, 1}));
    DS_TRY(session->warm_up());
    r.store = &shaped;
    r.link_rate = at.rate;
    std::vector<int64_t> times;
    for (int i = 0; i < 4; ++i) {
      DS_ASSIGN(Answer answer, session->run(r));
      if (answer.cache != CacheStatus::kHit) return answer.miss;
      if (i > 0) times.push_back(answer.ttft_ns);
    }
    Coverage coverage = costs.coverage(plan.variants[0], at);
    report(fmt::format("a third at {}", format_rate(rate)), n, static_cast<double>(predicted), median(times),
           &coverage);
    return ok_status();
  }
};

Status run(int argc, char** argv) {
  if (argc < 3) return error(Code::kInvalidArgument, "usage: predictions MACHINE.json SHAPE [LENGTHS]");
  DS_ASSIGN(MachineModel machine, MachineModel::read(argv[1]));
  DS_ASSIGN(ModelConfig config, preset_config(argv[2]));
  DS_ASSIGN(std::vector<int64_t> lengths, parse_int_list(argc > 3 ? argv[3] : "300,750,1500,3000,6000,12000",
                                                         64, config.max_positions - 16));
  DS_TRY(machine.check_shape(argv[1], config.shape()));
  DS_ASSIGN(auto backend, make_cpu_backend());
  DS_ASSIGN(Checkpoint checkpoint, Checkpoint::random(config, 1));
  DS_ASSIGN(auto model, backend->load(checkpoint, {machine.dtype, {}}));
  CostModel costs(machine, config.shape());
  Check check{costs, *backend, *model, config.shape(), 16, {}};
  check.ids.resize(static_cast<size_t>(lengths.back() + check.suffix));
  for (size_t i = 0; i < check.ids.size(); ++i)
    check.ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.vocab));

  std::string folder = std::filesystem::temp_directory_path().string() + "/predictions-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return error(Code::kIo, "cannot make the folder '{}'", folder);
  auto all = [&]() -> Status {
    DS_ASSIGN(auto plain, open_store("file:" + folder));
    fmt::print("{:<26} {:>6} {:>10} {:>10} {:>9}\n", "what", "tokens", "predicted", "measured", "error");
    for (int64_t n : lengths) {
      DS_TRY(check.full_prefill(n));
      for (int64_t chunks : {2, 4, 8})
        if (n / chunks >= 64 && n <= 3000) DS_TRY(check.chunked(n, chunks));
      if (n > 3000) continue;
      // About where loading a layer takes as long as recomputing it, and to both sides.
      double even = static_cast<double>(n * config.kv_row() * dtype_size(machine.dtype)) /
                    costs.layer_ns(n, n, 0) * 1e9;
      for (double times : {0.3, 1.0, 3.0}) {
        double rate = std::max(1e6, std::round(even * times / 1e6) * 1e6);
        DS_ASSIGN(auto under, open_store("file:" + folder));
        auto shaped = shape_link(std::move(under), {rate, 0});
        DS_TRY(check.linked(n, rate, *plain, *shaped));
      }
    }
    fmt::print("{} of {} within 10 %\n", close_cells, cells);
    return ok_status();
  };
  Status status = all();
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
  return status;
}

}  // namespace
}  // namespace ds

int main(int argc, char** argv) {
  ds::Status status = ds::run(argc, argv);
  if (!status.ok()) fmt::print(stderr, "predictions: error: {}\n", status.message());
  return ds::exit_code(status.code());
}
