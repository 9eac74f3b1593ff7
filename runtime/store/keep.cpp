#include "runtime/store/keep.h"

#include <algorithm>
#include <map>
#include <set>

#include "runtime/store/live.h"

namespace ds {

std::string key_tenant(const std::string& key) {
  const size_t dash = key.find('-');
  return dash == 16 && key.find_first_not_of("0123456789abcdef") == dash ? key.substr(0, dash) : "";
}

Result<Collected> collect(Store& store, const KeepOptions& o) {
  DS_ASSIGN(std::vector<ObjectInfo> all, store.list());
  std::stable_sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.used_s < b.used_s; });
  Collected done;
  std::map<std::string, int64_t> of_tenant;
  int64_t total = 0;
  for (const ObjectInfo& object : all) {
    total += object.bytes;
    of_tenant[key_tenant(object.key)] += object.bytes;
  }
  std::set<std::string> tried;
  auto go = [&](const ObjectInfo& object) -> Status {
    if (object.pinned || !tried.insert(object.key).second) return ok_status();
    if (!o.dry_run) {
      auto evicted = store.evict(object.key);
      const bool gone = !evicted.ok() && evicted.status().code() == Code::kNotFound;  // by somebody else
      if (!evicted.ok() && !gone) return evicted.status();
      if (evicted.ok() && !*evicted) {
        ++done.in_use;
        return ok_status();
      }
    }
    total -= object.bytes;
    of_tenant[key_tenant(object.key)] -= object.bytes;
    done.evicted.push_back(object);
    return ok_status();
  };
  for (const ObjectInfo& object : all)
    if ((o.ttl_s >= 0 && o.now_s - object.written_s > o.ttl_s) ||
        (o.idle_s >= 0 && o.now_s - object.used_s > o.idle_s))
      DS_TRY(go(object));
  if (o.most_tenant_bytes >= 0)
    for (const ObjectInfo& object : all)
      if (of_tenant[key_tenant(object.key)] > o.most_tenant_bytes) DS_TRY(go(object));
  if (o.most_bytes >= 0)
    for (const ObjectInfo& object : all)
      if (total > o.most_bytes) DS_TRY(go(object));
  done.kept = static_cast<int64_t>(all.size() - done.evicted.size());
  done.kept_bytes = total;
  if (o.dry_run) {
    DS_ASSIGN(const std::vector<LiveInfo> live, store.list_live());
    done.dead = std::count_if(live.begin(), live.end(), [](auto& l) { return !l.alive; });
  } else {
    DS_ASSIGN(done.dead, store.remove_dead());
  }
  if (o.most_bytes >= 0) done.bytes_over = std::max<int64_t>(0, total - o.most_bytes);
  return done;
}

}  // namespace ds
