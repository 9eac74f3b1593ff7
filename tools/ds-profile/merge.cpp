// ds-profile merge: one profile of several runs.
#include <filesystem>
#include <memory>

#include "support/file.h"
#include "tools/ds-profile/run.h"

namespace ds {
namespace {

struct MergeOptions {
  std::vector<std::string> runs;
  std::string out, other;
};

Status run_merge(const MergeOptions& o) {
  std::optional<Quality> other;
  if (!o.other.empty()) {
    DS_ASSIGN(other, Quality::read(o.other));
  }
  DS_ASSIGN(Quality q, profile_of_runs(o.runs, other ? &*other : nullptr));
  if (!q.maps.fingerprint.empty()) {
    DS_ASSIGN(MapSet maps, MapSet::read(o.runs[0] + "/maps.safetensors"));
    const std::string file = maps_path_for(o.out);
    q.maps.name = std::filesystem::path(file).filename().string();
    DS_TRY(maps.write(file));
  }
  say_task_notes(q);
  return write_file_atomically(o.out, q.to_text());
}

}  // namespace

Action add_merge(CLI::App& app) {
  CLI::App* merge =
      app.add_subcommand("merge", "Make one profile of several finished runs of the same pair.");
  auto o = std::make_shared<MergeOptions>();
  merge->add_option("runs", o->runs, "run folders (--state)")->required();
  merge->add_option("-o,--output", o->out, "quality.json to write; '-': stdout")->required();
  merge->add_option("--compare-with", o->other,
                    "another pair's quality.json: its best groups are looked up here");
  merge->footer("Example:\n  ds-profile merge monday.json.run tuesday.json.run -o quality.json");
  return [o] { return run_merge(*o); };
}

}  // namespace ds
