// Room for two, and `two-pointer`, from the top layer down, fills it with what is needed last and gets stuck. `best` finds an order that fits.
// RUN: not ds-opt %s --plan-schedule=scheduler=two-pointer 2>&1 | FileCheck %s --check-prefix=STUCK
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// STUCK: 'two-pointer' finds no schedule for 'dead_end': at 4 'kv(0)' needs 1 of pool 'staging', where 2 of 2 are taken until tasks end that cannot start
// CHECK: cost 14 lower_bound 14 proven_optimal by bound
plan.problem @dead_end minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  %staging = plan.pool "staging" capacity 2
  plan.job @A arrives 0 {
    %k0 = plan.task "kv(0)" load_kv layer 0 on %link for 2
    %k1 = plan.task "kv(1)" load_kv layer 1 on %link for 2
    %k2 = plan.task "kv(2)" load_kv layer 2 on %link for 2
    %s0 = plan.task "suffix 0" compute on %compute after %k0 for 4
    %s1 = plan.task "suffix 1" compute on %compute after %s0, %k1 for 4
    %s2 = plan.task "suffix 2" compute on %compute after %s1, %k2 for 4
    plan.hold %k0 takes 1 of %staging until %s0
    plan.hold %k1 takes 1 of %staging until %s1
    plan.hold %k2 takes 1 of %staging until %s2
    plan.done %s2
  }
}
