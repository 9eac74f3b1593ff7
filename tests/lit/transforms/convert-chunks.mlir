// A staircase in four chunks: chunk 0 is recomputed from the embeddings up, chunks 1 to 3 from a cut at layer 1; of
// these, chunk 1 goes on to the top. E comes chunk by chunk and what stands on it is computed chunk by chunk; the
// other tiles are one operation per layer. KV that the staircase recomputes is not sent.
// RUN: ds-opt %s --convert-reuse-to-plan --cse --plan-verify-lowered | FileCheck %s
// RUN: ds-opt %s | ds-opt | FileCheck %s --check-prefix=SAME

// SAME: reuse.plan @stairs policy "balanced" layers 4 chunks 4 tokens [256, inf) rate [0, inf) load [0, 1)
// SAME: %[[H:.*]] = reuse.cut layer 1
// SAME: reuse.recompute layers 1 to 2 chunks 1 to 3 from %[[H]]

// CHECK-LABEL: plan.variant @stairs
// CHECK-SAME: load [0, 1)
// CHECK: chunks 4
// CHECK: plan.tile recompute layers 0 to 3 chunks 0 to 0
// CHECK: plan.tile recompute layers 1 to 2 chunks 1 to 3 cut
// CHECK: plan.tile recompute layers 3 to 3 chunks 1 to 1
// CHECK: plan.transfer e(1) chunk 1 into
// CHECK: plan.transfer e(1) chunk 2 into
// CHECK: plan.transfer e(1) chunk 3 into
// CHECK: plan.transfer kv(0) chunk 1 to 3 into
// CHECK-NOT: plan.transfer kv(1)
// CHECK-NOT: plan.transfer kv(2)
// CHECK: plan.transfer kv(3) chunk 2 to 3 into
// CHECK: %[[E0:.*]] = plan.embed chunk chunk 0 into
// CHECK: %[[R00:.*]] = plan.recompute layer 0 chunk 0 queries all {{.*}} after %[[E0]]
// The top layer of a column: K and V only.
// CHECK: plan.recompute layer 3 chunk 0 queries none
// CHECK: plan.recompute layer 1 chunk 1 queries all
// CHECK: plan.recompute layer 1 chunk 2 queries all
// CHECK: plan.recompute layer 1 chunk 3 queries all
// Layer 2 of chunk 1 goes on, that of chunks 2 and 3 does not.
// CHECK: %[[R21:.*]] = plan.recompute layer 2 chunk 1 queries all
// CHECK: plan.recompute layer 2 chunk 2 queries none
// CHECK: plan.recompute layer 2 chunk 3 queries none
// CHECK: plan.recompute layer 3 chunk 1 queries none {{.*}} after %[[R21]]
// CHECK: plan.suffix layer 0
// CHECK: plan.head
reuse.plan @stairs policy "balanced" layers 4 chunks 4 tokens [256, inf) rate [0, inf) load [0, 1)
    tuned(tokens = 512, suffix = 8, rate = 1000) promise(loss = 1.5, ttft_ns = 5) {
  %kv0, %h0 = reuse.recompute layers 0 to 3 chunks 0 to 0
  %kv1 = reuse.load layers 0 to 0 chunks 1 to 3
  %cut = reuse.cut layer 1
  %kv2, %h2 = reuse.recompute layers 1 to 2 chunks 1 to 3 from %cut
  %kv3, %h3 = reuse.recompute layers 3 to 3 chunks 1 to 1 from %h2
  %kv4 = reuse.load layers 3 to 3 chunks 2 to 3
  reuse.answer %kv0, %kv1, %kv2, %kv3, %kv4
}
