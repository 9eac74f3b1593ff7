// The dialect reads back what it prints.
// RUN: ds-opt %s | ds-opt | FileCheck %s

// CHECK-LABEL: plan.file version 1 dtype "bf16"
// CHECK-NEXT:    sender <name = "s \22quoted\22", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
// CHECK-NEXT:    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
// CHECK-NEXT:    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
// CHECK-NEXT:    compiler "0.1.0" flags "--recompute 1-1"
// CHECK-NEXT:    inputs [#plan.input<role = "sender", name = "s", sha256 = "00">]
plan.file version 1 dtype "bf16"
    sender <name = "s \22quoted\22", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "--recompute 1-1"
    inputs [#plan.input<role = "sender", name = "s", sha256 = "00">] {

  // CHECK: plan.variant @v0 policy "droidspeak" scheduler "e-first" tokens [256, 1024) rate [0, inf)
  // CHECK-NEXT: tuned(tokens = 512, suffix = 32, rate = 20000000) chunks 2 promise(loss = -0.5, ttft_ns = 70)
  // CHECK-SAME: makespan 70 lower_bound 60 {
  plan.variant @v0 policy "droidspeak" scheduler "e-first" tokens [256, 1024) rate [0, inf)
      tuned(tokens = 512, suffix = 32, rate = 20000000) chunks 2 promise(loss = -0.5, ttft_ns = 70)
      makespan 70 lower_bound 60 {
    // CHECK-NEXT: %link = plan.stream link
    // CHECK-NEXT: %compute = plan.stream compute
    // CHECK-NEXT: %kv0 = plan.buffer kv layer 0 with context suffix
    // CHECK-NEXT: %kv1 = plan.buffer kv layer 1 with context suffix
    // CHECK-NEXT: %hs = plan.buffer hidden layer 0 with suffix
    // CHECK-NEXT: %h1 = plan.buffer hidden layer 1 with context
    // CHECK-NEXT: plan.tile load layers 0 to 0 chunks 0 to 1
    // CHECK-NEXT: plan.tile recompute layers 1 to 1 chunks 0 to 1 cut
    %l = plan.stream link
    %c = plan.stream compute
    %k0 = plan.buffer kv layer 0 with context suffix
    %k1 = plan.buffer kv layer 1 with context suffix
    %s = plan.buffer hidden layer 0 with suffix
    %h = plan.buffer hidden layer 1 with context
    plan.tile load layers 0 to 0 chunks 0 to 1
    plan.tile recompute layers 1 to 1 chunks 0 to 1 cut
    // CHECK-NEXT: %e1 = plan.transfer e(1) chunk 0 into %h1 on %link at 0 for 10
    // CHECK-NEXT: %e1_c1 = plan.transfer e(1) chunk 1 into %h1 on %link at 10 for 10
    // CHECK-NEXT: %r1 = plan.recompute layer 1 chunk 0 queries none in %h1 on %compute after %e1 at 10 for 5
    // CHECK-NEXT: %t0 = plan.transfer kv(0) chunk 0 into %kv0 on %link at 20 for 10
    // CHECK-NEXT: %embed = plan.embed suffix into %hs on %compute at 20 for 1
    // CHECK-NEXT: %s0 = plan.suffix layer 0 queries all in %hs on %compute after %t0, %embed at 30 for 1
    // CHECK-NEXT: %s1 = plan.suffix layer 1 queries last in %hs on %compute after %r1, %s0 at 31 for 1
    // CHECK-NEXT: %head = plan.head in %hs on %compute after %s1 at 32 for 38
    %0 = plan.transfer e(1) chunk 0 into %h on %l at 0 for 10
    %1 = plan.transfer e(1) chunk 1 into %h on %l at 10 for 10
    %2 = plan.recompute layer 1 chunk 0 queries none in %h on %c after %0 at 10 for 5
    %3 = plan.transfer kv(0) chunk 0 into %k0 on %l at 20 for 10
    %4 = plan.embed suffix into %s on %c at 20 for 1
    %5 = plan.suffix layer 0 queries all in %s on %c after %3, %4 at 30 for 1
    %6 = plan.suffix layer 1 queries last in %s on %c after %2, %5 at 31 for 1
    %7 = plan.head in %s on %c after %6 at 32 for 38
  }

  // Not scheduled: no 'at', no 'for'.
  // CHECK: plan.variant @"full-prefill" fallback
  plan.variant @"full-prefill" fallback policy "full-prefill" scheduler "none" tokens [1, inf) rate [0, inf)
      tuned(tokens = 512, suffix = 32, rate = 20000000) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
    %c = plan.stream compute
    %h = plan.buffer hidden layer 0 with context suffix
    // CHECK: %embed = plan.embed all into %h0 on %compute{{$}}
    // CHECK-NEXT: %p0 = plan.prefill layer 0 queries all in %h0 on %compute after %embed{{$}}
    %0 = plan.embed all into %h on %c
    %1 = plan.prefill layer 0 queries all in %h on %c after %0
  }
}

// A file with maps; variants that are aligned by the receiver, by the sender, and not at all.
// CHECK-LABEL: plan.file version 4
// CHECK:         inputs []
// CHECK-NEXT:    maps <name = "maps.safetensors", fingerprint = "77">
plan.file version 4 dtype "bf16"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs [] maps <name = "maps.safetensors", fingerprint = "77"> {
  // CHECK: plan.variant @v0
  // CHECK-NEXT: promise(loss = 0.5, ttft_ns = 7) aligned low_rank by receiver {
  plan.variant @v0 policy "p" scheduler "none" tokens [1, 9) rate [0, inf)
      tuned(tokens = 5, suffix = 1, rate = 1) chunks 4 promise(loss = 0.5, ttft_ns = 7) aligned low_rank by receiver {
    %l = plan.stream link
    %c = plan.stream compute
    %h = plan.buffer hidden layer 1 with context
    // CHECK: %[[E:.*]] = plan.transfer e(1) chunk 0 into %h1 on %link
    // CHECK-NEXT: %a1 = plan.align layer 1 chunk 0 in %h1 on %compute after %[[E]]
    // CHECK: %a1_c1_3 = plan.align layer 1 chunk 1 to 3 in %h1 on %compute after %e1_c1_3 for 5
    %0 = plan.transfer e(1) chunk 0 into %h on %l
    %1 = plan.align layer 1 chunk 0 in %h on %c after %0
    %2 = plan.transfer e(1) chunk 1 to 3 into %h on %l
    %3 = plan.align layer 1 chunk 1 to 3 in %h on %c after %2 for 5
  }
  // CHECK: promise(loss = 0.5, ttft_ns = 7) aligned full by sender makespan 9 lower_bound 8 {
  plan.variant @v1 policy "p" scheduler "s" tokens [9, inf) rate [0, inf)
      tuned(tokens = 9, suffix = 1, rate = 1) chunks 1 promise(loss = 0.5, ttft_ns = 7) aligned full by sender
      makespan 9 lower_bound 8 {
  }
}

// What transfers read: the sender's prefix, and segments of another model.
// CHECK-LABEL: plan.file version 5
// CHECK:         sources [#plan.source<rule = prefix, model = <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">, shape = <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>>,
// CHECK-SAME:    #plan.source<rule = segment, model = <name = "other"
plan.file version 5 dtype "bf16"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs []
    sources [#plan.source<rule = prefix, model = <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">, shape = <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>>,
             #plan.source<rule = segment, model = <name = "other", fingerprint = "20", config = "01", weights = "02", tokenizer = "">, shape = <family = "llama", layers = 2, d_model = 8, ff = 32, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>>] {
  plan.variant @v0 policy "p" scheduler "none" tokens [1, 9) rate [0, inf)
      tuned(tokens = 5, suffix = 1, rate = 1) chunks 4 promise(loss = 0.5, ttft_ns = 7) {
    %l = plan.stream link
    %k = plan.buffer kv layer 0 with context suffix
    // CHECK: plan.transfer kv(0) chunk 0 into %kv0 on %link
    // CHECK-NEXT: plan.transfer kv(0) chunk 1 to 3 from 1 into %kv0 on %link
    %0 = plan.transfer kv(0) chunk 0 into %k on %l
    %1 = plan.transfer kv(0) chunk 1 to 3 from 1 into %k on %l
  }
}

// The same of a variant, in the generic form too.
// RUN: ds-opt %s --mlir-print-op-generic | ds-opt | FileCheck %s --check-prefix=GENERIC
// CHECK-LABEL: plan.variant @chosen
// CHECK-NEXT:    tuned(tokens = 5, suffix = 1, rate = 1) chunks 4 promise(loss = 0.5, ttft_ns = 7, divergence = 0.25)
// CHECK-NEXT:    chosen(regret = 0.125, alternatives = [(what = "full reuse", loss = 40.0, ttft_ns = 1, compute_ns = 0)])
// CHECK-SAME:    selects 0.15 aligned diagonal by sender makespan 9 lower_bound 9 proven_optimal {
// GENERIC-LABEL: plan.variant @chosen policy "p" scheduler "s" tokens [1, 9) rate [0, inf) load [2, inf)
// GENERIC-NEXT:    tuned(tokens = 5, suffix = 1, rate = 1) chunks 4 promise(loss = 0.5, ttft_ns = 7, divergence = 0.25)
// GENERIC-NEXT:    chosen(regret = 0.125, alternatives = [(what = "full reuse", loss = 40.0, ttft_ns = 1, compute_ns = 0)])
// GENERIC-SAME:    selects 0.15 aligned diagonal by sender makespan 9 lower_bound 9 proven_optimal {
// GENERIC-NEXT:      plan.stream link
plan.variant @chosen policy "p" scheduler "s" tokens [1, 9) rate [0, inf) load [2, inf)
    tuned(tokens = 5, suffix = 1, rate = 1) chunks 4 promise(loss = 0.5, ttft_ns = 7, divergence = 0.25)
    chosen(regret = 0.125, alternatives = [(what = "full reuse", loss = 40.0, ttft_ns = 1, compute_ns = 0)])
    selects 0.15 aligned diagonal by sender makespan 9 lower_bound 9 proven_optimal {
  %l = plan.stream link
}
