// Custom assembly that both dialects share: enumerators, numbers, half-open ranges, chunks.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "dialects/plan/PlanDialect.h"

namespace ds {

/// An enumerator by the name that plans/ has for it; as a keyword, which has no hyphens.
inline void print_enumerator(mlir::AsmPrinter& printer, std::string_view name) {
  std::string text(name);
  std::replace(text.begin(), text.end(), '-', '_');
  printer << text;
}

/// The other way round; `names` says "unknown" of the first number that is none. An enumerator without a
/// name cannot be written.
template <typename Enum>
mlir::FailureOr<Enum> parse_enumerator(mlir::AsmParser& parser, std::string_view (*names)(Enum)) {
  llvm::SMLoc at = parser.getCurrentLocation();
  llvm::StringRef found;
  std::string known;
  const bool word = mlir::succeeded(parser.parseOptionalKeyword(&found));
  for (int n = 0; names(static_cast<Enum>(n)) != "unknown"; ++n) {
    std::string name(names(static_cast<Enum>(n)));
    std::replace(name.begin(), name.end(), '-', '_');
    if (name.empty()) continue;
    if (word && found == name) return static_cast<Enum>(n);
    known += (known.empty() ? "" : ", ") + name;
  }
  mlir::InFlightDiagnostic d = parser.emitError(at);
  d << "expected one of " << known;
  if (word) d << ", found '" << found << "'";
  return d;
}

/// A number, as short as it reads back exactly: "1.8", "0.0", "unknown" (NaN).
inline mlir::FailureOr<llvm::APFloat> parse_number(mlir::AsmParser& parser) {
  double value = kUnknown;
  if (mlir::failed(parser.parseOptionalKeyword("unknown")) && parser.parseFloat(value))
    return mlir::failure();
  return llvm::APFloat(value);
}

inline void print_number(mlir::AsmPrinter& printer, double value) {
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

/// "[256, 1024)", "[1024, inf)"; INT64_MAX stands for the open end.
inline mlir::ParseResult parseRange(mlir::OpAsmParser& parser, plan::RangeAttr& range) {
  int64_t a = 0, b = kNoLimit;
  if (parser.parseLSquare() || parser.parseInteger(a) || parser.parseComma()) return mlir::failure();
  if (mlir::failed(parser.parseOptionalKeyword("inf"))) {
    if (parser.parseInteger(b)) return mlir::failure();
  }
  if (parser.parseRParen()) return mlir::failure();
  range = plan::RangeAttr::get(parser.getContext(), a, b);
  return mlir::success();
}

inline void printRange(mlir::OpAsmPrinter& printer, mlir::Operation*, plan::RangeAttr range) {
  printer << '[' << range.getLow() << ", ";
  if (range.getHigh() == kNoLimit) {
    printer << "inf";
  } else {
    printer << range.getHigh();
  }
  printer << ')';
}

/// "load [1, inf)" where a plan holds for some loads only; nothing where it holds for all.
inline mlir::ParseResult parseLoad(mlir::OpAsmParser& parser, plan::RangeAttr& load) {
  if (mlir::failed(parser.parseOptionalKeyword("load"))) return mlir::success();
  return parseRange(parser, load);
}

inline void printLoad(mlir::OpAsmPrinter& printer, mlir::Operation* op, plan::RangeAttr load) {
  if (!load) return;
  printer << "load ";
  printRange(printer, op, load);
}

/// "chunk 2", "chunk 2 to 5".
inline mlir::ParseResult parseChunks(mlir::OpAsmParser& parser, mlir::IntegerAttr& first,
                                     mlir::IntegerAttr& last) {
  int32_t a = 0, b = 0;
  if (parser.parseKeyword("chunk") || parser.parseInteger(a)) return mlir::failure();
  first = parser.getBuilder().getI32IntegerAttr(a);
  if (mlir::failed(parser.parseOptionalKeyword("to"))) return mlir::success();
  if (parser.parseInteger(b)) return mlir::failure();
  last = parser.getBuilder().getI32IntegerAttr(b);
  return mlir::success();
}

inline void printChunks(mlir::OpAsmPrinter& printer, mlir::Operation*, mlir::IntegerAttr first,
                        mlir::IntegerAttr last) {
  printer << "chunk " << first.getInt();
  if (last) printer << " to " << last.getInt();
}

/// The same, or "selected", which names no chunk.
inline mlir::ParseResult parseRecomputedRows(mlir::OpAsmParser& parser, mlir::IntegerAttr& first,
                                             mlir::IntegerAttr& last) {
  if (mlir::succeeded(parser.parseOptionalKeyword("selected"))) return mlir::success();
  return parseChunks(parser, first, last);
}

inline void printRecomputedRows(mlir::OpAsmPrinter& printer, mlir::Operation* op, mlir::IntegerAttr first,
                                mlir::IntegerAttr last) {
  if (first) return printChunks(printer, op, first, last);
  printer << "selected";
}

/// A number that stands alone.
inline mlir::ParseResult parseNumber(mlir::OpAsmParser& parser, mlir::FloatAttr& number) {
  mlir::FailureOr<llvm::APFloat> value = parse_number(parser);
  if (mlir::failed(value)) return mlir::failure();
  number = parser.getBuilder().getF64FloatAttr(value->convertToDouble());
  return mlir::success();
}

inline void printNumber(mlir::OpAsmPrinter& printer, mlir::Operation*, mlir::FloatAttr number) {
  print_number(printer, number.getValueAsDouble());
}

}  // namespace ds
