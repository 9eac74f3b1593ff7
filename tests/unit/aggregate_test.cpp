// Means, their errors, the Pareto list and choices across data, against a second computation.
#include "profiler/aggregate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "profiler/profile_run.h"
#include "profiler/ways.h"
#include "support/file.h"

namespace ds {
namespace {

struct Made {
  std::vector<Way> ways = *all_ways(
      6, {.scattered = 0, .select_shares = {}, .restore = false, .reuse_only = false, .sender_alone = false});
  std::vector<ContextRecord> records;

  /// With aligned twins, one form and its controls, besides.
  static std::vector<Way> with_maps() {
    return *all_ways(6, {.scattered = 1,
                         .select_shares = {},
                         .reuse_only = false,
                         .sender_alone = false,
                         .align = {MapForm::kFull},
                         .shuffled = true,
                         .other_pair = "mild"});
  }

  /// Contexts of one task or two with 1 to 4 items each; way w scores by chance, better the more layers it
  /// has.
  explicit Made(int64_t contexts, uint64_t seed = 1, std::vector<Way> of = {}) {
    if (!of.empty()) ways = std::move(of);
    std::mt19937_64 random(seed);
    auto uniform = [&] { return static_cast<double>(random() >> 11) / 9007199254740992.0; };
    for (int64_t c = 0; c < contexts; ++c) {
      ContextRecord r{c, 100, uniform(), {}};
      int64_t items = 1 + static_cast<int64_t>(random() % 4);
      double hard = uniform();
      for (int64_t i = 0; i < items; ++i) {
        ItemRecord item{
            fmt::format("data:{}-{}", c, i), c % 3 == 0 || i % 2 ? "b" : "a", "?", Metric::kQaF1, {"x"}, {}};
        for (const Way& w : ways) {
          double share = static_cast<double>(w.recomputed(6)) / 6;
          WayResult x{.scored = true};
          x.score = w.is_full_prefill()
                        ? 1 - 0.1 * hard
                        : std::round(4 * (share * 0.6 + 0.3 * uniform()) * (1 - 0.3 * hard)) / 4;
          x.exact = x.score == 1;
          x.divergence = (1 - share) * uniform();
          x.entropy = uniform();
          x.margin = uniform();
          x.text = std::string(1, 't');  // g++ 12 warns about assigning a literal
          item.ways.push_back(x);
        }
        r.items.push_back(std::move(item));
      }
      records.push_back(std::move(r));
    }
  }
};

TEST(Scores, MeanIsTheAverageOfTheTasksMeans) {
  Made m(20);
  Scores scores(m.ways, m.records);
  ASSERT_EQ(scores.tasks().size(), 2u);
  double sum[2] = {}, n[2] = {};
  for (const auto& r : m.records)
    for (const auto& item : r.items) {
      int t = item.task == "b";
      sum[t] += 100 * item.ways[3].score;
      ++n[t];
    }
  EXPECT_NEAR(scores.mean(3, Scores::score).value, (sum[0] / n[0] + sum[1] / n[1]) / 2, 1e-9);
  EXPECT_NEAR(scores.mean(3, Scores::score, {nullptr, 1}).value, sum[1] / n[1], 1e-9);
  EXPECT_EQ(scores.tasks()[1].items, static_cast<int64_t>(n[1]));
}

TEST(Scores, ErrorOfSingleItemsIsTheTextbooks) {
  // One item per context, one task: the standard error of a mean.
  Made m(30);
  for (auto& r : m.records) {
    r.items.resize(1);
    r.items[0].task = "a";
  }
  Scores scores(m.ways, m.records);
  double sum = 0, squares = 0;
  for (const auto& r : m.records) sum += 100 * r.items[0].ways[4].score;
  double mean = sum / 30;
  for (const auto& r : m.records) squares += std::pow(100 * r.items[0].ways[4].score - mean, 2);
  Mean found = scores.mean(4, Scores::score);
  EXPECT_NEAR(found.value, mean, 1e-9);
  EXPECT_NEAR(found.standard_error, std::sqrt(squares / 29 / 30), 1e-9);
}

TEST(Scores, ItemsOfOneContextAreNotIndependent) {
  Made m(25);
  for (auto& r : m.records) {
    r.items.resize(1);
    r.items[0].task = "a";
  }
  Scores single(m.ways, m.records);
  double once = single.mean(4, Scores::score).standard_error;
  for (auto& r : m.records) r.items.insert(r.items.end(), 9, r.items[0]);
  Scores copied(m.ways, m.records);
  EXPECT_NEAR(copied.mean(4, Scores::score).standard_error, once, 1e-9)
      << "ten copies of an item tell no more than one";
}

TEST(Scores, ErrorCoversTheTruthAsOftenAsItSays) {
  // Many samples of contexts with 1 to 4 items each: the truth is within 1.96 errors in about 95 % of them.
  double truth = 0;
  {
    Made all(20000, 77);
    truth = Scores(all.ways, all.records).difference(0, 3, Scores::score).value;
  }
  int within = 0;
  constexpr int kTrials = 400;
  for (int i = 0; i < kTrials; ++i) {
    Made m(60, 1000 + static_cast<uint64_t>(i));
    Mean d = Scores(m.ways, m.records).difference(0, 3, Scores::score);
    within += std::abs(d.value - truth) < 1.96 * d.standard_error;
  }
  EXPECT_GT(within, kTrials * 0.91);
  EXPECT_LT(within, kTrials * 0.98);
}

TEST(Aggregate, ParetoListIsTheBestOfEachSizeAndOnlyWhatIsBetter) {
  Made m(40);
  Quality q;
  aggregate(m.ways, m.records, {.layers = 6}, q);
  double best = q.full_reuse_score;
  int64_t layers = 0;
  ASSERT_FALSE(q.pareto.empty());
  for (const std::string& name : q.pareto) {
    auto at =
        std::find_if(q.ways.begin(), q.ways.end(), [&](const WayScore& w) { return w.way.name() == name; });
    ASSERT_NE(at, q.ways.end());
    EXPECT_GT(at->way.recomputed(6), layers);
    EXPECT_GT(at->score.value, best);
    layers = at->way.recomputed(6);
    best = at->score.value;
    for (const WayScore& w : q.ways)
      if (w.way.is_group() && w.way.recomputed(6) == layers) {
        EXPECT_LE(w.score.value, best);
      }
    EXPECT_EQ(at->entropy.size(), static_cast<size_t>(at->items));
    EXPECT_TRUE(std::is_sorted(at->margin.begin(), at->margin.end()));
  }
  EXPECT_EQ(q.metric, "qa_f1");
  EXPECT_EQ(q.contexts, 40);
}

TEST(Aggregate, OrderOfRecordsDoesNotMatterAndTheFileIsReadBack) {
  Made m(15);
  Quality a, b;
  aggregate(m.ways, m.records, {.layers = 6}, a);
  std::reverse(m.records.begin(), m.records.end());
  aggregate(m.ways, m.records, {.layers = 6}, b);
  for (Quality* q : {&a, &b}) {
    q->sender_name = q->receiver_name = "m";
    q->sender_fingerprint = q->receiver_fingerprint = "00";
    q->dtype = "bf16";
  }
  std::string text = a.to_text();
  EXPECT_EQ(text, b.to_text());
  std::string path = ::testing::TempDir() + "/ds_aggregate_quality.json";
  ASSERT_TRUE(write_file_atomically(path, text).ok());
  auto read = Quality::read(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->to_text(), text);
}

TEST(Aggregate, AlignedWaysHaveAListOfTheirOwnAndControlsNone) {
  Made m(40, 3, Made::with_maps());
  auto index = [&](const std::string& name) {
    auto at = std::find_if(m.ways.begin(), m.ways.end(), [&](const Way& w) { return w.name() == name; });
    EXPECT_NE(at, m.ways.end()) << name;
    return static_cast<size_t>(at - m.ways.begin());
  };
  // A control and a scattered set that would win every list, and two that may.
  for (auto& r : m.records)
    for (auto& item : r.items) {
      for (size_t i = 0; i < m.ways.size(); ++i)
        if (!m.ways[i].map_control.empty() || m.ways[i].is_scattered()) item.ways[i].score = 1;
      item.ways[index("restore 2-5 aligned")].score = 0.85;
      item.ways[index("recompute 3-4 aligned")].score = 0.95;
    }
  Quality q;
  q.maps = {"m.maps.safetensors", std::string(64, 'f')};
  q.sender_name = q.receiver_name = "m";
  q.sender_fingerprint = q.receiver_fingerprint = "00";
  q.dtype = "bf16";
  aggregate(m.ways, m.records, {.layers = 6}, q);
  ASSERT_GE(q.pareto_aligned.size(), 2u);
  EXPECT_EQ(q.pareto_aligned[0], "restore 2-5 aligned");
  EXPECT_EQ(q.pareto_aligned[1], "recompute 3-4 aligned");
  for (const std::string& name : q.pareto_aligned) {
    EXPECT_EQ(name.find('('), std::string::npos) << name;
    const WayScore* w = q.find(m.ways[index(name)]);
    ASSERT_NE(w, nullptr);
    EXPECT_FALSE(w->entropy.empty()) << "the gate's samples";
  }
  for (const std::string& name : q.pareto) EXPECT_EQ(name.find("aligned"), std::string::npos) << name;
  EXPECT_EQ(q.find(Way::group({3, 4}).aligned(MapForm::kFull))->score.value, 95);
  EXPECT_EQ(q.find(Way::group({3, 4}).aligned(MapForm::kDiagonal)), nullptr);

  std::string text = q.to_text(), path = ::testing::TempDir() + "/ds_aggregate_aligned.json";
  ASSERT_TRUE(write_file_atomically(path, text).ok());
  auto read = Quality::read(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->to_text(), text);
  EXPECT_EQ(read->ways[index("recompute 3-4 aligned (pair mild)")].way.map_control, "pair mild");
  auto refused = [&](const std::string& from, const std::string& to, const std::string& message) {
    std::string changed = text;
    size_t at = changed.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    ASSERT_TRUE(write_file_atomically(path, changed.replace(at, from.size(), to)).ok());
    auto bad = Quality::read(path);
    ASSERT_FALSE(bad.ok());
    EXPECT_NE(bad.status().message().find(message), std::string::npos) << bad.status().message();
  };
  refused("\"map\":\"full\"", "\"map\":\"curly\"",
          "unknown form 'curly'; expected one of diagonal, low-rank, full");
  refused("\"kind\":\"full reuse\"", "\"kind\":\"full reuse\",\"map\":\"full\"",
          "'full reuse aligned' starts from no hidden states of the sender; expected no map");
  refused(" \"maps\": {", " \"maps\": null, \"cost\": {", "was scored with maps; expected what they were");
}

TEST(Racing, MapsDoNotBeatPlainGroups) {
  Made m(60, 1, Made::with_maps());
  for (auto& r : m.records)
    for (auto& item : r.items)
      for (size_t i = 0; i < m.ways.size(); ++i) item.ways[i].score = m.ways[i].map != MapForm::kNone;
  ProfileOptions o;
  o.race = 0.95;
  std::vector<bool> late = racing_ways(m.ways, 6, m.records, o, 60);
  EXPECT_EQ(std::count(late.begin(), late.end(), false), 0)
      << "all of a list are alike, whatever the other does";
}

TEST(Aggregate, ChoosingOnHalfTheDataFlattersOnThatHalf) {
  // All groups of a size are equally good in truth: the best one's score is chance, and gone on the other
  // half.
  Made m(60);
  Quality q;
  aggregate(m.ways, m.records, {.layers = 6}, q);
  int64_t compared = 0;
  for (const Selection& s : q.selections) {
    if (s.chosen_on != "half" || s.layers > 3) continue;
    EXPECT_GT(s.chosen_score, s.other_score.value) << s.layers;
    EXPECT_GE(s.best_score, s.other_score.value);
    ++compared;
  }
  EXPECT_EQ(compared, 3);
}

TEST(Racing, DropsWhatIsBeatenAndNeverTheBest) {
  // Group 5-5 is far better than all others of up to three layers.
  int lost = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    Made m(60, 500 + seed);
    auto star = std::find(m.ways.begin(), m.ways.end(), Way::group({5, 5})) - m.ways.begin();
    for (auto& r : m.records)
      for (auto& item : r.items) item.ways[static_cast<size_t>(star)].score = 0.9;
    ProfileOptions o;
    o.race = 0.95;
    std::vector<bool> early = racing_ways(m.ways, 6, m.records, o, 5),
                      late = racing_ways(m.ways, 6, m.records, o, 60);
    EXPECT_EQ(std::count(early.begin(), early.end(), false), 0) << "nothing is known yet";
    EXPECT_GT(std::count(late.begin(), late.end(), false), 5);
    lost += !late[static_cast<size_t>(star)];
    for (size_t i = 0; i < m.ways.size(); ++i)
      if (!m.ways[i].is_group()) {
        EXPECT_TRUE(late[i]);
      }
  }
  EXPECT_EQ(lost, 0);
}

TEST(Racing, EqualGroupsAreDroppedNoMoreOftenThanStated) {
  int trials_with_loss = 0;
  constexpr int kTrials = 60;
  for (uint64_t seed = 0; seed < kTrials; ++seed) {
    Made m(50, 9000 + seed);
    std::mt19937_64 random(seed);
    for (auto& r : m.records)
      for (auto& item : r.items)
        for (size_t i = 2; i < m.ways.size(); ++i) item.ways[i].score = static_cast<double>(random() % 2);
    ProfileOptions o;
    o.race = 0.95;
    std::vector<bool> late = racing_ways(m.ways, 6, m.records, o, 50);
    trials_with_loss += std::count(late.begin(), late.end(), false) > 0;
  }
  EXPECT_LE(trials_with_loss, 6);
}

TEST(Record, SurvivesToTheBitAndDamageIsNoticed) {
  Made m(3);
  ContextRecord& r = m.records[1];
  r.items[0].ways[2].scored = false;
  r.items[0].ways[1].divergence = std::nan("");
  r.items[0].ways[3].text = "other \xF0\x9F\x98\x80\n\"";
  std::string text = record_text(r);
  auto back = parse_record(text, "f", m.ways.size());
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(record_text(*back), text);
  EXPECT_FALSE(back->items[0].ways[2].scored);
  EXPECT_EQ(back->items[0].ways[3].text, r.items[0].ways[3].text);
  EXPECT_EQ(back->items[0].ways[4].entropy, r.items[0].ways[4].entropy);
  for (size_t cut : {size_t{0}, size_t{20}, text.size() / 2, text.size() - 1})
    EXPECT_FALSE(parse_record(text.substr(0, cut), "f", m.ways.size()).ok()) << cut;
  std::string damaged = text;
  damaged[text.size() / 2] ^= 1;
  EXPECT_FALSE(parse_record(damaged, "f", m.ways.size()).ok());
  EXPECT_FALSE(parse_record(text, "f", m.ways.size() + 1).ok());
}

}  // namespace
}  // namespace ds
