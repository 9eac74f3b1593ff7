#include "compiler/scheduling/schedulers.h"
#include <fmt/ranges.h>

namespace ds {
namespace {

struct Entry {
  std::string_view name;
  Result<Schedule> (*run)(const Problem&);
};
constexpr Entry kSchedulers[] = {
    {"best", schedule_best},         {"e-first", schedule_e_first},
    {"kv-first", schedule_kv_first}, {"kv-preload", schedule_kv_preload},
    {"serial", schedule_serial},
};

}  // namespace

std::vector<std::string_view> scheduler_names() {
  std::vector<std::string_view> names;
  for (const Entry& e : kSchedulers) names.push_back(e.name);
  return names;
}

Result<Schedule> schedule(const Problem& p, std::string_view name, bool with_bound) {
  for (const Entry& e : kSchedulers) {
    if (e.name != name) continue;
    DS_TRY(check(p));
    DS_ASSIGN(Schedule s, e.run(p));
    s.cost_ns = cost_of(p, s.start_ns);
    s.lower_bound_ns = with_bound ? lower_bound(p) : 0;
    s.proven_optimal = s.cost_ns == s.lower_bound_ns;
    DS_TRY(verify(p, s));
    return s;
  }
  return error(Code::kInvalidArgument, "unknown scheduler '{}'; known are {}", name,
               fmt::join(scheduler_names(), ", "));
}

}  // namespace ds
