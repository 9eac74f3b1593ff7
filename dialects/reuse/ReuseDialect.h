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

#define GET_OP_CLASSES
#include "dialects/reuse/ReuseOps.h.inc"
