// Shows what a publication has computed while it computes the rest, on a thread of its own: a store that is
// slow, or hangs, is waited for by nobody but who follows it.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "runtime/core/publish.h"
#include "support/status.h"

namespace ds {

class Showing {
 public:
  /// `work` and `store` outlive it; `rows` of a layer at a time; `wake` is called when it has ended.
  /// kExhausted: no thread.
  static Result<std::unique_ptr<Showing>> begin(Publication& work, Store& store, int64_t rows,
                                                std::function<void()> wake);
  ~Showing();

  /// So much has been computed by now.
  void tell(const Publication::Progress& progress);
  /// Blocks until all that it was told of is shown.
  void finish();
  /// Ends it as soon as the store lets go of it; what was shown goes. ended() tells.
  void stop();
  bool ended() const;

 private:
  Showing(Publication& work, int64_t rows) : work_(work), rows_(rows) {}
  void run(Store& store, const std::function<void()>& wake);

  Publication& work_;
  const int64_t rows_;
  Publication::Progress told_;  // of who tells
  mutable std::mutex mutex_;    // of what follows
  std::condition_variable changed_;
  std::optional<Publication::Progress> next_;
  bool finishing_ = false, stopping_ = false, ended_ = false;
  std::thread thread_;
};

}  // namespace ds
