// ds-serve: a fleet of models behind one address, for clients of OpenAI's API.
#include <cstdio>
#include <thread>

#include "serve/api.h"
#include "serve/fleet.h"
#include "serve/fleet_init.h"
#include "serve/http_server.h"
#include "serve/loaded_fleet.h"
#include "serve/registered_cuts.h"
#include "support/file.h"
#include "tools/backend_flags.h"
#include "tools/store_input.h"
#include "tools/tool.h"

using namespace ds;

namespace {

struct ServeOptions {
  std::string fleet, cache = "auto", host;
  int64_t port = -1;
  bool check = false, partial = false, log_requests = false;
};

/// A line with its time; several threads write.
void log_line(const std::string& line) {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char time[32];
  std::strftime(time, sizeof(time), "%Y-%m-%dT%H:%M:%SZ", &utc);
  fmt::print(stderr, "{} {}\n", time, line);
}

Status check_or_serve(const ServeOptions& o) {
  DS_ASSIGN(Fleet given, Fleet::read(o.fleet));
  if (o.port >= 0) given.port = o.port;
  if (!o.host.empty()) given.host = o.host;
  LoadFleetOptions load{.partial = o.partial, .check_only = o.check};
  load.cache = o.cache == "auto" ? default_cache_folder() : o.cache == "off" ? "" : o.cache;
  load.say = [](const std::string& what) { fmt::print(stderr, "{}\n", what); };
  std::atomic<bool>& stopped = stop_on_interrupt();
  DS_ASSIGN(const std::unique_ptr<LoadedFleet> fleet, LoadedFleet::load(std::move(given), load));
  for (const std::string& broken : fleet->left_out()) fmt::print(stderr, "left out: {}\n", broken);
  if (o.check) {
    for (const auto& m : fleet->models())
      fmt::print("model {}: {:.12}, {} positions, {} reuse, {} plan{}, {} chat template\n", m->given.name,
                 m->identity.fingerprint, m->positions, m->given.approximate ? "approximate" : "exact",
                 m->plans.size(), m->plans.size() == 1 ? "" : "s", m->chat_template ? "a" : "no");
    for (const auto& p : fleet->plans())
      fmt::print("plan {}: {} -> {}, {} variant{}, {} gate\n", p->given.file, p->plan.sender.name,
                 p->plan.receiver.name, p->plan.variants.size(), p->plan.variants.size() == 1 ? "" : "s",
                 p->gate ? "a" : "no");
    if (fleet->registered() != nullptr)
      for (const RegisteredCuts::Shown& one : fleet->registered()->shown())
        if (one.problem.empty())
          fmt::print("registered {:.17}: {} -> {}, {}\n", one.key, one.sender, one.receiver,
                     one.models.empty() ? "for no model that publishes"
                                        : fmt::format("published for by {}", fmt::join(one.models, ", ")));
    return ok_status();
  }
  Api api(*fleet, {.log = log_line, .log_requests = o.log_requests});
  DS_ASSIGN(const std::unique_ptr<HttpServer> server, HttpServer::create(fleet->fleet(), api));
  DS_TRY(server->start());
  std::vector<std::string> names;
  for (const auto& m : fleet->models()) names.push_back(m->given.name);
  fmt::print("serving {} at {}\n", fmt::join(names, ", "), server->url());
  std::fflush(stdout);
  while (!stopped) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  log_line("draining: what runs ends, nothing new begins");
  server->stop();
  log_line("done");
  return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Serve a fleet of models behind one address, to any client of OpenAI's API: several fine-tunes, one "
      "store, plans\n"
      "that were compiled beforehand. Every answer says what of a sender's it reused. docs/serving.md has "
      "the fleet\n"
      "file's schema and what is answered. SIGTERM and Ctrl-C let what runs end.",
      "ds-serve"};
  ServeOptions o;
  app.add_option("--fleet", o.fleet, "the fleet file (JSON): models, plans, store, limits, keys");
  app.add_flag("--check", o.check,
               "read and check the file and all that it names, and end: no weights are loaded");
  app.add_flag("--partial", o.partial,
               "serve what can be served where a model or a plan is broken; without it that is an error");
  app.add_option("--host", o.host, "instead of the file's: the address to bind");
  app.add_option("--port", o.port, "instead of the file's; 0: a free one, which is printed")
      ->check(CLI::Range(0, 65535));
  app.add_option("--weight-cache", o.cache,
                 "folder that keeps packed weights and known identities for faster starts; 'off': none; "
                 "'auto': as in ds-run")
      ->capture_default_str();
  app.add_flag("--log-requests", o.log_requests,
               "write a line of JSON to stderr for each answer, without its text");
  FleetInit init;
  std::string output = "-";
  CLI::App* make = app.add_subcommand("init", "write a fleet file from model folders and plans");
  make->add_option("--model", init.models,
                   "NAME=FOLDER, or a folder, whose own name counts; may be given several times")
      ->required();
  make->add_option("--plan", init.plans, "plan for one of them; may be given several times");
  make->add_option("--maps", init.maps, "file of maps that a plan names; may be given several times");
  make->add_option("--profile", init.profiles,
                   "quality profile of a plan's pair, for the gate; may be given several times");
  make->add_option("--store", init.store, fmt::format("where entries are: {}", kStoreUrls));
  add_store_key_option(*make, init.store_key);
  make->add_flag(
      "--approximate", init.approximate,
      "let plans answer for all of them; without it they reuse what they have computed themselves");
  make->add_flag("--publish", init.publish, "have all of them publish the contexts that they have read");
  make->add_flag(
      "--registered", init.registered,
      "publish for plans, too, that receivers elsewhere register in the store (ds-store register)");
  make->add_option("-o,--output", output, "the file; -: stdout")->capture_default_str();
  app.footer(
      "Examples:\n"
      "  ds-serve init --model base=base/ --model agent=agent/ --plan pair.dsplan --store file:/var/cache/ds "
      "\\\n"
      "           --approximate --publish -o fleet.json\n"
      "  ds-serve --fleet fleet.json --check\n"
      "  ds-serve --fleet fleet.json\n"
      "  curl http://127.0.0.1:8000/v1/models\n"
      "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
      "       -d '{\"model\": \"agent\", \"prompt\": \"Hello\", \"max_tokens\": 16, \"temperature\": 0}'");
  return run_tool(app, argc, argv, [&]() -> Status {
    if (make->parsed()) {
      DS_ASSIGN(const nlohmann::ordered_json fleet, make_fleet(init));
      return write_file_atomically(output, fleet.dump(2) + "\n");
    }
    if (o.fleet.empty())
      return error(Code::kInvalidArgument, "give --fleet FILE, or write one with ds-serve init");
    return check_or_serve(o);
  });
}
