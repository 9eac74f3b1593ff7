#include "compiler/emit/session.h"

#include "dialects/plan/PlanDialect.h"
#include "dialects/reuse/ReuseDialect.h"
#include "llvm/Support/raw_ostream.h"

#ifdef __SANITIZE_ADDRESS__
// LLVM's allocator poisons its memory in sanitized code; Debian's MLIR is not sanitized, shares those arenas
// with us through inlined code, and does not unpoison them. Everything else of AddressSanitizer stays on.
extern "C" const char* __asan_default_options() { return "allow_user_poisoning=0"; }
#endif

namespace ds {

void register_dialects(mlir::DialectRegistry& registry) {
  registry.insert<plan::PlanDialect, reuse::ReuseDialect>();
}

// One thread: the work is small, and the order of messages must not depend on timing.
MlirSession::MlirSession() : context_(mlir::MLIRContext::Threading::DISABLED) {
  mlir::DialectRegistry registry;
  register_dialects(registry);
  context_.appendDialectRegistry(registry);
  context_.loadAllAvailableDialects();
  handler_ = std::make_unique<mlir::ScopedDiagnosticHandler>(&context_, [this](mlir::Diagnostic& d) {
    auto append = [this](mlir::Diagnostic& one, const char* indent) {
      std::string text;
      llvm::raw_string_ostream out(text);
      if (auto at = mlir::dyn_cast<mlir::FileLineColLoc>(one.getLocation()))
        out << at.getFilename().getValue() << ":" << at.getLine() << ":" << at.getColumn() << ": ";
      out << one.str();
      if (!errors_.empty()) errors_ += "\n";
      errors_ += indent + out.str();
    };
    append(d, "");
    for (mlir::Diagnostic& note : d.getNotes()) append(note, "  ");
    return mlir::success();
  });
}

Status MlirSession::failure(Code code, std::string_view what) {
  std::string text = std::exchange(errors_, {});
  if (text.empty()) text = "failed without a message";
  return Status(code, what.empty() ? text : fmt::format("{}: {}", what, text));
}

std::string print_module(mlir::ModuleOp module) {
  std::string text;
  llvm::raw_string_ostream out(text);
  module.print(out);
  out << "\n";
  return out.str();
}

}  // namespace ds
