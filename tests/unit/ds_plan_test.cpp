// The tool ds-plan from outside: exit codes, messages, what it writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "plans/plan_file.h"
#include "runtime/trace/run_record.h"
#include "support/file.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::make_plan;
using testing::make_variant;
using testing::small_shape;
using ::testing::StartsWith;

struct Outcome {
  int code = -1;
  std::string out, err;
};

class DsPlan : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
    folder_ = ::testing::TempDir() + "ds_plan_" + name;
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    plan_ = make_plan(small_shape(), {3, 6});
    write(path("a.dsplan"), serialize_plan(plan_));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  void write(const std::string& file, const std::string& content) {
    Status status = write_file_atomically(file, content);
    ASSERT_TRUE(status.ok()) << status.message();
  }
  std::string read(const std::string& name) {
    Result<std::string> text = read_text_file(path(name));
    EXPECT_TRUE(text.ok()) << text.status().message();
    return text.ok() ? *text : "";
  }
  /// Runs it in the test's folder.
  Outcome run(const std::string& arguments) {
    Outcome outcome;
    std::string command = "cd '" + folder_ + "' && " DS_PLAN_TOOL " " + arguments + " >out.txt 2>err.txt";
    int status = std::system(command.c_str());
    outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    outcome.out = read("out.txt");
    outcome.err = read("err.txt");
    return outcome;
  }
  std::string write_record(const std::string& sha256) {
    RunRecord r;
    r.plan_sha256 = sha256;
    const Variant& v = plan_.variants[0];
    r.variant = v.name;
    r.context_tokens = v.tuned_tokens;
    r.suffix_tokens = v.tuned_suffix;
    for (size_t i = 0; i < v.ops.size(); ++i) {
      r.ops.push_back({static_cast<int32_t>(i), op_label(v.ops[i], 1), "link", v.ops[i].start_ns,
                       v.ops[i].start_ns + v.ops[i].duration_ns, 0});
    }
    EXPECT_TRUE(write_run_record(path("run.jsonl"), r).ok());
    return path("run.jsonl");
  }

  std::string folder_;
  Plan plan_;
};

TEST_F(DsPlan, HelpHasExamples) {
  for (const char* command : {"--help", "dump --help", "verify --help", "simulate --help", "explain --help",
                              "diff --help", "trace --help"}) {
    Outcome o = run(command);
    EXPECT_EQ(o.code, 0) << command;
    EXPECT_THAT(o.out, HasSubstr("Examples:\n  ds-plan")) << command;
  }
}

TEST_F(DsPlan, DumpsEveryFormat) {
  Outcome text = run("dump a.dsplan");
  EXPECT_EQ(text.code, 0);
  EXPECT_THAT(text.out,
              AllOf(StartsWith(fmt::format("Plan        a.dsplan   format {}", kWrittenFormatVersion)),
                    HasSubstr("recompute 6 (K, V)")));
  EXPECT_EQ(text.err, "");
  EXPECT_EQ(run("dump a.dsplan -o a.txt").out, "");
  EXPECT_EQ(read("a.txt"), text.out);
  Outcome json = run("dump a.dsplan --json");
  EXPECT_EQ(nlohmann::json::parse(json.out)["variants"][0]["name"], "v0");
  EXPECT_EQ(run("dump a.dsplan --format json").out, json.out);
  EXPECT_THAT(run("dump a.dsplan --format svg").out, StartsWith("<svg"));
  EXPECT_THAT(run("dump a.dsplan --format html").out, StartsWith("<!DOCTYPE html>"));
  EXPECT_TRUE(nlohmann::json::parse(run("dump a.dsplan --format chrome").out).contains("traceEvents"));
  EXPECT_THAT(run("dump a.dsplan --variant full-prefill").out, HasSubstr("prefill 11"));
}

TEST_F(DsPlan, RefusesByNameWhatContradicts) {
  Outcome o = run("dump a.dsplan --json --format svg");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("ds-plan: error: --json contradicts --format svg"));
  o = run("dump a.dsplan --variant v9");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.err, HasSubstr("has no variant 'v9'; it has 'v0', 'full-prefill'"));
  EXPECT_EQ(run("dump a.dsplan --format pdf").code, 2);
  EXPECT_EQ(run("dump a.dsplan --format json --variant v0").code, 2);
  EXPECT_EQ(run("").code, 2);
  EXPECT_EQ(run("simulate a.dsplan --link-rate 20").code, 2);
  EXPECT_EQ(run("simulate a.dsplan --context-length 0").code, 2);
}

TEST_F(DsPlan, VerifySaysWhatIsWrongAndExitsByCode) {
  Outcome o = run("verify a.dsplan");
  EXPECT_EQ(o.code, 0);
  EXPECT_EQ(o.out, fmt::format("a.dsplan: ok (format {}, 1 variant(s) and the full prefill, 41 ops)\n",
                               kWrittenFormatVersion));
  write(path("empty.dsplan"), "");
  write(path("text.dsplan"), "not a plan at all");
  Plan broken = plan_;
  broken.variants[0].ops[3].waits.clear();
  write(path("race.dsplan"), serialize_plan(broken));
  Plan newer = plan_;
  newer.format_version = kPlanFormatVersion + 1;
  write(path("newer.dsplan"), serialize_plan(newer));
  struct Case {
    const char *file, *message;
    int code;
  };
  for (const Case& c : {Case{"absent.dsplan", "No such file", 3}, Case{"empty.dsplan", "is empty", 4},
                        Case{"text.dsplan", "found \"a pl\" at bytes 4 to 7 of 17 bytes", 4},
                        Case{"race.dsplan", "op 3 (recompute 3) reads hidden states", 4},
                        Case{"newer.dsplan", "format version", 6}}) {
    Outcome bad = run(std::string("verify ") + c.file);
    EXPECT_EQ(bad.code, c.code) << c.file;
    EXPECT_THAT(bad.err, AllOf(StartsWith("ds-plan: error: "), HasSubstr(c.file), HasSubstr(c.message)));
    EXPECT_EQ(bad.out, "");
    EXPECT_EQ(run(std::string("dump ") + c.file).code, c.code) << c.file;
  }
  Outcome several = run("verify a.dsplan race.dsplan empty.dsplan --json");
  EXPECT_EQ(several.code, 4);
  nlohmann::json json = nlohmann::json::parse(several.out);
  EXPECT_EQ(json["ok"], false);
  EXPECT_EQ(json["files"][0]["ok"], true);
  EXPECT_EQ(json["files"][1]["error"], "corrupt");
  EXPECT_THAT(several.err, HasSubstr("2 of 3 plans are not valid"));
}

TEST_F(DsPlan, SimulateGivesThePlansOwnTimeAtItsTunedPoint) {
  nlohmann::json json = nlohmann::json::parse(run("simulate a.dsplan --json").out);
  ASSERT_EQ(json["results"].size(), 2u);
  EXPECT_EQ(json["results"][0]["ttft_ns"], plan_.variants[0].makespan_ns);
  EXPECT_EQ(json["results"][0]["at_tuned_point"], true);
  EXPECT_EQ(json["results"][1]["ttft_ns"], plan_.full_prefill.makespan_ns);
  EXPECT_THAT(run("simulate a.dsplan").out, AllOf(StartsWith("Estimate:"), HasSubstr("(the tuned point)")));
}

TEST_F(DsPlan, SimulateSelectsAsTheRuntimeDoes) {
  plan_.variants[0].tokens_max = 2048;
  plan_.variants.push_back(make_variant(plan_.shape, {0, -1}, "kv-preload", {.tokens = 4096}));
  plan_.variants[1].name = "v1";
  plan_.variants[1].tokens_min = 2048;
  plan_.variants[1].rate_min = 1'000'000;
  write(path("two.dsplan"), serialize_plan(plan_));
  auto selected = [&](const std::string& arguments) {
    return nlohmann::json::parse(run("simulate two.dsplan --json " + arguments).out)["results"][0]["variant"];
  };
  EXPECT_EQ(selected("--context-length 2047"), "v0");
  EXPECT_EQ(selected("--context-length 2048"), "v1");
  EXPECT_EQ(selected("--context-length 2048 --link-rate 999kB/s"), "full-prefill");
  EXPECT_EQ(selected("--link-rate 8Mb/s --context-length 3000"), "v1");
  EXPECT_EQ(selected("--context-length 2048 --variant v0"), "v0");
}

TEST_F(DsPlan, ExplainSelectsAsTheRuntimeDoes) {
  EXPECT_THAT(run("explain a.dsplan").out,
              AllOf(StartsWith("Variant v0 (droidspeak, e-first): the first of the plan"),
                    HasSubstr("What bounds the time"), HasSubstr("link x 2")));
  plan_.variants[0].tokens_max = 2048;
  write(path("short.dsplan"), serialize_plan(plan_));
  auto explained = [&](const std::string& arguments) {
    return nlohmann::json::parse(run("explain --json " + arguments).out);
  };
  EXPECT_EQ(explained("a.dsplan")["ttft_ns"], plan_.variants[0].makespan_ns);
  EXPECT_EQ(explained("short.dsplan --tokens 2047")["variant"], "v0");
  EXPECT_EQ(explained("short.dsplan --context-length 2048")["variant"], "full-prefill");
  EXPECT_EQ(explained("short.dsplan --context-length 2048 --variant v0")["variant"], "v0");
  EXPECT_EQ(explained("a.dsplan --link-rate 1kB/s")["bound"], "link");
  // Of several variants all in short, unless one is asked for.
  plan_.variants.push_back(make_variant(plan_.shape, {0, -1}, "kv-preload", {.tokens = 4096}));
  plan_.variants[1].name = "v1";
  plan_.variants[1].tokens_min = 2048;
  write(path("two.dsplan"), serialize_plan(plan_));
  EXPECT_THAT(run("explain two.dsplan").out, AllOf(StartsWith("Plan two.dsplan: 2 variants"),
                                                   HasSubstr("--variant NAME"), Not(HasSubstr("link x 2"))));
  EXPECT_THAT(run("explain two.dsplan --variant v1").out, StartsWith("Variant v1 "));
  EXPECT_THAT(run("explain two.dsplan --context-length 3000").out, StartsWith("Variant v1 "));
  EXPECT_THAT(run("explain two.dsplan --all").out,
              AllOf(StartsWith("Variant v0 "), HasSubstr("\nVariant v1 "),
                    HasSubstr("\nVariant full-prefill "), Not(HasSubstr("what else the plan holds"))));
  EXPECT_EQ(explained("two.dsplan")["variant"], "v0");
  EXPECT_EQ(explained("two.dsplan --all")["variants"].size(), 3u);
  EXPECT_EQ(run("explain two.dsplan --all --variant v0").code, 2);
  EXPECT_EQ(run("explain a.dsplan --link-rate 5").code, 2);
  EXPECT_EQ(run("explain absent.dsplan").code, 3);
}

TEST_F(DsPlan, DiffExitsLikeDiff) {
  write(path("b.dsplan"), serialize_plan(make_plan(small_shape(), {3, 8})));
  Outcome same = run("diff a.dsplan a.dsplan");
  EXPECT_EQ(same.code, 0);
  EXPECT_EQ(same.out, "");
  Outcome other = run("diff a.dsplan b.dsplan");
  EXPECT_EQ(other.code, 1);
  EXPECT_EQ(other.err, "");
  EXPECT_THAT(other.out, HasSubstr("gone kv(7), kv(8)"));
  Outcome json = run("diff a.dsplan b.dsplan --json");
  EXPECT_EQ(json.code, 1);
  EXPECT_EQ(nlohmann::json::parse(json.out)["same"], false);
  EXPECT_EQ(nlohmann::json::parse(run("diff a.dsplan a.dsplan --json").out)["same"], true);
  EXPECT_EQ(run("diff a.dsplan").code, 2);
  EXPECT_EQ(run("diff a.dsplan absent.dsplan").code, 3);
  write(path("bad.dsplan"), "no plan");
  EXPECT_EQ(run("diff bad.dsplan a.dsplan").code, 4);
}

TEST_F(DsPlan, PicturesAreXmlToAnotherProgram) {
  plan_.sender.name = "<script>\"&'";
  write(path("odd.dsplan"), serialize_plan(plan_));
  ASSERT_EQ(run("dump odd.dsplan --format svg -o odd.svg").code, 0);
  std::string command =
      "python3 -c 'import sys, xml.etree.ElementTree as e; r = e.parse(sys.argv[1]).getroot(); "
      "sys.exit(r.tag != \"{http://www.w3.org/2000/svg}svg\" or r.find(\".//{*}script\") is not None)' '" +
      path("odd.svg") + "'";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

TEST_F(DsPlan, TraceDrawsBothAndRefusesAnotherPlansRecord) {
  Result<std::string> bytes = read_text_file(path("a.dsplan"));
  ASSERT_TRUE(bytes.ok());
  write_record(sha256_hex(*bytes));
  Outcome o = run("trace --plan a.dsplan --record run.jsonl -o run.html");
  EXPECT_EQ(o.code, 0) << o.err;
  EXPECT_THAT(read("run.html"), AllOf(HasSubstr("predicted TTFT"), HasSubstr("measured TTFT")));
  EXPECT_THAT(run("trace --plan a.dsplan --record run.jsonl --format svg").out, StartsWith("<svg"));
  EXPECT_TRUE(
      nlohmann::json::parse(run("trace --plan a.dsplan --record run.jsonl --format chrome").out).is_object());
  write_record(std::string(64, '0'));
  o = run("trace --plan a.dsplan --record run.jsonl -o run.html");
  EXPECT_EQ(o.code, 5);
  EXPECT_THAT(o.err, HasSubstr("give the plan that was run"));
  write(path("run.jsonl"), "{");
  EXPECT_EQ(run("trace --plan a.dsplan --record run.jsonl -o run.html").code, 4);
  EXPECT_EQ(run("trace --plan a.dsplan --record absent.jsonl -o run.html").code, 3);
}

TEST_F(DsPlan, AFullDiskIsAnError) {
  Outcome o = run("dump a.dsplan -o /dev/full");
  EXPECT_EQ(o.code, 9);
  EXPECT_THAT(o.err, HasSubstr("/dev/full"));
}

}  // namespace
}  // namespace ds
