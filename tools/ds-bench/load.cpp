// ds-bench load: seconds from a model folder to a model ready to run, at a first start and at later ones.
#include <filesystem>
#include <memory>

#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/model_input.h"

namespace ds {
namespace {

struct LoadBenchOptions {
  std::string model, cache, dtype = "bf16", json;
  int repeats = 5;
  OpenOptions open;
  BackendFlags on;
};

struct Start {
  const char* name;
  bool cached, empty_before, verify;
  WeightCacheStatus expected;
  std::vector<double> seconds;
};

Status bench_load(const LoadBenchOptions& o) {
  namespace fs = std::filesystem;
  DS_TRY(check_open_options(o.open, {o.model}));
  std::string parent = o.cache.empty() ? default_cache_folder() : o.cache;
  if (parent.empty())
    return error(Code::kInvalidArgument, "give --weight-cache DIR: neither DROIDSPEAK_CACHE nor HOME is set");
  const std::string folder = fmt::format("{}/bench-{}", parent, getpid());
  struct Remove {
    const std::string& folder;
    ~Remove() {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  } remove{folder};
  Start starts[] = {
      {"no cache", false, false, false, WeightCacheStatus::kOff, {}},
      {"first start", true, true, false, WeightCacheStatus::kWritten, {}},
      {"second start", true, false, false, WeightCacheStatus::kHit, {}},
      {"second start, --verify-weights", true, false, true, WeightCacheStatus::kHit, {}},
  };
  ProgressBar bar("measuring");
  int64_t done = 0, weight_bytes = 0;
  std::string description;
  // The first round fills the page cache and does not count.
  for (int r = -1; r < o.repeats; ++r) {
    for (Start& start : starts) {
      std::error_code failed;
      if (start.empty_before) fs::remove_all(folder, failed);
      DS_ASSIGN(LoadedModel loaded,
                load_model(o.model, o.open, o.on, o.dtype,
                           {start.cached ? folder : "off", start.verify, /*quiet=*/true}));
      if (loaded.report.weight_cache != start.expected)
        return error(Code::kInternal, "{}: the weight cache was '{}', expected '{}': {}", start.name,
                     weight_cache_status_name(loaded.report.weight_cache),
                     weight_cache_status_name(start.expected), loaded.report.reason);
      if (r >= 0) start.seconds.push_back(loaded.load_seconds);
      weight_bytes = loaded.model->weight_bytes();
      description = loaded.backend->description();
      bar.update(++done, (o.repeats + 1) * static_cast<int64_t>(std::size(starts)));
    }
  }
  bar.finish();
  fmt::print(stderr, "{}, {}, {} packed; {}; page cache warm, median of {}\n", o.model, o.dtype,
             format_bytes(weight_bytes), description, o.repeats);
  nlohmann::ordered_json out = {{"model", o.model},       {"dtype", o.dtype},
                                {"backend", description}, {"packed_bytes", weight_bytes},
                                {"repeats", o.repeats},   {"starts", nlohmann::json::array()}};
  for (const Start& start : starts) {
    auto [low, high] = std::minmax_element(start.seconds.begin(), start.seconds.end());
    fmt::print(stderr, "{:<32} {:>8.3f} s  ({:.3f} to {:.3f})\n", start.name, median(start.seconds), *low,
               *high);
    out["starts"].push_back({{"start", start.name},
                             {"load_seconds", median(start.seconds)},
                             {"load_seconds_min", *low},
                             {"load_seconds_max", *high}});
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_load(CLI::App& app) {
  auto o = std::make_shared<LoadBenchOptions>();
  CLI::App* cmd =
      app.add_subcommand("load", "seconds until a model is ready, at a first start and at later ones");
  cmd->add_option("--model", o->model, "Hugging Face folder (see make-model)")->required();
  cmd->add_option("--weight-cache", o->cache,
                  "where packed weights go meanwhile; default: the folder that the tools use");
  cmd->add_option("--repeats", o->repeats, "interleaved; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--dtype", o->dtype, "bf16 or f32")->capture_default_str();
  add_open_options(*cmd, o->open);
  add_backend_flags(*cmd, o->on);
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_load(*o); };
}

}  // namespace ds
