// ds-bench serve: many requests at once. Several receivers ask questions about contexts that another model
// has read; full prefills, a prefix cache per receiver, and plans answer the same requests, in turns.
#include <charconv>
#include <cmath>
#include <random>

#include "support/clock.h"
#include "support/json.h"
#include "tools/ds-bench/serve_load.h"
#include "tools/ds-bench/serve_models.h"
#include "tools/ds-bench/serve_trace.h"
#include "tools/host.h"

namespace ds {
namespace {

struct ServeOptions {
  ServeModelOptions models;
  int64_t contexts = 6, questions = 4, new_tokens = 32, batch = 32;
  double slo_times = 5, most_minutes = 20;
  std::string rates, html, arrivals = "poisson", ways = "prefill,prefix,plans", trace;
};

struct WayKindOf {
  const char *key, *name;
  Reuse reuse;
};
constexpr WayKindOf kServeWays[] = {{"prefill", "full prefill", Reuse::kOff},
                                    {"prefix", "prefix cache per receiver", Reuse::kExact},
                                    {"plans", "plans and prefix cache", Reuse::kAuto}};
constexpr double kRateStep = 1.5;
constexpr double kKneeWithin = 1.1;  // a knee is known when the next rate that was too much is so near

class Serve {
 public:
  explicit Serve(const ServeOptions& o) : o_(o) {}

  Status run() {
    DS_TRY(choose_ways());
    DS_TRY(read_load());
    DS_ASSIGN(models_, ServeModels::load(o_.models));
    DS_TRY(models_->publish_contexts(o_.contexts));
    for (int64_t q = 0; q < o_.questions; ++q)
      questions_.push_back(models_->ids(o_.models.suffix, 1000 + static_cast<uint64_t>(q)));
    DS_TRY(measure_idle());
    DS_TRY(measure());
    return report();
  }

 private:
  Status choose_ways() {
    std::string list = o_.ways + ",";
    for (size_t at = 0; at < list.size();) {
      const size_t end = list.find(',', at);
      const std::string key = list.substr(at, end - at);
      const auto found = std::find_if(std::begin(kServeWays), std::end(kServeWays),
                                      [&](const WayKindOf& w) { return key == w.key; });
      if (found == std::end(kServeWays))
        return error(Code::kInvalidArgument, "--ways has '{}'; known: prefill, prefix, plans", key);
      ways_.push_back({found->name, {}, 0});
      reuse_.push_back(found->reuse);
      at = end + 1;
    }
    return ok_status();
  }

  bool traced() const { return o_.arrivals != "poisson" && o_.arrivals != "constant"; }

  /// Before anything that takes long.
  Status read_load() {
    if (traced()) {
      DS_ASSIGN(trace_, read_arrivals(o_.arrivals, o_.models.count(), static_cast<size_t>(o_.contexts),
                                      static_cast<size_t>(o_.questions)));
    }
    for (size_t at = 0; !o_.rates.empty() && at <= o_.rates.size();) {
      const size_t end = std::min(o_.rates.find(',', at), o_.rates.size());
      double rate = 0;
      const auto text = o_.rates.substr(at, end - at);
      const auto [stop, failed] = std::from_chars(text.data(), text.data() + text.size(), rate);
      if (failed != std::errc{} || stop != text.data() + text.size() || !(rate > 0))
        return error(Code::kInvalidArgument, "--rates has '{}'; expected requests per second, as in 0.5,1,2",
                     text);
      rates_.push_back(rate);
      at = end + 1;
    }
    return ok_status();
  }

  Result<std::unique_ptr<Engine>> make_engine(bool warm, bool spans = false) {
    const int64_t tokens = o_.models.context + o_.models.suffix + o_.new_tokens;
    return warm ? models_->make_warm_engine(tokens, o_.batch, spans)
                : models_->make_engine(tokens, o_.batch, spans);
  }

  EngineRequest request(const Arrival& a, Reuse reuse) const {
    EngineRequest r;
    r.receiver = models_->served()[a.receiver];
    r.context = models_->contexts()[a.context];
    r.suffix = questions_[a.question];
    r.store = reuse == Reuse::kAuto ? &models_->store() : nullptr;
    r.reuse = reuse;
    r.link_rate = std::llround(models_->rate());
    r.max_new_tokens = o_.new_tokens;
    return r;
  }

  /// One request alone, each way: the SLO's measure, and what the knees can be expected to be.
  Status measure_idle() {
    for (size_t w = 0; w < ways_.size(); ++w) idle_ms_.push_back({});
    for (int round = 0; round < 4; ++round)
      for (size_t w = 0; w < ways_.size(); ++w) {
        DS_ASSIGN(auto engine, make_engine(true));
        // The first question costs what the way has to do, the second what its prefix cache saves.
        for (size_t question : {size_t{0}, size_t{1} % questions_.size()}) {
          DS_ASSIGN(auto ticket, engine->submit(request({0, 0, 0, question}, reuse_[w])));
          auto answer = ticket->wait();
          if (!answer.ok()) return answer.status();
          if (round == 0) continue;
          auto& times = idle_ms_[w];
          times[question == 0 ? 0 : 1].push_back(static_cast<double>(answer->ttft_ns) / 1e6);
          times[2].push_back(static_cast<double>(answer->decode_ns) / 1e6);
        }
      }
    full_ms_ = median(idle_ms_[0][0]);
    if (reuse_[0] != Reuse::kOff) {
      std::vector<double> full;
      for (int round = 0; round < 4; ++round) {
        DS_ASSIGN(auto engine, make_engine(false));
        DS_ASSIGN(auto ticket, engine->submit(request({0, 0, 0, 0}, Reuse::kOff)));
        auto answer = ticket->wait();
        if (!answer.ok()) return answer.status();
        if (round > 0) full.push_back(static_cast<double>(answer->ttft_ns) / 1e6);
      }
      full_ms_ = median(full);
    }
    slo_ms_ = o_.slo_times * full_ms_;
    return ok_status();
  }

  /// One way at one rate.
  Status measure(size_t w, double rate, std::vector<Arrival>& load) {
    if (!traced()) set_arrivals(load, rate, o_.arrivals == "poisson", 3);
    DS_ASSIGN(auto engine, make_engine(true, !o_.trace.empty()));
    DS_ASSIGN(LoadFigures f,
              run_load(*engine, load, slo_ms_, [&](const Arrival& a) { return request(a, reuse_[w]); }));
    if (!traced()) f.offered_rate = rate;
    if (f.served()) ways_[w].knee = std::max(ways_[w].knee, f.offered_rate);
    fmt::print(stderr,
               "{:<26} {:>7.2f} offered {:>7.2f} served  TTFT {:>7.0f} / {:>7.0f}  TBT {:>6.1f} / {:>6.1f}  "
               "E2E {:>7.0f}  {:>4.0f} % in time\n",
               ways_[w].name, f.offered_rate, f.request_throughput, f.ttft.median, f.ttft.p99, f.itl.median,
               f.itl.p99, f.e2el.median, 100 * f.within_slo);
    if (!o_.trace.empty()) DS_TRY(write_trace(*engine, o_.trace));
    auto& runs = ways_[w].runs;
    const auto at = std::upper_bound(runs.begin(), runs.end(), f.offered_rate,
                                     [](double r, const LoadFigures& x) { return r < x.offered_rate; });
    runs.insert(at, std::move(f));
    return ok_status();
  }

  /// The next rate to look for a way's knee at: upward until one is too much, then between the last that was
  /// served and the first that was not. 0: the knee is known.
  double next_rate(const ServeWay& way, double start) const {
    if (way.runs.empty()) return start;
    const auto over = std::ranges::find_if_not(way.runs, &LoadFigures::served);
    if (over == way.runs.end()) return way.runs.back().offered_rate * kRateStep;
    const double high = over->offered_rate;
    if (over == way.runs.begin()) return high > start / 8 ? high / kRateStep : 0;
    const double low = std::prev(over)->offered_rate;
    return high > low * kKneeWithin ? std::sqrt(low * high) : 0;
  }

  Status measure() {
    std::vector<Arrival> load;
    if (traced()) {
      load = trace_;
    } else {
      for (size_t r = 0; r < models_->receivers(); ++r)
        for (size_t c = 0; c < models_->contexts().size(); ++c)
          for (size_t q = 0; q < questions_.size(); ++q) load.push_back({0, r, c, q});
      std::mt19937_64 random(7);
      for (size_t i = load.size(); i-- > 1;) std::swap(load[i], load[random() % (i + 1)]);
    }
    // Below what a full prefill alone can do, where every way should hold.
    const double start = 500 / (full_ms_ + median(idle_ms_[0][2]) / 4);
    const int64_t deadline = now_ns() + static_cast<int64_t>(o_.most_minutes * 60e9);
    fmt::print(stderr, "{} requests a run; a first token within {:.0f} ms ({:g} x an idle full prefill)\n",
               load.size(), slo_ms_, o_.slo_times);
    if (traced()) rates_ = {1};
    for (double rate : rates_)
      for (size_t w = 0; w < ways_.size(); ++w) DS_TRY(measure(w, rate, load));
    for (bool searching = rates_.empty(); searching;) {
      searching = false;
      for (size_t w = 0; w < ways_.size(); ++w) {
        const double rate = next_rate(ways_[w], start);
        if (rate == 0) continue;
        if (now_ns() > deadline) {
          fmt::print(stderr, "stopped after {:g} minutes (--most-minutes): knees are known less well\n",
                     o_.most_minutes);
          return ok_status();
        }
        DS_TRY(measure(w, rate, load));
        searching = true;
      }
    }
    return ok_status();
  }

  Status report() {
    using Json = nlohmann::ordered_json;
    FILE* to = o_.models.model.json == "-" ? stderr : stdout;
    const std::string title =
        fmt::format("{} receivers, {} contexts of {} tokens, {} questions each; {}, {}", models_->receivers(),
                    o_.contexts, o_.models.context, o_.questions, o_.models.what(), models_->description());
    const std::string plan = models_->plan_text();
    const double rate = models_->rate(), even = models_->break_even();
    fmt::print(to, "{}\nlink {} ({:.1f} x break-even), plan: {}\n", title, format_rate(rate), rate / even,
               plan);
    fmt::print(to, "{:<26} {:>12} {:>12} {:>12} {:>10} {:>8}\n", "way", "idle, first", "idle, next",
               "decoding", "knee", "ratio");
    for (size_t w = 0; w < ways_.size(); ++w)
      fmt::print(to, "{:<26} {:>9.1f} ms {:>9.1f} ms {:>9.1f} ms {:>8.2f}/s {:>8}\n", ways_[w].name,
                 median(idle_ms_[w][0]), idle_ms_[w][1].empty() ? NAN : median(idle_ms_[w][1]),
                 median(idle_ms_[w][2]), ways_[w].knee,
                 ways_[0].knee > 0 ? fmt::format("{:.2f}x", ways_[w].knee / ways_[0].knee) : "");
    if (!o_.html.empty()) DS_TRY(write_file_atomically(o_.html, draw_serve_html(title, slo_ms_, ways_)));
    if (o_.models.model.json.empty()) return ok_status();
    Json ways = Json::array();
    for (size_t w = 0; w < ways_.size(); ++w) {
      Json runs = Json::array();
      for (const LoadFigures& f : ways_[w].runs) runs.push_back(f.json());
      ways.push_back({{"way", ways_[w].name},
                      {"idle_first_ttft_ms", median(idle_ms_[w][0])},
                      {"idle_decode_ms", median(idle_ms_[w][2])},
                      {"knee_requests_per_s", ways_[w].knee},
                      {"runs", std::move(runs)}});
      if (!idle_ms_[w][1].empty()) ways.back()["idle_next_ttft_ms"] = median(idle_ms_[w][1]);
    }
    const Json json = {{"version", kVersion},
                       {"date", utc_date()},
                       {"cpu", cpu_name()},
                       {"backend", models_->description()},
                       {"shape", o_.models.what()},
                       {"receivers", models_->receivers()},
                       {"contexts", o_.contexts},
                       {"questions", o_.questions},
                       {"context_tokens", o_.models.context},
                       {"suffix_tokens", o_.models.suffix},
                       {"new_tokens", o_.new_tokens},
                       {"arrivals", o_.arrivals},
                       {"plan", plan},
                       {"link_bytes_per_s", rate},
                       {"break_even_bytes_per_s", even},
                       {"slo_ttft_ms", slo_ms_},
                       {"served_share", kServedShare},
                       {"ways", std::move(ways)}};
    return write_file_atomically(o_.models.model.json, json.dump(1) + "\n");
  }

  const ServeOptions& o_;
  std::unique_ptr<ServeModels> models_;
  std::vector<std::vector<int32_t>> questions_;
  std::vector<Arrival> trace_;
  std::vector<double> rates_;
  std::vector<Reuse> reuse_;  // by way
  std::vector<ServeWay> ways_;
  std::vector<std::array<std::vector<double>, 3>> idle_ms_;  // by way: first question, next one, decoding
  double full_ms_ = 0, slo_ms_ = 0;
};

}  // namespace

Bench add_serve(CLI::App& app) {
  auto o = std::make_shared<ServeOptions>();
  CLI::App* cmd =
      app.add_subcommand("serve",
                         "many requests at once: receivers that ask about contexts which another model has "
                         "read; full prefills, a "
                         "prefix cache per receiver, and plans, over rates of arrival up to the knee");
  add_serve_models(*cmd, o->models);
  cmd->remove_option(cmd->get_option("--repeats"));
  auto count = [&](const char* name, int64_t& to, const char* help, int64_t most) {
    cmd->add_option(name, to, help)->capture_default_str()->check(CLI::Range(int64_t{1}, most));
  };
  count("--contexts", o->contexts, "contexts that are asked about", 4096);
  count("--questions", o->questions, "of each receiver about each context", 4096);
  count("--new-tokens", o->new_tokens, "tokens of an answer", 65536);
  count("--batch", o->batch, "requests worked on at a time", 4096);
  cmd->add_option("--ways", o->ways, "of prefill, prefix, plans")->capture_default_str();
  cmd->add_option("--rates", o->rates, "requests per second; default: up to the knee of each way");
  cmd->add_option("--arrivals", o->arrivals,
                  "poisson, constant, or a file of lines 'seconds receiver context question'")
      ->capture_default_str();
  cmd->add_option("--slo-times", o->slo_times, "first tokens within so many idle full prefills")
      ->capture_default_str();
  cmd->add_option("--most-minutes", o->most_minutes, "no new rate is begun after them")
      ->capture_default_str();
  cmd->add_option("--html", o->html, "write a page with pictures to FILE");
  cmd->add_option("--trace", o->trace, "write link and compute of the last run to FILE, as a Chrome trace");
  return [o] { return Serve(*o).run(); };
}

}  // namespace ds
