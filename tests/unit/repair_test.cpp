// What a run becomes when transfers are lost, whichever, whenever. What comes of it is a tiling: every cell's
// K and V are the sender's, or what the receiver computes from the cell below, from sent hidden states or
// from the embeddings, in sight of exactly the K and V that are there at the end. Transfers run by hand here,
// so that each one can fail at every moment.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <set>

#include "plans/traits.h"
#include "runtime/core/publish.h"
#include "runtime/engine/plan_run.h"
#include "tests/unit/aligned_plans.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/policy_plans.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using testing::compile_tiles;
using testing::exact_rows;
using testing::plain_cuts;
using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

constexpr int64_t kContext = 64 * 3 + 21, kSuffix = 70;
constexpr uint64_t kSame = 11, kOther = 12;  // seeds of the receiver
constexpr int64_t kRank = 3;

/// The receiver, and through what it takes the hidden states that it is sent. The maps of one that is the
/// sender add nothing.
struct Setting {
  const char* name;
  uint64_t receiver;
  MapForm form = MapForm::kNone;
};

using Bytes = std::vector<std::byte>;

/// When a transfer comes, or is known to be lost.
enum class Moment { kAtOnce, kWhenNothingElseRuns, kAnyTime };

/// Of a transfer.
struct Rows {
  int32_t layer = 0;
  int64_t first = 0, rows = 0;
};

struct Outcome {
  std::vector<Bytes> caches;  // by layer
  std::vector<float> logits;
  bool repaired = false, exact = false;
  std::vector<Rows> given_up;  // transfers that were neither lost nor used
  size_t came = 0;             // transfers
};

class Repair : public ::testing::TestWithParam<Setting> {
 protected:
  Repair()
      : sender(tiny_config(Family::kLlama), kSame, DType::kF32),
        model(tiny_config(Family::kLlama), GetParam().receiver, DType::kF32) {
    if (!exact_rows()) return;
    shape = model.model->config().shape();
    context = random_ids(kContext, shape.vocab, 1);
    tokens = context;
    for (int32_t id : random_ids(kSuffix, shape.vocab, 2)) tokens.push_back(id);
    folder = ::testing::TempDir() + "/ds_repair_" + std::to_string(getpid());
    std::filesystem::remove_all(folder);
    store = take(open_store("file:" + folder));
    take(publish(*sender.backend, *sender.model, sender.identity, context, *store,
                 {.cuts = plain_cuts({1, 2, 3, 4})}));
    compute = take(model.backend->make_stream(StreamKind::kCompute, 4096));
    make_maps();
    workspace = take(model.model->make_workspace(kContext + kSuffix));
    kv_row = 4 * shape.kv_row();
    hidden_row = 4 * shape.e_row();
    landing = take(Landing::create(*model.backend, std::max(kv_row, hidden_row)));
  }
  ~Repair() override { std::filesystem::remove_all(folder); }
  void SetUp() override {
    if (!exact_rows()) GTEST_SKIP() << "rows depend on how they are split";
  }
  bool same() const { return GetParam().receiver == kSame; }
  bool aligned() const { return GetParam().form != MapForm::kNone; }

  void make_maps() {
    if (!aligned()) return;
    std::mt19937_64 generator(5);
    std::normal_distribution<float> normal(0, 0.1f);
    maps = testing::make_maps(shape, kRank, [&](int64_t, const std::string&, std::vector<float>& numbers) {
      for (float& x : numbers) x = same() ? 0 : normal(generator);
    });
    testing::set_pair(maps, sender.identity, model.identity);
    for (int64_t l = 1; l < shape.layers; ++l)
      loaded[l] = take(model.model->load_map(*maps.find(l, GetParam().form)));
    cuts = {GetParam().form, {"maps", maps.fingerprint()}, kRank};
  }

  Plan compiled(std::vector<Tile> tiles, int32_t chunks, std::string_view scheduler = "best") const {
    std::ranges::stable_sort(tiles, {}, &Tile::first_layer);
    return compile_tiles(tiles, chunks, scheduler, shape, sender.identity, model.identity, 0,
                         testing::sends_hidden_states(tiles) ? cuts : testing::AlignedCuts{});
  }
  std::vector<Plan> plans() const {
    auto all = testing::plans_of_policies(shape, sender.identity, model.identity, {1, 3}, cuts);
    // Groups above each other, cells of which others have to see the right ones, stairs.
    using enum Mode;
    all.push_back(compiled(
        {{kLoad, 0, 4, 0, 0}, {kLoad, 0, 1, 1, 2}, {kRecompute, 2, 3, 1, 2, true}, {kLoad, 4, 4, 1, 2}}, 3));
    all.push_back(compiled(
        {{kRecompute, 0, 1, 0, 2}, {kLoad, 2, 2, 0, 2}, {kRecompute, 3, 3, 0, 2, true}, {kLoad, 4, 4, 0, 2}},
        3));
    all.push_back(compiled({{kRecompute, 0, 3, 0, 0},
                            {kLoad, 4, 4, 0, 0},
                            {kRecompute, 0, 1, 1, 1},
                            {kLoad, 2, 4, 1, 1},
                            {kLoad, 0, 4, 2, 2}},
                           3));
    all.push_back(compiled({{kLoad, 0, 0, 0, 2}, {kRestore, 1, 4, 0, 2}}, 3));
    std::erase_if(all, [&](const Plan& p) {
      return std::ranges::none_of(p.variants[0].ops, [](const Op& op) { return is_transfer(op); }) ||
             p.variants[0].aligns() != aligned();
    });
    return all;
  }

  static size_t transfers_of(const Plan& plan) {
    const Variant& v = plan.variants[0];
    return static_cast<size_t>(std::ranges::count_if(v.ops, [&](const Op& op) {
      return is_transfer(op) && op_rows(op, v.chunks, kContext, kSuffix, v.select_share).rows > 0;
    }));
  }
  static Rows rows_of(const Plan& plan, size_t number) {
    const Variant& v = plan.variants[0];
    for (const Op& op : v.ops) {
      const OpRows at = op_rows(op, v.chunks, kContext, kSuffix, v.select_share);
      if (is_transfer(op) && at.rows > 0 && number-- == 0) return {op.layer, at.first, at.rows};
    }
    return {};
  }

  /// What is sent comes chunk by chunk.
  static std::vector<Tile> by_chunk(const std::vector<Tile>& tiles) {
    std::vector<Tile> all;
    for (Tile t : tiles)
      if (t.mode == Mode::kRecompute)
        all.push_back(t);
      else
        for (int32_t c = t.first_chunk, last = t.last_chunk; c <= last; ++c) {
          t.first_chunk = t.last_chunk = c;
          all.push_back(t);
        }
    return all;
  }

  Segments segments_of(const Plan& plan) {
    Request request{.context = context, .suffix = std::span(tokens).subspan(kContext)};
    return take(Segments::open(*store, request, plan, plan.variants[0], "", DType::kF32));
  }

  Outcome run(const Plan& plan, const std::set<size_t>& failing, Moment moment, uint64_t seed = 1) {
    std::mt19937 random(static_cast<unsigned>(seed));
    auto any = [&](unsigned of) { return random() % of; };
    const ReceiverPlan given[] = {{&plan, plan.variants[0].aligns() ? &maps : nullptr}};
    auto receiver = take(Receiver::create("r", *model.model, model.identity, given));
    PlanRun run(*receiver, 0, plan.variants[0], {0, kContext, kSuffix}, tokens);
    Outcome out;
    // What nobody has written is no number.
    auto rows_of_nothing = [](int64_t bytes) { return Bytes(static_cast<size_t>(bytes), std::byte{0xff}); };
    std::vector<Bytes> hidden;
    Bytes positions(static_cast<size_t>(kContext) * 4);
    RunMemory memory;
    for (int64_t l = 0; l < shape.layers; ++l)
      out.caches.push_back(rows_of_nothing((kContext + kSuffix) * kv_row));
    for (size_t i = 0; i < run.hidden_buffers(); ++i)
      hidden.push_back(rows_of_nothing((kContext + kSuffix) * hidden_row));
    for (auto& c : out.caches) memory.caches.push_back(c.data());
    for (auto& h : hidden) memory.hidden.push_back(h.data());
    out.logits.resize(static_cast<size_t>(shape.vocab));
    int32_t next = 0;
    memory.positions = positions.data();
    memory.workspace = workspace.get();
    memory.logits = out.logits.data();
    memory.next = &next;

    auto segments = std::make_shared<Segments>(segments_of(plan));
    std::vector<TransferJob> link;
    auto fail = [&](const TransferJob& job) {
      const int64_t row = job.payload == Payload::kE ? hidden_row : kv_row;
      std::memset(job.to, 0xff, static_cast<size_t>(job.rows * row));
      if (run.all_or_nothing()) {
        for (const TransferJob& other : link) out.given_up.push_back({other.layer, other.first, other.rows});
        link.clear();
        run.lose_transfers();
      } else {
        run.lost(job.index);
      }
      run.repair();
      for (int32_t index : run.needless()) {
        const auto at = std::ranges::find(link, index, &TransferJob::index);
        if (at == link.end() || (at == link.begin() && any(2) == 0)) continue;  // it is being read
        out.given_up.push_back({at->layer, at->first, at->rows});
        link.erase(at);
        run.lost(index);
      }
    };
    while (!run.finished()) {
      for (TransferJob& job : run.take_transfers(memory, segments, 1, 0)) link.push_back(std::move(job));
      const auto piece = run.next(any(3) == 0 ? 0 : 1e18);
      EXPECT_TRUE(piece || !link.empty()) << "it waits for nothing";
      if (!piece && link.empty()) break;
      const bool comes = !link.empty() &&
                         (moment == Moment::kAtOnce || !piece || (moment == Moment::kAnyTime && any(2) == 0));
      if (comes) {
        const auto first = std::ranges::min_element(link, {}, &TransferJob::index);
        const TransferJob job = std::move(*first);
        link.erase(first);
        if (failing.contains(static_cast<size_t>(job.index))) {
          fail(job);
        } else {
          EXPECT_TRUE(
              segments
                  ->read(*landing, job.source, {job.payload, job.layer, job.first, job.rows, job.map}, job.to)
                  .ok());
          run.arrived(job.index);
          ++out.came;
        }
        continue;
      }
      SequenceRows storage;
      run.issue(*piece, *compute, memory, storage);
      EXPECT_TRUE(compute->synchronize().ok());
      run.complete(*piece);
    }
    out.repaired = run.repaired();
    out.exact = run.exact();
    return out;
  }

  /// Rows of what was published; hidden states as the receiver takes them.
  Bytes sent(Segments& segments, Payload payload, int32_t layer, int64_t first, int64_t rows) {
    Bytes out(static_cast<size_t>(rows * (payload == Payload::kE ? hidden_row : kv_row)));
    EXPECT_TRUE(segments.read(*landing, 0, {payload, layer, first, rows, ""}, out.data()).ok());
    if (payload == Payload::kE && aligned()) {
      model.model->align(*compute, *workspace, *loaded.at(layer), out.data(), rows);
      EXPECT_TRUE(compute->synchronize().ok());
    }
    return out;
  }

  /// Checks that it is a tiling. Returns how many cells of the context are the sender's.
  int check_tiling(const Plan& entry, const Outcome& out) {
    int loaded = 0;
    Segments segments = segments_of(entry);
    for (int64_t first = 0; first < kContext + kSuffix;) {
      const int64_t end = first < kContext ? std::min(kContext, (first / 64 + 1) * 64) : kContext + kSuffix;
      const int64_t rows = end - first;
      std::vector<Bytes> below;  // what the cell below, if it is R's own, leaves
      for (int32_t l = 0; l < shape.layers; ++l) {
        std::vector<Bytes> from = std::move(below);
        below.clear();
        if (l == 0) {
          from.emplace_back(static_cast<size_t>(rows * hidden_row));
          model.model->embed(*compute, tokens.data() + first, rows, from.back().data());
          EXPECT_TRUE(compute->synchronize().ok());
        } else if (first < kContext) {
          from.push_back(sent(segments, Payload::kE, l, first, rows));
        }
        const Bytes& cache = out.caches[static_cast<size_t>(l)];
        const auto at = cache.begin() + first * kv_row, past = cache.begin() + end * kv_row;
        for (Bytes& hidden : from) {
          Bytes own(cache.begin(), past);
          std::fill(own.begin() + first * kv_row, own.end(), std::byte{0xff});
          model.model->layer(*compute, *workspace,
                             {l, hidden.data(), own.data(), first, rows, l + 1 < shape.layers ? rows : 1});
          EXPECT_TRUE(compute->synchronize().ok());
          if (std::equal(at, past, own.begin() + first * kv_row)) below.push_back(std::move(hidden));
        }
        if (below.empty()) {
          if (first >= kContext ||
              !std::equal(at, past, sent(segments, Payload::kKv, l, first, rows).begin())) {
            ADD_FAILURE() << "layer " << l << ", rows " << first << " to " << end - 1
                          << ": neither sent nor what is computed in sight of the others";
            return loaded;
          }
          ++loaded;
        }
      }
      if (end == kContext + kSuffix) {
        EXPECT_FALSE(below.empty());
        std::vector<float> logits(out.logits.size());
        model.model->logits(*compute, *workspace, below[0].data() + (rows - 1) * hidden_row, logits.data());
        EXPECT_TRUE(compute->synchronize().ok());
        EXPECT_EQ(std::memcmp(logits.data(), out.logits.data(), logits.size() * 4), 0) << "the first token";
      }
      first = end;
    }
    return loaded;
  }

  void expect_equal(const Outcome& expected, const Outcome& out) {
    for (size_t l = 0; l < out.caches.size(); ++l)
      EXPECT_TRUE(expected.caches[l] == out.caches[l]) << "layer " << l;
    EXPECT_EQ(std::memcmp(expected.logits.data(), out.logits.data(), out.logits.size() * 4), 0);
  }

  TinyModel sender, model;
  Shape shape;
  MapSet maps;
  std::map<int64_t, std::unique_ptr<DeviceMap>> loaded;  // by layer
  testing::AlignedCuts cuts;
  std::vector<int32_t> context, tokens;
  std::string folder;
  std::unique_ptr<Store> store;
  std::unique_ptr<CommandStream> compute;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<Landing> landing;
  int64_t kv_row = 0, hidden_row = 0;
};

/// Every transfer of every plan, at every moment: by itself, and several.
TEST_P(Repair, IsATiling) {
  const Outcome full = run(compiled({{Mode::kRecompute, 0, 4, 0, 0}}, 1), {}, Moment::kAtOnce);
  const char* many = std::getenv("DROIDSPEAK_SEEDS");
  const unsigned several = many != nullptr ? static_cast<unsigned>(std::atoi(many)) : 6;
  int runs = 0, repaired = 0;
  for (const Plan& plan : plans()) {
    const size_t k = transfers_of(plan);
    std::vector<std::set<size_t>> cases{{}};
    for (size_t i = 0; i < k; ++i) cases.push_back({i});
    std::mt19937 random(7);
    for (unsigned i = 0; i < several; ++i) {
      std::set<size_t> failing;
      for (size_t j = 0; j < k; ++j)
        if (random() % 3 == 0) failing.insert(j);
      cases.push_back(std::move(failing));
    }
    for (const auto& failing : cases) {
      for (Moment moment : {Moment::kAtOnce, Moment::kWhenNothingElseRuns, Moment::kAnyTime}) {
        SCOPED_TRACE(fmt::format("{}, {} chunks, {} of {} transfers fail, the first one {}, moment {}",
                                 plan.variants[0].why, plan.variants[0].chunks, failing.size(), k,
                                 failing.empty() ? 0 : *failing.begin(), static_cast<int>(moment)));
        const Outcome out = run(plan, failing, moment, static_cast<uint64_t>(++runs));
        repaired += out.repaired ? 1 : 0;
        if (same()) {
          expect_equal(full, out);
        } else if (plan.variants[0].select_share == 0) {
          const int loaded = check_tiling(plan, out);
          EXPECT_TRUE(!out.exact || loaded == 0) << loaded << " cells";
        }
        if (out.exact) expect_equal(full, out);
        // What is given up besides is below, and of no rows before it.
        for (const Rows& rows : out.given_up) {
          EXPECT_TRUE(std::ranges::any_of(failing,
                                          [&](size_t f) {
                                            const Rows lost = rows_of(plan, f);
                                            return lost.layer >= rows.layer &&
                                                   lost.first < rows.first + rows.rows;
                                          }) ||
                      plan.variants[0].select_share > 0);
        }
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_GT(repaired, runs / 2);
  RecordProperty("runs", runs);
}

/// The repaired run is the plan that has those cells recomputed from the beginning.
TEST_P(Repair, IsThePlanWithTheseCellsRecomputed) {
  using enum Mode;
  struct Case {
    const char* what;
    std::vector<Tile> tiles;
    int32_t lost_layer;
    int64_t lost_first;  // row
    bool e;
    std::vector<Tile> by_hand;
  };
  const std::vector<Tile> group{{kLoad, 0, 1, 0, 2}, {kRecompute, 2, 3, 0, 2, true}, {kLoad, 4, 4, 0, 2}};
  const Case cases[] = {
      {"from the embeddings",
       {{kLoad, 0, 4, 0, 2}},
       2,
       64,
       false,
       {{kLoad, 0, 4, 0, 0}, {kRecompute, 0, 2, 1, 1}, {kLoad, 3, 4, 1, 1}, {kLoad, 0, 4, 2, 2}}},
      {"from the group below",
       group,
       4,
       128,
       false,
       {{kLoad, 0, 1, 0, 2}, {kRecompute, 2, 3, 0, 2, true}, {kLoad, 4, 4, 0, 1}, {kRecompute, 4, 4, 2, 2}}},
      {"a group's cut",
       group,
       2,
       0,
       true,
       {{kRecompute, 0, 3, 0, 0},
        {kLoad, 4, 4, 0, 0},
        {kLoad, 0, 1, 1, 2},
        {kRecompute, 2, 3, 1, 2, true},
        {kLoad, 4, 4, 1, 2}}},
      {"one restored layer",
       {{kLoad, 0, 0, 0, 2}, {kRestore, 1, 3, 0, 2}, {kLoad, 4, 4, 0, 2}},
       4,
       64,
       false,
       {{kLoad, 0, 0, 0, 2},
        {kRestore, 1, 2, 0, 2},
        {kRestore, 3, 3, 0, 0},
        {kRecompute, 3, 4, 1, 1, true},
        {kRestore, 3, 3, 2, 2},
        {kLoad, 4, 4, 0, 0},
        {kLoad, 4, 4, 2, 2}}},
  };
  for (const Case& c : cases) {
    if (aligned() && !testing::sends_hidden_states(c.tiles)) continue;
    SCOPED_TRACE(c.what);
    const Plan plan = compiled(by_chunk(c.tiles), 3, "e-first");
    const Variant& v = plan.variants[0];
    std::set<size_t> failing;
    for (size_t i = 0, number = 0; i < v.ops.size(); ++i) {
      if (!is_transfer(v.ops[i])) continue;
      const OpRows at = op_rows(v.ops[i], v.chunks, kContext, kSuffix, 0);
      if (v.ops[i].layer == c.lost_layer && at.first <= c.lost_first && c.lost_first < at.first + at.rows &&
          (v.ops[i].payload == Payload::kE) == c.e)
        failing.insert(number);
      ++number;
    }
    ASSERT_EQ(failing.size(), 1u);
    const Outcome expected = run(compiled(c.by_hand, 3), {}, Moment::kAtOnce);
    EXPECT_FALSE(expected.repaired);
    for (Moment moment : {Moment::kAtOnce, Moment::kWhenNothingElseRuns, Moment::kAnyTime}) {
      const Outcome out = run(plan, failing, moment, 3);
      EXPECT_TRUE(out.repaired);
      EXPECT_FALSE(out.exact);
      expect_equal(expected, out);
      EXPECT_EQ(out.came + out.given_up.size() + 1, transfers_of(plan));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Receivers, Repair,
                         ::testing::Values(Setting{"TheSender", kSame}, Setting{"Another", kOther},
                                           Setting{"TheSenderAligned", kSame, MapForm::kFull},
                                           Setting{"AnotherAligned", kOther, MapForm::kFull},
                                           Setting{"AnotherByLowRank", kOther, MapForm::kLowRank}),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace ds
