// Requests in turns: each way to a first token once per round, so that a machine that slows down for a while
// slows all of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/core/session.h"
#include "support/status.h"

namespace ds {

/// One way to a first token. One session lives at a time, as in a process that answers: another's team would
/// slow its own (support/brief_team.h).
struct Contender {
  std::string name;
  std::function<Result<std::unique_ptr<Session>>()> make_session;
  bool full_prefill = false;    // instead of what the plan says
  int64_t link_rate = 0;        // bytes per second that its sessions have measured; 0: none yet
  std::vector<Answer> answers;  // of the rounds that count
  const Answer& last() const { return answers.back(); }
};

struct RoundOptions {
  int repeats = 1;                                 // one more round warms up
  std::function<void(const Contender&)> progress;  // after each request; may be empty
};

/// Runs `request` for everyone, again and again. A miss of the cache is an error: there is nothing to
/// compare.
Status run_rounds(std::vector<Contender>& contenders, const Request& request, const RoundOptions& options);

/// One number of every answer, in the order of the rounds.
std::vector<int64_t> figures(const Contender& contender, int64_t Answer::*figure);
/// The upper one of two.
int64_t median_of(std::vector<int64_t> values);

/// Hidden states that any of the plans has sent, ascending, each once: what must be published.
std::vector<Cut> cuts_of(const std::vector<const Plan*>& plans);

}  // namespace ds
