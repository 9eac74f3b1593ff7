// Four requests that are alike: one order of them is as good as another. They end at 6, 10, 14 and 18.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: cost 48 lower_bound 48 proven_optimal by bound
scheduling.problem @alike minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "A e" load_e on %link for 2
    %k = scheduling.task "A kv" load_kv on %link for 2
    %r = scheduling.task "A recompute" compute on %compute after %e for 3
    %s = scheduling.task "A suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @B arrives 0 {
    %e = scheduling.task "B e" load_e on %link for 2
    %k = scheduling.task "B kv" load_kv on %link for 2
    %r = scheduling.task "B recompute" compute on %compute after %e for 3
    %s = scheduling.task "B suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @C arrives 0 {
    %e = scheduling.task "C e" load_e on %link for 2
    %k = scheduling.task "C kv" load_kv on %link for 2
    %r = scheduling.task "C recompute" compute on %compute after %e for 3
    %s = scheduling.task "C suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @D arrives 0 {
    %e = scheduling.task "D e" load_e on %link for 2
    %k = scheduling.task "D kv" load_kv on %link for 2
    %r = scheduling.task "D recompute" compute on %compute after %e for 3
    %s = scheduling.task "D suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
}
