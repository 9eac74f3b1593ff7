// Three requests with little in common. No bound reaches the optimum; the search proves it by leaving nothing out.
// `serial`: A ends at 10, B at 19, C at 26, less arrivals 1 and 2.
// RUN: ds-opt %s --plan-schedule=scheduler=serial --plan-verify-schedule | FileCheck %s --check-prefix=SERIAL
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// SERIAL: cost 52 lower_bound 28 {
// CHECK: cost 34 lower_bound 34 proven_optimal by search
scheduling.problem @mixed minimize sum {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "A e" load_e on %link for 4
    %k = scheduling.task "A kv" load_kv on %link for 4
    %r = scheduling.task "A recompute" compute on %compute after %e for 1
    %s = scheduling.task "A suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @B arrives 1 {
    %e = scheduling.task "B e" load_e on %link for 1
    %k = scheduling.task "B kv" load_kv on %link for 1
    %r = scheduling.task "B recompute" compute on %compute after %e for 6
    %s = scheduling.task "B suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
  scheduling.job @C arrives 2 {
    %e = scheduling.task "C e" load_e on %link for 2
    %k = scheduling.task "C kv" load_kv on %link for 2
    %r = scheduling.task "C recompute" compute on %compute after %e for 2
    %s = scheduling.task "C suffix" compute on %compute after %r, %k for 1
    scheduling.done %s
  }
}
