#include "compiler/scheduling/schedulers.h"

#include <fmt/ranges.h>

namespace ds {
namespace {

struct Entry {
  std::string_view name;
  Result<Schedule> (*run)(const Problem&, bool thorough);
};

/// `best` aside, a scheduler does the same with and without search.
template <Result<Schedule> (*kRun)(const Problem&)>
Result<Schedule> plain(const Problem& p, bool) {
  return kRun(p);
}

constexpr Entry kSchedulers[] = {
    {"best", schedule_best},
    {"cake", plain<schedule_cake>},
    {"e-first", plain<schedule_e_first>},
    {"kv-first", plain<schedule_kv_first>},
    {"kv-preload", plain<schedule_kv_preload>},
    {"serial", plain<schedule_serial>},
    {"two-pointer", plain<schedule_two_pointer>},
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
    DS_ASSIGN(Schedule s, e.run(p, with_bound));
    s.cost_ns = cost_of(p, s.end_ns);
    // `best` has a bound already, and where it has searched a better one.
    if (with_bound && s.lower_bound_ns == 0) s.lower_bound_ns = lower_bound(p);
    s.proven_optimal = s.cost_ns == s.lower_bound_ns;
    if (s.proven_optimal && s.proof == Proof::kNone) s.proof = Proof::kBound;
    DS_TRY(verify(p, s));
    return s;
  }
  return error(Code::kInvalidArgument, "unknown scheduler '{}'; known are {}", name,
               fmt::join(scheduler_names(), ", "));
}

}  // namespace ds
