// How long maps take: on a machine that counts in round numbers (1 flop and 1 byte per ns, 1000 ns a call), as
// measured, and scheduled to a proven optimum between the transfer and what reads it.
// RUN: ds-opt %s --machine %inputs/machine-round.json --plan-materialize-durations=map-rank=2 | FileCheck %s
// RUN: ds-opt %s --machine %inputs/machine-align.json --plan-materialize-durations=map-rank=2 | FileCheck %s --check-prefix=MEASURED
// RUN: ds-opt %s --machine %inputs/machine-round.json --plan-materialize-durations=map-rank=2 --plan-schedule --plan-verify-schedule | FileCheck %s --check-prefix=SCHEDULE
// RUN: not ds-opt %s --machine %inputs/machine-round.json --plan-materialize-durations 2>&1 | FileCheck %s --check-prefix=RANK
// RANK: has low-rank maps, whose rank decides how long they take; give map-rank=N

plan.file version 4 dtype "bf16"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs [] maps <name = "m", fingerprint = "77"> {
  plan.variant @full policy "p" scheduler "s" tokens [1, 200) rate [0, inf)
      tuned(tokens = 100, suffix = 10, rate = 1000000000) chunks 1 promise(loss = 0.0, ttft_ns = 0) aligned full by receiver {
    %l = plan.stream link
    %c = plan.stream compute
    %h = plan.buffer hidden layer 1 with context
    %s = plan.buffer hidden layer 0 with suffix
    %0 = plan.transfer e(1) chunk 0 into %h on %l
    // 100 rows of 2*8*8 flops, and a call.
    // CHECK: plan.align layer 1 chunk 0 {{.*}} for 13800
    // MEASURED: plan.align layer 1 chunk 0 {{.*}} for 2490
    // SCHEDULE: makespan 30712 lower_bound 30712 proven_optimal
    // SCHEDULE: %e1 = plan.transfer e(1) {{.*}} at 0 for 1600
    // SCHEDULE: %a1 = plan.align layer 1 {{.*}} after %e1 at 1600 for 13800
    // SCHEDULE: plan.recompute layer 1 {{.*}} after %a1 at 15400 for
    %1 = plan.align layer 1 chunk 0 in %h on %c after %0
    %2 = plan.recompute layer 1 chunk 0 queries none in %h on %c after %1
    %3 = plan.head in %s on %c after %2
  }
  plan.variant @low policy "p" scheduler "s" tokens [200, inf) rate [0, inf)
      tuned(tokens = 200, suffix = 10, rate = 1000000000) chunks 2 promise(loss = 0.0, ttft_ns = 0) aligned low_rank by receiver {
    %l = plan.stream link
    %c = plan.stream compute
    %h = plan.buffer hidden layer 1 with context
    %s = plan.buffer hidden layer 0 with suffix
    %0 = plan.transfer e(1) chunk 0 to 1 into %h on %l
    // 64 rows of 4*8*2 + 2*8 flops; measured at rank 4: 1010 + 10*63 for 4*8*4 + 2*8 flops.
    // CHECK: plan.align layer 1 chunk 0 in {{.*}} for 6120
    // MEASURED: plan.align layer 1 chunk 0 in {{.*}} for 911
    %1 = plan.align layer 1 chunk 0 in %h on %c after %0
    // CHECK: plan.align layer 1 chunk 1 in {{.*}} for 11880
    %2 = plan.align layer 1 chunk 1 in %h on %c after %0
    %3 = plan.head in %s on %c after %1, %2
  }
}
