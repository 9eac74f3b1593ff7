// Scheduling problems as IR: streams, slowdowns, pools, jobs, tasks. Included by PlanOps.td, whose base classes it uses.
#ifndef DROIDSPEAK_PLAN_PROBLEM_OPS
#define DROIDSPEAK_PLAN_PROBLEM_OPS

def Plan_ProblemOp : Plan_Op<"problem", [IsolatedFromAbove, Symbol, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "a scheduling problem, and, where its tasks have `at`, a schedule for it";
  let description = [{
    Minimises the time until the last job has ended (`makespan`) or the sum over the jobs of end less arrival
    (`sum`). After scheduling `cost` says what was reached and `lower_bound` what no schedule can beat;
    `proven_optimal by` says whether the bound follows from the problem's work and waits (`bound`) or from a
    search that has left nothing out (`search`).

    ```mlir
    plan.problem @two_requests minimize sum {
      %link = plan.stream link
      %compute = plan.stream compute
      %staging = plan.pool "staging" capacity 4
      plan.slowdown "copy" beside "norm" by 800
      plan.job @A arrives 0 {
        %e = plan.task "e(3)" load_e on %link class "copy" for 1
        %r = plan.task "recompute 3" compute on %compute after %e class "norm" for 2
        plan.hold %e takes 2 of %staging until %r
        plan.done %r
      }
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Plan_ObjectiveAttr:$objective, OptionalAttr<StrAttr>:$scheduler,
    OptionalAttr<I64Attr>:$cost, OptionalAttr<I64Attr>:$lower_bound, UnitAttr:$proven_optimal,
    OptionalAttr<Plan_ProofAttr>:$proof);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `minimize` $objective (`scheduler` $scheduler^)? (`cost` $cost^)? (`lower_bound` $lower_bound^)?
    (`proven_optimal` $proven_optimal^)? (`by` $proof^)? attr-dict-with-keyword $body
  }];
  let hasRegionVerifier = 1;
}

def Plan_PoolOp : Plan_Op<"pool", [HasParent<"ProblemOp">]> {
  let summary = "room, in any unit, that tasks take and give back";
  let arguments = (ins StrAttr:$title, I64Attr:$capacity);
  let results = (outs Plan_PoolType:$result);
  let assemblyFormat = "$title `capacity` $capacity attr-dict";
}

def Plan_SlowdownOp : Plan_Op<"slowdown", [HasParent<"ProblemOp">]> {
  let summary = "while a task of one class runs beside one of another, 1000 ns of its work take 1000 + permille";
  let description = [{
    One direction only. Beside several tasks the largest of their slowdowns holds. What is not stated is 0.
  }];
  let arguments = (ins StrAttr:$slowed, StrAttr:$beside, I64Attr:$permille);
  let assemblyFormat = "$slowed `beside` $beside `by` $permille attr-dict";
}

def Plan_JobOp : Plan_Op<"job", [HasParent<"ProblemOp">, SingleBlockImplicitTerminator<"DoneOp">,
    NoRegionArguments]> {
  let summary = "one request: tasks that share an arrival";
  let arguments = (ins SymbolNameAttr:$sym_name, I64Attr:$arrival);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `arrives` $arrival attr-dict-with-keyword $body";
  let hasRegionVerifier = 1;
}

def Plan_TaskOp : Plan_Op<"task", [HasParent<"JobOp">, Plan_OperationInterface,
    DeclareOpInterfaceMethods<MemoryEffectsOpInterface>]> {
  let summary = "an operation that holds a stream for its whole time";
  let description = [{
    `release` is the earliest start, counted from 0 like `at` (a task never starts before its job arrives).
    `layer` and `chunk` are for the schedulers that order by them. `class` is what `plan.slowdown` speaks of.
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

def Plan_HoldOp : Plan_Op<"hold", [HasParent<"JobOp">]> {
  let summary = "a task takes room in a pool when it starts, until it and all others named have ended";
  let arguments = (ins Plan_EventType:$task, I64Attr:$amount, Plan_PoolType:$pool,
    Variadic<Plan_EventType>:$until);
  let assemblyFormat = "$task `takes` $amount `of` $pool (`until` $until^)? attr-dict";
}

def Plan_DoneOp : Plan_Op<"done", [HasParent<"JobOp">, Terminator]> {
  let summary = "what a job's answer needs; loads that nothing needs can be left out";
  let arguments = (ins Variadic<Plan_EventType>:$needs);
  let assemblyFormat = "($needs^)? attr-dict";
  let builders = [OpBuilder<(ins), [{ }]>];
}

#endif
