// Tiles -> transfers, kernels, waits. All KV of the entry is transferred, also what is recomputed.
// RUN: ds-opt %s --convert-reuse-to-plan | FileCheck %s

// A group in the middle: E of its first layer; the last layer of the group makes K and V only; the suffix of a
// layer waits for that layer's cache and for the layer below.
// CHECK-LABEL: plan.variant @middle policy "droidspeak" scheduler "none" tokens [256, 1024) rate [8, 40)
// CHECK-NEXT:    tuned(tokens = 512, suffix = 32, rate = 20) chunks 1 promise(loss = 1.8, ttft_ns = 7) {
// CHECK:         %hs = plan.buffer hidden layer 0 with suffix
// CHECK-NEXT:    %h1 = plan.buffer hidden layer 1 with context
// CHECK-NEXT:    plan.tile load layers 0 to 0 chunks 0 to 0
// CHECK-NEXT:    plan.tile recompute layers 1 to 2 chunks 0 to 0 cut
// CHECK-NEXT:    plan.tile load layers 3 to 3 chunks 0 to 0
// CHECK-NEXT:    %e1 = plan.transfer e(1) chunk 0 into %h1 on %link{{$}}
// CHECK-NEXT:    %t0 = plan.transfer kv(0) chunk 0 into %kv0 on %link
// CHECK-NEXT:    %t1 = plan.transfer kv(1) chunk 0 into %kv1 on %link
// CHECK-NEXT:    %t2 = plan.transfer kv(2) chunk 0 into %kv2 on %link
// CHECK-NEXT:    %t3 = plan.transfer kv(3) chunk 0 into %kv3 on %link
// CHECK-NEXT:    %embed = plan.embed suffix into %hs on %compute
// CHECK-NEXT:    %r1 = plan.recompute layer 1 chunk 0 queries all in %h1 on %compute after %e1
// CHECK-NEXT:    %r2 = plan.recompute layer 2 chunk 0 queries none in %h1 on %compute after %r1
// CHECK-NEXT:    %s0 = plan.suffix layer 0 queries all in %hs on %compute after %t0, %embed
// CHECK-NEXT:    %s1 = plan.suffix layer 1 queries all in %hs on %compute after %r1, %s0
// CHECK-NEXT:    %s2 = plan.suffix layer 2 queries all in %hs on %compute after %r2, %s1
// CHECK-NEXT:    %s3 = plan.suffix layer 3 queries last in %hs on %compute after %t3, %s2
// CHECK-NEXT:    %head = plan.head in %hs on %compute after %s3
// CHECK-NEXT:  }
reuse.plan @middle policy "droidspeak" layers 4 tokens [256, 1024) rate [8, 40)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a = reuse.load layers 0 to 0
  %h = reuse.cut layer 1
  %b, %h3 = reuse.recompute layers 1 to 2 from %h
  %c = reuse.load layers 3 to 3
  reuse.answer %a, %b, %c
}

// A group from layer 0 needs nothing from the sender for its layers: context and suffix go up together, the
// context as far as K and V of the group's last layer.
// CHECK-LABEL: plan.variant @first
// CHECK:         %h0 = plan.buffer hidden layer 0 with context suffix
// CHECK:         %embed = plan.embed all into %h0 on %compute
// CHECK-NEXT:    %p0 = plan.prefill layer 0 queries all in %h0 on %compute after %embed
// CHECK-NEXT:    %p1 = plan.prefill layer 1 queries suffix in %h0 on %compute after %p0
// CHECK-NEXT:    %s2 = plan.suffix layer 2 queries last in %h0 on %compute after %t2, %p1
// CHECK-NEXT:    %head = plan.head in %h0 on %compute after %s2
reuse.plan @first policy "droidspeak" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a, %h = reuse.recompute layers 0 to 1
  %b = reuse.load layers 2 to 2
  reuse.answer %a, %b
}

// A group at the top.
// CHECK-LABEL: plan.variant @top
// CHECK:         %r2 = plan.recompute layer 2 chunk 0 queries none in %h2 on %compute after %e2
// CHECK:         %s2 = plan.suffix layer 2 queries last in %hs on %compute after %r2, %s1
reuse.plan @top policy "droidspeak" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a = reuse.load layers 0 to 1
  %h = reuse.cut layer 2
  %b, %h3 = reuse.recompute layers 2 to 2 from %h
  reuse.answer %a, %b
}

// A tile that goes on from the tile below: one chain, one buffer, one cut; then another group with its own cut.
// CHECK-LABEL: plan.variant @stairs
// CHECK:         %e1 = plan.transfer e(1)
// CHECK-NEXT:    %e4 = plan.transfer e(4)
// CHECK:         %r1 = plan.recompute layer 1 chunk 0 queries all in %h1 on %compute after %e1
// CHECK-NEXT:    %r2 = plan.recompute layer 2 chunk 0 queries none in %h1 on %compute after %r1
// CHECK-NEXT:    %r4 = plan.recompute layer 4 chunk 0 queries none in %h4 on %compute after %e4
reuse.plan @stairs policy "p" layers 5 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a = reuse.load layers 0 to 0
  %h = reuse.cut layer 1
  %b, %h2 = reuse.recompute layers 1 to 1 from %h
  %c, %h3 = reuse.recompute layers 2 to 2 from %h2
  %d = reuse.load layers 3 to 3
  %h4 = reuse.cut layer 4
  %e, %h5 = reuse.recompute layers 4 to 4 from %h4
  reuse.answer %a, %b, %c, %d, %e
}

// Restored layers: E of each is sent into a buffer of its own, K and V are computed of it, and nothing goes on.
// CHECK-LABEL: plan.variant @restored
// CHECK:         %hs = plan.buffer hidden layer 0 with suffix
// CHECK-NEXT:    %h1 = plan.buffer hidden layer 1 with context
// CHECK-NEXT:    %h2 = plan.buffer hidden layer 2 with context
// CHECK-NEXT:    plan.tile load layers 0 to 0 chunks 0 to 0
// CHECK-NEXT:    plan.tile restore layers 1 to 2 chunks 0 to 0
// CHECK-NEXT:    %e1 = plan.transfer e(1) chunk 0 into %h1 on %link
// CHECK-NEXT:    %e2 = plan.transfer e(2) chunk 0 into %h2 on %link
// CHECK-NEXT:    %t0 = plan.transfer kv(0) chunk 0 into %kv0 on %link
// CHECK:         %r1 = plan.recompute layer 1 chunk 0 queries none in %h1 on %compute after %e1
// CHECK-NEXT:    %r2 = plan.recompute layer 2 chunk 0 queries none in %h2 on %compute after %e2
// CHECK-NEXT:    %s0 = plan.suffix layer 0 queries all in %hs on %compute after %t0, %embed
// CHECK-NEXT:    %s1 = plan.suffix layer 1 queries all in %hs on %compute after %r1, %s0
// CHECK-NEXT:    %s2 = plan.suffix layer 2 queries last in %hs on %compute after %r2, %s1
reuse.plan @restored policy "restore" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a = reuse.load layers 0 to 0
  %b = reuse.restore layers 1 to 2
  reuse.answer %a, %b
}

// From layer 0: its K and V come from the embeddings, along with the suffix.
// CHECK-LABEL: plan.variant @restored_all
// CHECK-NOT:     plan.transfer e(0)
// CHECK:         %p0 = plan.prefill layer 0 queries suffix in %h0 on %compute after %embed
// CHECK-NEXT:    %r1 = plan.recompute layer 1 chunk 0 queries none in %h1 on %compute after %e1
// CHECK-NEXT:    %s1 = plan.suffix layer 1 queries last in %h0 on %compute after %p0, %r1
reuse.plan @restored_all policy "restore" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a = reuse.restore layers 0 to 1
  reuse.answer %a
}

// Selected tokens: layer 0 by the receiver, a choice over the sender's K of layer 1, those tokens upward; the
// suffix of a layer waits for its selected tokens.
// CHECK-LABEL: plan.variant @selected
// CHECK-SAME:    policy "select"
// CHECK:         selects 0.15 {
// CHECK:         plan.tile recompute layers 0 to 0 chunks 0 to 0
// CHECK-NEXT:    plan.tile select layers 1 to 2 chunks 0 to 0
// CHECK-NEXT:    %t0 = plan.transfer kv(0)
// CHECK-NEXT:    %t1 = plan.transfer kv(1)
// CHECK-NEXT:    %t2 = plan.transfer kv(2)
// CHECK-NEXT:    %embed = plan.embed all into %h0 on %compute
// CHECK-NEXT:    %p0 = plan.prefill layer 0 queries all in %h0 on %compute after %embed
// CHECK-NEXT:    %select = plan.select layer 1 in %h0 on %compute after %t1, %p0
// CHECK-NEXT:    %r1 = plan.recompute layer 1 selected queries all in %h0 on %compute after %t1, %select
// CHECK-NEXT:    %r2 = plan.recompute layer 2 selected queries none in %h0 on %compute after %t2, %r1
// CHECK-NEXT:    %s1 = plan.suffix layer 1 queries all in %h0 on %compute after %p0, %r1
// CHECK-NEXT:    %s2 = plan.suffix layer 2 queries last in %h0 on %compute after %r2, %s1
reuse.plan @selected policy "select" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 1.8, ttft_ns = 7) {
  %a, %h = reuse.recompute layers 0 to 0
  %b = reuse.select layers 1 to 2 share 0.15 from %h
  reuse.answer %a, %b
}

// The full prefill: nothing is sent, and there is no link stream.
// CHECK-LABEL: plan.variant @prefill fallback
// CHECK-NOT:     plan.stream link
// CHECK-NOT:     plan.transfer
// CHECK:         %p1 = plan.prefill layer 1 queries last in %h0 on %compute after %p0
// CHECK-NEXT:    %head = plan.head in %h0 on %compute after %p1
reuse.plan @prefill fallback policy "full-prefill" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 512, suffix = 32, rate = 20) promise(loss = 0.0, ttft_ns = 7) {
  %a, %h = reuse.recompute layers 0 to 1
  reuse.answer %a
}
