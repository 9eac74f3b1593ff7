// A receiver that follows its sender beside one that waits for the finished entry: two processes, a core
// each, that begin at the same moment.
//
// live_bench PLAN STORE TOKENS... [--rounds N]: random weights of the plan's shape; STORE as open_store() has
// it. bench/live.sh makes plan, store and table.
#include <sched.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "bench/program.h"
#include "plans/plan_file.h"
#include "runtime/backends/backends.h"
#include "runtime/core/chain.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kSuffix = 16;

/// What the sender is to do, and what it took.
struct Order {
  int64_t tokens = 0, seed = 0;
  int32_t live = 0;
};
struct Done {
  int64_t prefill_ns = 0, write_ns = 0;
};

template <typename T>
bool send(int fd, const T& value) {
  return write(fd, &value, sizeof value) == static_cast<ssize_t>(sizeof value);
}
template <typename T>
bool receive(int fd, T& value) {
  return read(fd, &value, sizeof value) == static_cast<ssize_t>(sizeof value);
}

/// Before any thread of the process is started.
void stay_on(size_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core % static_cast<size_t>(sysconf(_SC_NPROCESSORS_ONLN)), &set);
  (void)sched_setaffinity(0, sizeof set, &set);
}

std::vector<int32_t> random_ids(int64_t count, int64_t vocab, int64_t seed) {
  std::mt19937_64 random(static_cast<uint64_t>(seed));
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return ids;
}

struct Model {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<DeviceModel> model;

  Model(const Plan& plan, uint64_t seed) : backend(take(make_cpu_backend())) {
    const Shape& s = plan.shape;
    ModelConfig config;
    config.layers = s.layers;
    config.d_model = s.d_model;
    config.ff = s.ff;
    config.heads = s.heads;
    config.kv_heads = s.kv_heads;
    config.head_dim = s.head_dim;
    config.vocab = s.vocab;
    config.max_positions = 1 << 17;
    checkpoint = std::make_unique<Checkpoint>(take(Checkpoint::random(config, seed)));
    model = take(backend->load(*checkpoint, {.dtype = plan.dtype == "f32" ? DType::kF32 : DType::kBF16}));
  }
};

int be_sender(const Plan& plan, const std::string& url, int orders, int done) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  stay_on(0);
  Model sender(plan, 1);
  auto store = take(open_store(url));
  (void)send(done, Done{});
  for (Order order; receive(orders, order);) {
    PublishOptions options{.cuts = published_cuts(plan)};
    options.live_rows = order.live != 0 ? kLiveRows : 0;
    const Published p =
        take(publish(*sender.backend, *sender.model, plan.sender,
                     random_ids(order.tokens, plan.shape.vocab, order.seed), *store, options));
    if (!p.live.ok()) std::fprintf(stderr, "live_bench: %s\n", p.live.message().c_str());
    (void)send(done, Done{p.prefill_ns, p.write_ns});
  }
  return 0;
}

double ms(std::vector<int64_t> ns) {
  std::sort(ns.begin(), ns.end());
  return static_cast<double>(ns[ns.size() / 2]) / 1e6;
}

int run(int argc, char** argv) {
  std::vector<std::string> words(argv + 1, argv + argc);
  int64_t rounds = 5;
  for (size_t i = 0; i + 1 < words.size(); ++i)
    if (words[i] == "--rounds") {
      rounds = std::stoll(words[i + 1]);
      words.erase(words.begin() + static_cast<std::ptrdiff_t>(i),
                  words.begin() + static_cast<std::ptrdiff_t>(i) + 2);
    }
  if (words.size() < 3 || rounds < 1) {
    std::fprintf(stderr, "usage: live_bench PLAN STORE TOKENS... [--rounds N]\n");
    return 2;
  }
  const Plan plan = take(read_plan(words[0]));
  const std::string url = words[1];
  int orders[2], done[2];
  if (pipe(orders) != 0 || pipe(done) != 0) return 1;
  const pid_t child = fork();
  if (child == 0) {
    close(orders[1]);
    close(done[0]);
    _exit(be_sender(plan, url, orders[0], done[1]));
  }
  close(orders[0]);
  close(done[1]);
  stay_on(1);
  Model receiver(plan, 2);
  auto store = take(open_store(url));
  Done report;
  if (!receive(done[0], report)) return 1;
  std::printf("%8s %12s %12s %12s %12s %12s %12s %8s  %s\n", "tokens", "own prefill", "own plan", "sender",
              "sender live", "waits", "follows", "ratio", "by");
  for (size_t w = 2; w < words.size(); ++w) {
    const int64_t n = std::stoll(words[w]);
    auto session = take(Session::create(*receiver.backend, *receiver.model, plan, {n, kSuffix, 1}));
    take(session->run({.context = random_ids(n, plan.shape.vocab, 1),
                       .suffix = random_ids(kSuffix, plan.shape.vocab, 2),
                       .full_prefill = true}));
    std::vector<int64_t> alone, planned, prefill, prefill_live, waits, follows;
    std::string by;
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t seed = 1000 * n + 2 * round;
      const auto suffix = random_ids(kSuffix, plan.shape.vocab, 7);
      const auto context = random_ids(n, plan.shape.vocab, seed),
                 other = random_ids(n, plan.shape.vocab, seed + 1);
      Request request{.context = context, .suffix = suffix, .store = store.get()};
      // It waits for the entry.
      int64_t start = now_ns();
      if (!send(orders[1], Order{n, seed, 0}) || !receive(done[0], report)) return 1;
      Answer answer = take(session->run(request));
      waits.push_back(now_ns() - start);
      if (answer.cache != CacheStatus::kHit) std::fprintf(stderr, "%s\n", answer.miss.message().c_str());
      planned.push_back(answer.ttft_ns);
      prefill.push_back(report.prefill_ns);
      // It follows.
      request.context = other;
      const std::vector<std::string> names =
          block_names(plan.sender.fingerprint, other, 0, "", receiver.model->dtype());
      const std::span<const std::string> last = std::span(names).last(1);
      start = now_ns();
      if (!send(orders[1], Order{n, seed + 1, 1})) return 1;
      while (take(store->find_live(last, ""))[0].empty()) usleep(100);
      answer = take(session->run(request));
      follows.push_back(now_ns() - start);
      if (answer.cache != CacheStatus::kHit || !answer.live)
        std::fprintf(stderr, "not followed: %s\n", answer.miss.message().c_str());
      by = answer.variant->name + (answer.variant->live ? " (for a live sender)" : "");
      if (!receive(done[0], report)) return 1;
      prefill_live.push_back(report.prefill_ns);
      // And alone.
      request.full_prefill = true;
      alone.push_back(take(session->run(request)).ttft_ns);
    }
    const double least = std::max(ms(prefill_live), ms(planned));
    std::printf("%8lld %9.1f ms %9.1f ms %9.1f ms %9.1f ms %9.1f ms %9.1f ms %8.2f  %s\n",
                static_cast<long long>(n), ms(alone), ms(planned), ms(prefill), ms(prefill_live), ms(waits),
                ms(follows), ms(follows) / least, by.c_str());
    std::fflush(stdout);
  }
  close(orders[1]);
  (void)waitpid(child, nullptr, 0);
  return 0;
}

}  // namespace
}  // namespace ds

int main(int argc, char** argv) { return ds::run(argc, argv); }
