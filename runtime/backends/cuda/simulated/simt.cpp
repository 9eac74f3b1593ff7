#include "runtime/backends/cuda/simulated/simt.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/backends/cuda/simulated/device_internal.h"

constinit thread_local uint3 threadIdx{}, blockIdx{};
constinit thread_local dim3 blockDim{}, gridDim{};

namespace ds::cuda::simulated {
namespace {

using boost::context::detail::fcontext_t;
using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

constexpr size_t kPage = 4096, kStack = 128 << 10;
constexpr size_t kMostShared = 256 << 10;

enum class State : uint8_t { kReady, kAtBarrier, kMeeting, kLeft };

struct AsyncCopy {
  void* to;
  const void* from;
  bool valid;
};

struct Thread {
  State state = State::kReady;
  bool started = false;
  fcontext_t context = nullptr;  // where it stopped
  Place place;                   // where it waits
  const char* waits_for = "";
  std::vector<std::vector<AsyncCopy>> copies;  // groups that may be under way; the last is not committed
};

/// Lanes that wait for each other.
struct Meeting {
  const char* what = "";
  WarpStep step = nullptr;
  uint32_t mask = 0, here = 0;
  void* arguments[kWarp];

  Meeting(const char* what, WarpStep step, uint32_t mask) : what(what), step(step), mask(mask) {
    if (mask != kWholeWarp) std::fill(std::begin(arguments), std::end(arguments), nullptr);
  }
};

/// A warp, and which of its lanes are where. Lanes run so short between their meetings that who is next is
/// half of all that the device does: nothing here allocates, divides or looks at other lanes one by one.
struct Warp {
  std::vector<Meeting> open;  // of different lanes
  uint32_t lanes = 0;         // that the block has
  uint32_t left = 0;
  uint32_t ready_count = 0;
  uint8_t ready[kWarp];  // in no order
};

/// One thread of the CPU that runs blocks: the stacks of their threads, and who is running.
class Machine {
 public:
  ~Machine() {
    for (std::byte* stack : stacks_) munmap(stack, kStack);
    if (shared_ != nullptr) munmap(shared_, kMostShared + kPage);
  }

  void run_block(const KernelCall& call, uint64_t order_seed);
  void barrier(const Place& place);
  void meet(const char* what, uint32_t mask, void* argument, WarpStep step, const Place& place);
  [[noreturn]] void fault(const std::string& message) const;
  std::string where(size_t thread) const;

  size_t current() const { return current_; }
  Thread& me() { return threads_[current_]; }
  bool running() const { return call_ != nullptr; }
  std::byte* shared_memory() const { return block_shared_; }
  const KernelCall* call() const { return call_; }

 private:
  static void fiber(transfer_t from);
  static void keep(transfer_t from);  // what jumped here
  void prepare_shared(size_t bytes);
  std::byte* take_stack();
  void make_ready(size_t warp, uint32_t lanes);
  bool draw(size_t& next);
  void set_running(size_t thread);
  void suspend();                             // the running thread; returns when it is resumed
  void run_threads();                         // on a fiber: until nobody is left to start here
  [[noreturn]] void leave_to(fcontext_t to);  // from a fiber that is no longer needed
  [[noreturn]] void stuck() const;

  const KernelCall* call_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  uint3* const running_index_ = &threadIdx;  // of this thread of the CPU: found once
  dim3 shape_{0, 0, 0};
  std::vector<uint3> indexes_;  // of the threads of a block of that shape
  uint32_t ready_ranks_ = 0;    // of warps that have threads to run
  size_t warp_of_rank_[kWarp] = {}, rank_of_warp_[kWarp] = {};
  bool in_rank_order_ = false;
  size_t left_ = 0, at_barrier_ = 0, current_ = 0;
  uint64_t random_ = 0;
  std::vector<std::byte*> stacks_, free_stacks_;
  std::byte* fiber_stack_ = nullptr;       // of the fiber that runs
  std::vector<std::byte*> thread_stacks_;  // of the fiber that each thread runs on
  std::byte *shared_ = nullptr, *block_shared_ = nullptr;
  fcontext_t main_ = nullptr;
};

thread_local Machine own_machine;
/// That of this thread of the CPU, once it runs kernels.
constinit thread_local Machine* machine = nullptr;

uint64_t next_random(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

/// Of `count` numbers, by 32 random bits.
uint32_t one_of(uint32_t count, uint32_t random) {
  return static_cast<uint32_t>((uint64_t{count} * random) >> 32);
}

std::string text_of(uint3 v) { return fmt::format("({}, {}, {})", v.x, v.y, v.z); }

/// The kernel's name from the text of the call: all before the first comma that is in no brackets.
std::string_view kernel_name(const char* text) {
  int depth = 0;
  const char* end = text;
  for (; *end != '\0' && (*end != ',' || depth > 0); ++end)
    depth += *end == '<' || *end == '(' ? 1 : *end == '>' || *end == ')' ? -1 : 0;
  return {text, static_cast<size_t>(end - text)};
}

uint3 index_in(dim3 size, uint64_t at) {
  return {static_cast<unsigned>(at % size.x), static_cast<unsigned>(at / size.x % size.y),
          static_cast<unsigned>(at / size.x / size.y)};
}

void Machine::prepare_shared(size_t bytes) {
  if (shared_ == nullptr) {
    void* mapped = mmap(nullptr, kMostShared + kPage, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) simulated::fault("no memory for a block's shared memory");
    shared_ = static_cast<std::byte*>(mapped);
    mprotect(shared_ + kMostShared, kPage, PROT_NONE);
  }
  // Its end is where reading on ends the program.
  block_shared_ = shared_ + kMostShared - (bytes + 15) / 16 * 16;
  std::memset(block_shared_, 0xff, bytes);
}

std::byte* Machine::take_stack() {
  if (free_stacks_.empty()) {
    void* mapped =
        mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) simulated::fault("no memory for the stack of a thread");
    mprotect(mapped, kPage, PROT_NONE);
    stacks_.push_back(static_cast<std::byte*>(mapped));
    free_stacks_.push_back(stacks_.back());
  }
  std::byte* stack = free_stacks_.back();
  free_stacks_.pop_back();
  return stack;
}

/// Where a fiber begins on its stack. Not all at the same place of a page: what they all use first would lie
/// in the same few lines of the cache.
std::byte* begin_of(std::byte* stack) {
  constexpr size_t kApart = 128;
  return stack + kStack - reinterpret_cast<uintptr_t>(stack) / kStack % (kPage / kApart) * kApart;
}

fcontext_t make_fiber(std::byte* stack, void (*run)(transfer_t)) {
  std::byte* begin = begin_of(stack);
  return make_fcontext(begin, static_cast<size_t>(begin - stack) - kPage, run);
}

void Machine::keep(transfer_t from) {
  if (from.data != nullptr) *static_cast<fcontext_t*>(from.data) = from.fctx;
}

void Machine::make_ready(size_t warp, uint32_t lanes) {
  Warp& w = warps_[warp];
  for (uint32_t left = lanes; left != 0; left &= left - 1) {
    const int lane = std::countr_zero(left);
    threads_[warp * kWarp + static_cast<size_t>(lane)].state = State::kReady;
    w.ready[w.ready_count++] = static_cast<uint8_t>(lane);
  }
  ready_ranks_ |= 1u << rank_of_warp_[warp];
}

/// Who runs next: in half of the blocks any warp, in the others always the first in a random order of the
/// warps, which then runs as far ahead of the others as barriers let it. Within a warp any lane.
bool Machine::draw(size_t& next) {
  if (ready_ranks_ == 0) return false;
  const uint64_t random = next_random(random_);
  uint32_t ranks = ready_ranks_;
  if (!in_rank_order_ && (ranks & (ranks - 1)) != 0) {
    const auto count = static_cast<uint32_t>(std::popcount(ranks));
    for (uint32_t skip = one_of(count, static_cast<uint32_t>(random >> 32)); skip > 0; --skip)
      ranks &= ranks - 1;
  }
  const int rank = std::countr_zero(ranks);
  const size_t warp = warp_of_rank_[rank];
  Warp& w = warps_[warp];
  uint8_t& drawn = w.ready[one_of(w.ready_count, static_cast<uint32_t>(random))];
  next = warp * kWarp + drawn;
  drawn = w.ready[--w.ready_count];
  if (w.ready_count == 0) ready_ranks_ &= ~(1u << rank);
  return true;
}

void Machine::set_running(size_t thread) {
  current_ = thread;
  *running_index_ = indexes_[thread];
}

void Machine::fiber(transfer_t from) {
  keep(from);
  machine->run_threads();
}

void Machine::run_threads() {
  for (;;) {
    Thread& thread = me();
    thread.started = true;
    thread_stacks_[current_] = fiber_stack_;
    call_->thread();
    fiber_stack_ = thread_stacks_[current_];
    me().state = State::kLeft;
    warps_[current_ / kWarp].left |= 1u << current_ % kWarp;
    ++left_;
    size_t next;
    if (!draw(next)) {
      if (left_ < threads_.size()) stuck();
      leave_to(main_);
    }
    set_running(next);
    if (!threads_[next].started) continue;
    leave_to(threads_[next].context);
  }
}

void Machine::leave_to(fcontext_t to) {
  free_stacks_.push_back(fiber_stack_);
  jump_fcontext(to, nullptr);
  std::abort();
}

void Machine::suspend() {
  size_t self = current_, next;
  if (!draw(next)) stuck();
  if (next == self) return;
  set_running(next);
  fcontext_t to = threads_[next].context;
  if (!threads_[next].started) {
    fiber_stack_ = take_stack();
    to = make_fiber(fiber_stack_, &Machine::fiber);
  }
  keep(jump_fcontext(to, &threads_[self].context));  // who resumes it has said who is running
}

void Machine::barrier(const Place& place) {
  Thread& thread = me();
  if (left_ > 0)
    fault(fmt::format("__syncthreads in {}, line {}, after other threads of the block have left the kernel",
                      place.function, place.line));
  if (++at_barrier_ < threads_.size()) {
    thread.state = State::kAtBarrier;
    thread.place = place;
    thread.waits_for = "__syncthreads";
    suspend();
    return;
  }
  at_barrier_ = 0;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (i == current_) continue;
    const Place& other = threads_[i].place;
    // A barrier counts threads; that all come from one place is what every correct kernel here does.
    if (other.line != place.line || other.function != place.function)
      fault(fmt::format("threads meet at different __syncthreads: {}, line {}, and {}", place.function,
                        place.line, where(i)));
  }
  for (size_t i = 0; i < warps_.size(); ++i) make_ready(i, warps_[i].lanes);
  suspend();
}

void Machine::meet(const char* what, uint32_t mask, void* argument, WarpStep step, const Place& place) {
  const size_t own_warp = current_ / kWarp, own_lane = current_ % kWarp;
  Warp& warp = warps_[own_warp];
  auto wrong = [&](const std::string& text) {
    fault(fmt::format("{} in {}, line {}: {}", what, place.function, place.line, text));
  };
  if ((mask >> own_lane & 1) == 0) wrong("the mask does not name this lane");
  if ((mask & ~warp.lanes) != 0) wrong("the mask names lanes that the block does not have");
  if (const uint32_t missing = mask & warp.left; missing != 0)
    wrong(fmt::format("thread {}, which the mask names",
                      where(own_warp * kWarp + static_cast<size_t>(std::countr_zero(missing)))));
  std::vector<Meeting>& open = warp.open;
  auto found = open.begin();
  while (found != open.end() && (found->mask & mask) == 0) ++found;
  if (found == open.end()) {
    open.emplace_back(what, step, mask);
    found = open.end() - 1;
  }
  if (found->mask != mask || found->step != step)
    wrong(fmt::format("mask {:08x}, while other lanes of it meet for {}, mask {:08x}", mask, found->what,
                      found->mask));
  found->here |= 1u << own_lane;
  found->arguments[own_lane] = argument;
  if (found->here != mask) {
    Thread& thread = me();
    thread.state = State::kMeeting;
    thread.place = place;
    thread.waits_for = what;
    suspend();
    return;
  }
  step(found->arguments);
  open.erase(found);
  make_ready(own_warp, mask);
  suspend();
}

std::string Machine::where(size_t thread) const {
  const Thread& t = threads_[thread];
  std::string text = text_of(index_in(call_->block, thread));
  if (t.state == State::kLeft) return text + " has left the kernel";
  return fmt::format("{} at {} in {}, line {}", text, t.waits_for, t.place.function, t.place.line);
}

void Machine::fault(const std::string& message) const {
  std::string text = fmt::format("simulated device: kernel {}, block {}, thread {}: {}\n",
                                 call_ == nullptr ? "(none)" : kernel_name(call_->text), text_of(blockIdx),
                                 text_of(threadIdx), message);
  std::fputs(text.c_str(), stderr);
  std::abort();
}

void Machine::stuck() const {
  std::string text = "threads wait for others that never come:";
  int named = 0;
  for (size_t i = 0; i < threads_.size() && named < 8; ++i)
    if (i == 0 || i + 1 == threads_.size() || threads_[i].state != threads_[i - 1].state ||
        threads_[i].place.line != threads_[i - 1].place.line)
      text += "\n  thread " + where(i), ++named;
  fault(text.c_str());
}

void Machine::run_block(const KernelCall& call, uint64_t order_seed) {
  const size_t count = size_t{call.block.x} * call.block.y * call.block.z;
  call_ = &call;
  if (call.block.x != shape_.x || call.block.y != shape_.y || call.block.z != shape_.z) {
    shape_ = call.block;
    indexes_.resize(count);
    for (size_t i = 0; i < count; ++i) indexes_[i] = index_in(shape_, i);
  }
  random_ = order_seed;
  threads_.resize(count);
  for (Thread& thread : threads_) {
    thread.state = State::kReady;
    thread.started = false;
    thread.copies.clear();
  }
  thread_stacks_.resize(count);
  warps_.resize((count + kWarp - 1) / kWarp);
  for (size_t i = 0; i < warps_.size(); ++i) {
    Warp& warp = warps_[i];
    warp.open.clear();
    const size_t lanes = std::min<size_t>(kWarp, count - i * kWarp);
    warp.lanes = kWholeWarp >> (kWarp - lanes);
    warp.left = warp.ready_count = 0;
  }
  in_rank_order_ = next_random(random_) % 2 == 0;
  for (size_t i = 0; i < warps_.size(); ++i) {  // a random permutation
    const size_t at = next_random(random_) % (i + 1);
    warp_of_rank_[i] = warp_of_rank_[at];
    warp_of_rank_[at] = i;
  }
  for (size_t i = 0; i < warps_.size(); ++i) rank_of_warp_[warp_of_rank_[i]] = i;
  ready_ranks_ = 0;
  for (size_t i = 0; i < warps_.size(); ++i) make_ready(i, warps_[i].lanes);
  left_ = at_barrier_ = 0;
  prepare_shared(call.shared_bytes);
  size_t first = 0;
  draw(first);
  set_running(first);
  fiber_stack_ = take_stack();
  fcontext_t to = make_fiber(fiber_stack_, &Machine::fiber);
  keep(jump_fcontext(to, &main_));
  call_ = nullptr;
}

// ---- what ends a program in a kernel

struct sigaction before_segv, before_ill, before_bus;

void on_signal(int number, siginfo_t* info, void*) {
  if (machine != nullptr && machine->running()) {
    char text[512];
    const char* what = number == SIGILL ? "an access that is not aligned, or an index out of range"
                                        : "an access outside of what is allocated";
    const std::string_view name = kernel_name(machine->call()->text);
    int length =
        std::snprintf(text, sizeof text,
                      "simulated device: kernel %.*s, block (%u, %u, %u), thread (%u, %u, %u): %s (%p)\n",
                      static_cast<int>(std::min<size_t>(name.size(), 200)), name.data(), blockIdx.x,
                      blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z, what, info->si_addr);
    [[maybe_unused]] ssize_t written = write(2, text, static_cast<size_t>(length));
  }
  sigaction(number, number == SIGILL ? &before_ill : number == SIGBUS ? &before_bus : &before_segv, nullptr);
}

void name_faults_once() {
  static const bool done = [] {
    struct sigaction action {};
    action.sa_sigaction = &on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGILL, &action, &before_ill);
    return true;
  }();
  (void)done;
}

}  // namespace

void run_kernel(const KernelCall& call, uint64_t seed) {
  name_faults_once();
  machine = &own_machine;
  blockDim = call.block;
  gridDim = call.grid;
  const uint64_t blocks = uint64_t{call.grid.x} * call.grid.y * call.grid.z;
  // All blocks, once each, in an order of the seed's.
  uint64_t step = blocks == 1 ? 1 : next_random(seed) % blocks;
  while (std::gcd(step, blocks) != 1) ++step;
  uint64_t at = next_random(seed) % blocks;
  for (uint64_t i = 0; i < blocks; ++i, at = (at + step) % blocks) {
    blockIdx = index_in(call.grid, at);
    machine->run_block(call, next_random(seed));
  }
}

void fault(const char* message) { own_machine.fault(message); }
int lane() { return static_cast<int>(machine->current() % kWarp); }
std::byte* dynamic_shared() { return machine->shared_memory(); }
void barrier(const Place& place) { machine->barrier(place); }
void meet(const char* what, uint32_t mask, void* argument, WarpStep step, const Place& place) {
  machine->meet(what, mask, argument, step, place);
}

void shuffle(uint32_t mask, Shuffle& mine, const Place& place) {
  machine->meet(
      "a shuffle", mask, &mine,
      [](void* const* arguments) {
        for (int i = 0; i < kWarp; ++i) {
          auto* to = static_cast<Shuffle*>(arguments[i]);
          if (to == nullptr) continue;
          auto* from = static_cast<Shuffle*>(arguments[to->from]);
          if (from == nullptr) simulated::fault("a shuffle reads from a lane that is not in its mask");
          to->found = from->value;
        }
      },
      place);
}

uint32_t ballot(uint32_t mask, bool vote, const Place& place) {
  uint32_t mine = vote ? 1 : 0;
  machine->meet(
      "a vote", mask, &mine,
      [](void* const* arguments) {
        uint32_t all = 0;
        for (int i = 0; i < kWarp; ++i)
          if (arguments[i] != nullptr && *static_cast<uint32_t*>(arguments[i]) != 0) all |= 1u << i;
        for (int i = 0; i < kWarp; ++i)
          if (arguments[i] != nullptr) *static_cast<uint32_t*>(arguments[i]) = all;
      },
      place);
  return mine;
}

// ---- matrices

namespace {

struct Product {
  float* d;
  const uint32_t *a, *b;
};

void unpack(uint32_t two, float& low, float& high) {
  low = std::bit_cast<float>(two << 16);
  high = std::bit_cast<float>(two & 0xffff0000u);
}

/// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": lane = 4 * group + t;
/// a0 (group, 2t), a1 (group + 8, 2t), a2 (group, 2t + 8), a3 (group + 8, 2t + 8); b0 (2t, group),
/// b1 (2t + 8, group); d0, d1 (group, 2t), d2, d3 (group + 8, 2t).
void multiply(void* const* arguments) {
  float a[16][16], b[8][16];
  for (int i = 0; i < kWarp; ++i) {
    auto* p = static_cast<const Product*>(arguments[i]);
    int group = i / 4, k = i % 4 * 2;
    for (int r = 0; r < 4; ++r) {
      float* to = &a[group + r % 2 * 8][k + r / 2 * 8];
      unpack(p->a[r], to[0], to[1]);
    }
    for (int r = 0; r < 2; ++r) unpack(p->b[r], b[group][k + r * 8], b[group][k + r * 8 + 1]);
  }
  for (int i = 0; i < kWarp; ++i) {
    auto* p = static_cast<const Product*>(arguments[i]);
    for (int r = 0; r < 4; ++r) {
      int row = i / 4 + r / 2 * 8, column = i % 4 * 2 + r % 2;
      float sum = p->d[r];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      p->d[r] = sum;
    }
  }
}

struct MatrixRows {
  uint32_t* r;
  const std::byte* row;
};

/// PTX ISA, "ldmatrix": lane i names row i % 8 of matrix i / 8; register m of a lane holds elements 2t and
/// 2t + 1 of row `group` of matrix m.
template <bool kTransposed>
void load_four(void* const* arguments) {
  for (int m = 0; m < 4; ++m) {
    uint16_t elements[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(elements[row], static_cast<const MatrixRows*>(arguments[m * 8 + row])->row, 16);
    for (int i = 0; i < kWarp; ++i) {
      int group = i / 4, t = i % 4 * 2;
      uint32_t low = kTransposed ? elements[t][group] : elements[group][t];
      uint32_t high = kTransposed ? elements[t + 1][group] : elements[group][t + 1];
      static_cast<const MatrixRows*>(arguments[i])->r[m] = low | high << 16;
    }
  }
}

}  // namespace

void mma_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const Place& place) {
  Product mine{d, a, b};
  machine->meet("mma_16x8x16", kWholeWarp, &mine, &multiply, place);
}

void load_matrices(uint32_t* r, const void* row, bool transposed, const Place& place) {
  check_aligned(row, 16, "ldmatrix of a row that is not 16-byte aligned");
  MatrixRows mine{r, static_cast<const std::byte*>(row)};
  machine->meet("ldmatrix", kWholeWarp, &mine, transposed ? &load_four<true> : &load_four<false>, place);
}

// ---- copies in the background: done when they are waited for, not before, and what is there until then is
// not what was there before, nor what will be

void copy_async_16(void* shared, const void* global, bool valid) {
  check_aligned(shared, 16, "copy_async_16 to what is not 16-byte aligned");
  check_aligned(global, 16, "copy_async_16 from what is not 16-byte aligned");
  auto& copies = machine->me().copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({shared, global, valid});
  std::memset(shared, 0xff, 16);
}

void copy_async_commit() {
  auto& copies = machine->me().copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void copy_async_wait(int pending) {
  auto& copies = machine->me().copies;
  if (copies.empty()) return;
  size_t committed = copies.size() - 1, keep = static_cast<size_t>(pending);
  size_t finished = committed > keep ? committed - keep : 0;
  for (size_t i = 0; i < finished; ++i) {
    for (const AsyncCopy& copy : copies[i]) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, 16);
      } else {
        std::memset(copy.to, 0, 16);
      }
    }
  }
  copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(finished));
}

}  // namespace ds::cuda::simulated
