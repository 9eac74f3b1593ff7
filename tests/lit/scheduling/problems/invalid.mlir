// Problems and schedules with one fault each.
// RUN: ds-opt %s --plan-verify-schedule --split-input-file --verify-diagnostics

scheduling.problem @too_short minimize makespan {
  %l = plan.stream link
  %c = plan.stream compute
  scheduling.slowdown "copy" beside "memory" by 1000
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' runs from 0 to 10, but its work of 10 ns is not done by then}}
    %0 = scheduling.task "kv(0)" load_kv on %l class "copy" at 0 for 10
    // expected-note@+1 {{the other operation is here}}
    %1 = scheduling.task "norm" compute on %c class "memory" at 0 for 6
    scheduling.done %0, %1
  }
}

// -----

scheduling.problem @too_long minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' runs from 0 to 11, but takes 10 and nothing slows it: it ends at 10}}
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 until 11 for 10
    scheduling.done %0
  }
}

// -----

scheduling.problem @ends_too_soon minimize makespan {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' starts at 0 and ends at 9, but takes 10 even alone}}
    %0 = scheduling.task "kv(0)" load_kv on %l at 0 until 9 for 10
    scheduling.done %0
  }
}

// -----

// expected-error@+1 {{states proven_optimal by bound, but the problem's bound is 5, below 6}}
scheduling.problem @no_such_bound minimize makespan cost 6 lower_bound 6 proven_optimal by bound {
  %l = plan.stream link
  scheduling.job @A arrives 0 {
    %0 = scheduling.task "kv(0)" load_kv on %l at 1 for 5
    scheduling.done %0
  }
}

// -----

// expected-error@+1 {{says how it was proven ('by'), but not that it was ('proven_optimal')}}
scheduling.problem @by_alone minimize makespan cost 5 lower_bound 5 by search {
  %l = plan.stream link
}

// -----

// expected-error@+1 {{'a' beside 'b' is slowed by -1 permille, expected 0 to 1000000}}
scheduling.problem @slower minimize makespan {
  %l = plan.stream link
  scheduling.slowdown "a" beside "b" by -1
  scheduling.job @A arrives 0 {
    scheduling.done
  }
}

// -----

scheduling.problem @stray minimize makespan {
  %l = plan.stream link
  // expected-error@+1 {{is neither a stream, a slowdown nor a job; a problem holds nothing else}}
  %b = plan.buffer kv layer 0 with context
}
