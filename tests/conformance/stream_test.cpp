// Streams and events: order, time, failures, and what is refused.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

struct Log {
  std::atomic<int> next{0};
  std::atomic<int> at[8] = {};
  static void call(void* context, int64_t argument) {
    auto* log = static_cast<Log*>(context);
    log->at[argument] = ++log->next;
  }
};

TEST_P(Conformance, StreamsKeepOrderAndMeetAtEvents) {
  auto backend = take(GetParam().make());
  auto link = take(backend->make_stream(StreamKind::kLink, 64));
  auto compute = take(backend->make_stream(StreamKind::kCompute, 64));
  auto a = take(backend->make_event()), b = take(backend->make_event()), c = take(backend->make_event());
  for (int round = 0; round < 200; ++round) {
    Log log;
    for (auto* event : {a.get(), b.get(), c.get()}) {
      event->reset();
      ASSERT_FALSE(event->done());
    }
    compute->wait(*a);  // enqueued before what it waits for
    compute->host({Log::call, &log, 2});
    compute->record(*b);
    link->host({Log::call, &log, 0});
    link->host({Log::call, &log, 1});
    link->record(*a);
    link->wait(*b);
    link->host({Log::call, &log, 3});
    link->record(*c);
    ASSERT_OK(link->synchronize());
    ASSERT_OK(compute->synchronize());
    for (int i = 0; i < 4; ++i) ASSERT_EQ(log.at[i].load(), i + 1) << "round " << round;
    ASSERT_TRUE(a->done() && b->done() && c->done());
    ASSERT_LE(a->time_ns(), b->time_ns());
    ASSERT_LE(b->time_ns(), c->time_ns());
  }
}

TEST_P(Conformance, EventTimesAreOfTheSteadyClock) {
  auto now = [] {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  auto backend = take(GetParam().make());
  auto link = take(backend->make_stream(StreamKind::kLink, 8));
  auto begin = take(backend->make_event()), end = take(backend->make_event());
  int64_t before = now();
  link->record(*begin);
  link->host(
      {[](void*, int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }, nullptr, 0});
  link->record(*end);
  EXPECT_LT(now() - before, 15'000'000) << "enqueuing must not wait for what is enqueued";
  ASSERT_OK(link->synchronize());
  EXPECT_GE(begin->time_ns(), before);
  EXPECT_GE(end->time_ns() - begin->time_ns(), 20'000'000);
  EXPECT_LE(end->time_ns(), now());
}

TEST_P(Conformance, TransfersRunWhileKernelsRun) {
  // The compute stream waits for a host task on the link that itself waits until kernels have run: only with
  // streams that are concurrent does this end.
  Rig rig(GetParam(), small(Family::kLlama), 64);
  rig.fill_hidden(5);
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  auto kernels_ran = take(rig.backend->make_event()), transferred = take(rig.backend->make_event());
  struct Context {
    Event* kernels_ran;
    bool seen = false;
  } context{kernels_ran.get()};
  link->host({[](void* pointer, int64_t) {
                auto* c = static_cast<Context*>(pointer);
                for (int i = 0; i < 20000 && !c->kernels_ran->done(); ++i)
                  std::this_thread::sleep_for(std::chrono::milliseconds(1));
                c->seen = c->kernels_ran->done();
              },
              &context, 0});
  link->record(*transferred);
  rig.enqueue(0, 0, 64, 64);
  rig.stream->record(*kernels_ran);
  rig.stream->wait(*transferred);
  rig.enqueue(1, 0, 64, 64);
  ASSERT_OK(rig.stream->synchronize());
  ASSERT_OK(link->synchronize());
  EXPECT_TRUE(context.seen);
}

TEST_P(Conformance, CopiesRunInOrder) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 16));
  auto memory = take(backend->allocate(1 << 20));
  std::vector<std::byte> source(1 << 20, std::byte{7}), back(1 << 20);
  stream->copy(memory->data(), source.data(), 1 << 20);
  stream->copy(memory->data() + 10, memory->data() + 100, 5);
  stream->copy(back.data(), memory->data(), 1 << 20);
  stream->copy(back.data() + 1, back.data(), 0);
  ASSERT_OK(stream->synchronize());
  EXPECT_TRUE(back == source);
}

TEST_P(Conformance, CancelSkipsWorkButCompletesEvents) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 16));
  auto gate = take(rig.backend->make_event()), end = take(rig.backend->make_event());
  Log log;
  rig.fill_hidden(5);
  auto hidden = rig.hidden_bytes();
  rig.stream->wait(*gate);
  rig.enqueue(0, 0, 16, 16);
  rig.stream->host({Log::call, &log, 0});
  rig.stream->copy(rig.hidden->data(), rig.hidden->data() + 64, 64);
  rig.stream->record(*end);
  rig.stream->cancel();
  link->record(*gate);
  ASSERT_OK(rig.stream->synchronize());
  ASSERT_OK(link->synchronize());
  EXPECT_TRUE(end->done());
  if (rig.backend->host_visible()) {  // what a device has been given already runs
    EXPECT_EQ(log.at[0].load(), 0);
    EXPECT_TRUE(rig.hidden_bytes() == hidden);
  }
  rig.fill_hidden(5);
  log.at[0] = 0;
  rig.enqueue(0, 0, 16, 16);  // and works again after synchronize()
  rig.stream->host({Log::call, &log, 0});
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_EQ(log.at[0].load(), 1);
  EXPECT_FALSE(rig.hidden_bytes() == hidden);
}

TEST_P(Conformance, FirstFailureIsReportedOnceAndNobodyHangs) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  auto other = take(rig.backend->make_stream(StreamKind::kCompute, 16));
  auto end = take(rig.backend->make_event());
  Log log;
  const int32_t ids[] = {5, -1};
  rig.model->embed(*rig.stream, ids, 2, rig.hidden->data());
  rig.stream->host({Log::call, &log, 0});
  rig.stream->record(*end);
  other->wait(*end);
  ASSERT_OK(other->synchronize());
  Status status = rig.stream->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("-1"), std::string::npos) << status.message();
  EXPECT_EQ(log.at[0].load(), 0) << "work after a failure is skipped";
  EXPECT_TRUE(rig.stream->synchronize().ok()) << "a failure is reported once";
}

TEST_P(Conformance, ImpossibleCallsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  LayerCall good{.layer = 0,
                 .hidden = rig.hidden->data(),
                 .cache = rig.cache->data(),
                 .position = 0,
                 .rows = 4,
                 .query_rows = 4};
  auto expect_refused = [&](const char* what, auto change) {
    LayerCall call = good;
    change(call);
    rig.model->layer(*rig.stream, *rig.workspace, call);
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << what;
    EXPECT_NE(status.message().find("layer"), std::string::npos) << status.message();
  };
  expect_refused("layer below", [](LayerCall& c) { c.layer = -1; });
  expect_refused("layer above", [](LayerCall& c) { c.layer = 2; });
  expect_refused("no rows", [](LayerCall& c) { c.rows = c.query_rows = 0; });
  expect_refused("more queries than rows", [](LayerCall& c) { c.query_rows = 5; });
  expect_refused("past the workspace", [](LayerCall& c) { c.position = 29; });
  expect_refused("negative position", [](LayerCall& c) { c.position = -1; });
  expect_refused("no hidden states", [](LayerCall& c) { c.hidden = nullptr; });
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  rig.model->layer(*link, *rig.workspace, good);
  Status status = link->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("link"), std::string::npos) << status.message();
}

TEST_P(Conformance, MoreCommandsThanCapacityAreReported) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kLink, 2));
  auto gate = take(backend->make_event()), late = take(backend->make_event());
  auto opener = take(backend->make_stream(StreamKind::kLink, 2));
  Log log;
  stream->wait(*gate);
  stream->host({Log::call, &log, 0});
  stream->host({Log::call, &log, 1});
  stream->record(*late);
  opener->record(*gate);
  ASSERT_OK(opener->synchronize());
  Status status = stream->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("2 commands"), std::string::npos) << status.message();
  EXPECT_TRUE(late->done());
  EXPECT_FALSE(backend->make_stream(StreamKind::kLink, 0).ok());
}

TEST_P(Conformance, TwoModelsRunAtOnce) {
  Rig a(GetParam(), small(Family::kLlama), 130, DType::kBF16, 1),
      b(GetParam(), small(Family::kQwen3), 130, DType::kBF16, 2);
  a.fill_hidden(5);
  b.fill_hidden(5);
  a.enqueue(0, 0, 130, 130);
  ASSERT_OK(a.stream->synchronize());
  b.enqueue(0, 0, 130, 130);
  ASSERT_OK(b.stream->synchronize());
  auto alone_a = a.hidden_bytes(), alone_b = b.hidden_bytes();
  for (int i = 0; i < 5; ++i) {
    a.fill_hidden(5);
    b.fill_hidden(5);
    a.enqueue(0, 0, 130, 130);
    b.enqueue(0, 0, 130, 130);
    ASSERT_OK(a.stream->synchronize());
    ASSERT_OK(b.stream->synchronize());
    EXPECT_TRUE(a.hidden_bytes() == alone_a && b.hidden_bytes() == alone_b);
  }
}

}  // namespace
}  // namespace ds::conformance
