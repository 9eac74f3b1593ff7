// ds-bench's subcommands: one file each, registered in main.cpp.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tools/model_input.h"
#include "tools/tool.h"

namespace ds {

/// Adds a subcommand to `app`; the result runs it, once parsed.
using Bench = std::function<Status()>;
Bench add_load(CLI::App& app);
Bench add_make_model(CLI::App& app);
Bench add_attention(CLI::App& app);
Bench add_decode(CLI::App& app);
Bench add_prefill(CLI::App& app);
Bench add_ttft(CLI::App& app);
Bench add_overlap(CLI::App& app);
Bench add_kernels(CLI::App& app);
Bench add_plans(CLI::App& app);
Bench add_store(CLI::App& app);
// With the compiler only.
Bench add_agents(CLI::App& app);
Bench add_compile(CLI::App& app);
Bench add_dead_store(CLI::App& app);
Bench add_serve(CLI::App& app);
Bench add_http(CLI::App& app);
Bench add_sweep(CLI::App& app);
Bench add_quality(CLI::App& app);
Bench add_make_plans(CLI::App& app);

inline double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  size_t n = v.size();
  return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/// A model of a preset shape with random weights, and how to run it.
struct RandomModelOptions {
  std::string shape = "llama-1b", dtype = "bf16", json;
  int repeats = 3;
  BackendFlags on;
};

inline void add_random_model(CLI::App& cmd, RandomModelOptions& o) {
  cmd.add_option("--shape", o.shape,
                 "llama-1b, llama-8b, llama-8b:LAYERS, or spelled out: llama:layers=12,d=1024,...")
      ->capture_default_str();
  cmd.add_option("--dtype", o.dtype, "bf16 or f32")->capture_default_str();
  cmd.add_option("--repeats", o.repeats, "runs of each, interleaved; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  add_backend_flags(cmd, o.on);
  cmd.add_option("--json", o.json, "write figures to FILE; '-': stdout");
}

struct RandomModel {
  std::shared_ptr<Backend> backend;
  std::unique_ptr<DeviceModel> model;
  DType dtype = DType::kBF16;
};

inline Result<RandomModel> load_random_model(const RandomModelOptions& o, const ModelConfig& config) {
  RandomModel loaded;
  DS_ASSIGN(loaded.dtype, parse_dtype(o.dtype));
  DS_ASSIGN(loaded.backend, open_backend(o.on));
  ProgressBar bar("loading " + o.shape);
  LoadOptions load{loaded.dtype, [&](int64_t done, int64_t total) { bar.update(done, total); }};
  DS_ASSIGN(loaded.model, loaded.backend->load_random(config, load, 1));
  return loaded;
}

/// "20MB/s,8Gb/s" in bytes per second, as given.
inline Result<std::vector<int64_t>> parse_rate_list(const std::string& list) {
  std::vector<int64_t> rates;
  for (size_t begin = 0; begin <= list.size();) {
    size_t end = std::min(list.find(',', begin), list.size());
    DS_ASSIGN(double rate, parse_rate(list.substr(begin, end - begin)));
    rates.push_back(std::llround(rate));
    begin = end + 1;
  }
  return rates;
}

/// Token ids without a pattern.
inline std::vector<int32_t> scattered_ids(int64_t count, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(vocab));
  return ids;
}

}  // namespace ds
