// A link of a stated rate in front of a store; see shape_link() for what it promises.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <mutex>

#include "runtime/store/live.h"
#include "runtime/store/store.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kBackToBackNs = 1'000'000;
constexpr int64_t kForever = int64_t{1} << 61;  // 73 years: sums of two do not overflow

int64_t clamp_ns(double ns) {
  return ns < static_cast<double>(kForever) ? std::llround(std::ceil(ns)) : kForever;
}

/// The clock of one link, shared by all objects read through it. Thread-safe.
class Link {
 public:
  explicit Link(const LinkOptions& o)
      : rate_(std::isfinite(o.bytes_per_second) && o.bytes_per_second > 0 ? o.bytes_per_second : 0),
        rtt_ns_(std::isfinite(o.rtt_ms) && o.rtt_ms > 0 ? clamp_ns(o.rtt_ms * 1e6) : 0) {
    // 4 ms of the link's time: often enough that a read can be given up soon. Each wait costs the core that
    // computes beside it some ten microseconds, and what its cache held.
    piece_ = rate_ == 0 ? INT64_MAX : static_cast<int64_t>(std::clamp(rate_ * 4e-3, 256.0, 0x1p40));
  }

  bool shapes() const { return rate_ > 0 || rtt_ns_ > 0; }
  int64_t piece() const { return piece_; }
  int64_t duration_ns(int64_t bytes) const {
    return rate_ == 0 ? 0 : clamp_ns(static_cast<double>(bytes) / rate_ * 1e9);
  }

  /// When the answer to a look-up issued at `now` is here.
  int64_t look_up(int64_t now) {
    std::lock_guard lock(mutex_);
    return std::max(std::min(now + rtt_ns_, kForever), free_ns_);
  }

  /// Books the link for a read issued at `now`; returns when its first byte starts to arrive.
  int64_t book(int64_t now, int64_t bytes, bool pays_round_trip) {
    std::lock_guard lock(mutex_);
    int64_t start = pays_round_trip ? std::min(now + rtt_ns_, kForever) : now;
    if (start <= free_ns_ + kBackToBackNs) start = pays_round_trip ? std::max(start, free_ns_) : free_ns_;
    free_ns_ = std::min(start + duration_ns(bytes), kForever);
    return start;
  }

 private:
  double rate_;
  int64_t rtt_ns_;
  int64_t piece_;
  std::mutex mutex_;
  int64_t free_ns_ = -kForever;  // when the last byte booked so far has arrived
};

class ShapedObject final : public StoreObject {
 public:
  ShapedObject(std::unique_ptr<StoreObject> object, std::shared_ptr<Link> link, bool first = true)
      : object_(std::move(object)), link_(std::move(link)), first_(first) {}

  int64_t size() const override { return object_->size(); }

  Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
    if (out.empty()) return ok_status();
    auto bytes = static_cast<int64_t>(out.size());
    int64_t start = link_->book(now_ns(), bytes, first_.exchange(false));
    for (int64_t done = 0; done < bytes;) {
      int64_t piece = std::min(link_->piece(), bytes - done);
      // First the real bytes, then the wait for the moment at which the link would have brought the last of
      // them: so the real reading hides behind the link and does not add to it.
      DS_TRY(object_->read_by_parts(
          offset + done, out.subspan(static_cast<size_t>(done), static_cast<size_t>(piece)), arrived));
      done += piece;
      sleep_until(std::min(start + link_->duration_ns(done), kForever));
    }
    return ok_status();
  }

 private:
  std::unique_ptr<StoreObject> object_;
  std::shared_ptr<Link> link_;
  std::atomic<bool> first_;
};

/// What its writer tells travels with nothing else; its rows go over the link.
class ShapedLive final : public LiveObject {
 public:
  ShapedLive(std::unique_ptr<LiveObject> live, std::shared_ptr<Link> link)
      : live_(std::move(live)), link_(std::move(link)) {}
  Result<News> wait(const std::function<Status()>& waiting) override { return live_->wait(waiting); }
  void stop() override { live_->stop(); }
  Result<std::unique_ptr<StoreObject>> payload(int64_t record) override {
    DS_ASSIGN(auto object, live_->payload(record));
    // Further reads of one object pay no round trip, and so do those of what is one log.
    return std::unique_ptr<StoreObject>(
        std::make_unique<ShapedObject>(std::move(object), link_, first_.exchange(false)));
  }

 private:
  std::unique_ptr<LiveObject> live_;
  std::shared_ptr<Link> link_;
  std::atomic<bool> first_ = true;
};

class ShapedStore final : public Store {
 public:
  ShapedStore(std::unique_ptr<Store> store, std::shared_ptr<Link> link)
      : store_(std::move(store)), link_(std::move(link)) {
    set_signing(store_->signing());
  }

  std::string url() const override { return store_->url(); }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return store_->put(key, produce, names);
  }
  Status remove(const std::string& key) override { return store_->remove(key); }
  Result<std::vector<ObjectInfo>> list(std::string_view begins) override { return store_->list(begins); }
  void touch(const std::string& key) override { store_->touch(key); }
  Status pin(const std::string& key, bool pinned) override { return store_->pin(key, pinned); }
  Result<bool> evict(const std::string& key) override { return store_->evict(key); }

  Result<std::unique_ptr<LiveWriter>> begin_live(const std::string& key, std::string_view head,
                                                 Names names) override {
    return store_->begin_live(key, head, names);
  }
  Result<std::vector<std::vector<ObjectRef>>> find_live(Names names, std::string_view tenant) override {
    int64_t answer_ns = link_->look_up(now_ns());
    auto found = store_->find_live(names, tenant);
    sleep_until(answer_ns);
    return found;
  }
  bool live_ends_unseen() const override { return store_->live_ends_unseen(); }
  void set_patience(double seconds) override { store_->set_patience(seconds); }
  Result<std::unique_ptr<LiveObject>> follow(const ObjectRef& found) override {
    DS_ASSIGN(auto live, store_->follow(found));
    return std::unique_ptr<LiveObject>(std::make_unique<ShapedLive>(std::move(live), link_));
  }
  Result<std::vector<LiveInfo>> list_live() override { return store_->list_live(); }
  Result<int64_t> remove_dead() override { return store_->remove_dead(); }

  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    int64_t answer_ns = link_->look_up(now_ns());
    auto object = store_->open(key);
    sleep_until(answer_ns);  // a "there is none" travels as far as a "here it is"
    return shaped(std::move(object));
  }

  Result<Found> find(Names keys, Names names) override {
    int64_t answer_ns = link_->look_up(now_ns());
    auto found = store_->find(keys, names);
    sleep_until(answer_ns);
    return found;
  }

  Result<std::unique_ptr<StoreObject>> open(const ObjectRef& found) override {
    return shaped(store_->open(found));
  }

 private:
  Result<std::unique_ptr<StoreObject>> shaped(Result<std::unique_ptr<StoreObject>> object) const {
    if (!object.ok()) return object.status();
    return std::unique_ptr<StoreObject>(std::make_unique<ShapedObject>(std::move(*object), link_));
  }

  std::unique_ptr<Store> store_;
  std::shared_ptr<Link> link_;
};

}  // namespace

std::unique_ptr<Store> shape_link(std::unique_ptr<Store> store, const LinkOptions& options) {
  auto link = std::make_shared<Link>(options);
  if (!link->shapes()) return store;
  return std::make_unique<ShapedStore>(std::move(store), std::move(link));
}

}  // namespace ds
