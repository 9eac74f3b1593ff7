// The same two requests, but what counts is when the last one ends.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 23 lower_bound 23 proven_optimal by bound
scheduling.problem @last_end minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @long arrives 0 {
    %e = scheduling.task "long e" load_e on %link for 10
    %k = scheduling.task "long kv" load_kv on %link for 10
    %r = scheduling.task "long recompute" compute on %compute after %e for 10
    %s = scheduling.task "long suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @short arrives 1 {
    %e = scheduling.task "short e" load_e on %link for 1
    %k = scheduling.task "short kv" load_kv on %link for 1
    %r = scheduling.task "short recompute" compute on %compute after %e for 1
    %s = scheduling.task "short suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
}
