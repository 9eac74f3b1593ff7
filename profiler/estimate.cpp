#include "profiler/estimate.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <random>

#include "profiler/engine_internal.h"
#include "profiler/moments.h"
#include "support/brief_team.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kBudgetNs = 40'000'000;  // for each kind of work, unless two calls take longer

double number(int64_t value) { return static_cast<double>(value); }

/// Nanoseconds of one call of `work`, which gets the numbers 0, 1, ...: the mean of all but the first, which
/// pays for memory that nobody has touched; of the first alone where that takes seconds.
Result<double> time_of(const std::function<Status(int64_t)>& work) {
  auto call = [&](int64_t number) -> Result<int64_t> {
    const int64_t begin = now_ns();
    DS_TRY(work(number));
    return now_ns() - begin;
  };
  DS_ASSIGN(int64_t first, call(0));
  if (first > 50 * kBudgetNs) return number(first);
  int64_t total = 0, calls = 0;
  while (calls < 1 || (total < kBudgetNs && calls < 200)) {
    DS_ASSIGN(int64_t took, call(++calls));
    total += took;
  }
  return number(total) / number(calls);
}

int64_t forced_tokens(const Question& q) {
  return std::min<int64_t>(static_cast<int64_t>(q.reference.size()), kDivergenceTokens);
}

/// Of the contexts, that of the length which the average token's context has.
const std::vector<int32_t>& typical(const ProfileWork& work, const std::vector<Question>*& questions) {
  std::vector<const std::vector<int32_t>*> all;
  for (const ProfileContext& c : work.contexts) all.push_back(&c.tokens);
  if (all.empty())
    for (const auto& tokens : work.fit) all.push_back(&tokens);
  double sum = 0, squares = 0;
  for (const auto* tokens : all) {
    auto n = static_cast<double>(tokens->size());
    sum += n;
    squares += n * n;
  }
  auto distance = [&](const std::vector<int32_t>* tokens) {
    return std::abs(static_cast<double>(tokens->size()) - squares / sum);
  };
  auto at =
      std::min_element(all.begin(), all.end(), [&](auto* a, auto* b) { return distance(a) < distance(b); });
  if (!work.contexts.empty()) questions = &work.contexts[static_cast<size_t>(at - all.begin())].questions;
  return **at;
}

class Meter {
 public:
  Meter(Backend& backend, DeviceModel& model, const ProfileWork& work)
      : backend_(backend), model_(model), config_(model.config()), work_(work) {}

  Status reserve(int64_t context_tokens, bool answers) {
    n_ = context_tokens;
    const int64_t element = dtype_size(model_.dtype());
    most_rows_ = answers ? rows_at_once(config_, model_.dtype(), work_.limits) : 0;
    kv_row_ = config_.kv_row() * element;
    DS_ASSIGN(hidden_, backend_.allocate(std::max(n_, most_rows_) * config_.d_model * element));
    DS_ASSIGN(cache_, backend_.allocate((answers ? caches() : 1) * n_ * kv_row_));
    if (answers) {
      DS_ASSIGN(tails_, backend_.allocate(most_rows_ * kv_row_));
    }
    DS_ASSIGN(workspace_, model_.make_workspace(n_ + work_.limits.question));
    DS_ASSIGN(stream_, backend_.make_stream(StreamKind::kCompute, 16 + (answers ? caches() : 0)));
    return ok_status();
  }

  Result<double> layer_row(std::span<const int32_t> context) {
    DS_ASSIGN(double layer, time_of([&](int64_t call) -> Status {
                const int64_t l = call % config_.layers;
                if (l == 0) model_.embed(*stream_, context.data(), n_, hidden_->data());
                model_.layer(*stream_, *workspace_, {l, hidden_->data(), cache_->data(), 0, n_, n_});
                return stream_->synchronize();
              }));
    return layer / number(n_);
  }

  /// Fills a batch with all ways' questions, as the engine does.
  Status measure_answers(const std::vector<Question>& questions, Pace& pace) {
    std::vector<int32_t> ids;
    std::vector<SequenceRows> read, decode;
    std::vector<int64_t> last;  // rows whose logits are read
    int64_t tail = 0;
    // Ways read different caches, which cost more than one that all read.
    const int64_t caches = this->caches(), bytes = n_ * kv_row_;
    for (int64_t i = 1; i < caches; ++i) stream_->copy(cache_->data() + i * bytes, cache_->data(), bytes);
    DS_TRY(stream_->synchronize());
    for (size_t way = 0; way < work_.ways.size(); ++way) {
      for (const Question& q : questions) {
        const int64_t m = static_cast<int64_t>(q.suffix.size()), forced = forced_tokens(q);
        const int64_t rows = m + std::max(forced, q.max_new_tokens);
        if (tail + rows > most_rows_) break;
        const std::byte* prefix = cache_->data() + static_cast<int64_t>(way) % caches * bytes;
        SequenceRows s{tails_->data() + tail * kv_row_, n_, m + forced, m + forced, prefix, n_};
        read.push_back(s);
        s.position = n_ + m + q.max_new_tokens / 2;
        s.rows = s.query_rows = 1;
        decode.push_back(s);
        ids.insert(ids.end(), q.suffix.begin(), q.suffix.end());
        ids.insert(ids.end(), q.reference.begin(), q.reference.begin() + forced);
        for (int64_t i = 0; i <= forced; ++i)
          last.push_back(static_cast<int64_t>(ids.size()) - 1 - forced + i);
        tail += rows;
      }
    }
    DS_ASSIGN(double layer, time_of([&](int64_t call) { return batch(call, ids, read); }));
    pace.question_row = layer / static_cast<double>(ids.size());
    ids.resize(decode.size());
    DS_ASSIGN(layer, time_of([&](int64_t call) { return batch(call, ids, decode); }));
    pace.decode_row = layer / static_cast<double>(ids.size());
    return measure_logits(std::move(last), pace);
  }

 private:
  /// How many the engine has of each layer, of which a GiB is enough here.
  int64_t caches() const {
    const SharedRuns runs =
        shared_runs(work_.ways, std::vector<bool>(work_.ways.size(), true), config_.layers);
    auto selects =
        std::count_if(work_.ways.begin(), work_.ways.end(), [](const Way& way) { return way.selects(); });
    const auto all = static_cast<int64_t>(1 + runs.runs.size() + restored_with(work_.ways).size()) + selects;
    return std::clamp((int64_t{1} << 30) / (n_ * kv_row_), int64_t{1}, all);
  }
  Status batch(int64_t call, const std::vector<int32_t>& ids, const std::vector<SequenceRows>& sequences) {
    const int64_t l = call % config_.layers;
    if (l == 0) model_.embed(*stream_, ids.data(), static_cast<int64_t>(ids.size()), hidden_->data());
    model_.layer_batch(*stream_, *workspace_, l, hidden_->data(), sequences);
    return stream_->synchronize();
  }

  Status measure_logits(std::vector<int64_t> rows, Pace& pace) {
    const auto vocab = static_cast<size_t>(config_.vocab);
    rows.resize(std::min(rows.size(), std::max<size_t>(1, static_cast<size_t>(kLogitBytes) / (vocab * 4))));
    std::vector<float> logits(rows.size() * vocab);
    DS_ASSIGN(double all, time_of([&](int64_t) {
                model_.logits_batch(*stream_, *workspace_, hidden_->data(), rows, logits.data());
                return stream_->synchronize();
              }));
    pace.logits_row = all / static_cast<double>(rows.size());
    std::vector<double> sums(rows.size());
    auto compare = [&](int64_t) {
      const BriefTeam team;
#pragma omp parallel for schedule(dynamic, 1)
      for (size_t i = 0; i < rows.size(); ++i) {
        std::span<float> row = std::span(logits).subspan(i * vocab, vocab);
        log_softmax(row);
        sums[i] = divergence(row, row);
      }
      return ok_status();
    };
    DS_ASSIGN(all, time_of(compare));
    pace.score_row = all / static_cast<double>(rows.size());
    return ok_status();
  }

  Backend& backend_;
  DeviceModel& model_;
  const ModelConfig& config_;
  const ProfileWork& work_;
  int64_t n_ = 0, most_rows_ = 0, kv_row_ = 0;
  std::unique_ptr<DeviceMemory> hidden_, cache_, tails_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<CommandStream> stream_;
};

std::vector<double> random_rows(int64_t rows, int64_t d) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> values(static_cast<size_t>(rows * d));
  for (double& v : values) v = normal(random);
  return values;
}

/// Sums and maps of random numbers. Maps of wide models are told by those of narrow ones: the work grows with
/// the third power of the width.
Status measure_maps(int64_t d, int64_t tokens, const std::vector<MapForm>& forms, Pace& pace) {
  const int64_t rows = std::min<int64_t>(tokens, 256);
  {
    CutMoments sums(d);
    const std::vector<double> x = random_rows(rows, d);
    DS_ASSIGN(double block, time_of([&](int64_t) {
                sums.add(x, x, weigh_tokens(x, x, d).weight);
                return ok_status();
              }));
    pace.sums_row = block / number(rows);
  }
  const int64_t narrow = std::min<int64_t>(d, 128);
  CutMoments fit(narrow), held_out(narrow);
  HeldOut tried(narrow, narrow);
  const std::vector<double> x = random_rows(4 * narrow, narrow), r = random_rows(4 * narrow + 1, narrow);
  const std::span<const double> y = std::span(r).subspan(static_cast<size_t>(narrow));
  const TokenWeights weights = weigh_tokens(x, y, narrow);
  fit.add(x, y, weights.weight);
  held_out.add(x, y, weights.weight);
  tried.add(x, y, weights);
  const FitRequest request{1, forms, std::max<int64_t>(1, narrow / 8), /*control=*/true};
  DS_ASSIGN(double solve, time_of([&](int64_t) { return fit_maps(request, fit, held_out, tried).status(); }));
  pace.solve = solve * std::pow(number(d) / number(narrow), 3);
  return ok_status();
}

}  // namespace

Result<Pace> measure_pace(Backend& backend, DeviceModel& receiver, const ProfileWork& work,
                          const std::vector<MapForm>& forms) {
  const int64_t begin = now_ns();
  Pace pace;
  if (work.contexts.empty() && work.fit.empty())
    return error(Code::kInvalidArgument, "no context to measure the time of a run on; expected at least one");
  const std::vector<Question>* questions = nullptr;
  const std::vector<int32_t>& context = typical(work, questions);
  pace.context_tokens = static_cast<int64_t>(context.size());
  Meter meter(backend, receiver, work);
  DS_TRY(meter.reserve(pace.context_tokens, questions != nullptr));
  DS_ASSIGN(pace.layer_row, meter.layer_row(context));
  if (questions != nullptr) DS_TRY(meter.measure_answers(*questions, pace));
  if (!work.fit.empty()) DS_TRY(measure_maps(receiver.config().d_model, pace.context_tokens, forms, pace));
  pace.measured_s = number(now_ns() - begin) / 1e9;
  return pace;
}

TimeEstimate estimate_time(const Pace& pace, const ProfileWork& work, const ModelConfig& config,
                           const FitOptions& fit) {
  TimeEstimate out;
  const int64_t layers = config.layers;
  const double maps = number(layers - 1) * (fit.shuffled ? 2 : 1);
  if (!work.fit.empty())
    out.fit_s = (number(work.fit_tokens) * (2 * number(layers - 1) * pace.layer_row + maps * pace.sums_row) +
                 maps * pace.solve) /
                1e9;
  if (work.contexts.empty()) return out;
  // All of a context's runs, in layers: parts of a layer by their share of its weights.
  const double d = number(config.d_model), kv = d * number(config.kv_row()),
               weights = 2 * d * number(config.heads * config.head_dim) + kv + 3 * d * number(config.ff),
               kv_share = kv / weights, map_share = d * d / weights;
  const SharedRuns runs = shared_runs(work.ways, std::vector<bool>(work.ways.size(), true), layers);
  double layer_runs = number(runs.layer_runs(layers));
  for (const SharedRuns::Run& run : runs.runs) layer_runs += run.maps.form != MapForm::kNone ? map_share : 0;
  for (const MapKey& key : restored_with(work.ways))
    layer_runs += number(layers) * (kv_share + (key.form != MapForm::kNone ? map_share : 0));
  for (const Way& way : work.ways)
    if (way.selects()) layer_runs += 1 + way.share * number(layers - 1);
  for (const ProfileContext& c : work.contexts) {
    double rows = 0, logits = 0, steps = 0, most_steps = 0;
    for (const Question& q : c.questions) {
      const int64_t forced = forced_tokens(q);
      rows += static_cast<double>(q.suffix.size()) + number(forced);
      logits += number(forced + 1);
      // The first token is known with the question.
      most_steps += number(q.max_new_tokens - 1);
      steps += number(std::min(q.max_new_tokens - 1, static_cast<int64_t>(q.reference.size())));
    }
    const double run = layer_runs * static_cast<double>(c.tokens.size()) * pace.layer_row,
                 read =
                     rows * number(layers) * pace.question_row + logits * (pace.logits_row + pace.score_row),
                 step = number(layers) * pace.decode_row + pace.logits_row,
                 ways = static_cast<double>(work.ways.size());
    out.context_s.push_back((run + ways * (read + steps * step)) / 1e9);
    out.longest_s.push_back((run + ways * (read + most_steps * step)) / 1e9);
  }
  return out;
}

namespace {

/// How long runs with other ways and fewer contexts take.
class Estimator {
 public:
  Estimator(const Pace& pace, const ProfileWork& work, const ModelConfig& config, const ProfileOptions& asked)
      : pace_(pace), config_(config), fit_share_(asked.fit_share), fit_(asked.fit) {
    for (const ProfileContext& c : work.contexts) {
      scored_.contexts.push_back({{}, c.tokens, c.questions, {}});
      tokens_.push_back(static_cast<int64_t>(c.entry.size()));
    }
    if (fit_share_ > 0) {
      for (auto at = work.fit.rbegin(); at != work.fit.rend(); ++at)
        tokens_.push_back(static_cast<int64_t>(at->size()));
    } else {
      fit_tokens_ = work.fit_tokens;
    }
  }

  int64_t contexts() const { return static_cast<int64_t>(tokens_.size()); }

  Result<double> seconds(const ProfileOptions& o) {
    const int64_t most = o.most_contexts > 0 ? std::min(o.most_contexts, contexts()) : contexts();
    const auto aside = static_cast<int64_t>(std::ceil(fit_share_ * number(most)));
    if (!(o.ways == of_)) {
      DS_ASSIGN(scored_.ways, all_ways(config_.layers, o.ways));
      by_context_ = estimate_time(pace_, scored_, config_, fit_).context_s;
      of_ = o.ways;
    }
    ProfileWork fit;
    fit.fit_tokens = fit_tokens_;
    for (int64_t i = most - aside; i < most; ++i) fit.fit_tokens += tokens_[static_cast<size_t>(i)];
    if (fit.fit_tokens > 0) fit.fit.emplace_back();
    FitOptions options = fit_;
    options.shuffled = o.ways.shuffled;
    double sum = estimate_time(pace_, fit, config_, options).fit_s;
    for (int64_t i = 0; i < most - aside; ++i) sum += by_context_[static_cast<size_t>(i)];
    return sum;
  }

 private:
  const Pace& pace_;
  const ModelConfig& config_;
  const double fit_share_;
  const FitOptions fit_;
  ProfileWork scored_;
  std::vector<int64_t> tokens_;  // of all contexts, in the run's order
  int64_t fit_tokens_ = 0;       // of files of their own
  WayOptions of_ = {.granularity = -1};
  std::vector<double> by_context_;
};

}  // namespace

Result<Budgeted> fit_budget(const Budget& budget, const ProfileOptions& asked, const Pace& pace,
                            const ProfileWork& work, const ModelConfig& config) {
  Estimator estimator(pace, work, config, asked);
  Budgeted out{asked};
  ProfileOptions& o = out.options;
  std::vector<std::string> given_up;
  auto fits = [&]() -> Result<bool> {
    DS_ASSIGN(out.seconds, estimator.seconds(o));
    return out.seconds <= budget.seconds;
  };
  // Each of the steps gives up as little as it can; true: that was enough.
  auto fewer_sets = [&]() -> Result<bool> {
    if (budget.scattered_given || o.ways.scattered <= 1) return false;
    given_up.push_back(fmt::format("{} scattered sets of each size -> 1", o.ways.scattered));
    o.ways.scattered = 1;
    return fits();
  };
  auto coarser = [&](int64_t least_blocks) -> Result<bool> {
    const int64_t before = o.ways.granularity;
    bool enough = false;
    while (!budget.granularity_given && !enough) {
      const int64_t next = o.ways.granularity + 1;
      if ((config.layers + next - 1) / next < least_blocks) break;
      o.ways.granularity = next;
      DS_ASSIGN(enough, fits());
    }
    if (o.ways.granularity > before)
      given_up.push_back(fmt::format("granularity {} -> {}", before, o.ways.granularity));
    return enough;
  };
  auto no_controls = [&]() -> Result<bool> {
    WayOptions& w = o.ways;
    if (!budget.scattered_given) w.scattered = 0;
    w.select_shares.clear();
    w.reuse_only = w.sender_alone = w.other_document = w.shuffled = o.fit.shuffled = false;
    given_up.push_back(
        "controls (scattered sets, token selection, single layers, the sender alone, another document's "
        "cache, "
        "shuffled maps)");
    return fits();
  };
  const int64_t all = asked.most_contexts > 0 ? asked.most_contexts : estimator.contexts();
  auto fewer_contexts = [&](int64_t least) -> Result<bool> {
    const int64_t before = o.most_contexts > 0 ? o.most_contexts : all;
    if (before <= least) return false;
    o.most_contexts = least;
    given_up.push_back(fmt::format("{} contexts -> {}", before, least));
    return fits();
  };
  // Of the contexts that were given up as many are taken back as fit.
  auto take_back = [&]() -> Status {
    if (o.most_contexts == asked.most_contexts) return ok_status();
    int64_t low = o.most_contexts, high = all;
    while (high - low > 1) {
      o.most_contexts = low + (high - low) / 2;
      DS_ASSIGN(bool here, fits());
      (here ? low : high) = o.most_contexts;
    }
    o.most_contexts = low;
    std::erase_if(given_up, [](const std::string& what) { return what.find(" contexts -> ") != what.npos; });
    given_up.push_back(fmt::format("{} contexts -> {}", all, low));
    return fits().status();
  };
  const std::function<Result<bool>()> steps[] = {fits,
                                                 fewer_sets,
                                                 [&] { return coarser(8); },
                                                 no_controls,
                                                 [&] { return fewer_contexts(30); },
                                                 [&] { return coarser(4); },
                                                 [&] { return fewer_contexts(10); }};
  for (const auto& step : steps) {
    DS_ASSIGN(bool enough, step());
    if (!enough) continue;
    DS_TRY(take_back());
    out.given_up = fmt::format("{}", fmt::join(given_up, ", "));
    return out;
  }
  return error(
      Code::kInfeasible,
      "--budget: {:.0f} seconds are too few: after giving up {} the run would still take about {:.0f} "
      "seconds; give more time, or shorter contexts (--truncate)",
      budget.seconds, fmt::join(given_up, ", "), out.seconds);
}

}  // namespace ds
