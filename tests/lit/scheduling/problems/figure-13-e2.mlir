// Figure 13 with E twice as large as one layer's KV, loads that nothing needs left out. The optimum grows by the
// one E that is sent, in both requests.
// RUN: ds-opt %s --plan-schedule=scheduler=kv-preload --plan-verify-schedule | FileCheck %s --check-prefix=PRELOAD
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// PRELOAD: cost 32 lower_bound 19
// CHECK: cost 19 lower_bound 19 proven_optimal by bound
scheduling.problem @figure_13 minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "A e(4)" load_e on %link for 2
    %k1 = scheduling.task "A kv(1)" load_kv on %link for 1
    %k2 = scheduling.task "A kv(2)" load_kv on %link for 1
    %k3 = scheduling.task "A kv(3)" load_kv on %link for 1
    %r4 = scheduling.task "A recompute 4" compute on %compute after %e for 1
    %r5 = scheduling.task "A recompute 5" compute on %compute after %r4 for 1
    %r6 = scheduling.task "A recompute 6" compute on %compute after %r5 for 1
    %r7 = scheduling.task "A recompute 7" compute on %compute after %r6 for 1
    %r8 = scheduling.task "A recompute 8" compute on %compute after %r7 for 1
    %r9 = scheduling.task "A recompute 9" compute on %compute after %r8 for 1
    %r10 = scheduling.task "A recompute 10" compute on %compute after %r9 for 1
    scheduling.done %r10, %k1, %k2, %k3
  }
  scheduling.job @B arrives 2 {
    %k4 = scheduling.task "B kv(4)" load_kv on %link for 1
    %k5 = scheduling.task "B kv(5)" load_kv on %link for 1
    %k6 = scheduling.task "B kv(6)" load_kv on %link for 1
    %k7 = scheduling.task "B kv(7)" load_kv on %link for 1
    %k8 = scheduling.task "B kv(8)" load_kv on %link for 1
    %k9 = scheduling.task "B kv(9)" load_kv on %link for 1
    %k10 = scheduling.task "B kv(10)" load_kv on %link for 1
    %r1 = scheduling.task "B recompute 1" compute on %compute for 1
    %r2 = scheduling.task "B recompute 2" compute on %compute after %r1 for 1
    %r3 = scheduling.task "B recompute 3" compute on %compute after %r2 for 1
    scheduling.done %r3, %k4, %k5, %k6, %k7, %k8, %k9, %k10
  }
}
