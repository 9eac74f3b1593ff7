#include "compiler/emit/emit.h"

#include "compiler/emit/convert.h"
#include "compiler/emit/session.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Parser/Parser.h"

namespace ds {

Result<std::string> plan_to_mlir(const Plan& plan) {
  MlirSession session;
  mlir::OpBuilder b(&session.context());
  auto loc = b.getUnknownLoc();
  mlir::OwningOpRef<mlir::ModuleOp> module(mlir::ModuleOp::create(loc));
  b.setInsertionPointToStart(module->getBody());
  plan::FileOp file = build_file(b, loc, plan);
  b.setInsertionPointToStart(&file.getBody().front());
  for (const Variant& v : plan.variants) DS_TRY(build_variant(b, loc, v, false, true));
  DS_TRY(build_variant(b, loc, plan.full_prefill, true, true));
  if (mlir::failed(mlir::verify(*module))) return session.failure(Code::kUnsupported, "plan as IR");
  return print_module(*module);
}

Result<Plan> plan_from_mlir(std::string_view text, const std::string& origin) {
  MlirSession session;
  mlir::ParserConfig config(&session.context());
  std::string terminated(text);  // MLIR's lexer reads up to a NUL, which a view need not have behind it
  auto module = mlir::parseSourceString<mlir::ModuleOp>(terminated, config, origin);
  if (!module) return session.failure(Code::kCorrupt, "");
  auto files = module->getOps<plan::FileOp>();
  if (std::distance(files.begin(), files.end()) != 1)
    return error(Code::kCorrupt, "'{}' has {} plan.file operations, expected one", origin,
                 std::distance(files.begin(), files.end()));
  auto plan = export_file(*files.begin());
  if (!plan.ok()) return plan.status().with_context(fmt::format("'{}'", origin));
  return plan;
}

}  // namespace ds
