// ds-plan verify: every rule of plans/README.md.
#include "tools/ds-plan/actions.h"

namespace ds {

Status verify(const PlanOptions& o) {
  Json results = Json::array();
  Status first;
  size_t failed = 0;
  for (const std::string& path : o.files) {
    Result<LoadedPlan> loaded = load(path);
    Json result = {{"file", path}, {"ok", loaded.ok()}};
    if (loaded.ok()) {
      size_t ops = loaded->plan.full_prefill.ops.size();
      for (const Variant& v : loaded->plan.variants) ops += v.ops.size();
      result["format_version"] = loaded->plan.format_version;
      result["variants"] = loaded->plan.variants.size();
      result["ops"] = ops;
      if (!o.json) {
        fmt::print("{}: ok (format {}, {} variant(s) and the full prefill, {} ops)\n", path,
                   loaded->plan.format_version, loaded->plan.variants.size(),
                   format_count(static_cast<int64_t>(ops)));
      }
    } else {
      ++failed;
      result["error"] = code_name(loaded.status().code());
      result["message"] = loaded.status().message();
      if (!o.json && o.files.size() > 1) fmt::print(stderr, "{}\n", loaded.status().message());
      if (first.ok()) first = loaded.status();
    }
    results.push_back(std::move(result));
  }
  if (o.json) fmt::print("{}", json_text({{"ok", failed == 0}, {"files", results}}));
  if (failed > 0 && o.files.size() > 1) {
    return error(first.code(), "{} of {} plans are not valid", failed, o.files.size());
  }
  return first;
}

}  // namespace ds
