#include "runtime/backends/host/team_internal.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <semaphore>
#include <system_error>
#include <thread>
#include <utility>

#include "support/brief_team.h"

namespace ds::host {
namespace {

// Of the time that a team works one of its threads may wait for a core. Threads that read the link or answer
// clients take some percent.
constexpr double kCrowded = 0.2;
constexpr int64_t kEnoughNs = 10'000'000;  // of watched work for a judgement
constexpr int kTight = 2;  // judgements one after the other; once is anything that the system does
// kAgainNs of work later it is tried again: threads that go to sleep all the time wait for cores, and for
// each other on one core, also where nobody else is. Twice as much each time that it was in vain.
constexpr int64_t kMostNs = 16'000'000'000;

// Until when a team that begins takes it that the cores are shared, since another one of the process has seen
// it.
constexpr int64_t kRememberedNs = 2'000'000'000;
std::atomic<int64_t> crowded_until{0};

/// The second number of the file; -1: it cannot be read.
int64_t waited(int file) {
  char text[96];
  const ssize_t n = pread(file, text, sizeof text - 1, 0);
  if (n <= 0) return -1;
  text[n] = '\0';
  const char* second = std::strchr(text, ' ');
  return second == nullptr ? -1 : std::strtoll(second, nullptr, 10);
}

}  // namespace

std::vector<int> own_cores() {
  std::vector<int> cores;
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) != 0) return cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

void stay_on(std::span<const int> cores, pid_t thread) {
  cpu_set_t own;
  CPU_ZERO(&own);
  for (const int core : cores) CPU_SET(core, &own);
  (void)sched_setaffinity(thread, sizeof own, &own);
}

class Team::Crowd {
 public:
  explicit Crowd(int threads)
      : thread_([this, threads] {
#pragma omp parallel num_threads(threads)
          (void)omp_get_thread_num();
          over_.acquire();
        }) {
  }
  ~Crowd() {
    over_.release();
    thread_.join();
  }

 private:
  std::binary_semaphore over_{0};
  std::thread thread_;
};

Team::Team(int threads) : threads_(threads), cores_(own_cores()), members_(static_cast<size_t>(threads)) {
  omp_set_dynamic(0);  // libraries share work out by the number of threads that they ask for
  omp_set_num_threads(threads);
  keeps_team = true;
  if (threads > 1) begin();
}

Team::~Team() {
  for (const Member& m : members_)
    if (m.file >= 0) close(m.file);
}

void Team::begin() {
#pragma omp parallel
  members_[static_cast<size_t>(omp_get_thread_num())].thread = static_cast<pid_t>(syscall(SYS_gettid));
  for (Member& m : members_) {
    m.file = open(fmt::format("/proc/self/task/{}/schedstat", m.thread).c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (now_ns() < crowded_until)
    change();
  else
    place();
}

/// One core for each of its threads, where it has all of them to itself: two on one would wait for each
/// other.
void Team::place() {
  if (static_cast<int>(cores_.size()) != threads_ || omp_get_proc_bind() != omp_proc_bind_false) return;
  for (size_t i = 0; i < members_.size(); ++i)
    stay_on(crowded() ? std::span<const int>(cores_) : std::span(cores_).subspan(i, 1), members_[i].thread);
}

void Team::watch() {
  for (Member& m : members_) m.since_ns = waited(m.file);
}

void Team::seen(int64_t ns) {
  for (Member& m : members_) m.waited_ns += waited(m.file) - m.since_ns;
  unseen_ns_ = 0;
  seen_ns_ += ns;
  if (seen_ns_ >= kEnoughNs) judge();
}

void Team::judge() {
  int64_t longest = 0;
  for (Member& m : members_) longest = std::max(longest, std::exchange(m.waited_ns, 0));
  const double share = static_cast<double>(longest) / static_cast<double>(std::exchange(seen_ns_, 0));
  tight_ = share < kCrowded ? 0 : tight_ + 1;
  if (crowded() ? since_ns_ < again_ns_ : tight_ < kTight) return;
  if (!crowded()) again_ns_ = since_ns_ < kAgainNs ? std::min(2 * again_ns_, kMostNs) : kAgainNs;
  change();
}

void Team::change() {
  since_ns_ = tight_ = 0;
  try {
    crowd_ = crowded() ? nullptr
                       : std::make_unique<Crowd>(std::max(2, static_cast<int>(cores_.size()) - threads_ + 2));
    if (crowded()) crowded_until = now_ns() + kRememberedNs;
    place();
  } catch (const std::system_error&) {  // no thread more to be had: they go on spinning
  }
}

}  // namespace ds::host
