// Figure 13 of the paper: 10 layers (counted from 1 here, as there); every load and every recompute takes 1.
// A recomputes layers 4 to 10 and arrives at 0, B recomputes layers 1 to 3 and arrives at 2. The entry holds the KV
// of all layers: `serial` moves it all, the others leave out what nothing waits for.
// RUN: ds-opt %s --plan-schedule=scheduler=serial --plan-verify-schedule | FileCheck %s --check-prefix=SERIAL
// RUN: ds-opt %s --cse --plan-schedule=scheduler=kv-preload --plan-verify-schedule | FileCheck %s --check-prefix=PRELOAD
// RUN: ds-opt %s --cse --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --cse --plan-schedule=scheduler=kv-first --plan-verify-schedule | FileCheck %s --check-prefix=KVFIRST
// RUN: ds-opt %s --cse --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s --check-prefix=BEST

// A ends at 18; B waits for A and ends at 31, less its arrival 29.
// SERIAL: scheduling.problem @figure_13 minimize sum scheduler "serial" cost 47
// SERIAL: scheduling.task "A recompute 10" {{.*}} at 17 for 1
// SERIAL: scheduling.task "B recompute 3" {{.*}} at 30 for 1

// A ends at 11, B at 21, less its arrival 19.
// PRELOAD: scheduling.problem @figure_13 minimize sum scheduler "kv-preload" cost 30
// PRELOAD: scheduling.task "A recompute 10" {{.*}} at 10 for 1
// PRELOAD: scheduling.task "B recompute 3" {{.*}} at 20 for 1

// A ends at 8, B at 11, less its arrival 9. No schedule does better.
// EFIRST: scheduling.problem @figure_13 minimize sum scheduler "e-first" cost 17 lower_bound 17 proven_optimal
// EFIRST: scheduling.task "A e(4)" load_e on %link at 0 for 1
// EFIRST: scheduling.task "A recompute 10" {{.*}} at 7 for 1
// EFIRST: scheduling.task "B kv(10)" load_kv on %link at 10 for 1

// KVFIRST: scheduling.problem @figure_13 minimize sum scheduler "kv-first" cost 23 lower_bound 17 {

// BEST: scheduling.problem @figure_13 minimize sum scheduler "best" cost 17 lower_bound 17 proven_optimal

scheduling.problem @figure_13 minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "A e(4)" load_e on %link for 1
    %k1 = scheduling.task "A kv(1)" load_kv on %link for 1
    %k2 = scheduling.task "A kv(2)" load_kv on %link for 1
    %k3 = scheduling.task "A kv(3)" load_kv on %link for 1
    %k4 = scheduling.task "A kv(4)" load_kv on %link for 1
    %k5 = scheduling.task "A kv(5)" load_kv on %link for 1
    %k6 = scheduling.task "A kv(6)" load_kv on %link for 1
    %k7 = scheduling.task "A kv(7)" load_kv on %link for 1
    %k8 = scheduling.task "A kv(8)" load_kv on %link for 1
    %k9 = scheduling.task "A kv(9)" load_kv on %link for 1
    %k10 = scheduling.task "A kv(10)" load_kv on %link for 1
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
    %k1 = scheduling.task "B kv(1)" load_kv on %link for 1
    %k2 = scheduling.task "B kv(2)" load_kv on %link for 1
    %k3 = scheduling.task "B kv(3)" load_kv on %link for 1
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
