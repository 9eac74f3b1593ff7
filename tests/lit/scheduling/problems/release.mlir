// Loads that a slow store releases late: the kernels that need none of them go first.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 19 lower_bound 19 proven_optimal by bound
scheduling.problem @release minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %k0 = scheduling.task "kv(0)" load_kv on %link release 10 for 3
    %k1 = scheduling.task "kv(1)" load_kv on %link release 4 for 3
    %r2 = scheduling.task "recompute 2" compute on %compute for 6
    %s0 = scheduling.task "suffix 0" compute on %compute after %k0 for 2
    %s1 = scheduling.task "suffix 1" compute on %compute after %s0, %k1 for 2
    %s2 = scheduling.task "suffix 2" compute on %compute after %s1, %r2 for 2
    scheduling.done %s2
  }
}
