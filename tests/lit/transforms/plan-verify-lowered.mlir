// RUN: ds-opt %s --plan-verify-lowered --split-input-file --verify-diagnostics

// expected-error@+1 {{'reuse.plan' is illegal for this phase of lowering; expected to have been converted or removed}}
reuse.plan @left policy "p" layers 1 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  reuse.answer %a
}

// -----

plan.variant @no_writer policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %c = plan.stream compute
  %h = plan.buffer hidden layer 0 with suffix
  %k0 = plan.buffer kv layer 0 with context suffix
  // expected-error@+1 {{nothing writes the context's K and V of layer 1; expected a transfer, a recompute or a prefill of it}}
  %k1 = plan.buffer kv layer 1 with context suffix
  %0 = plan.transfer kv(0) chunk 0 into %k0 on %l
  %1 = plan.head in %h on %c
}

// -----

// expected-error@+1 {{has no plan.head; the first token is never made}}
plan.variant @no_head policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k0 = plan.buffer kv layer 0 with context suffix
  %0 = plan.transfer kv(0) chunk 0 into %k0 on %l
}

// -----

plan.variant @not_mapped policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %l = plan.stream link
  %c = plan.stream compute
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{'e(1)' is sent to a receiver that maps it, but no plan.align waits for it}}
  %0 = plan.transfer e(1) chunk 0 into %h on %l
  %1 = plan.recompute layer 1 chunk 0 queries none in %h on %c after %0
}
