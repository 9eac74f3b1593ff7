// A load of requests on an engine, and what came of it: the figures that vLLM's benchmark gives, under its
// names.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "support/status.h"

namespace ds {

/// One request of a load: when, for whom, over which context, which question.
struct Arrival {
  double at_s = 0;
  size_t receiver = 0, context = 0, question = 0;
};

/// A Poisson process of `rate` requests per second, or one of equal distances.
void set_arrivals(std::vector<Arrival>& load, double rate, bool poisson, uint64_t seed);
/// Lines of "seconds receiver context question", numbers from 0; '#' begins a comment.
Result<std::vector<Arrival>> read_arrivals(const std::string& path, size_t receivers, size_t contexts,
                                           size_t questions);

struct Summary {
  double mean = 0, median = 0, p90 = 0, p99 = 0;
  static Summary of(std::vector<double> values);
};

/// A rate is served where this share of first tokens comes within the SLO.
inline constexpr double kServedShare = 0.9;

/// Times in milliseconds.
struct LoadFigures {
  double offered_rate = 0;  // requests per second
  int64_t completed = 0, failed = 0;
  double duration_s = 0, request_throughput = 0, output_throughput = 0, total_token_throughput = 0;
  double request_goodput = 0;  // requests per second that kept the SLO
  double within_slo = 0;       // their share
  bool served() const { return within_slo >= kServedShare; }
  Summary ttft, tpot, itl, e2el;
  EngineStats stats;

  nlohmann::ordered_json json() const;
};

/// Adds a load's answers up.
class LoadSum {
 public:
  explicit LoadSum(double slo_ttft_ms) : slo_ttft_ms_(slo_ttft_ms) {}
  /// `token_ns`: from when the request was sent to each of its tokens.
  void add(std::span<const int64_t> token_ns);
  void fail() { ++figures_.failed; }
  LoadFigures figures(double duration_s, const EngineStats& stats);

 private:
  const double slo_ttft_ms_;
  LoadFigures figures_;
  std::vector<double> ttft_, tpot_, itl_, e2el_;
  int64_t good_ = 0, output_ = 0;
};

/// Submits the load at its times and waits for all of it. `make` gives the request of an arrival.
Result<LoadFigures> run_load(Engine& engine, const std::vector<Arrival>& load, double slo_ttft_ms,
                             const std::function<EngineRequest(const Arrival&)>& make);

/// One way of serving, over the rates that were tried.
struct ServeWay {
  std::string name;
  std::vector<LoadFigures> runs;  // by rate
  double knee = 0;                // the highest rate that was served within the SLO; 0: none
};

/// A page with TTFT, time per output token and time to the end, by rate (the paper's figure 15).
std::string draw_serve_html(const std::string& title, double slo_ttft_ms, const std::vector<ServeWay>& ways);

}  // namespace ds
