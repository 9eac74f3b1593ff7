// plan-materialize-durations: how long each operation of a variant takes at its tuned point, from the machine
// model.
#include "compiler/emit/convert.h"
#include "compiler/passes.h"
#include "compiler/scheduling/cost_model.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_PLANMATERIALIZEDURATIONS
#include "compiler/Passes.h.inc"

namespace {

struct MaterializeDurations : impl::PlanMaterializeDurationsBase<MaterializeDurations> {
  MaterializeDurations(std::optional<MachineModel> machine, int64_t map_rank) : machine_(std::move(machine)) {
    map_rank_ = map_rank;
  }

  void runOnOperation() final {
    auto walked = getOperation().walk([&](plan::VariantOp variant) {
      auto file = variant->getParentOfType<plan::FileOp>();
      if (!file) {
        variant.emitError(
            "stands outside a plan.file; expected one, whose shape and dtype give the durations");
        return mlir::WalkResult::interrupt();
      }
      return mlir::failed(run(variant, file)) ? mlir::WalkResult::interrupt() : mlir::WalkResult::advance();
    });
    if (walked.wasInterrupted()) signalPassFailure();
  }

  mlir::LogicalResult run(plan::VariantOp variant, plan::FileOp file) {
    DType dtype = file.getDtype() == "f32" ? DType::kF32 : DType::kBF16;
    MachineModel machine = machine_ ? *machine_ : MachineModel::stand_in(dtype);
    if (machine.dtype != dtype) {
      return file.emitError() << "dtype is '" << file.getDtype() << "', but the machine was measured in '"
                              << std::string(dtype_name(machine.dtype)) << "'";
    }
    CostModel costs(std::move(machine), file.getShape().describe());
    const plan::PointAttr tuned = variant.getTuned();
    TunedPoint at{tuned.getTokens(), tuned.getSuffix(), tuned.getRate(),
                  static_cast<int32_t>(variant.getChunks()),
                  variant.getSelectShare() ? variant.getSelectShare()->convertToDouble() : 0};
    const plan::AlignmentAttr maps = variant.getAlignmentAttr();
    if (maps && maps.getSide() == MapSide::kReceiver) {
      at.map_form = maps.getForm();
      at.map_rank = map_rank_;
      if (at.map_form == MapForm::kLowRank && at.map_rank < 1)
        return variant.emitError()
               << "has low-rank maps, whose rank decides how long they take; give map-rank=N";
    }
    for (auto op : variant.getBody().getOps<plan::VariantOperationInterface>()) {
      mlir::cast<plan::OperationInterface>(op.getOperation())
          .setDuration(static_cast<uint64_t>(costs.duration_ns(export_op(op), at)));
    }
    return mlir::success();
  }

  std::optional<MachineModel> machine_;
};

}  // namespace

std::unique_ptr<mlir::Pass> create_plan_materialize_durations(std::optional<MachineModel> machine,
                                                              int64_t map_rank) {
  return std::make_unique<MaterializeDurations>(std::move(machine), map_rank);
}

}  // namespace ds
