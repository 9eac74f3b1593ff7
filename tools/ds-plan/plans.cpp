// Plans, variants and points, as the user names them.
#include "tools/ds-plan/actions.h"

#include "runtime/trace/explain.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {

Result<LoadedPlan> load(const std::string& path) {
  LoadedPlan loaded;
  loaded.path = path;
  Result<std::string> file = read_text_file(path, INT32_MAX);
  if (!file.ok()) return file.status().with_context("reading a plan");
  DS_ASSIGN(loaded.plan, parse_plan(std::as_bytes(std::span(file->data(), file->size())), path));
  loaded.sha256 = sha256_hex(*file);
  loaded.bytes = static_cast<int64_t>(file->size());
  return loaded;
}

Result<const Variant*> find_variant(const LoadedPlan& loaded, const std::string& name) {
  std::string names;
  for (const Variant& v : loaded.plan.variants) {
    if (v.name == name) return &v;
    names += "'" + v.name + "', ";
  }
  if (loaded.plan.full_prefill.name == name) return &loaded.plan.full_prefill;
  return error(Code::kInvalidArgument, "plan '{}' has no variant '{}'; it has {}'{}'", loaded.path, name,
               names, loaded.plan.full_prefill.name);
}

std::string json_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string drawn(const Picture& picture, const std::string& format) {
  return format == "svg"    ? draw_schedule_svg(picture)
         : format == "html" ? draw_schedule_html(picture)
                            : draw_schedule_chrome(picture);
}

Result<int64_t> link_rate(const PlanOptions& o) {
  if (o.link_rate.empty()) return 0;
  DS_ASSIGN(double parsed, parse_rate(o.link_rate));
  if (parsed < 1) return error(Code::kInvalidArgument, "--link-rate {} is less than 1 B/s", o.link_rate);
  return static_cast<int64_t>(parsed);
}

OperatingPoint point_of(const PlanOptions& o, int64_t rate, const Variant& base) {
  return {o.context_length > 0 ? o.context_length : base.tuned_tokens,
          o.suffix_length > 0 ? o.suffix_length : base.tuned_suffix, rate > 0 ? rate : base.tuned_rate};
}

Selected select(const Plan& plan, const OperatingPoint& at, int64_t waiting) {
  const Variant* covering = select_variant(plan, at.tokens, at.rate, waiting);
  const Variant& v = covering != nullptr ? *covering : plan.full_prefill;
  return {&v, why_selected(plan, v, at.tokens, at.rate, waiting)};
}

}  // namespace ds
