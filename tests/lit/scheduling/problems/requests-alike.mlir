// Four requests that are alike: one order of them is as good as another. They end at 6, 10, 14 and 18.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 48 lower_bound 48 proven_optimal by bound
plan.problem @alike minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  plan.job @A arrives 0 {
    %e = plan.task "A e" load_e on %link for 2
    %k = plan.task "A kv" load_kv on %link for 2
    %r = plan.task "A recompute" compute on %compute after %e for 3
    %s = plan.task "A suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @B arrives 0 {
    %e = plan.task "B e" load_e on %link for 2
    %k = plan.task "B kv" load_kv on %link for 2
    %r = plan.task "B recompute" compute on %compute after %e for 3
    %s = plan.task "B suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @C arrives 0 {
    %e = plan.task "C e" load_e on %link for 2
    %k = plan.task "C kv" load_kv on %link for 2
    %r = plan.task "C recompute" compute on %compute after %e for 3
    %s = plan.task "C suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @D arrives 0 {
    %e = plan.task "D e" load_e on %link for 2
    %k = plan.task "D kv" load_kv on %link for 2
    %r = plan.task "D recompute" compute on %compute after %e for 3
    %s = plan.task "D suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
}
