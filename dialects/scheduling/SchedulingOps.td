// Operations of `scheduling`: problems, slowdowns, jobs, tasks.
#ifndef DROIDSPEAK_SCHEDULING_OPS
#define DROIDSPEAK_SCHEDULING_OPS

include "dialects/plan/PlanAttrs.td"
include "dialects/plan/PlanInterfaces.td"
include "dialects/plan/PlanTypes.td"
include "dialects/scheduling/SchedulingEnums.td"
include "dialects/scheduling/SchedulingDialect.td"
include "mlir/IR/OpAsmInterface.td"
include "mlir/IR/SymbolInterfaces.td"
include "mlir/Interfaces/SideEffectInterfaces.td"

class Scheduling_Op<string mnemonic, list<Trait> traits = []> : Op<Scheduling_Dialect, mnemonic, traits>;

def Scheduling_ProblemOp : Scheduling_Op<"problem", [IsolatedFromAbove, Symbol, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "a scheduling problem, and, where its tasks have `at`, a schedule for it";
  let description = [{
    Minimises the time until the last job has ended (`makespan`) or the sum over the jobs of end less arrival
    (`sum`). After scheduling `cost` says what was reached and `lower_bound` what no schedule can beat;
    `proven_optimal by` says whether the bound follows from the problem's work and waits (`bound`) or from a
    search that has left nothing out (`search`).

    ```mlir
    scheduling.problem @two_requests minimize sum {
      %link = plan.stream link
      %compute = plan.stream compute
      scheduling.slowdown "copy" beside "norm" by 800
      scheduling.job @A arrives 0 {
        %e = scheduling.task "e(3)" load_e on %link class "copy" for 1
        %r = scheduling.task "recompute 3" compute on %compute after %e class "norm" for 2
        scheduling.done %r
      }
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Scheduling_ObjectiveAttr:$objective, OptionalAttr<StrAttr>:$scheduler,
    OptionalAttr<I64Attr>:$cost, OptionalAttr<I64Attr>:$lower_bound, UnitAttr:$proven_optimal,
    OptionalAttr<Scheduling_ProofAttr>:$proof);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `minimize` $objective (`scheduler` $scheduler^)? (`cost` $cost^)? (`lower_bound` $lower_bound^)?
    (`proven_optimal` $proven_optimal^)? (`by` $proof^)? attr-dict-with-keyword $body
  }];
  let hasRegionVerifier = 1;
}

def Scheduling_SlowdownOp : Scheduling_Op<"slowdown", [HasParent<"ProblemOp">]> {
  let summary = "while a task of one class runs beside one of another, 1000 ns of its work take 1000 + permille";
  let description = [{
    One direction only. Beside several tasks the largest of their slowdowns holds. What is not stated is 0.
  }];
  let arguments = (ins StrAttr:$slowed, StrAttr:$beside, I64Attr:$permille);
  let assemblyFormat = "$slowed `beside` $beside `by` $permille attr-dict";
}

def Scheduling_JobOp : Scheduling_Op<"job", [HasParent<"ProblemOp">, SingleBlockImplicitTerminator<"DoneOp">,
    NoRegionArguments]> {
  let summary = "one request: tasks that share an arrival";
  let arguments = (ins SymbolNameAttr:$sym_name, I64Attr:$arrival);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `arrives` $arrival attr-dict-with-keyword $body";
  let hasRegionVerifier = 1;
}

def Scheduling_TaskOp : Scheduling_Op<"task", [HasParent<"JobOp">, Plan_OperationInterface,
    DeclareOpInterfaceMethods<MemoryEffectsOpInterface>]> {
  let summary = "an operation that holds a stream for its whole time";
  let description = [{
    `release` is the earliest start, counted from 0 like `at` (a task never starts before its job arrives).
    `layer` and `chunk` are for the schedulers that order by them. `class` is what `scheduling.slowdown` speaks of.
    `for` is its time alone; `until` is its end where that is later, which a scheduler writes.
    A load that nothing waits for is dead code (--cse); a kernel never is.
  }];
  let arguments = (ins StrAttr:$title, Plan_RoleAttr:$kind, OptionalAttr<I32Attr>:$layer,
    OptionalAttr<I32Attr>:$chunk, Plan_StreamType:$stream, Variadic<Plan_EventType>:$after,
    OptionalAttr<StrAttr>:$contention, OptionalAttr<I64Attr>:$release, OptionalAttr<I64Attr>:$at,
    OptionalAttr<I64Attr>:$ends, OptionalAttr<I64Attr>:$duration);
  let results = (outs Plan_EventType:$event);
  let extraClassDeclaration = [{
    ::std::string label() { return getTitle().str(); }
    ::ds::plan::Role role() { return getKind(); }
  }];
  let assemblyFormat = [{
    $title $kind (`layer` $layer^)? (`chunk` $chunk^)? `on` $stream (`after` $after^)? (`class` $contention^)?
    (`release` $release^)? (`at` $at^)? (`until` $ends^)? (`for` $duration^)? attr-dict
  }];
}

def Scheduling_DoneOp : Scheduling_Op<"done", [HasParent<"JobOp">, Terminator]> {
  let summary = "what a job's answer needs; loads that nothing needs can be left out";
  let arguments = (ins Variadic<Plan_EventType>:$needs);
  let assemblyFormat = "($needs^)? attr-dict";
  let builders = [OpBuilder<(ins), [{ }]>];
}

#endif
