// The compiler's passes, in the order in which they run (pipeline.h). Each phase ends with one that verifies it.
#ifndef DROIDSPEAK_PASSES
#define DROIDSPEAK_PASSES

include "mlir/Pass/PassBase.td"

def ReuseVerifyTiling : Pass<"reuse-verify-tiling", "::mlir::ModuleOp"> {
  let summary = "Closes the phase WHAT: one fall-back, plans of one depth whose ranges do not overlap, cuts read once";
}

def ConvertReuseToPlan : Pass<"convert-reuse-to-plan", "::mlir::ModuleOp"> {
  let summary = "Tiles become transfers, kernels and what waits for what; no times yet";
  let description = [{
    Every reuse.plan becomes one plan.variant. All KV of the entry is transferred, also what is recomputed: which loads are needed is a question of its own (what nobody waits
    for is dead code, --cse), and the baseline `serial` moves everything. Not a pattern for each op: the chooser lowers thousands of tilings on plain structures
    (lower_tiles.h), and a plan must come out as it was judged; this is the same function.
  }];
  let dependentDialects = ["::ds::plan::PlanDialect"];
  let options = [Option<"own_buffers", "own-buffers", "bool", "false",
                        "each restored layer has hidden states of its own: no load waits for a kernel">];
}

def PlanVerifyLowered : Pass<"plan-verify-lowered", "::mlir::ModuleOp"> {
  let summary = "Closes the lowering: nothing of `reuse` is left, every cache has a writer";
}

def PlanMaterializeDurations : Pass<"plan-materialize-durations", "::mlir::ModuleOp"> {
  let summary = "Sets how long each operation takes, from the machine model";
  let description = "The machine is ds-opt's --machine FILE; without it a stand-in.";
  let constructor = "::ds::create_plan_materialize_durations(std::nullopt, 0)";
  let options = [Option<"map_rank_", "map-rank", "int64_t", "0", "of low-rank maps at cuts">];
}

def PlanSchedule : Pass<"plan-schedule", "::mlir::ModuleOp"> {
  let summary = "Sets when each operation of a variant or problem starts";
  let options = [
    Option<"scheduler", "scheduler", "std::string", "\"best\"", "best, or the name of another one (compiler/scheduling/schedulers.h)">,
    Option<"release_ns", "release-ns", "int64_t", "0", "when operations of a variant with loads can start">,
    Option<"link_release_ns", "link-release-ns", "int64_t", "0", "when its first load can start, if later">
  ];
}

def PlanVerifySchedule : Pass<"plan-verify-schedule", "::mlir::ModuleOp"> {
  let summary = "Closes the phase WHEN: arrivals, releases, waits and streams are kept, stated results are true";
}

#endif
