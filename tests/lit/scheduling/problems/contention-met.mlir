// With slowdowns a schedule is proven only where it meets the bound, which knows none: here the two that would
// disturb each other never run at the same time.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 9 lower_bound 9 proven_optimal by bound
scheduling.problem @never_beside minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.slowdown "copy" beside "memory" by 1000
  scheduling.job @A arrives 0 {
    %k = scheduling.task "kv(0)" load_kv on %link class "copy" for 5
    %n = scheduling.task "norm" compute on %compute after %k class "memory" for 4
    scheduling.done %n
  }
}
