// Room for one layer: nothing overlaps, and only the search can prove that, since the bounds know no pools.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 18 lower_bound 18 proven_optimal by search
plan.problem @staging_1 minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  %staging = plan.pool "staging" capacity 1
  plan.job @A arrives 0 {
    %k0 = plan.task "kv(0)" load_kv on %link for 2
    %k1 = plan.task "kv(1)" load_kv on %link for 2
    %k2 = plan.task "kv(2)" load_kv on %link for 2
    %s0 = plan.task "suffix 0" compute on %compute after %k0 for 4
    %s1 = plan.task "suffix 1" compute on %compute after %s0, %k1 for 4
    %s2 = plan.task "suffix 2" compute on %compute after %s1, %k2 for 4
    plan.hold %k0 takes 1 of %staging until %s0
    plan.hold %k1 takes 1 of %staging until %s1
    plan.hold %k2 takes 1 of %staging until %s2
    plan.done %s2
  }
}
