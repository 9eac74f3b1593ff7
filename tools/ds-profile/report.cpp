// ds-profile report: a profile as a page for people.
#include "profiler/report.h"

#include <memory>

#include "support/file.h"
#include "tools/ds-profile/profile.h"

namespace ds {
namespace {

struct ReportOptions {
  std::string quality, output;
};

Status run_report(const ReportOptions& o) {
  DS_ASSIGN(Quality quality, Quality::read(o.quality));
  return write_file_atomically(o.output, quality_html(quality));
}

}  // namespace

Action add_report(CLI::App& app) {
  auto o = std::make_shared<ReportOptions>();
  CLI::App* cmd =
      app.add_subcommand("report", "draw a quality profile as one HTML page that stands by itself");
  cmd->add_option("quality", o->quality, "quality.json, as ds-profile or a script wrote it (versions 1 to 3)")
      ->required();
  cmd->add_option("-o,--output", o->output, "the page; '-': stdout")->required();
  cmd->footer("Example:\n  ds-profile report quality.json -o report.html");
  return [o] { return run_report(*o); };
}

}  // namespace ds
