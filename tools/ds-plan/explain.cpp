// ds-plan explain: what bounds the time, and what would change that.
#include "tools/ds-plan/actions.h"

#include "runtime/trace/explain.h"
#include "support/file.h"

namespace ds {
namespace {

/// Every variant in full; in text, what they have in common is not said again by each.
Status explain_all(const PlanOptions& o, const Plan& plan, int64_t rate) {
  std::vector<const Variant*> all;
  for (const Variant& v : plan.variants) all.push_back(&v);
  all.push_back(&plan.full_prefill);
  Json list = Json::array();
  std::string text;
  for (const Variant* v : all) {
    const OperatingPoint point = point_of(o, rate, *v);
    DS_ASSIGN(Explanation explanation, explain_variant(plan, *v, point));
    const std::string why = point == tuned_point(*v) ? "where it is tuned" : "at the point that was given";
    if (o.json) {
      list.push_back(explanation_json(explanation, why));
    } else {
      text += (text.empty() ? "" : "\n") + explanation_text(explanation, why, OthersShown::kNone);
    }
  }
  return write_file_atomically(
      "-",
      o.json ? json_text({{"schema", "droidspeak.explanations"}, {"version", 1}, {"variants", list}}) : text);
}

}  // namespace

Status explain(const PlanOptions& o) {
  if (o.all && (!o.variant.empty() || o.waiting > 0))
    return error(Code::kInvalidArgument, "--all contradicts {}: it shows every variant",
                 o.variant.empty() ? "--waiting" : "--variant " + o.variant);
  DS_ASSIGN(int64_t rate, link_rate(o));
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  if (o.all) return explain_all(o, plan, rate);
  const Variant& first = plan.variants.empty() ? plan.full_prefill : plan.variants[0];
  const bool point_given = rate > 0 || o.context_length > 0 || o.suffix_length > 0 || o.waiting > 0;
  if (plan.variants.size() > 1 && o.variant.empty() && !point_given && !o.json) {
    DS_ASSIGN(std::string text, explain_plan(plan, o.file));
    return write_file_atomically("-", text);
  }
  Selected chosen{&first, "the first of the plan, where it is tuned"};
  OperatingPoint point = point_of(o, rate, first);
  if (!o.variant.empty()) {
    DS_ASSIGN(chosen.variant, find_variant(loaded, o.variant));
    chosen.why = "named by --variant";
    point = point_of(o, rate, *chosen.variant);
  } else if (point_given) {
    chosen = select(plan, point, o.waiting);
  }
  DS_ASSIGN(Explanation explanation, explain_variant(plan, *chosen.variant, point));
  return write_file_atomically("-", o.json ? json_text(explanation_json(explanation, chosen.why))
                                           : explanation_text(explanation, chosen.why));
}

}  // namespace ds
