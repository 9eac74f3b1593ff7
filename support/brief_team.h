// OpenMP's threads, in a process whose threads compute in parallel each by itself.
//
// A thread that has run a parallel region keeps its team for the next one. libgomp's teams spin for a moment
// where a region ends, so that the next one finds them awake, but only while no more threads of teams live in
// the process than there are cores, whether they have work or not. Beyond that each goes to sleep at once,
// and a short region (a layer has a dozen) costs 3 to 8 times its time. So a team is kept by a compute stream
// only; who computes in parallel once in a while lets go of his.
#pragma once

#include <omp.h>

namespace ds {

/// Of compute streams' threads.
inline thread_local bool keeps_team = false;

/// Ends the calling thread's team, outside of parallel regions; its next region starts another, in some 0.1
/// ms.
inline void end_team() {
  if (omp_get_level() == 0) (void)omp_pause_resource(omp_pause_soft, omp_get_initial_device());
}

/// Where it goes out of scope, a thread that keeps none ends its team.
class BriefTeam {
 public:
  BriefTeam() = default;
  BriefTeam(const BriefTeam&) = delete;
  BriefTeam& operator=(const BriefTeam&) = delete;
  ~BriefTeam() {
    if (!keeps_team) end_team();
  }
};

}  // namespace ds
