// What the profiler promises is what a request gets: the engine that scores ways shares runs of layers
// between them, the executor runs one plan; for every mode, form of maps and set of layers both give the same
// answers and the same first-token distributions, to the bit where kernels are row-invariant.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <random>

#include "compiler/pipeline.h"
#include "plans/full_prefill.h"
#include "plans/way.h"
#include "profiler/engine.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

constexpr int64_t kLayers = 5, kContext = 150, kNewTokens = 6, kRank = 4;

/// A map of every form for every layer.
MapSet random_maps(const TinyModel& sender, const TinyModel& receiver, uint64_t seed) {
  const int64_t d = receiver.model->config().d_model;
  MapSet set;
  set.layers = kLayers;
  set.d_model = d;
  set.sender_fingerprint = sender.identity.fingerprint;
  set.receiver_fingerprint = receiver.identity.fingerprint;
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal(0, 0.05f);
  auto numbers = [&](int64_t count) {
    std::vector<float> v(static_cast<size_t>(count));
    for (float& x : v) x = normal(generator);
    return v;
  };
  for (int64_t l = 1; l < kLayers; ++l) {
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) {
      AlignmentMap& m = set.maps.emplace_back();
      m.layer = l;
      m.form = form;
      m.bias = numbers(d);
      if (form != MapForm::kFull) m.scale = numbers(d);
      if (form == MapForm::kFull) m.weight = numbers(d * d);
      if (form != MapForm::kLowRank) continue;
      m.rank = kRank;
      m.up = numbers(d * kRank);
      m.down = numbers(kRank * d);
    }
  }
  return set;
}

/// The tiling that a way is the signature of.
std::vector<Tile> tiles_of(const Way& way) {
  const int32_t top = kLayers - 1;
  if (way.selects()) return {{Mode::kRecompute, 0, 0, 0, 0, false}, {Mode::kSelect, 1, top, 0, 0, false}};
  std::vector<LayerRange> ranges = way.layers;
  if (way.is_full_prefill()) ranges = {{0, top}};
  const Mode mode = way.restores() ? Mode::kRestore : Mode::kRecompute;
  std::vector<Tile> tiles;
  int32_t next = 0;
  auto add = [&](Mode m, int32_t first, int32_t last, bool cut) {
    if (first <= last) tiles.push_back({m, first, last, 0, 0, cut});
  };
  for (const LayerRange& r : ranges) {
    const auto first = static_cast<int32_t>(r.first), last = static_cast<int32_t>(r.last);
    add(Mode::kLoad, next, first - 1, false);
    add(mode, first, last, mode == Mode::kRecompute && first > 0);
    next = last + 1;
  }
  add(Mode::kLoad, next, top, false);
  return tiles;
}

Plan plan_of(const Way& way, const TinyModel& sender, const TinyModel& receiver, MapSide side,
             const MapsIdentity& maps) {
  const Shape shape = receiver.model->config().shape();
  Plan head = full_prefill_plan(receiver.identity, shape, "bf16");
  head.sender = sender.identity;
  if (way.map != MapForm::kNone) head.maps = maps;
  ChosenVariant whole, chosen;
  whole.fallback = true;
  whole.variant.name = whole.variant.policy = "full-prefill";
  whole.variant.tiles = head.full_prefill.tiles;
  whole.variant.tuned_tokens = kContext;
  whole.variant.tuned_suffix = 4;
  chosen.variant = whole.variant;
  chosen.variant.name = "v0";
  chosen.variant.policy = "test";
  chosen.variant.tiles = tiles_of(way);
  chosen.variant.select_share = way.share;
  chosen.variant.tuned_rate = 1'000'000;
  chosen.variant.map_form = way.map;
  if (way.map != MapForm::kNone) chosen.variant.map_side = side;
  PipelineOptions options;
  options.machine = MachineModel::stand_in(DType::kBF16);
  options.map_rank = kRank;
  return *take(run_pipeline(head, std::vector<ChosenVariant>{chosen, whole}, options)).plan;
}

class Service : public ::testing::TestWithParam<std::tuple<Family, DType>> {};

TEST_P(Service, GivesWhatTheProfileScored) {
  auto [family, dtype] = GetParam();
  TinyModel sender(tiny_config(family), 2, dtype), receiver(tiny_config(family), 1, dtype);
  const MapSet own = random_maps(sender, receiver, 5), wrong = random_maps(sender, receiver, 6);
  const std::map<std::string, const MapSet*> maps = {{"", &own}, {kShuffled, &wrong}};
  WayOptions options;
  options.scattered = 1;
  options.align = {MapForm::kFull, MapForm::kLowRank, MapForm::kDiagonal};
  options.shuffled = true;
  std::vector<Way> ways = take(all_ways(kLayers, options));
  // Sensitivities stand on the receiver's own hidden states, and the sender alone is no cache: no plan is
  // either of them.
  std::erase_if(ways, [](const Way& w) {
    return w.control == Control::kReuseOnly || w.control == Control::kSenderAlone;
  });

  const auto context = random_ids(kContext, 300, 7);
  const std::vector<Question> questions = {{random_ids(4, 300, 20), random_ids(3, 300, 30), kNewTokens}};
  auto engine = take(
      ProfileEngine::create(*receiver.backend, *sender.model, *receiver.model, ways, {200, 20, 0}, {}, maps));
  const ContextAnswers scored = take(engine->run(context, questions, std::vector<bool>(ways.size(), true)));

  const std::string folder = ::testing::TempDir() + "/ds_service_" + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  auto store = take(open_store("file:" + folder));
  PublishOptions published;
  for (int32_t l = 1; l < kLayers; ++l) published.cuts.push_back({l});
  for (const MapSet* set : {&own, &wrong}) {
    MappedCuts mapped{{}, set};
    for (int32_t l = 1; l < kLayers; ++l)
      for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull})
        mapped.cuts.push_back({l, form});
    published.more.push_back(mapped);
  }
  take(publish(*sender.backend, *sender.model, sender.identity, context, *store, published));

  int compared = 0;
  for (size_t w = 0; w < ways.size(); ++w) {
    const Way& way = ways[w];
    const MapSet& set = *maps.at(way.map_control);
    for (MapSide side : {MapSide::kReceiver, MapSide::kSender}) {
      if (side == MapSide::kSender && way.map == MapForm::kNone) continue;
      SCOPED_TRACE(fmt::format("{}, by the {}", way.name(), map_side_name(side)));
      const Plan plan = plan_of(way, sender, receiver, side, {"maps", set.fingerprint()});
      Way signature = way_of(plan.variants[0]);
      signature.map_control = way.map_control;
      EXPECT_EQ(signature, way);
      auto session =
          take(Session::create(*receiver.backend, *receiver.model, plan, {kContext, 8, kNewTokens}, &set));
      Request request;
      request.context = context;
      request.suffix = questions[0].suffix;
      request.store = store.get();
      request.max_new_tokens = kNewTokens;
      const Answer answer = take(session->run(request));
      ASSERT_TRUE(answer.miss.ok()) << answer.miss.message();
      EXPECT_EQ(answer.variant, &plan.variants[0]);
      const ProxyValues served = first_token_proxies(session->first_logits());
      const WayAnswer& promised = scored.ways[w][0];
      if (testing::exact_rows()) {
        EXPECT_EQ(answer.tokens, promised.tokens);
        EXPECT_EQ(served[Proxy::kEntropy], promised.entropy);
        EXPECT_EQ(served[Proxy::kMargin], promised.margin);
      } else {
        const double off = dtype == DType::kF32 ? 1e-4 : 5e-2;
        EXPECT_NEAR(served[Proxy::kEntropy], promised.entropy, off);
        EXPECT_NEAR(served[Proxy::kMargin], promised.margin, off);
      }
      ++compared;
    }
  }
  EXPECT_GT(compared, 100);
}

INSTANTIATE_TEST_SUITE_P(Models, Service,
                         ::testing::Values(std::tuple(Family::kLlama, DType::kF32),
                                           std::tuple(Family::kLlama, DType::kBF16),
                                           std::tuple(Family::kQwen3, DType::kBF16)));

}  // namespace
}  // namespace ds
