// Problems and schedules with one fault each.
// RUN: ds-opt %s --plan-verify-schedule --split-input-file --verify-diagnostics

plan.problem @never_fits minimize makespan {
  %l = plan.stream link
  %m = plan.pool "staging" capacity 3
  plan.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' (task 0) takes 4 of pool 'staging', whose capacity is 3: that can never fit}}
    %0 = plan.task "kv(0)" load_kv on %l at 0 for 5
    plan.hold %0 takes 4 of %m
    plan.done %0
  }
}

// -----

plan.problem @overflow minimize makespan {
  %l = plan.stream link
  %c = plan.stream compute
  %m = plan.pool "staging" capacity 3
  plan.job @A arrives 0 {
    // expected-note@+1 {{the other operation is here}}
    %0 = plan.task "kv(0)" load_kv on %l at 0 for 5
    // expected-error@+1 {{'kv(1)' takes 2 of pool 'staging' at 5, where 2 of 3 are taken, 2 of them by 'kv(0)', which started at 0}}
    %1 = plan.task "kv(1)" load_kv on %l at 5 for 5
    %2 = plan.task "suffix 0" compute on %c after %0 at 5 for 1
    plan.hold %0 takes 2 of %m until %2
    plan.hold %1 takes 2 of %m
    plan.done %1, %2
  }
}

// -----

plan.problem @too_short minimize makespan {
  %l = plan.stream link
  %c = plan.stream compute
  plan.slowdown "copy" beside "memory" by 1000
  plan.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' runs from 0 to 10, but its work of 10 ns is not done by then}}
    %0 = plan.task "kv(0)" load_kv on %l class "copy" at 0 for 10
    // expected-note@+1 {{the other operation is here}}
    %1 = plan.task "norm" compute on %c class "memory" at 0 for 6
    plan.done %0, %1
  }
}

// -----

plan.problem @too_long minimize makespan {
  %l = plan.stream link
  plan.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' runs from 0 to 11, but takes 10 and nothing slows it: it ends at 10}}
    %0 = plan.task "kv(0)" load_kv on %l at 0 until 11 for 10
    plan.done %0
  }
}

// -----

plan.problem @ends_too_soon minimize makespan {
  %l = plan.stream link
  plan.job @A arrives 0 {
    // expected-error@+1 {{'kv(0)' starts at 0 and ends at 9, but takes 10 even alone}}
    %0 = plan.task "kv(0)" load_kv on %l at 0 until 9 for 10
    plan.done %0
  }
}

// -----

// expected-error@+1 {{states proven_optimal by bound, but the problem's bound is 5, below 6}}
plan.problem @no_such_bound minimize makespan cost 6 lower_bound 6 proven_optimal by bound {
  %l = plan.stream link
  plan.job @A arrives 0 {
    %0 = plan.task "kv(0)" load_kv on %l at 1 for 5
    plan.done %0
  }
}

// -----

// expected-error@+1 {{says how it was proven ('by'), but not that it was ('proven_optimal')}}
plan.problem @by_alone minimize makespan cost 5 lower_bound 5 by search {
  %l = plan.stream link
}

// -----

// expected-error@+1 {{'a' beside 'b' is slowed by -1 permille, expected 0 to 1000000}}
plan.problem @slower minimize makespan {
  %l = plan.stream link
  plan.slowdown "a" beside "b" by -1
  plan.job @A arrives 0 {
    plan.done
  }
}

// -----

plan.problem @stray minimize makespan {
  %l = plan.stream link
  // expected-error@+1 {{is neither a stream, a pool, a slowdown nor a job; a problem holds nothing else}}
  %b = plan.buffer kv layer 0 with context
}
