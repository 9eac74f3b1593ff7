// ds-bench serve: many requests at once. Several receivers ask questions about contexts that another model
// has read; full prefills, a prefix cache per receiver, and plans answer the same requests, in turns.
#include <charconv>
#include <cmath>
#include <random>

#include "compiler/compile.h"
#include "compiler/scheduling/cost_model.h"
#include "runtime/core/publish.h"
#include "runtime/engine/engine.h"
#include "support/clock.h"
#include "support/json.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/measured_machine.h"
#include "tools/ds-bench/rounds.h"
#include "tools/ds-bench/serve_load.h"
#include "tools/ds-bench/synthetic_pair.h"

namespace ds {
namespace {

struct ServeOptions {
  RandomModelOptions model{.shape = "llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000", .repeats = 1};
  int64_t receivers = 3, contexts = 6, questions = 4, context = 1024, suffix = 16, new_tokens = 32,
          batch = 32;
  double slo_loss = 4, slo_times = 5, link_times = 4, calibrate_s = 20, step_budget_ms = 30, cache_gib = 2;
  std::string link_rate, rates, machine, html, arrivals = "poisson", ways = "prefill,prefix,plans", trace;
  double most_minutes = 20;
};

struct WayKindOf {
  const char *key, *name;
  Reuse reuse;
};
constexpr WayKindOf kServeWays[] = {{"prefill", "full prefill", Reuse::kOff},
                                    {"prefix", "prefix cache per receiver", Reuse::kExact},
                                    {"plans", "plans and prefix cache", Reuse::kAuto}};
/// A rate is served where this share of first tokens comes within the SLO.
constexpr double kServed = 0.9;
constexpr double kRateStep = 1.25;

class Serve {
 public:
  explicit Serve(const ServeOptions& o) : o_(o) {}

  Status run() {
    DS_ASSIGN(ModelConfig config, preset_config(o_.model.shape));
    DS_TRY(choose_ways());
    DS_TRY(read_load());
    DS_ASSIGN(loaded_, load_random_model(o_.model, config));
    DS_ASSIGN(MachineModel machine,
              measured_machine(o_.model, loaded_, o_.machine, {o_.context}, o_.suffix, o_.calibrate_s));
    CostModel costs(machine, config.shape());
    const double even = static_cast<double>(o_.context * config.kv_row() * dtype_size(loaded_.dtype)) /
                        costs.layer_ns(o_.context, o_.context, 0) * 1e9;
    rate_ = o_.link_times * even;
    if (!o_.link_rate.empty()) {
      DS_ASSIGN(rate_, parse_rate(o_.link_rate));
    }
    CompileInputs inputs = synthetic_inputs(config, machine);
    sender_ = inputs.pair.sender;
    ProgressBar bar("loading receivers");
    for (int64_t r = 0; r < o_.receivers; ++r) {
      DS_TRY(add_receiver(config, inputs, r));
      bar.update(r + 1, o_.receivers);
    }
    DS_TRY(publish_contexts(config));
    for (int64_t q = 0; q < o_.questions; ++q)
      questions_.push_back(ids(config, o_.suffix, 1000 + static_cast<uint64_t>(q)));
    DS_TRY(measure_idle());
    DS_TRY(measure());
    return report(even);
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
      DS_ASSIGN(trace_, read_arrivals(o_.arrivals, static_cast<size_t>(o_.receivers),
                                      static_cast<size_t>(o_.contexts), static_cast<size_t>(o_.questions)));
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

  static std::vector<int32_t> ids(const ModelConfig& config, int64_t count, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<int32_t> out(static_cast<size_t>(count));
    for (auto& id : out) id = static_cast<int32_t>(random() % static_cast<uint64_t>(config.vocab));
    return out;
  }

  Status add_receiver(const ModelConfig& config, CompileInputs inputs, int64_t r) {
    auto one = std::make_unique<One>();
    DS_ASSIGN(one->model,
              loaded_.backend->load_random(config, {loaded_.dtype}, 100 + static_cast<uint64_t>(r)));
    const std::string name = fmt::format("receiver {}", r);
    one->identity = {.name = name,
                     .fingerprint = sha256_hex(name + config.canonical()),
                     .config = sha256_hex(config.canonical()),
                     .weights = sha256_hex(name),
                     .tokenizer = ""};
    inputs.pair.receiver = one->identity;
    CompileOptions options;
    options.slo_loss = o_.slo_loss;
    options.context_lengths = std::to_string(o_.context);
    options.link_rates = fmt::format("{}B/s", std::llround(rate_));
    options.suffix_length = o_.suffix;
    options.compiler_version = kVersion;
    DS_ASSIGN(CompileOutput out, compile(inputs, options));
    one->plan = std::move(*out.plan);
    receivers_.push_back(std::move(one));
    return ok_status();
  }

  Status publish_contexts(const ModelConfig& config) {
    DS_TRY(folder_.make("ds-serve"));
    DS_ASSIGN(auto store, open_store("file:" + folder_.path + "/store"));
    std::vector<const Plan*> plans;
    for (const auto& r : receivers_) plans.push_back(&r->plan);
    ProgressBar bar("publishing contexts");
    for (int64_t c = 0; c < o_.contexts; ++c) {
      contexts_.push_back(ids(config, o_.context, 1 + static_cast<uint64_t>(c)));
      DS_ASSIGN([[maybe_unused]] Published entry,
                publish(*loaded_.backend, *loaded_.model, sender_, contexts_.back(), *store,
                        {.cuts = cuts_of(plans)}));
      bar.update(c + 1, o_.contexts);
    }
    store_ = shape_link(std::move(store), {rate_, 0});
    return ok_status();
  }

  Result<std::unique_ptr<Engine>> make_engine(bool spans = false) {
    EngineLimits limits{.cache_bytes = static_cast<int64_t>(o_.cache_gib * 0x1p30),
                        .tokens = o_.context + o_.suffix + o_.new_tokens,
                        .batch = o_.batch,
                        .queue = 1 << 20,
                        .step_budget_ns = std::llround(o_.step_budget_ms * 1e6),
                        .record_spans = spans};
    DS_ASSIGN(auto engine, Engine::create(*loaded_.backend, limits));
    served_.clear();
    for (const auto& r : receivers_) {
      std::vector<ReceiverPlan> plans{{&r->plan, nullptr}};
      DS_ASSIGN(auto receiver, Receiver::create(r->identity.name, *r->model, r->identity, plans));
      DS_ASSIGN(const Receiver* added, engine->add(std::move(receiver)));
      served_.push_back(added);
    }
    return engine;
  }

  EngineRequest request(const Arrival& a, Reuse reuse) const {
    EngineRequest r;
    r.receiver = served_[a.receiver];
    r.context = contexts_[a.context];
    r.suffix = questions_[a.question];
    r.store = reuse == Reuse::kAuto ? store_.get() : nullptr;
    r.reuse = reuse;
    r.link_rate = std::llround(rate_);
    r.max_new_tokens = o_.new_tokens;
    return r;
  }

  /// One request alone, each way: the SLO's measure, and what the knees can be expected to be.
  Status measure_idle() {
    for (size_t w = 0; w < ways_.size(); ++w) idle_ms_.push_back({});
    for (int round = 0; round < 4; ++round)
      for (size_t w = 0; w < ways_.size(); ++w) {
        DS_ASSIGN(auto engine, make_engine());
        DS_ASSIGN(auto warm, engine->submit(request({0, 0, 0, 0}, Reuse::kOff)));
        if (auto answer = warm->wait(); !answer.ok()) return answer.status();
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
        DS_ASSIGN(auto engine, make_engine());
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

  Status measure() {
    std::vector<Arrival> load;
    if (traced()) {
      load = trace_;
    } else {
      for (size_t r = 0; r < receivers_.size(); ++r)
        for (size_t c = 0; c < contexts_.size(); ++c)
          for (size_t q = 0; q < questions_.size(); ++q) load.push_back({0, r, c, q});
      std::mt19937_64 random(7);
      for (size_t i = load.size(); i-- > 1;) std::swap(load[i], load[random() % (i + 1)]);
    }
    const bool search = rates_.empty() && !traced();
    // Below what a full prefill alone can do, where every way should hold.
    const double start = 500 / (full_ms_ + median(idle_ms_[0][2]) / 4);
    const int64_t deadline = now_ns() + static_cast<int64_t>(o_.most_minutes * 60e9);
    fmt::print(stderr, "{} requests a run; a first token within {:.0f} ms ({:g} x an idle full prefill)\n",
               load.size(), slo_ms_, o_.slo_times);
    std::vector<bool> over(ways_.size(), false);
    for (int step = 0;; ++step) {
      double rate = search     ? start * std::pow(kRateStep, step)
                    : traced() ? 1
                               : rates_[static_cast<size_t>(step)];
      if (!traced()) set_arrivals(load, rate, o_.arrivals == "poisson", 3);
      for (size_t w = 0; w < ways_.size(); ++w) {
        if (over[w]) continue;
        DS_ASSIGN(auto engine, make_engine(!o_.trace.empty()));
        DS_ASSIGN(auto warm, engine->submit(request({0, 0, 0, 0}, Reuse::kOff)));
        if (auto answer = warm->wait(); !answer.ok()) return answer.status();
        DS_ASSIGN(LoadFigures f,
                  run_load(*engine, load, slo_ms_, [&](const Arrival& a) { return request(a, reuse_[w]); }));
        if (!traced()) f.offered_rate = rate;
        const bool served = f.within_slo >= kServed;
        if (served) ways_[w].knee = f.offered_rate;
        over[w] = search && !served;
        fmt::print(
            stderr,
            "{:<26} {:>7.2f} offered {:>7.2f} served  TTFT {:>7.0f} / {:>7.0f}  TBT {:>6.1f} / {:>6.1f}  "
            "E2E {:>7.0f}  {:>4.0f} % in time\n",
            ways_[w].name, f.offered_rate, f.request_throughput, f.ttft.median, f.ttft.p99, f.itl.median,
            f.itl.p99, f.e2el.median, 100 * f.within_slo);
        if (!o_.trace.empty()) DS_TRY(write_trace(*engine));
        ways_[w].runs.push_back(std::move(f));
      }
      if (search ? std::all_of(over.begin(), over.end(), [](bool b) { return b; })
                 : traced() || step + 1 == static_cast<int>(rates_.size()))
        break;
      if (now_ns() > deadline) {
        fmt::print(stderr,
                   "stopped after {:g} minutes (--most-minutes): knees not reached are at least these\n",
                   o_.most_minutes);
        break;
      }
    }
    return ok_status();
  }

  /// Of the run that was last.
  Status write_trace(Engine& engine) {
    using Json = nlohmann::ordered_json;
    Json events = Json::array();
    const char* tracks[] = {"link", "copy", "compute"};
    for (int t : {0, 2}) {
      events.push_back(
          {{"name", "process_name"}, {"ph", "M"}, {"pid", t + 1}, {"args", {{"name", tracks[t]}}}});
    }
    for (const EngineSpan& s : engine.take_spans())
      events.push_back({{"name", s.request == 0 ? s.what : fmt::format("#{} {}", s.request, s.what)},
                        {"cat", tracks[static_cast<int>(s.stream)]},
                        {"ph", "X"},
                        {"pid", static_cast<int>(s.stream) + 1},
                        {"tid", 1},
                        {"ts", static_cast<double>(s.start_ns) / 1e3},
                        {"dur", static_cast<double>(s.end_ns - s.start_ns) / 1e3},
                        {"args", {{"request", s.request}}}});
    return write_file_atomically(o_.trace, Json{{"traceEvents", std::move(events)}}.dump() + "\n");
  }

  Status report(double even) {
    using Json = nlohmann::ordered_json;
    FILE* to = o_.model.json == "-" ? stderr : stdout;
    const std::string title =
        fmt::format("{} receivers, {} contexts of {} tokens, {} questions each; {}, {}", o_.receivers,
                    o_.contexts, o_.context, o_.questions, o_.model.shape, loaded_.backend->description());
    const Variant* v = select_variant(receivers_[0]->plan, o_.context, std::llround(rate_));
    const std::string plan = v == nullptr
                                 ? "none"
                                 : fmt::format("{}, {} of {} layers recomputed", v->way,
                                               recomputed_layers(*v), receivers_[0]->plan.shape.layers);
    fmt::print(to, "{}\nlink {} ({:.1f} x break-even), plan: {}\n", title, format_rate(rate_), rate_ / even,
               plan);
    fmt::print(to, "{:<26} {:>12} {:>12} {:>12} {:>10} {:>8}\n", "way", "idle, first", "idle, next",
               "decoding", "knee", "ratio");
    for (size_t w = 0; w < ways_.size(); ++w)
      fmt::print(to, "{:<26} {:>9.1f} ms {:>9.1f} ms {:>9.1f} ms {:>8.2f}/s {:>8}\n", ways_[w].name,
                 median(idle_ms_[w][0]), idle_ms_[w][1].empty() ? NAN : median(idle_ms_[w][1]),
                 median(idle_ms_[w][2]), ways_[w].knee,
                 ways_[0].knee > 0 ? fmt::format("{:.2f}x", ways_[w].knee / ways_[0].knee) : "");
    if (!o_.html.empty()) DS_TRY(write_file_atomically(o_.html, draw_serve_html(title, slo_ms_, ways_)));
    if (o_.model.json.empty()) return ok_status();
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
                       {"backend", loaded_.backend->description()},
                       {"shape", o_.model.shape},
                       {"receivers", o_.receivers},
                       {"contexts", o_.contexts},
                       {"questions", o_.questions},
                       {"context_tokens", o_.context},
                       {"suffix_tokens", o_.suffix},
                       {"new_tokens", o_.new_tokens},
                       {"arrivals", o_.arrivals},
                       {"plan", plan},
                       {"link_bytes_per_s", rate_},
                       {"break_even_bytes_per_s", even},
                       {"slo_ttft_ms", slo_ms_},
                       {"served_share", kServed},
                       {"ways", std::move(ways)}};
    return write_file_atomically(o_.model.json, json.dump(1) + "\n");
  }

  struct One {
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
    Plan plan;
  };
  const ServeOptions& o_;
  TemporaryFolder folder_;
  RandomModel loaded_;  // the sender
  ModelIdentity sender_;
  std::vector<std::unique_ptr<One>> receivers_;
  std::vector<const Receiver*> served_;  // of the engine made last
  std::unique_ptr<Store> store_;
  std::vector<std::vector<int32_t>> contexts_, questions_;
  std::vector<Arrival> trace_;
  std::vector<double> rates_;
  std::vector<Reuse> reuse_;  // by way
  std::vector<ServeWay> ways_;
  std::vector<std::array<std::vector<double>, 3>> idle_ms_;  // by way: first question, next one, decoding
  double rate_ = 0, full_ms_ = 0, slo_ms_ = 0;
};

}  // namespace

Bench add_serve(CLI::App& app) {
  auto o = std::make_shared<ServeOptions>();
  CLI::App* cmd =
      app.add_subcommand("serve",
                         "many requests at once: receivers that ask about contexts which another model has "
                         "read; full prefills, a "
                         "prefix cache per receiver, and plans, over rates of arrival up to the knee");
  add_random_model(*cmd, o->model);
  cmd->remove_option(cmd->get_option("--repeats"));
  auto count = [&](const char* name, int64_t& to, const char* help, int64_t most) {
    cmd->add_option(name, to, help)->capture_default_str()->check(CLI::Range(int64_t{1}, most));
  };
  count("--receivers", o->receivers, "models that answer", 64);
  count("--contexts", o->contexts, "contexts that are asked about", 4096);
  count("--questions", o->questions, "of each receiver about each context", 4096);
  count("--context-length", o->context, "tokens of a context", 1 << 20);
  count("--suffix-length", o->suffix, "tokens of a question", 65536);
  count("--new-tokens", o->new_tokens, "tokens of an answer", 65536);
  count("--batch", o->batch, "requests worked on at a time", 4096);
  cmd->add_option("--ways", o->ways, "of prefill, prefix, plans")->capture_default_str();
  cmd->add_option("--rates", o->rates, "requests per second; default: up to the knee of each way");
  cmd->add_option("--arrivals", o->arrivals,
                  "poisson, constant, or a file of lines 'seconds receiver context question'")
      ->capture_default_str();
  cmd->add_option("--link-rate", o->link_rate, "of the store; default: a multiple of break-even");
  cmd->add_option("--link-times", o->link_times, "which one")->capture_default_str();
  cmd->add_option("--slo-times", o->slo_times, "first tokens within so many idle full prefills")
      ->capture_default_str();
  cmd->add_option("--slo-loss", o->slo_loss, "points that may be lost, of the synthetic profile's 30")
      ->capture_default_str();
  cmd->add_option("--step-budget-ms", o->step_budget_ms, "of plan ops beside decoding")
      ->capture_default_str();
  cmd->add_option("--cache-gib", o->cache_gib, "memory for caches")->capture_default_str();
  cmd->add_option("--machine", o->machine, "machine.json of this shape; default: measured here");
  cmd->add_option("--calibrate-s", o->calibrate_s, "seconds to measure the machine for")
      ->capture_default_str();
  cmd->add_option("--most-minutes", o->most_minutes, "no new rate is begun after them")
      ->capture_default_str();
  cmd->add_option("--html", o->html, "write a page with pictures to FILE");
  cmd->add_option("--trace", o->trace, "write link and compute of the last run to FILE, as a Chrome trace");
  return [o] { return Serve(*o).run(); };
}

}  // namespace ds
