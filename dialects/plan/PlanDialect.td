// The dialect `plan`: what it is for. Order of the files: Dialect -> Attrs -> Types -> Interfaces -> Ops.
#ifndef DROIDSPEAK_PLAN_DIALECT
#define DROIDSPEAK_PLAN_DIALECT

include "mlir/IR/OpBase.td"

def Plan_Dialect : Dialect {
  let name = "plan";
  let cppNamespace = "::ds::plan";
  let summary = "When each transfer and each kernel of a request runs";
  let description = [{
    A request of the receiver for a long context that the sender has read already is a handful of transfers
    and a handful of kernels. The dialect `reuse` says *what* is sent and what is computed; this one says
    *when*. There is one op per transfer and per kernel, and nothing in it that the executor would still have
    to decide: streams, buffers, waits, times.

    ```
      link     | e(3) | kv(0) | kv(1) | kv(2) | kv(7) | ... | kv(11) |
      compute         | recompute 3 | s 0 | recompute 4 | ...    | s 11 | head |
                       ^ after e(3)   ^ after kv(0)
    ```

    A `plan.file` is a plan file (plans/plan.h) as text, one to one: `plan` -> bytes -> `plan` is the identity.
    Its attributes say for which pair of models it is and what it was made from; its `plan.variant`s hold for
    ranges of context length and link rate, and one of them, marked `fallback`, is the full prefill that
    needs nothing from the sender.

    Everything in a variant is a value. A `plan.stream` is a queue whose ops run one after another in the
    order in which they stand; a `plan.buffer` is memory; each operation yields an *event*, the moment at which
    it has ended, and runs `after` the events that it names. Order between two streams exists through events
    only. Ops carry `for` (nanoseconds on the stream) once the cost model has spoken and `at` (nanoseconds from
    the start of the request) once a scheduler has:

    ```mlir
    plan.variant @v0 policy "droidspeak" scheduler "e-first" tokens [256, 1024) rate [0, inf)
        tuned(tokens = 512, suffix = 32, rate = 20000000) chunks 1
        promise(loss = 1.8, ttft_ns = 41200000) {
      %link = plan.stream link
      %compute = plan.stream compute
      %kv0 = plan.buffer kv layer 0 with context suffix
      %h3 = plan.buffer hidden layer 3 with context
      %h = plan.buffer hidden layer 0 with suffix
      plan.tile load layers 0 to 2 chunks 0 to 0
      plan.tile recompute layers 3 to 6 chunks 0 to 0 cut
      ...
      %e3 = plan.transfer e(3) chunk 0 into %h3 on %link at 0 for 3300
      %r3 = plan.recompute layer 3 chunk 0 queries all in %h3 on %compute after %e3 at 3300 for 1900
      %t0 = plan.transfer kv(0) chunk 0 into %kv0 on %link at 3300 for 6600
      ...
    }
    ```

    Hidden states of the sender may be *aligned*: an affine map of the layer (`ds::MapForm`) takes them to the
    receiver's. `aligned full by receiver` at a variant says so; a `plan.align` then stands between each transfer
    of E and what reads it. `by sender`: what is sent has been mapped already, and nothing is left to do.

    All times are integer nanoseconds, all rates bytes per second, all layers count from 0 and ranges of
    layers and chunks include both ends; ranges of tokens and rates are half-open.
  }];
  let useDefaultAttributePrinterParser = 1;
  let extraClassDeclaration = "void register_attributes();";
  let useDefaultTypePrinterParser = 1;
}

#endif
