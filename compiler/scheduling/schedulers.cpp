#include "compiler/scheduling/schedulers.h"

#include <fmt/ranges.h>

namespace ds {
namespace {

/// `best` aside, a scheduler does the same with and without search.
template <Result<Schedule> (*kRun)(const Problem&)>
Result<Schedule> plain(const Problem& p, bool) {
  return kRun(p);
}

constexpr SchedulerTraits kSchedulers[] = {
    {"best", schedule_best, /*whole_entry=*/false, /*loads_first=*/false},
    {"cake", plain<schedule_cake>, false, false},
    {"e-first", plain<schedule_e_first>, false, false},
    {"kv-first", plain<schedule_kv_first>, false, false},
    {"kv-preload", plain<schedule_kv_preload>, false, true},
    {"serial", plain<schedule_serial>, true, true},
    {"two-pointer", plain<schedule_two_pointer>, false, false},
};

}  // namespace

std::vector<std::string_view> scheduler_names() {
  std::vector<std::string_view> names;
  for (const SchedulerTraits& s : kSchedulers) names.push_back(s.name);
  return names;
}

Result<const SchedulerTraits*> find_scheduler(std::string_view name) {
  for (const SchedulerTraits& s : kSchedulers)
    if (s.name == name) return &s;
  return error(Code::kInvalidArgument, "unknown scheduler '{}'; known are {}", name,
               fmt::join(scheduler_names(), ", "));
}

bool moves_whole_entry(std::string_view name) {
  auto found = find_scheduler(name);
  return found.ok() && (*found)->whole_entry;
}

bool loads_come_first(std::string_view name) {
  auto found = find_scheduler(name);
  return found.ok() && (*found)->loads_first;
}

Result<Schedule> schedule(const Problem& p, std::string_view name, bool with_bound) {
  DS_ASSIGN(const SchedulerTraits* scheduler, find_scheduler(name));
  DS_TRY(check(p));
  DS_ASSIGN(Schedule s, scheduler->run(p, with_bound));
  s.cost_ns = cost_of(p, s.end_ns);
  // A search has a bound already, and a better one.
  if (with_bound && s.lower_bound_ns == 0) s.lower_bound_ns = lower_bound(p);
  s.proven_optimal = s.cost_ns == s.lower_bound_ns;
  if (s.proven_optimal && s.proof == Proof::kNone) s.proof = Proof::kBound;
  DS_TRY(verify(p, s));
  return s;
}

}  // namespace ds
