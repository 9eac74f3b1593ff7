// The same request in one chunk: nothing overlaps within a layer, and it takes longer than in three:
// 9 for E, 2 kernels of 15, 4 suffix kernels of 2.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 47 lower_bound 47 proven_optimal by bound
scheduling.problem @one_chunk minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e0 = scheduling.task "e(1) c0" load_e layer 1 chunk 0 on %link for 9
    %k0_0 = scheduling.task "kv(0) c0" load_kv layer 0 chunk 0 on %link for 9
    %k3_0 = scheduling.task "kv(3) c0" load_kv layer 3 chunk 0 on %link for 9
    %r1_0 = scheduling.task "recompute 1 c0" compute layer 1 chunk 0 on %compute after %e0 for 15
    %r2_0 = scheduling.task "recompute 2 c0" compute layer 2 chunk 0 on %compute after %r1_0 for 15
    %s0 = scheduling.task "suffix 0" compute layer 0 on %compute after %k0_0 for 2
    %s1 = scheduling.task "suffix 1" compute layer 1 on %compute after %r1_0, %s0 for 2
    %s2 = scheduling.task "suffix 2" compute layer 2 on %compute after %r2_0, %s1 for 2
    %s3 = scheduling.task "suffix 3" compute layer 3 on %compute after %k3_0, %s2 for 2
    scheduling.done %s3
  }
}
