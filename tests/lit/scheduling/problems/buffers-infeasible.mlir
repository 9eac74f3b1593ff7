// A kernel that needs two loads at once in a pool that has room for one: each fits alone, so the problem is sound, but
// no order works, and the search says so.
// RUN: not ds-opt %s --plan-schedule=scheduler=best 2>&1 | FileCheck %s

// CHECK: error: no schedule for 'infeasible': {{.*}} needs 1 of pool 'staging', where 1 of 1 are taken {{.*}} a search through all orders found none; give the pools more room
plan.problem @infeasible minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  %staging = plan.pool "staging" capacity 1
  plan.job @A arrives 0 {
    %a = plan.task "e(1) c0" load_e on %link for 2
    %b = plan.task "e(1) c1" load_e on %link for 2
    %r = plan.task "recompute 1" compute on %compute after %a, %b for 4
    plan.hold %a takes 1 of %staging until %r
    plan.hold %b takes 1 of %staging until %r
    plan.done %r
  }
}
