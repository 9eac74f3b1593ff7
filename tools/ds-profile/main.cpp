// ds-profile: how well a receiver answers over each cache that a plan could give it.
#include "tools/ds-profile/profile.h"

using namespace ds;

int main(int argc, char** argv) {
  CLI::App app{
      "Measure how well a receiver answers over each cache that a plan could give it: every contiguous "
      "group\n"
      "of layers recomputed, the rest the sender's, plain and behind an aligned cut, and what that is to be\n"
      "compared with.",
      "ds-profile"};
  app.require_subcommand(0, 1);
  Action profile = add_run(app);
  const std::pair<const char*, Action> actions[] = {{"fit", add_fit(app)},
                                                    {"merge", add_merge(app)},
                                                    {"score", add_score(app)},
                                                    {"report", add_report(app)}};
  app.footer(
      "What is done is kept in OUTPUT.run: after Ctrl-C, a crash or a full disk the same command goes on "
      "from there.\n\n"
      "Examples:\n"
      "  ds-profile --sender S/ --receiver R/ --data hotpotqa.jsonl lcc.jsonl -o quality.json\n"
      "  ds-profile --sender S/ --receiver R/ --data hotpotqa.jsonl dureader.jsonl --prompts "
      "dataset2prompt.json "
      "\\\n"
      "             --max-new-tokens dataset2maxlen.json -o quality.json\n"
      "  ds-profile --sender S/ --receiver R/ --data *.jsonl --prompts prompts.json --granularity 2 --race "
      "0.95 \\\n"
      "             --truncate 8000 -o quality.json\n"
      "  ds-profile --sender S/ --receiver R/ --data hotpotqa.jsonl --fit-data other.jsonl -o quality.json\n"
      "  ds-profile --sender S/ --receiver R/ --data hotpotqa.jsonl --budget 30min -o quality.json\n"
      "  ds-profile --sender S/ --receiver R/ --data hotpotqa.jsonl --dry-run --json -o quality.json\n"
      "  ds-profile fit --sender S/ --receiver R/ --data other.jsonl -o pair.maps.safetensors\n"
      "  ds-profile merge monday.json.run tuesday.json.run -o quality.json\n"
      "  ds-profile score --data hotpotqa.jsonl --predictions pred/hotpotqa.jsonl\n"
      "  ds-profile score --data notes.jsonl --metric exact_match --predictions answers.txt --text --json\n"
      "  ds-profile report quality.json -o report.html");
  return run_tool(app, argc, argv, [&]() -> Status {
    for (const auto& [name, action] : actions)
      if (app.got_subcommand(name)) return action();
    return profile();
  });
}
