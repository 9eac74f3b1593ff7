// Beside two others the larger slowdown holds; they do not add up.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: "kernel" compute on %compute class "c" at 0 until 40 for 20
scheduling.problem @largest minimize makespan {
  %link = plan.stream link
  %copy = plan.stream copy
  %compute = plan.stream compute
  scheduling.slowdown "c" beside "a" by 1000
  scheduling.slowdown "c" beside "b" by 300
  scheduling.job @A arrives 0 {
    %a = scheduling.task "from the network" load_kv on %link class "a" for 60
    %b = scheduling.task "from the host" load_kv on %copy class "b" for 60
    %c = scheduling.task "kernel" compute on %compute class "c" for 20
    scheduling.done %a, %b, %c
  }
}
