#include "compiler/inputs/machine.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <cmath>
#include <random>

#include "compiler/scheduling/cost_model.h"
#include "plans/full_prefill.h"
#include "runtime/core/calibration_json.h"
#include "support/file.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

const Shape kShape{.family = "llama",
                   .layers = 4,
                   .d_model = 1024,
                   .ff = 2816,
                   .heads = 16,
                   .kv_heads = 4,
                   .head_dim = 64,
                   .vocab = 32000};

/// A file as ds-calibrate writes it.
std::string written() {
  CalibrationSubject subject{.name = "two cores",
                             .backend = "cpu",
                             .description = "cpu: two",
                             .cpu = "c",
                             .kernel = "k",
                             .threads = 2,
                             .shape = kShape,
                             .dtype = DType::kBF16,
                             .link_rtt_ns = 700,
                             .options = ""};
  Calibration c;
  c.machine = MachineTimes{.matmul_flops = 4e11,
                           .attention_flops = 3e11,
                           .memory_bytes_per_s = 2e10,
                           .op_overhead_ns = 600,
                           .wakeup_ns = 6000,
                           .embed_ns = 500,
                           .embed_row_ns = 40.5,
                           .head_ns = 1'700'000,
                           .lookup_ns = 60'000,
                           .read_latency_ns = 5000,
                           .read_bytes_per_s = 9e9,
                           .copy_bytes_per_s = 1e10,
                           .kernel_slowdown_permille = 750,
                           .kernel_ns_per_transfer = 30'000,
                           .transfer_slowdown_permille = 10};
  c.layers = {{{64, 64, 0}, 4'000'000, 3'900'000, 5'000'000, 7, 100},
              {{64, 64, 7}, 4'200'000, 4'190'000, 4'210'000, 9, 100}};
  return machine_json(subject, c);
}

Result<MachineModel> read(const std::string& text) {
  std::string path = ::testing::TempDir() + "machine-test.json";
  EXPECT_TRUE(write_file_atomically(path, text).ok());
  return MachineModel::read(path);
}

TEST(Machine, ReadsWhatTheCalibrationWrites) {
  auto m = read(written());
  ASSERT_TRUE(m.ok()) << m.status().message();
  EXPECT_EQ(m->matmul_flops_per_s, 4e11);
  EXPECT_EQ(m->attention_flops_per_s, 3e11);
  EXPECT_EQ(m->memory_bytes_per_s, 2e10);
  EXPECT_EQ(m->op_overhead_ns, 600);
  EXPECT_EQ(m->wakeup_ns, 6000);
  const Conditions slow = m->conditions(static_cast<int64_t>(m->read_bytes_per_s / 10)),
                   full = m->conditions(static_cast<int64_t>(2 * m->read_bytes_per_s));
  EXPECT_EQ(slow.kernels_ns, 60'000);
  EXPECT_EQ(slow.loads_ns, 60'700);
  EXPECT_EQ(slow.load_handover_ns, 6000);
  EXPECT_EQ(slow.kernel_handover_ns, 6000);
  // A link at a tenth of the store's speed disturbs a tenth as much, and a disturbed store still keeps up.
  EXPECT_EQ(slow.kernel_slow_permille, 75);
  EXPECT_EQ(slow.load_slow_permille, 0);
  EXPECT_EQ(full.kernel_slow_permille, 750);
  EXPECT_EQ(full.load_slow_permille, 10);
  EXPECT_EQ(slow.kernel_ns_per_load, 30'000);
  json older = json::parse(written());
  older["version"] = 3;
  EXPECT_THAT(read(older.dump()).status().message(), HasSubstr("kernel_ns_per_transfer"));
  older["contention"].erase("kernel_ns_per_transfer");
  auto three = read(older.dump());
  ASSERT_TRUE(three.ok()) << three.status().message();
  EXPECT_EQ(three->conditions(1'000'000).kernel_ns_per_load, 0);
  // To a device the last block of 4 MB is copied behind the link, at 10 GB/s.
  json staged = json::parse(written());
  staged["link"]["staged_block_bytes"] = 4'000'000;
  auto device = read(staged.dump());
  ASSERT_TRUE(device.ok()) << device.status().message();
  EXPECT_EQ(device->conditions(1'000'000).load_handover_ns, 6000 + 400'000);
  EXPECT_EQ(device->conditions(1'000'000).kernel_handover_ns, 6000);
  EXPECT_EQ(m->read_latency_ns, 5000);
  EXPECT_EQ(m->read_bytes_per_s, 9e9);
  EXPECT_EQ(m->copy_bytes_per_s, 1e10);
  EXPECT_EQ(m->kernel_slowdown_permille, 750);
  EXPECT_EQ(m->transfer_slowdown_permille, 10);
  EXPECT_EQ(m->embed_ns, 500);
  EXPECT_EQ(m->embed_row_ns, 40.5);
  EXPECT_EQ(m->head_ns, 1'700'000);
  EXPECT_EQ(m->shape, kShape);
  ASSERT_EQ(m->layer_points.size(), 2u);
  const LayerPoint& p = m->layer_points[0];
  EXPECT_EQ(p.query_rows + p.ns, 64 + 4'000'000);
  EXPECT_EQ(p.min_ns, 3'900'000);
  EXPECT_EQ(p.max_ns, 5'000'000);
}

/// A file with maps.
json with_maps(const std::string& align) {
  json file = json::parse(written());
  file["align"] = json::parse(align);
  return file;
}

constexpr const char* kMaps = R"([{"form": "full", "rank": 0, "ns": 9000, "row_ns": 30.5},
    {"form": "low-rank", "rank": 8, "ns": 700, "row_ns": 4},
    {"form": "diagonal", "rank": 0, "ns": 500, "row_ns": 1}])";

TEST(Machine, MapsAreReadAndTimeWhatTheyTook) {
  auto m = read(with_maps(kMaps).dump());
  ASSERT_TRUE(m.ok()) << m.status().message();
  ASSERT_EQ(m->align.size(), 3u);
  EXPECT_EQ(m->align[1].form, MapForm::kLowRank);
  EXPECT_EQ(m->align[1].rank, 8);
  CostModel costs(*m, kShape);
  auto takes = [&](MapForm form, int64_t rank, int64_t rows) { return costs.align(rows, form, rank); };
  EXPECT_EQ(takes(MapForm::kFull, 0, 1).ns, 9000);
  EXPECT_EQ(takes(MapForm::kFull, 0, 101).ns, 9000 + 100 * 30.5);
  EXPECT_EQ(takes(MapForm::kFull, 0, 101).source, CostSource::kInterpolated);
  EXPECT_EQ(takes(MapForm::kDiagonal, 0, 11).ns, 510);
  EXPECT_EQ(takes(MapForm::kLowRank, 8, 11).ns, 740);
  // Of another rank: in proportion to 4 d r + 2 d.
  EXPECT_DOUBLE_EQ(takes(MapForm::kLowRank, 16, 11).ns, 740 * (4 * 16 + 2) / (4 * 8 + 2.0));
  EXPECT_EQ(takes(MapForm::kLowRank, 16, 11).source, CostSource::kExtrapolated);
  // An op is timed by its rows; one over an empty chunk takes next to nothing.
  TunedPoint at{.tokens = 128, .suffix = 16, .rate = 1, .chunks = 2, .map_form = MapForm::kDiagonal};
  Op op{.kind = OpKind::kAlign, .layer = 3, .chunk = 1};
  EXPECT_EQ(costs.duration_ns(op, at), 500 + 63);
  at.tokens = 32;
  op.chunk = 0;
  EXPECT_EQ(costs.duration_ns(op, at), 1);
}

TEST(Machine, MapsWithoutMeasurementAreModelled) {
  auto m = read(written());
  ASSERT_TRUE(m.ok()) << m.status().message();
  EXPECT_TRUE(m->align.empty());
  CostModel costs(*m, kShape);
  auto dm = static_cast<double>(kShape.d_model), element = static_cast<double>(dtype_size(m->dtype));
  for (auto [form, flops] :
       {std::pair(MapForm::kFull, 2 * dm * dm), std::pair(MapForm::kLowRank, 4 * dm * 8 + 2 * dm),
        std::pair(MapForm::kDiagonal, 2 * dm)}) {
    Cost c = costs.align(100, form, 8);
    double expected = 100 * flops / 4e11 * 1e9 + 2 * 100 * dm * element / 2e10 * 1e9 + 600;
    EXPECT_NEAR(c.ns, expected, 1e-6 * expected) << map_form_name(form);
    EXPECT_EQ(c.source, CostSource::kModelled);
  }
}

TEST(Machine, BrokenMapsSayWhereAndWhat) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "'align' is {}, expected a list"},
      {R"([{"form": "none", "rank": 0, "ns": 1, "row_ns": 1}])",
       "unknown form 'none'; expected one of diagonal"},
      {R"([{"form": "full", "rank": 3, "ns": 1, "row_ns": 1}])", "align[0]: 'rank' is 3"},
      {R"([{"form": "low-rank", "rank": 0, "ns": 1, "row_ns": 1}])", "align[0]: 'rank' is 0"},
      {R"([{"form": "full", "rank": 0, "ns": 0, "row_ns": 1}])", "align[0]: 'ns' is 0"},
      {R"([{"form": "full", "rank": 0, "ns": 1, "row_ns": -1}])", "'row_ns' is -1"},
      {R"([{"form": "full", "rank": 0, "ns": 1, "row_ns": 1, "x": 1}])", "unknown key 'x'"},
      {R"([{"form": "full", "rank": 0, "ns": 1, "row_ns": 1}, {"form": "full", "rank": 0, "ns": 2, "row_ns": 1}])",
       "align[1]: form 'full', rank 0 was measured before"},
  };
  for (const auto& [align, message] : cases) {
    auto m = read(with_maps(align).dump());
    ASSERT_FALSE(m.ok()) << align;
    EXPECT_EQ(m.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(m.status().message(), AllOf(HasSubstr("machine-test.json"), HasSubstr(message)));
  }
  json older = with_maps(kMaps);
  older["version"] = 2;
  older["contention"].erase("kernel_ns_per_transfer");
  EXPECT_THAT(read(older.dump()).status().message(), HasSubstr("align: came with version 3"));
}

TEST(Machine, BrokenFilesSayWhereAndWhat) {
  struct Case {
    const char *pointer, *value, *message;  // value: JSON; nullptr: the key is taken out
  };
  const Case cases[] = {
      {"/version", "5", "found version 5, this program reads up to 4"},
      {"/version", "0", "'version' is 0"},
      {"/schema", "\"droidspeak.quality\"", "expected 'droidspeak.machine'"},
      {"/dtype", "\"f16\"", "found 'f16', expected \"bf16\" or \"f32\""},
      {"/shape", nullptr, "key 'shape' is missing"},
      {"/shape/ff", nullptr, "shape: key 'ff' is missing"},
      {"/shape/heads", "0", "shape: 'heads' is 0"},
      {"/shape/d_model", "9223372036854775807", "'d_model' is 9223372036854775807"},
      {"/machine", nullptr, "key 'machine' is missing"},
      {"/compute", nullptr, "key 'compute' is missing"},
      {"/compute/matmul_flops_per_s", "null", "key 'matmul_flops_per_s' is missing"},
      {"/compute/matmul_flops_per_s", "-1", "'matmul_flops_per_s' is -1"},
      {"/compute/memory_bytes_per_s", "0", "'memory_bytes_per_s' is 0"},
      {"/compute/wakeup_ns", "-5", "'wakeup_ns' is -5"},
      {"/compute/speed", "1", "unknown key 'speed'"},
      {"/link/lookup_ns", nullptr, "link: key 'lookup_ns' is missing"},
      {"/link/read_bytes_per_s", "\"fast\"", "'read_bytes_per_s' is \"fast\""},
      {"/contention/kernel_slowdown_permille", "-1", "'kernel_slowdown_permille' is -1"},
      {"/contention/kernel_slowdown_permille", "1e3", "expected an integer"},
      {"/embed/row_ns", "-0.5", "'row_ns' is -0.5"},
      {"/head/ns", "0", "head: 'ns' is 0"},
      {"/layer_ns", "{}", "'layer_ns' is {}, expected a list"},
      {"/layer_ns/0/ns", "0", "layer_ns[0]: 'ns' is 0"},
      {"/layer_ns/1/ns", "-7", "layer_ns[1]: 'ns' is -7"},
      {"/layer_ns/0/ns", "1.5", "'ns' is 1.5, expected an integer"},
      {"/layer_ns/0/rows", "4294967297", "layer_ns[0]: 'rows' is 4294967297"},
      {"/layer_ns/0/query_rows", "65", "'query_rows' is 65, expected an integer in [0, 64]"},
      {"/layer_ns/0/min_ns", "4000001", "'min_ns' is 4000001"},
      {"/layer_ns/0/max_ns", "3999999", "'max_ns' is 3999999"},
      {"/layer_ns/0/passes", "0", "'passes' is 0"},
      {"/layer_ns/1/position", "0", "layer_ns[1]: rows 64, query_rows 64, position 0 was measured before"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} = {}", c.pointer, c.value != nullptr ? c.value : "(none)"));
    json file = json::parse(written());
    json::json_pointer at(c.pointer);
    if (c.value == nullptr) {
      file[at.parent_pointer()].erase(at.back());
    } else {
      file[at] = json::parse(c.value);
    }
    auto m = read(file.dump());
    ASSERT_FALSE(m.ok());
    EXPECT_THAT(m.status().message(), AllOf(HasSubstr("machine-test.json"), HasSubstr(c.message)));
  }
  std::string nan = written();
  nan.replace(nan.find("40.5"), 4, "NaN");
  EXPECT_EQ(read(nan).status().code(), Code::kCorrupt);
  json many = json::parse(written());
  for (int i = 0; i < 4096; ++i) {
    json p = many["layer_ns"][0];
    p["position"] = i + 1;
    many["layer_ns"].push_back(p);
  }
  EXPECT_THAT(read(many.dump()).status().message(), HasSubstr("4098 points, expected at most 4096"));
}

TEST(Machine, VersionOneIsStillRead) {
  std::string text = R"({"schema": "droidspeak.machine", "version": 1, "name": "old", "backend": "cpu",
    "dtype": "bf16", "compute": {"matmul_flops_per_s": 4e11, "op_overhead_ns": 9}, "link": {"rtt_ns": 5},
    "layer_ns": [{"rows": 8, "query_rows": 8, "position": 0, "ns": 77}], "head_ns": 3})";
  auto m = read(text);
  ASSERT_TRUE(m.ok()) << m.status().message();
  EXPECT_EQ(m->conditions(1'000'000).loads_ns, 5);
  EXPECT_EQ(m->conditions(1'000'000).kernel_slow_permille, 0);
  EXPECT_EQ(m->layer_points.at(0).max_ns, 77);
  EXPECT_FALSE(m->shape.has_value());
  EXPECT_TRUE(m->check_shape("f", kShape).ok());
  // A key of version 2 does not belong there.
  json file = json::parse(text);
  file["contention"] = json::object();
  EXPECT_THAT(read(file.dump()).status().message(), HasSubstr("unknown key 'contention'"));
}

TEST(Machine, AnotherModelsLayersAreRefused) {
  auto m = read(written());
  ASSERT_TRUE(m.ok());
  Shape other = kShape;
  other.layers = 80;
  EXPECT_TRUE(m->check_shape("f.json", other).ok());
  other.ff = 4096;
  other.kv_heads = 2;
  Status s = m->check_shape("f.json", other);
  EXPECT_EQ(s.code(), Code::kMismatch);
  EXPECT_THAT(s.message(), AllOf(HasSubstr("f.json: shape"), HasSubstr("ff: found 2816, expected 4096"),
                                 HasSubstr("kv_heads: found 4, expected 2"), HasSubstr("run ds-calibrate")));
}

/// A machine with points on a grid, each a little off the roofline.
MachineModel noisy_machine(uint64_t seed, double noise) {
  MachineModel m = MachineModel::stand_in(DType::kBF16);
  CostModel plain(m, kShape);
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> off(1 - noise, 1 + noise);
  for (int64_t rows : {1, 16, 64, 256, 1024, 4096}) {
    m.layer_points.push_back(
        {rows, 0, 0, std::llround(1.3 * off(random) * plain.layer_ns(rows, 0, 0)), 1, 1});
    for (int64_t position : {0, 512, 2048, 8192}) {
      double ns = 1.3 * off(random) * plain.layer_ns(rows, rows, position);
      m.layer_points.push_back({rows, rows, position, std::llround(ns), 1, 1});
    }
  }
  return m;
}

TEST(CostModel, PointsAreMetAndTimesGrow) {
  MachineModel quiet = noisy_machine(1, 0);
  CostModel costs(quiet, kShape);
  for (const LayerPoint& p : quiet.layer_points) {
    Cost c = costs.layer(p.rows, p.query_rows, p.position);
    EXPECT_DOUBLE_EQ(c.ns, static_cast<double>(p.ns));
    EXPECT_EQ(c.source, CostSource::kMeasured);
  }
  // However noisy the points are: more rows, or the same rows further on, never take less.
  for (uint64_t seed = 0; seed < 20; ++seed) {
    CostModel noisy(noisy_machine(seed, 0.5), kShape);
    for (int64_t position : {0, 100, 512, 1000, 5000, 8192, 12000}) {
      double before = 0;
      for (int64_t rows = 1; rows < 9000; rows += 1 + rows / 9) {
        double ns = noisy.layer_ns(rows, rows, position), kv = noisy.layer_ns(rows, 0, position);
        EXPECT_GE(ns * (1 + 1e-12), before) << "seed " << seed << ", rows " << rows << " at " << position;
        EXPECT_GT(kv, 0);
        before = ns;
      }
    }
    for (int64_t rows : {1, 3, 16, 100, 1024, 4096, 6000}) {
      double before = 0;
      for (int64_t position = 0; position < 20000; position += 97) {
        double ns = noisy.layer_ns(rows, rows, position);
        EXPECT_GE(ns * (1 + 1e-12), before) << "seed " << seed << ", rows " << rows << " at " << position;
        before = ns;
      }
    }
  }
}

TEST(CostModel, SaysWhatATimeRestsOn) {
  CostModel costs(noisy_machine(1, 0.02), kShape), plain(MachineModel::stand_in(DType::kBF16), kShape);
  auto source = [&](int64_t rows, int64_t queries, int64_t position) {
    return costs.layer(rows, queries, position).source;
  };
  EXPECT_EQ(source(64, 64, 512), CostSource::kMeasured);
  EXPECT_EQ(source(64, 64, 513), CostSource::kInterpolated);
  EXPECT_EQ(source(65, 65, 512), CostSource::kInterpolated);
  EXPECT_EQ(source(64, 0, 9999), CostSource::kInterpolated);  // K and V alone: no matter where
  EXPECT_EQ(source(64, 64, 8193), CostSource::kExtrapolated);
  EXPECT_EQ(source(4097, 4097, 0), CostSource::kExtrapolated);
  EXPECT_EQ(source(4096, 1, 0), CostSource::kInterpolated);  // put together
  EXPECT_EQ(plain.layer(64, 64, 0).source, CostSource::kModelled);

  Variant prefill = full_prefill_variant(kShape.layers);
  TunedPoint at{.tokens = 1000, .suffix = 16, .rate = 1};
  MachineModel measured = noisy_machine(1, 0.02);
  measured.head_ns = 5;
  measured.embed_ns = 5;
  Coverage c = CostModel(measured, kShape).coverage(prefill, at);
  EXPECT_EQ(c.note(), "times: 100 % from measured points");
  EXPECT_EQ(plain.coverage(prefill, at).note(),
            "times: 0 % from measured points, 100 % modelled without measurement");
  at.tokens = 15000;
  c += CostModel(measured, kShape).coverage(prefill, at);
  EXPECT_THAT(c.note(), HasSubstr("% extrapolated beyond 12,288 positions"));
  double sum = 0;
  for (double ns : c.ns) sum += ns;
  double expected = 0;
  for (int64_t n : {1000, 15000})
    for (const Op& op : prefill.ops)
      expected += CostModel(measured, kShape).duration(op, {.tokens = n, .suffix = 16, .rate = 1}).ns;
  EXPECT_NEAR(sum, expected, 1);
  EXPECT_EQ(Coverage().note(), "");
}

TEST(CostModel, TheSlowerOfStoreAndLinkDecides) {
  MachineModel m = MachineModel::stand_in(DType::kBF16);
  m.read_latency_ns = 1000;
  m.read_bytes_per_s = 1e9;
  CostModel costs(m, kShape);
  Op op{.kind = OpKind::kTransfer, .payload = Payload::kKv, .layer = 0, .chunk = 0};
  // 1000 rows of 512 elements of two bytes: 1,024,000 bytes.
  EXPECT_EQ(costs.duration_ns(op, {.tokens = 1000, .suffix = 1, .rate = 1'000'000}), 1'024'000'000);
  EXPECT_EQ(costs.duration_ns(op, {.tokens = 1000, .suffix = 1, .rate = kNoLimit}), 1'025'000);
}

}  // namespace
}  // namespace ds
