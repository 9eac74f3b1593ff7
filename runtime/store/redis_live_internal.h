// What is still being written at a Redis or Valkey server:
//
//   ds:{KEY}:GEN:live   a stream: heads of records, pushed to who follows; expires kAliveS after its writer's
//                       last word
//   ds:{KEY}:GEN+1+i:0 ...  the payload of record i, in parts like an object's
//   ds:live:NAME        "INDEX GEN KEY": one that has this name, the latest
//
// All of it expires by itself. Each command is about one key.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/store/live.h"
#include "runtime/store/redis_client_internal.h"
#include "runtime/store/store.h"

namespace ds {

/// Keys and names have been checked.
Result<std::unique_ptr<LiveWriter>> begin_redis_live(std::shared_ptr<RedisClient> client,
                                                     const std::string& key, std::string_view head,
                                                     Store::Names names);
/// Of refs that are for follow_redis_live(): their keys say the generation, too.
Result<std::vector<std::vector<ObjectRef>>> find_redis_live(RedisClient& client, Store::Names names);
Result<std::unique_ptr<LiveObject>> follow_redis_live(std::shared_ptr<RedisClient> client,
                                                      const ObjectRef& found);
/// `streams`: the server's keys of the streams that there are.
Result<std::vector<LiveInfo>> list_redis_live(RedisClient& client, const std::vector<std::string>& streams);

}  // namespace ds
