// ds-store: what is in a store, what of it is kept, and whether it is whole.
#include <algorithm>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>

#include "runtime/store/entry.h"
#include "runtime/store/keep.h"
#include "runtime/store/live.h"
#include "runtime/store/registered_plans.h"
#include "support/file.h"
#include "tools/store_input.h"
#include "tools/tool.h"

using namespace ds;

namespace {

using Json = nlohmann::ordered_json;

Status set(int64_t& value, const char* option, const std::string& text, auto parse) {
  if (text.empty()) return ok_status();
  auto parsed = parse(text);
  if (!parsed.ok()) return parsed.status().with_context(option);
  value = static_cast<int64_t>(*parsed);
  return ok_status();
}

std::string age(int64_t since_s, int64_t now_s) {
  const int64_t s = std::max<int64_t>(0, now_s - since_s);
  if (s < 120) return fmt::format("{} s", s);
  if (s < 120 * 60) return fmt::format("{} min", s / 60);
  if (s < 48 * 3600) return fmt::format("{} h", s / 3600);
  return fmt::format("{} d", s / 86400);
}

Json json_of(const ObjectInfo& o) {
  return {{"key", o.key},     {"tenant", key_tenant(o.key)}, {"bytes", o.bytes}, {"written", o.written_s},
          {"used", o.used_s}, {"pinned", o.pinned}};
}

/// Objects whose keys begin so: one each, where a key is given.
Result<std::vector<ObjectInfo>> named(Store& store, const std::vector<std::string>& beginnings) {
  DS_ASSIGN(std::vector<ObjectInfo> all, store.list());
  std::vector<ObjectInfo> out;
  for (const std::string& begin : beginnings) {
    std::vector<ObjectInfo> these;
    for (const ObjectInfo& o : all)
      if (o.key.starts_with(begin)) these.push_back(o);
    if (these.empty()) return error(Code::kNotFound, "no object '{}' in store '{}'", begin, store.url());
    if (these.size() > 1)
      return error(Code::kInvalidArgument,
                   "'{}' begins the keys of {} objects in store '{}': '{}', '{}'; give more of it", begin,
                   these.size(), store.url(), these[0].key, these[1].key);
    out.push_back(these[0]);
  }
  return out;
}

struct Options {
  std::string url, key_file, budget, tenant_budget, ttl, idle;
  std::vector<std::string> keys;
  bool json = false, dry_run = false, off = false;
};

/// What a registered plan is, for people.
Result<std::string> plan_line(Store& store, const std::string& key) {
  DS_ASSIGN(const Plan plan, registered_plan(store, key));
  return fmt::format("plan of receiver {} for entries of {}", plan.receiver.name, plan.sender.name);
}

Status ls(Store& store, const Options& o) {
  DS_ASSIGN(std::vector<ObjectInfo> all, store.list());
  const int64_t now = time(nullptr);
  Json list = Json::array();
  for (const ObjectInfo& object : all) {
    if (is_registered_plan(object.key)) {
      const auto line = plan_line(store, object.key);
      Json one = json_of(object);
      one[line.ok() ? "plan" : "error"] = line.ok() ? *line : line.status().message();
      if (o.json) {
        list.push_back(std::move(one));
      } else {
        fmt::print("{:.21}  {:>10}  {}\n", object.key, format_bytes(object.bytes),
                   line.ok() ? *line : line.status().message());
      }
      continue;
    }
    // The header alone: what it is, not whether its rows are whole.
    auto entry = EntryReader::open_any(store, object.key);
    if (o.json) {
      Json one = json_of(object);
      if (entry.ok()) {
        const EntryHeader& h = entry->header();
        one["sender"] = h.sender.name;
        one["first"] = h.identity.first;
        one["tokens"] = h.identity.tokens;
        one["dtype"] = dtype_name(h.identity.dtype);
        one["signed"] = h.is_signed;
      } else {
        one["error"] = entry.status().message();
      }
      list.push_back(std::move(one));
      continue;
    }
    const std::string what =
        entry.ok()
            ? fmt::format("{}, tokens {} to {}", entry->header().sender.name, entry->header().identity.first,
                          entry->header().identity.first + entry->header().identity.tokens)
            : entry.status().message();
    fmt::print("{}  {:>10}  used {:>7} ago  {}{}\n", short_key(object.key), format_bytes(object.bytes),
               age(object.used_s, now), object.pinned ? "pinned  " : "", what);
  }
  DS_ASSIGN(const std::vector<LiveInfo> being_written, store.list_live());
  for (const LiveInfo& live : being_written) {
    if (o.json) {
      list.push_back({{"key", live.key},
                      {"tenant", key_tenant(live.key)},
                      {"bytes", live.bytes},
                      {"written", live.written_s},
                      {"live", live.alive ? "being written" : "its writer has died"}});
      continue;
    }
    fmt::print("{}  {:>10}  {}\n", short_key(live.key), format_bytes(live.bytes),
               live.alive ? "being written, by who lives" : "its writer has died; gc removes it");
  }
  if (o.json) fmt::print("{}\n", list.dump(2));
  return ok_status();
}

Status du(Store& store, const Options& o) {
  DS_ASSIGN(std::vector<ObjectInfo> all, store.list());
  std::map<std::string, std::pair<int64_t, int64_t>> tenants;  // objects, bytes
  int64_t bytes = 0, pinned = 0;
  for (const ObjectInfo& object : all) {
    auto& [count, sum] = tenants[key_tenant(object.key)];
    ++count;
    sum += object.bytes;
    bytes += object.bytes;
    if (object.pinned) pinned += object.bytes;
  }
  if (o.json) {
    Json by = Json::array();
    for (auto& [tenant, sum] : tenants)
      by.push_back({{"tenant", tenant}, {"objects", sum.first}, {"bytes", sum.second}});
    fmt::print(
        "{}\n",
        Json{{"objects", all.size()}, {"bytes", bytes}, {"pinned_bytes", pinned}, {"tenants", by}}.dump(2));
    return ok_status();
  }
  for (auto& [tenant, sum] : tenants)
    fmt::print("{:<16}  {:>6} objects  {:>10}\n", tenant.empty() ? "(no salt)" : tenant, sum.first,
               format_bytes(sum.second));
  fmt::print("{:<16}  {:>6} objects  {:>10}, {} of it pinned\n", "all", all.size(), format_bytes(bytes),
             format_bytes(pinned));
  return ok_status();
}

Status gc(Store& store, const Options& o) {
  KeepOptions keep{.now_s = time(nullptr), .dry_run = o.dry_run};
  DS_TRY(set(keep.most_bytes, "--budget", o.budget, parse_bytes));
  DS_TRY(set(keep.most_tenant_bytes, "--tenant-budget", o.tenant_budget, parse_bytes));
  DS_TRY(set(keep.ttl_s, "--ttl", o.ttl, parse_duration));
  DS_TRY(set(keep.idle_s, "--idle", o.idle, parse_duration));
  if (o.budget.empty() && o.tenant_budget.empty() && o.ttl.empty() && o.idle.empty())
    return error(Code::kInvalidArgument,
                 "gc needs to know what is too much: --budget, --tenant-budget, --ttl or --idle");
  DS_ASSIGN(Collected done, collect(store, keep));
  int64_t freed = 0;
  for (const ObjectInfo& object : done.evicted) freed += object.bytes;
  if (o.json) {
    Json evicted = Json::array();
    for (const ObjectInfo& object : done.evicted) evicted.push_back(json_of(object));
    fmt::print("{}\n", Json{{"dry_run", o.dry_run},
                            {"evicted", evicted},
                            {"evicted_bytes", freed},
                            {"kept", done.kept},
                            {"kept_bytes", done.kept_bytes},
                            {"in_use", done.in_use},
                            {"dead", done.dead},
                            {"bytes_over", done.bytes_over}}
                           .dump(2));
    return ok_status();
  }
  for (const ObjectInfo& object : done.evicted)
    fmt::print("{}  {:>10}\n", short_key(object.key), format_bytes(object.bytes));
  fmt::print("{} {} objects, {}; {} are left, {}", o.dry_run ? "would evict" : "evicted", done.evicted.size(),
             format_bytes(freed), done.kept, format_bytes(done.kept_bytes));
  if (done.in_use > 0) fmt::print("; {} are being read and stay", done.in_use);
  if (done.dead > 0) fmt::print("; {} that dead writers had left", done.dead);
  if (done.bytes_over > 0)
    fmt::print("; still {} over the budget (pinned, or being read)", format_bytes(done.bytes_over));
  fmt::print("\n");
  return ok_status();
}

/// Every byte that a receiver could use is read.
Status verify(Store& store, const Options& o) {
  std::vector<ObjectInfo> objects;
  if (o.keys.empty()) {
    DS_ASSIGN(objects, store.list());
  } else {
    DS_ASSIGN(objects, named(store, o.keys));
  }
  Json list = Json::array();
  int64_t bad = 0;
  ProgressBar bar("verifying");
  for (size_t i = 0; i < objects.size(); ++i) {
    const auto check = [&]() -> Status {
      if (is_registered_plan(objects[i].key)) return registered_plan(store, objects[i].key).status();
      DS_ASSIGN(EntryReader entry, EntryReader::open_any(store, objects[i].key));
      return entry.verify();
    };
    const Status status = check();
    bad += !status.ok();
    bar.update(static_cast<int64_t>(i + 1), static_cast<int64_t>(objects.size()));
    if (o.json) {
      list.push_back({{"key", objects[i].key},
                      {"ok", status.ok()},
                      {"error", status.ok() ? Json(nullptr) : Json(status.message())}});
    } else if (!status.ok()) {
      bar.finish();
      fmt::print("{}: {}\n", short_key(objects[i].key), status.message());
    }
  }
  bar.finish();
  if (o.json) fmt::print("{}\n", list.dump(2));
  if (bad > 0)
    return error(Code::kCorrupt, "{} of {} objects in store '{}' cannot be used; 'ds-store rm' removes them",
                 bad, objects.size(), store.url());
  if (!o.json) fmt::print("{} objects, all whole\n", objects.size());
  return ok_status();
}

Status pin(Store& store, const Options& o) {
  DS_ASSIGN(std::vector<ObjectInfo> objects, named(store, o.keys));
  for (const ObjectInfo& object : objects) {
    DS_TRY(store.pin(object.key, !o.off));
    if (!o.json) fmt::print("{} {}\n", o.off ? "unpinned" : "pinned", object.key);
  }
  if (o.json) fmt::print("{}\n", Json{{o.off ? "unpinned" : "pinned", objects.size()}}.dump(2));
  return ok_status();
}

Status register_plans(Store& store, const Options& o) {
  Json list = Json::array();
  for (const std::string& path : o.keys) {
    DS_ASSIGN(const std::string file, read_text_file(path, int64_t{1} << 31));
    DS_ASSIGN(const std::string key,
              register_plan(store, std::as_bytes(std::span(file.data(), file.size())), path));
    DS_ASSIGN(const std::string line, plan_line(store, key));
    list.push_back({{"key", key}, {"plan", line}});
    if (!o.json) fmt::print("registered {}: {}\n", key, line);
  }
  if (o.json) fmt::print("{}\n", list.dump(2));
  return ok_status();
}

Status rm(Store& store, const Options& o) {
  DS_ASSIGN(std::vector<ObjectInfo> objects, named(store, o.keys));
  for (const ObjectInfo& object : objects) {
    DS_TRY(store.remove(object.key));
    if (!o.json) fmt::print("removed {}\n", object.key);
  }
  if (o.json) fmt::print("{}\n", Json{{"removed", objects.size()}}.dump(2));
  return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"See what is in a store, keep it within bounds, and check that it is whole.", "ds-store"};
  Options o;
  app.require_subcommand(1);
  app.fallthrough();
  std::vector<std::pair<CLI::App*, Status (*)(Store&, const Options&)>> commands;
  auto add = [&](const char* name, const char* what, Status (*run)(Store&, const Options&)) {
    CLI::App* sub = app.add_subcommand(name, what);
    sub->add_option("store", o.url, kStoreUrls)->required();
    sub->add_flag("--json", o.json, "print JSON to stdout");
    add_store_key_option(*sub, o.key_file);
    commands.emplace_back(sub, run);
    return sub;
  };
  add("ls", "List what there is: key, size, last use, and whose rows of which tokens", ls);
  add("du", "Bytes by tenant, and in all", du);
  CLI::App* collect_app = add("gc",
                              "Evict what is too old or too much, the longest unused first; pinned objects "
                              "and those that are being read stay",
                              gc);
  collect_app->add_option("--budget", o.budget, "most bytes of all, like 200GiB");
  collect_app->add_option("--tenant-budget", o.tenant_budget, "most bytes of each tenant's");
  collect_app->add_option("--ttl", o.ttl, "evict what was written longer ago, like 7d");
  collect_app->add_option("--idle", o.idle, "evict what was last used longer ago, like 12h");
  collect_app->add_flag("--dry-run", o.dry_run, "only say what would go");
  add("verify", "Read every byte and check it; exit code 4 where one is wrong", verify)
      ->add_option("keys", o.keys, "beginnings of keys; default: all");
  CLI::App* pin_app = add("pin", "Keep objects from being evicted", pin);
  pin_app->add_option("keys", o.keys, "beginnings of keys")->required();
  pin_app->add_flag("--off", o.off, "let them be evicted again");
  add("register",
      "Register plans: 'ds-publish --registered' publishes what they read, on whichever machine; 'rm' takes "
      "one back",
      register_plans)
      ->add_option("plans", o.keys, "plan files")
      ->required();
  add("rm", "Remove objects, pinned or not", rm)
      ->add_option("keys", o.keys, "beginnings of keys")
      ->required();
  app.footer(
      "Examples:\n"
      "  ds-store ls file:/var/cache/ds\n"
      "  ds-store gc file:/var/cache/ds --budget 200GiB --ttl 7d --dry-run\n"
      "  ds-store verify file:/var/cache/ds --store-key /etc/droidspeak.key\n"
      "  ds-store pin file:/var/cache/ds 3f2a91\n"
      "  ds-store register redis://agent@cache.example pair.dsplan other.dsplan\n"
      "  DROIDSPEAK_REDIS_PASSWORD=... ds-store du 'rediss://agent@cache.example?ca=/etc/cache.pem'");
  return run_tool(app, argc, argv, [&]() -> Status {
    for (auto& [command, run] : commands)
      if (command->parsed()) {
        DS_ASSIGN(std::unique_ptr<Store> store, open_signed_store(o.url, o.key_file));
        return run(*store, o);
      }
    return ok_status();
  });
}
