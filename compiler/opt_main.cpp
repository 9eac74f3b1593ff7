#include "compiler/opt_main.h"

#include "compiler/emit/session.h"
#include "compiler/passes.h"
#include "mlir/Tools/mlir-opt/MlirOptMain.h"
#include "mlir/Transforms/Passes.h"

namespace ds {

void register_passes() {
  mlir::registerPass(create_reuse_verify_tiling);
  mlir::registerPass(create_convert_reuse_to_plan);
  mlir::registerCSEPass();
  mlir::registerPass(create_plan_verify_lowered);
  mlir::registerPass([] { return create_plan_materialize_durations(); });
  mlir::registerPass([] { return create_plan_schedule(); });
  mlir::registerPass(create_plan_verify_schedule);
}

int opt_main(int argc, char** argv) {
  mlir::DialectRegistry registry;
  register_dialects(registry);
  register_passes();
  return mlir::asMainReturnCode(
      mlir::MlirOptMain(argc, argv, "droidspeak: passes over the dialects `reuse` and `plan`\n", registry));
}

}  // namespace ds
