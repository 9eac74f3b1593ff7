#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <numeric>
#include <set>
#include <thread>

#include "support/dtype.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"
#include "support/status.h"
#include "support/units.h"

namespace ds {
namespace {

TEST(StatusTest, EveryCodeHasANameAndAnExitCodeOfItsOwn) {
  std::set<std::string_view> names;
  std::set<int> exits;
  int codes = 0;
#define DS_X(name, text, exit)            \
  names.insert(code_name(Code::name));    \
  exits.insert(exit_code(Code::name));    \
  EXPECT_EQ(code_name(Code::name), text); \
  ++codes;
  DS_STATUS_CODES(DS_X)
#undef DS_X
  EXPECT_EQ(names.size(), static_cast<size_t>(codes));
  EXPECT_EQ(exits.size(), static_cast<size_t>(codes));
  EXPECT_EQ(exit_code(Code::kOk), 0);
  EXPECT_NE(exit_code(static_cast<Code>(200)), 0);
}

TEST(StatusTest, ContextIsPutInFront) {
  Status status = error(Code::kNotFound, "no '{}'", "x").with_context("reading y");
  EXPECT_EQ(status.message(), "reading y: no 'x'");
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_TRUE(ok_status().with_context("reading y").message().empty());
}

TEST(StatusTest, MacrosPassFailuresOn) {
  auto half = [](int n) -> Result<int> {
    if (n % 2 != 0) return error(Code::kInvalidArgument, "{} is odd", n);
    return n / 2;
  };
  auto quarter = [&](int n) -> Result<int> {
    DS_ASSIGN(int h, half(n));
    DS_TRY(half(h));
    return half(h);
  };
  EXPECT_EQ(*quarter(12), 3);
  EXPECT_EQ(quarter(7).status().message(), "7 is odd");
  EXPECT_EQ(quarter(6).status().message(), "3 is odd");
  EXPECT_EQ(Result<int>(ok_status()).status().code(), Code::kInternal) << "a Result without a value is a bug";
}

TEST(Units, Formats) {
  EXPECT_EQ(format_rate(20e6), "20 MB/s");
  EXPECT_EQ(format_rate(1.25e9), "1.25 GB/s");
  EXPECT_EQ(format_rate(999), "999 B/s");
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1536), "1.5 KiB");
  EXPECT_EQ(format_bytes(int64_t{5} << 19), "2.50 MiB");
  EXPECT_EQ(format_bytes(int64_t{3} << 30), "3.00 GiB");
  EXPECT_EQ(format_ns(999), "999 ns");
  EXPECT_EQ(format_ns(3300), "3.3 us");
  EXPECT_EQ(format_ns(412'000'000), "412 ms");
  EXPECT_EQ(format_ns(12'340'000'000), "12.34 s");
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(12345678), "12,345,678");
  EXPECT_EQ(format_count(-1000), "-1,000");
  EXPECT_EQ(format_count(INT64_MIN), "-9,223,372,036,854,775,808");
}

TEST(Units, RatesInBytesAndBits) {
  EXPECT_DOUBLE_EQ(*parse_rate("20MB/s"), 20e6);
  EXPECT_DOUBLE_EQ(*parse_rate("8 Gb/s"), 1e9);
  EXPECT_DOUBLE_EQ(*parse_rate("1.5GB/s"), 1.5e9);
  for (const char* bad : {"", "20", "20MB", "0MB/s", "-3MB/s", "nanMB/s", "infGB/s", "1e300GB/s", "MB/s"}) {
    auto r = parse_rate(bad);
    ASSERT_FALSE(r.ok()) << bad;
    EXPECT_EQ(r.status().code(), Code::kInvalidArgument);
    EXPECT_NE(r.status().message().find("20MB/s"), std::string::npos) << "the message shows a right one";
  }
}

TEST(Units, TimesAndSizesHaveUnits) {
  EXPECT_DOUBLE_EQ(*parse_duration("90s"), 90);
  EXPECT_DOUBLE_EQ(*parse_duration("10min"), 600);
  EXPECT_DOUBLE_EQ(*parse_duration("1.5 h"), 5400);
  EXPECT_DOUBLE_EQ(*parse_duration("2d"), 172800);
  for (const char* bad : {"", "10", "min", "0s", "-5min", "10m", "1e300h", "10 minutes", "nan s", "inf s"}) {
    auto seconds = parse_duration(bad);
    ASSERT_FALSE(seconds.ok()) << bad;
    EXPECT_EQ(
        seconds.status().message(),
        fmt::format("bad time '{}'; expected one above 0 with its unit, s, min, h or d, for example 10min",
                    bad));
  }
  EXPECT_EQ(*parse_bytes("0B"), 0);
  EXPECT_EQ(*parse_bytes("500MB"), 500'000'000);
  EXPECT_EQ(*parse_bytes("1.5 GiB"), int64_t{3} << 29);
  for (const char* bad : {"", "10", "GB", "-1GB", "10G", "1e300TB", "nan B", "20 GiB of it"}) {
    auto bytes = parse_bytes(bad);
    ASSERT_FALSE(bytes.ok()) << bad;
    EXPECT_EQ(bytes.status().message(),
              fmt::format("bad size '{}'; expected bytes with their unit, like 500MB, 20GiB or 1.5TiB", bad));
  }
}

TEST(Units, SharesHaveTheirSign) {
  EXPECT_DOUBLE_EQ(*parse_percent("1%"), 0.01);
  EXPECT_DOUBLE_EQ(*parse_percent(" 0.5 % "), 0.005);
  EXPECT_DOUBLE_EQ(*parse_percent("100%"), 1);
  for (const char* bad : {"", "%", "1", "0.01", "0%", "-1%", "101%", "nan%", "inf%", "1%%", "1 percent"}) {
    EXPECT_EQ(parse_percent(bad).status().code(), Code::kInvalidArgument) << bad;
  }
  EXPECT_NE(parse_percent("5").status().message().find("bad share '5'"), std::string::npos);
  EXPECT_EQ(format_percent(0.01), "1 %");
  EXPECT_EQ(format_percent(1.0 / 300), "0.333 %");
}

TEST(Units, LayersIncludeBothEnds) {
  EXPECT_EQ(*parse_layers("3-6", 12), (LayerRange{3, 6}));
  EXPECT_EQ(*parse_layers("11", 12), (LayerRange{11, 11}));
  EXPECT_TRUE(parse_layers("none", 12)->empty());
  for (const char* bad : {"", "-", "6-3", "0-12", "a-b", "3-", "-1-3", "1-2-3"})
    EXPECT_FALSE(parse_layers(bad, 12).ok()) << bad;
  EXPECT_EQ(format_layers({3, 6}), "3-6");
  EXPECT_EQ(format_layers({}), "none");
}

TEST(Units, Lists) {
  EXPECT_EQ(*parse_int_list("256,1024", 1, 4096), (std::vector<int64_t>{256, 1024}));
  for (const char* bad : {"", "a", "1,", "2,1", "1,1", "0", "5000", "1;2", "99999999999999999999"})
    EXPECT_FALSE(parse_int_list(bad, 1, 4096).ok()) << bad;
}

TEST(DTypes, Bf16RoundsToNearestEven) {
  for (float f : {0.0f, 1.0f, -1.5f, 3.14159f, 1e30f, -1e-30f, 65280.0f}) {
    float back = bf16_to_f32(f32_to_bf16(f));
    EXPECT_LE(std::abs(back - f), std::abs(f) / 256) << f;
  }
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // a tie goes to the even neighbour
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(bf16_to_f32(f32_to_bf16(3.4e38f))));
}

TEST(DTypes, F16Exact) {
  EXPECT_EQ(f16_to_f32(0x3c00), 1.0f);
  EXPECT_EQ(f16_to_f32(0xc000), -2.0f);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1p-24f);
  EXPECT_EQ(f16_to_f32(0x7bff), 65504.0f);
  EXPECT_TRUE(std::isinf(f16_to_f32(0x7c00)));
  EXPECT_TRUE(std::isnan(f16_to_f32(0x7e00)));
}

TEST(DTypes, NamesOfAllThreeSources) {
  for (auto [type, names] : {std::pair{DType::kF32, std::array{"f32", "float32", "F32"}},
                             {DType::kBF16, {"bf16", "bfloat16", "BF16"}},
                             {DType::kF16, {"f16", "float16", "F16"}}}) {
    for (const char* name : names) EXPECT_EQ(*parse_dtype(name), type) << name;
    EXPECT_EQ(*parse_dtype(dtype_name(type)), type);
    EXPECT_EQ(dtype_size(type), type == DType::kF32 ? 4 : 2);
  }
  for (const char* bad : {"", "int8", "BFLOAT16", "bf16 "}) {
    EXPECT_EQ(parse_dtype(bad).status().code(), Code::kInvalidArgument) << bad;
  }
}

TEST(DTypes, EveryF16AndBf16ValueComesBack) {
  for (uint32_t v = 0; v < 65536; ++v) {
    auto h = static_cast<uint16_t>(v);
    float b = bf16_to_f32(h), f = f16_to_f32(h);
    EXPECT_TRUE(std::isnan(b) || f32_to_bf16(b) == h) << v;
    // The definition, in another form than the code's.
    int exponent = (h >> 10) & 31, mantissa = h & 1023;
    double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31) {
      EXPECT_TRUE(mantissa == 0 ? std::isinf(f) : std::isnan(f));
    } else {
      EXPECT_EQ(std::abs(static_cast<double>(f)), value);
    }
    EXPECT_EQ(std::signbit(f), h >> 15 != 0);
  }
}

TEST(Hashes, KnownAnswers) {
  EXPECT_EQ(sha256_hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  std::string text = "the quick brown fox";
  auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  StreamingChecksum s;
  s.update(bytes.first(5));
  s.update(bytes.subspan(5));
  EXPECT_EQ(s.value(), checksum64(bytes));
}

TEST(Files, AtomicWriteReplacesOrLeavesAlone) {
  std::string folder = ::testing::TempDir() + "/ds_files";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::string path = folder + "/x";
  ASSERT_TRUE(write_file_atomically(path, "one").ok());
  EXPECT_EQ(*read_text_file(path), "one");
  Status failed = write_file_atomically(path, [](int) { return error(Code::kIo, "no"); });
  EXPECT_FALSE(failed.ok());
  EXPECT_EQ(*read_text_file(path), "one");
  int files = 0;
  for ([[maybe_unused]] auto& e : std::filesystem::directory_iterator(folder)) ++files;
  EXPECT_EQ(files, 1) << "no temporary file is left";
  EXPECT_EQ(read_text_file(folder + "/absent").status().code(), Code::kNotFound);
  EXPECT_EQ(MappedFile::open(folder).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(write_file_atomically("/dev/full", "content").code(), Code::kExhausted);
}

TEST(Files, MappedAndWholeFiles) {
  std::string folder = ::testing::TempDir() + "/ds_mapped";
  std::filesystem::create_directories(folder);
  std::string path = folder + "/x";
  ASSERT_TRUE(write_file_atomically(path, "").ok());
  EXPECT_TRUE(MappedFile::open(path)->bytes().empty());
  EXPECT_EQ(*read_text_file(path), "");
  ASSERT_TRUE(write_file_atomically(path, "12345").ok());
  auto opened = MappedFile::open(path);
  ASSERT_TRUE(opened.ok());
  MappedFile moved = std::move(opened).value();
  EXPECT_EQ(moved.bytes().size(), 5u);
  EXPECT_EQ(moved.path(), path);
  EXPECT_EQ(static_cast<char>(moved.bytes()[4]), '5');
  EXPECT_EQ(*read_text_file(path, 5), "12345");
  Status large = read_text_file(path, 4).status();
  EXPECT_EQ(large.code(), Code::kInvalidArgument);
  EXPECT_NE(large.message().find("5 bytes"), std::string::npos);
  EXPECT_EQ(MappedFile::open(path + "/below").status().code(), Code::kNotFound);
  EXPECT_EQ(write_file_atomically(folder, "x").code(), Code::kInvalidArgument) << "a folder";
  EXPECT_EQ(write_file_atomically(folder + "/absent/x", "x").code(), Code::kNotFound);
  std::filesystem::remove_all(folder);
}

TEST(Files, PipesAreReadToTheirEnd) {
  const std::string path = ::testing::TempDir() + "/ds_pipe_" + std::to_string(getpid());
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const std::string text(300'000, 'x');
  std::thread writer([&] {
    int fd = open(path.c_str(), O_WRONLY);
    EXPECT_TRUE(write_fully(fd, std::as_bytes(std::span(text.data(), text.size())), path).ok());
    close(fd);
  });
  auto read = read_text_file(path);
  writer.join();
  unlink(path.c_str());
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_TRUE(*read == text);
  EXPECT_EQ(read_text_file("/dev/zero", 1 << 20).status().code(), Code::kInvalidArgument) << "it has no end";
}

unsigned mode_of(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 0777;
}

TEST(Files, TheUmaskDecidesUnlessTheyAreTheOwnersAlone) {
  const std::string folder = ::testing::TempDir() + "/ds_modes_" + std::to_string(getpid()),
                    path = folder + "/x";
  std::filesystem::create_directories(folder);
  for (auto [mask, expected] : {std::pair{022u, 0644u}, {002u, 0664u}, {077u, 0600u}, {000u, 0666u}}) {
    SCOPED_TRACE(mask);
    const mode_t before = umask(mask);
    Status open = write_file_atomically(path, "x"),
           mine = write_file_atomically(path + "1", "x", {.owner_only = true});
    Status folders = make_folders(folder + fmt::format("/a{}/b/", mask), 0700);
    umask(before);
    ASSERT_TRUE(open.ok() && mine.ok() && folders.ok()) << folders.message();
    EXPECT_EQ(mode_of(path), expected);
    EXPECT_EQ(mode_of(path + "1"), 0600u);
    EXPECT_EQ(mode_of(folder + fmt::format("/a{}", mask)), 0777u & ~mask);
    EXPECT_EQ(mode_of(folder + fmt::format("/a{}/b", mask)), 0700u & ~mask);
  }
  // What others could read is theirs no longer once it is written as the owner's.
  ASSERT_TRUE(write_file_atomically(path, "y", {.owner_only = true}).ok());
  EXPECT_EQ(mode_of(path), 0600u);
  std::filesystem::remove_all(folder);
}

/// A file of `pages` pages of ones, mapped.
struct Mapped {
  explicit Mapped(size_t pages) : page(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    EXPECT_TRUE(write_file_atomically(path, std::string(pages * page, '\1')).ok());
    auto opened = MappedFile::open(path);
    EXPECT_TRUE(opened.ok());
    file = std::move(opened).value();
  }
  ~Mapped() { unlink(path.c_str()); }
  int64_t sum() const {
    return std::accumulate(file.bytes().begin(), file.bytes().end(), int64_t{0},
                           [](int64_t sum, std::byte b) { return sum + std::to_integer<int>(b); });
  }
  size_t page;
  std::string path = ::testing::TempDir() + "/ds_cut_" + std::to_string(getpid());
  MappedFile file;
};

TEST(MappedFiles, CutWhileInUseIsAnErrorAndNotTheEndOfTheProcess) {
  for (size_t left : {size_t{0}, size_t{1}, size_t{5 * 4096}, size_t{5 * 4096 + 17}}) {
    SCOPED_TRACE(left);
    Mapped m(40);
    const auto all = static_cast<int64_t>(m.file.bytes().size());
    EXPECT_EQ(m.sum(), all);
    EXPECT_TRUE(m.file.intact().ok());
    ASSERT_EQ(truncate(m.path.c_str(), static_cast<off_t>(left)), 0);
    std::vector<std::thread> readers;
    for (int i = 0; i < 4; ++i)
      readers.emplace_back(
          [&] { EXPECT_EQ(m.sum(), static_cast<int64_t>(left)) << "zeros where nothing is"; });
    for (auto& t : readers) t.join();
    Status status = m.file.intact();
    EXPECT_EQ(status.code(), Code::kCorrupt);
    EXPECT_NE(status.message().find("cut short"), std::string::npos) << status.message();
    MappedFile moved = std::move(m.file);
    EXPECT_FALSE(moved.intact().ok());
    m.file = std::move(moved);
    EXPECT_FALSE(m.file.intact().ok());
  }
}

TEST(MappedFiles, ALastPageCutInsideRaisesNoSignalAndIsNoticedAllTheSame) {
  Mapped m(2);
  ASSERT_EQ(truncate(m.path.c_str(), static_cast<off_t>(2 * m.page - 1)), 0);
  EXPECT_EQ(m.sum(), static_cast<int64_t>(2 * m.page - 1));
  EXPECT_EQ(m.file.intact().code(), Code::kCorrupt);
}

TEST(MappedFiles, OnlyTheMappingThatWasCutIsTorn) {
  const std::string folder = ::testing::TempDir() + "/ds_torn_" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::vector<MappedFile> files;
  for (int i = 0; i < 3; ++i) {
    const std::string path = folder + "/" + std::to_string(i);
    ASSERT_TRUE(write_file_atomically(path, std::string(20'000, 'x')).ok());
    files.push_back(std::move(MappedFile::open(path)).value());
  }
  ASSERT_EQ(truncate((folder + "/1").c_str(), 0), 0);
  int64_t zeros = 0;
  for (const MappedFile& file : files)
    zeros += std::count(file.bytes().begin(), file.bytes().end(), std::byte{0});
  EXPECT_EQ(zeros, 20'000);
  EXPECT_TRUE(files[0].intact().ok());
  EXPECT_FALSE(files[1].intact().ok());
  EXPECT_TRUE(files[2].intact().ok());
  files.clear();
  // What is mapped next, perhaps at the same place, has nothing of it.
  ASSERT_TRUE(MappedFile::open(folder + "/0")->intact().ok());
  std::filesystem::remove_all(folder);
}

TEST(MappedFilesDeathTest, AnotherBusErrorEndsTheProcessAsIfWeWereNotThere) {
  Mapped m(1);  // the handler is set
  auto fault = [&] {
    ASSERT_EQ(truncate(m.path.c_str(), 0), 0);
    int fd = open(m.path.c_str(), O_RDONLY);
    auto* data = static_cast<volatile char*>(mmap(nullptr, m.page, PROT_READ, MAP_SHARED, fd, 0));
    (void)data[0];
  };
  EXPECT_EXIT(fault(), ::testing::KilledBySignal(SIGBUS), "");
  EXPECT_EXIT(kill(getpid(), SIGBUS), ::testing::KilledBySignal(SIGBUS), "");
}

/// Takes a lock until `turns` times are over, and counts how often somebody else was inside.
int intruders(const std::string& lock, const std::string& inside, int turns) {
  int found = 0;
  for (int i = 0; i < turns;) {
    FileLock held;
    auto mine = held.take(lock);
    if (!mine.ok()) return 1000;
    if (!*mine) continue;
    int fd = open(inside.c_str(), O_CREAT | O_EXCL | O_RDWR, 0600);  // refused where there is one already
    if (fd < 0) ++found;
    if (fd >= 0) close(fd);
    if (i % 7 == 0) std::this_thread::yield();
    if (fd >= 0) unlink(inside.c_str());
    ++i;
  }
  return found;
}

TEST(FileLocks, HaveOneHolderAmongThreadsAndProcesses) {
  const std::string folder = ::testing::TempDir() + "/ds_locks_" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  const std::string lock = folder + "/lock", inside = folder + "/inside";
  constexpr int kTurns = 2000;
  std::vector<pid_t> children;
  for (int i = 0; i < 3; ++i) {
    pid_t child = fork();
    if (child == 0) _exit(std::min(intruders(lock, inside, kTurns), 100));
    children.push_back(child);
  }
  std::array<int, 2> found{};
  std::vector<std::thread> threads;
  for (int& f : found) threads.emplace_back([&] { f = intruders(lock, inside, kTurns); });
  for (auto& t : threads) t.join();
  for (int f : found) EXPECT_EQ(f, 0);
  for (pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_FALSE(std::filesystem::exists(lock)) << "the last holder removes the file";
  FileLock first, second;
  EXPECT_TRUE(*first.take(lock));
  EXPECT_FALSE(*second.take(lock));
  EXPECT_EQ(second.take(folder + "/absent/lock").status().code(), Code::kNotFound);
  std::filesystem::remove_all(folder);
}

TEST(Statuses, OnlyFailuresOfDevicesAreThose) {
  std::set<int> exits;
  for (int c = 0; c <= static_cast<int>(Code::kDeviceMemory); ++c) {
    const auto code = static_cast<Code>(c);
    EXPECT_TRUE(exits.insert(exit_code(code)).second) << code_name(code);
    EXPECT_EQ(is_device_failure(code), code == Code::kUnavailable || code == Code::kDeviceMemory);
  }
  EXPECT_EQ(code_name(Code::kDeviceMemory), "out of device memory");
  EXPECT_EQ(exit_code(Code::kDeviceMemory), 12);
}

TEST(Files, SystemErrorsByKind) {
  for (auto [number, code] : {std::pair{ENOENT, Code::kNotFound},
                              {ENOTDIR, Code::kNotFound},
                              {ENOSPC, Code::kExhausted},
                              {EDQUOT, Code::kExhausted},
                              {EFBIG, Code::kExhausted},
                              {EACCES, Code::kIo},
                              {EIO, Code::kIo}}) {
    errno = number;
    Status status = io_error("open", "some/file");
    EXPECT_EQ(status.code(), code) << number;
    EXPECT_EQ(status.message(), std::string("cannot open 'some/file': ") + std::strerror(number));
  }
}

TEST(Json, NestingHasALimit) {
  auto nested = [](size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_TRUE(parse_json(nested(200), "a.json").ok());
  EXPECT_EQ(parse_json(nested(300), "a.json").status().code(), Code::kCorrupt);
  EXPECT_EQ(parse_json(nested(3'000'000), "a.json").status().code(), Code::kCorrupt);
  EXPECT_TRUE(
      parse_json("[\"" + std::string(1000, '[') + "\\\"" + std::string(1000, '{') + "\"]", "a.json").ok())
      << "brackets inside of text do not nest";
}

TEST(Json, TypedAccess) {
  auto j = *parse_json(
      R"({"i": 3, "f": 2.5, "s": "t", "b": true, "n": null, "l": [1], "o": {}, "neg": -9223372036854775808})",
      "a.json");
  auto o = *JsonObject::make(j, "a.json");
  EXPECT_EQ(JsonObject::make(j["l"], "a.json").status().code(), Code::kCorrupt);
  EXPECT_TRUE(o.has("i"));
  EXPECT_FALSE(o.has("n")) << "null is as good as absent";
  EXPECT_FALSE(o.has("absent"));
  EXPECT_EQ(*o.number("i", 0, 9), 3.0);
  EXPECT_EQ(*o.number("f", 0, 9), 2.5);
  EXPECT_EQ(*o.string("s"), "t");
  EXPECT_EQ(*o.boolean("b"), true);
  EXPECT_EQ(o.array("l").value()->size(), 1u);
  EXPECT_EQ(*o.integer("neg", INT64_MIN, 0), INT64_MIN);
  for (const char* key : {"f", "s", "b", "l", "o"}) EXPECT_FALSE(o.integer(key, 0, 9).ok()) << key;
  for (const char* key : {"s", "b", "l", "o"}) EXPECT_FALSE(o.number(key, 0, 9).ok()) << key;
  for (const char* key : {"i", "b", "l", "o"}) EXPECT_FALSE(o.string(key).ok()) << key;
  for (const char* key : {"i", "s", "l", "o"}) EXPECT_FALSE(o.boolean(key).ok()) << key;
  for (const char* key : {"i", "s", "b", "o"}) EXPECT_FALSE(o.array(key).ok()) << key;
  for (const char* key : {"i", "s", "b", "l"}) EXPECT_FALSE(o.object(key).ok()) << key;
  for (const char* key : {"n", "absent"}) {
    EXPECT_EQ(o.integer(key, 0, 9).status().code(), Code::kCorrupt);
    EXPECT_NE(o.string(key).status().message().find(key), std::string::npos);
    EXPECT_EQ(*o.integer_or(key, 0, 9, 7), 7);
    EXPECT_EQ(*o.number_or(key, 0, 9, 0.5), 0.5);
    EXPECT_EQ(*o.string_or(key, "else"), "else");
    EXPECT_EQ(*o.boolean_or(key, true), true);
  }
  EXPECT_FALSE(o.integer_or("s", 0, 9, 7).ok()) << "the default is for absent values, not for wrong ones";
}

TEST(Json, ErrorsSayWhere) {
  EXPECT_EQ(parse_json("", "a.json").status().code(), Code::kCorrupt);
  EXPECT_NE(parse_json("{\"a\": }", "a.json").status().message().find("a.json"), std::string::npos);
  auto j = *parse_json(R"({"n": 3, "s": "t", "big": 18446744073709551615, "o": {"y": -1}})", "a.json");
  auto o = *JsonObject::make(j, "a.json");
  EXPECT_EQ(*o.integer("n", 0, 5), 3);
  EXPECT_FALSE(o.integer("n", 4, 5).ok());
  EXPECT_FALSE(o.integer("big", 0, INT64_MAX).ok());
  EXPECT_FALSE(parse_json("{\"x\": 1e999}", "a.json").ok()) << "infinity is not a number";
  auto inner = o.object("o");
  ASSERT_TRUE(inner.ok());
  EXPECT_NE(inner->number("y", 0, 1).status().message().find("a.json: o: 'y' is -1"), std::string::npos);
}

}  // namespace
}  // namespace ds
