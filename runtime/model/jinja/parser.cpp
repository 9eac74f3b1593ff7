#include <algorithm>
#include <initializer_list>

#include "runtime/model/jinja/syntax_internal.h"

namespace ds::jinja {
namespace {

constexpr int kMaxTreeDepth = 400;  // of expressions, and of tags within tags

/// Recursive descent along jinja2's own grammar, function by function.
class Parser {
 public:
  explicit Parser(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  Body run() {
    Body body = statements({});
    return body;
  }

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
  Stmt* macro_ = nullptr;  // the innermost macro or call block: which special names its body uses

  struct Deeper {
    explicit Deeper(Parser& p) : parser(p) {
      if (++parser.depth_ > kMaxTreeDepth) parser.too_deep();
    }
    ~Deeper() { --parser.depth_; }
    Parser& parser;
  };

  const Token& now() const { return tokens_[at_]; }
  const Token& look() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token next() {
    Token token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool is_op(std::string_view op) const { return now().kind == TokenKind::kOperator && now().text == op; }
  bool is_name(std::string_view name) const { return now().kind == TokenKind::kName && now().text == name; }
  bool skip_op(std::string_view op) {
    if (!is_op(op)) return false;
    next();
    return true;
  }
  bool skip_name(std::string_view name) {
    if (!is_name(name)) return false;
    next();
    return true;
  }
  [[noreturn]] void bad(std::string what, int line = 0) const {
    throw Failure{Code::kCorrupt, std::move(what), line > 0 ? line : now().line};
  }
  [[noreturn]] void too_deep() const {
    throw Failure{Code::kExhausted, fmt::format("the template nests more than {} deep", kMaxTreeDepth),
                  now().line};
  }
  static std::string described(const Token& token) {
    switch (token.kind) {
      case TokenKind::kVariableEnd:
        return "'}}'";
      case TokenKind::kBlockEnd:
        return "'%}'";
      case TokenKind::kEnd:
        return "the template's end";
      default:
        return fmt::format("'{:.40}'", token.text);
    }
  }
  void expect_op(std::string_view op) {
    if (!skip_op(op)) bad(fmt::format("found {}, expected '{}'", described(now()), op));
  }
  std::string expect_name() {
    if (now().kind != TokenKind::kName) bad(fmt::format("found {}, expected a name", described(now())));
    return next().text;
  }
  void expect_name(std::string_view name) {
    if (!skip_name(name)) bad(fmt::format("found {}, expected '{}'", described(now()), name));
  }

  ExprPtr make(ExprKind kind, int line, std::vector<ExprPtr> kids = {}) const {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->line = line;
    for (const ExprPtr& kid : kids)
      if (kid) e->depth = std::max(e->depth, 1 + kid->depth);
    if (e->depth > kMaxTreeDepth) too_deep();
    e->kids = std::move(kids);
    return e;
  }
  template <typename... Kids>
  ExprPtr node(ExprKind kind, int line, Kids... kids) const {
    std::vector<ExprPtr> list;
    (list.push_back(std::move(kids)), ...);
    return make(kind, line, std::move(list));
  }
  ExprPtr constant(Value value, int line) const {
    ExprPtr e = make(ExprKind::kConst, line);
    e->value = std::move(value);
    return e;
  }

  // Expressions.

  ExprPtr expression(bool with_condition = true) {
    Deeper deeper(*this);
    return with_condition ? condition() : disjunction();
  }

  ExprPtr condition() {
    ExprPtr e = disjunction();
    while (is_name("if")) {
      int line = next().line;
      ExprPtr test = disjunction();
      ExprPtr otherwise;
      if (skip_name("else")) {
        Deeper deeper(*this);
        otherwise = condition();
      }
      e = node(ExprKind::kCondition, line, std::move(test), std::move(e), std::move(otherwise));
    }
    return e;
  }

  ExprPtr disjunction() {
    ExprPtr e = conjunction();
    while (is_name("or")) {
      int line = next().line;
      ExprPtr right = conjunction();
      e = node(ExprKind::kOr, line, std::move(e), std::move(right));
    }
    return e;
  }

  ExprPtr conjunction() {
    ExprPtr e = negation();
    while (is_name("and")) {
      int line = next().line;
      ExprPtr right = negation();
      e = node(ExprKind::kAnd, line, std::move(e), std::move(right));
    }
    return e;
  }

  ExprPtr negation() {
    if (!is_name("not")) return comparison();
    Deeper deeper(*this);
    int line = next().line;
    return node(ExprKind::kNot, line, negation());
  }

  ExprPtr comparison() {
    int line = now().line;
    std::vector<ExprPtr> kids;
    std::vector<std::string> ops;
    kids.push_back(sum());
    while (true) {
      static constexpr std::string_view kOps[] = {"==", "!=", "<", ">", "<=", ">="};
      if (now().kind == TokenKind::kOperator &&
          std::find(std::begin(kOps), std::end(kOps), now().text) != std::end(kOps)) {
        ops.push_back(next().text);
      } else if (skip_name("in")) {
        ops.emplace_back("in");
      } else if (is_name("not") && look().kind == TokenKind::kName && look().text == "in") {
        next();
        next();
        ops.emplace_back("not in");
      } else {
        break;
      }
      kids.push_back(sum());
    }
    if (ops.empty()) return std::move(kids[0]);
    ExprPtr e = make(ExprKind::kCompare, line, std::move(kids));
    e->ops = std::move(ops);
    return e;
  }

  ExprPtr binary(ExprPtr left, ExprPtr right, std::string op, int line) const {
    ExprPtr e = node(ExprKind::kBinary, line, std::move(left), std::move(right));
    e->ops.push_back(std::move(op));
    return e;
  }

  ExprPtr sum() {
    ExprPtr e = concatenation();
    while (is_op("+") || is_op("-")) {
      Token op = next();
      ExprPtr right = concatenation();
      e = binary(std::move(e), std::move(right), op.text, op.line);
    }
    return e;
  }

  ExprPtr concatenation() {
    int line = now().line;
    std::vector<ExprPtr> parts;
    parts.push_back(product());
    while (skip_op("~")) parts.push_back(product());
    return parts.size() == 1 ? std::move(parts[0]) : make(ExprKind::kConcat, line, std::move(parts));
  }

  ExprPtr product() {
    ExprPtr e = power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      Token op = next();
      ExprPtr right = power();
      e = binary(std::move(e), std::move(right), op.text, op.line);
    }
    return e;
  }

  ExprPtr power() {
    ExprPtr e = unary(true);
    while (is_op("**")) {
      int line = next().line;
      ExprPtr right = unary(true);
      e = binary(std::move(e), std::move(right), "**", line);
    }
    return e;
  }

  ExprPtr unary(bool with_filter) {
    Deeper deeper(*this);
    int line = now().line;
    ExprPtr e;
    if (skip_op("-")) {
      e = node(ExprKind::kNegative, line, unary(false));
    } else if (skip_op("+")) {
      e = node(ExprKind::kPositive, line, unary(false));
    } else {
      e = primary(false);
    }
    e = postfix(std::move(e));
    return with_filter ? filtered(std::move(e)) : std::move(e);
  }

  ExprPtr primary(bool with_namespace) {
    const Token token = next();
    switch (token.kind) {
      case TokenKind::kName: {
        const std::string& name = token.text;
        if (name == "true" || name == "True") return constant(Value::boolean(true), token.line);
        if (name == "false" || name == "False") return constant(Value::boolean(false), token.line);
        if (name == "none" || name == "None") return constant(Value::none(), token.line);
        if (with_namespace && is_op(".")) {
          next();
          ExprPtr e = make(ExprKind::kNamespaceRef, token.line);
          e->name = name;
          e->ops.push_back(expect_name());
          return e;
        }
        if (macro_ != nullptr) {
          macro_->uses_varargs |= name == "varargs";
          macro_->uses_kwargs |= name == "kwargs";
          macro_->uses_caller |= name == "caller";
        }
        ExprPtr e = make(ExprKind::kName, token.line);
        e->name = name;
        return e;
      }
      case TokenKind::kString: {
        std::string text = token.text;
        while (now().kind == TokenKind::kString) text += next().text;
        return constant(Value::string(std::move(text)), token.line);
      }
      case TokenKind::kInteger:
        return constant(Value::integer(token.integer), token.line);
      case TokenKind::kFloat:
        return constant(Value::real(token.real), token.line);
      case TokenKind::kOperator:
        if (token.text == "(") {
          ExprPtr e = tuple(true, {}, true);
          expect_op(")");
          return e;
        }
        if (token.text == "[") {
          std::vector<ExprPtr> items;
          while (!is_op("]")) {
            if (!items.empty()) expect_op(",");
            if (is_op("]")) break;
            items.push_back(expression());
          }
          expect_op("]");
          return make(ExprKind::kList, token.line, std::move(items));
        }
        if (token.text == "{") {
          std::vector<ExprPtr> items;
          while (!is_op("}")) {
            if (!items.empty()) expect_op(",");
            if (is_op("}")) break;
            items.push_back(expression());
            expect_op(":");
            items.push_back(expression());
          }
          expect_op("}");
          return make(ExprKind::kDict, token.line, std::move(items));
        }
        [[fallthrough]];
      default:
        bad(fmt::format("found {}, expected a value", described(token)), token.line);
    }
  }

  using Names = std::initializer_list<std::string_view>;

  bool is_tuple_end(Names ends) const {
    if (now().kind == TokenKind::kVariableEnd || now().kind == TokenKind::kBlockEnd || is_op(")"))
      return true;
    return now().kind == TokenKind::kName && std::find(ends.begin(), ends.end(), now().text) != ends.end();
  }

  ExprPtr tuple(bool with_condition, Names ends = {}, bool in_parentheses = false) {
    return tuple_of([&] { return expression(with_condition); }, ends, in_parentheses);
  }

  template <typename Item>
  ExprPtr tuple_of(Item item, Names ends, bool in_parentheses) {
    int line = now().line;
    std::vector<ExprPtr> items;
    bool is_tuple = false;
    while (true) {
      if (!items.empty()) expect_op(",");
      if (is_tuple_end(ends)) break;
      items.push_back(item());
      if (!is_op(",")) break;
      is_tuple = true;
    }
    if (!is_tuple) {
      if (!items.empty()) return std::move(items[0]);
      if (!in_parentheses) bad(fmt::format("found {}, expected an expression", described(now())));
    }
    return make(ExprKind::kTuple, line, std::move(items));
  }

  ExprPtr postfix(ExprPtr e) {
    while (true) {
      if (is_op(".") || is_op("[")) {
        e = subscript(std::move(e));
      } else if (is_op("(")) {
        e = call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExprPtr filtered(ExprPtr e) {
    while (true) {
      if (is_op("|")) {
        next();
        e = filter(std::move(e));
      } else if (is_name("is")) {
        e = test(std::move(e));
      } else if (is_op("(")) {
        e = call(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExprPtr subscript(ExprPtr e) {
    Token token = next();
    if (token.text == ".") {
      Token name = next();
      if (name.kind == TokenKind::kName) {
        e = node(ExprKind::kGetAttr, token.line, std::move(e));
        e->name = name.text;
        return e;
      }
      if (name.kind != TokenKind::kInteger)
        bad(fmt::format("found {}, expected a name or a number", described(name)), name.line);
      return node(ExprKind::kGetItem, token.line, std::move(e),
                  constant(Value::integer(name.integer), name.line));
    }
    std::vector<ExprPtr> args;
    bool slice = false;
    while (!is_op("]")) {
      if (!args.empty()) expect_op(",");
      if (is_op(":")) {
        slice = true;
        args = slice_parts(nullptr);
      } else {
        ExprPtr item = expression();
        if (is_op(":")) {
          slice = true;
          args = slice_parts(std::move(item));
        } else {
          args.push_back(std::move(item));
        }
      }
      if (slice && !is_op("]"))
        throw Failure{Code::kUnsupported, "a slice among several subscripts is not supported", now().line};
    }
    expect_op("]");
    if (slice) {
      args.insert(args.begin(), std::move(e));
      return make(ExprKind::kSlice, token.line, std::move(args));
    }
    if (args.size() == 1) return node(ExprKind::kGetItem, token.line, std::move(e), std::move(args[0]));
    return node(ExprKind::kGetItem, token.line, std::move(e),
                make(ExprKind::kTuple, token.line, std::move(args)));
  }

  /// From the first colon on: start, stop, step.
  std::vector<ExprPtr> slice_parts(ExprPtr start) {
    std::vector<ExprPtr> parts(3);
    parts[0] = std::move(start);
    expect_op(":");
    if (!is_op(":") && !is_op("]") && !is_op(",")) parts[1] = expression();
    if (skip_op(":") && !is_op("]") && !is_op(",")) parts[2] = expression();
    return parts;
  }

  CallArgs call_args(int& depth) {
    CallArgs args;
    int line = now().line;
    expect_op("(");
    bool comma = false;
    auto deepest = [&](const ExprPtr& e) { depth = std::max(depth, 1 + e->depth); };
    while (!is_op(")")) {
      if (comma) {
        expect_op(",");
        if (is_op(")")) break;
      }
      comma = true;
      auto ensure = [&](bool ok) {
        if (!ok) bad("arguments in an order that a call does not allow", line);
      };
      if (skip_op("*")) {
        ensure(!args.star && !args.double_star);
        args.star = expression();
        deepest(args.star);
      } else if (skip_op("**")) {
        ensure(!args.double_star);
        args.double_star = expression();
        deepest(args.double_star);
      } else if (now().kind == TokenKind::kName && look().kind == TokenKind::kOperator &&
                 look().text == "=") {
        ensure(!args.double_star);
        std::string name = next().text;
        next();
        args.keyword.emplace_back(std::move(name), expression());
        deepest(args.keyword.back().second);
      } else {
        ensure(!args.star && !args.double_star && args.keyword.empty());
        args.positional.push_back(expression());
        deepest(args.positional.back());
      }
    }
    expect_op(")");
    if (depth > kMaxTreeDepth) too_deep();
    return args;
  }

  ExprPtr call(ExprPtr callee) {
    int line = now().line;
    ExprPtr e = node(ExprKind::kCall, line, std::move(callee));
    e->args = call_args(e->depth);
    return e;
  }

  std::string dotted_name() {
    std::string name = expect_name();
    while (skip_op(".")) name.append(1, '.').append(expect_name());
    return name;
  }

  ExprPtr filter(ExprPtr input) {
    int line = now().line;
    ExprPtr e = node(ExprKind::kFilter, line, std::move(input));
    e->name = dotted_name();
    if (is_op("(")) e->args = call_args(e->depth);
    return e;
  }

  ExprPtr test(ExprPtr input) {
    int line = next().line;
    bool negated = skip_name("not");
    ExprPtr e = node(ExprKind::kTest, line, std::move(input));
    e->name = dotted_name();
    if (is_op("(")) {
      e->args = call_args(e->depth);
    } else {
      bool word = now().kind == TokenKind::kName && !is_name("else") && !is_name("or") && !is_name("and");
      bool value = word || now().kind == TokenKind::kString || now().kind == TokenKind::kInteger ||
                   now().kind == TokenKind::kFloat || is_op("(") || is_op("[") || is_op("{");
      if (value) {
        if (is_name("is")) bad("tests cannot be chained with 'is'");
        e->args.positional.push_back(postfix(primary(false)));
        e->depth = std::max(e->depth, 1 + e->args.positional.back()->depth);
        if (e->depth > kMaxTreeDepth) too_deep();
      }
    }
    return negated ? node(ExprKind::kNot, line, std::move(e)) : std::move(e);
  }

  // Statements.

  ExprPtr assign_target(Names ends, bool with_namespace) {
    ExprPtr target = tuple_of([&] { return primary(with_namespace); }, ends, false);
    check_target(*target);
    return target;
  }
  void check_target(const Expr& e) const {
    if (e.kind == ExprKind::kNamespaceRef || e.kind == ExprKind::kName) return;
    if (e.kind != ExprKind::kTuple) bad("this cannot be assigned to", e.line);
    for (const ExprPtr& kid : e.kids) check_target(*kid);
  }

  std::unique_ptr<Stmt> statement(StmtKind kind, int line) const {
    auto s = std::make_unique<Stmt>();
    s->kind = kind;
    s->line = line;
    return s;
  }

  void block_end() {
    if (now().kind != TokenKind::kBlockEnd) bad(fmt::format("found {}, expected '%}}'", described(now())));
    next();
  }

  /// Up to a tag with one of these names, whose name is the token now; to the template's end without names.
  Body statements(Names ends) {
    Deeper deeper(*this);
    const int begin = now().line;
    Body body;
    while (true) {
      switch (now().kind) {
        case TokenKind::kEnd:
          if (ends.size() > 0)
            bad(fmt::format("the template ends before the '{}' of line {}", *std::prev(ends.end()), begin));
          return body;
        case TokenKind::kData: {
          auto s = statement(StmtKind::kData, now().line);
          s->text = next().text;
          body.push_back(std::move(s));
          break;
        }
        case TokenKind::kVariableBegin: {
          auto s = statement(StmtKind::kOutput, next().line);
          s->exprs.push_back(tuple(true));
          if (now().kind != TokenKind::kVariableEnd)
            bad(fmt::format("found {}, expected '}}}}'", described(now())));
          next();
          body.push_back(std::move(s));
          break;
        }
        default: {
          next();
          if (now().kind != TokenKind::kName)
            bad(fmt::format("found {}, expected a tag's name", described(now())));
          if (std::find(ends.begin(), ends.end(), now().text) != ends.end()) return body;
          if (auto s = tag()) body.push_back(std::move(s));
          block_end();
        }
      }
    }
  }

  /// A body up to the end of its tag: `ends` is the last one's name.
  Body body_until(std::string_view end) {
    block_end();
    Body body = statements({end});
    next();
    return body;
  }

  std::unique_ptr<Stmt> tag() {
    const Token name = next();
    const std::string& word = name.text;
    if (word == "if") return if_tag(name.line);
    if (word == "for") return for_tag(name.line);
    if (word == "set") return set_tag(name.line);
    if (word == "macro") return macro_tag(name.line);
    if (word == "call") return call_tag(name.line);
    if (word == "print") {
      auto s = statement(StmtKind::kOutput, name.line);
      while (now().kind != TokenKind::kBlockEnd) {
        if (!s->exprs.empty()) expect_op(",");
        s->exprs.push_back(expression());
      }
      return s;
    }
    if (word == "filter") {
      auto s = statement(StmtKind::kFilter, name.line);
      s->exprs.push_back(filter_chain());
      s->bodies.push_back(body_until("endfilter"));
      return s;
    }
    if (word == "with") {
      auto s = statement(StmtKind::kWith, name.line);
      while (now().kind != TokenKind::kBlockEnd) {
        if (!s->exprs.empty()) expect_op(",");
        s->exprs.push_back(assign_target({}, false));
        expect_op("=");
        s->exprs.push_back(expression());
      }
      s->bodies.push_back(body_until("endwith"));
      return s;
    }
    if (word == "generation") {
      auto s = statement(StmtKind::kGeneration, name.line);
      int loops = std::exchange(loops_, 0);  // jinja2 makes a function of the body
      s->bodies.push_back(body_until("endgeneration"));
      loops_ = loops;
      return s;
    }
    if (word == "break" || word == "continue") {
      if (loops_ == 0) bad(fmt::format("'{}' outside of a loop", word), name.line);
      return statement(word == "break" ? StmtKind::kBreak : StmtKind::kContinue, name.line);
    }
    for (std::string_view known : {"extends", "include", "import", "from", "block", "autoescape"}) {
      if (word == known)
        throw Failure{Code::kUnsupported,
                      fmt::format("the tag '{}' is not supported in chat templates by this version", word),
                      name.line};
    }
    bad(fmt::format("unknown tag '{}'", word), name.line);
  }

  /// Filters one after the other, without the first one's bar.
  ExprPtr filter_chain() {
    ExprPtr e = filter(nullptr);
    while (skip_op("|")) e = filter(std::move(e));
    return e;
  }

  std::unique_ptr<Stmt> if_tag(int line) {
    auto s = statement(StmtKind::kIf, line);
    while (true) {
      s->exprs.push_back(tuple(false));
      block_end();
      s->bodies.push_back(statements({"elif", "else", "endif"}));
      std::string end = next().text;
      if (end == "elif") continue;
      if (end == "else") s->bodies.push_back(body_until("endif"));
      return s;
    }
  }

  std::unique_ptr<Stmt> for_tag(int line) {
    auto s = statement(StmtKind::kFor, line);
    s->exprs.push_back(assign_target({"in"}, false));
    expect_name("in");
    s->exprs.push_back(tuple(false, {"recursive"}));
    s->exprs.push_back(skip_name("if") ? expression() : nullptr);
    if (is_name("recursive"))
      throw Failure{Code::kUnsupported, "a recursive loop is not supported in chat templates by this version",
                    line};
    ++loops_;
    block_end();
    s->bodies.push_back(statements({"else", "endfor"}));
    --loops_;
    if (next().text == "else") s->bodies.push_back(body_until("endfor"));
    return s;
  }

  std::unique_ptr<Stmt> set_tag(int line) {
    ExprPtr target = assign_target({}, true);
    if (skip_op("=")) {
      auto s = statement(StmtKind::kSet, line);
      s->exprs.push_back(std::move(target));
      s->exprs.push_back(tuple(true));
      return s;
    }
    auto s = statement(StmtKind::kSetBlock, line);
    s->exprs.push_back(std::move(target));
    s->exprs.push_back(skip_op("|") ? filter_chain() : nullptr);
    s->bodies.push_back(body_until("endset"));
    return s;
  }

  void signature(Signature& out) {
    expect_op("(");
    while (!is_op(")")) {
      if (!out.names.empty()) expect_op(",");
      out.names.push_back(expect_name());
      if (skip_op("=")) {
        out.defaults.push_back(expression());
      } else if (!out.defaults.empty()) {
        bad("a parameter without default follows one that has it");
      }
    }
    expect_op(")");
  }

  void function_body(Stmt& s, std::string_view end) {
    Stmt* outer = std::exchange(macro_, &s);
    int loops = std::exchange(loops_, 0);
    s.bodies.push_back(body_until(end));
    macro_ = outer;
    loops_ = loops;
  }

  std::unique_ptr<Stmt> macro_tag(int line) {
    auto s = statement(StmtKind::kMacro, line);
    s->text = expect_name();
    signature(s->signature);
    function_body(*s, "endmacro");
    return s;
  }

  std::unique_ptr<Stmt> call_tag(int line) {
    auto s = statement(StmtKind::kCall, line);
    if (is_op("(")) signature(s->signature);
    s->exprs.push_back(expression());
    if (s->exprs[0]->kind != ExprKind::kCall) bad("expected a call", line);
    function_body(*s, "endcall");
    return s;
  }
};

}  // namespace

Body parse(std::string_view source) { return Parser(tokenize(source)).run(); }

}  // namespace ds::jinja
