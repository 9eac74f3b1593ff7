// compile(): what it refuses, what its predictions know, and aligned variants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/ranges.h>

#include <cmath>
#include <functional>

#include "compiler/emit/emit.h"
#include "compiler/lowering/lower_tiles.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/sender_times.h"
#include "compiler/scheduling/variant_problem.h"
#include "compiler/select/doubt.h"
#include "compiler/select/variants.h"
#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "plans/traits.h"
#include "tests/unit/compile_inputs.h"

namespace ds {
namespace {

using ::testing::HasSubstr;
using testing::machine;
using testing::profile;
using testing::score;
using testing::some_maps;

TEST(Compile, RefusesContradictionsBeforeItOpensAnything) {
  struct Call : CompileOptions {
    CompileFiles files{.receiver = "/nowhere/r", .sender = "/nowhere/s"};
  };
  auto message = [&](const std::function<void(Call&)>& set) {
    Call o;
    set(o);
    auto r = compile(o.files, o);
    return r.ok() ? std::string("compiled")
                  : fmt::format("{}: {}", code_name(r.status().code()), r.status().message());
  };
  auto refused = [&](const std::function<void(Call&)>& set, std::string_view text) {
    std::string m = message(set);
    EXPECT_THAT(m, ::testing::StartsWith("invalid argument: "));
    EXPECT_THAT(m, HasSubstr(std::string(text)));
  };
  refused([](auto& o) { o.recompute = "1-2", o.policy = "full-reuse"; },
          "--recompute contradicts --policy full-reuse");
  refused([](auto& o) { o.recompute = "1-2", o.slo_loss = 2, o.files.quality = "q"; },
          "--slo-loss contradicts --recompute");
  refused([](auto& o) { o.slo_loss = 2; }, "--slo-loss needs --quality");
  refused([](auto& o) { o.slo_ttft_ms = 2; }, "--slo-ttft-ms needs --quality");
  refused([](auto& o) { o.slo_divergence = "0.1"; }, "--slo-divergence needs --quality");
  refused([](auto& o) { o.slo_divergence = "-1"; },
          "--slo-divergence is '-1', expected nats per token, 0 or more, like 0.05, or least");
  refused([](auto& o) { o.slo_divergence = "0.1x"; }, "--slo-divergence is '0.1x'");
  refused([](auto& o) { o.slo_divergence = "least"; }, "--slo-divergence least needs --slo-ttft-ms");
  refused([](auto& o) { o.slo_divergence = "0.1", o.recompute = "1-2", o.files.quality = "q"; },
          "--slo-divergence contradicts --recompute");
  refused([](auto& o) { o.policy = "full-prefill", o.slo_ttft_ms = 2; },
          "--slo-ttft-ms contradicts --policy full-prefill");
  refused([](auto& o) { o.policy = "full-prefill", o.files.quality = "q"; }, "--quality contradicts");
  refused([](auto& o) { o.files.quality = "q"; }, "--quality needs an objective");
  refused([](auto&) {}, "which layers are to be recomputed?");
  refused([](auto& o) { o.policy = "fastest"; }, "unknown policy 'fastest'");
  refused([](auto& o) { o.policy = "full-reuse", o.schedule = "fast"; }, "--schedule is 'fast'");
  refused([](auto& o) { o.policy = "full-reuse", o.chunks = 0; }, "--chunks is 0");
  refused([](auto& o) { o.policy = "cake", o.recompute = "1-2"; }, "--recompute contradicts --policy cake");
  refused([](auto& o) { o.policy = "select", o.recompute = "1-2"; },
          "--recompute contradicts --policy select");
  refused([](auto& o) { o.policy = "select"; }, "how many tokens are to be selected?");
  refused([](auto& o) { o.policy = "restore"; }, "which layers are to be recomputed?");
  refused([](auto& o) { o.policy = "restore", o.select_share = "10%"; },
          "--select-share contradicts --policy restore");
  refused([](auto& o) { o.recompute = "1-2", o.select_share = "10%"; }, "--select-share contradicts");
  for (const char* share : {"", "%", "0%", "101%", "1.01", "-5%", "15 %", "x", "nan"}) {
    refused([&](auto& o) { o.policy = "select", o.select_share = share; },
            fmt::format("--select-share: bad share '{}'", share));
  }
  refused([](auto& o) { o.policy = "select", o.select_share = "10%", o.files.quality = "q", o.slo_loss = 2; },
          "--slo-loss contradicts --select-share");
  refused([](auto& o) { o.policy = "full-reuse", o.emit = "bytes"; }, "--emit is 'bytes'");
  refused([](auto& o) { o.policy = "full-reuse", o.dtype = "f16"; }, "--dtype is 'f16'");
  refused([](auto& o) { o.policy = "full-reuse", o.link_rates = "20"; }, "--link-rates: bad rate '20'");
  refused([](auto& o) { o.policy = "full-reuse", o.link_rates = "20MB/s,160Mb/s"; }, "--link-rates");
  refused([](auto& o) { o.policy = "full-reuse", o.context_lengths = "9,8"; }, "--context-lengths");
  refused([](auto& o) { o.policy = "full-reuse", o.suffix_length = 0; }, "--suffix-length is 0");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = std::nan(""); }, "--slo-loss is nan");
  refused([](auto& o) { o.files.quality = "q", o.slo_ttft_ms = 0; }, "--slo-ttft-ms is 0");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = 1, o.confidence = 0.5; }, "--confidence is 0.5");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = 1, o.confidence = 1; }, "--confidence is 1");
  refused([](auto& o) { o.recompute = "1-2", o.confidence = 0.9; }, "--confidence needs --quality");
  // What can only be seen in files comes after.
  EXPECT_THAT(message([](auto& o) { o.recompute = "1-2"; }), HasSubstr("not found"));
}

CompileInputs inputs_in_memory(MachineModel machine) {
  CompileInputs in;
  in.pair.config = *preset_config("llama:layers=12,d=512,ff=1408,heads=8,kv=2,vocab=1000");
  for (ModelIdentity* model : {&in.pair.sender, &in.pair.receiver})
    *model = {.name = "m",
              .fingerprint = std::string(64, 'a'),
              .config = std::string(64, 'b'),
              .weights = std::string(64, 'c'),
              .tokenizer = ""};
  in.machine = std::move(machine);
  return in;
}

TEST(Compile, NothingStartsBeforeTheEntryHasBeenFound) {
  MachineModel m = machine();
  m.lookup_ns = 1'000'000;
  m.link_rtt_ns = 500'000;
  // Layers 0 to 5 need no cut, so that their kernels could start at once.
  for (const char* scheduler : {"best", "e-first", "kv-preload", "serial"}) {
    CompileOptions o{.recompute = "0-5", .context_lengths = "1024", .link_rates = "100MB/s"};
    o.schedule = scheduler;
    auto out = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(out.ok()) << out.status().message();
    ASSERT_EQ(out->plan->variants.size(), 1u);
    const Variant& v = out->plan->variants[0];
    int64_t first_kernel = INT64_MAX, first_load = INT64_MAX;
    for (const Op& op : v.ops) {
      bool load = op.kind == OpKind::kTransfer;
      (load ? first_load : first_kernel) = std::min(load ? first_load : first_kernel, op.start_ns);
    }
    EXPECT_EQ(first_load, 1'500'000) << scheduler;
    EXPECT_GE(first_kernel, 1'000'000) << scheduler;
    if (std::string_view(scheduler) == "best") {
      EXPECT_EQ(first_kernel, 1'000'000);
    }
    EXPECT_EQ(out->plan->full_prefill.ops[0].start_ns, 0);

    // A simulation keeps that head start, whatever the rate.
    OperatingPoint at = tuned_point(v);
    EXPECT_EQ(predicted_ttft_ns(*out->plan, v, at), v.makespan_ns) << scheduler;
    auto fast = simulate_variant(*out->plan, v, {at.tokens, at.suffix, int64_t{1} << 50});
    ASSERT_TRUE(fast.ok());
    for (size_t i = 0; i < v.ops.size(); ++i) EXPECT_GE(fast->ops[i].start_ns, 1'000'000) << scheduler << i;
  }
}

TEST(Compile, WhatALiveSenderHasNotShownIsWaitedFor) {
  const MachineModel m = machine();
  const CostModel costs(m, testing::kShape);
  const SenderTimes sender(costs, 1024);
  // Each layer in two pieces of 512 rows; of the last layer only K and V.
  const double first = costs.layer_ns(512, 512, 0), second = costs.layer_ns(512, 512, 512);
  const double layer = first + second;
  const auto all = std::llround(11 * layer + costs.layer_ns(512, 0, 0) + costs.layer_ns(512, 0, 512));
  auto transfer = [](Payload payload, int32_t layer, int32_t chunk) {
    return Op{.kind = OpKind::kTransfer, .payload = payload, .layer = layer, .chunk = chunk};
  };
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 0, 0), 1), std::llround(layer));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 0, 0), 2), std::llround(first));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kE, 3, 0), 1), std::llround(3 * layer + first));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 11, 0), 1), all);
  int64_t best = 0;
  for (const char* scheduler : {"best", "e-first", "kv-preload", "serial"}) {
    SCOPED_TRACE(scheduler);
    CompileOptions o{.recompute = "3-7", .context_lengths = "1024", .link_rates = "1GB/s"};
    o.schedule = scheduler;
    auto plain = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(plain.ok()) << plain.status().message();
    EXPECT_EQ(plain->plan->format_version, kWrittenFormatVersion);
    o.live_sender = true;
    auto out = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(out.ok()) << out.status().message();
    const Plan& plan = *out->plan;
    EXPECT_EQ(plan.format_version, kLiveFormatVersion);
    ASSERT_EQ(plan.variants.size(), 2u);
    EXPECT_EQ(plan.variants[0], plain->plan->variants[0]);
    const Variant& live = plan.variants[1];
    EXPECT_TRUE(live.live);
    for (const Op& op : live.ops)
      if (is_transfer(op)) {
        EXPECT_GE(op.start_ns, sender.ready_ns(op, live.chunks));
      }
    EXPECT_GT(live.makespan_ns, all);
    EXPECT_GT(live.makespan_ns, plan.variants[0].makespan_ns);
    EXPECT_EQ(predicted_ttft_ns(plan, live, tuned_point(live)), live.makespan_ns);
    best = best == 0 ? live.makespan_ns : best;
    EXPECT_LE(best, live.makespan_ns) << "the first was the best";
    EXPECT_EQ(select_variant(plan, 1024, 1'000'000'000), &plan.variants[0]);
    EXPECT_EQ(select_variant(plan, 1024, 1'000'000'000, 0, true), &live);
    EXPECT_EQ(select_variant(*plain->plan, 1024, 1'000'000'000, 0, true), &plain->plan->variants[0]);
    auto read = parse_plan(std::as_bytes(std::span(out->bytes.data(), out->bytes.size())), "it");
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(*read, plan);
    Plan older = plan;
    older.format_version = 5;
    EXPECT_THAT(verify_plan(older, "it").message(), HasSubstr("a live sender, which came with version 6"));
    Plan twice = plan;
    twice.variants.push_back(live);
    twice.variants.back().name = "again";
    EXPECT_THAT(verify_plan(twice, "it").message(), HasSubstr("both cover"));
  }
}

// What a transfer adds to the kernels beside it is added once for each.
TEST(Compile, PredictionsKnowWhatEachTransferAddsToTheKernelsBesideIt) {
  auto kernels_ns = [](int64_t each, int64_t* loads) {
    MachineModel m = machine();
    m.read_bytes_per_s = 1e12;
    m.kernel_ns_per_transfer = each;
    CompileOptions o{.recompute = "3-7", .context_lengths = "2048", .link_rates = "500MB/s"};
    o.schedule = "e-first";
    auto out = compile(inputs_in_memory(m), o);
    EXPECT_TRUE(out.ok()) << out.status().message();
    int64_t sum = 0;
    *loads = 0;
    for (const Op& op : out->plan->variants[0].ops) is_transfer(op) ? * loads += 1 : sum += op.duration_ns;
    return sum;
  };
  int64_t loads = 0;
  const int64_t none = kernels_ns(0, &loads), one = kernels_ns(20'000, &loads) - none,
                three = kernels_ns(60'000, &loads) - none;
  // All kernels but the last run while loads do.
  EXPECT_GT(one, loads * 20'000 / 2);
  EXPECT_LE(one, loads * 20'000);
  EXPECT_NEAR(static_cast<double>(three), 3.0 * static_cast<double>(one), 0.2 * static_cast<double>(one));
}

TEST(Compile, PredictionsKnowSlowdownsAndHandovers) {
  MachineModel quiet = machine(), measured = machine();
  measured.read_bytes_per_s = quiet.read_bytes_per_s = 1e9;
  measured.wakeup_ns = 30'000;
  measured.kernel_slowdown_permille = 800;
  for (const char* scheduler : {"best", "e-first", "cake"}) {
    SCOPED_TRACE(scheduler);
    CompileOptions o{.recompute = "3-7", .context_lengths = "2048", .link_rates = "500MB/s"};
    o.schedule = scheduler;
    auto plain = compile(inputs_in_memory(quiet), o), out = compile(inputs_in_memory(measured), o);
    ASSERT_TRUE(plain.ok() && out.ok()) << plain.status().message() << out.status().message();
    const Variant &before = plain->plan->variants[0], &v = out->plan->variants[0];
    EXPECT_GT(v.makespan_ns, before.makespan_ns);
    EXPECT_LT(v.makespan_ns,
              before.makespan_ns * 14 / 10 + 1'000'000);  // at half the store's speed: 400 permille
    EXPECT_GE(v.lower_bound_ns, before.lower_bound_ns);
    int64_t held = 0, slowed = 0;
    for (const Op& op : v.ops) {
      for (int32_t w : op.waits) {
        const Op& other = v.ops[static_cast<size_t>(w)];
        if (other.stream == op.stream) continue;
        EXPECT_GE(op.start_ns, other.start_ns + other.duration_ns + 30'000);
        held += op.start_ns == other.start_ns + other.duration_ns + 30'000;
      }
      auto same = std::find_if(before.ops.begin(), before.ops.end(), [&](const Op& b) {
        return b.kind == op.kind && b.layer == op.layer && b.chunk == op.chunk && b.rows == op.rows;
      });
      ASSERT_NE(same, before.ops.end());
      slowed += op.duration_ns > same->duration_ns;
      EXPECT_GE(op.duration_ns, same->duration_ns);
      EXPECT_LE(op.duration_ns, same->duration_ns * 14 / 10 + 1);
      if (is_transfer(op)) {
        EXPECT_EQ(op.duration_ns, same->duration_ns);
      }
    }
    EXPECT_GT(held, 0);
    EXPECT_GT(slowed, 0);
    // A simulation keeps both.
    EXPECT_EQ(predicted_ttft_ns(*out->plan, v, tuned_point(v)), v.makespan_ns);
    EXPECT_GT(predicted_ttft_ns(*out->plan, v, {2048, v.tuned_suffix, 100'000'000}), v.makespan_ns);
    // Without loads nothing is slowed, nor handed over.
    EXPECT_EQ(out->plan->full_prefill.makespan_ns, plain->plan->full_prefill.makespan_ns);
  }
}

/// Inputs with maps for every layer above 0, of every form.
CompileInputs inputs_with_maps() {
  CompileInputs in = inputs_in_memory(machine());
  std::vector<std::pair<int64_t, MapForm>> every;
  for (int64_t l = 1; l < 12; ++l)
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) every.push_back({l, form});
  in.maps = some_maps(every);
  in.maps_identity = {"m.safetensors", std::string(64, 'd')};
  in.files.push_back({"maps", "m.safetensors", std::string(64, 'e')});
  return in;
}

TEST(Compile, AlignedVariantsAreRightUnderEveryScheduler) {
  const CompileInputs in = inputs_with_maps();
  for (const char* scheduler :
       {"best", "e-first", "kv-first", "kv-preload", "serial", "cake", "two-pointer"}) {
    for (const char* form : {"full", "low-rank", "diagonal"}) {
      for (const char* side : {"receiver", "sender"}) {
        for (const char* policy : {"droidspeak", "balanced", "restore"}) {
          SCOPED_TRACE(fmt::format("{} {} {} {}", scheduler, form, side, policy));
          CompileOptions o{
              .recompute = "3-6", .policy = policy, .context_lengths = "2048", .link_rates = "100MB/s"};
          o.schedule = scheduler;
          o.align = form;
          o.align_side = side;
          o.chunks = 4;
          auto out = compile(in, o);  // verifies the plan
          ASSERT_TRUE(out.ok()) << out.status().message();
          const Variant& v = out->plan->variants[0];
          EXPECT_EQ(map_form_name(v.map_form), form);
          EXPECT_EQ(map_side_name(v.map_side), side);
          EXPECT_EQ(out->plan->maps, in.maps_identity);
          int64_t sent = 0, mapped = 0;
          for (const Op& op : v.ops) {
            sent += op.payload == Payload::kE;
            mapped += op.kind == OpKind::kAlign;
          }
          EXPECT_GT(sent, 0);
          EXPECT_EQ(mapped, v.aligns() ? sent : 0);
          auto text = plan_to_mlir(*out->plan);
          ASSERT_TRUE(text.ok()) << text.status().message();
          auto again = plan_from_mlir(*text, "text");
          ASSERT_TRUE(again.ok()) << again.status().message();
          EXPECT_EQ(serialize_plan(*again), out->bytes);
          EXPECT_EQ(compile(in, o)->bytes, out->bytes);
        }
      }
    }
  }
}

TEST(Compile, TheSenderMapsForOneReceiverWhereThatPays) {
  CompileInputs in = inputs_with_maps();
  auto side_of = [&](CompileOptions o, std::string* flags = nullptr) {
    o.recompute = "3-6";
    o.context_lengths = "2048";
    o.align = "full";
    auto out = compile(in, o);
    EXPECT_TRUE(out.ok()) << out.status().message();
    if (!out.ok()) return MapSide::kReceiver;
    if (flags) *flags = out->plan->provenance.flags + fmt::format("{}", fmt::join(out->notes, "; "));
    return out->plan->variants[0].map_side;
  };
  CompileOptions fast{.link_rates = "10GB/s"}, slow{.link_rates = "10MB/s"}, shared = fast, named = fast;
  fast.chunks = slow.chunks = shared.chunks = named.chunks = 1;
  shared.receivers = 2;
  named.align_side = "receiver";
  std::string text;
  // With a fast link a kernel is what everything waits for; with a slow one nobody notices it.
  EXPECT_EQ(side_of(fast, &text), MapSide::kSender);
  EXPECT_THAT(text, HasSubstr("--align full --align-side auto --receivers 1"));
  EXPECT_THAT(text, HasSubstr("the sender applies the maps"));
  EXPECT_EQ(side_of(slow), MapSide::kReceiver);
  EXPECT_EQ(side_of(shared), MapSide::kReceiver);
  EXPECT_EQ(side_of(named), MapSide::kReceiver);
  named.align_side = "sender";
  named.link_rates = "10MB/s";
  EXPECT_EQ(side_of(named), MapSide::kSender);
}

TEST(Compile, MapsAreCheckedAgainstWhatWasAskedFor) {
  CompileInputs in = inputs_with_maps();
  std::erase_if(in.maps->maps, [](const AlignmentMap& m) {
    return m.form == MapForm::kDiagonal || (m.layer == 3 && m.form == MapForm::kFull);
  });
  auto message = [&](const std::function<void(CompileOptions&)>& set) {
    CompileOptions o{.recompute = "3-6", .context_lengths = "2048", .link_rates = "100MB/s"};
    o.align = "full";
    set(o);
    auto out = compile(in, o);
    return out.ok() ? "ok" : out.status().message();
  };
  EXPECT_EQ(message([](CompileOptions& o) { o.recompute = "4-6"; }), "ok");
  EXPECT_THAT(
      message([](CompileOptions&) {}),
      HasSubstr("--align full: maps 'm.safetensors' have no full map for layer 3; they have one for layers "
                "1, 2, 4, 5"));
  EXPECT_THAT(message([](CompileOptions& o) { o.policy = "restore", o.recompute = "0-3"; }),
              HasSubstr("have no full map for layer 3"));
  EXPECT_EQ(message([](CompileOptions& o) { o.policy = "restore", o.recompute = "0-2"; }), "ok");
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "diagonal"; }),
              HasSubstr("have no diagonal map; they have one for no layer"));
  EXPECT_THAT(
      message([](CompileOptions& o) { o.recompute = "0-3"; }),
      HasSubstr("--align full contradicts --recompute 0-3: that starts from the receiver's own embeddings"));
  EXPECT_THAT(message([](CompileOptions& o) { o.policy = "cake", o.recompute.reset(); }),
              HasSubstr("--align full contradicts --policy cake"));
  // In auto, what there is no map for is no candidate.
  EXPECT_EQ(message([](CompileOptions& o) { o.align = "auto"; }), "ok");
  in.maps.reset();
  EXPECT_THAT(message([](CompileOptions&) {}), HasSubstr("--align full needs --maps FILE"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "half"; }),
              HasSubstr("--align is 'half', expected one of auto, none, full, low-rank, diagonal"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.align_side = "both"; }),
              HasSubstr("--align-side is 'both'"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.receivers = 0; }),
              HasSubstr("--receivers is 0"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.align_fallback = "none"; }),
              HasSubstr("--align-fallback is 'none', expected one of plain"));
}

TEST(Compile, TheProfilesLossesHoldForItsMaps) {
  CompileInputs in = inputs_with_maps();
  in.quality = profile();
  score(*in.quality, Way::group({3, 7}).aligned(MapForm::kFull), 0.5);
  in.quality->maps = {"m.safetensors", in.maps_identity.fingerprint};
  CompileOptions o{.policy = "droidspeak", .slo_loss = 1, .context_lengths = "2048", .link_rates = "10GB/s"};
  o.receivers = 4;
  auto out = compile(in, o);
  ASSERT_TRUE(out.ok()) << out.status().message();
  const Variant& v = out->plan->variants[0];
  EXPECT_EQ(v.way, "recompute 3-7 aligned");
  EXPECT_EQ(v.promise.quality_loss, 0.5);
  EXPECT_TRUE(v.aligns());
  // None is aligned: as without maps.
  o.align = "none";
  auto plain = compile(in, o);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->plan->variants[0].way, "recompute 2-8");
  EXPECT_EQ(plain->plan->maps, MapsIdentity{});
  // Other maps than it was scored with.
  o.align = "auto";
  in.quality->maps = {"other.safetensors", std::string(64, 'f')};
  auto mismatch = compile(in, o);
  EXPECT_EQ(mismatch.status().code(), Code::kMismatch);
  EXPECT_THAT(mismatch.status().message(),
              ::testing::AllOf(HasSubstr("maps 'm.safetensors' have fingerprint dddddddddddd"),
                               HasSubstr("scored with 'other.safetensors' (ffffffffffff)")));
  o.align_fallback = "plain";
  auto fallen = compile(in, o);
  ASSERT_TRUE(fallen.ok()) << fallen.status().message();
  EXPECT_EQ(fallen->plan->variants[0].way, "recompute 2-8");
  EXPECT_THAT(fallen->notes,
              ::testing::Contains(HasSubstr("no cut is aligned (--align-fallback plain): maps")));
  EXPECT_THAT(fallen->plan->provenance.flags, HasSubstr("--align-fallback plain"));
  // A profile that knows nothing of maps does no harm, and no good.
  in.quality = profile();
  o.align_fallback.reset();
  auto unscored = compile(in, o);
  ASSERT_TRUE(unscored.ok()) << unscored.status().message();
  EXPECT_EQ(unscored->plan->variants[0].way, "recompute 2-8");
  EXPECT_THAT(unscored->notes,
              ::testing::Contains(HasSubstr("are not used: the profile has scored no aligned way")));
}

TEST(Compile, TakesInputsThatWereReadBefore) {
  CompileInputs in = inputs_in_memory(machine());
  CompileOptions o{.policy = "balanced", .slo_loss = 3};
  EXPECT_THAT(compile(in, o).status().message(), HasSubstr("needs --quality"));
  in.quality = profile();
  auto once = compile(in, o), again = compile(in, o);
  ASSERT_TRUE(once.ok()) << once.status().message();
  EXPECT_EQ(once->bytes, again->bytes);
  EXPECT_THAT(once->notes, ::testing::ElementsAre(HasSubstr("times: ")));
  EXPECT_GT(once->times.choose_ns, 0);
  EXPECT_GT(once->times.schedule_ns, 0);
  for (const Variant& v : once->plan->variants) {
    EXPECT_THAT(v.way, ::testing::AnyOf("full prefill", "recompute 3-7", "recompute 2-8"));
    EXPECT_EQ(v.promise.loss_stderr, v.way == "full prefill" ? 0 : 1);
    EXPECT_TRUE(std::isnan(v.promise.loss_bound));
  }
  CompileOptions sure = o;
  sure.confidence = 0.95;
  auto bounded = compile(in, sure);
  ASSERT_TRUE(bounded.ok()) << bounded.status().message();
  EXPECT_THAT(bounded->plan->provenance.flags, HasSubstr("--confidence 0.95"));
  for (const Variant& v : bounded->plan->variants) {
    EXPECT_EQ(v.promise.confidence, 0.95);
    EXPECT_LE(v.promise.loss_bound, 3);
    EXPECT_THAT(v.why, HasSubstr("with 95 % confidence"));
  }
  in.machine.reset();
  auto stand_in = compile(in, o);
  ASSERT_TRUE(stand_in.ok());
  EXPECT_THAT(stand_in->plan->provenance.flags, HasSubstr("stand-in"));
}

TEST(Compile, SaysWhatTheProfileCannotTell) {
  CompileInputs in = inputs_in_memory(machine());
  in.quality = profile();
  for (WayScore& w : in.quality->ways) {
    w.contexts = 30;
    w.divergence = {w.way.is_full_reuse() ? 0.17 : 0.158, 0.01};
    w.loss.standard_error = w.way == Way::group({3, 7}) ? 6 : 5;
  }
  CompileOptions o{.slo_loss = 3};
  auto doubtful = compile(in, o);
  ASSERT_TRUE(doubtful.ok()) << doubtful.status().message();
  ASSERT_EQ(doubtful->warnings.size(), 1u);
  EXPECT_THAT(
      doubtful->warnings[0],
      HasSubstr("the profile cannot tell whether 'recompute 3-7' loses at most 3 points: 2.0 ± 6.0 over 30 "
                "contexts; about 3,000 contexts would tell. The same holds of"));
  EXPECT_THAT(doubtful->warnings[0],
              HasSubstr("Its divergence is 93 % of full reuse's (0.158 of 0.17 nats per token)"));
  EXPECT_THAT(doubtful->warnings[0], HasSubstr("--confidence 0.95"));
  EXPECT_THAT(doubtful->warnings[0], HasSubstr("--slo-divergence"));
  o.confidence = 0.95;
  auto sure = compile(in, o);
  ASSERT_TRUE(sure.ok()) << sure.status().message();
  EXPECT_TRUE(sure->warnings.empty());
  o.confidence.reset();
  for (WayScore& w : in.quality->ways) w.loss.standard_error = 0.5;
  EXPECT_TRUE(compile(in, o)->warnings.empty());
  // The same of a divergence.
  o = {.slo_divergence = "0.16"};
  auto close = compile(in, o);
  ASSERT_TRUE(close.ok()) << close.status().message();
  ASSERT_EQ(close->warnings.size(), 1u);
  EXPECT_THAT(close->warnings[0], HasSubstr("diverges by at most 0.16 nats per token: 0.1580 ± 0.0100"));
  for (const Variant& v : close->plan->variants) EXPECT_LE(v.promise.divergence, 0.16);
  EXPECT_EQ(close->plan->full_prefill.promise.divergence, 0);
  EXPECT_THAT(close->plan->provenance.flags, HasSubstr("--slo-divergence 0.16"));
}

}  // namespace
}  // namespace ds
