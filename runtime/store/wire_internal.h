// Bytes to and from a server: TCP, or TLS over it.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "runtime/store/redis_url_internal.h"
#include "support/status.h"

namespace ds {

/// Asked 20 times a second by who waits for a server; its failure ends the wait. It may be empty.
using Waiting = std::function<Status()>;

/// One thread at a time. Every call comes back within 50 ms, so that who waits can be told to stop.
class Wire {
 public:
  virtual ~Wire() = default;
  /// Up to out.size() bytes; `fill`: as many where they come soon, else what there is. 0: nothing came. kIo:
  /// the connection is gone.
  virtual Result<size_t> receive(std::span<std::byte> out, bool fill) = 0;
  /// As many as the other side takes; 0: none.
  virtual Result<size_t> send(std::span<const std::byte> bytes) = 0;
  /// Whether the other side has not closed it, as far as is known here.
  virtual bool alive() = 0;
};

/// kIo (not reached in time, refused, the certificate is not good), kInvalidArgument (files of certificates).
Result<std::unique_ptr<Wire>> connect_wire(const RedisOptions& options, const RedisHost& host,
                                           const Waiting& waiting);

}  // namespace ds
