// Three requests with little in common. No bound reaches the optimum; the search proves it by leaving nothing out.
// `serial`: A ends at 10, B at 19, C at 26, less arrivals 1 and 2.
// RUN: ds-opt %s --plan-schedule=scheduler=serial --plan-verify-schedule | FileCheck %s --check-prefix=SERIAL
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// SERIAL: cost 52 lower_bound 28 {
// CHECK: cost 34 lower_bound 34 proven_optimal by search
plan.problem @mixed minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  plan.job @A arrives 0 {
    %e = plan.task "A e" load_e on %link for 4
    %k = plan.task "A kv" load_kv on %link for 4
    %r = plan.task "A recompute" compute on %compute after %e for 1
    %s = plan.task "A suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @B arrives 1 {
    %e = plan.task "B e" load_e on %link for 1
    %k = plan.task "B kv" load_kv on %link for 1
    %r = plan.task "B recompute" compute on %compute after %e for 6
    %s = plan.task "B suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
  plan.job @C arrives 2 {
    %e = plan.task "C e" load_e on %link for 2
    %k = plan.task "C kv" load_kv on %link for 2
    %r = plan.task "C recompute" compute on %compute after %e for 2
    %s = plan.task "C suffix" compute on %compute after %r, %k for 1
    plan.done %s
  }
}
