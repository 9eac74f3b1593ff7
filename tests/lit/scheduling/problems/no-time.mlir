// Tasks that take no time: they hold their stream for no time, and what waits for them starts at once.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 3 lower_bound 3 proven_optimal by bound
scheduling.problem @no_time minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %a = scheduling.task "hit" load_kv on %link for 0
    %b = scheduling.task "embed" compute on %compute after %a for 0
    %c = scheduling.task "suffix" compute on %compute after %b for 3
    scheduling.done %c
  }
}
