// Every rule of a tiling, broken once; the message stands at the tile, its reason at the other one.
// RUN: ds-opt %s --split-input-file --verify-diagnostics

// expected-error@+1 {{leaves out layer 1 of chunk 0; every cell needs a tile}}
reuse.plan @gap policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  %b = reuse.load layers 2 to 3
  reuse.answer %a, %b
}

// -----

reuse.plan @twice policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{the other tile is here}}
  %a = reuse.load layers 0 to 2
  // expected-error@+1 {{covers layer 2 of chunk 0 again; expected every cell in exactly one tile}}
  %b = reuse.load layers 2 to 3
  reuse.answer %a, %b
}

// -----

// expected-error@+1 {{leaves out layer 3 of chunk 0; every cell needs a tile}}
reuse.plan @short policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 2
  reuse.answer %a
}

// -----

reuse.plan @long policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{covers layers up to 4, but the models have layers 0 to 3}}
  %a = reuse.load layers 0 to 4
  reuse.answer %a
}

// -----

reuse.plan @backward policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{covers layers 0 to -1, expected first <= last}}
  %a = reuse.load layers 0 to -1
  reuse.answer %a
}

// -----

reuse.plan @other_cut policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 1
  // expected-note@+1 {{expected a cut at layer 2}}
  %h = reuse.cut layer 1
  // expected-error@+1 {{starts at layer 2 from the hidden states entering layer 1}}
  %b, %h4 = reuse.recompute layers 2 to 3 from %h
  reuse.answer %a, %b
}

// -----

reuse.plan @no_cut policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 1
  // expected-error@+1 {{starts at layer 2 from nothing; expected 'from' a cut at layer 2 or the output of a tile that ends at layer 1}}
  %b, %h4 = reuse.recompute layers 2 to 3
  reuse.answer %a, %b
}

// -----

reuse.plan @cut_0 policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{at layer 0: the hidden states entering layer 0 are the receiver's own embeddings and are never sent; recompute from layer 0 without 'from'}}
  %h = reuse.cut layer 0
  %b, %h4 = reuse.recompute layers 0 to 3 from %h
  reuse.answer %b
}

// -----

reuse.plan @not_below policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{expected a tile that ends at layer 2}}
  %a, %h = reuse.recompute layers 0 to 1
  %b = reuse.load layers 2 to 2
  // expected-error@+1 {{starts at layer 3 from the hidden states leaving layer 1}}
  %c, %h4 = reuse.recompute layers 3 to 3 from %h
  reuse.answer %a, %b, %c
}

// -----

reuse.plan @partial_answer policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 1
  %b = reuse.load layers 2 to 3
  // expected-error@+1 {{takes 1 caches, expected the caches of all 2 tiles in the order in which they stand}}
  reuse.answer %a
}

// -----

// expected-error@+1 {{tokens range [1024, 256) is empty or starts below 1}}
reuse.plan @empty_range policy "p" layers 1 tokens [1024, 256) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  reuse.answer %a
}

// -----

// expected-error@+1 {{is the fall-back, which holds for tokens [1, inf) and rate [0, inf)}}
reuse.plan @small_fallback fallback policy "p" layers 1 tokens [1, 256) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 0
  reuse.answer %a
}

// -----

// Several chunks: a hole, a tile over a chunk that is not there, a tile that stands beside the one below.
// expected-error@+1 {{leaves out layer 1 of chunk 1; every cell needs a tile}}
reuse.plan @hole policy "p" layers 2 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  %b = reuse.load layers 1 to 1 chunks 0 to 0
  reuse.answer %a, %b
}

// -----

reuse.plan @beyond policy "p" layers 1 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{covers chunks 0 to 2, expected first <= last within 0 to 1}}
  %a = reuse.load layers 0 to 0 chunks 0 to 2
  reuse.answer %a
}

// -----

reuse.plan @beside policy "p" layers 2 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{expected a tile below that covers them all}}
  %a, %h = reuse.recompute layers 0 to 0 chunks 0 to 0
  %b = reuse.load layers 0 to 0 chunks 1 to 1
  // expected-error@+1 {{covers chunks 0 to 1 from the hidden states of chunks 0 to 0}}
  %c, %i = reuse.recompute layers 1 to 1 from %h
  reuse.answer %a, %b, %c
}

// -----

// expected-error@+1 {{load range [2, 2) is empty or starts below 0}}
reuse.plan @load policy "p" layers 1 tokens [1, inf) rate [0, inf) load [2, 2)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  reuse.answer %a
}

// -----

// Nothing leaves a restored layer, and it covers its cells like any other tile.
reuse.plan @on_restored policy "p" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.restore layers 0 to 1
  // expected-error@+1 {{starts at layer 2 from nothing; expected 'from' a cut at layer 2}}
  %b, %h = reuse.recompute layers 2 to 2
  reuse.answer %a, %b
}

// -----

reuse.plan @restored_twice policy "p" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{the other tile is here}}
  %a = reuse.restore layers 0 to 1
  // expected-error@+1 {{covers layer 1 of chunk 0 again}}
  %b = reuse.load layers 1 to 2
  reuse.answer %a, %b
}

// -----

reuse.plan @select_2 policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 1
  // expected-error@+1 {{covers layers 2 to 3, expected 1 to 3: what is chosen at layer 1 goes up to the last layer}}
  %b = reuse.select layers 2 to 3 share 0.1 from %h
  reuse.answer %a, %b
}

// -----

reuse.plan @select_all policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 0
  // expected-error@+1 {{recomputes a share of 1.5 of the tokens, expected more than 0, at most 1}}
  %b = reuse.select layers 1 to 1 share 1.5 from %h
  reuse.answer %a, %b
}

// -----

reuse.plan @select_chunks policy "p" layers 2 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 0
  // expected-error@+1 {{stands in a plan of 2 chunks, expected one: tokens are chosen among all of the context}}
  %b = reuse.select layers 1 to 1 share 0.5 from %h
  reuse.answer %a, %b
}

// -----

reuse.plan @select_cut policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  %h = reuse.cut layer 1
  // expected-error@+1 {{starts from other hidden states than those that leave a recomputed layer 0}}
  %b = reuse.select layers 1 to 1 share 0.5 from %h
  reuse.answer %a, %b
}

// -----

// Maps are fitted for the sender's hidden states.
reuse.plan @maps_own policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{they come from here}}
  %a, %h = reuse.recompute layers 0 to 0
  // expected-error@+1 {{maps hidden states that are not a cut; expected the sender's, which is what maps are fitted for}}
  %m = reuse.align %h full by receiver
  %b, %i = reuse.recompute layers 1 to 1 from %m
  reuse.answer %a, %b
}

// -----

reuse.plan @other_map policy "p" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 1
  // expected-note@+1 {{expected a cut at layer 2}}
  %h = reuse.cut layer 1
  %m = reuse.align %h full by receiver
  // expected-error@+1 {{starts at layer 2 from the hidden states entering layer 1}}
  %b, %i = reuse.recompute layers 2 to 2 from %m
  reuse.answer %a, %b
}

// -----

// One form, one side.
reuse.plan @two_forms policy "p" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  // expected-note@+1 {{this one is aligned full by receiver}}
  %h = reuse.cut layer 1
  %m = reuse.align %h full by receiver
  %b, %i = reuse.recompute layers 1 to 1 from %m
  // expected-error@+1 {{is aligned full by sender; expected all hidden states that one plan is sent to go through maps of one form, applied by one side}}
  %c = reuse.restore layers 2 to 2 aligned full by sender
  reuse.answer %a, %b, %c
}

// -----

reuse.plan @half_aligned policy "p" layers 3 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-note@+1 {{this one is aligned diagonal by receiver}}
  %a = reuse.restore layers 0 to 1 aligned diagonal by receiver
  // expected-error@+1 {{is not aligned; expected all hidden states}}
  %h = reuse.cut layer 2
  %b, %i = reuse.recompute layers 2 to 2 from %h
  reuse.answer %a, %b
}

// -----

reuse.plan @embeddings policy "p" layers 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.0, ttft_ns = 0) {
  // expected-error@+1 {{is aligned, but nothing is sent for layer 0; expected layers above it, or no maps}}
  %a = reuse.restore layers 0 to 0 aligned full by receiver
  %b = reuse.load layers 1 to 1
  reuse.answer %a, %b
}
