// What plans that are registered in the fleet's store (ds-store register) want of its senders.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "serve/loaded_fleet.h"
#include "support/status.h"

namespace ds {

/// Thread-safe, but for look().
class RegisteredCuts {
 public:
  using Say = std::function<void(const std::string&)>;
  /// `fleet` outlives it, has a store, and its models and plans stay what they are.
  RegisteredCuts(const LoadedFleet& fleet, Say say) : fleet_(fleet), say_(std::move(say)) {}
  RegisteredCuts(const RegisteredCuts&) = delete;
  ~RegisteredCuts();

  /// Reads what is new since the last time, and forgets what is gone. What cannot be used, and that the store
  /// cannot be asked, is said, once.
  void look();
  /// On a thread of its own, every Fleet::registered_s. kExhausted.
  Status keep_looking();

  /// Adds what is wanted of this model's contexts; false: no registered plan is for it.
  bool add_to(const ServedModel& model, WantedCuts& wanted) const;
  /// Another one whenever what is wanted is.
  int64_t version() const;

  struct Shown {
    std::string key, sender, receiver;  // names; "": it could not be read
    std::vector<std::string> models;    // of the fleet, that publish for it
    std::string problem;                // why not all that could do
  };
  std::vector<Shown> shown() const;

 private:
  struct Known {
    std::string sender, receiver, problem;
    std::vector<std::pair<const ServedModel*, MappedCuts>> wanted;
    bool operator==(const Known&) const = default;
  };
  std::optional<Known> read(const std::string& key) const;

  const LoadedFleet& fleet_;
  const Say say_;
  std::string unasked_;  // why the store could not be asked last time
  std::thread looking_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  std::map<std::string, Known> known_;  // by key, which is the plan's hash
  int64_t version_ = 0;
};

}  // namespace ds
