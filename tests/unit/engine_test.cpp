// The profiler's engine: answers over every way's caches against transformers
// (tests/golden/models/README.md), and what must not depend on how the work is cut.
#include "profiler/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/json.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

Way way_of_json(const nlohmann::json& json, int64_t layers) {
  Way way;
  for (const WayForm& form : way_forms())
    if (json["kind"] == form.kind) way.mode = form.mode, way.control = form.control;
  if (json.contains("layers")) way.layers = take(parse_layer_set(json["layers"].get<std::string>(), layers));
  if (json.contains("share")) way.share = json["share"].get<double>();
  for (size_t i = 0; i < kMapForms; ++i)
    if (json.value("map", "none") == kMapFormNames[i]) way.map = static_cast<MapForm>(i);
  return way;
}

std::vector<Question> questions_of(const nlohmann::json& json) {
  std::vector<Question> questions;
  for (const auto& q : json)
    questions.push_back({q["suffix"].get<std::vector<int32_t>>(), q["reference"].get<std::vector<int32_t>>(),
                         q["max_new_tokens"].get<int64_t>()});
  return questions;
}

/// Maps by formula for every layer, as tests/golden/models/make_ways.py makes them.
MapSet formula_maps(int64_t layers, int64_t d) {
  constexpr int64_t kRank = 3;
  MapSet set;
  set.layers = layers;
  set.d_model = d;
  auto root = std::sqrt(static_cast<double>(d));
  for (int64_t l = 1; l < layers; ++l) {
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) {
      AlignmentMap& m = set.maps.emplace_back();
      m.layer = l;
      m.form = form;
      m.rank = form == MapForm::kLowRank ? kRank : 0;
      auto number = [](double x) { return static_cast<float>(x); };
      for (int64_t o = 0; o < d; ++o) {
        auto x = static_cast<double>(o), at = static_cast<double>(l);
        m.bias.push_back(number(0.05 * std::cos(3 * x + at)));
        if (form != MapForm::kFull) m.scale.push_back(number(0.2 * std::sin(x + at)));
        for (int64_t i = 0; form == MapForm::kFull && i < d; ++i)
          m.weight.push_back(number(0.3 * std::sin(static_cast<double>(o * d + i) + at) / root));
        for (int64_t k = 0; k < m.rank; ++k)
          m.up.push_back(number(0.5 * std::sin(static_cast<double>(o * kRank + k) + at)));
      }
      for (int64_t k = 0; k < m.rank; ++k)
        for (int64_t i = 0; i < d; ++i)
          m.down.push_back(number(std::cos(static_cast<double>(k * d + i + l)) / root));
    }
  }
  return set;
}

class EngineOracle : public ::testing::TestWithParam<std::string> {};

TEST_P(EngineOracle, AnswersAgreeWithTransformers) {
  const std::string folder = DS_SOURCE_DIR "/tests/golden/models/" + GetParam();
  auto backend = take(testing::test_backend());
  auto sender_files = take(Checkpoint::open(folder + "/sender"));
  auto receiver_files = take(Checkpoint::open(folder + "/receiver"));
  auto sender = take(backend->load(sender_files, {.dtype = DType::kF32}));
  auto receiver = take(backend->load(receiver_files, {.dtype = DType::kF32}));
  nlohmann::json json = take(read_json_file(folder + "/ways.json"));
  auto context = json["context"].get<std::vector<int32_t>>();
  std::vector<Question> questions = questions_of(json["questions"]);
  std::vector<Way> ways;
  for (const auto& c : json["cases"]) ways.push_back(way_of_json(c["way"], receiver->config().layers));
  MapSet maps = formula_maps(receiver->config().layers, receiver->config().d_model);
  auto engine =
      take(ProfileEngine::create(*backend, *sender, *receiver, ways, {128, 16, 64}, {}, {{"", &maps}}));
  ContextAnswers found = take(engine->run(context, questions, std::vector<bool>(ways.size(), true)));
  for (size_t w = 0; w < ways.size(); ++w) {
    for (size_t q = 0; q < questions.size(); ++q) {
      SCOPED_TRACE(fmt::format("{}, question {}", ways[w].name(), q));
      const auto& want = json["cases"][w]["answers"][q];
      const WayAnswer& answer = found.ways[w][q];
      EXPECT_EQ(answer.tokens, want["tokens"].get<std::vector<int32_t>>());
      EXPECT_NEAR(answer.entropy, want["entropy"].get<double>(), 1e-4);
      EXPECT_NEAR(answer.margin, want["margin"].get<double>(), 1e-4);
      if (want["divergence"].is_null()) {
        EXPECT_TRUE(std::isnan(answer.divergence));
      } else {
        EXPECT_NEAR(answer.divergence, want["divergence"].get<double>(), 1e-4);
      }
    }
  }
  EXPECT_GE(ways.size(), 20u);
}

INSTANTIATE_TEST_SUITE_P(Models, EngineOracle,
                         ::testing::Values("llama", "qwen2", "qwen3", "yarn", "biases", "grown"));

struct Setting {
  TinyModel sender, receiver;
  std::vector<Way> ways;
  std::vector<int32_t> context;
  std::vector<Question> questions;

  Setting(DType dtype, bool same, Family family = Family::kLlama)
      : sender(tiny_config(family), same ? 1 : 2, dtype),
        receiver(tiny_config(family), 1, dtype),
        ways(*all_ways(5, {})),
        context(random_ids(150, 300, 7)) {
    for (uint64_t i = 0; i < 5; ++i)
      questions.push_back({random_ids(3 + static_cast<int64_t>(i), 300, 20 + i),
                           random_ids(static_cast<int64_t>(i), 300, 30 + i), 5 + static_cast<int64_t>(i)});
  }
  std::unique_ptr<ProfileEngine> engine(int64_t batch_rows, std::vector<int32_t> stop = {}) const {
    return take(ProfileEngine::create(*receiver.backend, *sender.model, *receiver.model, ways,
                                      {200, 20, batch_rows}, stop));
  }
  std::vector<bool> all() const { return std::vector<bool>(ways.size(), true); }
};

void expect_equal(const ContextAnswers& a, const ContextAnswers& b) {
  EXPECT_EQ(a.k_deviation, b.k_deviation);
  ASSERT_EQ(a.ways.size(), b.ways.size());
  for (size_t w = 0; w < a.ways.size(); ++w) {
    ASSERT_EQ(a.ways[w].size(), b.ways[w].size());
    for (size_t q = 0; q < a.ways[w].size(); ++q) {
      const WayAnswer &x = a.ways[w][q], &y = b.ways[w][q];
      EXPECT_EQ(x.tokens, y.tokens) << w << " " << q;
      EXPECT_TRUE(x.divergence == y.divergence || (std::isnan(x.divergence) && std::isnan(y.divergence)));
      EXPECT_EQ(x.entropy, y.entropy);
      EXPECT_EQ(x.margin, y.margin);
    }
  }
}

TEST(ProfileEngine, SenderIsReceiverAnswersAlikeWhateverTheWay) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Setting s(dtype, true);
    ContextAnswers found = take(s.engine(64)->run(s.context, s.questions, s.all()));
    EXPECT_EQ(found.k_deviation, 0);
    for (size_t w = 0; w < s.ways.size(); ++w) {
      SCOPED_TRACE(s.ways[w].name());
      for (size_t q = 0; q < s.questions.size(); ++q) {
        EXPECT_EQ(found.ways[w][q].tokens, found.ways[0][q].tokens);
        EXPECT_EQ(found.ways[w][q].entropy, found.ways[0][q].entropy);
        if (s.ways[w].control != Control::kSenderAlone) {
          EXPECT_EQ(found.ways[w][q].divergence, 0);
        }
      }
    }
  }
}

TEST(ProfileEngine, NothingDependsOnBatchesOrOnWhatRanBefore) {
  Setting s(DType::kBF16, false);
  auto wide = s.engine(4096), narrow = s.engine(20);
  ContextAnswers a = take(wide->run(s.context, s.questions, s.all()));
  expect_equal(a, take(narrow->run(s.context, s.questions, s.all())));
  auto other = random_ids(60, 300, 99);
  ContextAnswers b = take(wide->run(other, s.questions, s.all()));
  EXPECT_NE(a.ways[0][0].entropy, b.ways[0][0].entropy);
  expect_equal(a, take(wide->run(s.context, s.questions, s.all())));
  // Fewer ways: the others are as they were.
  std::vector<bool> few(s.ways.size(), false);
  few[0] = few[3] = few[7] = true;
  ContextAnswers c = take(wide->run(s.context, s.questions, few));
  EXPECT_TRUE(c.ways[4].empty());
  EXPECT_EQ(c.ways[7][2].tokens, a.ways[7][2].tokens);
  EXPECT_EQ(c.ways[7][2].divergence, a.ways[7][2].divergence);
}

TEST(ProfileEngine, WithoutTheContextTheQuestionIsReadByItself) {
  Setting s(DType::kF32, false);
  s.ways = {Way::full_prefill(), Way::full_reuse(), Way::no_context()};
  for (size_t i = 0; i < s.questions.size(); ++i)
    s.questions[i].alone = random_ids(9 + static_cast<int64_t>(i), 300, 60 + i);
  const ProfileEngineLimits limits{.context = 200, .question = 20, .batch_rows = 64, .alone = 24};
  auto engine = take(
      ProfileEngine::create(*s.receiver.backend, *s.sender.model, *s.receiver.model, s.ways, limits, {}));
  const ContextAnswers found = take(engine->run(s.context, s.questions, s.all()));
  for (size_t q = 0; q < s.questions.size(); ++q) {
    // The same text as a context of its first four tokens and a question about it, prefilled in full.
    Question rest = s.questions[q];
    const std::vector<int32_t> head(rest.alone.begin(), rest.alone.begin() + 4);
    rest.suffix.assign(rest.alone.begin() + 4, rest.alone.end());
    const std::vector<Way> whole{Way::full_prefill()};
    auto other = take(
        ProfileEngine::create(*s.receiver.backend, *s.sender.model, *s.receiver.model, whole, limits, {}));
    const ContextAnswers want = take(other->run(head, std::vector<Question>{rest}, {true}));
    EXPECT_EQ(found.ways[2][q].tokens, want.ways[0][0].tokens);
    EXPECT_EQ(found.ways[2][q].entropy, want.ways[0][0].entropy);
    EXPECT_EQ(found.ways[2][q].margin, want.ways[0][0].margin);
    EXPECT_GT(found.ways[2][q].divergence, 0);
  }
  // What it was asked with before changes nothing, nor does it change anything.
  expect_equal(take(engine->run(s.context, s.questions, s.all())), found);
  s.questions[0].alone.clear();
  EXPECT_THAT(engine->run(s.context, s.questions, s.all()).status().message(),
              ::testing::HasSubstr("a question of 0 tokens without its context"));
}

TEST(ProfileEngine, AnotherDocumentsCacheIsThatOfThatDocument) {
  Setting s(DType::kBF16, false);
  s.ways = {Way::full_prefill(), Way::full_reuse(), Way::group({1, 3}), Way::other_document()};
  const auto other = random_ids(150, 300, 99);
  auto engine = s.engine(64);
  const ContextAnswers found = take(engine->run(s.context, s.questions, s.all(), other));
  const ContextAnswers there = take(engine->run(other, s.questions, {true, true, true, false}));
  const ContextAnswers without = take(engine->run(s.context, s.questions, {true, true, true, false}));
  for (size_t q = 0; q < s.questions.size(); ++q) {
    EXPECT_EQ(found.ways[3][q].tokens, there.ways[1][q].tokens);
    EXPECT_EQ(found.ways[3][q].entropy, there.ways[1][q].entropy);
    EXPECT_NE(found.ways[3][q].entropy, found.ways[1][q].entropy);
    EXPECT_GT(found.ways[3][q].divergence, 0) << "beside the receiver's own answer about its own document";
    for (size_t w = 0; w < 3; ++w) EXPECT_EQ(found.ways[w][q].entropy, without.ways[w][q].entropy);
  }
  EXPECT_EQ(take(engine->run(s.context, s.questions, s.all(), s.context)).ways[3][0].divergence,
            found.ways[1][0].divergence);
  EXPECT_THAT(engine->run(s.context, s.questions, s.all()).status().message(),
              ::testing::HasSubstr("another document of 0 tokens; expected 150"));
}

TEST(ProfileEngine, ReferenceChangesTheDivergenceButNotTheAnswer) {
  Setting s(DType::kBF16, false);
  auto engine = s.engine(512);
  std::vector<Question> plain(1, {s.questions[0].suffix, {}, 8});
  ContextAnswers free = take(engine->run(s.context, plain, s.all()));
  for (size_t w : {size_t{0}, size_t{1}, size_t{5}}) {
    std::vector<int32_t> whole = free.ways[w][0].tokens;
    ASSERT_EQ(whole.size(), 8u);
    for (size_t kept : {size_t{1}, size_t{4}, size_t{8}}) {
      std::vector<Question> guided = plain;
      guided[0].reference.assign(whole.begin(), whole.begin() + static_cast<int64_t>(kept));
      guided[0].reference.push_back(7);
      EXPECT_EQ(take(engine->run(s.context, guided, s.all())).ways[w][0].tokens, whole) << kept;
    }
  }
}

TEST(ProfileEngine, StopsWhereAskedAndNeverCountsTheStop) {
  Setting s(DType::kBF16, false);
  std::vector<Question> one(1, {s.questions[0].suffix, {}, 8});
  std::vector<int32_t> whole = take(s.engine(512)->run(s.context, one, s.all())).ways[0][0].tokens;
  int32_t stop = whole[3];
  std::vector<int32_t> expected;
  for (int32_t t : whole) {
    if (t == stop) break;
    expected.push_back(t);
  }
  EXPECT_EQ(take(s.engine(512, {stop})->run(s.context, one, s.all())).ways[0][0].tokens, expected);
  // The reference has the stop token in it: the same.
  one[0].reference = whole;
  EXPECT_EQ(take(s.engine(512, {stop})->run(s.context, one, s.all())).ways[0][0].tokens, expected);
}

TEST(ProfileEngine, SharesRuns) {
  Setting s(DType::kBF16, false);
  auto engine = s.engine(512);
  ASSERT_TRUE(engine->run(s.context, s.questions, s.all()).ok());
  SharedRuns runs = shared_runs(s.ways, s.all(), 5);
  // The sender, and 5 + 4 + 3 + 2 + 1 for the groups.
  EXPECT_EQ(runs.layer_runs(5), 5 + 15);
  // Restoring takes K and V of 5 layers, each of six selections all of layer 0 and K and V of layer 1.
  EXPECT_EQ(engine->work().layer_runs, 20 + 6);
  EXPECT_EQ(engine->work().kv_runs, 5 + 6);
  EXPECT_GT(naive_layer_runs(s.ways, 5), 2 * runs.layer_runs(5));
}

TEST(ProfileEngine, RefusesWhatDoesNotFit) {
  Setting s(DType::kBF16, false);
  auto engine = s.engine(64);
  auto expect = [&](std::span<const int32_t> context, Question q, const char* text) {
    auto found = engine->run(context, {&q, 1}, s.all());
    ASSERT_FALSE(found.ok());
    EXPECT_NE(found.status().message().find(text), std::string::npos) << found.status().message();
  };
  expect({}, s.questions[0], "a context of 0 tokens; expected 1 to 200");
  expect(random_ids(201, 300, 1), s.questions[0], "a context of 201 tokens");
  expect(s.context, {{}, {}, 3}, "a question of 0 tokens");
  expect(s.context, {random_ids(15, 300, 1), {}, 6}, "a question of 15 tokens with 6 new ones");
  Way needs = Way::group({2, 3}).aligned(MapForm::kFull);
  std::vector<Way> unmapped{s.ways[0], needs};
  auto without = ProfileEngine::create(*s.receiver.backend, *s.sender.model, *s.receiver.model, unmapped,
                                       {200, 20, 64}, {});
  EXPECT_EQ(without.status().message(),
            "'recompute 2-3 aligned' needs a full map for layer 2, which was not given");
  TinyModel deep(tiny_config(Family::kLlama, 6), 1, DType::kBF16);
  auto made = ProfileEngine::create(*deep.backend, *s.sender.model, *deep.model, s.ways, {200, 20, 64}, {});
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), Code::kMismatch);
}

TEST(Ways, AreAllGroupsAndControlsOnce) {
  std::vector<Way> ways = *all_ways(12, {});
  std::set<std::string> names;
  int64_t groups = 0;
  std::map<int64_t, int64_t> scattered;
  for (const Way& w : ways) {
    EXPECT_TRUE(names.insert(w.name()).second) << w.name();
    groups += w.is_group();
    if (!w.is_scattered()) continue;
    ++scattered[w.recomputed(12)];
    EXPECT_GE(w.layers.size(), 2u);
    EXPECT_GT(w.layers[0].first, 0);
  }
  EXPECT_EQ(groups, 77);  // of 78 the one of all layers is the full prefill
  EXPECT_EQ(ways[0], Way::full_prefill());
  EXPECT_EQ(ways[1], Way::full_reuse());
  for (int64_t size = 2; size <= 9; ++size) EXPECT_EQ(scattered[size], 5) << size;
  EXPECT_EQ(*all_ways(12, {}), ways) << "the same seed, the same sets";
  // Coarser, and with a top block that is smaller.
  for (const std::vector<Way> coarse = *all_ways(11, {.granularity = 2}); const Way& w : coarse)
    for (const LayerRange& r : w.layers) {
      if (w.control == Control::kReuseOnly) continue;
      EXPECT_EQ(r.first % 2, 0) << w.name();
      EXPECT_TRUE(r.last % 2 == 1 || r.last == 10) << w.name();
    }
  // Aligned twins of all that starts from the sender's hidden states, with controls.
  std::vector<Way> aligned =
      *all_ways(12, {.align = {MapForm::kFull, MapForm::kDiagonal}, .shuffled = true, .other_pair = "mild"});
  int64_t twins = 0, scattered_sets = 0;
  for (const Way& w : ways) {
    twins += w.can_align();
    scattered_sets += w.is_scattered();
  }
  EXPECT_EQ(twins, 66 + 12 + scattered_sets);
  EXPECT_EQ(static_cast<int64_t>(aligned.size()),
            static_cast<int64_t>(ways.size()) + 2 * twins + 2 * (8 + 12));
  names.clear();
  for (const Way& w : aligned) EXPECT_TRUE(names.insert(w.name()).second) << w.name();
  EXPECT_TRUE(names.contains("recompute 7-10 aligned"));
  EXPECT_TRUE(names.contains("restore 4-11 aligned (diagonal)"));
  EXPECT_TRUE(names.contains("recompute 7-10 aligned (shuffled)"));
  EXPECT_TRUE(names.contains("restore 0-11 aligned (pair mild)"));
  EXPECT_FALSE(names.contains("recompute 0-3 aligned"));
  // A run with maps is one of its own.
  SharedRuns runs = shared_runs(aligned, std::vector<bool>(aligned.size(), true), 12);
  EXPECT_EQ(runs.runs.size(), 1u + 11 * (1 + 2) + 8 * 2);
  EXPECT_EQ(runs.layer_runs(12), 12 + 12 + 66 * 3 + 2 * 8 * 4);
  std::vector<Way> only =
      *all_ways(12, {.scattered = 0, .align = {MapForm::kFull}, .only = {{7, 10}, {4, 11}}});
  EXPECT_EQ(std::count_if(only.begin(), only.end(), [](const Way& w) { return w.is_group(); }), 4);
  EXPECT_EQ(std::count_if(only.begin(), only.end(), [](const Way& w) { return w.restores(); }), 4);
  // Rules of thumb: as many layers, in one part or at both ends.
  EXPECT_EQ(default_granularity(12), 1);
  EXPECT_EQ(default_granularity(13), 2);
  EXPECT_EQ(default_granularity(30), 3);
  EXPECT_EQ(default_granularity(80), 7);
  auto named = [](const std::vector<Heuristic>& all) {
    std::string text;
    for (const Heuristic& h : all) text += fmt::format("{}: {}; ", h.name, h.way.name());
    return text;
  };
  EXPECT_EQ(named(heuristics(12, 1, 4)),
            "first: recompute 0-3; last: recompute 8-11; middle: recompute 4-7; first and last: scattered "
            "0-1,10-11; ");
  EXPECT_EQ(named(heuristics(11, 2, 5)),
            "first: recompute 0-9; last: recompute 2-10; first and last: scattered 0-5,8-10; ");
  EXPECT_EQ(named(heuristics(12, 1, 12)), "");
  const std::vector<Way> ruled = *all_ways(12, {.heuristics = true, .no_context = true});
  EXPECT_EQ(ruled.size(), ways.size() + 10 + 1);
  for (int64_t blocks = 1; blocks < 12; ++blocks)
    for (const Heuristic& h : heuristics(12, 1, blocks))
      EXPECT_EQ(std::count(ruled.begin(), ruled.end(), h.way), 1) << h.way.name();
  EXPECT_EQ(ruled.back().name(), "no context");
  EXPECT_FALSE(all_ways(12, {.only = {{7, 12}}}).ok());
  EXPECT_FALSE(all_ways(4, {.granularity = 5}).ok());
  EXPECT_FALSE(all_ways(4, {.select_shares = {1.5}}).ok());
}

}  // namespace
}  // namespace ds
