// Aligned cuts, run for real: logits against transformers (tests/golden/models/README.md), who applies the
// maps makes no difference, the law that maps which add nothing change nothing, and what happens without
// them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/model/safetensors.h"
#include "support/json.h"
#include "tests/unit/aligned_plans.h"
#include "tests/unit/model_fixture.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::make_maps;
using testing::make_plan;
using testing::make_restore_range_plan;
using testing::plain_cuts;
using testing::random_ids;
using testing::set_pair;
using testing::tiny_config;
using testing::TinyModel;
using testing::with_aligned_cuts;

constexpr MapForm kForms[] = {MapForm::kFull, MapForm::kLowRank, MapForm::kDiagonal};
constexpr MapSide kSides[] = {MapSide::kReceiver, MapSide::kSender};

std::string fresh_folder(const std::string& name) {
  std::string folder = ::testing::TempDir() + "/ds_aligned_" + name + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  return folder;
}

std::unique_ptr<Store> fresh_store(const std::string& name) {
  auto store = open_store("file:" + fresh_folder(name));
  EXPECT_TRUE(store.ok()) << store.status().message();
  return store.ok() ? std::move(*store) : nullptr;
}

void expect_valid(const Plan& plan) {
  Status status = verify_plan(plan, "a test's plan");
  EXPECT_TRUE(status.ok()) << status.message();
}

/// Logits of a request; `answer`, where given, gets the rest (its variant points into `plan`).
std::vector<float> run(Backend& backend, DeviceModel& model, const Plan& plan, const Request& request,
                       const MapSet* maps, bool plain = false, Answer* answer = nullptr) {
  auto session = Session::create(
      backend, model, plan,
      {static_cast<int64_t>(request.context.size()), static_cast<int64_t>(request.suffix.size()), 1}, maps,
      plain);
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) return {};
  auto result = (*session)->run(request);
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) return {};
  if (answer == nullptr) {
    EXPECT_TRUE(result->miss.ok()) << result->miss.message();
  } else {
    *answer = std::move(*result);
  }
  auto logits = (*session)->first_logits();
  return {logits.begin(), logits.end()};
}

float worst(const std::vector<float>& found, const std::vector<float>& want) {
  float worst = found.size() == want.size() ? 0 : INFINITY;
  for (size_t i = 0; i < want.size() && i < found.size(); ++i) {
    if (!std::isfinite(found[i])) return INFINITY;
    worst = std::max(worst, std::abs(found[i] - want[i]));
  }
  return worst;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return !a.empty() && a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// What make_aligned.py's numbers() says.
void golden_numbers(int64_t layer, const std::string& part, std::vector<float>& v) {
  static const std::vector<std::pair<std::string, double>> kSpread = {
      {"weight", 0.25}, {"up", 0.5}, {"down", 0.5}, {"scale", 0.5}, {"bias", 0.25}};
  uint64_t seed = 100 * static_cast<uint64_t>(layer);
  double spread = 0;
  for (size_t p = 0; p < kSpread.size(); ++p)
    if (kSpread[p].first == part) seed += p, spread = kSpread[p].second;
  for (uint64_t i = 0; i < v.size(); ++i) {
    uint64_t mixed = (((i + 1 + 7919 * seed) * 2654435761u) % (uint64_t{1} << 32) * 40503 / 7) % 65536;
    v[i] = static_cast<float>((static_cast<double>(mixed) / 65536 - 0.5) * spread);
  }
}

class AlignedOracle : public ::testing::TestWithParam<std::string> {};

TEST_P(AlignedOracle, LogitsAgreeWithTransformersTo1e4) {
  const std::string folder = DS_SOURCE_DIR "/tests/golden/models/" + GetParam();
  auto backend = testing::test_backend();
  ASSERT_TRUE(backend.ok());
  std::unique_ptr<DeviceModel> models[2];
  ModelIdentity identities[2];
  for (int i = 0; i < 2; ++i) {
    auto checkpoint = Checkpoint::open(folder + (i == 0 ? "/sender" : "/receiver"));
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    auto model = (*backend)->load(*checkpoint, {.dtype = DType::kF32});
    ASSERT_TRUE(model.ok()) << model.status().message();
    models[i] = std::move(*model);
    identities[i] = *checkpoint->identity();
  }
  auto json = read_json_file(folder + "/aligned.json");
  ASSERT_TRUE(json.ok()) << json.status().message();
  auto file = SafetensorsFile::open(folder + "/aligned.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().message();
  auto tokens = (*json)["tokens"].get<std::vector<int32_t>>();
  const Shape shape = models[1]->config().shape();

  // Through a file, as users have them.
  const std::string path = fresh_folder(GetParam() + "_maps") + ".safetensors";
  {
    MapSet made = make_maps(shape, (*json)["rank"], golden_numbers);
    set_pair(made, identities[0], identities[1]);
    Status written = made.write(path);
    ASSERT_TRUE(written.ok()) << written.message();
  }
  auto maps = MapSet::read(path);
  ASSERT_TRUE(maps.ok()) << maps.status().message();

  Request request;
  request.context = std::span(tokens).first((*json)["context"].get<size_t>());
  request.suffix = std::span(tokens).subspan(request.context.size());
  auto store = fresh_store(GetParam());
  request.store = store.get();
  request.receiver = &identities[1];
  PublishOptions everything{.maps = &*maps};
  for (int32_t l = 1; l < shape.layers; ++l)
    for (MapForm form : {MapForm::kNone, MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull})
      everything.cuts.push_back({l, form});
  auto published = publish(**backend, *models[0], identities[0], request.context, *store, everything);
  ASSERT_TRUE(published.ok()) << published.status().message();

  int checked = 0;
  for (const auto& c : (*json)["cases"]) {
    const auto& entry = file->entries().at(c["tensor"].get<std::string>());
    std::vector<float> want(static_cast<size_t>(shape.vocab));
    ASSERT_EQ(entry.data.size(), want.size() * sizeof(float));
    std::memcpy(want.data(), entry.data.data(), entry.data.size());
    const auto form = *std::find_if(std::begin(kForms), std::end(kForms), [&](MapForm f) {
      return map_form_name(f) == c["form"].get<std::string>();
    });
    LayerRange layers;
    bool restored = false;
    for (const auto& t : c["tiles"]) {
      if (t["mode"] == "load") continue;
      layers = {t["layers"][0].get<int64_t>(), t["layers"][1].get<int64_t>()};
      restored = t["mode"] == "restore";
    }
    std::vector<Plan> plans;
    testing::PlanOptions options{.chunks = (*json)["chunks"].get<int32_t>()};
    if (restored) {
      plans.push_back(make_restore_range_plan(shape, layers.first, layers.last, options));
    } else {
      for (const char* schedule : {"e-first", "kv-preload", "serial"})
        plans.push_back(make_plan(shape, layers, schedule, options));
    }
    for (Plan& plan : plans) {
      plan.sender = identities[0];
      plan.receiver = identities[1];
      std::vector<float> by_side[2];
      for (MapSide side : kSides) {
        SCOPED_TRACE(fmt::format("{}, {}, {}, {}", c["what"].get<std::string>(), map_form_name(form),
                                 plan.variants[0].scheduler, map_side_name(side)));
        Plan aligned = with_aligned_cuts(plan, form, side, {"maps.safetensors", maps->fingerprint()});
        expect_valid(aligned);
        EXPECT_TRUE(maps->check_plan(path, aligned).ok());
        auto& found = by_side[static_cast<size_t>(side)];
        found = run(**backend, *models[1], aligned, request, side == MapSide::kReceiver ? &*maps : nullptr);
        EXPECT_LT(worst(found, want), 1e-4f);
        ++checked;
      }
      EXPECT_TRUE(same_bits(by_side[0], by_side[1]) || !testing::exact_rows())
          << "who applies the maps makes no difference";
    }
  }
  EXPECT_EQ(checked, 48);
}

INSTANTIATE_TEST_SUITE_P(Models, AlignedOracle, ::testing::Values("llama", "qwen2", "qwen3"));

/// A context that S has, and plans for R that start from S's hidden states.
class Aligned : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    ASSERT_NE(sender.model, nullptr);
    shape = receiver.model->config().shape();
    store = fresh_store("entries");
    request.context = context;
    request.suffix = suffix;
    request.store = store.get();
    maps = random_maps(1, receiver.identity);
    maps_id = {"maps.safetensors", maps.fingerprint()};
  }
  MapSet random_maps(uint64_t seed, const ModelIdentity& to) const {
    MapSet set = make_maps(shape, 3, [&](int64_t layer, const std::string& part, std::vector<float>& v) {
      golden_numbers(layer + static_cast<int64_t>(1000 * seed), part, v);
    });
    set_pair(set, sender.identity, to);
    return set;
  }
  /// Every kind of plan with a cut, in one and in three chunks.
  std::vector<Plan> plans(const ModelIdentity& from, const ModelIdentity& to) const {
    std::vector<Plan> all;
    for (int32_t chunks : {1, 3}) {
      testing::PlanOptions o{.chunks = chunks, .tokens = 333, .dtype = std::string(dtype_name(GetParam()))};
      all.push_back(make_plan(shape, {2, 3}, "e-first", o));
      all.push_back(make_plan(shape, {1, 4}, "serial", o));
      all.push_back(make_restore_range_plan(shape, 1, 4, o));
      all.push_back(make_restore_range_plan(shape, 3, 3, o));
    }
    for (Plan& plan : all) {
      plan.sender = from;
      plan.receiver = to;
    }
    return all;
  }
  Plan aligned(const Plan& plan, MapForm form, MapSide side) const {
    return with_aligned_cuts(plan, form, side, maps_id);
  }
  void publish_cuts(TinyModel& from, const std::vector<Cut>& cuts, const MapSet* set) {
    auto done =
        publish(*from.backend, *from.model, from.identity, context, *store, {.cuts = cuts, .maps = set});
    ASSERT_TRUE(done.ok()) << done.status().message();
  }
  std::vector<Cut> all_cuts() const {
    std::vector<Cut> cuts;
    for (int32_t l = 1; l < shape.layers; ++l)
      for (size_t form = 0; form < kMapForms; ++form) cuts.push_back({l, static_cast<MapForm>(form)});
    return cuts;
  }
  std::vector<float> run_by(const Plan& plan, const MapSet* set, bool plain = false,
                            Answer* answer = nullptr) {
    return run(*receiver.backend, *receiver.model, plan, request, set, plain, answer);
  }

  TinyModel sender{tiny_config(Family::kLlama), 12, GetParam()};
  TinyModel receiver{tiny_config(Family::kLlama), 11, GetParam()};
  Shape shape;
  std::vector<int32_t> context = random_ids(333, 300, 8), suffix = random_ids(6, 300, 9);
  std::unique_ptr<Store> store;
  Request request;
  MapSet maps;
  MapsIdentity maps_id;
};

TEST_P(Aligned, MapsThatAddNothingGiveTheFullPrefillToTheBitWhereSenderIsReceiver) {
  MapSet zero = make_maps(shape, 3, [](int64_t, const std::string&, std::vector<float>&) {});
  set_pair(zero, receiver.identity, receiver.identity);
  maps_id.fingerprint = zero.fingerprint();
  publish_cuts(receiver, all_cuts(), &zero);
  request.full_prefill = true;
  const auto want = run_by(full_prefill_plan(receiver.identity, shape, ""), nullptr);
  request.full_prefill = false;
  for (const Plan& plan : plans(receiver.identity, receiver.identity)) {
    EXPECT_TRUE(same_bits(run_by(plan, nullptr), want));
    for (MapForm form : kForms) {
      for (MapSide side : kSides) {
        SCOPED_TRACE(fmt::format("{} in {} chunks, {} {}", plan.variants[0].policy, plan.variants[0].chunks,
                                 map_form_name(form), map_side_name(side)));
        Plan a = aligned(plan, form, side);
        expect_valid(a);
        EXPECT_TRUE(same_bits(run_by(a, &zero), want));
      }
    }
  }
}

TEST_P(Aligned, WhoAppliesTheMapsMakesNoDifference) {
  publish_cuts(sender, all_cuts(), &maps);
  request.full_prefill = true;
  const auto full = run_by(full_prefill_plan(receiver.identity, shape, ""), nullptr);
  request.full_prefill = false;
  for (const Plan& plan : plans(sender.identity, receiver.identity)) {
    const auto plain = run_by(plan, nullptr);
    for (MapForm form : kForms) {
      SCOPED_TRACE(fmt::format("{} in {} chunks, {}", plan.variants[0].policy, plan.variants[0].chunks,
                               map_form_name(form)));
      Plan here = aligned(plan, form, MapSide::kReceiver), there = aligned(plan, form, MapSide::kSender);
      expect_valid(here);
      expect_valid(there);
      Answer by_receiver, by_sender;
      const auto mapped = run_by(here, &maps, false, &by_receiver);
      EXPECT_TRUE(by_receiver.miss.ok()) << by_receiver.miss.message();
      EXPECT_GT(worst(mapped, plain), 0.01f) << "maps that change nothing test nothing";
      EXPECT_GT(worst(mapped, full), 0.01f);
      EXPECT_TRUE(same_bits(run_by(there, nullptr, false, &by_sender), mapped));
      EXPECT_TRUE(by_sender.miss.ok()) << by_sender.miss.message();
      EXPECT_EQ(by_receiver.bytes_loaded, by_sender.bytes_loaded);
      // Plain cuts are the plan without maps, whoever would have applied them.
      EXPECT_TRUE(same_bits(run_by(here, nullptr, true), plain));
      EXPECT_TRUE(same_bits(run_by(there, nullptr, true), plain));
      EXPECT_TRUE(same_bits(run_by(here, &maps, true), plain));
    }
  }
}

TEST_P(Aligned, ShortContextsLeaveChunksEmpty) {
  context = random_ids(70, 300, 3);  // all in the last of the three chunks
  request.context = context;
  publish_cuts(sender, all_cuts(), &maps);
  Plan plan = plans(sender.identity, receiver.identity)[4];
  ASSERT_EQ(plan.variants[0].chunks, 3);
  auto mapped = run_by(aligned(plan, MapForm::kFull, MapSide::kReceiver), &maps);
  EXPECT_TRUE(same_bits(mapped, run_by(aligned(plan, MapForm::kFull, MapSide::kSender), nullptr)));
  EXPECT_GT(worst(mapped, run_by(plan, nullptr)), 0.01f);
}

INSTANTIATE_TEST_SUITE_P(DTypes, Aligned, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

class AlignedMisses : public Aligned {};
INSTANTIATE_TEST_SUITE_P(DTypes, AlignedMisses, ::testing::Values(DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST_P(AlignedMisses, AnEntryWithoutTheMappedTensorIsACountedMiss) {
  const Plan plain = plans(sender.identity, receiver.identity)[0];
  const Plan plan = aligned(plain, MapForm::kFull, MapSide::kSender);
  request.full_prefill = true;
  const auto full = run_by(plan, nullptr);
  request.full_prefill = false;
  auto expect_miss = [&](const Plan& p, bool plain_option, const std::string& reason) {
    Answer answer;
    EXPECT_TRUE(same_bits(run_by(p, nullptr, plain_option, &answer), full));
    EXPECT_EQ(answer.cache, CacheStatus::kMiss);
    EXPECT_EQ(answer.miss.code(), Code::kNotFound);
    EXPECT_THAT(answer.miss.message(), HasSubstr(reason));
  };
  publish_cuts(sender, plain_cuts({2}), nullptr);
  expect_miss(
      plan, false,
      fmt::format("it has no e(2) through the full map of {:.12}; publish it again with the plan that asks "
                  "for it and that plan's file of maps",
                  maps_id.fingerprint));
  publish_cuts(sender, {{2, MapForm::kDiagonal}}, &maps);
  expect_miss(plan, false, "no e(2) through the full map");
  expect_miss(plain, false, "no e(2); publish it again");
  expect_miss(plan, true, "no e(2); publish it again");  // plain cuts need the plain tensor
  // Of another fit, by name.
  MapSet other = random_maps(2, receiver.identity);
  publish_cuts(sender, {{2, MapForm::kFull}}, &other);
  expect_miss(plan, false, "no e(2) through the full map");
}

TEST_P(AlignedMisses, OneEntryServesSeveralReceivers) {
  TinyModel second(tiny_config(Family::kLlama), 13, GetParam());
  MapSet for_second = random_maps(2, second.identity);
  const std::vector<Cut> cut = {{2, MapForm::kFull}};
  PublishOptions options{.cuts = cut, .maps = &maps};
  options.more = {{{{2, MapForm::kFull}, {2}}, &for_second}, {cut, &maps}, {{{2}}, nullptr}};
  auto done = publish(*sender.backend, *sender.model, sender.identity, context, *store, options);
  ASSERT_TRUE(done.ok()) << done.status().message();
  ASSERT_EQ(done->cuts.size(), 3u) << "each once";
  EXPECT_EQ(done->cuts[0].cut, (Cut{2, MapForm::kNone}));
  EXPECT_EQ(done->cuts[0].maps, "");
  EXPECT_EQ(done->cuts[0].bytes, 333 * 64 * 2);
  EXPECT_EQ(done->cuts[1].cut.form, MapForm::kFull);
  EXPECT_NE(done->cuts[1].maps, done->cuts[2].maps);
  std::vector<float> logits[2];
  for (int i = 0; i < 2; ++i) {
    TinyModel& model = i == 0 ? receiver : second;
    maps_id.fingerprint = (i == 0 ? maps : for_second).fingerprint();
    Plan plan = plans(sender.identity, model.identity)[0];
    request.receiver = &model.identity;
    const auto by_sender =
        run(*model.backend, *model.model, aligned(plan, MapForm::kFull, MapSide::kSender), request, nullptr);
    const auto by_receiver =
        run(*model.backend, *model.model, aligned(plan, MapForm::kFull, MapSide::kReceiver), request,
            i == 0 ? &maps : &for_second);
    EXPECT_TRUE(same_bits(by_sender, by_receiver));
  }
}

TEST_P(AlignedMisses, SessionsAndPublicationsWithoutTheirMapsAreRefused) {
  const Plan plan = aligned(plans(sender.identity, receiver.identity)[0], MapForm::kFull, MapSide::kReceiver);
  auto create = [&](const MapSet* set) {
    auto session = Session::create(*receiver.backend, *receiver.model, plan, {333, 6, 1}, set);
    EXPECT_FALSE(session.ok());
    return session.status();
  };
  Status status = create(nullptr);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("'maps.safetensors' (fingerprint " + maps_id.fingerprint.substr(0, 12)),
                    HasSubstr("--maps"), HasSubstr("--plain-cuts")));
  MapSet changed = maps;
  std::erase_if(changed.maps, [](const AlignmentMap& m) { return m.layer == 2 && m.form == MapForm::kFull; });
  status = create(&changed);
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("no full map of layer 2"));
  changed = maps;
  changed.d_model = 32;
  EXPECT_EQ(create(&changed).code(), Code::kMismatch);

  auto refused = [&](const std::vector<Cut>& cuts, const MapSet* set) {
    auto done = publish(*sender.backend, *sender.model, sender.identity, context, *store,
                        {.cuts = cuts, .maps = set});
    EXPECT_FALSE(done.ok());
    EXPECT_EQ(EntryReader::open(
                  *store, {sender.identity.fingerprint, hash_tokens(context), "", 333, GetParam()}, shape)
                  .status()
                  .code(),
              Code::kNotFound)
        << "a refused publication leaves nothing";
    return done.status();
  };
  status = refused({{2, MapForm::kFull}}, nullptr);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_THAT(status.message(),
              HasSubstr("the cut at layer 2 is to go through a full map, but no maps were given"));
  EXPECT_EQ(refused({{0, MapForm::kFull}}, &maps).code(), Code::kInvalidArgument);
  EXPECT_EQ(refused({{5}}, nullptr).code(), Code::kInvalidArgument);
  changed = maps;
  changed.sender_fingerprint = std::string(64, 'e');
  status = refused({{2, MapForm::kFull}}, &changed);
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), HasSubstr("give maps of this sender"));
  changed = maps;
  changed.layers = 6;
  EXPECT_EQ(refused({{2, MapForm::kFull}}, &changed).code(), Code::kMismatch);
  changed = maps;
  std::erase_if(changed.maps, [](const AlignmentMap& m) { return m.layer == 2; });
  EXPECT_EQ(refused({{2, MapForm::kFull}}, &changed).code(), Code::kNotFound);
}

}  // namespace
}  // namespace ds
