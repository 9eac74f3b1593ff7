// ds-bench http: what HTTP adds to the engine. One engine, in turns asked in the process and through
// ds-serve's server by streaming clients: the same requests, the same caches, the same times.
#include <dirent.h>

#include <condition_variable>
#include <ctime>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "serve/api.h"
#include "serve/http_server.h"
#include "serve/loaded_fleet.h"
#include "serve/prompt_context.h"
#include "support/clock.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/serve_load.h"
#include "tools/ds-bench/sse_clients.h"
#include "tools/host.h"

namespace ds {
namespace {

struct HttpOptions {
  std::string fleet, json;
  int64_t requests = 128, clients = 64, prompt = 64, answer = 64, rounds = 3, steps = 0;
  double slo_times = 5, rate = 0;
};

/// Processor time by thread.
std::map<std::string, int64_t> thread_ns() {
  std::map<std::string, int64_t> out;
  DIR* folder = opendir("/proc/self/task");
  if (folder == nullptr) return out;
  while (const dirent* entry = readdir(folder)) {
    std::ifstream file(std::string("/proc/self/task/") + entry->d_name + "/schedstat");
    int64_t ns = 0;
    if (file >> ns) out[entry->d_name] = ns;
  }
  closedir(folder);
  return out;
}

struct Run {
  LoadFigures figures;
  std::vector<double> added_ms;               // a client's time to its first token less the engine's
  double server_share = 0, client_share = 0;  // of the process's processor time
};

class Http {
 public:
  explicit Http(const HttpOptions& o) : o_(o) {}

  Status run() {
    DS_ASSIGN(Fleet given, Fleet::read(o_.fleet));
    given.host = "127.0.0.1";
    given.port = 0;
    given.certificate.clear();
    given.keys.clear();
    given.connections = std::max(given.connections, std::min<int64_t>(900, o_.requests));
    given.queue = std::max(given.queue, o_.requests);
    DS_ASSIGN(fleet_, LoadedFleet::load(std::move(given), {.cache = default_cache_folder()}));
    model_ = fleet_->models().front().get();
    const int64_t vocab = model_->checkpoint->config().vocab;
    std::mt19937_64 random(5);
    for (int64_t i = 0; i < o_.requests; ++i) {
      auto& ids = prompts_.emplace_back();
      for (int64_t k = 0; k < o_.prompt; ++k)
        ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
    }
    DS_ASSIGN([[maybe_unused]] const Run warm, in_process({}));  // threads start, memory is touched
    for (const auto& [thread, ns] : thread_ns()) engines_.insert(thread);
    Api api(*fleet_, {});
    DS_ASSIGN(const std::unique_ptr<HttpServer> server, HttpServer::create(fleet_->fleet(), api));
    port_ = std::stoi(server->url().substr(server->url().rfind(':') + 1));
    DS_TRY(server->start());
    DS_TRY(compare());
    server->stop();
    return ok_status();
  }

 private:
  /// Every run has a salt of its own: no run has what another left.
  std::string next_salt() { return fmt::format("run {}", runs_++); }

  EngineRequest request(size_t i, const std::string& salt) const {
    const auto& ids = prompts_[i];
    const int64_t context = shared_blocks(static_cast<int64_t>(ids.size()));
    EngineRequest r;
    r.receiver = model_->receiver;
    r.context.assign(ids.begin(), ids.begin() + context);
    r.suffix.assign(ids.begin() + context, ids.end());
    r.salt = salt;
    r.reuse = Reuse::kExact;
    r.max_new_tokens = o_.answer;
    return r;
  }

  Result<Run> in_process(const std::vector<double>& at_s) {
    const std::string salt = next_salt();
    std::mutex mutex;
    std::condition_variable ended;
    int64_t running = 0;
    std::vector<std::shared_ptr<Ticket>> tickets;
    const int64_t start = now_ns();
    for (size_t i = 0; i < prompts_.size(); ++i) {
      {
        std::unique_lock lock(mutex);
        if (at_s.empty()) ended.wait(lock, [&] { return running < o_.clients; });
        ++running;
      }
      if (!at_s.empty())
        std::this_thread::sleep_for(std::chrono::nanoseconds(start + std::llround(at_s[i] * 1e9) - now_ns()));
      EngineRequest r = request(i, salt);
      r.on_end = [&] {
        std::lock_guard lock(mutex);
        --running;
        ended.notify_one();
      };
      DS_ASSIGN(auto ticket, fleet_->engine().submit(std::move(r)));
      tickets.push_back(std::move(ticket));
    }
    LoadSum sum(slo_ms_);
    for (const auto& ticket : tickets) {
      auto answer = ticket->wait();
      if (!answer.ok()) return answer.status();
      sum.add(answer->token_ns);
    }
    const int64_t end = now_ns();
    fleet_->engine().drain();  // on_end is called behind wait()
    Run run;
    run.figures = sum.figures(static_cast<double>(end - start) / 1e9, {});
    return run;
  }

  Result<Run> through_http(const std::vector<double>& at_s) {
    const std::string salt = next_salt();
    std::vector<std::string> bodies;
    for (const auto& ids : prompts_)
      bodies.push_back(nlohmann::json{
          {"model", model_->given.name},
          {"prompt", ids},
          {"max_tokens", o_.answer},
          {"temperature", 0},
          {"ignore_eos", true},
          {"stream", true},
          {"return_token_ids", true},
          {"reuse", "exact"},
          {"cache_salt",
           salt}}.dump());
    const auto before = thread_ns();
    const int64_t start = now_ns();
    DS_ASSIGN(const SseRun got, run_sse_clients(port_, bodies, o_.clients, at_s));
    const double seconds = static_cast<double>(now_ns() - start) / 1e9;
    double all = 0, servers = 0;
    for (const auto& [thread, ns] : thread_ns()) {
      const auto was = before.find(thread);
      const auto used = static_cast<double>(ns - (was == before.end() ? 0 : was->second));
      all += used;
      if (!engines_.contains(thread)) servers += used;
    }
    Run run;
    LoadSum sum(slo_ms_);
    for (const SseAnswer& a : got.answers) {
      if (!a.good) {
        sum.fail();
        continue;
      }
      sum.add(a.token_ns);
      run.added_ms.push_back(static_cast<double>(a.token_ns.front()) / 1e6 - a.engine_ttft_ms);
    }
    run.figures = sum.figures(seconds, {});
    run.server_share = servers / all;
    run.client_share = static_cast<double>(got.processor_ns) / all;
    return run;
  }

  Result<Run> one(bool http, const std::vector<double>& at_s) {
    return http ? through_http(at_s) : in_process(at_s);
  }

  std::vector<double> times(double rate) const {
    std::vector<Arrival> load(prompts_.size());
    set_arrivals(load, rate, true, 3);
    std::vector<double> out;
    for (const Arrival& a : load) out.push_back(a.at_s);
    return out;
  }

  Status compare() {
    std::vector<double> at_s;
    if (o_.rate > 0) at_s = times(o_.rate);
    std::vector<double> tokens[2], ratios, servers, clients, added;
    nlohmann::ordered_json runs = nlohmann::ordered_json::array();
    for (int64_t round = 0; round < o_.rounds; ++round) {
      double now[2] = {};
      for (int turn = 0; turn < 2; ++turn) {
        const bool http = (round + turn) % 2 == 1;
        DS_ASSIGN(Run run, one(http, at_s));
        now[http] = run.figures.output_throughput;
        tokens[http].push_back(now[http]);
        auto json = run.figures.json();
        json.erase("engine");
        json["through"] = http ? "http" : "engine";
        json["request_rate"] = o_.rate;
        runs.push_back(std::move(json));
        if (http) {
          servers.push_back(100 * run.server_share);
          clients.push_back(100 * run.client_share);
          added.insert(added.end(), run.added_ms.begin(), run.added_ms.end());
          if (run.figures.failed > 0)
            fmt::print(stderr, "{} of {} requests failed\n", run.figures.failed, o_.requests);
        }
      }
      ratios.push_back(100 * (1 - now[1] / now[0]));
      fmt::print(stderr, "round {}: {:.1f} tokens/s in the process, {:.1f} through HTTP: {:+.1f} %\n",
                 round + 1, now[0], now[1], -ratios.back());
    }
    const Summary more = Summary::of(added);
    FILE* to = o_.json == "-" ? stderr : stdout;
    fmt::print(
        to,
        "{} requests of {} + {} tokens, {} clients, {} rounds in turns: {:.1f} tokens/s in the process, "
        "{:.1f} through HTTP: {:.1f} % less\n"
        "processor time: the server's threads {:.2f} %, its clients' {:.2f} % of all\n"
        "TTFT of clients less the engine's: {:.2f} ms median, {:.2f} ms of 90 %, {:.2f} ms of 99 %\n",
        o_.requests, o_.prompt, o_.answer, o_.clients, o_.rounds, median(tokens[0]), median(tokens[1]),
        median(ratios), median(servers), median(clients), more.median, more.p90, more.p99);
    nlohmann::ordered_json json = {{"version", kVersion},
                                   {"date", utc_date()},
                                   {"cpu", cpu_name()},
                                   {"requests", o_.requests},
                                   {"clients", o_.clients},
                                   {"prompt_tokens", o_.prompt},
                                   {"new_tokens", o_.answer},
                                   {"less_throughput_percent", median(ratios)},
                                   {"server_processor_percent", median(servers)},
                                   {"client_processor_percent", median(clients)},
                                   {"median_added_ttft_ms", more.median},
                                   {"p99_added_ttft_ms", more.p99},
                                   {"runs", std::move(runs)}};
    if (o_.steps > 0) {
      DS_ASSIGN(json["knees"], find_knees(median(tokens[0]) / static_cast<double>(o_.answer), to));
    }
    return o_.json.empty() ? ok_status() : write_file_atomically(o_.json, json.dump(1) + "\n");
  }

  /// The highest rates that are served, by bisection below what the closed loop has done.
  Result<nlohmann::ordered_json> find_knees(double most, FILE* to) {
    const auto all = std::exchange(prompts_, {prompts_[0]});
    DS_ASSIGN(const Run idle, in_process({}));
    prompts_ = all;
    slo_ms_ = o_.slo_times * idle.figures.ttft.median;
    double low[2] = {}, high[2] = {1.25 * most, 1.25 * most};
    auto runs = nlohmann::ordered_json::array();
    for (int64_t step = 0; step < o_.steps; ++step)
      for (int http = 0; http < 2; ++http) {
        const double rate = step == 0 ? most / 2 : (low[http] + high[http]) / 2;
        DS_ASSIGN(const Run run, one(http == 1, times(rate)));
        (run.figures.served() ? low : high)[http] = rate;
        auto json = run.figures.json();
        json.erase("engine");
        json["through"] = http == 1 ? "http" : "engine";
        json["request_rate"] = rate;
        runs.push_back(std::move(json));
        fmt::print(stderr, "{:<7} {:>6.2f} requests/s: {:>4.0f} % in time, TTFT {:.1f} / {:.1f} ms\n",
                   http == 1 ? "http" : "engine", rate, 100 * run.figures.within_slo, run.figures.ttft.median,
                   run.figures.ttft.p99);
      }
    fmt::print(
        to,
        "knee ({:.0f} % of first tokens within {:.0f} ms): {:.2f} requests/s in the process (next tried "
        "{:.2f}), {:.2f} through HTTP ({:.2f})\n",
        100 * kServedShare, slo_ms_, low[0], high[0], low[1], high[1]);
    return nlohmann::ordered_json{{"slo_ttft_ms", slo_ms_}, {"engine", low[0]},    {"engine_not", high[0]},
                                  {"http", low[1]},         {"http_not", high[1]}, {"runs", std::move(runs)}};
  }

  const HttpOptions& o_;
  std::unique_ptr<LoadedFleet> fleet_;
  ServedModel* model_ = nullptr;
  std::vector<std::vector<int32_t>> prompts_;
  std::set<std::string> engines_;  // threads that were there before the server
  int port_ = 0, runs_ = 0;
  double slo_ms_ = 1e12;
};

}  // namespace

Bench add_http(CLI::App& app) {
  auto o = std::make_shared<HttpOptions>();
  CLI::App* cmd =
      app.add_subcommand("http",
                         "what HTTP adds: the same requests to one engine, in turns in the process and "
                         "through ds-serve's server, "
                         "by streaming clients on a thread of this process; and, if asked, the knee of both");
  cmd->add_option("--fleet", o->fleet, "as ds-serve's; its first model is asked")->required();
  auto count = [&](const char* name, int64_t& to, const char* help, int64_t least = 1) {
    cmd->add_option(name, to, help)->capture_default_str()->check(CLI::Range(least, int64_t{1} << 20));
  };
  count("--requests", o->requests, "of a run");
  count("--clients", o->clients, "requests at a time");
  count("--prompt", o->prompt, "tokens of a prompt");
  count("--answer", o->answer, "tokens of an answer");
  count("--rounds", o->rounds, "runs of each, in turns; medians count");
  cmd->add_option("--rate", o->rate, "requests per second, arriving by chance, instead of so many at a time");
  count("--knee-steps", o->steps, "bisections of the arrival rate for the knee of each way; 0: none", 0);
  cmd->add_option("--slo-times", o->slo_times, "a knee's first tokens come within so many idle ones")
      ->capture_default_str();
  cmd->add_option("--json", o->json,
                  "write figures to FILE, named as vLLM's benchmark names them; '-': stdout");
  return [o] { return Http(*o).run(); };
}

}  // namespace ds
