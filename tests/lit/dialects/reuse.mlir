// The dialect reads back what it prints, and looks as its description says.
// RUN: ds-opt %s | ds-opt | FileCheck %s

// CHECK-LABEL: reuse.plan @v0 policy "droidspeak" layers 12 tokens [256, 1024) rate [8000000, 40000000)
// CHECK-NEXT:    tuned(tokens = 512, suffix = 32, rate = 20000000) promise(loss = 1.8, ttft_ns = 41200000) {
// CHECK-NEXT:      %cut3 = reuse.cut layer 3
// CHECK-NEXT:      %kv0 = reuse.load layers 0 to 2
// CHECK-NEXT:      %kv3, %out6 = reuse.recompute layers 3 to 6 from %cut3
// CHECK-NEXT:      %kv7 = reuse.load layers 7 to 11
// CHECK-NEXT:      reuse.answer %kv0, %kv3, %kv7
// CHECK-NEXT:    }
reuse.plan @v0 policy "droidspeak" layers 12 tokens [256, 1024) rate [8000000, 40000000)
    tuned(tokens = 512, suffix = 32, rate = 20000000) promise(loss = 1.8, ttft_ns = 41200000) {
  %h3 = reuse.cut layer 3
  %a = reuse.load layers 0 to 2
  %b, %h7 = reuse.recompute layers 3 to 6 from %h3
  %c = reuse.load layers 7 to 11
  reuse.answer %a, %b, %c
}

// A tile that goes on from the one below needs no second cut; a loss that nobody measured is unknown.
// CHECK-LABEL: reuse.plan @above
// CHECK:         promise(loss = unknown, ttft_ns = 0)
// CHECK:         %kv1, %out2 = reuse.recompute layers 1 to 2 from %cut1
// CHECK-NEXT:    %kv3, %out3 = reuse.recompute layers 3 to 3 from %out2
reuse.plan @above policy "p" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = unknown, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  %h = reuse.cut layer 1
  %b, %h3 = reuse.recompute layers 1 to 2 from %h
  %c, %h4 = reuse.recompute layers 3 to 3 from %h3
  reuse.answer %a, %b, %c
}

// The full prefill starts from the embeddings: no cut, no 'from'. Points read as they were written.
// CHECK-LABEL: reuse.plan @"full-prefill" fallback policy "full-prefill" layers 4 tokens [1, inf) rate [0, inf)
// CHECK:         promise(loss = 0.1, ttft_ns = 0)
// CHECK:         %kv0, %out3 = reuse.recompute layers 0 to 3
reuse.plan @"full-prefill" fallback policy "full-prefill" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.1, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 3
  reuse.answer %a
}

// Restored from the sender's hidden states, which need no value of their own; in a run of chunks too.
// CHECK-LABEL: reuse.plan @restored
// CHECK:         %kv0 = reuse.restore layers 0 to 1 chunks 0 to 0
// CHECK-NEXT:    %kv0_0 = reuse.load layers 0 to 1 chunks 1 to 1
// CHECK-NEXT:    %kv2 = reuse.restore layers 2 to 3
reuse.plan @restored policy "restore" layers 4 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.1, ttft_ns = 0) {
  %a = reuse.restore layers 0 to 1 chunks 0 to 0
  %b = reuse.load layers 0 to 1 chunks 1 to 1
  %c = reuse.restore layers 2 to 3
  reuse.answer %a, %b, %c
}

// Tokens are selected over a recomputed layer 0.
// CHECK-LABEL: reuse.plan @selected
// CHECK:         %kv0, %out0 = reuse.recompute layers 0 to 0
// CHECK-NEXT:    %kv1 = reuse.select layers 1 to 3 share 0.15 from %out0
reuse.plan @selected policy "select" layers 4 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.1, ttft_ns = 0) {
  %a, %h = reuse.recompute layers 0 to 0
  %b = reuse.select layers 1 to 3 share 0.15 from %h
  reuse.answer %a, %b
}

// Aligned cuts: the map is a value of its own. In stairs all cuts go through maps of one form.
// CHECK-LABEL: reuse.plan @aligned
// CHECK:         %cut1 = reuse.cut layer 1
// CHECK-NEXT:    %map1 = reuse.align %cut1 full by receiver
// CHECK-NEXT:    %kv1, %out2 = reuse.recompute layers 1 to 2 chunks 0 to 0 from %map1
// CHECK:         %map2 = reuse.align %cut2 full by receiver
reuse.plan @aligned policy "p" layers 3 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.1, ttft_ns = 0) {
  %a = reuse.load layers 0 to 0
  %h = reuse.cut layer 1
  %m = reuse.align %h full by receiver
  %b, %h3 = reuse.recompute layers 1 to 2 chunks 0 to 0 from %m
  %c = reuse.load layers 1 to 1 chunks 1 to 1
  %i = reuse.cut layer 2
  %n = reuse.align %i full by receiver
  %d, %h4 = reuse.recompute layers 2 to 2 chunks 1 to 1 from %n
  reuse.answer %a, %b, %c, %d
}

// Restored layers, mapped by the sender.
// CHECK-LABEL: reuse.plan @aligned_restored
// CHECK:         %kv0 = reuse.restore layers 0 to 1 aligned low_rank by sender
// CHECK-NEXT:    %kv2 = reuse.restore layers 2 to 2 chunks 0 to 0 aligned low_rank by sender
reuse.plan @aligned_restored policy "restore" layers 3 chunks 2 tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) promise(loss = 0.1, ttft_ns = 0) {
  %a = reuse.restore layers 0 to 1 aligned low_rank by sender
  %b = reuse.restore layers 2 to 2 chunks 0 to 0 aligned low_rank by sender
  %c = reuse.load layers 2 to 2 chunks 1 to 1
  reuse.answer %a, %b, %c
}

// What is promised, how certain that is, and how it came to be chosen. What is not known is left out.
// CHECK-LABEL: reuse.plan @chosen
// CHECK-SAME:    load [1, 4)
// CHECK-NEXT:    promise(loss = 1.8, ttft_ns = 7, loss_stderr = 0.5, loss_bound = 2.65, confidence = 0.95)
// CHECK-NEXT:    chosen(way = "full reuse", why = "least \22TTFT\22", regret = 1.0e-05, alternatives = [(what = "full prefill", loss = 0.0, ttft_ns = 9, compute_ns = 8, divergence = 0.0), (what = "x", loss = unknown, ttft_ns = 10, compute_ns = 1)]) {
reuse.plan @chosen policy "p" layers 1 tokens [1, inf) rate [0, inf) load [1, 4)
    tuned(tokens = 1, suffix = 1, rate = 1)
    promise(confidence = 0.95, loss = 1.8, ttft_ns = 7, loss_stderr = 0.5, loss_bound = 2.65)
    chosen(alternatives = [(what = "full prefill", loss = 0.0, ttft_ns = 9, compute_ns = 8, divergence = 0.0),
                           (what = "x", loss = unknown, ttft_ns = 10, compute_ns = 1)],
           regret = 0.00001, way = "full reuse", why = "least \22TTFT\22") {
  %a = reuse.load layers 0 to 0
  reuse.answer %a
}
