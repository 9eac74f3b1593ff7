// One request in three token chunks: the second chunk of E arrives while the first is recomputed. `cake` (last chunk
// first) makes the kernels wait, `two-pointer` (top layer first) too, though less. Nothing beats
// 3 for the first E, 6 kernels of 5 and 4 suffix kernels of 2.
// RUN: ds-opt %s --plan-schedule=scheduler=cake --plan-verify-schedule | FileCheck %s --check-prefix=CAKE
// RUN: ds-opt %s --plan-schedule=scheduler=two-pointer --plan-verify-schedule | FileCheck %s --check-prefix=POINTERS
// RUN: ds-opt %s --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CAKE: cost 60 lower_bound 41 {
// POINTERS: cost 50 lower_bound 41 {
// EFIRST: cost 41 lower_bound 41 proven_optimal by bound
// CHECK: cost 41 lower_bound 41 proven_optimal by bound
scheduling.problem @chunks minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e0 = scheduling.task "e(1) c0" load_e layer 1 chunk 0 on %link for 3
    %e1 = scheduling.task "e(1) c1" load_e layer 1 chunk 1 on %link for 3
    %e2 = scheduling.task "e(1) c2" load_e layer 1 chunk 2 on %link for 3
    %k0_0 = scheduling.task "kv(0) c0" load_kv layer 0 chunk 0 on %link for 3
    %k0_1 = scheduling.task "kv(0) c1" load_kv layer 0 chunk 1 on %link for 3
    %k0_2 = scheduling.task "kv(0) c2" load_kv layer 0 chunk 2 on %link for 3
    %k3_0 = scheduling.task "kv(3) c0" load_kv layer 3 chunk 0 on %link for 3
    %k3_1 = scheduling.task "kv(3) c1" load_kv layer 3 chunk 1 on %link for 3
    %k3_2 = scheduling.task "kv(3) c2" load_kv layer 3 chunk 2 on %link for 3
    %r1_0 = scheduling.task "recompute 1 c0" compute layer 1 chunk 0 on %compute after %e0 for 5
    %r1_1 = scheduling.task "recompute 1 c1" compute layer 1 chunk 1 on %compute after %e1, %r1_0 for 5
    %r1_2 = scheduling.task "recompute 1 c2" compute layer 1 chunk 2 on %compute after %e2, %r1_1 for 5
    %r2_0 = scheduling.task "recompute 2 c0" compute layer 2 chunk 0 on %compute after %r1_0 for 5
    %r2_1 = scheduling.task "recompute 2 c1" compute layer 2 chunk 1 on %compute after %r1_1, %r2_0 for 5
    %r2_2 = scheduling.task "recompute 2 c2" compute layer 2 chunk 2 on %compute after %r1_2, %r2_1 for 5
    %s0 = scheduling.task "suffix 0" compute layer 0 on %compute after %k0_0, %k0_1, %k0_2 for 2
    %s1 = scheduling.task "suffix 1" compute layer 1 on %compute after %r1_2, %s0 for 2
    %s2 = scheduling.task "suffix 2" compute layer 2 on %compute after %r2_2, %s1 for 2
    %s3 = scheduling.task "suffix 3" compute layer 3 on %compute after %k3_0, %k3_1, %k3_2, %s2 for 2
    scheduling.done %s3
  }
}
