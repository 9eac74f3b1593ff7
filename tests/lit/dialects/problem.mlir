// A scheduling problem, with and without a schedule.
// RUN: ds-opt %s | ds-opt | FileCheck %s

// CHECK-LABEL: scheduling.problem @two minimize sum scheduler "e-first" cost 6 lower_bound 5 {
// CHECK-NEXT:    %link = plan.stream link
// CHECK-NEXT:    %compute = plan.stream compute
// CHECK-NEXT:    scheduling.job @A arrives 0 {
// CHECK-NEXT:      %0 = scheduling.task "e(3)" load_e on %link at 0 for 1
// CHECK-NEXT:      %1 = scheduling.task "recompute 3" compute on %compute after %0 release 2 at 2 for 2
// CHECK-NEXT:      scheduling.done %1
// CHECK:         scheduling.job @B arrives 2 {
// CHECK-NEXT:      %0 = scheduling.task "kv(0)" load_kv on %link at 2 for 2
scheduling.problem @two minimize sum scheduler "e-first" cost 6 lower_bound 5 {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "e(3)" load_e on %link at 0 for 1
    %r = scheduling.task "recompute 3" compute on %compute after %e release 2 at 2 for 2
    scheduling.done %r
  }
  scheduling.job @B arrives 2 {
    %k = scheduling.task "kv(0)" load_kv on %link at 2 for 2
    scheduling.done %k
  }
}

// CHECK-LABEL: scheduling.problem @rules minimize makespan scheduler "best" cost 15 lower_bound 15 proven_optimal by search {
// CHECK:         scheduling.slowdown "copy" beside "memory" by 500
// CHECK:           scheduling.task "kv(0) c1" load_kv layer 0 chunk 1 on %link class "copy" at 0 until 15 for 10
scheduling.problem @rules minimize makespan scheduler "best" cost 15 lower_bound 15 proven_optimal by search {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.slowdown "copy" beside "memory" by 500
  scheduling.job @A arrives 0 {
    %k = scheduling.task "kv(0) c1" load_kv layer 0 chunk 1 on %link class "copy" at 0 until 15 for 10
    %n = scheduling.task "norm" compute on %compute class "memory" at 0 for 20
    scheduling.done %n
  }
}
