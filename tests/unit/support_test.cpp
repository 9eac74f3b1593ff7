#include <fcntl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "support/dtype.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"
#include "support/units.h"

namespace ds {
namespace {

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
