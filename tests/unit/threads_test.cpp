// Which threads the CPU backend has, and where they run.
#include <gtest/gtest.h>
#include <omp.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <set>
#include <thread>

#include "runtime/backends/backends.h"
#include "runtime/backends/host/team_internal.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using testing::take;
using testing::tiny_config;

int64_t threads_that_live() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return std::distance(begin(tasks), end(tasks));
}

/// Whether so many are left, once those that end have ended.
bool left(int64_t threads) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (threads_that_live() != threads)
    if (std::chrono::steady_clock::now() > end) return false;
  return true;
}

cpu_set_t own_cores() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  return set;
}

void run_on(CommandStream& stream, std::function<void()> what) {
  stream.host({[](void* context, int64_t) { (*static_cast<std::function<void()>*>(context))(); }, &what, 0});
  ASSERT_TRUE(stream.synchronize().ok());
}

// More threads of teams than cores make every parallel region sleep (support/brief_team.h).
TEST(Threads, LoadingAndMeasuringLeaveNone) {
  const int64_t before = threads_that_live();
  auto backend = take(make_cpu_backend({3}));
  EXPECT_FALSE(backend->description().empty());
  EXPECT_GT(take(backend->measure_read_bandwidth()), 0);
  EXPECT_GT(take(backend->measure_matmul_flops(DType::kF32)), 0);
  auto large = take(backend->allocate(int64_t{80} << 20));
  auto model = take(backend->load_random(tiny_config(Family::kLlama), {}, 1));
  EXPECT_TRUE(left(before)) << threads_that_live() << " threads, " << before << " before";
}

TEST(Threads, AComputeStreamHasItsTeamAndNoMore) {
  auto backend = take(make_cpu_backend({3}));
  const int64_t before = threads_that_live();
  {
    auto stream = take(backend->make_stream(StreamKind::kCompute, 4));
    run_on(*stream, [] {
      std::atomic<int> ran = 0;
#pragma omp parallel
      ++ran;
      EXPECT_EQ(ran, 3);
    });
    EXPECT_EQ(threads_that_live(), before + 3);
  }
  EXPECT_TRUE(left(before)) << threads_that_live() << " threads, " << before << " before";
}

TEST(Threads, ATeamWithAllCoresHasOneForEachOfItsThreads) {
  const cpu_set_t all = own_cores();
  const int cores = CPU_COUNT(&all);
  for (const int threads : {cores, std::max(1, cores - 1)}) {
    auto backend = take(make_cpu_backend({threads}));
    auto stream = take(backend->make_stream(StreamKind::kCompute, 4));
    std::atomic<int> alone = 0;
    cpu_set_t together;
    CPU_ZERO(&together);
    run_on(*stream, [&] {
#pragma omp parallel
      {
        const cpu_set_t own = own_cores();
        if (CPU_COUNT(&own) == 1) ++alone;
#pragma omp critical
        CPU_OR(&together, &together, &own);
      }
    });
    EXPECT_TRUE(CPU_EQUAL(&together, &all));
    EXPECT_EQ(alone, threads == cores ? cores : 0) << threads << " threads on " << cores << " cores";
  }
  const cpu_set_t now = own_cores();
  EXPECT_TRUE(CPU_EQUAL(&all, &now)) << "whoever made it stays where it was";
}

// Beside others who compute, who spins keeps others from what he waits for.
TEST(Threads, ATeamThatSharesItsCoresSleeps) {
  const cpu_set_t all = own_cores();
  const int cores = CPU_COUNT(&all);
  if (cores < 2) GTEST_SKIP() << "one core";
  std::atomic<bool> over = false;
  std::vector<std::thread> others;
  for (int i = 0; i < 2 * cores; ++i)
    others.emplace_back([&] {
      while (!over) {
      }
    });
  std::thread own([&] {
    host::Team team(cores);
    using Clock = std::chrono::steady_clock;
    // Little pieces of work, at whose ends its threads meet.
    for (const auto end = Clock::now() + std::chrono::seconds(60); !team.crowded() && Clock::now() < end;) {
      team.work([] {
#pragma omp parallel
        for (const auto piece = Clock::now() + std::chrono::microseconds(200); Clock::now() < piece;) {
        }
      });
    }
    EXPECT_TRUE(team.crowded());
    int free = 0;
#pragma omp parallel reduction(+ : free)
    {
      const cpu_set_t set = own_cores();
      free += CPU_COUNT(&set) == cores ? 1 : 0;
    }
    EXPECT_EQ(free, cores) << "the system places them";
  });
  own.join();
  over = true;
  for (std::thread& other : others) other.join();
}

// Several threads may read in turns; what they are told is done in order all the same, one thing at a time.
TEST(Threads, ALinkStreamDoesOneThingAfterTheOther) {
  constexpr int64_t kTasks = 400;
  struct Seen {
    std::atomic<int> under_way = 0;
    int64_t next = 0;
    bool right = true;
    std::set<std::thread::id> by;
  } seen;
  const cpu_set_t all = own_cores();
  auto backend = take(make_cpu_backend({CPU_COUNT(&all)}));
  const int64_t before = threads_that_live();
  {
    auto stream = take(backend->make_stream(StreamKind::kLink, kTasks));
    for (int64_t i = 0; i < kTasks; ++i)
      stream->host({[](void* context, int64_t i) {
                      auto& s = *static_cast<Seen*>(context);
                      s.right = s.right && ++s.under_way == 1 && s.next++ == i;
                      s.by.insert(std::this_thread::get_id());
                      const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(100);
                      while (std::chrono::steady_clock::now() < end) {
                      }
                      --s.under_way;
                    },
                    &seen, i});
    ASSERT_TRUE(stream->synchronize().ok());
  }
  EXPECT_TRUE(seen.right);
  EXPECT_EQ(seen.next, kTasks);
  EXPECT_EQ(seen.by.size() > 1, CPU_COUNT(&all) > 1) << "each core loses its part of the time";
  EXPECT_TRUE(left(before)) << threads_that_live() << " threads, " << before << " before";
}

}  // namespace
}  // namespace ds
