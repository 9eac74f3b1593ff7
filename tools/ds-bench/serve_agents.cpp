// ds-bench agents: fine-tunes take turns over a context that grows. Each reads all that was said, answers,
// and leaves an entry for the next one; beside it the same turns with a prefix cache per model, and without
// any.
#include <functional>

#include "support/clock.h"
#include "support/json.h"
#include "tools/ds-bench/rounds.h"
#include "tools/ds-bench/serve_models.h"
#include "tools/host.h"
#include "tools/progress.h"

namespace ds {
namespace {

struct AgentOptions {
  ServeModelOptions models;
  int64_t turns = 9, new_tokens = 64;
};

struct Way {
  const char* name;
  Reuse reuse;
};
constexpr Way kAgentWays[] = {{"full prefill", Reuse::kOff},
                              {"prefix cache per model", Reuse::kExact},
                              {"plans and prefix cache", Reuse::kAuto}};

class Agents {
 public:
  explicit Agents(const AgentOptions& o) : o_(o) {}

  Status run() {
    DS_ASSIGN(models_, ServeModels::load(o_.models, true));
    ProgressBar bar("measuring");
    int64_t done = 0;
    const int64_t total = o_.models.model.repeats * static_cast<int64_t>(std::size(kAgentWays)) * o_.turns;
    for (int round = 0; round < o_.models.model.repeats; ++round)
      for (Figures& f : figures_) DS_TRY(measure(f, round, [&] { bar.update(++done, total); }));
    bar.finish();
    return report();
  }

 private:
  struct Figures {
    std::vector<std::vector<double>> ttft_ms;  // by turn
    std::vector<double> publish_ms;
    int64_t reused = 0, cached = 0, read = 0;  // tokens of the last round
    double mean() const {
      double all = 0;
      for (const auto& turn : ttft_ms) all += median(turn) / static_cast<double>(ttft_ms.size());
      return all;
    }
  };

  Status measure(Figures& f, int round, const std::function<void()>& turn_done) {
    const Way& way = kAgentWays[&f - figures_];
    const int64_t most = o_.models.context + o_.turns * (o_.models.suffix + o_.new_tokens);
    DS_ASSIGN(auto engine, models_->make_warm_engine(most, 4));
    f.ttft_ms.resize(static_cast<size_t>(o_.turns));
    f.reused = f.cached = f.read = 0;
    std::vector<int32_t> said = models_->ids(o_.models.context, 1);
    const std::string salt = fmt::format("round {}", round);
    for (int64_t turn = 0; turn < o_.turns; ++turn) {
      const size_t agent = static_cast<size_t>(turn) % models_->receivers();
      EngineRequest r;
      r.receiver = models_->served()[agent];
      r.context = said;
      // What everybody says is given, so that all ways read the same.
      r.suffix = models_->ids(o_.models.suffix, 100 + static_cast<uint64_t>(turn));
      r.salt = salt;
      r.reuse = way.reuse;
      r.link_rate = std::llround(models_->rate());
      if (way.reuse == Reuse::kAuto) r.store = &models_->store();
      r.max_new_tokens = o_.new_tokens;
      r.sampling = {.temperature = 1, .seed = static_cast<uint64_t>(turn)};
      said.insert(said.end(), r.suffix.begin(), r.suffix.end());
      DS_ASSIGN(auto ticket, engine->submit(std::move(r)));
      auto answer = ticket->wait();
      if (!answer.ok()) return answer.status();
      f.ttft_ms[static_cast<size_t>(turn)].push_back(static_cast<double>(answer->ttft_ns) / 1e6);
      f.read += static_cast<int64_t>(said.size());
      f.cached += answer->cached_tokens;
      f.reused += answer->cached_tokens > 0 ? 0 : answer->reused_tokens;
      const auto answered = models_->ids(o_.new_tokens, 500 + static_cast<uint64_t>(turn));
      said.insert(said.end(), answered.begin(), answered.end());
      if (way.reuse == Reuse::kAuto) DS_TRY(leave_entry(*engine, f, agent, said, salt));
      turn_done();
    }
    return ok_status();
  }

  /// For the agent whose turn comes.
  Status leave_entry(Engine& engine, Figures& f, size_t agent, const std::vector<int32_t>& said,
                     const std::string& salt) {
    const Plan& next = models_->plan((agent + 1) % models_->receivers());
    EnginePublication p{.sender = models_->served()[agent], .context = said, .store = &models_->store()};
    p.options.salt = salt;
    p.options.cuts = cuts_of({&next});
    p.options.only_new = true;
    const int64_t begin = now_ns();
    DS_ASSIGN(auto ticket, engine.publish(std::move(p)));
    if (auto published = ticket->wait(); !published.ok()) return published.status();
    f.publish_ms.push_back(static_cast<double>(now_ns() - begin) / 1e6);
    return ok_status();
  }

  Status report() const {
    using Json = nlohmann::ordered_json;
    FILE* to = o_.models.model.json == "-" ? stderr : stdout;
    fmt::print(
        to,
        "{} agents, {} turns of {} + {} tokens after {}; {}, {}\nlink {} ({:.1f} x break-even), plan: {}\n",
        models_->receivers(), o_.turns, o_.models.suffix, o_.new_tokens, o_.models.context, o_.models.what(),
        models_->description(), format_rate(models_->rate()), models_->rate() / models_->break_even(),
        models_->plan_text());
    Json ways = Json::array();
    for (const Figures& f : figures_) {
      const char* name = kAgentWays[&f - figures_].name;
      std::vector<double> turns;
      for (const auto& turn : f.ttft_ms) turns.push_back(median(turn));
      fmt::print(to, "{:<24} mean {:>7.1f} ms  turns", name, f.mean());
      for (double ms : turns) fmt::print(to, " {:.0f}", ms);
      fmt::print(to, "  of {} tokens {} cached, {} reused\n", f.read, f.cached, f.reused);
      ways.push_back({{"way", name},
                      {"mean_ttft_ms", f.mean()},
                      {"median_ttft_ms_by_turn", turns},
                      {"prompt_tokens", f.read},
                      {"cached_tokens", f.cached},
                      {"reused_tokens", f.reused}});
      if (!f.publish_ms.empty()) ways.back()["median_publish_ms"] = median(f.publish_ms);
    }
    const auto& published = figures_[std::size(kAgentWays) - 1].publish_ms;
    fmt::print(to, "{:.2f} x the prefix cache's mean; entries between turns take {:.0f} ms (median)\n",
               figures_[2].mean() / figures_[1].mean(), median(published));
    if (o_.models.model.json.empty()) return ok_status();
    const Json json = {{"version", kVersion},
                       {"date", utc_date()},
                       {"cpu", cpu_name()},
                       {"backend", models_->description()},
                       {"shape", o_.models.what()},
                       {"agents", models_->receivers()},
                       {"context_tokens", o_.models.context},
                       {"turn_tokens", o_.models.suffix + o_.new_tokens},
                       {"turns", o_.turns},
                       {"plan", models_->plan_text()},
                       {"link_bytes_per_s", models_->rate()},
                       {"ways", std::move(ways)}};
    return write_file_atomically(o_.models.model.json, json.dump(1) + "\n");
  }

  const AgentOptions o_;
  std::unique_ptr<ServeModels> models_;
  Figures figures_[std::size(kAgentWays)];
};

}  // namespace

Bench add_agents(CLI::App& app) {
  auto o = std::make_shared<AgentOptions>();
  o->models.model.repeats = 3;
  o->models.suffix = 192;
  CLI::App* cmd = app.add_subcommand(
      "agents",
      "fine-tunes that take turns over a growing context: first tokens with plans, a prefix cache per "
      "model, and full prefills");
  add_serve_models(*cmd, o->models);
  cmd->add_option("--turns", o->turns, "in all")->capture_default_str()->check(CLI::Range(1, 1000));
  cmd->add_option("--new-tokens", o->new_tokens, "tokens of an answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  return [o] { return Agents(*o).run(); };
}

}  // namespace ds
