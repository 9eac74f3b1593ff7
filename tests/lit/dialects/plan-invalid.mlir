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
  // expected-error@+1 {{'kv(0)' stands on a compute stream, expected a link stream}}
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
  // expected-error@+2 {{expected one of load, recompute, restore, select}}
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

// -----

plan.variant @loss policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant promises a quality loss of 101; expected -100 to 100 points, or NaN where it is not known}}
    promise(loss = 101.0, ttft_ns = 0) {
}

// -----

plan.variant @ttft policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant promises a TTFT of -1 ns; expected 0 or more}}
    promise(loss = 0.0, ttft_ns = -1) {
}

// -----

plan.variant @stderr policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant states a standard error of -0.5 for its loss; expected 0 points or more, or NaN}}
    promise(loss = 0.0, ttft_ns = 0, loss_stderr = -0.5) {
}

// -----

plan.variant @confidence policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant states a confidence of 0.25; expected 0 (none), or above 0.5 and below 1}}
    promise(loss = 0.0, ttft_ns = 0, confidence = 0.25) {
}

// -----

plan.variant @bound policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant bounds its loss by 2.5 points with a confidence of 0; expected NaN: no bound was asked for}}
    promise(loss = 0.0, ttft_ns = 0, loss_bound = 2.5) {
}

// -----

plan.variant @divergence policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant promises a divergence of -0.5 nats}}
    promise(loss = 0.0, ttft_ns = 0, divergence = -0.5) {
}

// -----

plan.variant @regret policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1
    // expected-error@+1 {{the variant states a regret of -0.5; expected 0 or more, or -1 where it is not known}}
    promise(loss = 0.0, ttft_ns = 0) chosen(regret = -0.5) {
}

// -----

plan.variant @alternative policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0)
    // expected-error@+2 {{the variant has an alternative with a loss of 0, a divergence of nan, a TTFT of -5 ns and 0 ns of compute; expected}}
    // expected-error@+1 {{failed to parse Plan_ChoiceAttr parameter 'alternatives'}}
    chosen(alternatives = [(what = "x", loss = 0.0, ttft_ns = -5, compute_ns = 0)]) {
}

// -----

plan.variant @no_ttft policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    // expected-error@+1 {{struct is missing required parameter: ttft_ns}}
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0) {
}

// -----

plan.variant @twice policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0)
    // expected-error@+1 {{duplicate or unknown struct parameter name: reason}}
    chosen(reason = "none") {
}

// -----

// expected-error@+1 {{rate range [5, 5) is empty or starts below 0}}
plan.variant @rate policy "p" scheduler "s" tokens [1, inf) rate [5, 5)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
}

// -----

plan.variant @copied policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{is a copy stream, expected a link or compute stream: what is copied to a device goes behind the link}}
  %c = plan.stream copy
}
