#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <mutex>

#include "support/mapping_guard_internal.h"

namespace ds::detail {

/// A node of a list that only grows: the handler walks it without a lock. Nodes are used again.
struct GuardedMapping {
  std::atomic<uintptr_t> begin{0}, end{0};  // empty: free
  std::atomic<bool> torn{false};
  GuardedMapping* next = nullptr;
};

namespace {

std::atomic<GuardedMapping*> first{nullptr};
std::mutex writers;  // of the list; the handler only reads it
uintptr_t page_bytes = 4096;
struct sigaction previous {};

static_assert(std::atomic<uintptr_t>::is_always_lock_free && std::atomic<bool>::is_always_lock_free);

/// Zeros from the page of `at` to the mapping's end: where a file was cut, all that lies behind is missing
/// too.
bool put_zeros(GuardedMapping& mapping, uintptr_t at) {
  const uintptr_t page = at / page_bytes * page_bytes;
  mapping.torn.store(true, std::memory_order_release);
  return mmap(reinterpret_cast<void*>(page), mapping.end.load(std::memory_order_relaxed) - page, PROT_READ,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int saved = errno;
  if (info->si_code > 0) {  // of a read, not of kill()
    const auto at = reinterpret_cast<uintptr_t>(info->si_addr);
    for (GuardedMapping* m = first.load(std::memory_order_acquire); m != nullptr; m = m->next) {
      if (at < m->begin.load(std::memory_order_acquire) || at >= m->end.load(std::memory_order_acquire))
        continue;
      if (put_zeros(*m, at)) {
        errno = saved;
        return;  // the read is tried again
      }
      break;
    }
  }
  if ((previous.sa_flags & SA_SIGINFO) != 0) return previous.sa_sigaction(signal, info, context);
  if (previous.sa_handler == SIG_IGN && info->si_code <= 0) return;
  if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) return previous.sa_handler(signal);
  // As if we were not here: the process ends by this signal.
  std::signal(signal, SIG_DFL);
  raise(signal);
}

void set_handler() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, &previous);
}

}  // namespace

GuardedMapping* guard_mapping(void* data, size_t size) {
  static std::once_flag once;
  std::call_once(once, set_handler);
  std::lock_guard lock(writers);
  GuardedMapping* mapping = first.load(std::memory_order_relaxed);
  while (mapping != nullptr && mapping->end.load(std::memory_order_relaxed) != 0) mapping = mapping->next;
  const bool made = mapping == nullptr;
  if (made) mapping = new GuardedMapping;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  mapping->torn.store(false, std::memory_order_relaxed);
  mapping->begin.store(begin, std::memory_order_release);
  mapping->end.store((begin + size + page_bytes - 1) / page_bytes * page_bytes, std::memory_order_release);
  if (made) {
    mapping->next = first.load(std::memory_order_relaxed);
    first.store(mapping, std::memory_order_release);
  }
  return mapping;
}

void unguard_mapping(GuardedMapping* mapping) {
  std::lock_guard lock(writers);
  mapping->end.store(0, std::memory_order_release);
}

bool mapping_torn(const GuardedMapping& mapping) { return mapping.torn.load(std::memory_order_acquire); }

}  // namespace ds::detail
