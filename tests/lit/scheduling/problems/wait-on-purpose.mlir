// The only best schedule lets the link idle until 1, although a load could start at 0: the urgent one is released
// then. Strategies that never idle needlessly miss it; the search does not.
// RUN: ds-opt %s --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// EFIRST: cost 29 lower_bound 22 {
// CHECK: cost 22 lower_bound 22 proven_optimal by bound
// CHECK: "urgent" load_kv on %link release 1 at 1 for 1
scheduling.problem @wait_on_purpose minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %long = scheduling.task "long" load_e on %link for 8
    %urgent = scheduling.task "urgent" load_kv on %link release 1 for 1
    %tail = scheduling.task "tail" compute on %compute after %urgent for 20
    scheduling.done %tail, %long
  }
}
