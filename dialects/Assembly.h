// Custom assembly that both dialects share: half-open ranges and points of a metric.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "mlir/IR/BuiltinAttributes.h"
#include "mlir/IR/OpImplementation.h"

namespace ds {

/// "[256, 1024)", "[1024, inf)"; INT64_MAX stands for the open end.
inline mlir::ParseResult parseRange(mlir::OpAsmParser& parser, mlir::IntegerAttr& low,
                                    mlir::IntegerAttr& high) {
  int64_t a = 0, b = INT64_MAX;
  if (parser.parseLSquare() || parser.parseInteger(a) || parser.parseComma()) return mlir::failure();
  if (mlir::failed(parser.parseOptionalKeyword("inf"))) {
    if (parser.parseInteger(b)) return mlir::failure();
  }
  if (parser.parseRParen()) return mlir::failure();
  low = parser.getBuilder().getI64IntegerAttr(a);
  high = parser.getBuilder().getI64IntegerAttr(b);
  return mlir::success();
}

inline void printRange(mlir::OpAsmPrinter& printer, mlir::Operation*, mlir::IntegerAttr low,
                       mlir::IntegerAttr high) {
  printer << '[' << low.getInt() << ", ";
  if (high.getInt() == INT64_MAX) {
    printer << "inf";
  } else {
    printer << high.getInt();
  }
  printer << ')';
}

/// Points of a metric, as short as they read back exactly: "1.8", "0.0", "unknown" (NaN).
inline mlir::ParseResult parsePoints(mlir::OpAsmParser& parser, mlir::FloatAttr& points) {
  double value = std::nan("");
  if (mlir::failed(parser.parseOptionalKeyword("unknown"))) {
    if (parser.parseFloat(value)) return mlir::failure();
  }
  points = parser.getBuilder().getF64FloatAttr(value);
  return mlir::success();
}

inline void printPoints(mlir::OpAsmPrinter& printer, mlir::Operation*, mlir::FloatAttr points) {
  double value = points.getValueAsDouble();
  if (std::isnan(value)) {
    printer << "unknown";
    return;
  }
  std::string text = fmt::format("{}", value);  // the shortest text that reads back to the same value
  if (text.find('.') == std::string::npos) {    // MLIR's floats need a point
    size_t e = text.find('e');
    text.insert(e == std::string::npos ? text.size() : e, ".0");
  }
  printer << text;
}

}  // namespace ds
