// A job's arrival holds besides the release of its tasks: whichever is later.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: "early" load_kv on %link release 2 at 5 for 1
// CHECK: "late" load_kv on %link release 9 at 9 for 1
scheduling.problem @arrival minimize makespan {
  %link = plan.stream link
  scheduling.job @A arrives 5 {
    %a = scheduling.task "early" load_kv on %link release 2 for 1
    %b = scheduling.task "late" load_kv on %link release 9 for 1
    scheduling.done %a, %b
  }
}
