// A copy of 10 beside a memory-bound kernel of 6: the copy runs at half speed while the kernel does, the kernel at two
// thirds (so it takes 9). A matrix product would not mind. Ends are later than at + for, and written down.
// RUN: ds-opt %s --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s

// CHECK: cost 15 lower_bound 10 {
// CHECK: "kv(0)" load_kv on %link class "copy" at 0 until 15 for 10
// CHECK: "norm" compute on %compute class "memory" at 0 until 9 for 6
// CHECK: "product" compute on %compute after %1 class "matrix" at 9 for 4
scheduling.problem @contention minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.slowdown "copy" beside "memory" by 1000
  scheduling.slowdown "memory" beside "copy" by 500
  scheduling.job @A arrives 0 {
    %k = scheduling.task "kv(0)" load_kv on %link class "copy" for 10
    %n = scheduling.task "norm" compute on %compute class "memory" for 6
    %p = scheduling.task "product" compute on %compute after %n class "matrix" for 4
    scheduling.done %k, %p
  }
}
