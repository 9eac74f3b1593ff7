// The dialect `scheduling`: what it is for. Order of the files: Dialect, Enums -> Ops.
#ifndef DROIDSPEAK_SCHEDULING_DIALECT
#define DROIDSPEAK_SCHEDULING_DIALECT

include "mlir/IR/OpBase.td"

def Scheduling_Dialect : Dialect {
  let name = "scheduling";
  let cppNamespace = "::ds::scheduling";
  let summary = "Scheduling problems by themselves, without models";
  let description = [{
    Streams, jobs with an arrival, tasks with a duration, what waits for what, and what is to be minimised. The
    schedulers work on the same problem whether it comes from a `plan.variant` or from one of these, so good and
    bad schedules can be written down as text and tested. ds-opt knows it; no compiler and no plan file does.

    Streams and events are those of `plan`, and so are the units: integer nanoseconds.
  }];
  let dependentDialects = ["::ds::plan::PlanDialect"];
}

#endif
