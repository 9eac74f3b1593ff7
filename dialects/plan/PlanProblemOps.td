// Scheduling problems as IR: streams, jobs, tasks. Included by PlanOps.td, whose base classes it uses.
#ifndef DROIDSPEAK_PLAN_PROBLEM_OPS
#define DROIDSPEAK_PLAN_PROBLEM_OPS

def Plan_ProblemOp : Plan_Op<"problem", [IsolatedFromAbove, Symbol, NoTerminator, SingleBlock, NoRegionArguments]> {
  let summary = "a scheduling problem, and, where its tasks have `at`, a schedule for it";
  let description = [{
    Minimises the time until the last job has ended (`makespan`) or the sum over the jobs of end less arrival
    (`sum`). After scheduling `cost` says what was reached and `lower_bound` what no schedule can beat.

    ```mlir
    plan.problem @two_requests minimize sum {
      %link = plan.stream link
      %compute = plan.stream compute
      plan.job @A arrives 0 {
        %e = plan.task "e(3)" load_e on %link for 1
        %r = plan.task "recompute 3" compute on %compute after %e for 2
        plan.done %r
      }
    }
    ```
  }];
  let arguments = (ins SymbolNameAttr:$sym_name, Plan_ObjectiveAttr:$objective, OptionalAttr<StrAttr>:$scheduler,
    OptionalAttr<I64Attr>:$cost, OptionalAttr<I64Attr>:$lower_bound, UnitAttr:$proven_optimal);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = [{
    $sym_name `minimize` $objective (`scheduler` $scheduler^)? (`cost` $cost^)? (`lower_bound` $lower_bound^)?
    (`proven_optimal` $proven_optimal^)? attr-dict-with-keyword $body
  }];
  let hasRegionVerifier = 1;
}

def Plan_JobOp : Plan_Op<"job", [HasParent<"ProblemOp">, SingleBlockImplicitTerminator<"DoneOp">,
    NoRegionArguments]> {
  let summary = "one request: tasks that share an arrival";
  let arguments = (ins SymbolNameAttr:$sym_name, I64Attr:$arrival);
  let regions = (region SizedRegion<1>:$body);
  let assemblyFormat = "$sym_name `arrives` $arrival attr-dict-with-keyword $body";
  let hasRegionVerifier = 1;
}

def Plan_TaskOp : Plan_Op<"task", [HasParent<"JobOp">, Plan_OperationInterface]> {
  let summary = "an operation that holds a stream for its whole time";
  let description = [{
    `release` is the earliest start, counted from 0 like `at` (a task never starts before its job arrives).
  }];
  let arguments = (ins StrAttr:$title, Plan_RoleAttr:$kind, Plan_StreamType:$stream,
    Variadic<Plan_EventType>:$after, OptionalAttr<I64Attr>:$release, OptionalAttr<I64Attr>:$at,
    OptionalAttr<I64Attr>:$duration);
  let results = (outs Plan_EventType:$event);
  let extraClassDeclaration = [{
    ::std::string label() { return getTitle().str(); }
    ::ds::plan::Role role() { return getKind(); }
  }];
  let assemblyFormat = [{
    $title $kind `on` $stream (`after` $after^)? (`release` $release^)? (`at` $at^)? (`for` $duration^)? attr-dict
  }];
}

def Plan_DoneOp : Plan_Op<"done", [HasParent<"JobOp">, Terminator]> {
  let summary = "what a job's answer needs; loads that nothing needs can be left out";
  let arguments = (ins Variadic<Plan_EventType>:$needs);
  let assemblyFormat = "($needs^)? attr-dict";
  let builders = [OpBuilder<(ins), [{ }]>];
}

#endif
