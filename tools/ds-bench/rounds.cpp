#include "tools/ds-bench/rounds.h"

#include <algorithm>

namespace ds {
Status run_rounds(std::vector<Contender>& contenders, const Request& request, const RoundOptions& options) {
  for (int round = -1; round < options.repeats; ++round) {
    for (Contender& c : contenders) {
      DS_ASSIGN(const std::unique_ptr<Session> session, c.make_session());
      // So that every request meets cores that were busy just before, too: after a second of waiting for the
      // link a virtual machine's cores are slower for some tens of milliseconds, and whoever follows a way
      // that waits much would pay for it.
      DS_TRY(session->warm_up());
      Request own = request;
      own.full_prefill = c.full_prefill;
      if (own.link_rate == 0) own.link_rate = c.link_rate;
      DS_ASSIGN(Answer answer, session->run(own));
      c.link_rate = session->measured_link_rate();
      if (answer.cache == CacheStatus::kMiss) {
        return error(answer.miss.code(), "'{}' missed the cache, so there is nothing to compare: {}", c.name,
                     answer.miss.message());
      }
      if (round >= 0) c.answers.push_back(std::move(answer));
      if (options.progress) options.progress(c);
    }
  }
  return ok_status();
}

std::vector<int64_t> figures(const Contender& contender, int64_t Answer::*figure) {
  std::vector<int64_t> out;
  for (const Answer& answer : contender.answers) out.push_back(answer.*figure);
  return out;
}

int64_t median_of(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<Cut> cuts_of(const std::vector<const Plan*>& plans) {
  std::vector<Cut> cuts;
  for (const Plan* plan : plans)
    for (const Cut& cut : published_cuts(*plan)) cuts.push_back(cut);
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

}  // namespace ds
