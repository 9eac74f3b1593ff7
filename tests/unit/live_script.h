// A store whose live entries come as a test lets them: what a sender writes is kept, and given to who follows
// record by record.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/store/live.h"
#include "runtime/store/store.h"

namespace ds::testing {

class LiveScript final : public Store {
 public:
  struct Record {
    std::string head;
    std::vector<std::byte> payload;
  };
  /// Whole entries are those of `under`.
  explicit LiveScript(Store& under) : under_(under) {}

  std::string url() const override { return "script:"; }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return keeps_entries ? under_.put(key, produce, names) : ok_status();
  }
  Result<Found> find(Names keys, Names names) override { return under_.find(keys, names); }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override { return under_.open(key); }
  Status remove(const std::string& key) override { return under_.remove(key); }

  Result<std::unique_ptr<LiveWriter>> begin_live(const std::string& key, std::string_view head,
                                                 Names names) override {
    key_ = key;
    names_.assign(names.begin(), names.end());
    records = {{std::string(head), {}}};
    return std::unique_ptr<LiveWriter>(std::make_unique<Writer>(*this));
  }
  Result<std::vector<std::vector<ObjectRef>>> find_live(Names names, std::string_view) override {
    if (before_find_live) before_find_live();
    std::vector<std::vector<ObjectRef>> found(names.size());
    for (size_t i = 0; i < names.size() && !ended; ++i)
      for (size_t at = 0; at < names_.size(); ++at)
        if (names_[at] == names[i]) found[i].push_back({key_, 0, static_cast<int32_t>(at)});
    return found;
  }
  bool live_ends_unseen() const override { return true; }
  Result<std::unique_ptr<LiveObject>> follow(const ObjectRef&) override {
    if (before_follow) before_follow();
    if (ended) return error(Code::kNotFound, "nothing is being written any more");
    return std::unique_ptr<LiveObject>(std::make_unique<Object>(*this));
  }

  /// So many of the records are there; a reader that finds no more lets the next one come, while fewer than
  /// `most` are.
  void release(size_t count, size_t most) {
    std::lock_guard lock(mutex_);
    released_ = count;
    most_ = most;
    changed_.notify_all();
  }
  /// All of what was asked for has been given, and nothing more comes.
  bool dies = false;  // the writer does, behind the last that comes
  bool keeps_entries = false;
  bool ended = false;  // it has, and nobody finds it any more
  /// What happens just between two calls of who looks.
  std::function<void()> before_find_live, before_follow, before_append;
  std::atomic<int> writers{0};  // that there are
  std::vector<Record> records;

 private:
  struct Writer final : LiveWriter {
    explicit Writer(LiveScript& s) : script(s) { ++script.writers; }
    ~Writer() override { --script.writers; }
    Status append(std::string_view head, std::span<const std::byte> payload) override {
      if (script.before_append) script.before_append();
      script.records.push_back({std::string(head), {payload.begin(), payload.end()}});
      return ok_status();
    }
    Status end() override { return ok_status(); }
    LiveScript& script;
  };
  struct Bytes final : StoreObject {
    explicit Bytes(const std::vector<std::byte>& b) : bytes(b) {}
    int64_t size() const override { return static_cast<int64_t>(bytes.size()); }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      if (offset + static_cast<int64_t>(out.size()) > size()) return error(Code::kCorrupt, "it ends before");
      std::copy_n(bytes.begin() + offset, out.size(), out.begin());
      return arrived(out);
    }
    const std::vector<std::byte>& bytes;
  };
  struct Object final : LiveObject {
    explicit Object(LiveScript& s) : script(s) {}
    Result<News> wait(const std::function<Status()>& waiting) override {
      if (waiting) DS_TRY(waiting());
      std::unique_lock lock(script.mutex_);
      News news;
      if (given == script.released_ && script.released_ < script.most_) ++script.released_;
      for (; given < script.released_; ++given)
        news.records.push_back(
            {script.records[given].head, static_cast<int64_t>(script.records[given].payload.size())});
      if (!news.records.empty()) return news;
      if (given == script.records.size()) {
        news.ended = true;
      } else if (script.dies) {
        return error(Code::kNotFound, "its writer has died");
      } else {
        script.changed_.wait_for(lock, std::chrono::milliseconds(20));
      }
      return news;
    }
    Result<std::unique_ptr<StoreObject>> payload(int64_t record) override {
      return std::unique_ptr<StoreObject>(
          std::make_unique<Bytes>(script.records[static_cast<size_t>(record)].payload));
    }
    LiveScript& script;
    size_t given = 0;
  };

  Store& under_;
  std::string key_;
  std::vector<std::string> names_;
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t released_ = 0, most_ = 0;
};

}  // namespace ds::testing
