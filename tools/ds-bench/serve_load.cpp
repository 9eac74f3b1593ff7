#include "tools/ds-bench/serve_load.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>
#include <random>
#include <sstream>
#include <thread>

#include "support/clock.h"

namespace ds {

void set_arrivals(std::vector<Arrival>& load, double rate, bool poisson, uint64_t seed) {
  std::mt19937_64 generator(seed);
  double at = 0;
  for (Arrival& a : load) {
    a.at_s = at;
    // The same on every platform, which std::exponential_distribution does not promise.
    const double u = (static_cast<double>(generator() >> 11) + 0.5) * 0x1p-53;
    at += (poisson ? -std::log(u) : 1) / rate;
  }
}

Result<std::vector<Arrival>> read_arrivals(const std::string& path, size_t receivers, size_t contexts,
                                           size_t questions) {
  std::ifstream file(path);
  if (!file) return error(Code::kNotFound, "the trace '{}' cannot be read", path);
  std::vector<Arrival> load;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    line = line.substr(0, line.find('#'));
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    std::istringstream in(line);
    Arrival a;
    std::string rest;
    if (!(in >> a.at_s >> a.receiver >> a.context >> a.question) || (in >> rest) || !(a.at_s >= 0) ||
        a.receiver >= receivers || a.context >= contexts || a.question >= questions ||
        (!load.empty() && a.at_s < load.back().at_s))
      return error(
          Code::kInvalidArgument,
          "{}:{}: '{}'; expected seconds (not before the line above), a receiver below {}, a context "
          "below {} and a question below {}",
          path, number, line, receivers, contexts, questions);
    load.push_back(a);
  }
  if (load.empty()) return error(Code::kInvalidArgument, "the trace '{}' has no requests", path);
  return load;
}

Summary Summary::of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  // As numpy's percentile: linear between neighbours.
  auto percentile = [&](double p) {
    const double at = p / 100 * static_cast<double>(values.size() - 1);
    const auto low = static_cast<size_t>(at);
    const size_t high = std::min(low + 1, values.size() - 1);
    return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
  };
  return {std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size()),
          percentile(50), percentile(90), percentile(99)};
}

Result<LoadFigures> run_load(Engine& engine, const std::vector<Arrival>& load, double slo_ttft_ms,
                             const std::function<EngineRequest(const Arrival&)>& make) {
  LoadFigures f;
  std::vector<std::shared_ptr<Ticket>> tickets;
  const auto start = std::chrono::steady_clock::now();
  const int64_t start_ns = now_ns();
  int64_t prompt = 0, output = 0;
  for (const Arrival& a : load) {
    EngineRequest request = make(a);
    std::this_thread::sleep_until(start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                              std::chrono::duration<double>(a.at_s)));
    auto ticket = engine.submit(std::move(request));
    if (ticket.ok())
      tickets.push_back(*ticket);
    else if (ticket.status().code() == Code::kExhausted)
      ++f.failed;
    else
      return ticket.status();
  }
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t good = 0;
  for (const auto& ticket : tickets) {
    auto answer = ticket->wait();
    if (!answer.ok()) return answer.status();
    ++f.completed;
    const auto& times = answer->token_ns;
    auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
    ttft.push_back(ms(times.front()));
    e2el.push_back(ms(times.back()));
    if (times.size() > 1)
      tpot.push_back(ms(times.back() - times.front()) / static_cast<double>(times.size() - 1));
    for (size_t i = 1; i < times.size(); ++i) itl.push_back(ms(times[i] - times[i - 1]));
    good += ttft.back() <= slo_ttft_ms ? 1 : 0;
    output += static_cast<int64_t>(times.size());
  }
  f.duration_s = static_cast<double>(now_ns() - start_ns) / 1e9;
  f.stats = engine.stats();
  prompt = f.stats.prompt_tokens;
  const double span = load.back().at_s;
  f.offered_rate = span > 0 ? static_cast<double>(load.size() - 1) / span : 0;
  f.request_throughput = static_cast<double>(f.completed) / f.duration_s;
  f.output_throughput = static_cast<double>(output) / f.duration_s;
  f.total_token_throughput = static_cast<double>(output + prompt) / f.duration_s;
  f.request_goodput = static_cast<double>(good) / f.duration_s;
  f.within_slo = static_cast<double>(good) / static_cast<double>(load.size());
  f.ttft = Summary::of(std::move(ttft));
  f.tpot = Summary::of(std::move(tpot));
  f.itl = Summary::of(std::move(itl));
  f.e2el = Summary::of(std::move(e2el));
  return f;
}

}  // namespace ds
