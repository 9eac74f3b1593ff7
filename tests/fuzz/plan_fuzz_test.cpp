// Mutations of plans and run records, thousands of them, the same in every run: whatever the bytes, reading
// ends in an error that says something, or in a plan that obeys every rule, can be written again, drawn and
// simulated.
#include <gtest/gtest.h>

#include <random>

#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "runtime/trace/draw.h"
#include "runtime/trace/plan_json.h"
#include "runtime/trace/plan_text.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

using testing::make_plan;
using testing::small_shape;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kRounds = 3'000;  // of each plan; sanitizers are an order of magnitude slower
#else
constexpr int kRounds = 20'000;
#endif

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  size_t below(size_t n) { return static_cast<size_t>(random_() % n); }

  void mutate(std::string& bytes) {
    static constexpr uint32_t kWords[] = {0, 1, 0x7f, 0xff, 0x7fffffff, 0x80000000, 0xffffffff, 0x10000, 64};
    for (size_t times = 1 + below(3); times > 0 && !bytes.empty(); --times) {
      size_t at = below(bytes.size());
      switch (below(9)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 1:
          bytes[at] = static_cast<char>(below(256));
          break;
        case 2:
          bytes.resize(at);
          break;
        case 3:
          bytes.insert(at, std::string(1 + below(9), static_cast<char>(below(256))));
          break;
        case 4:
          bytes.erase(at, 1 + below(9));
          break;
        case 5:
          bytes += std::string(1 + below(64), static_cast<char>(below(256)));
          break;
        case 6: {  // one aligned word: offsets, sizes, numbers
          uint32_t word = kWords[below(std::size(kWords))];
          at -= at % 4;
          if (at + 4 <= bytes.size())
            bytes.replace(at, 4, std::string(reinterpret_cast<const char*>(&word), 4));
          break;
        }
        case 7: {  // a little more or less
          bytes[at] = static_cast<char>(bytes[at] + static_cast<int>(below(9)) - 4);
          break;
        }
        default: {  // one piece over another
          size_t from = below(bytes.size()), size = 1 + below(16);
          bytes.replace(at, std::min(size, bytes.size() - at), bytes.substr(from, size));
        }
      }
    }
  }

  /// Changes one field of one op or of the variant to something near or absurd.
  void mutate(Variant& v) {
    auto number = [&](int64_t old) -> int64_t {
      static constexpr int64_t kNumbers[] = {-1,   0,         1,         2,         63,
                                             1000, INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN};
      // Near it, also past what a number can be.
      if (below(2) == 0) return static_cast<int64_t>(static_cast<uint64_t>(old) + below(5) - 2);
      return kNumbers[below(std::size(kNumbers))];
    };
    auto small = [&](int32_t old) { return static_cast<int32_t>(number(old)); };
    Op& op = v.ops[below(v.ops.size())];
    switch (below(21)) {
      case 0:
        op.kind = static_cast<OpKind>(below(11));
        break;
      case 18:
        op.payload = static_cast<Payload>(below(4));
        break;
      case 19:
        op.source = small(op.source);
        break;
      case 1:
        op.stream = small(op.stream);
        break;
      case 2:
        op.layer = small(op.layer);
        break;
      case 3:
        op.chunk = small(op.chunk);
        break;
      case 4:
        op.rows = static_cast<Rows>(below(5));
        break;
      case 5:
        op.queries = static_cast<Queries>(below(5));
        break;
      case 6:
        op.buffer = small(op.buffer);
        break;
      case 7:
        op.start_ns = op.start_ns < 1000 ? number(op.start_ns) : op.start_ns - 1;
        break;
      case 8:
        op.duration_ns = op.duration_ns < 1000 ? number(op.duration_ns) : 0;
        break;
      case 9:
        op.waits.push_back(small(0));
        break;
      case 10:
        op.waits.clear();
        break;
      case 11:
        v.chunks = small(v.chunks);
        break;
      case 12:
        std::swap(v.ops[below(v.ops.size())], op);
        break;
      case 13:
        v.tuned_tokens = number(v.tuned_tokens);
        break;
      case 14:
        v.tuned_rate = number(v.tuned_rate);
        break;
      case 15:
        v.tuned_suffix = number(v.tuned_suffix);
        break;
      case 17:
        v.tiles[below(v.tiles.size())].mode = static_cast<Mode>(below(5));
        break;
      case 16:
        v.tiles[below(v.tiles.size())].last_layer += static_cast<int32_t>(below(3)) - 1;
        break;
      default:
        v.buffers[below(v.buffers.size())].layer = small(3);
    }
  }

 private:
  std::mt19937_64 random_;
};

/// Everything that can be done with a valid plan.
void use(const Plan& plan) {
  std::string again = serialize_plan(plan);
  Result<Plan> back = parse_plan(bytes_of(again), "again");
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, plan);
  EXPECT_FALSE(plan_to_json(plan).dump().empty());
  for (const Variant& v : plan.variants) {
    EXPECT_FALSE(plan_to_text(plan, {.origin = "x", .variant = &v}).empty());
    EXPECT_FALSE(draw_schedule_svg({plan, v}).empty());
    Result<Simulation> sim = simulate_variant(plan, v, {3000, 17, 1'000'000});
    EXPECT_TRUE(sim.ok() ? sim->ttft_ns >= 0 : !sim.status().message().empty());
  }
}

/// With two sources, which are the same model's.
Plan with_sources(Plan plan) {
  plan.format_version = 5;
  plan.sources = sources_of(plan);
  plan.sources.push_back(plan.sources[0]);
  for (size_t i = 0; i < plan.variants[0].ops.size(); i += 2)
    if (Op& op = plan.variants[0].ops[i]; op.payload != Payload::kNone) op.source = 1;
  return plan;
}

constexpr int kSubjects = 6;

const Plan& subject(int k) {
  static const Plan plans[] = {make_plan(small_shape(), {3, 6}),
                               make_plan(small_shape(5), {0, 2}, "serial"),
                               make_plan(small_shape(6), {2, 4}, "e-first", {.chunks = 3}),
                               testing::make_select_plan(small_shape(4), 0.2),
                               testing::make_restore_plan(small_shape(5), 2),
                               with_sources(make_plan(small_shape(5), {2, 3}))};
  return plans[k];
}

TEST(PlanFuzz, MutatedBytesAreAnErrorOrAValidPlan) {
  int valid = 0, refused = 0;
  for (int k = 0; k < kSubjects; ++k) {
    std::string original = serialize_plan(subject(k));
    Mutator mutator(static_cast<uint64_t>(k) + 1);
    for (int round = 0; round < kRounds; ++round) {
      std::string bytes = original;
      mutator.mutate(bytes);
      Result<Plan> plan = parse_plan(bytes_of(bytes), "x");
      if (plan.ok()) {
        ++valid;
        if (valid % 50 == 0) use(*plan);
      } else {
        ++refused;
        ASSERT_NE(plan.status().code(), Code::kInternal);
        ASSERT_NE(plan.status().message().find("'x'"), std::string::npos) << plan.status().message();
      }
    }
  }
  // Both happen: padding and free texts may change, most other bytes may not.
  EXPECT_GT(valid, 100);
  EXPECT_GT(refused, valid);
}

TEST(PlanFuzz, EveryTruncationIsRefused) {
  std::string original = serialize_plan(subject(1));
  for (size_t size = 0; size < original.size(); ++size) {
    Result<Plan> plan = parse_plan(bytes_of(original).first(size), "x");
    // The last bytes may be padding.
    if (size + 8 < original.size()) {
      ASSERT_FALSE(plan.ok()) << size;
    }
  }
}

TEST(PlanFuzz, MutatedFieldsAreAnErrorOrAValidPlan) {
  int valid = 0, refused = 0;
  for (int k = 0; k < kSubjects; ++k) {
    Mutator mutator(static_cast<uint64_t>(k) + 100);
    for (int round = 0; round < kRounds; ++round) {
      Plan plan = subject(k);
      for (size_t times = 1 + mutator.below(2); times > 0; --times) mutator.mutate(plan.variants[0]);
      Status status = verify_plan(plan, "x");
      ++(status.ok() ? valid : refused);
      if (status.ok() && valid % 50 == 0) use(plan);
      if (!status.ok()) {
        ASSERT_NE(status.message().find("[rule "), std::string::npos) << status.message();
      }
    }
  }
  EXPECT_GT(valid, 100);
  EXPECT_GT(refused, valid);
}

TEST(RunRecordFuzz, MutatedTextIsAnErrorOrAValidRecord) {
  RunRecord record;
  record.variant = "v0";
  record.context_tokens = 1024;
  record.suffix_tokens = 16;
  const Variant& v = subject(0).variants[0];
  for (size_t i = 0; i < v.ops.size(); ++i) {
    record.ops.push_back({static_cast<int32_t>(i), op_label(v.ops[i], 1), "link", v.ops[i].start_ns,
                          v.ops[i].start_ns + v.ops[i].duration_ns, 0});
  }
  std::string original = run_record_text(record);
  Mutator mutator(7);
  int valid = 0, refused = 0;
  for (int round = 0; round < kRounds / 4; ++round) {
    std::string text = original;
    mutator.mutate(text);
    Result<RunRecord> read = parse_run_record(text, "x");
    ++(read.ok() ? valid : refused);
    if (!read.ok()) {
      ASSERT_FALSE(read.status().message().empty());
    } else if (check_record(v, *read, "x").ok() && valid % 20 == 0) {
      EXPECT_FALSE(draw_schedule_html({subject(0), v, &*read}).empty());
      EXPECT_FALSE(draw_schedule_chrome({subject(0), v, &*read}).empty());
    }
  }
  EXPECT_GT(valid, 10);
  EXPECT_GT(refused, 100);
}

}  // namespace
}  // namespace ds
