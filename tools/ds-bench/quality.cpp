// ds-bench quality: what a point of quality costs in time, for one pair. Every way of its profile that a plan
// can run, measured over shaped links, beside what the profile says that it scores.
#include <algorithm>
#include <cmath>
#include <set>

#include "compiler/compile.h"
#include "plans/simulate.h"
#include "profiler/prompt.h"
#include "runtime/core/publish.h"
#include "runtime/trace/describe.h"
#include "support/json.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/quality_result.h"
#include "tools/host.h"

namespace ds {
namespace {

struct QualityBenchOptions {
  CompileFiles files;
  std::string quality, machine, rates, context, context_ids, data, prompts, prompt, prompt_ids, json, html,
      align_side = "receiver";
  double link_rtt_ms = 0;
  int64_t chunks = 16;
  int repeats = 5;
  BackendFlags on;
  WeightCacheOptions cache;
};

/// A way, and what the compiler is asked for to get it.
struct Wanted {
  Way way;
  const char* policy;
};

/// Restored layers cost link and compute, so of two such ways with one score the smaller is enough.
void add_restores(const Quality& q, bool aligned, std::vector<Wanted>& out) {
  std::vector<const WayScore*> all;
  for (const WayScore& w : q.ways)
    if (w.way.restores() && (w.way.map != MapForm::kNone) == aligned && w.way.map_control.empty() &&
        !w.dropped)
      all.push_back(&w);
  std::stable_sort(all.begin(), all.end(), [](const WayScore* a, const WayScore* b) {
    return std::pair(a->way.layers[0].size(), -a->score.value) <
           std::pair(b->way.layers[0].size(), -b->score.value);
  });
  double best = -1;
  for (const WayScore* w : all) {
    if (w->score.value <= best) continue;
    best = w->score.value;
    out.push_back({w->way, "restore"});
  }
  if (all.empty() && !aligned) out.push_back({Way::restore({0, q.layers - 1}), "restore"});
}

/// The groups among `names`, by both policies.
void add_groups(const Quality& q, const std::vector<std::string>& names, std::vector<Wanted>& out) {
  for (const std::string& name : names)
    for (const WayScore& w : q.ways)
      if (w.way.name() == name && w.way.is_group())
        for (const char* policy : {"droidspeak", "balanced"}) out.push_back({w.way, policy});
}

void add_selects(const Quality& q, std::vector<Wanted>& out) {
  constexpr double kUsual = 0.15;  // CacheBlend's own
  size_t before = out.size();
  for (const WayScore& w : q.ways)
    if (w.way.selects() && !w.dropped) out.push_back({w.way, "select"});
  if (out.size() == before) out.push_back({Way::select(kUsual), "select"});
}

/// Also ways whose scores the profile does not know: their times are worth having. `maps`: there are maps for
/// those with aligned cuts.
std::vector<Wanted> wanted_of(const Quality& q, bool maps) {
  std::vector<Wanted> out{{Way::full_prefill(), "full-prefill"}, {Way::full_reuse(), "full-reuse"}};
  add_groups(q, q.pareto, out);
  if (maps) add_groups(q, q.pareto_aligned, out);
  add_restores(q, false, out);
  if (maps) add_restores(q, true, out);
  if (q.layers > 1) add_selects(q, out);  // it compares keys of layer 1
  return out;
}

bool has_aligned(const Quality& q) {
  return std::any_of(q.ways.begin(), q.ways.end(), [](const WayScore& w) {
    return w.way.map != MapForm::kNone && w.way.map_control.empty() && !w.dropped;
  });
}

/// What is asked about which context.
struct Asked {
  JoinedText tokens;
  std::string text;  // for people
};

class QualityBench {
 public:
  explicit QualityBench(const QualityBenchOptions& o) : o_(o) {}

  Status run() {
    DS_TRY(check());
    DS_TRY(check_open_options(o_.files.open, {o_.files.sender, o_.files.receiver}));
    DS_ASSIGN(rates_, parse_rate_list(o_.rates));
    DS_ASSIGN(inputs_, read_inputs({o_.files.receiver, o_.files.sender, o_.quality, o_.machine, o_.files.maps,
                                    o_.files.open}));
    DS_TRY(check_maps_of_profile());
    std::string dtype(dtype_name(inputs_.machine->dtype));
    DS_ASSIGN(receiver_, load_model(o_.files.receiver, o_.files.open, o_.on, dtype, o_.cache));
    DS_ASSIGN(asked_, o_.data.empty() ? ask_by_hand() : ask_of_data());
    DS_TRY(compile_all());
    DS_TRY(publish_all(dtype));
    DS_TRY(measure());
    return report();
  }

 private:
  Status check() const {
    int given = !o_.context.empty() + !o_.context_ids.empty() + !o_.data.empty();
    if (given != 1)
      return error(Code::kInvalidArgument,
                   "{} of --context, --context-ids and --data were given, expected one of them",
                   given == 0 ? "none" : fmt::format("{}", given));
    int asked = !o_.prompt.empty() + !o_.prompt_ids.empty();
    if (asked != (o_.data.empty() ? 1 : 0))
      return error(Code::kInvalidArgument, "{}",
                   !o_.data.empty() ? "--prompt and --prompt-ids contradict --data, which has the questions"
                   : asked == 0     ? "--prompt is missing: what is to be asked about the context?"
                                    : "--prompt and --prompt-ids contradict each other; give one");
    if (o_.data.empty() && !o_.prompts.empty())
      return error(Code::kInvalidArgument, "--prompts are templates for --data, which is not given");
    return ok_status();
  }

  Status check_maps_of_profile() const {
    const bool aligned = has_aligned(*inputs_.quality);
    if (o_.files.maps && !aligned)
      return error(
          Code::kInvalidArgument,
          "--maps '{}': the profile '{}' has no way with maps, so there is nothing to measure with them; "
          "let ds-profile score some (--align)",
          *o_.files.maps, o_.quality);
    if (!o_.files.maps && aligned)
      fmt::print(stderr,
                 "note: the profile's ways with maps are left out; --maps FILE ('{}') measures them too\n",
                 inputs_.quality->maps.name);
    return ok_status();
  }

  Result<Asked> ask_by_hand() const {
    Asked asked;
    DS_ASSIGN(asked.tokens, read_request(receiver_, {o_.context, o_.context_ids, o_.prompt, o_.prompt_ids}));
    if (asked.tokens.shared == 0)
      return error(Code::kInvalidArgument, "'{}' has no tokens: there is nothing to reuse",
                   o_.context.empty() ? o_.context_ids : o_.context);
    if (asked.tokens.suffix().empty())
      return error(Code::kInvalidArgument, "the prompt has no tokens; expected at least one");
    asked.text = o_.context.empty() ? o_.context_ids : o_.context;
    return asked;
  }

  /// The context of median length, with the first question about it.
  Result<Asked> ask_of_data() const {
    PromptTemplates read;
    if (!o_.prompts.empty()) {
      DS_ASSIGN(read, PromptTemplates::read(o_.prompts));
    }
    const PromptTemplates& templates = o_.prompts.empty() ? PromptTemplates::builtin() : read;
    DS_ASSIGN(Dataset data,
              read_dataset(o_.data, [&](std::string_view task) { return templates.metric(task); }));
    std::set<std::string> seen;
    std::vector<Asked> all;
    for (const Item& item : data.items) {
      DS_ASSIGN(const PromptTemplate* prompt, templates.find(item.task));
      DS_ASSIGN(Prompt text, render(*prompt, item));
      if (!seen.insert(text.context).second) continue;
      Asked asked;
      DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(receiver_));
      DS_ASSIGN(asked.tokens, join_text(*tokenizer, text.context, text.suffix));
      asked.text = item.where;
      all.push_back(std::move(asked));
    }
    auto middle = all.begin() + static_cast<ptrdiff_t>(all.size() / 2);
    std::nth_element(all.begin(), middle, all.end(),
                     [](const Asked& a, const Asked& b) { return a.tokens.shared < b.tokens.shared; });
    return std::move(*middle);
  }

  const MapSet* maps() const { return inputs_.maps ? &*inputs_.maps : nullptr; }
  int64_t n() const { return asked_.tokens.shared; }
  int64_t m() const { return static_cast<int64_t>(asked_.tokens.suffix().size()); }

  Result<Plan> compile_way(const Wanted& wanted, int64_t rate) const {
    CompileInputs inputs = inputs_;
    CompileOptions options;
    options.policy = wanted.policy;
    if (wanted.way.is_full_prefill()) inputs.quality.reset();
    if (!wanted.way.layers.empty()) options.recompute = format_layer_set(wanted.way.layers);
    if (wanted.way.selects()) options.select_share = fmt::format("{:g}%", 100 * wanted.way.share);
    options.align = map_form_name(wanted.way.map);
    if (wanted.way.map != MapForm::kNone) options.align_side = o_.align_side;
    options.context_lengths = std::to_string(n());
    options.link_rates = fmt::format("{}B/s", rate);
    options.suffix_length = m();
    options.chunks = o_.chunks;
    options.compiler_version = kVersion;
    auto out = compile(inputs, options);
    if (!out.ok())
      return out.status().with_context(fmt::format("{}, policy {}", wanted.way.name(), wanted.policy));
    return std::move(*out->plan);
  }

  Status compile_all() {
    std::vector<Wanted> wanted = wanted_of(*inputs_.quality, maps() != nullptr);
    for (int64_t rate : rates_) {
      QualityRate& measured = measured_.emplace_back();
      std::vector<Plan>& plans = plans_.emplace_back();
      measured.rate = rate;
      for (const Wanted& w : wanted) {
        DS_ASSIGN(Plan plan, compile_way(w, rate));
        const Variant* v = select_variant(plan, n(), rate);
        if (v == nullptr) return error(Code::kInternal, "no variant for {} tokens at {} B/s", n(), rate);
        QualityRun run{.way = w.way, .policy = w.policy, .what = tiling_text(*v)};
        run.score = run.loss = {std::nan(""), std::nan("")};
        if (const WayScore* known = inputs_.quality->find(w.way)) {
          run.score = known->score;
          run.loss = known->loss;
        }
        run.predicted_ns = predicted_ttft_ns(plan, *v, {n(), m(), rate});
        run.lower_bound_ns = v->lower_bound_ns;
        measured.runs.push_back(std::move(run));
        plans.push_back(std::move(plan));
      }
    }
    return ok_status();
  }

  /// One entry for all plans.
  Status publish_all(const std::string& dtype) {
    DS_TRY(folder_.make("ds-quality"));
    DS_ASSIGN(LoadedModel sender,
              load_model(o_.files.sender, o_.files.open, o_.on, dtype, o_.cache, receiver_.backend));
    DS_ASSIGN(auto store, open_store(store_url()));
    std::vector<const Plan*> all;
    for (const std::vector<Plan>& plans : plans_)
      for (const Plan& plan : plans) all.push_back(&plan);
    DS_ASSIGN(Published entry, publish(*sender.backend, *sender.model, inputs_.pair.sender,
                                       asked_.tokens.entry, *store, {.cuts = cuts_of(all), .maps = maps()}));
    entry_bytes_ = entry.entry_bytes;
    return ok_status();
  }
  std::string store_url() const { return "file:" + folder_.path + "/store"; }

  Status measure() {
    ProgressBar bar("measuring");
    int64_t done = 0;
    auto total = static_cast<int64_t>(rates_.size() * plans_[0].size()) * (o_.repeats + 1);
    for (size_t r = 0; r < rates_.size(); ++r) {
      DS_ASSIGN(auto store, open_store(store_url()));
      store = shape_link(std::move(store), {static_cast<double>(rates_[r]), o_.link_rtt_ms});
      std::vector<QualityRun>& runs = measured_[r].runs;
      std::vector<Contender> contenders;
      for (size_t w = 0; w < runs.size(); ++w) {
        auto make = [this, plan = &plans_[r][w]] {
          return Session::create(*receiver_.backend, *receiver_.model, *plan, {n(), m(), 1}, maps());
        };
        contenders.push_back({.name = runs[w].name(), .make_session = make});
      }
      Request request;
      request.context = asked_.tokens.context();
      request.entry = asked_.tokens.entry;
      request.suffix = asked_.tokens.suffix();
      request.store = store.get();
      request.receiver = &receiver_.identity;
      request.link_rate = rates_[r];
      DS_TRY(run_rounds(contenders, request,
                        {o_.repeats, [&](const Contender&) { bar.update(++done, total); }}));
      for (size_t w = 0; w < runs.size(); ++w) {
        runs[w].ttft_ns = figures(contenders[w], &Answer::ttft_ns);
        runs[w].compute_ns = figures(contenders[w], &Answer::compute_ns);
        runs[w].bytes = contenders[w].last().bytes_loaded;
      }
    }
    return ok_status();
  }

  int64_t layers() const { return inputs_.quality->layers; }

  std::string title() const {
    return fmt::format("{} → {}: quality by time", inputs_.quality->sender_name,
                       inputs_.quality->receiver_name);
  }
  std::string note() const {
    return fmt::format("{} context + {} prompt tokens ({}), {}, {}, medians of {}", format_count(n()), m(),
                       asked_.text, dtype_name(inputs_.machine->dtype), receiver_.backend->description(),
                       o_.repeats);
  }

  void print(FILE* to) const {
    fmt::print(to, "{}\n{}\n", title(), note());
    for (const QualityRate& rate : measured_) {
      const QualityRun* prefill = rate.find(Way::full_prefill());
      size_t width = 18;
      for (const QualityRun& run : rate.runs) width = std::max(width, run.way.name().size());
      fmt::print(to, "\n{:<{}} {:<12} {:>12} {:>8} {:>12} {:>12} {:>16} {:>11} {:>10}\n",
                 format_rate(static_cast<double>(rate.rate)), width, "policy", "TTFT", "speed-up", "score",
                 "loss", "recomputed", "moved", "compute");
      for (const QualityRun& run : rate.runs)
        fmt::print(to, "{:<{}} {:<12} {:>9.2f} ms {:>7.2f}x {:>12} {:>12} {:>16} {:>11} {:>10}\n",
                   run.way.name(), width, run.policy, static_cast<double>(run.ttft()) / 1e6,
                   static_cast<double>(prefill->ttft()) / static_cast<double>(run.ttft()),
                   points_text(run.score), points_text(run.loss), effort_text(run, layers()),
                   format_bytes(run.bytes), format_ns(run.compute()));
    }
    fmt::print(to, "\n");
    for (const QualityRate& rate : measured_) {
      fmt::print(to, "{}\n", fastest_text(rate));
      print_comparison(to, "as much compute", at_equal_compute(rate, layers()));
      print_comparison(to, "in the same time", at_equal_ttft(rate, kNoise));
    }
  }
  static void print_comparison(FILE* to, std::string_view same, const std::vector<SelectComparison>& list) {
    for (const SelectComparison& c : list) {
      std::string other = !c.other ? std::string("nothing")
                                   : fmt::format("{} loses {} ({})", c.other->name(),
                                                 points_text(c.other->loss), format_ns(c.other->ttft()));
      fmt::print(to, "  {} loses {} ({}); {}: {}\n", c.select->name(), points_text(c.select->loss),
                 format_ns(c.select->ttft()), same, other);
    }
  }

  using Json = nlohmann::ordered_json;
  static Json mean_json(const Mean& mean) {
    if (!std::isfinite(mean.value)) return nullptr;
    Json json{{"mean", mean.value}};
    if (std::isfinite(mean.standard_error)) json["stderr"] = mean.standard_error;
    return json;
  }
  Json run_json(const QualityRun& run) const {
    auto [least, most] = std::minmax_element(run.ttft_ns.begin(), run.ttft_ns.end());
    return {{"way", run.way.name()},
            {"policy", run.policy},
            {"what", run.what},
            {"score", mean_json(run.score)},
            {"loss", mean_json(run.loss)},
            {"recomputed_layers", run.way.recomputed(layers())},
            {"layers_worth", run.layers_worth(layers())},
            {"ttft_ns", run.ttft()},
            {"ttft_least_ns", *least},
            {"ttft_most_ns", *most},
            {"ttft_all_ns", run.ttft_ns},
            {"predicted_ns", run.predicted_ns},
            {"lower_bound_ns", run.lower_bound_ns},
            {"compute_ns", run.compute()},
            {"bytes_moved", run.bytes}};
  }
  static Json comparison_json(const std::vector<SelectComparison>& list) {
    Json out = Json::array();
    for (const SelectComparison& c : list)
      out.push_back(
          {{"select", c.select->name()}, {"other", c.other ? Json(c.other->name()) : Json(nullptr)}});
    return out;
  }
  Json rate_json(const QualityRate& rate) const {
    Json runs = Json::array(), on_front = Json::array();
    for (const QualityRun& run : rate.runs) runs.push_back(run_json(run));
    for (const QualityRun* run : front(rate)) on_front.push_back(run->name());
    auto name_of = [](const QualityRun* run) { return run ? Json(run->name()) : Json(nullptr); };
    return {{"rate_bytes_per_s", rate.rate},
            {"fastest_within_1_point", name_of(fastest_within(rate, kCloseLoss))},
            {"fastest_within_1_point_without_maps", name_of(fastest_within(rate, kCloseLoss, false))},
            {"front", std::move(on_front)},
            {"select_at_equal_compute", comparison_json(at_equal_compute(rate, layers()))},
            {"select_at_equal_ttft", comparison_json(at_equal_ttft(rate, kNoise))},
            {"ways", std::move(runs)}};
  }

  Status report() const {
    print(o_.json == "-" ? stderr : stdout);
    if (!o_.html.empty())
      DS_TRY(write_file_atomically(o_.html, draw_quality_html(title(), note(), layers(), measured_)));
    if (o_.json.empty()) return ok_status();
    Json inputs = Json::array(), rates = Json::array();
    for (const InputFile& file : inputs_.files)
      inputs.push_back({{"role", file.role}, {"name", file.name}, {"sha256", file.sha256}});
    for (const QualityRate& rate : measured_) rates.push_back(rate_json(rate));
    Json json = {{"version", kVersion},
                 {"date", utc_date()},
                 {"command", command_line()},
                 {"cpu", cpu_name()},
                 {"kernel", kernel_name()},
                 {"backend", receiver_.backend->description()},
                 {"dtype", dtype_name(inputs_.machine->dtype)},
                 {"inputs", std::move(inputs)},
                 {"layers", layers()},
                 {"align_side", maps() ? Json(o_.align_side) : Json(nullptr)},
                 {"asked", asked_.text},
                 {"context_tokens", n()},
                 {"prompt_tokens", m()},
                 {"entry_bytes", entry_bytes_},
                 {"link_rtt_ms", o_.link_rtt_ms},
                 {"repeats", o_.repeats},
                 {"rates", std::move(rates)}};
    return write_file_atomically(o_.json, json.dump(1) + "\n");
  }

  const QualityBenchOptions& o_;
  std::vector<int64_t> rates_;
  CompileInputs inputs_;
  LoadedModel receiver_;
  Asked asked_;
  TemporaryFolder folder_;
  int64_t entry_bytes_ = 0;
  std::vector<std::vector<Plan>> plans_;  // [rate][way]; sessions keep addresses
  std::vector<QualityRate> measured_;
};

}  // namespace

Bench add_quality(CLI::App& app) {
  auto o = std::make_shared<QualityBenchOptions>();
  CLI::App* cmd = app.add_subcommand(
      "quality", "one pair: the time to a first token of every way beside the score that its profile knows");
  cmd->add_option("--receiver", o->files.receiver, "Hugging Face folder")->required();
  cmd->add_option("--sender", o->files.sender, "Hugging Face folder")->required();
  cmd->add_option("--quality", o->quality, "quality.json of this pair")->required();
  cmd->add_option("--machine", o->machine, "machine.json, from ds-calibrate")->required();
  cmd->add_option("--maps", o->files.maps,
                  "maps of this pair, from ds-profile: ways with aligned cuts are measured too");
  cmd->add_option("--align-side", o->align_side,
                  "who applies the maps: receiver, sender, or auto, as ds-compile chooses")
      ->capture_default_str()
      ->check(CLI::IsMember({"receiver", "sender", "auto"}));
  cmd->add_option("--link-rates", o->rates, "20MB/s,100MB/s: each is measured by itself")->required();
  cmd->add_option("--link-rtt-ms", o->link_rtt_ms, "round trip")->capture_default_str();
  cmd->add_option("--context", o->context, "text file");
  cmd->add_option("--context-ids", o->context_ids, "JSON list of token ids instead");
  cmd->add_option("--prompt", o->prompt, "what is asked about the context");
  cmd->add_option("--prompt-ids", o->prompt_ids, "JSON list of token ids instead");
  cmd->add_option(
      "--data", o->data,
      "JSON lines instead, as ds-profile reads them: the context of median length is used, with the first "
      "question about it");
  cmd->add_option("--prompts", o->prompts, "prompt templates for --data");
  cmd->add_option("--chunks", o->chunks, "most parts of the context")->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "runs of each way, in turns; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  add_backend_flags(*cmd, o->on);
  add_open_options(*cmd, o->files.open);
  add_weight_cache_options(*cmd, o->cache);
  cmd->add_option("-o,--json", o->json, "write figures to FILE; '-': stdout");
  cmd->add_option("--html", o->html, "write a page with pictures to FILE");
  return [o] { return QualityBench(*o).run(); };
}

}  // namespace ds
