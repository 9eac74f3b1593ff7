// Object stores: one immutable object per key. `file:` is the embedded default; others come behind this
// interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "support/status.h"

namespace ds {

class Store {
 public:
  /// Appends bytes to the object being written. Not thread-safe.
  using Sink = std::function<Status(std::span<const std::byte>)>;

  virtual ~Store() = default;
  virtual std::string url() const = 0;
  /// Writes an object through `produce(sink)`; it appears whole or not at all (a full disk, a crash).
  /// Replaces.
  virtual Status put(const std::string& key, const std::function<Status(const Sink&)>& produce) = 0;
  /// Size in bytes; kNotFound.
  virtual Result<int64_t> size(const std::string& key) = 0;
  /// Fills `out` from `offset`; kCorrupt when the object ends before that. Thread-safe; may block (shaped
  /// links do).
  virtual Status read(const std::string& key, int64_t offset, std::span<std::byte> out) = 0;
  /// kNotFound where there is none.
  virtual Status remove(const std::string& key) = 0;
};

/// "file:PATH" (the folder is created by the first put). kInvalidArgument names the schemes that are known.
Result<std::unique_ptr<Store>> open_store(const std::string& url);

struct LinkOptions {
  double bytes_per_second = 0;  // 0: not shaped
  double rtt_ms = 0;            // one-way-and-back delay paid by the first read after start_request()
};

/// A store behind a link of a stated rate: bytes arrive as a link of that rate would deliver them, reads
/// queue behind one another, every look-up of a size and the first read after it pay one round trip.
std::unique_ptr<Store> shape_link(std::unique_ptr<Store> store, const LinkOptions& options);

}  // namespace ds
