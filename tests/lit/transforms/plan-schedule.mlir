// When each operation starts. One variant, four schedulers; E and KV take 10, kernels 5, the head 1.
// RUN: ds-opt %s --cse --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --cse --plan-schedule=scheduler=kv-preload --plan-verify-schedule | FileCheck %s --check-prefix=PRELOAD
// RUN: ds-opt %s --plan-schedule=scheduler=serial --plan-verify-schedule | FileCheck %s --check-prefix=SERIAL
// RUN: ds-opt %s --cse --plan-schedule --plan-verify-schedule | FileCheck %s --check-prefix=BEST
// RUN: ds-opt %s --cse --plan-schedule="scheduler=e-first link-release-ns=100" | FileCheck %s --check-prefix=RTT
// RUN: not ds-opt %s --plan-schedule=scheduler=fastest 2>&1 | FileCheck %s --check-prefix=UNKNOWN

// EFIRST:      scheduler "e-first"
// EFIRST-NEXT: makespan 26 lower_bound 26 proven_optimal
// EFIRST:      %embed = plan.embed suffix {{.*}} at 0 for 5
// EFIRST-NEXT: %e1 = plan.transfer e(1) {{.*}} at 0 for 10
// EFIRST-NEXT: %r1 = plan.recompute layer 1 {{.*}} after %e1 at 10 for 5
// EFIRST-NEXT: %t0 = plan.transfer kv(0) {{.*}} at 10 for 10
// EFIRST-NEXT: %s0 = plan.suffix layer 0 {{.*}} after %embed, %t0 at 20 for 5
// EFIRST-NEXT: %s1 = plan.suffix layer 1 {{.*}} after %r1, %s0 at 25 for 0
// EFIRST-NEXT: %head = plan.head {{.*}} after %s1 at 25 for 1

// KV before E, and the first kernel waits for the last load.
// PRELOAD:      makespan 36
// PRELOAD:      %t0 = plan.transfer kv(0) {{.*}} at 0 for 10
// PRELOAD-NEXT: %e1 = plan.transfer e(1) {{.*}} at 10 for 10
// PRELOAD-NEXT: %embed = plan.embed suffix {{.*}} after %e1 at 20 for 5
// PRELOAD:      plan.head {{.*}} at 35 for 1

// The whole entry, also KV that is recomputed.
// SERIAL:      makespan 46
// SERIAL:      %e1 = plan.transfer e(1) {{.*}} at 0 for 10
// SERIAL-NEXT: %t0 = plan.transfer kv(0) {{.*}} at 10 for 10
// SERIAL-NEXT: %t1 = plan.transfer kv(1) {{.*}} at 20 for 10
// SERIAL-NEXT: %embed = plan.embed suffix {{.*}} after %t1 at 30 for 5

// BEST: scheduler "best"
// BEST: makespan 26 lower_bound 26 proven_optimal

// The link answers after a round trip; kernels do not wait for it.
// RTT: %embed = plan.embed {{.*}} at 0 for 5
// RTT: %e1 = plan.transfer e(1) {{.*}} at 100 for 10

// UNKNOWN: error: unknown scheduler 'fastest'; known are best, cake, e-first, kv-first, kv-preload, serial, two-pointer

plan.variant @v policy "p" scheduler "none" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %c = plan.stream compute
  %k0 = plan.buffer kv layer 0 with context suffix
  %k1 = plan.buffer kv layer 1 with context suffix
  %s = plan.buffer hidden layer 0 with suffix
  %h = plan.buffer hidden layer 1 with context
  %e1 = plan.transfer e(1) chunk 0 into %h on %l for 10
  %t0 = plan.transfer kv(0) chunk 0 into %k0 on %l for 10
  %t1 = plan.transfer kv(1) chunk 0 into %k1 on %l for 10
  %embed = plan.embed suffix into %s on %c for 5
  %r1 = plan.recompute layer 1 chunk 0 queries none in %h on %c after %e1 for 5
  %s0 = plan.suffix layer 0 queries all in %s on %c after %t0, %embed for 5
  %s1 = plan.suffix layer 1 queries last in %s on %c after %r1, %s0 for 0
  %head = plan.head in %s on %c after %s1 for 1
}
