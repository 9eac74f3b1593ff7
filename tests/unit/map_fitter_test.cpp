// Maps fitted to two models, and the file that they are kept in.
#include "profiler/map_fitter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "runtime/model/identity.h"
#include "runtime/model/maps.h"
#include "support/file.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

const std::vector<MapForm> kAllForms{MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull};

MapFitter::Fitted fit(TinyModel& sender, TinyModel& receiver, FitOptions options = {}) {
  constexpr int64_t contexts = 10;
  auto fitter =
      take(MapFitter::create(*receiver.backend, *sender.model, *receiver.model, options, contexts, 60));
  for (int64_t i = 0; i < contexts; ++i) {
    Status status = fitter->add(random_ids(40 + i % 10, 300, 50 + static_cast<uint64_t>(i)));
    EXPECT_TRUE(status.ok()) << status.message();
  }
  return take(fitter->fit());
}

TEST(MapFitter, OneModelStaysPlain) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    TinyModel s(tiny_config(Family::kLlama), 1, dtype), r(tiny_config(Family::kLlama), 1, dtype);
    MapFitter::Fitted fitted = fit(s, r, {.forms = kAllForms});
    EXPECT_TRUE(fitted.maps.empty());
    EXPECT_EQ(fitted.plain.size(), 3u * 4);  // three forms, layers 1 to 4
    for (const PlainLayer& p : fitted.plain) EXPECT_EQ(p.fit.plain_error, 0);
  }
}

TEST(MapFitter, FitsBetterThanThePlainCutAndThanAWrongOrder) {
  auto backend = take(testing::test_backend());
  const std::string pair = DS_SOURCE_DIR "/examples/pair/";
  auto sender_files = take(Checkpoint::open(pair + "mild")),
       receiver_files = take(Checkpoint::open(pair + "receiver"));
  auto sender = take(backend->load(sender_files, {})), receiver = take(backend->load(receiver_files, {}));
  auto fitter = take(MapFitter::create(*backend, *sender, *receiver,
                                       {.forms = kAllForms, .rank = 3, .shuffled = true}, 11, 200));
  std::vector<int64_t> read, solved;
  for (uint64_t i = 0; i < 11; ++i)
    ASSERT_TRUE(fitter->add(random_ids(200, 1381, i), [&](int64_t layers) { read.push_back(layers); }).ok());
  MapFitter::Fitted fitted = take(fitter->fit([&](int64_t layers) { solved.push_back(layers); }));
  EXPECT_EQ(read.size(), 11u * 11);
  EXPECT_EQ(solved.size(), 11u);
  EXPECT_EQ(solved.back(), 11);
  EXPECT_TRUE(fitted.plain.empty());
  ASSERT_EQ(fitted.maps.size(), 33u);
  ASSERT_EQ(fitted.shuffled.size(), fitted.maps.size());
  for (size_t i = 0; i < fitted.maps.size(); ++i) {
    const AlignmentMap &m = fitted.maps[i], &wrong = fitted.shuffled[i];
    SCOPED_TRACE(fmt::format("layer {}, {}", m.layer, map_form_name(m.form)));
    EXPECT_EQ(std::pair(m.layer, m.form), std::pair(wrong.layer, wrong.form));
    EXPECT_EQ(m.rank, m.form == MapForm::kLowRank ? 3 : 0);
    EXPECT_LT(m.fit.error, m.fit.plain_error);
    EXPECT_LT(m.fit.error, wrong.fit.error);
    EXPECT_EQ(m.fit.contexts, 11);
    EXPECT_EQ(m.fit.held_out_contexts, 2);
    EXPECT_EQ(m.fit.tokens, 2200);
    EXPECT_EQ(m.fit.held_out_tokens, 400);
  }
}

TEST(MapFitter, SaysWhatItCannotFit) {
  TinyModel s(tiny_config(Family::kLlama), 2, DType::kF32), r(tiny_config(Family::kLlama), 1, DType::kF32);
  auto create = [&](FitOptions options, int64_t contexts) {
    return MapFitter::create(*r.backend, *s.model, *r.model, options, contexts, 60);
  };
  EXPECT_THAT(create({}, 1).status().message(), HasSubstr("fitted on 1 contexts; expected at least 2"));
  EXPECT_THAT(create({.rank = 4096}, 2).status().message(), HasSubstr("rank 4096; expected 1 to"));
  // Too short; where it is allowed, layers are left out and the rest of the work goes on.
  for (bool plain : {false, true}) {
    auto fitter = take(create({.plain = plain}, 2));
    ASSERT_TRUE(fitter->add(random_ids(10, 300, 1)).ok());
    ASSERT_TRUE(fitter->add(random_ids(10, 300, 2)).ok());
    EXPECT_THAT(fitter->add(random_ids(10, 300, 3)).message(), HasSubstr("context 3 of 2"));
    auto fitted = fitter->fit();
    EXPECT_EQ(fitted.ok(), plain);
    if (plain) {
      EXPECT_TRUE(fitted->maps.empty());
      EXPECT_EQ(fitted->left_out.size(), 4u);
    } else {
      EXPECT_EQ(fitted.status().code(), Code::kInfeasible);
      EXPECT_THAT(fitted.status().message(),
                  AllOf(HasSubstr("layer 1: 10 tokens to fit on"), HasSubstr("need at least")));
    }
  }
}

class MapsFile : public ::testing::Test {
 protected:
  MapSet made() {
    TinyModel s(tiny_config(Family::kLlama), 2, DType::kF32), r(tiny_config(Family::kLlama), 1, DType::kF32);
    MapSet set;
    set.sender_name = "s";
    set.sender_fingerprint = std::string(64, 'a');
    set.receiver_name = "r";
    set.receiver_fingerprint = std::string(64, 'b');
    set.layers = 5;
    set.d_model = r.model->config().d_model;
    set.dtype = "f32";
    set.data = {{"fit", "notes.jsonl", std::string(64, 'c')}};
    set.maps = fit(s, r, {.forms = kAllForms, .rank = 2}).maps;
    set.plain = {{1, MapForm::kFull, {.tokens = 10, .contexts = 2, .error = 0.5, .plain_error = 0.25}}};
    return set;
  }
  std::string path = ::testing::TempDir() + "maps_test.safetensors";
  void TearDown() override { std::filesystem::remove(path); }
  Status read() { return MapSet::read(path).status(); }
  void change(std::string_view from, std::string_view to) {
    std::string bytes = take(read_text_file(path));
    size_t at = bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    ASSERT_EQ(from.size(), to.size());
    bytes.replace(at, from.size(), to);
    ASSERT_TRUE(write_file_atomically(path, bytes).ok());
  }
};

TEST_F(MapsFile, IsReadAsItWasWritten) {
  MapSet set = made();
  ASSERT_TRUE(set.write(path).ok());
  MapSet back = take(MapSet::read(path));
  EXPECT_EQ(back.maps, set.maps);
  EXPECT_EQ(back.plain, set.plain);
  EXPECT_EQ(back.data, set.data);
  EXPECT_EQ(back.sender_name, "s");
  EXPECT_EQ(back.fingerprint(), set.fingerprint());
  EXPECT_EQ(back.find(3, MapForm::kLowRank)->rank, 2);
  EXPECT_EQ(back.find(0, MapForm::kFull), nullptr);
  std::string once = take(read_text_file(path));
  ASSERT_TRUE(back.write(path).ok());
  EXPECT_EQ(take(read_text_file(path)), once);
  // The fingerprint covers every number, and the pair; not what is for people.
  MapSet other = set;
  other.maps[4].bias[1] += 1e-3f;
  EXPECT_NE(other.fingerprint(), set.fingerprint());
  other = set;
  other.sender_fingerprint[0] = 'd';
  EXPECT_NE(other.fingerprint(), set.fingerprint());
  other = set;
  other.sender_name = "renamed";
  other.maps[0].fit.error = 0.5;
  other.plain.clear();
  EXPECT_EQ(other.fingerprint(), set.fingerprint());
}

TEST_F(MapsFile, OfAnotherPairOrPlanIsRefused) {
  MapSet set = made();
  ModelIdentity a, b, x;
  a.fingerprint = std::string(64, 'a');
  b.fingerprint = std::string(64, 'b');
  x.config = "of another model";
  EXPECT_TRUE(set.check_pair("f", a, b, 5, set.d_model).ok());
  EXPECT_THAT(set.check_pair("f", x, b, 5, set.d_model).message(),
              AllOf(HasSubstr("maps 'f' were fitted for sender 's' (fingerprint aaaaaaaaaaaa)"),
                    HasSubstr(model_fingerprint(x).substr(0, 12))));
  EXPECT_THAT(set.check_pair("f", a, x, 5, set.d_model).message(), HasSubstr("receiver 'r'"));
  EXPECT_THAT(set.check_pair("f", a, b, 6, set.d_model).message(), HasSubstr("for 5 layers of width"));
  // Named by config and weights, whatever the tokenizer's file.
  x.weights = "weights";
  x.tokenizer = "one";
  x.fingerprint = identity_fingerprint(x.config, x.weights, x.tokenizer);
  MapSet named = set;
  named.sender_fingerprint = model_fingerprint(x);
  x.tokenizer = "another";
  x.fingerprint = identity_fingerprint(x.config, x.weights, x.tokenizer);
  EXPECT_TRUE(named.check_pair("f", x, b, 5, set.d_model).ok());
  x.weights = "other weights";
  EXPECT_FALSE(named.check_pair("f", x, b, 5, set.d_model).ok());
  Plan plan;
  plan.sender = a;
  plan.receiver = b;
  plan.shape.layers = 5;
  plan.shape.d_model = set.d_model;
  plan.maps = {"old.safetensors", std::string(64, 'x')};
  Status status = set.check_plan("f", plan);
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("'old.safetensors' (xxxxxxxxxxxx)"), HasSubstr("another fit")));
  plan.maps.fingerprint = set.fingerprint();
  EXPECT_TRUE(set.check_plan("f", plan).ok());
}

TEST_F(MapsFile, DamageIsFoundAndNamed) {
  MapSet set = made();
  ASSERT_TRUE(set.write(path).ok());
  const std::string whole = take(read_text_file(path));
  auto restore = [&] { ASSERT_TRUE(write_file_atomically(path, whole).ok()); };
  ASSERT_TRUE(write_file_atomically(path, whole.substr(0, whole.size() / 2)).ok());
  EXPECT_EQ(read().code(), Code::kCorrupt);
  restore();
  std::string flipped = whole;
  flipped[flipped.size() - 3] = static_cast<char>(flipped[flipped.size() - 3] ^ 1);
  ASSERT_TRUE(write_file_atomically(path, flipped).ok());
  EXPECT_THAT(read().message(), HasSubstr("its contents have"));
  restore();
  std::string nan = whole;
  nan.replace(nan.size() - 4, 4, std::string("\x00\x00\xc0\x7f", 4));
  ASSERT_TRUE(write_file_atomically(path, nan).ok());
  EXPECT_THAT(read().message(), AllOf(HasSubstr("tensor 'layers.4.full.bias' has nan"), HasSubstr("finite")));
  restore();
  change("\"version\":\"1\"", "\"version\":\"9\"");
  EXPECT_EQ(read().code(), Code::kUnsupported);
  restore();
  change("droidspeak.maps", "droidspeak.mops");
  EXPECT_EQ(read().code(), Code::kMismatch);
  restore();
  change("layers.2.full.bias", "layers.2.full.bios");
  EXPECT_THAT(read().message(), HasSubstr("tensor 'layers.2.full.bias' is missing"));
  EXPECT_EQ(MapSet::read(path + ".none").status().code(), Code::kNotFound);
  EXPECT_THAT(
      MapSet::read(DS_SOURCE_DIR "/tests/golden/models/llama/expected.safetensors").status().message(),
      HasSubstr("expected a file of maps for aligned cuts"));
}

}  // namespace
}  // namespace ds
