// Bad schedules, each with the one rule that it breaks, and one good one.
// RUN: ds-opt %s --plan-verify-schedule --split-input-file --verify-diagnostics

scheduling.problem @good minimize sum cost 5 lower_bound 5 proven_optimal {
  %l = plan.stream link
  %c = plan.stream compute
  scheduling.job @A arrives 3 {
    %0 = scheduling.task "e(4)" load_e on %l at 3 for 2
    %1 = scheduling.task "recompute 4" compute on %c after %0 at 5 for 3
    scheduling.done %1
  }
}

// -----

scheduling.problem @too_early minimize makespan {
  %l = plan.stream link
  %c = plan.stream compute
  scheduling.job @A arrives 0 {
    // expected-note@+1 {{the other operation is here}}
    %0 = scheduling.task "e(4)" load_e on %l at 0 for 5
    // expected-error@+1 {{'recompute 4' starts at 3, but waits for 'e(4)', which ends at 5}}
    %1 = scheduling.task "recompute 4" compute on %c after %0 at 3 for 3
    scheduling.done %1
  }
}

// -----

scheduling.problem @one_stream minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-note@+1 {{the other operation is here}}
    %0 = scheduling.task "kv(1)" load_kv on %l at 0 for 5
    // expected-error@+1 {{'kv(0)' starts at 4 on stream 'link', which 'kv(1)' holds from 0 to 5}}
    %1 = scheduling.task "kv(0)" load_kv on %l at 4 for 5
    scheduling.done %0, %1
  }
}

// -----

scheduling.problem @before_arrival minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 7 {
    // expected-error@+1 {{'kv(0)' starts at 6, but its job 'A' arrives at 7}}
    %0 = scheduling.task "kv(0)" load_kv on %l at 6 for 5
    scheduling.done %0
  }
}

// -----

scheduling.problem @before_release minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' starts at 6, but is released at 9}}
    %0 = scheduling.task "kv(0)" load_kv on %l release 9 at 6 for 5
    scheduling.done %0
  }
}

// -----

// expected-error@+1 {{states cost 4, but its start times give 5}}
scheduling.problem @wrong_cost minimize makespan cost 4 {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 for 5
    scheduling.done %0
  }
}

// -----

// expected-error@+1 {{states lower_bound 6, but a schedule of 5 is there}}
scheduling.problem @wrong_bound minimize makespan cost 5 lower_bound 6 {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 for 5
    scheduling.done %0
  }
}

// -----

// expected-error@+1 {{states proven_optimal, but cost 5 is not met by its lower_bound}}
scheduling.problem @no_proof minimize makespan cost 5 lower_bound 4 proven_optimal {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 for 5
    scheduling.done %0
  }
}

// -----

scheduling.problem @unscheduled minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' has no start ('at'): illegal for this phase, expected to have been scheduled}}
    %0 = scheduling.task "kv(0)" load_kv on %l for 5
    scheduling.done %0
  }
}

// -----

scheduling.problem @negative minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' (task 0) takes -5 ns, expected nothing below zero}}
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 for -5
    scheduling.done %0
  }
}

// -----

plan.variant @order policy "p" scheduler "s" tokens [1, inf) rate [0, inf)
    tuned(tokens = 1, suffix = 1, rate = 1) chunks 1 promise(loss = 0.0, ttft_ns = 0) {
  %l = plan.stream link
  %k0 = plan.buffer kv layer 0 with context suffix
  %k1 = plan.buffer kv layer 1 with context suffix
  // expected-note@+1 {{the other operation is here}}
  %0 = plan.transfer kv(0) chunk 0 into %k0 on %l at 10 for 10
  // expected-error@+1 {{'kv(1)' starts at 0 but stands behind 'kv(0)', which starts at 10; expected the order of starts}}
  %1 = plan.transfer kv(1) chunk 0 into %k1 on %l at 0 for 10
}
