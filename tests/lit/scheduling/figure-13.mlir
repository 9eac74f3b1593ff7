// Figure 13 of the paper: 10 layers (counted from 1 here, as there); every load and every recompute takes 1.
// A recomputes layers 4 to 10 and arrives at 0, B recomputes layers 1 to 3 and arrives at 2. The entry holds the KV
// of all layers: `serial` moves it all, the others leave out what nothing waits for.
// RUN: ds-opt %s --plan-schedule=scheduler=serial --plan-verify-schedule | FileCheck %s --check-prefix=SERIAL
// RUN: ds-opt %s --cse --plan-schedule=scheduler=kv-preload --plan-verify-schedule | FileCheck %s --check-prefix=PRELOAD
// RUN: ds-opt %s --cse --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --cse --plan-schedule=scheduler=kv-first --plan-verify-schedule | FileCheck %s --check-prefix=KVFIRST
// RUN: ds-opt %s --cse --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s --check-prefix=BEST

// A ends at 18; B waits for A and ends at 31, less its arrival 29.
// SERIAL: plan.problem @figure_13 minimize sum scheduler "serial" cost 47
// SERIAL: plan.task "A recompute 10" {{.*}} at 17 for 1
// SERIAL: plan.task "B recompute 3" {{.*}} at 30 for 1

// A ends at 11, B at 21, less its arrival 19.
// PRELOAD: plan.problem @figure_13 minimize sum scheduler "kv-preload" cost 30
// PRELOAD: plan.task "A recompute 10" {{.*}} at 10 for 1
// PRELOAD: plan.task "B recompute 3" {{.*}} at 20 for 1

// A ends at 8, B at 11, less its arrival 9. No schedule does better.
// EFIRST: plan.problem @figure_13 minimize sum scheduler "e-first" cost 17 lower_bound 17 proven_optimal
// EFIRST: plan.task "A e(4)" load_e on %link at 0 for 1
// EFIRST: plan.task "A recompute 10" {{.*}} at 7 for 1
// EFIRST: plan.task "B kv(10)" load_kv on %link at 10 for 1

// KVFIRST: plan.problem @figure_13 minimize sum scheduler "kv-first" cost 23 lower_bound 17 {

// BEST: plan.problem @figure_13 minimize sum scheduler "best" cost 17 lower_bound 17 proven_optimal

plan.problem @figure_13 minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  plan.job @A arrives 0 {
    %e = plan.task "A e(4)" load_e on %link for 1
    %k1 = plan.task "A kv(1)" load_kv on %link for 1
    %k2 = plan.task "A kv(2)" load_kv on %link for 1
    %k3 = plan.task "A kv(3)" load_kv on %link for 1
    %k4 = plan.task "A kv(4)" load_kv on %link for 1
    %k5 = plan.task "A kv(5)" load_kv on %link for 1
    %k6 = plan.task "A kv(6)" load_kv on %link for 1
    %k7 = plan.task "A kv(7)" load_kv on %link for 1
    %k8 = plan.task "A kv(8)" load_kv on %link for 1
    %k9 = plan.task "A kv(9)" load_kv on %link for 1
    %k10 = plan.task "A kv(10)" load_kv on %link for 1
    %r4 = plan.task "A recompute 4" compute on %compute after %e for 1
    %r5 = plan.task "A recompute 5" compute on %compute after %r4 for 1
    %r6 = plan.task "A recompute 6" compute on %compute after %r5 for 1
    %r7 = plan.task "A recompute 7" compute on %compute after %r6 for 1
    %r8 = plan.task "A recompute 8" compute on %compute after %r7 for 1
    %r9 = plan.task "A recompute 9" compute on %compute after %r8 for 1
    %r10 = plan.task "A recompute 10" compute on %compute after %r9 for 1
    plan.done %r10, %k1, %k2, %k3
  }
  plan.job @B arrives 2 {
    %k1 = plan.task "B kv(1)" load_kv on %link for 1
    %k2 = plan.task "B kv(2)" load_kv on %link for 1
    %k3 = plan.task "B kv(3)" load_kv on %link for 1
    %k4 = plan.task "B kv(4)" load_kv on %link for 1
    %k5 = plan.task "B kv(5)" load_kv on %link for 1
    %k6 = plan.task "B kv(6)" load_kv on %link for 1
    %k7 = plan.task "B kv(7)" load_kv on %link for 1
    %k8 = plan.task "B kv(8)" load_kv on %link for 1
    %k9 = plan.task "B kv(9)" load_kv on %link for 1
    %k10 = plan.task "B kv(10)" load_kv on %link for 1
    %r1 = plan.task "B recompute 1" compute on %compute for 1
    %r2 = plan.task "B recompute 2" compute on %compute after %r1 for 1
    %r3 = plan.task "B recompute 3" compute on %compute after %r2 for 1
    plan.done %r3, %k4, %k5, %k6, %k7, %k8, %k9, %k10
  }
}
