// ds-bench prefill: tokens per second of a full prefill beside its FLOP bound.
#include <iostream>
#include <map>
#include <memory>

#include "plans/full_prefill.h"
#include "plans/work.h"
#include "runtime/core/session.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"

namespace ds {
namespace {

/// Floating-point operations that a full prefill of n tokens needs: in the last layer K and V of all tokens,
/// the rest of the last one only.
double prefill_flops(const Shape& shape, int64_t n) {
  LayerWork whole = layer_work(shape, {0, n, n}), last = layer_work(shape, {0, n, 1});
  double head = 2.0 * static_cast<double>(shape.d_model) * static_cast<double>(shape.vocab);
  return static_cast<double>(shape.layers - 1) * (whole.matmul + whole.attention) + last.matmul +
         last.attention + head;
}

struct PrefillOptions {
  RandomModelOptions model;
  std::string lengths = "512,2048,4096";
  bool profile = false, turns = false;
};

/// Where the time goes, means over all runs: a column per length.
struct PhaseTable {
  std::map<int64_t, PhaseTimes> times;
  std::map<int64_t, double> wall_ns;  // sums too
  int repeats = 1;

  double ms(double ns) const { return ns / 1e6 / repeats; }
  double between(int64_t n) {
    PhaseTimes& t = times[n];
    return static_cast<double>(t[Phase::kNorm] + t[Phase::kRope] + t[Phase::kSwiglu]);
  }
  double rest(int64_t n) {
    double known = 0;
    for (int64_t ns : times[n].ns) known += static_cast<double>(ns);
    return wall_ns[n] - known;
  }

  void print(const std::vector<int64_t>& lengths) {
    fmt::print(stderr, "\n{:<22}", "phase");
    for (int64_t n : lengths) fmt::print(stderr, " {:>10} tokens", n);
    fmt::print(stderr, "\n");
    auto line = [&](std::string_view name, auto ns) {
      fmt::print(stderr, "{:<22}", name);
      for (int64_t n : lengths)
        fmt::print(stderr, " {:>7.1f} ms {:>5.1f}%", ms(ns(n)), 100 * ns(n) / wall_ns[n]);
      fmt::print(stderr, "\n");
    };
    for (size_t i = 0; i < kPhases; ++i)
      line(kPhaseNames[i], [&](int64_t n) { return static_cast<double>(times[n].ns[i]); });
    line("everything else", [&](int64_t n) { return rest(n); });
    line("whole", [&](int64_t n) { return wall_ns[n]; });
    line("norm, rope, silu: sum", [&](int64_t n) { return between(n); });
  }

  nlohmann::ordered_json json(int64_t n) {
    nlohmann::ordered_json out;
    auto add = [&](std::string_view name, double ns) {
      out.push_back({{"phase", name}, {"ms", ms(ns)}, {"share", ns / wall_ns[n]}});
    };
    for (size_t i = 0; i < kPhases; ++i) add(kPhaseNames[i], static_cast<double>(times[n].ns[i]));
    add("everything else", rest(n));
    return out;
  }
};

Status bench_prefill(const PrefillOptions& options) {
  const RandomModelOptions& o = options.model;
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> lengths, parse_int_list(options.lengths, 1, config.max_positions - 1));
  DS_ASSIGN(RandomModel loaded, load_random_model(o, config));
  auto& [backend, model, dtype] = loaded;
  Plan plan = full_prefill_plan({}, config.shape(), o.dtype);
  DS_ASSIGN(auto session, Session::create(*backend, *model, plan, {lengths.back() - 1, 1, 1}));
  DS_TRY(session->warm_up());
  std::vector<int32_t> ids = scattered_ids(lengths.back(), config.vocab);

  std::map<int64_t, std::vector<double>> seconds;
  std::vector<double> peaks;
  PhaseTable phases;
  phases.repeats = o.repeats;
  auto measure = [&](int64_t n) -> Status {  // with the bound beside each: a shared machine drifts
    DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
    peaks.push_back(peak);
    Request request;
    request.context = std::span(ids).first(static_cast<size_t>(n - 1));
    request.suffix = std::span(ids).subspan(static_cast<size_t>(n - 1), 1);
    request.full_prefill = true;
    if (options.profile) model->set_profile(&phases.times[n]);
    DS_ASSIGN(Answer answer, session->run(request));
    model->set_profile(nullptr);
    phases.wall_ns[n] += static_cast<double>(answer.ttft_ns);
    seconds[n].push_back(static_cast<double>(answer.ttft_ns) / 1e9);
    return ok_status();
  };

  if (options.turns) {
    auto say = [](const nlohmann::ordered_json& line) { std::cout << line.dump() << std::endl; };
    say({{"ready", o.shape}, {"dtype", o.dtype}, {"backend", backend->description()}});
    for (std::string line; std::getline(std::cin, line);) {
      DS_ASSIGN(std::vector<int64_t> turn, parse_int_list(line, 1, lengths.back()));
      for (int64_t n : turn) {
        DS_TRY(measure(n));
        double s = seconds[n].back(), gflops = peaks.back() / 1e9;
        say({{"tokens", n},
             {"seconds", s},
             {"matmul_gflops", gflops},
             {"share", prefill_flops(config.shape(), n) / gflops / 1e9 / s}});
      }
    }
    return ok_status();
  }

  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(lengths.size()) * o.repeats;
  for (int r = 0; r < o.repeats; ++r) {
    for (int64_t n : lengths) {
      DS_TRY(measure(n));
      bar.update(++done, total);
    }
  }
  bar.finish();
  double peak = median(peaks);
  nlohmann::ordered_json out = {{"shape", o.shape},
                                {"dtype", o.dtype},
                                {"backend", backend->description()},
                                {"matmul_gflops", peak / 1e9},
                                {"repeats", o.repeats}};
  fmt::print(stderr, "{} {}, {}; one large matrix product: {:.0f} GFLOP/s\n", o.shape, o.dtype,
             backend->description(), peak / 1e9);
  fmt::print(stderr, "{:>8} {:>12} {:>12} {:>14} {:>8}\n", "tokens", "seconds", "tokens/s", "bound tokens/s",
             "share");
  for (int64_t n : lengths) {
    double s = median(seconds[n]), bound = prefill_flops(config.shape(), n) / peak;
    auto [low, high] = std::minmax_element(seconds[n].begin(), seconds[n].end());
    double tokens = static_cast<double>(n);
    fmt::print(stderr, "{:>8} {:>12.3f} {:>12.1f} {:>14.1f} {:>7.0f}%\n", n, s, tokens / s, tokens / bound,
               100 * bound / s);
    out["lengths"].push_back({{"tokens", n},
                              {"seconds", s},
                              {"seconds_min", *low},
                              {"seconds_max", *high},
                              {"tokens_per_second", tokens / s},
                              {"bound_tokens_per_second", tokens / bound},
                              {"share", bound / s}});
    if (options.profile) out["lengths"].back()["phases"] = phases.json(n);
  }
  if (options.profile) phases.print(lengths);
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_prefill(CLI::App& app) {
  auto o = std::make_shared<PrefillOptions>();
  CLI::App* cmd = app.add_subcommand("prefill", "tokens per second of a full prefill, random weights");
  add_random_model(*cmd, o->model);
  cmd->add_option("--lengths", o->lengths, "tokens")->capture_default_str();
  cmd->add_flag("--profile", o->profile, "also where the time goes, by phase, means over all runs");
  cmd->add_flag("--turns", o->turns,
                "measure when told to, in turns with another program: one line of standard input names a "
                "length (up to the longest of --lengths), one line of JSON answers");
  return [o] { return bench_prefill(*o); };
}

}  // namespace ds
