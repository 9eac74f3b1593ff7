// KV comes over the network, E from the host's memory over the bus: two loads at a time.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 13 lower_bound 13 proven_optimal by bound
scheduling.problem @two_links minimize makespan {
  %link = plan.stream link
  %copy = plan.stream copy
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "e(1)" load_e on %copy for 4
    %k0 = scheduling.task "kv(0)" load_kv on %link for 6
    %k2 = scheduling.task "kv(2)" load_kv on %link for 6
    %r1 = scheduling.task "recompute 1" compute on %compute after %e for 5
    %s0 = scheduling.task "suffix 0" compute on %compute after %k0 for 1
    %s1 = scheduling.task "suffix 1" compute on %compute after %s0, %r1 for 1
    %s2 = scheduling.task "suffix 2" compute on %compute after %s1, %k2 for 1
    scheduling.done %s2
  }
}
