// Plans of one file together: the runtime picks one by length and rate, so at most one may hold.
// RUN: ds-opt %s --reuse-verify-tiling --split-input-file --verify-diagnostics

// expected-note@+1 {{'a' is here}}
reuse.plan @a policy "p" layers 1 tokens [1, 512) rate [0, 100)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0 = reuse.load layers 0 to 0
  reuse.answer %0
}
// Beside it in length, beside it in rate: fine.
reuse.plan @b policy "p" layers 1 tokens [512, inf) rate [0, 100)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0 = reuse.load layers 0 to 0
  reuse.answer %0
}
reuse.plan @c policy "p" layers 1 tokens [1, 512) rate [100, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0 = reuse.load layers 0 to 0
  reuse.answer %0
}
// expected-error@+1 {{holds for context lengths, link rates and loads for which 'a' holds too}}
reuse.plan @d policy "p" layers 1 tokens [511, 600) rate [99, 100)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0 = reuse.load layers 0 to 0
  reuse.answer %0
}

// -----

// expected-note@+1 {{'a' is here}}
reuse.plan @a policy "p" layers 1 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0 = reuse.load layers 0 to 0
  reuse.answer %0
}
// expected-error@+1 {{has 2 layers, but 'a' has 1}}
reuse.plan @b fallback policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %0, %h = reuse.recompute layers 0 to 1
  reuse.answer %0
}

// -----

// expected-error@+1 {{has no plan marked 'fallback'; every plan file carries the full prefill}}
plan.file version 1 dtype "bf16"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 1, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs [] {
  reuse.plan @a policy "p" layers 1 tokens [1, inf) rate [0, inf)
      tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
    %0 = reuse.load layers 0 to 0
    reuse.answer %0
  }
}

// -----

reuse.plan @idle_cut policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{at layer 2 is read by 0 tiles, expected exactly one; what nobody reads must not be sent}}
  %h = reuse.cut layer 2
  %a = reuse.load layers 0 to 3
  reuse.answer %a
}

// -----

reuse.plan @idle_map policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 1
  %h = reuse.cut layer 1
  // expected-error@+1 {{is read by 0 tiles, expected exactly one; what nobody reads must not be sent}}
  %m = reuse.align %h full by receiver
  reuse.answer %a
}

// -----

reuse.plan @cut_and_map policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  // expected-error@+1 {{at layer 1 is read by 2 tiles, expected exactly one; what nobody reads must not be sent}}
  %h = reuse.cut layer 1
  %m = reuse.align %h full by receiver
  %b, %i = reuse.recompute layers 1 to 1 from %h
  reuse.answer %a, %b
}
