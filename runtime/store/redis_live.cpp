#include "runtime/store/redis_live_internal.h"

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>

#include "runtime/store/redis_object_internal.h"
#include "runtime/store/store_internal.h"
#include "support/clock.h"

namespace ds {
namespace {

using Command = RedisClient::Command;
using Kind = Reply::Kind;

constexpr int64_t kBeatNs = 1'000'000'000;
constexpr int64_t kAliveS = 3;     // after a writer's last word it counts as dead
constexpr int64_t kFoundS = 30;    // for which a name finds a writer that has died
constexpr int64_t kEndedS = 30;    // for which one that has ended can be read on
constexpr size_t kMostAtOnce = 8;  // parts that are sent at once

std::string live_name(const RedisOptions& o, const std::string& name) {
  return fmt::format("{}live:{}", o.prefix, name);
}

std::optional<uint64_t> parse_number(std::string_view text, int base) {
  uint64_t value = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || failure != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Status gave_up(const std::string& stream) {
  return error(Code::kNotFound,
               "'{}' is not being written by anybody any more: its writer has died {} s ago or longer, has "
               "given up, or the server has evicted it",
               stream, kAliveS);
}

class RedisLiveWriter final : public LiveWriter {
 public:
  RedisLiveWriter(std::shared_ptr<RedisClient> client, const std::string& key, Store::Names names)
      : client_(std::move(client)),
        keys_(client_->options(), key),
        generation_(random_number() >> 1),
        stream_(keys_.live(generation_)) {
    for (size_t i = 0; i < names.size(); ++i)
      names_.push_back({{"SET", live_name(client_->options(), names[i]),
                         fmt::format("{} {:016x} {}", i, generation_, key), "EX", std::to_string(kFoundS)}});
  }
  ~RedisLiveWriter() override {
    stop_beating();
    if (!begun_ || ended_) return;
    std::vector<Command> commands{{{"XADD", stream_, "NOMKSTREAM", "*", "x", "1"}},
                                  {{"EXPIRE", stream_, std::to_string(kAliveS)}}};
    for (const std::string& part : written_) commands.push_back({{"EXPIRE", part, std::to_string(kAliveS)}});
    (void)client_->run(commands);
  }

  Status begin(std::string_view head) {
    std::vector<Command> commands{
        {{"XADD", stream_, "*", "h", std::string(head), "n", "0", "p",
          std::to_string(client_->options().part_bytes), "t", std::to_string(head.size())}},
        {{"EXPIRE", stream_, std::to_string(kAliveS)}}};
    DS_TRY(run(commands));
    begun_ = true;
    ++records_;
    bytes_ = static_cast<int64_t>(head.size());
    DS_TRY(run(names_));
    try {
      beating_ = std::thread([this] { beat(); });
    } catch (const std::system_error& e) {
      return error(Code::kExhausted, "starting the thread that says that a writer lives: {}", e.what());
    }
    return ok_status();
  }

  Status append(std::string_view head, std::span<const std::byte> payload) override {
    const auto size = static_cast<int64_t>(payload.size());
    const RedisOptions& o = client_->options();
    const std::string lease = std::to_string(o.lease_s);
    std::vector<Command> commands;
    for (int64_t i = 0; !payload.empty(); ++i) {
      const auto part = payload.first(std::min(payload.size(), static_cast<size_t>(o.part_bytes)));
      commands.push_back({{"SETEX", keys_.part(generation_ + 1 + records_, i).string(), lease}, part});
      {
        std::lock_guard lock(mutex_);
        written_.push_back(commands.back().words[1]);
      }
      payload = payload.subspan(part.size());
      if (commands.size() < kMostAtOnce && !payload.empty()) continue;
      DS_TRY(run(commands));
      commands.clear();
    }
    bytes_ += static_cast<int64_t>(head.size()) + size;
    commands = {{{"XADD", stream_, "NOMKSTREAM", "*", "h", std::string(head), "n", std::to_string(size), "p",
                  std::to_string(o.part_bytes), "t", std::to_string(bytes_)}},
                {{"EXPIRE", stream_, std::to_string(kAliveS)}}};
    DS_TRY(run(commands));
    if (commands[0].reply.kind == Kind::kNone) return gave_up(stream_);
    ++records_;
    return ok_status();
  }

  Status end() override {
    stop_beating();
    const std::string after = std::to_string(kEndedS);
    std::vector<Command> commands{{{"XADD", stream_, "NOMKSTREAM", "*", "e", "1"}},
                                  {{"EXPIRE", stream_, after}}};
    for (const std::string& part : written_) commands.push_back({{"EXPIRE", part, after}});
    ended_ = true;
    return run(commands);
  }

 private:
  Status run(std::span<Command> commands) const {
    DS_TRY(client_->run(commands));
    for (const Command& c : commands) DS_TRY(check_reply(c.reply));
    return ok_status();
  }

  void stop_beating() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    if (beating_.joinable()) beating_.join();
  }

  /// What fails is made good by the next beat, or else it counts as dead.
  void beat() {
    const int64_t lease_ns = client_->options().lease_s * 1'000'000'000;
    int64_t named = now_ns(), renewed = named;
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, std::chrono::nanoseconds(kBeatNs), [this] { return stopping_; })) {
      const int64_t now = now_ns();
      std::vector<Command> commands{{{"EXPIRE", stream_, std::to_string(kAliveS)}}};
      if (now - named > kFoundS * 1'000'000'000 / 3) {
        named = now;
        commands.insert(commands.end(), names_.begin(), names_.end());
      }
      if (now - renewed > lease_ns / 3) {
        renewed = now;
        for (const std::string& part : written_)
          commands.push_back({{"EXPIRE", part, std::to_string(client_->options().lease_s)}});
      }
      lock.unlock();
      (void)client_->run(commands);
      lock.lock();
    }
  }

  const std::shared_ptr<RedisClient> client_;
  const RedisKeys keys_;
  const uint64_t generation_;
  const std::string stream_;
  std::vector<Command> names_;
  uint64_t records_ = 0;
  int64_t bytes_ = 0;
  bool begun_ = false, ended_ = false;
  std::thread beating_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  bool stopping_ = false;
  std::vector<std::string> written_;  // keys of parts
};

class RedisLiveObject final : public LiveObject {
 public:
  RedisLiveObject(std::shared_ptr<RedisClient> client, std::string key, uint64_t generation)
      : client_(std::move(client)),
        key_(std::move(key)),
        generation_(generation),
        stream_(RedisKeys(client_->options(), key_).live(generation)) {}

  Result<News> wait(const std::function<Status()>& waiting) override {
    DS_ASSIGN(Reply reply, ask(waiting));
    News news;
    if (reply.kind == Kind::kNone) {
      std::vector<Command> alive{{{"EXISTS", stream_}}};
      DS_TRY(client_->run(alive, waiting));
      DS_TRY(check_reply(alive[0].reply));
      if (alive[0].reply.integer == 0) return gave_up(stream_);
      return news;
    }
    if (reply.list.size() != 1 || reply.list[0].list.size() != 2) return none_of_ours();
    for (const Reply& entry : reply.list[0].list[1].list) {
      if (entry.list.size() != 2 || entry.list[1].list.size() < 2) return none_of_ours();
      const std::vector<Reply>& fields = entry.list[1].list;
      last_ = entry.list[0].text;
      if (fields[0].text == "x") return gave_up(stream_);
      news.ended = fields[0].text == "e";
      if (news.ended) break;
      if (fields.size() < 6 || fields[0].text != "h") return none_of_ours();
      const auto bytes = parse_number(fields[3].text, 10), part = parse_number(fields[5].text, 10);
      if (!bytes || *bytes > uint64_t{kMostObject} || !part || *part < uint64_t{kLeastPart} ||
          *part > uint64_t{kMostPart})
        return none_of_ours();
      std::lock_guard lock(mutex_);
      payloads_.emplace_back(static_cast<int64_t>(*bytes), static_cast<int64_t>(*part));
      news.records.push_back({fields[1].text, payloads_.back().first});
    }
    return news;
  }

  Result<std::unique_ptr<StoreObject>> payload(int64_t record) override {
    std::lock_guard lock(mutex_);
    if (record < 0 || record >= static_cast<int64_t>(payloads_.size()))
      return error(Code::kInvalidArgument, "'{}' has {} records, {} was asked for", stream_, payloads_.size(),
                   record);
    RedisManifest manifest;
    std::tie(manifest.bytes, manifest.part_bytes) = payloads_[static_cast<size_t>(record)];
    manifest.generation = generation_ + 1 + static_cast<uint64_t>(record);
    return open_redis_object(client_, key_, std::move(manifest), false);
  }

 private:
  Status none_of_ours() const {
    return error(Code::kCorrupt, "'{}' has records that are none of a live entry's", stream_);
  }

  /// A second long, on a connection of its own.
  Result<Reply> ask(const std::function<Status()>& waiting) {
    const double patience_ms = client_->options().timeout_s * 500;  // before the server counts as silent
    const std::string block = std::to_string(static_cast<int64_t>(std::clamp(patience_ms, 1.0, 1000.0)));
    for (int turn = 0; turn < RedisClient::kMostRedirections; ++turn) {
      if (!use_) {
        DS_ASSIGN(const size_t node, client_->node_of(key_slot(stream_), waiting));
        DS_ASSIGN(use_, client_->connection(node, waiting));
      }
      (*use_)->command({"XREAD", "COUNT", "64", "BLOCK", block, "STREAMS", stream_, last_});
      Status status = (*use_)->flush();
      Result<Reply> reply = status.ok() ? (*use_)->reply(waiting) : Result<Reply>(status);
      if (!reply.ok()) {
        const bool io = reply.status().code() == Code::kIo && (!waiting || waiting().ok());
        const bool again = io && !use_->fresh() && !answered_ && !(*use_)->silent();
        const size_t node = use_->node();
        use_.reset();
        answered_ = true;
        if (again) continue;  // it had been closed since it was last used
        if (io) client_->lost(node);
        return reply.status().with_context(client_->shown(node));
      }
      answered_ = true;
      if (reply->kind != Kind::kError) return reply;
      const auto to = client_->redirection(reply->text, use_->node());
      if (!to) return server_error(reply->text);
      DS_ASSIGN(use_, client_->connection(to->node, waiting));
      if (to->asking) {
        (*use_)->command({"ASKING"});
        DS_TRY((*use_)->flush());
        DS_TRY((*use_)->reply(waiting));
      }
    }
    return error(Code::kIo, "'{}': redirected more than {} times", stream_, RedisClient::kMostRedirections);
  }

  const std::shared_ptr<RedisClient> client_;
  const std::string key_;
  const uint64_t generation_;
  const std::string stream_;
  std::optional<RedisClient::Use> use_;
  bool answered_ = false;
  std::string last_ = "0";
  std::mutex mutex_;
  std::vector<std::pair<int64_t, int64_t>> payloads_;  // bytes, and those of a part, by record
};

}  // namespace

Result<std::unique_ptr<LiveWriter>> begin_redis_live(std::shared_ptr<RedisClient> client,
                                                     const std::string& key, std::string_view head,
                                                     Store::Names names) {
  auto writer = std::make_unique<RedisLiveWriter>(std::move(client), key, names);
  DS_TRY(writer->begin(head));
  return std::unique_ptr<LiveWriter>(std::move(writer));
}

Result<std::vector<std::vector<ObjectRef>>> find_redis_live(RedisClient& client, Store::Names names) {
  std::vector<Command> commands;
  for (const std::string& name : names) commands.push_back({{"GET", live_name(client.options(), name)}});
  Status unasked;  // what the other servers have is found
  DS_TRY(client.run(commands, {}, &unasked));
  std::vector<std::vector<ObjectRef>> found;
  for (const Command& c : commands) {
    auto& refs = found.emplace_back();
    if (c.reply.is_error(RedisClient::kLost)) continue;
    if (!c.reply.is_error("WRONGTYPE")) DS_TRY(check_reply(c.reply));
    if (c.reply.kind != Kind::kText) continue;
    const std::string_view text = c.reply.text;
    const size_t first = text.find(' '), second = first == text.npos ? first : text.find(' ', first + 1);
    if (second == text.npos) continue;
    const auto index = parse_number(text.substr(0, first), 10);
    const std::string key =
        fmt::format("{}.{}", text.substr(first + 1, second - first - 1), text.substr(second + 1));
    if (index && *index < Store::kMostNames && check_store_key(key).ok())
      refs.push_back({key, 0, static_cast<int32_t>(*index)});
  }
  return found;
}

Result<std::unique_ptr<LiveObject>> follow_redis_live(std::shared_ptr<RedisClient> client,
                                                      const ObjectRef& found) {
  const size_t dot = found.key.find('.');
  const auto generation =
      dot == found.key.npos ? std::nullopt : parse_number(std::string_view(found.key).substr(0, dot), 16);
  if (!generation)
    return error(Code::kInvalidArgument, "'{}' is no key of what is still being written", found.key);
  return std::unique_ptr<LiveObject>(
      std::make_unique<RedisLiveObject>(std::move(client), found.key.substr(dot + 1), *generation));
}

Result<std::vector<LiveInfo>> list_redis_live(RedisClient& client, const std::vector<std::string>& streams) {
  std::vector<Command> commands;
  for (const std::string& stream : streams)
    commands.push_back({{"XREVRANGE", stream, "+", "-", "COUNT", "1"}});
  DS_TRY(client.run(commands));
  std::vector<LiveInfo> all;
  for (const Command& c : commands) {
    DS_TRY(check_reply(c.reply));
    if (c.reply.list.empty() || c.reply.list[0].list.size() != 2) continue;  // gone meanwhile
    const std::vector<Reply>& fields = c.reply.list[0].list[1].list;
    if (fields.empty() || fields[0].text != "h") continue;  // it has ended, or given up
    const std::string& stream = c.words[1];
    const size_t open = stream.find('{'), close = stream.find('}');
    LiveInfo info{.key = stream.substr(open + 1, close - open - 1), .alive = true};
    const std::string& id = c.reply.list[0].list[0].text;
    info.written_s = static_cast<int64_t>(parse_number(id.substr(0, id.find('-')), 10).value_or(0) / 1000);
    if (fields.size() >= 8) info.bytes = static_cast<int64_t>(parse_number(fields[7].text, 10).value_or(0));
    all.push_back(std::move(info));
  }
  return all;
}

}  // namespace ds
