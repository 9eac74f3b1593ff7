// Packed weights kept between starts: the same logits to the bit, and no damage, other model, full or
// forbidden folder that could change or stop a start. And identities that are remembered by files' stamps.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "plans/full_prefill.h"
#include "runtime/backends/backends.h"
#include "runtime/core/session.h"
#include "runtime/model/verified.h"
#include "support/json.h"
#include "tests/unit/model_fixture.h"

namespace ds {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using testing::random_ids;
using testing::tiny_config;

const std::string kModels = DS_SOURCE_DIR "/tests/golden/models/";

class WeightCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/ds-weight-cache-" + std::to_string(getpid()) + "-" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    fs::create_directories(root_);
    cache_ = root_ + "/cache";
  }
  void TearDown() override { fs::remove_all(root_); }

  struct Loaded {
    std::vector<float> logits;
    LoadReport report;
  };

  /// Loads, and answers one prompt.
  Loaded load(const Checkpoint& checkpoint, const std::string& cache, DType dtype = DType::kBF16,
              int threads = 0) {
    Loaded out;
    auto identity = checkpoint.identity();
    auto backend = make_cpu_backend({threads});
    EXPECT_TRUE(identity.ok() && backend.ok());
    LoadOptions options;
    options.dtype = dtype;
    options.weight_cache = cache;
    options.fingerprint = identity->fingerprint;
    options.report = &out.report;
    int64_t last = 0, total = 0;
    options.progress = [&](int64_t done, int64_t of) { last = std::max(last, done), total = of; };
    auto model = (*backend)->load(checkpoint, options);
    EXPECT_TRUE(model.ok()) << model.status().message();
    if (!model.ok()) return out;
    EXPECT_GT(total, 0);
    EXPECT_LE(last, total);
    Plan plan = full_prefill_plan(*identity, checkpoint.config().shape(), std::string(dtype_name(dtype)));
    auto session = Session::create(**backend, **model, plan, {40, 3, 1});
    EXPECT_TRUE(session.ok()) << session.status().message();
    if (!session.ok()) return out;
    std::vector<int32_t> ids = random_ids(43, checkpoint.config().vocab, 5);
    Request request;
    request.context = std::span(ids).first(40);
    request.suffix = std::span(ids).subspan(40);
    request.full_prefill = true;
    auto answer = (*session)->run(request);
    EXPECT_TRUE(answer.ok()) << answer.status().message();
    auto logits = (*session)->first_logits();
    out.logits.assign(logits.begin(), logits.end());
    return out;
  }

  static Checkpoint checkpoint(Family family = Family::kQwen3, uint64_t seed = 7) {
    auto made = Checkpoint::random(tiny_config(family), seed);
    EXPECT_TRUE(made.ok());
    return std::move(made).value();
  }

  void expect_same(const Loaded& a, const Loaded& b) {
    ASSERT_EQ(a.logits.size(), b.logits.size());
    ASSERT_FALSE(a.logits.empty());
    EXPECT_EQ(std::memcmp(a.logits.data(), b.logits.data(), a.logits.size() * sizeof(float)), 0);
  }

  std::vector<std::string> files(const std::string& suffix = "") const {
    std::vector<std::string> found;
    std::error_code failed;
    for (const auto& entry : fs::directory_iterator(cache_, failed))
      if (entry.path().string().ends_with(suffix)) found.push_back(entry.path().string());
    return found;
  }

  static void flip(const std::string& path, int64_t at) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    char byte = static_cast<char>(file.get());
    file.seekp(at);
    file.put(static_cast<char>(byte ^ 1));
  }

  std::string root_, cache_;
};

TEST_F(WeightCacheTest, LaterStartsGiveTheSameLogitsToTheBit) {
  for (Family family : {Family::kLlama, Family::kQwen2, Family::kQwen3}) {
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      Checkpoint c = checkpoint(family);
      Loaded plain = load(c, "", dtype), first = load(c, cache_, dtype), second = load(c, cache_, dtype);
      EXPECT_EQ(plain.report.weight_cache, WeightCacheStatus::kOff);
      EXPECT_EQ(first.report.weight_cache, WeightCacheStatus::kWritten) << first.report.reason;
      EXPECT_EQ(second.report.weight_cache, WeightCacheStatus::kHit) << second.report.reason;
      EXPECT_EQ(second.report.reason, "");
      expect_same(plain, first);
      expect_same(plain, second);
    }
  }
  EXPECT_EQ(files().size(), 6u) << "one file per model and dtype, and nothing else";
}

TEST_F(WeightCacheTest, TheNumberOfThreadsDoesNotMatter) {
  Checkpoint c = checkpoint();
  Loaded one = load(c, cache_, DType::kBF16, 1), three = load(c, cache_, DType::kBF16, 3);
  EXPECT_EQ(three.report.weight_cache, WeightCacheStatus::kHit);
  expect_same(one, three);
}

TEST_F(WeightCacheTest, WithoutAFolderNothingIsWritten) {
  load(checkpoint(), "");
  EXPECT_TRUE(files().empty());
}

TEST_F(WeightCacheTest, ADamagedByteIsFoundWhereverItIs) {
  Checkpoint c = checkpoint();
  Loaded good = load(c, cache_);
  const std::string path = good.report.path;
  const auto size = static_cast<int64_t>(fs::file_size(path));
  const int64_t block = int64_t{2} << 20;
  ASSERT_GT(size, block);
  // Magic, version, sizes, checksum; the key; the checksums of the pieces; first, some and last byte of
  // weights.
  for (int64_t at : {int64_t{0}, int64_t{8}, int64_t{12}, int64_t{16}, int64_t{24}, int64_t{40}, block,
                     block + (size - block) / 3, size - 1}) {
    SCOPED_TRACE(at);
    flip(path, at);
    Loaded again = load(c, cache_);
    EXPECT_EQ(again.report.weight_cache, WeightCacheStatus::kWritten);
    EXPECT_THAT(again.report.reason, HasSubstr(path));
    expect_same(good, again);
    EXPECT_EQ(load(c, cache_).report.weight_cache, WeightCacheStatus::kHit) << "it was replaced";
  }
}

TEST_F(WeightCacheTest, AFileCutShortOrOfSomethingElseIsReplaced) {
  Checkpoint c = checkpoint();
  Loaded good = load(c, cache_);
  const std::string path = good.report.path;
  const auto size = static_cast<int64_t>(fs::file_size(path));
  for (int64_t length : {int64_t{0}, int64_t{10}, int64_t{500}, size / 2, size - 1, size + 1}) {
    SCOPED_TRACE(length);
    // A new file: the old one may be mapped.
    fs::copy_file(path, path + ".new");
    fs::resize_file(path + ".new", static_cast<uintmax_t>(length));
    fs::rename(path + ".new", path);
    Loaded again = load(c, cache_);
    EXPECT_EQ(again.report.weight_cache, WeightCacheStatus::kWritten);
    EXPECT_NE(again.report.reason, "");
    expect_same(good, again);
  }
}

TEST_F(WeightCacheTest, AnotherModelsFileIsRefusedUnderItsName) {
  Checkpoint c = checkpoint(), other = checkpoint(Family::kQwen3, 8);
  Loaded good = load(c, cache_), bad = load(other, cache_);
  ASSERT_NE(good.report.path, bad.report.path);
  fs::copy_file(bad.report.path, good.report.path, fs::copy_options::overwrite_existing);
  Loaded again = load(c, cache_);
  EXPECT_EQ(again.report.weight_cache, WeightCacheStatus::kWritten);
  EXPECT_THAT(again.report.reason, HasSubstr("another checkpoint"));
  expect_same(good, again);
}

TEST_F(WeightCacheTest, DtypesDoNotShareAFile) {
  Checkpoint c = checkpoint();
  Loaded bf16 = load(c, cache_, DType::kBF16), f32 = load(c, cache_, DType::kF32);
  EXPECT_EQ(f32.report.weight_cache, WeightCacheStatus::kWritten);
  EXPECT_NE(bf16.report.path, f32.report.path);
  fs::copy_file(bf16.report.path, f32.report.path, fs::copy_options::overwrite_existing);
  Loaded again = load(c, cache_, DType::kF32);
  EXPECT_EQ(again.report.weight_cache, WeightCacheStatus::kWritten);
  expect_same(f32, again);
}

TEST_F(WeightCacheTest, AFolderThatTakesNothingCostsNothingButTime) {
  Checkpoint c = checkpoint();
  Loaded good = load(c, "");
  std::ofstream(root_ + "/file") << "x";
  std::vector<std::string> folders = {root_ + "/file", root_ + "/file/below"};
  fs::create_directories(root_ + "/closed");
  fs::permissions(root_ + "/closed", fs::perms::owner_read | fs::perms::owner_exec);
  if (access((root_ + "/closed").c_str(), W_OK) != 0)
    folders.push_back(root_ + "/closed");  // root may anyway
  folders.push_back("/proc/ds-weight-cache");
  for (const std::string& folder : folders) {
    Loaded loaded = load(c, folder);
    EXPECT_EQ(loaded.report.weight_cache, WeightCacheStatus::kFailed) << folder;
    EXPECT_THAT(loaded.report.reason, HasSubstr(folder));
    expect_same(good, loaded);
  }
}

TEST_F(WeightCacheTest, AFullDiskLeavesNothingBehind) {
  Checkpoint c = checkpoint();
  Loaded good = load(c, "");
  // A limit on the size of files stands in for a disk that fills while it is being written.
  struct rlimit before {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  auto handler = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit limit = {(2 << 20) + 4096, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  Loaded loaded = load(c, cache_);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(loaded.report.weight_cache, WeightCacheStatus::kFailed);
  EXPECT_NE(loaded.report.reason, "");
  expect_same(good, loaded);
  EXPECT_TRUE(files().empty());
}

class VerifiedTest : public WeightCacheTest {
 protected:
  /// A copy of a golden model, which a test may change.
  std::string copy() {
    fs::copy(kModels + "llama/receiver", root_ + "/model", fs::copy_options::recursive);
    return root_ + "/model";
  }
  Verified verify(const std::string& folder, bool reread = false) {
    auto c = Checkpoint::open(folder);
    EXPECT_TRUE(c.ok()) << c.status().message();
    int64_t last = 0, total = -1;
    auto verified =
        verify_checkpoint(*c, {cache_, reread, [&](int64_t done, int64_t of) { last = done, total = of; }});
    EXPECT_TRUE(verified.ok()) << verified.status().message();
    if (!verified.ok()) return {};
    EXPECT_EQ(verified->identity, *c->identity());
    EXPECT_EQ(verified->remembered, total == -1) << "progress is told of what is read";
    return *verified;
  }
};

TEST_F(VerifiedTest, FilesSeenBeforeAreNotReadAgain) {
  const std::string folder = kModels + "llama/receiver";
  EXPECT_FALSE(verify(folder).remembered);
  EXPECT_TRUE(verify(folder).remembered);
  EXPECT_TRUE(verify(folder + "/../receiver/").remembered) << "another way to the same folder";
  EXPECT_FALSE(verify(folder, /*reread=*/true).remembered);
  EXPECT_FALSE(verify(kModels + "llama/sender").remembered);
  EXPECT_TRUE(verify(kModels + "llama/sender").remembered);
  EXPECT_TRUE(verify(folder).remembered);
  for (const std::string& path : files(".json")) std::ofstream(path) << "{\"weights\": 3}";
  EXPECT_FALSE(verify(folder).remembered);
  EXPECT_TRUE(verify(folder).remembered);
}

TEST_F(VerifiedTest, AFileOfThisMomentIsNotRemembered) {
  const std::string folder = copy();
  EXPECT_FALSE(verify(folder).remembered);
  EXPECT_FALSE(verify(folder).remembered);
  EXPECT_TRUE(files(".json").empty());
}

TEST_F(VerifiedTest, AChangedWeightIsSeenAlthoughSizeAndTimeAreTheSame) {
  const std::string folder = copy(), weights = folder + "/model.safetensors";
  ModelIdentity before = verify(folder).identity;
  bool remembered = false;
  for (int i = 0; i < 600 && !remembered; ++i) {  // until the copy is old enough
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    remembered = verify(folder).remembered;
  }
  ASSERT_TRUE(remembered);
  const FileStamp stamp = *file_stamp(weights);
  const auto time = fs::last_write_time(weights);
  flip(weights, static_cast<int64_t>(fs::file_size(weights)) - 4);  // a low bit of the last weight
  fs::last_write_time(weights, time);
  ASSERT_EQ(file_stamp(weights)->modified_ns, stamp.modified_ns);
  ASSERT_EQ(file_stamp(weights)->bytes, stamp.bytes);
  Verified after = verify(folder);
  EXPECT_FALSE(after.remembered);
  EXPECT_NE(after.identity.weights, before.weights);
}

TEST_F(VerifiedTest, StampsTellWritesReplacementsAndCopiesApart) {
  const std::string path = root_ + "/file", other = root_ + "/other";
  std::ofstream(path) << "abcd";
  FileStamp first = *file_stamp(path);
  EXPECT_EQ(first, *file_stamp(path));
  EXPECT_EQ(first.bytes, 4);
  fs::copy_file(path, other);
  EXPECT_NE(*file_stamp(other), first);
  const auto time = fs::last_write_time(path);
  FileStamp changed = first;
  while (changed == first) {  // clocks of file systems have ticks of milliseconds
    std::fstream(path, std::ios::in | std::ios::out) << "x";
    fs::last_write_time(path, time);
    changed = *file_stamp(path);
  }
  EXPECT_EQ(changed.modified_ns, first.modified_ns);
  EXPECT_EQ(changed.inode, first.inode);
  EXPECT_GT(changed.changed_ns, first.changed_ns);
  fs::rename(other, path);
  EXPECT_NE(file_stamp(path)->inode, first.inode);
  EXPECT_EQ(file_stamp(root_ + "/none").status().code(), Code::kNotFound);
}

TEST_F(VerifiedTest, ANewModelInAFolderTakesTheOldOnesPackedWeightsAway) {
  fs::create_directories(cache_);
  fs::create_directory_symlink(kModels + "llama/receiver", root_ + "/receiver");
  verify(root_ + "/receiver");
  const std::string json = files(".json").at(0);
  // As if other weights had been found in this folder before.
  nlohmann::json memory = *read_json_file(json);
  memory["fingerprint"] = std::string(64, 'a');
  memory["files"][0]["inode"] = 9;
  std::ofstream(json) << memory;
  const std::string gone = cache_ + "/" + std::string(32, 'a') + "-bf16-portable.weights";
  const std::string stays = cache_ + "/" + std::string(32, 'b') + "-bf16-portable.weights";
  std::ofstream(gone) << "x";
  std::ofstream(stays) << "x";
  EXPECT_FALSE(verify(root_ + "/receiver").remembered);
  EXPECT_FALSE(fs::exists(gone));
  EXPECT_TRUE(fs::exists(stays));
}

TEST_F(VerifiedTest, WeightsThatAreNotFiniteAreNeverRemembered) {
  const std::string folder = copy(), weights = folder + "/model.safetensors";
  std::fstream file(weights, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-4, std::ios::end);
  const uint32_t nan = 0xffffffffu;  // whatever the element type
  file.write(reinterpret_cast<const char*>(&nan), 4);
  file.close();
  auto c = Checkpoint::open(folder);
  ASSERT_TRUE(c.ok());
  auto verified = verify_checkpoint(*c, {cache_, false, {}});
  EXPECT_EQ(verified.status().code(), Code::kCorrupt);
  EXPECT_THAT(verified.status().message(), HasSubstr("finite"));
  EXPECT_TRUE(files().empty());
}

/// Files that another process cuts short while they are in use: SIGBUS without care.
class CutTest : public VerifiedTest {
 protected:
  void SetUp() override {
    VerifiedTest::SetUp();
    folder_ = copy();
    for (const auto& file : fs::directory_iterator(folder_))
      if (file.path().extension() == ".safetensors") weights_ = file.path();
    ASSERT_FALSE(weights_.empty());
  }
  void cut(const std::string& path, double share) {
    fs::resize_file(path, static_cast<uintmax_t>(static_cast<double>(fs::file_size(path)) * share));
  }
  static void expect_cut(const Status& status, const std::string& path) {
    EXPECT_EQ(status.code(), Code::kCorrupt) << status.message();
    EXPECT_THAT(status.message(), ::testing::AllOf(HasSubstr("cut short"), HasSubstr(path)));
  }
  std::string folder_, weights_;
};

TEST_F(CutTest, ACheckpointThatIsHashedOrChecked) {
  for (double share : {0.999, 0.5, 0.0}) {
    auto c = Checkpoint::open(folder_);
    ASSERT_TRUE(c.ok()) << c.status().message();
    const auto whole = fs::file_size(weights_);
    cut(weights_, share);
    expect_cut(verify_checkpoint(*c, {cache_, false, {}}).status(), weights_);
    expect_cut(c->identity().status(), weights_);
    expect_cut(c->check_finite(), weights_);
    EXPECT_TRUE(files().empty()) << "nothing is remembered of it";
    fs::copy_file(kModels + "llama/receiver/" + fs::path(weights_).filename().string(), weights_,
                  fs::copy_options::overwrite_existing);
    ASSERT_EQ(fs::file_size(weights_), whole);
  }
}

TEST_F(CutTest, ACheckpointThatIsPackedLeavesNoPackedFile) {
  for (const std::string& cache : {cache_, std::string()}) {
    auto c = Checkpoint::open(folder_);
    ASSERT_TRUE(c.ok()) << c.status().message();
    auto backend = testing::test_backend();
    ASSERT_TRUE(backend.ok());
    LoadOptions options;
    options.weight_cache = cache;
    options.fingerprint = std::string(64, 'f');
    cut(weights_, 0.5);
    auto model = (*backend)->load(*c, options);
    ASSERT_FALSE(model.ok());
    expect_cut(model.status(), weights_);
    EXPECT_TRUE(files().empty()) << "zeros with right checksums";
    fs::copy_file(kModels + "llama/receiver/" + fs::path(weights_).filename().string(), weights_,
                  fs::copy_options::overwrite_existing);
  }
}

TEST_F(CutTest, PackedWeightsThatAModelRunsFrom) {
  auto c = Checkpoint::open(folder_);
  ASSERT_TRUE(c.ok());
  const ModelIdentity identity = *c->identity();
  const Plan plan = full_prefill_plan(identity, c->config().shape(), "bf16");
  auto backend = make_cpu_backend({});
  const auto ids = random_ids(43, c->config().vocab, 5);
  Request request;
  request.context = std::span(ids).first(40);
  request.suffix = std::span(ids).subspan(40);
  request.full_prefill = true;
  std::vector<float> expected;
  // All of the block, half of it, and only some bytes of its last page.
  for (int64_t left : {int64_t{2} << 20, (int64_t{2} << 20) + 100'000, int64_t{-100}}) {
    SCOPED_TRACE(left);
    LoadReport report;
    LoadOptions options;
    options.weight_cache = cache_;
    options.fingerprint = identity.fingerprint;
    options.report = &report;
    auto model = (*backend)->load(*c, options);
    ASSERT_TRUE(model.ok()) << model.status().message();
    EXPECT_NE(report.weight_cache, WeightCacheStatus::kFailed) << report.reason;
    auto session = Session::create(**backend, **model, plan, {40, 3, 2});
    ASSERT_TRUE(session.ok());
    request.max_new_tokens = 1;
    auto good = (*session)->run(request);
    ASSERT_TRUE(good.ok()) << good.status().message();
    std::vector<float> logits((*session)->first_logits().begin(), (*session)->first_logits().end());
    if (expected.empty()) expected = logits;
    EXPECT_EQ(logits, expected) << "a file that was cut is packed anew";
    const auto size = static_cast<int64_t>(fs::file_size(report.path));
    fs::resize_file(report.path, static_cast<uintmax_t>(left < 0 ? size + left : left));
    expect_cut((*session)->run(request).status(), report.path);
    expect_cut((*session)->warm_up(), report.path);
  }
}

}  // namespace
}  // namespace ds
