// Aligned cuts: one operation for each transfer of E, between it and what reads it; chunk by chunk behind a cut, over
// the run of chunks of a restored layer. What the sender has mapped needs none.
// RUN: ds-opt %s --convert-reuse-to-plan --cse --plan-verify-lowered | FileCheck %s

// CHECK-LABEL: plan.variant @cut
// CHECK: aligned full by receiver
// CHECK: plan.tile recompute layers 1 to 2 chunks 0 to 1 cut
// CHECK: %[[E0:.*]] = plan.transfer e(1) chunk 0 into %[[H:.*]] on
// CHECK: %[[E1:.*]] = plan.transfer e(1) chunk 1 into %[[H]] on
// CHECK: %[[A0:.*]] = plan.align layer 1 chunk 0 in %[[H]] on %compute after %[[E0]]{{$}}
// CHECK: %[[A1:.*]] = plan.align layer 1 chunk 1 in %[[H]] on %compute after %[[E1]]{{$}}
// CHECK: plan.recompute layer 1 chunk 0 queries all in %[[H]] on %compute after %[[A0]]{{$}}
// CHECK: plan.recompute layer 1 chunk 1 queries all in %[[H]] on %compute after %[[A1]], %{{[^,]*$}}
// CHECK-NOT: plan.align
// CHECK: plan.head
reuse.plan @cut policy "droidspeak" layers 4 chunks 2 tokens [256, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 8, rate = 1000) promise(loss = 1.5, ttft_ns = 5) {
  %kv0 = reuse.load layers 0 to 0
  %cut = reuse.cut layer 1
  %map = reuse.align %cut full by receiver
  %kv1, %h3 = reuse.recompute layers 1 to 2 from %map
  %kv3 = reuse.load layers 3 to 3
  reuse.answer %kv0, %kv1, %kv3
}

// CHECK-LABEL: plan.variant @restored
// CHECK: aligned diagonal by receiver
// CHECK-DAG: %[[R1:.*]] = plan.transfer e(1) chunk 0 to 1 into %[[H1:.*]] on
// CHECK-DAG: %[[R2:.*]] = plan.transfer e(2) chunk 0 to 1 into %[[H2:.*]] on
// CHECK-NOT: plan.align layer 0
// CHECK: %[[B1:.*]] = plan.align layer 1 chunk 0 to 1 in %[[H1]] on %compute after %[[R1]]{{$}}
// CHECK-NEXT: plan.recompute layer 1 chunk 0 to 1 queries none in %[[H1]] on %compute after %[[B1]]{{$}}
// CHECK-NEXT: %[[B2:.*]] = plan.align layer 2 chunk 0 to 1 in %[[H2]] on %compute after %[[R2]]{{$}}
// CHECK-NEXT: plan.recompute layer 2 chunk 0 to 1 queries none in %[[H2]] on %compute after %[[B2]]{{$}}
reuse.plan @restored policy "restore" layers 4 chunks 2 tokens [128, 256) rate [0, inf)
    tuned(tokens = 128, suffix = 8, rate = 1000) promise(loss = 1.5, ttft_ns = 5) {
  %kv0 = reuse.restore layers 0 to 2 aligned diagonal by receiver
  %kv3 = reuse.load layers 3 to 3
  reuse.answer %kv0, %kv3
}

// CHECK-LABEL: plan.variant @mapped
// CHECK: aligned full by sender
// CHECK-NOT: plan.align
// CHECK: plan.recompute layer 1 chunk 0 queries all in %{{.*}} on %compute after %e1{{$}}
// CHECK-NOT: plan.align
reuse.plan @mapped policy "droidspeak" layers 4 tokens [1, 128) rate [0, inf)
    tuned(tokens = 100, suffix = 8, rate = 1000) promise(loss = 1.5, ttft_ns = 5) {
  %kv0 = reuse.load layers 0 to 0
  %cut = reuse.cut layer 1
  %map = reuse.align %cut full by sender
  %kv1, %h3 = reuse.recompute layers 1 to 2 from %map
  %kv3 = reuse.load layers 3 to 3
  reuse.answer %kv0, %kv1, %kv3
}
