// ds-bench dead-store: what a store that is dead, or dies, costs a request: its first token beside a full
// prefill's, in turns.
#include <condition_variable>
#include <mutex>

#include "support/json.h"
#include "tools/ds-bench/serve_models.h"
#include "tools/ds-bench/serve_trace.h"
#include "tools/host.h"

namespace ds {
namespace {

enum class Death : uint8_t { kNone, kRefuses, kLookUpHangs, kReadsFail, kReadsHang, kHalfFails, kHalfHangs };

struct DeathTraits {
  Death death;
  const char* name;
};
constexpr DeathTraits kDeaths[] = {{Death::kNone, "the store is well"},
                                   {Death::kRefuses, "refuses connections"},
                                   {Death::kLookUpHangs, "look-ups hang"},
                                   {Death::kReadsFail, "reads fail"},
                                   {Death::kReadsHang, "reads hang"},
                                   {Death::kHalfFails, "reads fail after half of the bytes"},
                                   {Death::kHalfHangs, "reads hang after half of the bytes"}};

struct DeadStoreOptions {
  ServeModelOptions models;
  std::vector<std::string> only;
  std::string trace;
};

/// A store that dies.
class DyingStore final : public Store {
 public:
  /// `bytes` of tensors are read before it dies.
  DyingStore(Store& under, Death death, int64_t bytes) : under_(under), death_(death), left_(bytes) {}
  ~DyingStore() override { let_go(); }
  std::string url() const override { return "dying:"; }
  Status put(const std::string&, const Produce&, Names) override {
    return error(Code::kUnsupported, "this store is only read");
  }
  Status remove(const std::string&) override { return error(Code::kUnsupported, "this store is only read"); }
  Result<Found> find(Names keys, Names names) override {
    if (death_ == Death::kRefuses) return error(Code::kIo, "connection refused");
    if (death_ == Death::kLookUpHangs) hang();
    return under_.find(keys, names);
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    if (death_ == Death::kRefuses) return error(Code::kIo, "connection refused");
    DS_ASSIGN(auto object, under_.open(key));
    return std::unique_ptr<StoreObject>(std::make_unique<Object>(*this, std::move(object)));
  }
  /// What hangs goes on.
  void let_go() {
    std::lock_guard lock(mutex_);
    free_ = true;
    changed_.notify_all();
  }

 private:
  struct Object final : StoreObject {
    Object(DyingStore& s, std::unique_ptr<StoreObject> u) : store(s), under(std::move(u)) {}
    int64_t size() const override { return under->size(); }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      if (std::exchange(headers, headers - 1) <= 0) DS_TRY(store.live(static_cast<int64_t>(out.size())));
      return under->read_by_parts(offset, out, arrived);
    }
    DyingStore& store;
    std::unique_ptr<StoreObject> under;
    int headers = 1;  // reads before the first tensor's
  };
  Status live(int64_t bytes) {
    if (death_ < Death::kReadsFail || (left_ -= bytes) >= 0) return ok_status();
    if (death_ == Death::kReadsHang || death_ == Death::kHalfHangs) hang();
    return error(Code::kIo, "the server went away");
  }
  void hang() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return free_; });
  }

  Store& under_;
  const Death death_;
  std::atomic<int64_t> left_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool free_ = false;
};

class DeadStore {
 public:
  explicit DeadStore(const DeadStoreOptions& o) : o_(o) {}

  Status run() {
    for (size_t i = 0; i < std::size(kDeaths); ++i)
      if (wanted(i)) deaths_.push_back(i);
    DS_ASSIGN(models_, ServeModels::load(o_.models));
    DS_TRY(models_->publish_contexts(1));
    for (int round = 0; round <= o_.models.model.repeats; ++round)
      for (size_t i : deaths_) DS_TRY(measure(i, round > 0));
    return report();
  }

 private:
  struct Figures {
    std::vector<double> ttft_ms, full_ms, ratio;
    int64_t bytes = 0;
    bool repaired = false;
  };

  /// The store that is well always is: what half of the bytes are is known from it.
  bool wanted(size_t i) const {
    return kDeaths[i].death == Death::kNone || o_.only.empty() ||
           std::find(o_.only.begin(), o_.only.end(), kDeaths[i].name) != o_.only.end();
  }

  Result<EngineAnswer> ask(Engine& engine, Store* store) const {
    EngineRequest r;
    r.receiver = models_->served()[0];
    r.context = models_->contexts()[0];
    r.suffix = models_->ids(o_.models.suffix, 1000);
    r.store = store;
    r.reuse = store == nullptr ? Reuse::kOff : Reuse::kAuto;
    r.link_rate = std::llround(models_->rate());
    DS_ASSIGN(auto ticket, engine.submit(std::move(r)));
    return ticket->wait();
  }

  /// A full prefill and a request to the dying store, one behind the other, on one engine.
  Status measure(size_t i, bool counts) {
    const Death death = kDeaths[i].death;
    const bool half = death == Death::kHalfFails || death == Death::kHalfHangs;
    DS_ASSIGN(auto engine,
              models_->make_warm_engine(o_.models.context + o_.models.suffix, 4, !o_.trace.empty()));
    DS_ASSIGN(EngineAnswer full, ask(*engine, nullptr));
    DyingStore store(models_->store(), death, half ? figures_[0].bytes / 2 : 0);
    DS_ASSIGN(EngineAnswer answer, ask(*engine, &store));
    store.let_go();
    if (!o_.trace.empty()) DS_TRY(write_trace(*engine, o_.trace));
    engine.reset();
    if (death != Death::kNone && answer.miss.ok())
      return error(Code::kInternal,
                   "{}: the request has not noticed: it was answered without the store; a larger --shape or "
                   "--context-length "
                   "makes the plan worth asking it",
                   kDeaths[i].name);
    // On a machine that is busy a store that is well may be late.
    if (death == Death::kNone && !answer.miss.ok())
      return ++late_ < 20 ? measure(i, counts) : answer.miss.with_context("a store that is well");
    Figures& f = figures_[i];
    f.bytes = answer.bytes_loaded;
    f.repaired = answer.repaired;
    if (!counts) return ok_status();
    f.ttft_ms.push_back(static_cast<double>(answer.ttft_ns) / 1e6);
    f.full_ms.push_back(static_cast<double>(full.ttft_ns) / 1e6);
    f.ratio.push_back(f.ttft_ms.back() / f.full_ms.back());
    return ok_status();
  }

  Status report() const {
    using Json = nlohmann::ordered_json;
    FILE* to = o_.models.model.json == "-" ? stderr : stdout;
    fmt::print(to, "{} tokens, {}; {}\nlink {} ({:.1f} x break-even), plan: {}\n", o_.models.context,
               o_.models.what(), models_->description(), format_rate(models_->rate()),
               models_->rate() / models_->break_even(), models_->plan_text());
    fmt::print(to, "{:<36} {:>12} {:>12} {:>8} {:>8} {:>12}\n", "store", "first token", "full prefill",
               "ratio", "most", "bytes used");
    Json stores = Json::array();
    for (size_t i : deaths_) {
      const Figures& f = figures_[i];
      const double most = *std::max_element(f.ratio.begin(), f.ratio.end());
      fmt::print(to, "{:<36} {:>9.1f} ms {:>9.1f} ms {:>8.3f} {:>8.3f} {:>12}\n", kDeaths[i].name,
                 median(f.ttft_ms), median(f.full_ms), median(f.ratio), most, format_bytes(f.bytes));
      stores.push_back({{"store", kDeaths[i].name},
                        {"median_ttft_ms", median(f.ttft_ms)},
                        {"median_full_prefill_ms", median(f.full_ms)},
                        {"median_ratio", median(f.ratio)},
                        {"ratios", f.ratio},
                        {"bytes_used", f.bytes},
                        {"repaired", f.repaired}});
    }
    if (o_.models.model.json.empty()) return ok_status();
    const Json json = {{"version", kVersion},
                       {"date", utc_date()},
                       {"cpu", cpu_name()},
                       {"backend", models_->description()},
                       {"shape", o_.models.what()},
                       {"context_tokens", o_.models.context},
                       {"suffix_tokens", o_.models.suffix},
                       {"plan", models_->plan_text()},
                       {"link_bytes_per_s", models_->rate()},
                       {"break_even_bytes_per_s", models_->break_even()},
                       {"stores", std::move(stores)}};
    return write_file_atomically(o_.models.model.json, json.dump(1) + "\n");
  }

  const DeadStoreOptions o_;
  std::vector<size_t> deaths_;  // that are measured
  std::unique_ptr<ServeModels> models_;
  Figures figures_[std::size(kDeaths)];
  int late_ = 0;
};

}  // namespace

Bench add_dead_store(CLI::App& app) {
  auto o = std::make_shared<DeadStoreOptions>();
  o->models.model.repeats = 5;
  o->models.receivers = 1;
  CLI::App* cmd = app.add_subcommand(
      "dead-store",
      "what a store that is dead, or dies, costs a request: its first token beside a full prefill's");
  add_serve_models(*cmd, o->models);
  std::vector<std::string> names;
  for (const DeathTraits& d : kDeaths) names.emplace_back(d.name);
  cmd->add_option("--only", o->only, "of the stores, these (repeatable), beside the one that is well")
      ->check(CLI::IsMember(names));
  cmd->add_option("--trace", o->trace, "write link and compute of the last run to FILE, as a Chrome trace");
  return [o] { return DeadStore(*o).run(); };
}

}  // namespace ds
