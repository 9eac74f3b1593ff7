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

void LoadSum::add(std::span<const int64_t> token_ns) {
  auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
  ++figures_.completed;
  ttft_.push_back(ms(token_ns.front()));
  e2el_.push_back(ms(token_ns.back()));
  if (token_ns.size() > 1)
    tpot_.push_back(ms(token_ns.back() - token_ns.front()) / static_cast<double>(token_ns.size() - 1));
  for (size_t i = 1; i < token_ns.size(); ++i) itl_.push_back(ms(token_ns[i] - token_ns[i - 1]));
  good_ += ttft_.back() <= slo_ttft_ms_ ? 1 : 0;
  output_ += static_cast<int64_t>(token_ns.size());
}

LoadFigures LoadSum::figures(double duration_s, const EngineStats& stats) {
  LoadFigures f = std::exchange(figures_, {});
  f.stats = stats;
  f.duration_s = duration_s;
  f.request_throughput = static_cast<double>(f.completed) / duration_s;
  f.output_throughput = static_cast<double>(output_) / duration_s;
  f.total_token_throughput = static_cast<double>(output_ + stats.prompt_tokens) / duration_s;
  f.request_goodput = static_cast<double>(good_) / duration_s;
  f.within_slo = static_cast<double>(good_) / static_cast<double>(f.completed + f.failed);
  f.ttft = Summary::of(std::move(ttft_));
  f.tpot = Summary::of(std::move(tpot_));
  f.itl = Summary::of(std::move(itl_));
  f.e2el = Summary::of(std::move(e2el_));
  return f;
}

Result<LoadFigures> run_load(Engine& engine, const std::vector<Arrival>& load, double slo_ttft_ms,
                             const std::function<EngineRequest(const Arrival&)>& make) {
  LoadSum sum(slo_ttft_ms);
  std::vector<std::shared_ptr<Ticket>> tickets;
  const auto start = std::chrono::steady_clock::now();
  const int64_t start_ns = now_ns();
  for (const Arrival& a : load) {
    EngineRequest request = make(a);
    std::this_thread::sleep_until(start + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                              std::chrono::duration<double>(a.at_s)));
    auto ticket = engine.submit(std::move(request));
    if (ticket.ok())
      tickets.push_back(*ticket);
    else if (ticket.status().code() == Code::kExhausted)
      sum.fail();
    else
      return ticket.status();
  }
  for (const auto& ticket : tickets) {
    auto answer = ticket->wait();
    if (!answer.ok()) return answer.status();
    sum.add(answer->token_ns);
  }
  LoadFigures f = sum.figures(static_cast<double>(now_ns() - start_ns) / 1e9, engine.stats());
  const double span = load.back().at_s;
  f.offered_rate = span > 0 ? static_cast<double>(load.size() - 1) / span : 0;
  return f;
}

nlohmann::ordered_json LoadFigures::json() const {
  nlohmann::ordered_json j = {{"request_rate", offered_rate},
                              {"completed", completed},
                              {"failed", failed},
                              {"duration", duration_s},
                              {"request_throughput", request_throughput},
                              {"request_goodput", request_goodput},
                              {"within_slo", within_slo},
                              {"output_throughput", output_throughput},
                              {"total_token_throughput", total_token_throughput}};
  const std::pair<const char*, const Summary*> figures[] = {
      {"ttft", &ttft}, {"tpot", &tpot}, {"itl", &itl}, {"e2el", &e2el}};
  for (const auto& [name, s] : figures) {
    j[fmt::format("mean_{}_ms", name)] = s->mean;
    j[fmt::format("median_{}_ms", name)] = s->median;
    j[fmt::format("p90_{}_ms", name)] = s->p90;
    j[fmt::format("p99_{}_ms", name)] = s->p99;
  }
  const EngineStats& s = stats;
  j["engine"] = {{"steps", s.steps},
                 {"entry_hits", s.entry_hits},
                 {"entry_misses", s.entry_misses},
                 {"repaired", s.entry_repairs},
                 {"prompt_tokens", s.prompt_tokens},
                 {"cached_tokens", s.cached_tokens},
                 {"new_tokens", s.new_tokens},
                 {"link_bytes", s.link_bytes},
                 {"link_busy_s", static_cast<double>(s.link_busy_ns) / 1e9},
                 {"compute_busy_s", static_cast<double>(s.compute_busy_ns) / 1e9},
                 {"peak_bytes", s.peak_bytes},
                 {"evictions", s.evictions}};
  return j;
}

}  // namespace ds
