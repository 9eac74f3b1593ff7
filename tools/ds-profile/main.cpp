// ds-profile: how well a receiver answers.
#include "tools/ds-profile/profile.h"

using namespace ds;

int main(int argc, char** argv) {
  CLI::App app{"Score answers on data sets with the metrics of LongBench; show what a quality profile says.",
               "ds-profile"};
  app.require_subcommand(0, 1);
  const std::pair<const char*, Action> actions[] = {{"score", add_score(app)}, {"report", add_report(app)}};
  app.footer(
      "Examples:\n"
      "  ds-profile score --data hotpotqa.jsonl --predictions pred/hotpotqa.jsonl\n"
      "  ds-profile score --data notes.jsonl --metric exact_match --predictions answers.txt --text --json\n"
      "  ds-profile report quality.json -o report.html");
  return run_tool(app, argc, argv, [&]() -> Status {
    for (const auto& [name, action] : actions)
      if (app.got_subcommand(name)) return action();
    return error(Code::kInvalidArgument, "nothing to do; expected an action: see ds-profile --help");
  });
}
