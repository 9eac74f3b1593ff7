// ds-bench sweep: do predictions come true? Every way to a first token, over context lengths and link rates,
// measured beside what the compiler promised.
#include <cmath>

#include "compiler/policy/policy.h"
#include "compiler/scheduling/cost_model.h"
#include "plans/simulate.h"
#include "runtime/core/chain.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "support/clock.h"
#include "support/json.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/measured_machine.h"
#include "tools/ds-bench/rounds.h"
#include "tools/ds-bench/sweep_result.h"
#include "tools/ds-bench/synthetic_pair.h"

namespace ds {
namespace {

struct SweepOptions {
  RandomModelOptions model{.shape = "llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000", .repeats = 5};
  std::string lengths = "256,512,1024,2048,4096", rates, machine, html, store, set_rate;
  int64_t suffix = 16, chunks = 16;
  double slo_loss = 4, budget_s = 600, calibrate_s = 45;
};

/// A way to a first token: what ds-compile is asked for. The last one takes the product plan as it is.
struct SweepWay {
  const char *name, *policy, *schedule;
};
constexpr SweepWay kWays[] = {{"full prefill", "full-prefill", "best"},
                              {"full reuse", "full-reuse", "best"},
                              {"serial", "droidspeak", "serial"},
                              {"kv-preload", "droidspeak", "kv-preload"},
                              {"e-first", "droidspeak", "e-first"},
                              {"best", "droidspeak", "best"},
                              {"cake", "cake", "best"},
                              {"balanced", "balanced", "best"},
                              {"plan", nullptr, nullptr}};
/// Medians this far apart may be the machine's noise.
constexpr double kNoise = 0.03;
constexpr int kLeastRepeats = 3;

struct Prepared {
  SweepCell cell;
  std::vector<Plan> plans;  // by way
  double seconds = 0;       // predicted, of one run of each way
};

class Sweep {
 public:
  explicit Sweep(const SweepOptions& o) : o_(o) {}

  Status run() {
    DS_ASSIGN(ModelConfig config, preset_config(o_.model.shape));
    DS_ASSIGN(lengths_, parse_int_list(o_.lengths, 64, config.max_positions - o_.suffix));
    if (o_.store.empty() != o_.set_rate.empty())
      return error(Code::kInvalidArgument,
                   "--store and --set-rate belong together: a store behind a real link, and the command that "
                   "gives the link a rate");
    DS_TRY(folder_.make("ds-sweep"));
    store_url_ = o_.store.empty() ? "file:" + folder_.path + "/store" : o_.store;
    DS_ASSIGN(loaded_, load_random_model(o_.model, config));
    DS_ASSIGN(machine_, measured_machine(o_.model, loaded_, o_.machine, lengths_, o_.suffix, o_.calibrate_s));
    DS_TRY(choose_rates(config));
    if (!o_.store.empty()) DS_TRY(measure_look_up(config));
    inputs_ = synthetic_inputs(config, machine_);
    DS_ASSIGN(product_, compile_way({"plan", "balanced", "best"}, o_.lengths, kDefaultLinkRates));
    ids_ = scattered_ids(lengths_.back() + o_.suffix, config.vocab);
    DS_TRY(prepare());
    fit_budget();
    DS_TRY(measure());
    return report();
  }

 private:
  Status set_rate(int64_t rate) const {
    if (o_.set_rate.empty()) return ok_status();
    std::string command = o_.set_rate;
    for (size_t at = 0; (at = command.find("{}", at)) != std::string::npos;)
      command.replace(at, 2, std::to_string(rate));
    const int code = std::system(command.c_str());
    return code == 0 ? ok_status()
                     : error(Code::kInvalidArgument, "--set-rate: '{}' ended with {}", command, code);
  }

  /// What a look-up takes over that link, round trips and all, for the predictions.
  Status measure_look_up(const ModelConfig& config) {
    DS_TRY(set_rate(rates_.back()));
    DS_ASSIGN(auto store, open_store(store_url_));
    const std::vector<int32_t> ids = scattered_ids(lengths_.front(), config.vocab);
    const ModelIdentity sender{.name = "looked up", .fingerprint = std::string(64, 'f')};
    DS_ASSIGN(Published entry, publish(*loaded_.backend, *loaded_.model, sender, ids, *store, {}));
    std::vector<double> times;
    for (int i = 0; i < 21; ++i) {
      const int64_t start = now_ns();
      DS_ASSIGN(Chain chain,
                find_chain(*store, ids, {sender.fingerprint, config.shape(), "", loaded_.dtype}));
      times.push_back(static_cast<double>(now_ns() - start));
    }
    machine_.lookup_ns = std::llround(median(times));
    return store->remove(entry.key);
  }

  /// Around the rate at which a layer is loaded as fast as it is recomputed, at the middle length.
  Status choose_rates(const ModelConfig& config) {
    int64_t n = lengths_[lengths_.size() / 2];
    CostModel costs(machine_, config.shape());
    even_ =
        static_cast<double>(n * config.kv_row() * dtype_size(loaded_.dtype)) / costs.layer_ns(n, n, 0) * 1e9;
    if (o_.rates.empty()) {
      for (double times : {0.4, 0.7, 1.2, 2.0, 4.0, 16.0})
        rates_.push_back(std::llround(std::max(even_ * times / 1e5, 1.0)) * 100'000);
      return ok_status();
    }
    DS_ASSIGN(rates_, parse_rate_list(o_.rates));
    return ok_status();
  }

  Result<Plan> compile_way(const SweepWay& way, const std::string& lengths, const std::string& rates) {
    CompileInputs inputs = inputs_;
    CompileOptions options;
    options.policy = way.policy;
    options.schedule = way.schedule;
    DS_ASSIGN(const PolicyTraits* policy, find_policy(way.policy));
    if (policy->chooses) options.slo_loss = o_.slo_loss;
    if (!policy->may_lose) inputs.quality.reset();
    options.context_lengths = lengths;
    options.link_rates = rates;
    options.suffix_length = o_.suffix;
    options.chunks = o_.chunks;
    options.compiler_version = kVersion;
    auto out = compile(inputs, options);
    if (!out.ok()) return out.status().with_context(fmt::format("way '{}'", way.name));
    return std::move(*out->plan);
  }

  /// Every cell's plans and predictions.
  Status prepare() {
    for (int64_t n : lengths_) {
      for (int64_t rate : rates_) {
        Prepared p{.cell = {n, rate, {}}};
        for (const SweepWay& way : kWays) {
          if (way.policy == nullptr) {
            p.plans.push_back(product_);
          } else {
            DS_ASSIGN(Plan plan, compile_way(way, std::to_string(n), fmt::format("{}B/s", rate)));
            p.plans.push_back(std::move(plan));
          }
          const Plan& plan = p.plans.back();
          const Variant* v = select_variant(plan, n, rate);
          if (v == nullptr) return error(Code::kInternal, "no variant for {} tokens at {} B/s", n, rate);
          SweepRun run{.way = way.name,
                       .what = v->name,
                       .keeps_promise = v->promise.quality_loss <= o_.slo_loss,
                       .predicted_ns = predicted_ttft_ns(plan, *v, {n, o_.suffix, rate})};
          if (way.policy != nullptr) run.lower_bound_ns = v->lower_bound_ns;
          run.what = fmt::format("{}, {} of {} layers recomputed, {} chunks", v->policy,
                                 recomputed_layers(*v), plan.shape.layers, v->chunks);
          p.seconds += static_cast<double>(run.predicted_ns) / 1e9;
          p.cell.runs.push_back(std::move(run));
        }
        prepared_.push_back(std::move(p));
      }
    }
    return ok_status();
  }

  int repeats_of(const Prepared& p) const {
    // Short runs scatter more, and cost less.
    return std::clamp(static_cast<int>(10 / p.seconds), std::min(kLeastRepeats, o_.model.repeats),
                      o_.model.repeats);
  }
  /// One more round warms up.
  double cost_of(const Prepared& p) const { return p.seconds * (repeats_of(p) + 1); }

  void fit_budget() {
    double total = 0;
    for (const Prepared& p : prepared_) total += cost_of(p);
    while (total > o_.budget_s && prepared_.size() > 1) {
      auto dearest = std::max_element(prepared_.begin(), prepared_.end(),
                                      [](const auto& a, const auto& b) { return a.seconds < b.seconds; });
      total -= cost_of(*dearest);
      left_out_.push_back(dearest->cell);
      prepared_.erase(dearest);
    }
    total_s_ = total;
  }

  Status measure() {
    DS_ASSIGN(auto plain, open_store(store_url_));
    ProgressBar bar("measuring");
    double done = 0;
    int64_t published = 0;
    EntryIdentity identity;
    for (Prepared& p : prepared_) {
      const int64_t n = p.cell.tokens;
      std::span<const int32_t> context = std::span(ids_).first(static_cast<size_t>(n));
      if (published != n) {
        if (published != 0) DS_TRY(plain->remove(identity.key()));
        DS_ASSIGN([[maybe_unused]] Published entry,
                  publish(*loaded_.backend, *loaded_.model, inputs_.pair.sender, context, *plain,
                          {.cuts = cuts_at(n)}));
        identity = {inputs_.pair.sender.fingerprint, hash_tokens(context), "", n, loaded_.dtype};
        published = n;
      }
      DS_ASSIGN(auto under, open_store(store_url_));
      DS_TRY(set_rate(p.cell.rate));
      auto shaped = o_.store.empty() ? shape_link(std::move(under), {static_cast<double>(p.cell.rate), 0})
                                     : std::move(under);
      std::vector<Contender> contenders;
      for (size_t w = 0; w < p.plans.size(); ++w) {
        auto make = [this, n, plan = &p.plans[w]] {
          return Session::create(*loaded_.backend, *loaded_.model, *plan, {n, o_.suffix, 1});
        };
        contenders.push_back({.name = p.cell.runs[w].way, .make_session = make});
      }
      Request request;
      request.context = context;
      request.suffix = std::span(ids_).subspan(static_cast<size_t>(n), static_cast<size_t>(o_.suffix));
      request.store = shaped.get();
      request.link_rate = p.cell.rate;
      auto progress = [&](const Contender& c) {
        done += static_cast<double>(p.cell.find(c.name)->predicted_ns) / 1e9;
        bar.update(static_cast<int64_t>(done * 1e3), static_cast<int64_t>(total_s_ * 1e3));
      };
      DS_TRY(run_rounds(contenders, request, {repeats_of(p), progress}));
      for (size_t w = 0; w < contenders.size(); ++w)
        p.cell.runs[w].measured_ns = figures(contenders[w], &Answer::ttft_ns);
      cells_.push_back(std::move(p.cell));
      p.plans.clear();
    }
    return ok_status();
  }

  std::vector<Cut> cuts_at(int64_t tokens) const {
    std::vector<const Plan*> plans;
    for (const Prepared& p : prepared_)
      if (p.cell.tokens == tokens)
        for (const Plan& plan : p.plans) plans.push_back(&plan);
    return cuts_of(plans);
  }

  Status report() {
    using Json = nlohmann::ordered_json;
    FILE* to = o_.model.json == "-" ? stderr : stdout;
    std::string title =
        fmt::format("{}, {}, {}", o_.model.shape, o_.model.dtype, loaded_.backend->description());
    fmt::print(to, "{}\na layer is loaded as fast as recomputed at {}\n", title, format_rate(even_));
    fmt::print(to, "{:>6} {:>11}  {:<13} {:>12} {:>12} {:>8} {:>12} {:>9}\n", "tokens", "link", "way",
               "predicted", "measured", "error", "lower bound", "above it");
    int64_t close = 0, all = 0, slower = 0, compared = 0;
    std::vector<double> above, regret;
    Json cells = Json::array();
    for (const SweepCell& cell : cells_) {
      Json runs = Json::array();
      int64_t quickest = INT64_MAX;
      for (const SweepRun& run : cell.runs) {
        if (run.keeps_promise) quickest = std::min(quickest, run.median_ns());
        ++all;
        if (std::abs(run.error()) <= 0.1) ++close;
        double over = run.lower_bound_ns > 0
                          ? static_cast<double>(run.median_ns()) / static_cast<double>(run.lower_bound_ns)
                          : 0;
        fmt::print(to, "{:>6} {:>11}  {:<13} {:>9.2f} ms {:>9.2f} ms {:>+6.1f} % {:>12} {:>9}\n", cell.tokens,
                   format_rate(static_cast<double>(cell.rate)), run.way,
                   static_cast<double>(run.predicted_ns) / 1e6, static_cast<double>(run.median_ns()) / 1e6,
                   100 * run.error(),
                   over > 0 ? fmt::format("{:.2f} ms", static_cast<double>(run.lower_bound_ns) / 1e6) : "",
                   over > 0 ? fmt::format("{:+.1f} %", 100 * (over - 1)) : "");
        runs.push_back({{"way", run.way},
                        {"what", run.what},
                        {"keeps_promise", run.keeps_promise},
                        {"predicted_ns", run.predicted_ns},
                        {"lower_bound_ns", run.lower_bound_ns},
                        {"median_ns", run.median_ns()},
                        {"measured_ns", run.measured_ns}});
      }
      const SweepRun& best = *cell.find("best");
      above.push_back(static_cast<double>(best.median_ns()) / static_cast<double>(best.lower_bound_ns) - 1);
      for (const char* baseline : {"serial", "kv-preload", "e-first"}) {
        ++compared;
        if (static_cast<double>(best.median_ns()) <=
            static_cast<double>(cell.find(baseline)->median_ns()) * (1 + kNoise))
          continue;
        ++slower;
        fmt::print(to, "       best is slower than {} here\n", baseline);
      }
      regret.push_back(static_cast<double>(cell.find("plan")->median_ns()) / static_cast<double>(quickest) -
                       1);
      cells.push_back({{"tokens", cell.tokens}, {"rate_bytes_per_s", cell.rate}, {"runs", std::move(runs)}});
    }
    auto worst = [](const std::vector<double>& v) {
      return v.empty() ? 0 : *std::max_element(v.begin(), v.end());
    };
    auto middle = [](const std::vector<double>& v) { return v.empty() ? 0 : median(v); };
    double share = all > 0 ? static_cast<double>(close) / static_cast<double>(all) : 0;
    auto near = std::count_if(regret.begin(), regret.end(), [](double r) { return r <= kNoise; });
    fmt::print(to, "predictions within 10 %: {} of {} ({:.0f} %)\n", close, all, 100 * share);
    fmt::print(to, "best above its lower bound: median {:+.1f} %, most {:+.1f} %\n", 100 * middle(above),
               100 * worst(above));
    fmt::print(to, "best slower than serial, kv-preload or e-first by more than {:.0f} %: {} of {}\n",
               100 * kNoise, slower, compared);
    fmt::print(
        to,
        "the plan's variant within {:.0f} % of the quickest way that keeps the promise: {} of {}; at most "
        "{:.1f} % slower\n",
        100 * kNoise, near, regret.size(), 100 * worst(regret));
    if (!left_out_.empty())
      fmt::print(to, "{} cells did not fit into {:g} s; --budget-s gives more time\n", left_out_.size(),
                 o_.budget_s);
    if (!o_.html.empty()) DS_TRY(write_file_atomically(o_.html, draw_sweep_html(title, cells_)));
    if (o_.model.json.empty()) return ok_status();
    Json left_out = Json::array();
    for (const SweepCell& cell : left_out_)
      left_out.push_back({{"tokens", cell.tokens}, {"rate_bytes_per_s", cell.rate}});
    Json json = {{"version", kVersion},
                 {"date", utc_date()},
                 {"cpu", cpu_name()},
                 {"backend", loaded_.backend->description()},
                 {"shape", o_.model.shape},
                 {"dtype", o_.model.dtype},
                 {"suffix_tokens", o_.suffix},
                 {"most_chunks", o_.chunks},
                 {"link", o_.store.empty() ? "shaped in the process" : "a real one"},
                 {"slo_loss", o_.slo_loss},
                 {"break_even_bytes_per_s", std::round(even_)},
                 {"lookup_ns", machine_.lookup_ns},
                 {"wakeup_ns", machine_.wakeup_ns},
                 {"kernel_slowdown_permille", machine_.kernel_slowdown_permille},
                 {"kernel_ns_per_transfer", machine_.kernel_ns_per_transfer},
                 {"within_10_percent", {{"runs", close}, {"of", all}}},
                 {"best_above_bound", {{"median", middle(above)}, {"most", worst(above)}}},
                 {"best_slower_than_a_baseline", {{"runs", slower}, {"of", compared}, {"beyond", kNoise}}},
                 {"plan_slower_than_quickest", {{"median", middle(regret)}, {"most", worst(regret)}}},
                 {"cells", std::move(cells)},
                 {"left_out", std::move(left_out)}};
    return write_file_atomically(o_.model.json, json.dump(1) + "\n");
  }

  const SweepOptions& o_;
  TemporaryFolder folder_;
  std::string store_url_;
  RandomModel loaded_;
  MachineModel machine_;
  CompileInputs inputs_;
  Plan product_;
  std::vector<int64_t> lengths_, rates_;
  std::vector<int32_t> ids_;
  double even_ = 0, total_s_ = 0;
  std::vector<Prepared> prepared_;
  std::vector<SweepCell> cells_, left_out_;
};

}  // namespace

Bench add_sweep(CLI::App& app) {
  auto o = std::make_shared<SweepOptions>();
  CLI::App* cmd = app.add_subcommand(
      "sweep", "every way to a first token over context lengths and link rates, predicted beside measured");
  add_random_model(*cmd, o->model);
  cmd->add_option("--lengths", o->lengths, "of contexts")->capture_default_str();
  cmd->add_option("--link-rates", o->rates,
                  "default: six around the rate at which a layer is loaded as fast as "
                  "it is recomputed");
  cmd->add_option("--store", o->store,
                  "a store behind a real link, with --set-rate; default: a folder, whose reads are shaped");
  cmd->add_option("--set-rate", o->set_rate,
                  "shell command that gives the link to --store a rate: {} in it are bytes per second, as in "
                  "'tc qdisc replace dev veth0 root tbf rate {}bps burst 128kb latency 500ms'");
  cmd->add_option("--suffix-length", o->suffix, "tokens of the prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  cmd->add_option("--chunks", o->chunks, "most parts of the context")->capture_default_str();
  cmd->add_option("--slo-loss", o->slo_loss, "points that may be lost, of the synthetic profile's 30")
      ->capture_default_str();
  cmd->add_option("--machine", o->machine, "machine.json of this shape; default: measured here");
  cmd->add_option("--calibrate-s", o->calibrate_s, "seconds to measure the machine for")
      ->capture_default_str();
  cmd->add_option("--budget-s", o->budget_s,
                  "seconds for all requests, as predicted; the dearest cells give way")
      ->capture_default_str();
  cmd->add_option("--html", o->html, "write a page with pictures to FILE");
  return [o] { return Sweep(*o).run(); };
}

}  // namespace ds
