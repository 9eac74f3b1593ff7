// `best` beats each simple strategy where the right order is none of theirs: E of a short group that the suffix
// reaches late, behind the KV of the layers below, which it needs at once.
// RUN: ds-opt %s --plan-schedule=scheduler=e-first --plan-verify-schedule | FileCheck %s --check-prefix=EFIRST
// RUN: ds-opt %s --plan-schedule=scheduler=kv-first --plan-verify-schedule | FileCheck %s --check-prefix=KVFIRST
// RUN: ds-opt %s --plan-schedule=scheduler=best --plan-verify-schedule | FileCheck %s --check-prefix=BEST

// EFIRST:  cost 65
// KVFIRST: cost 61
// BEST:    cost 56 lower_bound 56 proven_optimal

scheduling.problem @late_group minimize makespan {
  %link = plan.stream link
  %compute = plan.stream compute
  scheduling.job @A arrives 0 {
    %e = scheduling.task "e(1)" load_e on %link for 10
    %k0 = scheduling.task "kv(0)" load_kv on %link for 10
    %k2 = scheduling.task "kv(2)" load_kv on %link for 10
    %r1 = scheduling.task "recompute 1" compute on %compute after %e for 1
    %s0 = scheduling.task "suffix 0" compute on %compute after %k0 for 15
    %s1 = scheduling.task "suffix 1" compute on %compute after %s0, %r1 for 20
    %s2 = scheduling.task "suffix 2" compute on %compute after %s1, %k2 for 10
    scheduling.done %s2
  }
}
