// Durations from a machine that counts in round numbers: 1 flop, 1 byte and 1 key per ns, 1000 ns a call.
// RUN: ds-opt %s --machine %inputs/machine-round.json --plan-materialize-durations | FileCheck %s
// A measured point is met exactly, and scales its neighbours:
// RUN: ds-opt %s --machine %inputs/machine-measured.json --plan-materialize-durations | FileCheck %s --check-prefix=MEASURED
// RUN: not ds-opt %s --machine %inputs/machine-nan.json --plan-materialize-durations 2>&1 | FileCheck %s --check-prefix=NAN

// NAN: machine-nan.json: compute: 'memory_bytes_per_s' is "nan", expected a number in [1, 1e+21]

plan.file version 1 dtype "bf16"
    sender <name = "s", fingerprint = "00", config = "01", weights = "02", tokenizer = "">
    receiver <name = "r", fingerprint = "10", config = "01", weights = "12", tokenizer = "13">
    shape <family = "llama", layers = 2, d_model = 8, ff = 16, heads = 2, kv_heads = 1, head_dim = 4, vocab = 32>
    compiler "0.1.0" flags "" inputs [] {
  plan.variant @v policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
      tuned(tokens = 100, suffix = 10, rate = 1000000000) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
    %l = plan.stream link
    %c = plan.stream compute
    %k0 = plan.buffer kv layer 0 with context suffix
    %k1 = plan.buffer kv layer 1 with context suffix
    %h = plan.buffer hidden layer 1 with context
    %s = plan.buffer hidden layer 0 with suffix
    // 100 tokens of 8 elements of 2 bytes at 1 GB/s.
    // CHECK: plan.transfer e(1) {{.*}} for 1600
    %0 = plan.transfer e(1) chunk 0 into %h on %l
    // 100 tokens of 2*1*4 elements of 2 bytes.
    // CHECK: plan.transfer kv(0) {{.*}} for 1600
    %1 = plan.transfer kv(0) chunk 0 into %k0 on %l
    // K and V only: 2*100*8*8 flops, and a call.
    // CHECK: plan.recompute layer 1 chunk 0 queries none {{.*}} for 13800
    // MEASURED: plan.recompute layer 1 chunk 0 queries none {{.*}} for 27600
    %2 = plan.recompute layer 1 chunk 0 queries none in %h on %c after %0
    // All: 12800 for K and V, 100*(4*8*8 + 6*8*16) for Q, O and MLP; 4*8*(1+...+100) for attention; a call.
    // CHECK: plan.recompute layer 1 chunk 0 queries all {{.*}} for 277800
    // MEASURED: plan.recompute layer 1 chunk 0 queries all {{.*}} for 1000000
    %3 = plan.recompute layer 1 chunk 0 queries all in %h on %c after %0
    // 10 rows from position 100: 10*(128 + 1024); attention over 101 to 110 keys: 4*8*1055.
    // CHECK: plan.suffix layer 0 queries all {{.*}} for 46280
    %4 = plan.suffix layer 0 queries all in %s on %c after %1
    // The last layer: K and V of 10 rows, the rest for one row over 110 keys.
    // CHECK: plan.suffix layer 1 queries last {{.*}} for 6824
    %5 = plan.suffix layer 1 queries last in %s on %c after %4
    // 2*8*32 flops, and a call.
    // CHECK: plan.head {{.*}} for 1512
    // MEASURED: plan.head {{.*}} for 77
    %6 = plan.head in %s on %c after %5
  }
}
