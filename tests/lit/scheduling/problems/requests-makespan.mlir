// The same two requests, but what counts is when the last one ends.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 23 lower_bound 23 proven_optimal by bound
plan.problem @last_end minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  plan.job @long arrives 0 {
    %e = plan.task "long e" load_e on %link for 10
    %k = plan.task "long kv" load_kv on %link for 10
    %r = plan.task "long recompute" compute on %compute after %e for 10
    %s = plan.task "long suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @short arrives 1 {
    %e = plan.task "short e" load_e on %link for 1
    %k = plan.task "short kv" load_kv on %link for 1
    %r = plan.task "short recompute" compute on %compute after %e for 1
    %s = plan.task "short suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
}
