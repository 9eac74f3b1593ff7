// ds-publish and ds-run from outside with plans whose cuts are aligned: maps of another pair, of another fit,
// damaged, missing; plain cuts.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>

#include "plans/plan_file.h"
#include "runtime/model/checkpoint.h"
#include "runtime/trace/run_record.h"
#include "support/file.h"
#include "support/json.h"
#include "tests/unit/aligned_plans.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::make_maps;
using testing::make_plan;
using testing::set_pair;
using testing::with_aligned_cuts;

constexpr int kInvalid = 2, kMissing = 3, kDamaged = 4, kMismatched = 5;  // exit codes

struct Outcome {
  int code = -1;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, false); }
};

class AlignedTools : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = ::testing::TempDir() + "aligned_tools_" + name;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    sender_ = identity("sender");
    receiver_ = identity("receiver");
    shape_ = Checkpoint::open(kModels + "receiver")->config().shape();
    std::string ids = "[", prompt = "[5, 6]";
    for (int i = 0; i < 130; ++i) ids += fmt::format("{}{}", i == 0 ? "" : ", ", (i * 37 + 11) % 200);
    write("context.json", ids + "]");
    write("prompt.json", prompt);
    maps_ = write_maps("maps.safetensors", receiver_, 0.02f);
    write_plan("receiver.dsplan", MapSide::kReceiver, maps_);
    write_plan("sender.dsplan", MapSide::kSender, maps_);
    write("plain.dsplan", serialize_plan(plain()));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static ModelIdentity identity(const std::string& which) {
    return *Checkpoint::open(kModels + which)->identity();
  }
  Plan plain() const {
    Plan plan = make_plan(shape_, {2, 3}, "e-first", {.dtype = "f32"});
    plan.sender = sender_;
    plan.receiver = receiver_;
    return plan;
  }
  void write_plan(const std::string& name, MapSide side, const std::string& fingerprint) {
    Plan plan = with_aligned_cuts(plain(), MapForm::kFull, side, {"maps.safetensors", fingerprint});
    ASSERT_TRUE(verify_plan(plan, name).ok()) << verify_plan(plan, name).message();
    write(name, serialize_plan(plan));
  }
  /// Returns their fingerprint.
  std::string write_maps(const std::string& name, const ModelIdentity& to, float size) {
    MapSet set = make_maps(shape_, 3, [&](int64_t layer, const std::string&, std::vector<float>& v) {
      for (size_t i = 0; i < v.size(); ++i)
        v[i] = size * static_cast<float>(static_cast<int64_t>(i * 31 + static_cast<size_t>(layer)) % 41 - 20);
    });
    set_pair(set, sender_, to);
    Status status = set.write(folder_ + "/" + name);
    EXPECT_TRUE(status.ok()) << status.message();
    return set.fingerprint();
  }
  void write(const std::string& name, const std::string& content) {
    Status status = write_file_atomically(folder_ + "/" + name, content);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::string read(const std::string& name) {
    Result<std::string> text = read_text_file(folder_ + "/" + name);
    return text.ok() ? *text : "";
  }
  Outcome tool(const std::string& command) {
    int status = std::system(("cd '" + folder_ + "' && " + command + " >out.txt 2>err.txt").c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out.txt"), read("err.txt")};
  }
  Outcome publish(const std::string& arguments) {
    return tool(DS_PUBLISH_TOOL " --model " + kModels +
                "sender --context-ids context.json --dtype f32 --store file:store " + arguments);
  }
  Outcome run(const std::string& arguments) {
    return tool(DS_RUN_TOOL " --receiver " + kModels +
                "receiver --context-ids context.json --prompt-ids prompt.json --dtype f32 --max-new-tokens 4 "
                "--store file:store " +
                arguments);
  }
  void expect(const Outcome& outcome, int code, const std::string& text) {
    EXPECT_EQ(outcome.code, code) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(text));
    EXPECT_EQ(outcome.out, "");
  }
  bool nothing_published() const { return !std::filesystem::exists(folder_ + "/store"); }

  static const std::string kModels;
  std::string folder_, maps_;
  ModelIdentity sender_, receiver_;
  Shape shape_;
};
const std::string AlignedTools::kModels = DS_SOURCE_DIR "/tests/golden/models/llama/";

TEST_F(AlignedTools, PublishAndRunOnEitherSide) {
  Outcome published = publish(
      "--plan receiver.dsplan --plan sender.dsplan --plan plain.dsplan --maps maps.safetensors --json");
  ASSERT_EQ(published.code, 0) << published.err;
  auto cuts = published.json()["cuts"];
  ASSERT_EQ(cuts.size(), 2u) << cuts;
  EXPECT_EQ(cuts[0],
            (nlohmann::json{{"layer", 2}, {"form", "none"}, {"maps", nullptr}, {"bytes", 130 * 32 * 4}}));
  EXPECT_EQ(cuts[1],
            (nlohmann::json{{"layer", 2}, {"form", "full"}, {"maps", maps_}, {"bytes", 130 * 32 * 4}}));

  auto answer = [&](const std::string& arguments, const std::string& logits) {
    Outcome outcome = run(arguments + " --json --dump-logits " + logits);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    auto json = outcome.json();
    EXPECT_EQ(json["cache"]["status"], "hit") << json["cache"];
    return json["cuts"];
  };
  EXPECT_EQ(answer("--plan receiver.dsplan --maps maps.safetensors", "receiver.bin"),
            "aligned (full, receiver)");
  EXPECT_EQ(answer("--plan sender.dsplan", "sender.bin"), "aligned (full, sender)");
  EXPECT_EQ(answer("--plan sender.dsplan --maps maps.safetensors", "sender.bin"), "aligned (full, sender)");
  EXPECT_EQ(answer("--plan plain.dsplan", "plain.bin"), "plain");
  EXPECT_EQ(answer("--plan receiver.dsplan --plain-cuts --record run.jsonl", "forced.bin"),
            "plain, instead of aligned (full, receiver)");
  EXPECT_THAT(read("err.txt"), HasSubstr("what the plan promises of its answers does not hold"));
  EXPECT_THAT(read_run_record(folder_ + "/run.jsonl")->choice, HasSubstr("plain, instead of aligned"));
  EXPECT_EQ(answer("--plan sender.dsplan --plain-cuts", "forced2.bin"),
            "plain, instead of aligned (full, sender)");
  EXPECT_EQ(read("receiver.bin"), read("sender.bin"));
  EXPECT_EQ(read("plain.bin"), read("forced.bin"));
  EXPECT_EQ(read("plain.bin"), read("forced2.bin"));
  EXPECT_NE(read("plain.bin"), read("receiver.bin"));
  // The full prefill needs no maps, and has no cuts.
  Outcome full = run("--plan receiver.dsplan --mode full-prefill --json");
  EXPECT_EQ(full.code, 0) << full.err;
  EXPECT_TRUE(full.json()["cuts"].is_null());
  Outcome text = publish("--plan sender.dsplan --maps maps.safetensors --whole");
  EXPECT_THAT(text.out, HasSubstr(fmt::format("E of layer 2 through the full map of {:.12} (", maps_)));
}

TEST_F(AlignedTools, WithoutTheirMapsNothingIsPublished) {
  expect(publish("--plan sender.dsplan"), kInvalid,
         fmt::format(
             "plan 'sender.dsplan' has the sender take its hidden states through the maps 'maps.safetensors' "
             "(fingerprint {:.12}), which were not given; give that file with --maps",
             maps_));
  expect(publish("--plan sender.dsplan --maps absent.safetensors"), kMissing, "absent.safetensors");
  write_maps("other-fit.safetensors", receiver_, 0.03f);
  expect(publish("--plan sender.dsplan --maps other-fit.safetensors"), kMismatched,
         "of the same pair, but another fit");
  write_maps("other-pair.safetensors", sender_, 0.02f);
  expect(publish("--plan sender.dsplan --maps other-pair.safetensors"), kMismatched,
         "they are of another pair");
  expect(
      publish(
          "--plan sender.dsplan --maps maps.safetensors --plan plain.dsplan --maps other-pair.safetensors"),
      kInvalid, "--maps 'other-pair.safetensors' (fingerprint");
  expect(publish("--plan plain.dsplan --maps maps.safetensors"), kInvalid,
         "no plan that was given names these maps");
  std::string good = read("maps.safetensors");
  for (size_t size : {size_t{0}, size_t{7}, size_t{1000}, good.size() - 1}) {
    write("cut.safetensors", good.substr(0, size));
    expect(publish("--plan sender.dsplan --maps cut.safetensors"), kDamaged, "cut.safetensors");
  }
  write("context-of-others.safetensors", read("plain.dsplan"));
  EXPECT_NE(publish("--plan sender.dsplan --maps context-of-others.safetensors").code, 0);
  EXPECT_TRUE(nothing_published());
  // A plan that the receiver aligns needs none here, and may be given with them.
  EXPECT_EQ(publish("--plan receiver.dsplan").code, 0);
  EXPECT_EQ(publish("--plan receiver.dsplan --maps maps.safetensors").code, 0);
}

TEST_F(AlignedTools, RunsWithWrongMapsAreRefused) {
  ASSERT_EQ(publish("--plan receiver.dsplan").code, 0);
  expect(run("--plan receiver.dsplan"), kInvalid,
         fmt::format("give the file of maps 'maps.safetensors' (fingerprint {:.12}) with --maps, or run with "
                     "--plain-cuts",
                     maps_));
  expect(run("--plan receiver.dsplan --maps absent.safetensors"), kMissing, "absent.safetensors");
  write_maps("other-fit.safetensors", receiver_, 0.03f);
  expect(run("--plan receiver.dsplan --maps other-fit.safetensors"), kMismatched, "another fit");
  write_maps("other-pair.safetensors", sender_, 0.02f);
  expect(run("--plan receiver.dsplan --maps other-pair.safetensors"), kMismatched, "of another pair");
  std::string good = read("maps.safetensors");
  write("cut.safetensors", good.substr(0, good.size() / 2));
  expect(run("--plan receiver.dsplan --maps cut.safetensors"), kDamaged, "cut.safetensors");
  std::string bent = good;
  bent[good.size() - 3] = static_cast<char>(bent[good.size() - 3] ^ 1);
  write("bent.safetensors", bent);
  expect(run("--plan receiver.dsplan --maps bent.safetensors"), kDamaged, "damaged, fit the maps again");
  expect(run("--plan plain.dsplan --maps maps.safetensors"), kInvalid, "has aligned cuts; leave it out");
  expect(run("--plan receiver.dsplan --maps maps.safetensors --plain-cuts"), kInvalid,
         "contradict each other");
  expect(run("--plan receiver.dsplan --plain-cuts --gate quality.json"), kInvalid,
         "--plain-cuts does not give");
  expect(tool(DS_RUN_TOOL " --receiver " + kModels + "receiver --prompt-ids prompt.json --plain-cuts"),
         kInvalid, "they need --plan FILE");
}

TEST_F(AlignedTools, AnEntryWithoutTheMappedTensorIsACountedMiss) {
  ASSERT_EQ(publish("--plan receiver.dsplan").code, 0);
  Outcome outcome = run("--plan sender.dsplan --json --dump-logits miss.bin");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  auto json = outcome.json();
  EXPECT_EQ(json["cache"]["status"], "miss");
  EXPECT_THAT(
      json["cache"]["reason"].get<std::string>(),
      AllOf(HasSubstr(fmt::format("no e(2) through the full map of {:.12}", maps_)),
            HasSubstr("publish it again with the plan that asks for it and that plan's file of maps")));
  EXPECT_TRUE(json["cuts"].is_null());
  EXPECT_EQ(run("--plan plain.dsplan --mode full-prefill --dump-logits full.bin").code, 0);
  EXPECT_EQ(read("miss.bin"), read("full.bin"));
  EXPECT_THAT(run("--plan sender.dsplan --plain-cuts --json").json()["cache"].dump(), HasSubstr("hit"));
}

}  // namespace
}  // namespace ds
