// What every pass file here needs.
#pragma once

#include "compiler/passes.h"
#include "dialects/plan/PlanDialect.h"
#include "dialects/reuse/ReuseDialect.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace ds {

/// A pass over the whole module with a name and a description.
template <typename Self>
struct ModulePass : mlir::PassWrapper<Self, mlir::OperationPass<mlir::ModuleOp>> {
  llvm::StringRef getArgument() const final { return Self::kArgument; }
  llvm::StringRef getDescription() const final { return Self::kDescription; }
  llvm::StringRef getName() const final { return Self::kArgument; }
};

}  // namespace ds
