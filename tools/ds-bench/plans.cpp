// ds-bench plans: plans of ds-bench make-plans, each at the point that it was tuned for, beside the full
// prefill: predicted, lower bound, measured. Needs no checkpoint, and no compiler.
#include <filesystem>
#include <map>
#include <set>
#include <tuple>

#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "runtime/core/publish.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/rounds.h"
#include "tools/host.h"

namespace ds {
namespace {

struct PlansOptions {
  RandomModelOptions model{.shape = "llama-8b", .repeats = 5};
  std::string folder, store;
};

struct TunedPlan {
  std::string name;
  Plan plan;
  const Variant& variant() const { return plan.variants.front(); }
};

/// A context length, a question's length and a link: what plans are compared at.
struct PlansCell {
  int64_t tokens = 0, suffix = 0, rate = 0;
  auto operator<=>(const PlansCell&) const = default;
};

double ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

Result<std::map<PlansCell, std::vector<TunedPlan>>> read_plans(const std::string& folder,
                                                               const Shape& shape) {
  std::error_code failed;
  std::set<std::string> files;  // in an order that is the same everywhere
  for (std::filesystem::directory_iterator it(folder, failed), end; !failed && it != end;
       it.increment(failed))
    if (it->path().extension() == ".dsplan") files.insert(it->path());
  if (failed) return error(Code::kIo, "cannot read the folder '{}': {}", folder, failed.message());
  if (files.empty())
    return error(Code::kNotFound, "'{}' has no .dsplan; make some with ds-bench make-plans", folder);
  std::map<PlansCell, std::vector<TunedPlan>> cells;
  for (const std::string& file : files) {
    TunedPlan tuned{std::filesystem::path(file).stem(), {}};
    DS_ASSIGN(tuned.plan, read_plan(file));
    if (!(tuned.plan.shape == shape) || tuned.plan.variants.size() != 1)
      return error(Code::kMismatch,
                   "'{}' is for another shape, or has {} variants instead of one; make it with ds-bench "
                   "make-plans and the same --shape",
                   file, tuned.plan.variants.size());
    const Variant& v = tuned.variant();
    cells[{v.tuned_tokens, v.tuned_suffix, v.tuned_rate}].push_back(std::move(tuned));
  }
  return cells;
}

Status bench_plans(const PlansOptions& options) {
  const RandomModelOptions& o = options.model;
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(auto cells, read_plans(options.folder, config.shape()));
  DS_ASSIGN(RandomModel loaded, load_random_model(o, config));
  TemporaryFolder folder;
  std::string url = options.store;
  if (url.empty()) {
    DS_TRY(folder.make("ds-bench-plans"));
    url = "file:" + folder.path;
  }
  DS_ASSIGN(auto plain, open_store(url));
  nlohmann::ordered_json out = {{"version", kVersion},
                                {"date", utc_date()},
                                {"shape", o.shape},
                                {"dtype", o.dtype},
                                {"backend", loaded.backend->description()},
                                {"cpu", cpu_name()},
                                {"repeats", o.repeats},
                                {"cells", nlohmann::json::array()}};
  ProgressBar bar("measuring");
  int64_t done = 0, total = 0;
  for (const auto& [cell, plans] : cells) total += static_cast<int64_t>(plans.size() + 1) * (o.repeats + 1);
  for (const auto& [cell, plans] : cells) {
    const std::vector<int32_t> ids = scattered_ids(cell.tokens + cell.suffix, config.vocab);
    const auto context = std::span(ids).first(static_cast<size_t>(cell.tokens));
    std::vector<const Plan*> all;
    for (const TunedPlan& p : plans) all.push_back(&p.plan);
    const ModelIdentity& sender = plans.front().plan.sender;
    DS_ASSIGN(Published entry,
              publish(*loaded.backend, *loaded.model, sender, context, *plain, {.cuts = cuts_of(all)}));
    DS_ASSIGN(auto under, open_store(url));
    auto shaped = shape_link(std::move(under), {static_cast<double>(cell.rate), 0});
    std::vector<Contender> contenders;
    auto add = [&](const std::string& name, const Plan& plan, bool full) {
      auto make = [&] {
        return Session::create(*loaded.backend, *loaded.model, plan, {cell.tokens, cell.suffix, 1});
      };
      contenders.push_back({.name = name, .make_session = make, .full_prefill = full});
    };
    add("full prefill", plans.front().plan, true);
    for (const TunedPlan& p : plans) add(p.name, p.plan, false);
    Request request;
    request.context = context;
    request.suffix = std::span(ids).last(static_cast<size_t>(cell.suffix));
    request.store = shaped.get();
    request.link_rate = cell.rate;
    DS_TRY(
        run_rounds(contenders, request, {o.repeats, [&](const Contender&) { bar.update(++done, total); }}));
    DS_TRY(plain->remove(entry.key));

    auto times = [&](size_t i) { return figures(contenders[i], &Answer::ttft_ns); };
    const double base = ms(median_of(times(0)));
    fmt::print(stderr, "\n{} + {} tokens, link {}: full prefill {:.2f} ms\n", cell.tokens, cell.suffix,
               format_rate(static_cast<double>(cell.rate)), base);
    fmt::print(stderr, "{:<28} {:>12} {:>12} {:>12} {:>9} {:>10} {:>9}\n", "plan", "bound", "predicted",
               "measured", "speed-up", "/ bound", "error");
    nlohmann::ordered_json rows = nlohmann::json::array();
    for (size_t i = 1; i < contenders.size(); ++i) {
      const TunedPlan& p = plans[i - 1];
      const std::vector<int64_t> all_ns = times(i);
      const double measured = ms(median_of(all_ns)), bound = ms(p.variant().lower_bound_ns);
      const double predicted =
          ms(predicted_ttft_ns(p.plan, p.variant(), {cell.tokens, cell.suffix, cell.rate}));
      const Answer& last = contenders[i].last();
      fmt::print(stderr, "{:<28} {:>9.2f} ms {:>9.2f} ms {:>9.2f} ms {:>8.2f}x {:>10.3f} {:>+8.1f}%\n",
                 p.name, bound, predicted, measured, base / measured, measured / bound,
                 100 * (measured / predicted - 1));
      rows.push_back({{"plan", p.name},
                      {"recomputed_layers", recomputed_layers(p.variant())},
                      {"chunks", p.variant().chunks},
                      {"proven_optimal", p.variant().proven_optimal},
                      {"lower_bound_ms", bound},
                      {"predicted_ms", predicted},
                      {"measured_ms", measured},
                      {"measured_ns_all", all_ns},
                      {"speedup", base / measured},
                      {"over_bound", measured / bound},
                      {"prediction_error", measured / predicted - 1},
                      {"link_busy_ms", ms(last.link_ns)},
                      {"compute_busy_ms", ms(last.compute_ns)},
                      {"bytes_loaded", last.bytes_loaded}});
    }
    out["cells"].push_back({{"tokens", cell.tokens},
                            {"suffix_tokens", cell.suffix},
                            {"link_bytes_per_s", cell.rate},
                            {"full_prefill_ms", base},
                            {"full_prefill_ns_all", times(0)},
                            {"plans", std::move(rows)}});
  }
  bar.finish();
  return o.json.empty() ? ok_status() : write_file_atomically(o.json, out.dump(1) + "\n");
}

}  // namespace

Bench add_plans(CLI::App& app) {
  auto o = std::make_shared<PlansOptions>();
  CLI::App* cmd = app.add_subcommand(
      "plans", "plans of make-plans beside the full prefill: bound, predicted, measured; random weights");
  add_random_model(*cmd, o->model);
  cmd->add_option("--plans", o->folder, "folder of ds-bench make-plans")->required();
  cmd->add_option("--store", o->store,
                  "file:PATH or redis://HOST for the entries, removed at the end; a folder in memory "
                  "(/dev/shm) for links "
                  "faster than the disk; default: a folder in $TMPDIR or /tmp");
  return [o] { return bench_plans(*o); };
}

}  // namespace ds
