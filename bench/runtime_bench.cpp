// What the runtime adds to its kernels: loading a plan, choosing a variant, the executor's cost per op, and
// one request by a session and through an engine.
#include <benchmark/benchmark.h>

#include <unistd.h>

#include <filesystem>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "runtime/backends/backends.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/engine.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

Plan big_plan() {
  Shape shape = testing::small_shape(80);
  testing::PlanOptions options;
  options.chunks = 16;
  return testing::make_plan(shape, {20, 40}, "e-first", options);
}

void read_and_verify_plan(benchmark::State& state) {
  std::string bytes = serialize_plan(big_plan());
  for (auto _ : state) {
    auto plan = parse_plan(std::as_bytes(std::span(bytes.data(), bytes.size())), "bench");
    if (!plan.ok()) state.SkipWithError(plan.status().message().c_str());
    benchmark::DoNotOptimize(plan);
  }
  state.counters["bytes"] = static_cast<double>(bytes.size());
}
BENCHMARK(read_and_verify_plan)->Unit(benchmark::kMicrosecond);

void choose_variant(benchmark::State& state) {
  Plan plan;
  for (int64_t i = 0; i < 20; ++i) {
    Variant v;
    v.tokens_min = 1 + 1000 * (i / 4);
    v.tokens_max = 1 + 1000 * (i / 4 + 1);
    v.rate_min = 1'000'000 * (i % 4);
    v.rate_max = i % 4 == 3 ? kNoLimit : 1'000'000 * (i % 4 + 1);
    plan.variants.push_back(std::move(v));
  }
  int64_t n = 0;
  for (auto _ : state) {
    n += 997;
    benchmark::DoNotOptimize(select_variant(plan, 1 + n % 5000, n * 1000 % 5'000'000));
  }
}
BENCHMARK(choose_variant);

void nothing(void*, int64_t) {}

/// Ops that do nothing, as a session enqueues them: wait, begin, run, end. Each waits for the one before it,
/// on one stream (Arg 0) or across two threads in turn (Arg 1), where an op costs a wake-up.
void executor_op(benchmark::State& state) {
  constexpr int kOps = 256;
  auto backend = make_cpu_backend().value();
  std::unique_ptr<CommandStream> streams[2] = {backend->make_stream(StreamKind::kLink, 4 * kOps).value(),
                                               backend->make_stream(StreamKind::kCompute, 4 * kOps).value()};
  std::vector<std::unique_ptr<Event>> begun, ended;
  for (int i = 0; i < kOps; ++i) {
    begun.push_back(backend->make_event().value());
    ended.push_back(backend->make_event().value());
  }
  for (auto _ : state) {
    for (int i = 0; i < kOps; ++i) {
      begun[static_cast<size_t>(i)]->reset();
      ended[static_cast<size_t>(i)]->reset();
    }
    for (int i = 0; i < kOps; ++i) {
      CommandStream& stream = *streams[state.range(0) == 1 ? i % 2 : 1];
      if (i > 0 && state.range(0) == 1) stream.wait(*ended[static_cast<size_t>(i - 1)]);
      stream.record(*begun[static_cast<size_t>(i)]);
      stream.host({&nothing, nullptr, 0});
      stream.record(*ended[static_cast<size_t>(i)]);
    }
    for (auto& stream : streams) {
      if (!stream->synchronize().ok()) state.SkipWithError("a stream failed");
    }
  }
  state.SetItemsProcessed(state.iterations() * kOps);
  state.counters["per_op"] = benchmark::Counter(static_cast<double>(state.iterations()) * kOps,
                                                benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(executor_op)->Arg(0)->Arg(1)->UseRealTime()->Unit(benchmark::kMicrosecond);

/// Arg 0: by a session (0) or through an engine (1). Arg 1: a full prefill (0) or a plan (1). Arg 2: d_model.
void one_request(benchmark::State& state) {
  ModelConfig config;
  config.layers = 12;
  config.d_model = state.range(2);
  config.ff = 2 * config.d_model;
  config.heads = config.d_model / 32;
  config.kv_heads = config.heads / 2;
  config.head_dim = 32;
  config.vocab = 1000;
  config.max_positions = 4096;
  config.rms_norm_eps = 1e-5;
  auto backend = make_cpu_backend().value();
  auto model = backend->load_random(config, {.dtype = DType::kBF16}, 1).value();
  Plan plan = testing::make_plan(config.shape(), {4, 7}, "e-first");
  const std::string folder = "/dev/shm/ds-runtime-bench-" + std::to_string(getpid());
  auto store = open_store("file:" + folder).value();
  std::vector<int32_t> context(256), suffix(16);
  for (size_t i = 0; i < context.size(); ++i) context[i] = static_cast<int32_t>(i * 7 % 1000);
  (void)publish(*backend, *model, plan.sender, context, *store, {.cuts = {{4}}}).value();
  constexpr int64_t kNewTokens = 4;
  const bool by_plan = state.range(1) == 1;
  auto session = Session::create(*backend, *model, plan, {256, 16, kNewTokens}).value();
  Request request;
  request.context = context;
  request.suffix = suffix;
  request.store = store.get();
  request.full_prefill = !by_plan;
  request.max_new_tokens = kNewTokens;
  auto engine =
      Engine::create(*backend, {.cache_bytes = 1 << 30, .tokens = 512, .prefix_cache = false}).value();
  const ReceiverPlan plans[] = {{&plan, nullptr}};
  const Receiver* receiver = engine->add(Receiver::create("r", *model, plan.receiver, plans).value()).value();
  EngineRequest asked{.receiver = receiver, .context = context, .suffix = suffix, .store = store.get()};
  asked.reuse = by_plan ? Reuse::kAuto : Reuse::kOff;
  asked.max_new_tokens = kNewTokens;
  const bool through_engine = state.range(0) == 1;
  for (auto _ : state) {
    auto answer = through_engine ? Result<Answer>(engine->submit(asked).value()->wait().value())
                                 : session->run(request);
    if (!answer.ok() || (by_plan && answer->cache != CacheStatus::kHit))
      state.SkipWithError(answer.ok() ? answer->miss.message().c_str() : answer.status().message().c_str());
  }
  std::filesystem::remove_all(folder);
}
BENCHMARK(one_request)
    ->ArgNames({"engine", "plan", "d"})
    ->ArgsProduct({{0, 1}, {0, 1}, {64, 256, 512}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// Attention of a step that decodes 16 sequences of 4,096 tokens, of a 1B shape's layer: over one context
/// that they share (Arg 1), or 16 of their own (Arg 0). Time is the attention's alone.
void decode_attention(benchmark::State& state) {
  ModelConfig config;
  config.layers = 1;
  config.d_model = 2048;
  config.ff = 8192;
  config.heads = 32;
  config.kv_heads = 8;
  config.head_dim = 64;
  config.vocab = 1000;
  config.max_positions = 8192;
  config.rms_norm_eps = 1e-5;
  constexpr int64_t kTokens = 4096, kBatch = 16, kOwn = 64;
  const bool shared = state.range(0) == 1;
  auto backend = make_cpu_backend().value();
  auto model = backend->load_random(config, {.dtype = DType::kBF16}, 1).value();
  auto workspace = model->make_workspace(kTokens + kOwn).value();
  auto stream = backend->make_stream(StreamKind::kCompute, 64).value();
  const int64_t row = config.kv_row() * 2;
  std::vector<std::unique_ptr<DeviceMemory>> caches;
  for (int64_t i = 0; i < (shared ? 1 : kBatch); ++i)
    caches.push_back(backend->allocate((kTokens + kOwn) * row).value());
  auto own = backend->allocate(kBatch * kOwn * row).value();
  auto hidden = backend->allocate(kBatch * config.d_model * 2).value();
  std::vector<int32_t> ids(kBatch, 7);
  std::vector<SequenceRows> sequences;
  for (int64_t i = 0; i < kBatch; ++i) {
    SequenceRows s{.position = kTokens};
    s.cache = shared ? own->data() + i * kOwn * row : caches[static_cast<size_t>(i)]->data();
    if (shared) {
      s.prefix = caches[0]->data();
      s.prefix_rows = kTokens;
    }
    sequences.push_back(s);
  }
  PhaseTimes times;
  model->set_profile(&times);
  double packing = 0;
  for (auto _ : state) {
    times = {};
    model->embed(*stream, ids.data(), kBatch, hidden->data());
    model->layer_batch(*stream, *workspace, 0, hidden->data(), sequences);
    if (Status status = stream->synchronize(); !status.ok()) state.SkipWithError(status.message().c_str());
    state.SetIterationTime(static_cast<double>(times[Phase::kAttention] + times[Phase::kAttentionPack]) /
                           1e9);
    packing += static_cast<double>(times[Phase::kAttentionPack]) / 1e3;
  }
  state.counters["packing_us"] = benchmark::Counter(packing, benchmark::Counter::kAvgIterations);
}
BENCHMARK(decode_attention)
    ->ArgName("shared")
    ->Arg(0)
    ->Arg(1)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace ds
