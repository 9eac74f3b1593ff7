#include "compiler/opt_main.h"

#include "compiler/emit/session.h"
#include "compiler/passes.h"
#include "dialects/reuse/ReuseDialect.h"
#include "dialects/scheduling/SchedulingDialect.h"
#include "llvm/Support/CommandLine.h"
#include "mlir/Pass/PassOptions.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "mlir/Transforms/Passes.h"

namespace ds {

#define GEN_PASS_REGISTRATION
#include "compiler/Passes.h.inc"

namespace {

struct PipelineFlags : mlir::PassPipelineOptions<PipelineFlags> {
  Option<std::string> scheduler{*this, "scheduler", llvm::cl::desc("as of plan-schedule"),
                                llvm::cl::init("best")};
  Option<int64_t> map_rank{*this, "map-rank", llvm::cl::desc("of low-rank maps at cuts"), llvm::cl::init(0)};
};

}  // namespace

void register_passes(const std::optional<MachineModel>* machine) {
  registerReuseVerifyTiling();
  registerConvertReuseToPlan();
  mlir::registerCSEPass();
  registerPlanVerifyLowered();
  mlir::registerPass([machine] { return create_plan_materialize_durations(*machine, 0); });
  registerPlanSchedule();
  registerPlanVerifySchedule();
  mlir::PassPipelineRegistration<PipelineFlags>(
      "reuse-to-schedule", "All of them, as ds-compile runs them: tilings become scheduled variants",
      [machine](mlir::OpPassManager& passes, const PipelineFlags& flags) {
        Status status = add_passes(passes, {flags.scheduler, *machine, flags.map_rank});
        if (!status.ok()) llvm::report_fatal_error(llvm::StringRef(status.message()), false);
      });
}

int opt_main(int argc, char** argv) {
  static llvm::cl::opt<std::string> file(
      "machine", llvm::cl::desc("machine.json, for what needs times; without it a stand-in machine"));
  std::optional<MachineModel> machine;
  mlir::DialectRegistry registry;
  register_dialects(registry);
  registry.insert<scheduling::SchedulingDialect>();
  register_passes(&machine);
  auto [input, output] = mlir::registerAndParseCLIOptions(
      argc, argv, "droidspeak: passes over the dialects `reuse`, `plan` and `scheduling`\n", registry);
  if (!file.empty()) {
    auto read = MachineModel::read(file);
    if (!read.ok()) {
      llvm::errs() << "ds-opt: error: " << read.status().message() << "\n";
      return 1;
    }
    machine = std::move(*read);
  }
  return mlir::asMainReturnCode(mlir::MlirOptMain(argc, argv, input, output, registry));
}

}  // namespace ds
