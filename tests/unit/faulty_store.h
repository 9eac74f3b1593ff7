// A store that passes on what another one has, with one fault.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/store/store.h"

namespace ds::testing {

enum class Fault : uint8_t {
  kMissing,      // no look-up finds anything
  kGone,         // what a look-up has found is gone when it is opened
  kLookUpFails,  // a look-up fails, as over a connection that is refused
  kLookUpHangs,  // until let_go()
  kHeader,       // a bit of the header is flipped
  kShort,        // the object is half as long
  kOther,        // another object under the right key
  // From a stated read on; the first one is that of the header.
  kTorn,       // the object ends there
  kFlips,      // a bit of what is read is flipped
  kReordered,  // its two halves have changed places
  kReset,      // the connection breaks in the middle of it
  kFails,      // it fails
  kHangs,      // until let_go()
  kSlow,       // comes late, but right
  kRestarts,   // only that one read fails
};

struct FaultTraits {
  Fault fault;
  std::string_view name;
  std::string_view says;  // what of it stands in the miss's reason; empty: there is none
  bool by_read = false;   // `from` counts
};

inline constexpr std::array kFaults{
    FaultTraits{Fault::kMissing, "missing", "no object"},
    FaultTraits{Fault::kGone, "gone", "no such object any more"},
    FaultTraits{Fault::kLookUpFails, "look-up fails", "connection refused"},
    FaultTraits{Fault::kLookUpHangs, "look-up hangs", "late"},
    FaultTraits{Fault::kHeader, "header flipped", "entry"},
    FaultTraits{Fault::kShort, "short", "bytes"},
    FaultTraits{Fault::kOther, "another's", "expected"},
    FaultTraits{Fault::kTorn, "torn", "ends", true},
    FaultTraits{Fault::kFlips, "flipped", "checksum", true},
    FaultTraits{Fault::kReordered, "reordered", "checksum", true},
    FaultTraits{Fault::kReset, "reset in mid-value", "connection reset", true},
    FaultTraits{Fault::kFails, "fails", "server went away", true},
    FaultTraits{Fault::kHangs, "hangs", "late", true},
    FaultTraits{Fault::kSlow, "slow", "", true},
    FaultTraits{Fault::kRestarts, "restarts", "server went away", true},
};

class FaultyStore final : public Store {
 public:
  /// `other`: the key of what kOther gives.
  FaultyStore(Store& under, Fault fault, int from = 1, std::string other = "")
      : under_(under), fault_(fault), from_(from), other_(std::move(other)) {}
  ~FaultyStore() override { let_go(); }

  std::string url() const override { return "faulty:"; }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return under_.put(key, produce, names);
  }
  Result<Found> find(Names keys, Names names) override {
    if (fault_ == Fault::kLookUpFails) return error(Code::kIo, "connection refused");
    if (fault_ == Fault::kLookUpHangs) hang();
    if (fault_ == Fault::kMissing)
      return Found{std::vector<std::optional<ObjectRef>>(keys.size()),
                   std::vector<std::vector<ObjectRef>>(names.size())};
    return under_.find(keys, names);
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    if (fault_ == Fault::kGone) return error(Code::kNotFound, "no such object any more");
    DS_ASSIGN(auto object, under_.open(fault_ == Fault::kOther ? other_ : key));
    return std::unique_ptr<StoreObject>(std::make_unique<Object>(*this, std::move(object)));
  }
  Status remove(const std::string& key) override { return under_.remove(key); }

  /// Whether something hangs.
  bool hangs() {
    std::lock_guard lock(mutex_);
    return hanging_ > 0;
  }
  /// What hangs goes on.
  void let_go() {
    std::lock_guard lock(mutex_);
    free_ = true;
    changed_.notify_all();
  }

 private:
  struct Object final : StoreObject {
    Object(FaultyStore& s, std::unique_ptr<StoreObject> u) : store(s), under(std::move(u)) {}
    int64_t size() const override { return under->size() / (store.fault_ == Fault::kShort ? 2 : 1); }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      const int number = store.reads_++;
      if (store.fault_ == Fault::kHeader && number == 0) return read_changed(offset, out, arrived, 40, 1);
      if (number < store.from_ || (store.fault_ == Fault::kRestarts && number > store.from_))
        return under->read_by_parts(offset, out, arrived);
      switch (store.fault_) {
        case Fault::kTorn:
          return error(Code::kCorrupt, "the object ends before byte {}", offset);
        case Fault::kFlips:
          return read_changed(offset, out, arrived, out.size() / 2, 4);
        case Fault::kReordered: {
          DS_TRY(under->read(offset, out));
          std::rotate(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(out.size() / 2), out.end());
          return arrived(out);
        }
        case Fault::kReset: {
          const auto half = out.first(out.size() / 2);
          DS_TRY(under->read_by_parts(offset, half, arrived));
          return error(Code::kIo, "connection reset after {} bytes", half.size());
        }
        case Fault::kFails:
        case Fault::kRestarts:
          return error(Code::kIo, "the server went away");
        case Fault::kHangs:
          store.hang();
          break;
        case Fault::kSlow:
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          break;
        default:
          break;
      }
      return under->read_by_parts(offset, out, arrived);
    }
    Status read_changed(int64_t offset, std::span<std::byte> out, const Arrived& arrived, size_t at,
                        int bit) {
      DS_TRY(under->read(offset, out));
      out[std::min(at, out.size() - 1)] ^= static_cast<std::byte>(bit);
      return arrived(out);
    }
    FaultyStore& store;
    std::unique_ptr<StoreObject> under;
  };
  void hang() {
    std::unique_lock lock(mutex_);
    ++hanging_;
    changed_.wait(lock, [&] { return free_; });
    --hanging_;
  }

  Store& under_;
  const Fault fault_;
  const int from_;
  const std::string other_;
  std::atomic<int> reads_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  int hanging_ = 0;
  bool free_ = false;
};

}  // namespace ds::testing
