#include "runtime/core/calibrate.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "runtime/core/calibration_json.h"
#include "support/file.h"
#include "support/json.h"
#include "tests/unit/model_fixture.h"

namespace ds {
namespace {

using ::testing::HasSubstr;
using testing::TinyModel;

struct Folder {
  std::string path = ::testing::TempDir() + "calibrate-XXXXXX";
  Folder() {
    if (mkdtemp(path.data()) == nullptr) ADD_FAILURE() << path;
  }
  ~Folder() { std::filesystem::remove_all(path); }
};

TEST(CalibrationGrid, ReachesTheLongestContextAndHoldsEachCallOnce) {
  ModelConfig config = testing::tiny_config(Family::kLlama);
  for (std::vector<int64_t> contexts : {std::vector<int64_t>{1}, {7}, {256, 1024}, {1000, 5000, 30000}}) {
    auto grid = calibration_grid(config, contexts, 16);
    ASSERT_TRUE(grid.ok()) << grid.status().message();
    int64_t longest = contexts.back() + 16;
    std::set<CallSize> seen;
    for (const CallSize& c : *grid) {
      EXPECT_TRUE(seen.insert(c).second) << c.rows << " " << c.query_rows << " " << c.position;
      EXPECT_GE(c.rows, 1);
      EXPECT_LE(c.position + c.rows, longest);
      EXPECT_TRUE(c.query_rows == 0 || c.query_rows == c.rows);
    }
    // What every request has: a full prefill, K and V alone, the prompt and one token behind all others.
    for (CallSize c :
         {CallSize{longest, longest, 0}, {longest, 0, 0}, {16, 16, 0}, {1, 1, 0}, {1, 1, longest - 1}})
      EXPECT_TRUE(seen.count(c)) << c.rows << " " << c.query_rows << " " << c.position;
    for (int64_t context : contexts) EXPECT_TRUE(seen.contains({context + 16, context + 16, 0})) << context;
  }
}

TEST(CalibrationGrid, LengthsThatDoNotFitAreRefused) {
  ModelConfig config = testing::tiny_config(Family::kLlama);
  config.max_positions = 100;
  EXPECT_TRUE(calibration_grid(config, {84}, 16).ok());
  EXPECT_THAT(calibration_grid(config, {10, 85}, 16).status().message(),
              HasSubstr("context lengths 10,85 and a suffix of 16 tokens; expected lengths from 1 to 84"));
  EXPECT_EQ(calibration_grid(config, {}, 16).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(calibration_grid(config, {0}, 16).status().code(), Code::kInvalidArgument);
}

TEST(Calibrate, StopsKeepsAndGoesOn) {
  TinyModel tiny(testing::tiny_config(Family::kLlama, 3), 1, DType::kF32);
  ASSERT_TRUE(tiny.model);
  Folder folder;
  auto store = open_store("file:" + folder.path + "/store");
  ASSERT_TRUE(store.ok());
  std::atomic<bool> stop{false};
  Calibration last;
  CalibrationOptions options;
  options.contexts = {40, 200};
  options.suffix = 5;
  options.budget_ns = int64_t{1} << 60;  // all of the grid
  options.store = store->get();
  options.stop = &stop;
  options.measured = [&](const Calibration& c) -> Status {
    last = c;
    stop = c.layers.size() == 3;
    return ok_status();
  };
  auto part = calibrate(*tiny.backend, *tiny.model, options);
  ASSERT_TRUE(part.ok()) << part.status().message();
  EXPECT_TRUE(part->stopped);
  ASSERT_EQ(part->layers.size(), 3u);
  ASSERT_TRUE(part->machine.has_value());

  CalibrationSubject subject;
  subject.name = "m";
  subject.shape = tiny.model->config().shape();
  subject.options = "lengths 40,200";
  std::string path = folder.path + "/machine.json.partial";
  ASSERT_TRUE(write_file_atomically(path, partial_json(subject, *part)).ok());
  auto read = read_partial(path, subject);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->spent_ns, part->spent_ns);
  EXPECT_EQ(partial_json(subject, *read), partial_json(subject, *part));
  // Maps of every form, of the model's width 64; the times are anybody's, but not nothing.
  std::vector<std::pair<MapForm, int64_t>> forms;
  for (const AlignTime& t : part->machine->aligns) {
    forms.emplace_back(t.form, t.rank);
    EXPECT_GE(t.ns, 1);
    EXPECT_GE(t.row_ns, 0);
  }
  EXPECT_EQ(forms, (decltype(forms){{MapForm::kFull, 0}, {MapForm::kLowRank, 8}, {MapForm::kDiagonal, 0}}));
  auto json = nlohmann::json::parse(machine_json(subject, *part));
  EXPECT_EQ(json["version"], 4);
  ASSERT_EQ(json["align"].size(), 3u);
  EXPECT_EQ(json["align"][1]["form"], "low-rank");
  EXPECT_EQ(json["align"][1]["rank"], 8);
  EXPECT_EQ(json["align"][1]["ns"], part->machine->aligns[1].ns);
  EXPECT_EQ(json["align"][1]["row_ns"], part->machine->aligns[1].row_ns);

  options.measured = nullptr;
  stop = false;
  auto whole = calibrate(*tiny.backend, *tiny.model, options, *read);
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  EXPECT_FALSE(whole->stopped);
  EXPECT_TRUE(whole->left_out.empty());
  auto grid = calibration_grid(tiny.model->config(), options.contexts, options.suffix);
  ASSERT_EQ(whole->layers.size(), grid->size());
  for (size_t i = 0; i < grid->size(); ++i) {
    const LayerTime& t = whole->layers[i];
    EXPECT_EQ(t.size, (*grid)[i]);
    EXPECT_GE(t.min_ns, 1);
    EXPECT_LE(t.min_ns, t.ns);
    EXPECT_LE(t.ns, t.max_ns);
    EXPECT_GE(t.passes, 1);
    // Kept, unless the machine was disturbed at first and quicker later.
    if (i < 3 && t.probe_ns == part->layers[i].probe_ns) {
      EXPECT_EQ(t.ns, part->layers[i].ns);
    }
  }
  EXPECT_GE(whole->spent_ns, part->spent_ns);
  EXPECT_NEAR(whole->machine->matmul_flops, part->machine->matmul_flops, 1);
  // The entry that was read is gone.
  auto left = (*store)->list();
  ASSERT_TRUE(left.ok()) << left.status().message();
  EXPECT_TRUE(left->empty());
}

TEST(Calibrate, TheBudgetLeavesDearCallsOut) {
  TinyModel tiny(testing::tiny_config(Family::kLlama, 2), 1, DType::kF32);
  ASSERT_TRUE(tiny.model);
  Folder folder;
  auto store = open_store("file:" + folder.path);
  CalibrationOptions options;
  options.contexts = {100};
  options.budget_ns = 1;
  options.store = store->get();
  auto c = calibrate(*tiny.backend, *tiny.model, options);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_TRUE(c->layers.empty());
  EXPECT_EQ(c->left_out.size(), calibration_grid(tiny.model->config(), {100}, 16)->size());
}

TEST(Calibration, SaysHowMuchTheMachineWasDisturbed) {
  Calibration c;
  EXPECT_EQ(c.disturbed_permille(), 0);
  for (int64_t probe : {1200, 1000, 1500}) c.layers.push_back({.size = {probe, 0, 0}, .probe_ns = probe});
  EXPECT_EQ(c.disturbed_permille(), 500);
}

TEST(PartialFile, OfSomethingElseOrBrokenIsRefused) {
  Folder folder;
  std::string path = folder.path + "/p";
  CalibrationSubject subject;
  Calibration c;
  c.machine.emplace();
  c.machine->aligns = {{MapForm::kLowRank, 3, 5, 0.5}};
  c.machine->staged_block_bytes = 64;
  c.layers = {{{8, 8, 0}, 5, 4, 6, 3, 9}};
  auto read = [&](std::string text, const CalibrationSubject& s) {
    EXPECT_TRUE(write_file_atomically(path, text).ok());
    auto r = read_partial(path, s);
    return r.ok() ? std::string("read") : r.status().message();
  };
  std::string text = partial_json(subject, c);
  EXPECT_EQ(read(text, subject), "read");
  EXPECT_EQ(read_partial(path, subject)->machine->staged_block_bytes, 64);
  CalibrationSubject other = subject;
  other.options = "more";
  EXPECT_THAT(read(text, other), HasSubstr("measured for another model, machine or other options"));
  auto with = [&](std::string from, std::string to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return read(changed, subject);
  };
  EXPECT_THAT(with("\"version\": 4", "\"version\": 2"), HasSubstr("version 2, expected"));
  EXPECT_THAT(with("\"low-rank\"", "\"wide\""),
              HasSubstr("align[0]: form: unknown form 'wide'; expected one of diagonal"));
  EXPECT_THAT(with("\"low-rank\"", "\"full\""), HasSubstr("align[0]: 'rank' is 3"));
  EXPECT_THAT(with("\"ns\":5", "\"ns\":0"), HasSubstr("layer_ns[0]: 'ns' is 0, expected an integer"));
  EXPECT_THAT(with("\"wakeup_ns\"", "\"wake\""), HasSubstr("key 'wakeup_ns' is missing"));
  for (size_t n = 0; n + 2 < text.size(); n += 13) EXPECT_NE(read(text.substr(0, n), subject), "read") << n;
}

}  // namespace
}  // namespace ds
