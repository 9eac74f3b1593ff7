// Threads that do little at a time beside others that compute.
#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace ds {

/// Asks the scheduler for short slices for the calling thread: what wakes up with little to do then runs
/// before threads that compute, and gets no more time than they. Linux 6.12 and newer; others do as they did.
inline void ask_for_short_slices() {
  struct Attributes {  // sched_attr, which the C library's headers may have or not
    uint32_t size = sizeof(Attributes), policy = 0;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime = 0, deadline = 0, period = 0;
  } attributes;
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0 || attributes.policy != 0) return;
  attributes.size = sizeof attributes;
  attributes.runtime = 100'000;  // ns, the least there is
  (void)syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace ds
