// RUN: ds-opt %s --split-input-file --verify-diagnostics

plan.variant @cut_of_restored policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{is restored but has a cut; only recomputed tiles start from hidden states}}
  plan.tile restore layers 1 to 2 chunks 0 to 0 cut
}

// -----

plan.variant @wrong_stream policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %c = plan.stream compute
  %k = plan.buffer kv layer 0 with context suffix
  // expected-error@+1 {{'kv(0)' stands on a compute stream, expected a link or copy stream}}
  %0 = plan.transfer kv(0) chunk 0 into %k on %c
}

// -----

plan.variant @wrong_buffer policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+1 {{'e(1)' works on a kv buffer, expected a hidden buffer}}
  %0 = plan.transfer e(1) chunk 0 into %k on %l
}

// -----

plan.variant @other_layer policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+1 {{'kv(2)' goes into a buffer of layer 1, expected one of layer 2}}
  %0 = plan.transfer kv(2) chunk 0 into %k on %l
}

// -----

plan.variant @lower_layer policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %h = plan.buffer hidden layer 3 with context
  // expected-error@+1 {{'e(2)' goes into a buffer of layer 3, expected one of layer 2 or below}}
  %0 = plan.transfer e(2) chunk 0 into %h on %l
}

// -----

plan.variant @chunk policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 2 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+1 {{is for chunk 2, but the variant has 2 chunks (0 to 1)}}
  %0 = plan.transfer kv(1) chunk 2 into %k on %l
}

// -----

plan.variant @half_scheduled policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  %k2 = plan.buffer kv layer 2 with context suffix
  // expected-note@+1 {{'kv(1)' starts at 0}}
  %0 = plan.transfer kv(1) chunk 0 into %k on %l at 0 for 1
  // expected-error@+1 {{'kv(2)' has no start, but other operations of the variant have}}
  %1 = plan.transfer kv(2) chunk 0 into %k2 on %l for 1
}

// -----

plan.variant @no_duration policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+1 {{has a start but no duration; a schedule needs both ('at' and 'for')}}
  %0 = plan.transfer kv(1) chunk 0 into %k on %l at 0
}

// -----

plan.variant @e0 policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %h = plan.buffer hidden layer 0 with context
  // expected-error@+1 {{E of layer 0 is the receiver's own embedding and is never sent}}
  %0 = plan.transfer e(0) chunk 0 into %h on %l
}

// -----

plan.variant @loaded_cut policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{is loaded but has a cut; only recomputed tiles start from hidden states}}
  plan.tile load layers 1 to 2 chunks 0 to 0 cut
}

// -----

plan.variant @before_start policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 0 with suffix
  // expected-error@+1 {{starts at -5, before the request does}}
  %0 = plan.embed suffix into %h on %c at -5 for 1
}

// -----

plan.variant @queries policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{has queries 'last', expected 'all', or 'none' where nobody reads its output}}
  %0 = plan.recompute layer 1 chunk 0 queries last in %h on %c
}

// -----

// expected-error@+1 {{dtype is 'int8', expected 'bf16' or 'f32'}}
plan.file version 1 dtype "int8"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs [] {
}

// -----

plan.variant @not_aligned policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{maps hidden states, but the variant is not aligned; expected it only where the variant is 'aligned ... by receiver'}}
  %0 = plan.align layer 1 chunk 0 in %h on %c
}

// -----

plan.variant @mapped_before policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by sender {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{maps hidden states, but the variant is aligned by the sender}}
  %0 = plan.align layer 1 chunk 0 in %h on %c
}

// -----

plan.variant @align_on_link policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %l = plan.stream link
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{'align 1' stands on a link stream, expected a compute stream}}
  %0 = plan.align layer 1 chunk 0 in %h on %l
}

// -----

plan.variant @align_elsewhere policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 2 with context
  // expected-error@+1 {{'align 1' works in a buffer of layer 2, expected one of layer 1 or below, where E of it is sent}}
  %0 = plan.align layer 1 chunk 0 in %h on %c
}

// -----

plan.variant @align_0 policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 0 with context
  // expected-error@+1 {{E of layer 0 is the receiver's own embedding and needs no map}}
  %0 = plan.align layer 0 chunk 0 in %h on %c
}

// -----

plan.variant @align_beyond policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 2 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 1 with context
  // expected-error@+1 {{is for chunk 2, but the variant has 2 chunks (0 to 1)}}
  %0 = plan.align layer 1 chunk 0 to 2 in %h on %c
}

// -----

plan.variant @align_kv policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
  %c = plan.stream compute
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+1 {{'align 1' works on a kv buffer, expected a hidden buffer}}
  %0 = plan.align layer 1 chunk 0 in %k on %c
}

// -----

plan.variant @no_form policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    // expected-error@+1 {{is aligned by maps of form 'none'; what goes through no map is not aligned}}
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned none by receiver {
}

// -----

plan.variant @no_mode policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+2 {{expected one of load, recompute, restore, select, found 'reload'}}
  // expected-error@+1 {{failed to parse Plan_ModeAttr}}
  plan.tile reload layers 1 to 2 chunks 0 to 0
}

// -----

plan.variant @no_payload policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k = plan.buffer kv layer 1 with context suffix
  // expected-error@+2 {{expected one of e, kv}}
  // expected-error@+1 {{failed to parse Plan_PayloadAttr}}
  %0 = plan.transfer (1) chunk 0 into %k on %l
}

// -----

plan.variant @embed_selected policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %c = plan.stream compute
  %h = plan.buffer hidden layer 0 with context
  // expected-error@+1 {{embeds rows 'selected', expected tokens of a chunk, the suffix or all}}
  %0 = plan.embed selected into %h on %c
}
