// An interpreter of Jinja2 as chat templates use it, rendering what jinja2 renders in the environment that
// transformers sets up for them: a sandbox without mutation, trim_blocks and lstrip_blocks, loop controls,
// `tojson` as json.dumps() without escaping for HTML, raise_exception(), strftime_now(), the tag
// `generation`.
//
// Why one of our own: Debian packages no Jinja for C++ (inja is another language, without Python's methods,
// namespaces, macros or whitespace control as Jinja has it), templates are handed out by whoever published a
// model and so have to be run within limits, and a prompt that differs by one space from what a model was
// trained with gives worse answers without a sign of it: what is not done is refused by name, never guessed.
//
// Done: the tags for (with `if` and `else`), if, set (also blocks, tuples, namespaces), macro, call, filter,
// with, raw, print, break, continue, generation; all operators; all of Jinja's tests; its filters but those
// for HTML pages and random choice; the methods of str, dict, list and tuple that do not change them;
// namespace(), range(), dict(), joiner(), cycler(). Not done, so refused by name with the line: extends,
// include, import, block, autoescape, recursive loops, integers beyond 64 bits, formats other than simple
// ones, and the like.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "support/json.h"
#include "support/status.h"

namespace ds::jinja {

struct RenderOptions {
  std::optional<std::time_t> now;  // for strftime_now(), in local time; none: the clock's
  // A template that takes more ends with kExhausted. A step is the evaluation of a node, or 64 bytes of text
  // made.
  int64_t max_steps = 20'000'000;
  int64_t max_output = int64_t{64} << 20;  // bytes
};

/// Safe to render from several threads at once.
class Template {
 public:
  /// `name` is what messages call it. kCorrupt: not a template, with the line; kUnsupported: names what is
  /// not done; kExhausted: nested too deep.
  static Result<Template> parse(std::string_view source, std::string name);
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;
  ~Template();

  /// `variables`: a JSON object. kInvalidArgument: what the template or Python raises (raise_exception,
  /// something undefined that is used, a wrong type), with the line; kUnsupported, kExhausted as above.
  Result<std::string> render(const nlohmann::ordered_json& variables,
                             const RenderOptions& options = {}) const;

  const std::string& name() const { return name_; }

 private:
  struct Tree;
  Template(std::string name, std::shared_ptr<const Tree> tree);
  std::string name_;
  std::shared_ptr<const Tree> tree_;
};

}  // namespace ds::jinja
