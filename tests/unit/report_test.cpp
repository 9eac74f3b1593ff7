// The page about a profile.
#include "profiler/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <regex>
#include <set>

#include "profiler/task_notes.h"
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
  q.ways = {scored(Way::full_prefill(), 90), scored(Way::full_reuse(), 60)};
  for (int64_t first = 0; first < kLayers; ++first)
    for (int64_t last = first; last < kLayers; ++last)
      if (last - first + 1 < kLayers)
        q.ways.push_back(scored(Way::group({first, last}), 60 + 9 * static_cast<double>(last - first + 1)));
  q.ways.push_back(scored(Way::scattered({{1, 1}, {3, 3}}), 65));
  for (int64_t l = 0; l < kLayers; ++l) q.ways.push_back(scored(Way::reuse_only(l), 88));
  q.ways.push_back(scored(Way::restore({0, 3}), 70));
  q.ways.push_back(scored(Way::select(0.15), 72));
  q.ways.push_back(scored(Way::sender_alone(), 50));
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

/// Of full_profile(), groups and restored layers with maps too: `gain` points better than without; with the
/// controls, which score what nothing else does.
Quality aligned_profile(double gain = 6) {
  Quality q = full_profile();
  q.maps = {"pair.safetensors", std::string(64, 'd')};
  q.ways.push_back(scored(Way::restore({2, 3}), 64));
  const std::vector<WayScore> plain = q.ways;
  for (const WayScore& w : plain)
    if (w.way.can_align()) q.ways.push_back(scored(w.way.aligned(MapForm::kFull), w.score.value + gain));
  for (const char* control : {"shuffled", "pair A to B"})
    for (const WayScore& w : plain)
      if (w.way.can_align() && !w.way.is_scattered())
        q.ways.push_back(scored(w.way.aligned(MapForm::kFull, control), 90));
  q.pareto_aligned = {"restore 0-3 aligned", "recompute 1-2 aligned", "recompute 1-3 aligned"};
  return q;
}

size_t count_of(const std::string& page, const std::string& text) {
  size_t count = 0;
  for (size_t at = page.find(text); at != std::string::npos; at = page.find(text, at + 1)) ++count;
  return count;
}

WayScore& way(Quality& q, const std::string& name) {
  for (WayScore& w : q.ways)
    if (w.way.name() == name) return w;
  throw std::runtime_error(name);
}

/// All rows of a table have as many cells.
void expect_full_rows(const std::string& page) {
  for (size_t at = page.find("<table"); at != std::string::npos; at = page.find("<table", at + 1)) {
    const std::string table = page.substr(at, page.find("</table>", at) - at);
    std::set<size_t> widths;
    for (size_t row = table.find("<tr>"); row != std::string::npos; row = table.find("<tr>", row + 1)) {
      std::string cells = table.substr(row, table.find("</tr>", row) - row);
      widths.insert(count_of(cells, "</td>") + count_of(cells, "</th>"));
    }
    EXPECT_LE(widths.size(), 1u) << table.substr(0, 300);
  }
}

std::string checked_page(const Quality& q) {
  std::string page = quality_html(q);
  expect_well_formed(page);
  expect_full_rows(page);
  EXPECT_THAT(page, AllOf(Not(HasSubstr("nan")), Not(HasSubstr("inf,")), Not(HasSubstr("<script")),
                          Not(HasSubstr("href=")), Not(HasSubstr("src="))));
  return page;
}

TEST(Tasks, ThatTellNothingAreNamed) {
  Quality q = full_profile();
  EXPECT_TRUE(task_notes(q).empty());
  EXPECT_EQ(task_table_text(q),
            "task   items  full prefill    full reuse  recompute 1-3  sender alone\n"
            "notes     40    90.0 ± 0.5    60.0 ± 0.5     87.0 ± 0.5    50.0 ± 0.5\n"
            "code      40    90.0 ± 0.5    60.0 ± 0.5     87.0 ± 0.5    50.0 ± 0.5\n");
  q.ways.push_back(scored(Way::no_context(), 20));
  EXPECT_TRUE(task_notes(q).empty());
  EXPECT_THAT(task_table_text(q), HasSubstr("no context"));
  q.ways.back().tasks[0] = {88, 1};  // two errors of the difference are 2.24
  EXPECT_THAT(task_notes(q),
              ::testing::ElementsAre("task 'notes' tells nothing of caches: the receiver scores 90.0 ± "
                                     "0.5 with its context and 88.0 ± 1.0 without it"));
  q.ways.back().tasks[0] = {87, 1};
  way(q, "sender alone").tasks[1] = {91, 0.5};
  EXPECT_THAT(task_notes(q),
              ::testing::ElementsAre("task 'code' tells little of the pair: the receiver scores 90.0 ± "
                                     "0.5 there, the sender by itself 91.0 ± 0.5"));
  way(q, "full prefill").tasks[1] = {4.9, 0.1};
  EXPECT_THAT(task_notes(q), ::testing::ElementsAre(AllOf(
                                 HasSubstr("task 'code' tells nothing: the receiver by itself scores 4.9"),
                                 HasSubstr("is its prompt what the model was trained on?"))));
  EXPECT_THAT(checked_page(q), HasSubstr("Task 'code' tells nothing"));
}

TEST(Report, ShowsRulesOfThumbBesideTheChoice) {
  Quality q = full_profile();
  q.ways.push_back(scored(Way::scattered({{0, 0}, {3, 3}}), 64));
  const std::string page = checked_page(q);
  EXPECT_THAT(page, HasSubstr("Beside rules of thumb"));
  // Two layers: the profile's, the first, the last, the middle ones, one at each end.
  EXPECT_THAT(page,
              HasSubstr("<td>2</td><td>recompute 1-2</td><td>12.0 ± 0.5, 0.24</td><td>12.0 ± 0.5, 0.24</td>"
                        "<td>12.0 ± 0.5, 0.24</td><td>12.0 ± 0.5, 0.24</td><td>26.0 ± 0.5, 0.52</td>"));
  std::erase_if(q.ways, [](const WayScore& w) { return w.way == Way::group({2, 3}); });
  EXPECT_THAT(checked_page(q),
              HasSubstr("<td>12.0 ± 0.5, 0.24</td><td>–</td><td>12.0 ± 0.5, 0.24</td><td>26.0"));
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
                      "at most 0.7 with a confidence of 95 %; a divergence of 0.06 ± 0.01 nats per token."),
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
    size_t count = count_of(page, fmt::format("<title>{}: ", name));
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

TEST(Report, SaysWhatIsCloseWithoutMapsAndWithThem) {
  Quality q = aligned_profile();
  std::string page = checked_page(q);
  EXPECT_THAT(
      page,
      AllOf(
          HasSubstr(
              "Without maps: nothing that was scored is within 1 point; the closest is layers 0-2 (3 of "
              "4): a loss of 3.0"),
          HasSubstr("With maps: the smallest group within 1 point is layers 1-3 (3 of 4): a loss of -3.0"),
          HasSubstr("Restoring without maps, which recomputes no layer: nothing that was scored is within 1 "
                    "point; the closest is restored layers 0-3 (4 of 4): a loss of 20.0"),
          HasSubstr("Restoring with maps: nothing that was scored is within 1 point; the closest is restored "
                    "layers 0-3 (4 of 4): a loss of 14.0"),
          HasSubstr("<dd>pair.safetensors (dddddddddddd)</dd>"),
          HasSubstr("recompute 1-3 aligned was chosen among 8 ways with maps")));
  // Of restored layers that are close, the fewest; any are fewer recomputed layers than a group.
  way(q, "restore 0-3 aligned").loss = way(q, "restore 2-3 aligned").loss = {0.5, 0.1};
  page = checked_page(q);
  EXPECT_THAT(
      page,
      AllOf(HasSubstr("Restoring with maps: the smallest set of restored layers within 1 point is "
                      "restored layers 2-3 (2 of 4): a loss of 0.5 ± 0.1 points, at most 0.7"),
            HasSubstr("restore 2-3 aligned was chosen among"), HasSubstr("<th>restore 2-3 aligned</th>")));
  // A form that is not the usual one is named.
  q.ways.push_back(scored(Way::group({2, 2}).aligned(MapForm::kDiagonal), 89.5));
  EXPECT_THAT(checked_page(q),
              HasSubstr("within 1 point is layer 2 (1 of 4) with diagonal maps: a loss of 0.5"));
}

/// The controls score best of all, and are chosen nowhere.
TEST(Report, ControlsAreNoChoices) {
  std::string page = checked_page(aligned_profile());
  std::string words = page.substr(page.find("<h1>"), page.find("<svg") - page.find("<h1>"));
  EXPECT_THAT(words, AllOf(Not(HasSubstr("shuffled")), Not(HasSubstr("A to B"))));
  EXPECT_THAT(page, AllOf(HasSubstr("<tr><td>full (shuffled)</td><td>8</td><td>17.0</td><td>6.0</td>"),
                          HasSubstr("<td>a control</td><td>a control</td>"),
                          HasSubstr("a control: the best of each size with A to B's maps"),
                          HasSubstr("<title>a control: recompute 1 aligned (shuffled): 90.0"),
                          HasSubstr("16 controls with shuffled or another pair's maps: never chosen"),
                          HasSubstr("<title>1 scattered sets of 2 layers, aligned: mean 71.0")));
  // In charts as controls only, and in no heat map.
  EXPECT_EQ(count_of(page, "<title>recompute 1 aligned (shuffled)"), 0u);
  EXPECT_EQ(count_of(page, "<title>a control: recompute 1 aligned (shuffled)"), 2u);
}

/// Controls of a few sizes stand by themselves, beside what this pair's maps win of the same ways.
TEST(Report, ControlsOfAFewSizesAreNotJoined) {
  Quality q = aligned_profile();
  const std::string line = "<path class=\"o c9 dashed thin\" d=\"M";
  std::string page = checked_page(q);
  auto lines = [&] {
    size_t at = page.find(line);
    std::string path = page.substr(at, page.find("/>", at) - at);
    return std::pair(count_of(path, "M"), count_of(path, "L"));
  };
  EXPECT_EQ(lines(), std::pair(size_t{1}, size_t{3}));  // 0, the restored, to 3
  std::erase_if(q.ways, [](const WayScore& w) {
    bool small = w.way.recomputed(kLayers) < 2;
    return w.way.map_control == "shuffled" && (w.way.restores() ? false : small);
  });
  way(q, "recompute 1-2 aligned").loss.value -= 3;
  page = checked_page(q);
  EXPECT_EQ(lines(), std::pair(size_t{2}, size_t{1}));  // 0; 2 to 3
  EXPECT_THAT(page, HasSubstr("<tr><td>full (shuffled)</td><td>5</td><td>14.6</td><td>6.6</td>"));
}

/// Both charts, for pages and phones; two tasks; three heat maps.
TEST(Report, WaysWithMapsAreDrawnBesideThoseWithout) {
  std::string page = checked_page(aligned_profile());
  EXPECT_EQ(count_of(page, "<title>recompute 1-3 aligned: "), 2u + 2u + 2u + 3u);  // on the curve
  EXPECT_EQ(count_of(page, "<title>restore 0-3 aligned: "), 2u + 2u + 2u + 2u);    // and among the restored
  EXPECT_EQ(count_of(page, "<title>recompute 3 aligned: "), 2u + 3u);  // not on it: in the second chart only
  EXPECT_EQ(count_of(page, "<title>restore 2-3 aligned: "), 2u);
  // Those without maps are where they were: but for the second chart, which has their curve.
  EXPECT_EQ(count_of(page, "<title>recompute 2-3: "), 6u);
  EXPECT_EQ(count_of(page, "<title>recompute 1-3: "), 8u);
  EXPECT_THAT(page, AllOf(HasSubstr("the same with maps (aligned cuts)"),
                          HasSubstr("<h3>With full maps</h3>"), HasSubstr("Won by the maps, points of loss"),
                          HasSubstr("The best group without maps of each size, chosen on some data")));
  std::string plain = checked_page(full_profile());
  for (const char* text : {"maps", "aligned", "\"f c8", "\"o c8"}) EXPECT_THAT(plain, Not(HasSubstr(text)));
}

/// The curve with maps starts at the restored layers that recompute none, else at full reuse.
TEST(Report, TheCurveWithMapsStartsWhereItsFirstWayIs) {
  Quality q = aligned_profile();
  const std::regex curve("<path class=\"o c8\" d=\"M([0-9.]+),([0-9.]+) ");
  auto start = [&] {
    std::string page = checked_page(q);
    std::smatch found;
    EXPECT_TRUE(std::regex_search(page, found, curve));
    return std::pair(std::stod(found[1]), std::stod(found[2]));
  };
  auto restored = start();
  q.pareto_aligned.erase(q.pareto_aligned.begin());
  auto reuse = start();
  EXPECT_LT(restored.second, reuse.second);  // 76 points are higher up than 60
  EXPECT_NEAR(restored.first, reuse.first + 5, 0.11);
}

TEST(Report, SaysWhereMapsHelpAndHurt) {
  Quality q = aligned_profile();
  // 6 points by errors of 0.5 and 0.5: beyond two standard errors; 1.4 of 0.71 is not; 1.5 is.
  EXPECT_THAT(checked_page(q),
              AllOf(HasSubstr("Of 8 ways scored with maps and without, maps help 8 and hurt none "
                              "by more than two standard errors."),
                    Not(HasSubstr("Where maps hurt")),
                    HasSubstr("<tr><td>full</td><td>8</td><td>6.0</td><td></td><td>8</td><td>0</td>")));
  way(q, "recompute 2 aligned").loss.value = 21 + 1.4;
  way(q, "recompute 3 aligned").loss.value = 21 + 1.5;
  way(q, "restore 2-3 aligned").loss.value = 26 + 9;
  EXPECT_THAT(
      checked_page(q),
      AllOf(
          HasSubstr("maps help 5 and hurt 2 by more than two standard errors: restore 2-3 aligned (a loss of "
                    "35.0 instead of 26.0), recompute 3 aligned (a loss of 22.5 instead of 21.0)."),
          HasSubstr("Where maps hurt"),
          HasSubstr("<td>restore 2-3 aligned</td><td>26.0 ± 0.5</td><td>35.0 ± 0.5</td><td>-9.0 ± 0.7</td>"),
          HasSubstr("<tr><td>2-3</td><td>26.0 ± 0.5</td><td>35.0 ± 0.5</td><td>-9.0 ± 0.7 (worse)</td>"),
          Not(HasSubstr("<td>recompute 2 aligned</td><td>21.0"))));
  // Errors that are not known prove nothing; what racing dropped is not compared.
  for (WayScore& w : q.ways) w.loss.standard_error = kNone;
  EXPECT_THAT(checked_page(q),
              HasSubstr("Of 8 ways scored with maps and without, maps help 0 and hurt none"));
  way(q, "recompute 3 aligned").dropped = true;
  EXPECT_THAT(checked_page(q), AllOf(HasSubstr("Of 7 ways scored"), HasSubstr("url(#hatch-score-full)")));
}

TEST(Report, FormsOfMapsStandSideBySide) {
  Quality q = aligned_profile();
  EXPECT_THAT(checked_page(q),
              AllOf(Not(HasSubstr("by form of the maps")),
                    HasSubstr("<tr><td>3</td><td>0-2</td><td>3.0 ± 0.5</td><td>1-3</td><td>-3.0 "
                              "± 0.5</td><td>6.0 ± 0.7</td></tr>")));
  q.ways.push_back(scored(Way::group({1, 3}).aligned(MapForm::kDiagonal), 88));
  q.ways.push_back(scored(Way::group({1, 3}).aligned(MapForm::kLowRank), 94));
  q.ways.push_back(scored(Way::restore({2, 3}).aligned(MapForm::kLowRank), 65));
  EXPECT_THAT(
      checked_page(q),
      AllOf(HasSubstr("The best group of each size, by form of the maps"),
            HasSubstr("<th>loss with full maps</th><th>loss with diagonal maps</th><th>loss with low-rank "
                      "maps</th><th>won by maps</th>"),
            HasSubstr("<tr><td>3</td><td>3.0 ± 0.5</td><td>-3.0 ± 0.5</td><td>2.0 ± 0.5</td><td>-4.0 ± "
                      "0.5</td><td>7.0 ± 0.7</td></tr>"),
            HasSubstr("<tr><td>2-3</td><td>26.0 ± 0.5</td><td>20.0 ± 0.5</td><td>–</td><td>25.0 ± 0.5</td>"),
            HasSubstr("<td>1-3 (low-rank)</td>"), HasSubstr("<h3>With diagonal maps</h3>")));
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
