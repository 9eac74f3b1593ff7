// A scheduling problem, with and without a schedule.
// RUN: ds-opt %s | ds-opt | FileCheck %s

// CHECK-LABEL: plan.problem @two minimize sum scheduler "e-first" cost 6 lower_bound 5 {
// CHECK-NEXT:    %link = plan.stream link
// CHECK-NEXT:    %compute = plan.stream compute
// CHECK-NEXT:    plan.job @A arrives 0 {
// CHECK-NEXT:      %0 = plan.task "e(3)" load_e on %link at 0 for 1
// CHECK-NEXT:      %1 = plan.task "recompute 3" compute on %compute after %0 release 2 at 2 for 2
// CHECK-NEXT:      plan.done %1
// CHECK:         plan.job @B arrives 2 {
// CHECK-NEXT:      %0 = plan.task "kv(0)" load_kv on %link at 2 for 2
plan.problem @two minimize sum scheduler "e-first" cost 6 lower_bound 5 {
  %link = plan.stream link
  %compute = plan.stream compute
  plan.job @A arrives 0 {
    %e = plan.task "e(3)" load_e on %link at 0 for 1
    %r = plan.task "recompute 3" compute on %compute after %e release 2 at 2 for 2
    plan.done %r
  }
  plan.job @B arrives 2 {
    %k = plan.task "kv(0)" load_kv on %link at 2 for 2
    plan.done %k
  }
}

// CHECK-LABEL: plan.problem @rules minimize makespan scheduler "best" cost 15 lower_bound 15 proven_optimal by search {
// CHECK:         %0 = plan.pool "staging" capacity 4
// CHECK-NEXT:    plan.slowdown "copy" beside "memory" by 500
// CHECK:           plan.task "kv(0) c1" load_kv layer 0 chunk 1 on %link class "copy" at 0 until 15 for 10
// CHECK:           plan.hold %1 takes 3 of %0 until %2
plan.problem @rules minimize makespan scheduler "best" cost 15 lower_bound 15 proven_optimal by search {
  %link = plan.stream link
  %compute = plan.stream compute
  %staging = plan.pool "staging" capacity 4
  plan.slowdown "copy" beside "memory" by 500
  plan.job @A arrives 0 {
    %k = plan.task "kv(0) c1" load_kv layer 0 chunk 1 on %link class "copy" at 0 until 15 for 10
    %n = plan.task "norm" compute on %compute class "memory" at 0 for 20
    plan.hold %k takes 3 of %staging until %n
    plan.done %n
  }
}
