// One MLIR context with our dialects, whose diagnostics become a Status.
#pragma once

#include <memory>
#include <string>

#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Diagnostics.h"
#include "mlir/IR/MLIRContext.h"
#include "support/status.h"

namespace ds {

class MlirSession {
 public:
  MlirSession();
  mlir::MLIRContext& context() { return context_; }
  /// The errors and notes since the last call, as one Status.
  Status failure(Code code, std::string_view what);

 private:
  mlir::MLIRContext context_;
  std::string errors_;
  std::unique_ptr<mlir::ScopedDiagnosticHandler> handler_;
};

void register_dialects(mlir::DialectRegistry& registry);
std::string print_module(mlir::ModuleOp module);

}  // namespace ds
