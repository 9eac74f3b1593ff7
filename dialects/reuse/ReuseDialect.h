// The dialect `reuse`: see ReuseDialect.td.
#pragma once

#include "mlir/Bytecode/BytecodeOpInterface.h"
#include "mlir/IR/Builders.h"
#include "mlir/IR/Dialect.h"
#include "mlir/IR/OpImplementation.h"
#include "mlir/IR/SymbolTable.h"

#include "dialects/plan/PlanDialect.h"  // the enumerations of maps

#include "dialects/reuse/ReuseDialect.h.inc"

#define GET_TYPEDEF_CLASSES
#include "dialects/reuse/ReuseTypes.h.inc"

namespace ds::reuse {
/// A tile's rectangle from its attributes, and whether it starts from a cut.
Tile describe_tile(mlir::Operation* tile, Mode mode, int32_t chunks);
/// "kv3" its cache, "out7" what leaves it.
void name_tile(mlir::Operation* tile, mlir::OpAsmSetValueNameFn set);
}  // namespace ds::reuse

#define GET_OP_CLASSES
#include "dialects/reuse/ReuseOps.h.inc"
