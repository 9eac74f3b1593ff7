// Loads that nothing waits for are left out, in variants and in problems; kernels stay.
// RUN: ds-opt %s --cse | FileCheck %s

// CHECK-LABEL: plan.variant @v
// CHECK-NOT:     kv(1)
// CHECK:         plan.transfer kv(0)
// CHECK-NOT:     kv(1)
// CHECK:         plan.suffix layer 1
plan.variant @v policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %c = plan.stream compute
  %k0 = plan.buffer kv layer 0 with context suffix
  %k1 = plan.buffer kv layer 1 with context suffix
  %h = plan.buffer hidden layer 0 with suffix
  %0 = plan.transfer kv(1) chunk 0 into %k1 on %l
  %1 = plan.transfer kv(0) chunk 0 into %k0 on %l
  %2 = plan.suffix layer 1 queries all in %h on %c after %1
}

// CHECK-LABEL: scheduling.problem @p
// CHECK-NOT:     unneeded
// CHECK:         "needed at the end" load_kv
// CHECK-NEXT:    "kernel" compute
scheduling.problem @p minimize makespan {
  %l = plan.stream link
  %c = plan.stream compute
  scheduling.job @A arrives 0 {
    %0 = scheduling.task "unneeded" load_kv on %l for 1
    %1 = scheduling.task "needed at the end" load_kv on %l for 1
    %2 = scheduling.task "kernel" compute on %c for 1
    scheduling.done %1
  }
}
