// The syntax of templates: tokens and trees, as jinja2's lexer and parser make them with trim_blocks,
// lstrip_blocks, the extension loopcontrols and the tag `generation`.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/model/jinja/value_internal.h"

namespace ds::jinja {

enum class TokenKind : uint8_t {
  kData,  // text between tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;  // a string's is its value
  int64_t integer = 0;
  double real = 0;
  int line = 0;
};

/// Throws Failure: kCorrupt for what is no template.
std::vector<Token> tokenize(std::string_view source);

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

struct CallArgs {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> keyword;
  ExprPtr star, double_star;
};

enum class ExprKind : uint8_t {
  kConst,
  kName,
  kList,
  kTuple,
  kDict,     // kids: key, value, key, value
  kGetAttr,  // kids[0].name
  kGetItem,  // kids[0][kids[1]]
  kSlice,    // kids[0][kids[1]:kids[2]:kids[3]], each of which may be null
  kCall,
  kFilter,  // kids[0] null: what a filter block or a block set gives
  kTest,
  kNot,
  kNegative,
  kPositive,
  kAnd,
  kOr,
  kCompare,  // kids[0] ops[0] kids[1] ops[1] kids[2]
  kBinary,   // ops[0]
  kConcat,
  kCondition,     // kids: test, then, else (may be null)
  kNamespaceRef,  // an assignment's `name.ops[0]`
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int depth = 1;
  Value value;
  std::string name;
  std::vector<ExprPtr> kids;
  std::vector<std::string> ops;
  CallArgs args;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

struct Signature {
  std::vector<std::string> names;
  std::vector<ExprPtr> defaults;  // of the last ones
};

enum class StmtKind : uint8_t {
  kData,
  kOutput,
  kIf,
  kFor,
  kSet,
  kSetBlock,
  kMacro,
  kCall,
  kFilter,
  kWith,
  kGeneration,
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kData;
  int line = 0;
  std::string text;  // kData; a macro's name
  // kOutput: what is printed. kIf: the tests. kFor: target, iterable, condition (may be null). kSet: target,
  // value. kSetBlock: target, filter (may be null). kCall: the call. kFilter: the filter. kWith: target,
  // value, target, value.
  std::vector<ExprPtr> exprs;
  std::vector<Body> bodies;  // kIf: one for each test, then that of `else`; kFor: body, else
  Signature signature;       // kMacro, kCall
  bool uses_varargs = false, uses_kwargs = false, uses_caller = false;
};

/// Throws Failure: kCorrupt for what is no template, kUnsupported for tags that are not done.
Body parse(std::string_view source);

}  // namespace ds::jinja
