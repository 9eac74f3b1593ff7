// The `redis:` engine.
#pragma once

#include <memory>

#include "runtime/store/redis_url_internal.h"
#include "runtime/store/store.h"

namespace ds {

/// Connects when it is first used.
std::unique_ptr<Store> make_redis_store(RedisOptions options);

}  // namespace ds
