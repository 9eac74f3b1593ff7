// A job's arrival holds besides the release of its tasks: whichever is later.
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s

// CHECK: "early" load_kv on %link release 2 at 5 for 1
// CHECK: "late" load_kv on %link release 9 at 9 for 1
plan.problem @arrival minimize makespan {
  %link = plan.stream link
  plan.job @A arrives 5 {
    %a = plan.task "early" load_kv on %link release 2 for 1
    %b = plan.task "late" load_kv on %link release 9 for 1
    plan.done %a, %b
  }
}
