// usage: plans_only FILE
// Reads and verifies a plan with droidspeak::plans alone.
#include <cstdio>

#include "plans/plan_file.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  auto plan = ds::read_plan(argv[1]);
  if (!plan.ok()) std::fprintf(stderr, "%s\n", plan.status().message().c_str());
  return ds::exit_code(plan.status().code());
}
