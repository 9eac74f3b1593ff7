// The page about a profile.
#include "profiler/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>

#include "tests/unit/well_formed.h"

namespace ds {
namespace {

using ::testing::AllOf;
using testing::expect_well_formed;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kLayers = 4;

WayScore scored(Way way, double score, double error = 0.5) {
  WayScore w;
  w.way = std::move(way);
  w.items = 80;
  w.contexts = 40;
  w.score = {score, error};
  w.loss = {90 - score, error};
  w.exact = {score - 5, 1};
  w.divergence = {(90 - score) / 50, 0.01};
  w.tasks = {{score, error}, {score, error}};
  return w;
}

/// Every kind of way, two tasks, samples, selections, examples.
Quality full_profile() {
  Quality q;
  q.sender_name = "S <b>";
  q.receiver_name = "R & co";
  q.sender_fingerprint = std::string(64, 'a');
  q.receiver_fingerprint = std::string(64, 'b');
  q.layers = kLayers;
  q.metric = "average";
  q.dtype = "bf16";
  q.items = 80;
  q.contexts = 40;
  q.data = {{"notes.jsonl", std::string(64, 'c')}};
  q.tasks = {{"notes", "qa_f1", 40, 40}, {"code", "code_sim", 40, 40}};
  q.receiver_score = 90;
  q.full_reuse_score = 60;
  q.ways = {scored({WayKind::kFullPrefill}, 90), scored({WayKind::kFullReuse}, 60)};
  for (int64_t first = 0; first < kLayers; ++first)
    for (int64_t last = first; last < kLayers; ++last)
      if (last - first + 1 < kLayers)
        q.ways.push_back(scored(Way::group({first, last}), 60 + 9 * static_cast<double>(last - first + 1)));
  q.ways.push_back(scored({WayKind::kScattered, {{1, 1}, {3, 3}}}, 65));
  for (int64_t l = 0; l < kLayers; ++l) q.ways.push_back(scored(Way::reuse_only(l), 88));
  q.ways.push_back(scored(Way::restore({0, 3}), 70));
  q.ways.push_back(scored(Way::select(0.15), 72));
  q.ways.push_back(scored({WayKind::kSenderAlone}, 50));
  q.pareto = {"recompute 1", "recompute 1-2", "recompute 1-3"};
  q.k_deviation = {0.1, 0.2, 0.2, 0.4};
  q.selections = {{"half", "other half", 3, "", 87.5, {84.5, kNone}, 86},
                  {"notes", "code", 3, "1-3", 87, {81, 2}, 85},
                  {"pair A to B", "this pair", 3, "0-2", 95, {80, 2}, 87}};
  q.examples = {
      {"notes", "Where is <i>it</i>?\nIn a word.", {"box"}, {{"full reuse", "a \"barn\" & <script>", 0}}}};
  q.cost = {{"layer_runs", 77}};
  return q;
}

WayScore& way(Quality& q, const std::string& name) {
  for (WayScore& w : q.ways)
    if (w.way.name() == name) return w;
  throw std::runtime_error(name);
}

std::string checked_page(const Quality& q) {
  std::string page = quality_html(q);
  expect_well_formed(page);
  EXPECT_THAT(page, AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf,")), Not(HasSubstr("<script")),
                          Not(HasSubstr("href=")), Not(HasSubstr("src="))));
  return page;
}

TEST(Report, SaysWhatCounts) {
  Quality q = full_profile();
  way(q, "recompute 1-3").score.value = 89.5;
  way(q, "recompute 1-3").loss = {0.5, 0.1};
  // Student's t with 39 degrees of freedom at 95 %: 1.685.
  EXPECT_THAT(
      checked_page(q),
      AllOf(HasSubstr("the receiver scores 90.0 ± 0.5 of 100"),
            HasSubstr("it scores 60.0 ± 0.5: a loss of 30.0"),
            HasSubstr("The smallest group within 1 point is layers 1-3 (3 of 4): a loss of 0.5 ± 0.1 points, "
                      "at most 0.7 with a confidence of 95 %."),
            HasSubstr("scores 87.5 on the half"), HasSubstr("and 84.5 on the other half")));
  // Within a point by its mean, but not surely: the page says so, and which one is.
  way(q, "recompute 1-3").loss = {0.5, 0.5};
  EXPECT_THAT(checked_page(q),
              AllOf(HasSubstr("at most 1.3 with"), HasSubstr("No group is below 1 point with that")));
  way(q, "recompute 1-3").loss = {5, 0.5};
  EXPECT_THAT(checked_page(q),
              HasSubstr("Nothing that was scored is within 1 point; the closest is layers 0-2 (3 of 4)"));
  way(q, "full reuse").loss = {0.2, 0.1};
  EXPECT_THAT(checked_page(q),
              HasSubstr("Full reuse is within 1 point by itself: a loss of 0.2 ± 0.1 points"));
}

TEST(Report, HintsAreHonest) {
  Quality q = full_profile();
  EXPECT_THAT(checked_page(q), AllOf(Not(HasSubstr("Only ")), Not(HasSubstr("Racing"))));
  q.contexts = 7;
  way(q, "recompute 0-1").dropped = true;
  way(q, "recompute 1-3").loss = {0, 0};
  EXPECT_THAT(checked_page(q), AllOf(HasSubstr("Only 7 contexts"), HasSubstr("Racing dropped 1 way:"),
                                     HasSubstr("recompute 0-1 (dropped)"), HasSubstr("url(#hatch-score)"),
                                     HasSubstr("up to 8 % of contexts")));
  q.selections.clear();
  EXPECT_THAT(checked_page(q), HasSubstr("recompute 1-3 was chosen among"));
}

/// Every group once in each heat map, each group once in each of the four charts of scores.
TEST(Report, EveryGroupIsDrawn) {
  Quality q = full_profile();
  std::string page = checked_page(q);
  for (const char* name : {"recompute 0", "recompute 2-3", "recompute 1-3"}) {
    size_t count = 0;
    std::string title = fmt::format("<title>{}: ", name);
    for (size_t at = page.find(title); at != std::string::npos; at = page.find(title, at + 1)) ++count;
    bool single = std::string(name) == "recompute 0";  // once more: its gain
    EXPECT_EQ(count, single ? 7u : 6u) << name;
  }
  EXPECT_THAT(
      page, AllOf(HasSubstr("1 scattered sets of 2 layers: mean 65.0"), HasSubstr("<title>select 15 %: 72.0"),
                  HasSubstr("<title>restore 0-3: 70.0"), HasSubstr("<title>reuse only 3: 88.0")));
}

TEST(Report, TextOfOthersStaysText) {
  EXPECT_THAT(checked_page(full_profile()), AllOf(HasSubstr("S &lt;b&gt; → R &amp; co"),
                                                  HasSubstr("Where is &lt;i&gt;it&lt;/i&gt;?\nIn a word."),
                                                  HasSubstr("a &quot;barn&quot; &amp; &lt;script&gt;")));
}

TEST(Report, PartsWithoutDataAreLeftOut) {
  const char* sections[] = {"By task",
                            "first and last recomputed layer",
                            "Layer by layer",
                            "hold elsewhere",
                            "What the gate compares",
                            "Where reuse failed",
                            "Divergence from the full prefill"};
  std::string page = checked_page(full_profile());
  for (const char* section : sections) EXPECT_THAT(page, HasSubstr(section));

  Quality q = full_profile();
  q.tasks.clear();
  q.selections.clear();
  q.examples.clear();
  q.k_deviation.clear();
  q.pareto.clear();
  std::erase_if(q.ways, [](const WayScore& w) { return !w.way.layers.empty(); });
  for (WayScore& w : q.ways) {
    w.tasks.clear();
    w.divergence = w.exact = {kNone, kNone};
    w.loss.standard_error = w.score.standard_error = kNone;
  }
  page = checked_page(q);
  for (const char* section : sections) EXPECT_THAT(page, Not(HasSubstr(section)));
  EXPECT_THAT(page, AllOf(HasSubstr("All 4 ways"), HasSubstr("how sure that is, the profile cannot say"),
                          Not(HasSubstr("exact matches"))));
}

TEST(Report, OddShapesAreDrawn) {
  // One layer; a granularity that does not divide the layers; samples that are all the same; one number only.
  Quality q = full_profile();
  q.layers = 1;
  std::erase_if(q.ways,
                [](const WayScore& w) { return !w.way.layers.empty() && w.way.layers.back().last > 0; });
  q.pareto.clear();
  checked_page(q);
  q = full_profile();
  q.granularity = 3;
  checked_page(q);
  q = full_profile();
  q.k_deviation = {0, 0, 0};
  for (WayScore& w : q.ways) {
    w.score = {100, 0};
    w.loss = {0, 0};
    w.divergence = {0, 0};
    w.entropy = {0};
    w.margin = {1, 1};
  }
  checked_page(q);
  for (WayScore& w : q.ways) w.score = {0, 0};
  checked_page(q);
}

/// Recomputing everything is a full prefill: it is drawn, and not held up as a group.
TEST(Report, AllLayersAreNoChoice) {
  Quality q = full_profile();
  q.ways.push_back(scored(Way::group({0, kLayers - 1}), 90, 0));
  EXPECT_THAT(checked_page(q), AllOf(HasSubstr("Nothing that was scored is within 1 point"),
                                     HasSubstr("<title>recompute 0-3: 90.0")));
}

TEST(Report, ReadsVersion1) {
  auto q = Quality::read(DS_SOURCE_DIR "/tests/lit/Inputs/quality.json");
  ASSERT_TRUE(q.ok()) << q.status().message();
  std::string page = checked_page(*q);
  EXPECT_THAT(page,
              AllOf(HasSubstr("The profile is of version 1"),
                    HasSubstr("it scores 59.0: a loss of 40.0 points;"), HasSubstr("better than all smaller"),
                    HasSubstr("All 5 ways"), Not(HasSubstr("Divergence from")), Not(HasSubstr("caches in"))));
  EXPECT_EQ(page, quality_html(*q));
}

}  // namespace
}  // namespace ds
