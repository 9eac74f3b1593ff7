// Objects at a Redis or Valkey server, or in a cluster of them. All of an object's keys are in one slot:
//
//   ds:{KEY}            the manifest: what there is of it, and its first bytes (all, of a small object)
//   ds:{KEY}:GEN:0 ...  the rest in parts of 1 MiB; GEN is of one put, so that parts of two are never mixed
//   ds:{KEY}:GEN:n:0    the names that it was put with, so that they can be taken away with it
//   ds:{KEY}:used, :pin, :readers
//   ds:name:NAME        objects by name: a sorted set, by time
//
// and what is still being written (redis_live_internal.h).
//
// A put writes parts that expire by themselves (a writer may die), then the manifest, by which the object
// appears whole, and then lets the parts stay. What it has replaced expires after a grace, for who is still
// reading it. Each command is about one key: a cluster may move any of them at any time.
#include "runtime/store/redis_store_internal.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <chrono>
#include <cstring>
#include <ctime>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <utility>

#include "runtime/store/redis_client_internal.h"
#include "runtime/store/redis_live_internal.h"
#include "runtime/store/redis_object_internal.h"
#include "runtime/store/store_internal.h"
#include "support/clock.h"

namespace ds {
namespace {

using Command = RedisClient::Command;
using Kind = Reply::Kind;
using Manifest = RedisManifest;
using Keys = RedisKeys;

constexpr size_t kFixed = kManifestFixed;
constexpr size_t kBatch = 8;  // parts that are written at once
constexpr int64_t kKeptOfName = 16;
constexpr size_t kRemembered = 8;
constexpr int64_t kRememberedNs = 1'000'000'000;

int64_t us_now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

/// Of an object under a name.
std::string member(std::string_view key, int64_t bytes, size_t index) {
  return fmt::format("{} {} {}", index, bytes, key);
}

std::optional<ObjectRef> parse_member(std::string_view text) {
  ObjectRef ref;
  const char *at = text.data(), *end = text.data() + text.size();
  for (int64_t* number : {static_cast<int64_t*>(nullptr), &ref.bytes}) {
    int64_t value = 0;
    auto [stop, failure] = std::from_chars(at, end, value);
    if (failure != std::errc() || stop == end || *stop != ' ' || value < 0) return std::nullopt;
    if (number == nullptr && value >= static_cast<int64_t>(Store::kMostNames)) return std::nullopt;
    if (number == nullptr) {
      ref.index = static_cast<int32_t>(value);
    } else {
      *number = value;
    }
    at = stop + 1;
  }
  ref.key.assign(at, end);
  if (!check_store_key(ref.key).ok()) return std::nullopt;
  return ref;
}

/// The parts of one put.
class Writer {
 public:
  Writer(RedisClient& client, const Keys& keys) : client_(client), keys_(keys) {
    m_.part_bytes = client.options().part_bytes;
    m_.generation = random_number();
    lease_ = std::to_string(client.options().lease_s);
    renewed_ns_ = now_ns();
  }

  Status append(std::span<const std::byte> bytes) {
    m_.bytes += static_cast<int64_t>(bytes.size());
    if (m_.bytes > kMostObject || m_.parts() > kMostParts)
      return error(Code::kInvalidArgument, "an object of more than {} parts of {} bytes", kMostParts,
                   m_.part_bytes);
    const auto head = bytes.first(std::min(bytes.size(), static_cast<size_t>(kMostHead) - m_.head.size()));
    m_.head.append(reinterpret_cast<const char*>(head.data()), head.size());
    m_.head_bytes = static_cast<uint32_t>(m_.head.size());
    bytes = bytes.subspan(head.size());
    const size_t batch = kBatch * static_cast<size_t>(m_.part_bytes);
    while (!bytes.empty()) {
      if (buffer_.empty() && bytes.size() >= batch) {
        DS_TRY(write(bytes.first(batch)));  // from where they are
        bytes = bytes.subspan(batch);
        continue;
      }
      if (buffer_.capacity() < batch) buffer_.reserve(batch);
      const auto some = bytes.first(std::min(bytes.size(), batch - buffer_.size()));
      buffer_.insert(buffer_.end(), some.begin(), some.end());
      bytes = bytes.subspan(some.size());
      if (buffer_.size() < batch) continue;
      DS_TRY(write(buffer_));
      buffer_.clear();
    }
    return ok_status();
  }

  /// Lets it appear; what it has replaced, if anything.
  Result<std::optional<Manifest>> finish(Store::Names names) {
    DS_TRY(write(buffer_));
    buffer_.clear();
    DS_TRY(write_names(names));
    m_.names = static_cast<uint32_t>(names.size());
    m_.written_s = seconds_now();
    const int64_t ttl = client_.options().ttl_s;
    std::vector<Command> commands;
    commands.push_back({{"SET", keys_.object, m_.text(), "GET"}});
    commands.push_back({{"SET", keys_.used(), std::to_string(m_.written_s)}});
    if (ttl > 0)
      for (Command& c : commands) c.words.insert(c.words.end(), {"EX", std::to_string(ttl)});
    for (std::string& key : written_) {
      if (ttl > 0) {  // who has opened it in its last moment reads on
        commands.push_back({{"EXPIRE", std::move(key), std::to_string(ttl + client_.options().grace_s)}});
      } else {
        commands.push_back({{"PERSIST", std::move(key)}});
      }
    }
    commands.push_back({{"GETRANGE", keys_.object, "0", std::to_string(kFixed - 1)}});
    Status status = client_.run(commands);
    for (size_t i = 0; i < written_.size(); ++i) written_[i] = std::move(commands[i + 2].words[1]);
    DS_TRY(status);
    for (const Command& c : commands) DS_TRY(check_reply(c.reply));
    const auto now = Manifest::parse(commands.back().reply.text);
    if (!now.ok() || now->generation != m_.generation) {
      // Somebody has replaced or removed it already, perhaps before its parts were told to stay.
      expire();
    } else {
      for (size_t i = 0; i < written_.size(); ++i) {
        if (commands[i + 2].reply.integer == 1) continue;
        std::vector<Command> back{{{"UNLINK", keys_.object}}};
        (void)client_.run(back);
        return error(
            Code::kExhausted,
            "the server has evicted parts while they were written: its memory (maxmemory) does not hold "
            "the object");
      }
    }
    std::optional<Manifest> before;
    if (commands[0].reply.kind == Kind::kText)
      if (auto old = Manifest::parse(commands[0].reply.text); old.ok()) before = std::move(*old);
    return before;
  }

  void expire() {
    std::vector<Command> commands;
    for (const std::string& key : written_)
      commands.push_back({{"EXPIRE", key, std::to_string(client_.options().grace_s)}});
    (void)client_.run(commands);
  }

  /// Nothing of it shall be left.
  void abandon() {
    std::vector<Command> commands;
    for (std::string& key : written_) commands.push_back({{"UNLINK", std::move(key)}});
    (void)client_.run(commands);
  }
  int64_t bytes() const { return m_.bytes; }

 private:
  Status write(std::span<const std::byte> bytes) {
    std::vector<Command> commands;
    while (!bytes.empty()) {
      const auto part = bytes.first(std::min(bytes.size(), static_cast<size_t>(m_.part_bytes)));
      written_.push_back(keys_.part(m_.generation, parts_++).string());
      commands.push_back({{"SETEX", written_.back(), lease_}, part});
      bytes = bytes.subspan(part.size());
    }
    return send(std::move(commands));
  }

  Status write_names(Store::Names names) {
    const std::string all = fmt::format("{}", fmt::join(names, ""));
    std::vector<Command> commands;
    const auto bytes = std::as_bytes(std::span(all));
    for (size_t at = 0; at < bytes.size(); at += static_cast<size_t>(m_.part_bytes)) {
      written_.push_back(keys_.names(m_.generation, static_cast<int64_t>(commands.size())).string());
      commands.push_back(
          {{"SETEX", written_.back(), lease_},
           bytes.subspan(at, std::min(bytes.size() - at, static_cast<size_t>(m_.part_bytes)))});
    }
    return send(std::move(commands));
  }

  Status send(std::vector<Command> commands) {
    // A slow writer's first parts must not go before its last are there.
    if (now_ns() - renewed_ns_ > client_.options().lease_s * 1'000'000'000 / 3) {
      renewed_ns_ = now_ns();
      std::vector<Command> renewals;
      for (size_t i = 0; i + commands.size() < written_.size(); ++i)
        renewals.push_back({{"EXPIRE", written_[i], lease_}});
      DS_TRY(client_.run(renewals));
    }
    DS_TRY(client_.run(commands));
    for (const Command& c : commands) DS_TRY(check_reply(c.reply));
    return ok_status();
  }

  RedisClient& client_;
  const Keys& keys_;
  Manifest m_;
  std::string lease_;
  int64_t renewed_ns_ = 0, parts_ = 0;
  std::vector<std::string> written_;
  std::vector<std::byte> buffer_;
};

class RedisStore final : public Store {
 public:
  explicit RedisStore(RedisOptions options) : client_(std::make_shared<RedisClient>(std::move(options))) {}

  std::string url() const override { return client_->options().url(); }
  void set_patience(double seconds) override { client_->set_patience(seconds); }

  Status put(const std::string& key, const Produce& produce, Names names) override {
    DS_TRY(check_store_key(key));
    DS_TRY(check_store_names(names));
    const Keys keys = keys_of(key);
    Writer writer(*client_, keys);
    bool sent = true;  // what failed is the server's, or else the producer's
    Status status = produce([&](std::span<const std::byte> bytes) {
      Status s = writer.append(bytes);
      sent = sent && s.ok();
      return s;
    });
    if (!status.ok() && sent) {
      writer.abandon();
      return status;
    }
    std::optional<Manifest> before;
    if (status.ok()) {
      auto replaced = writer.finish(names);
      status = replaced.status();
      if (replaced.ok()) before = std::move(*replaced);
    }
    if (!status.ok()) {
      writer.abandon();
      return status.with_context(fmt::format("writing '{}'", key));
    }
    forget(key);
    if (before) retire(keys, key, *before, writer.bytes(), names);
    status = add_names(key, writer.bytes(), names);
    if (!status.ok()) {
      (void)remove(key);
      return status.with_context(fmt::format("writing the names of '{}'", key));
    }
    return ok_status();
  }

  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    DS_TRY(check_store_key(key));
    std::vector<Command> commands{{{"GET", keys_of(key).object}}};
    DS_TRY(client_->run(commands));
    DS_ASSIGN(std::optional<Manifest> manifest, manifest_of(commands[0].reply, key));
    if (!manifest) return none(key);
    return opened(key, std::move(*manifest));
  }

  Result<std::unique_ptr<StoreObject>> open(const ObjectRef& found) override {
    DS_TRY(check_store_key(found.key));
    if (auto manifest = recall(found)) return opened(found.key, std::move(*manifest));
    auto object = open(found.key);
    if (!object.ok() && object.status().code() == Code::kNotFound) forget_names(found.key);
    return object;
  }

  Result<Found> find(Names keys, Names names) override {
    DS_TRY(check_store_names(names));
    std::vector<Command> commands;
    // Of few, the manifests come along: opening one of them is no look-up any more.
    const bool whole = keys.size() <= kRemembered;
    for (const std::string& key : keys) {
      DS_TRY(check_store_key(key));
      std::vector<std::string> words{whole ? "GET" : "GETRANGE", keys_of(key).object};
      if (!whole) words.insert(words.end(), {"0", std::to_string(kFixed - 1)});
      commands.push_back({std::move(words)});
    }
    for (const std::string& name : names)
      commands.push_back({{"ZREVRANGE", name_key(name), "0", std::to_string(kMostOfName - 1)}});
    Found found;
    DS_TRY(client_->run(commands, {}, &found.unasked));
    bool any = false;
    for (size_t i = 0; i < keys.size(); ++i) {
      auto& ref = found.keys.emplace_back();
      if (commands[i].reply.is_error(RedisClient::kLost)) continue;
      auto manifest = manifest_of(commands[i].reply, keys[i]);
      if (!manifest.ok() && manifest.status().code() != Code::kCorrupt) return manifest.status();
      any = any || !manifest.ok() || *manifest;
      // What is somebody else's is looked at, and spoken of, by who opens it.
      if (!manifest.ok()) ref = ObjectRef{keys[i], 0};
      if (!manifest.ok() || !*manifest) continue;
      ref = ObjectRef{keys[i], (*manifest)->bytes};
      if (whole) remember(keys[i], std::move(**manifest));
    }
    std::multimap<std::string, std::pair<std::string, std::string>> named;
    for (size_t i = 0; i < names.size(); ++i) {
      const Reply& reply = commands[keys.size() + i].reply;
      auto& refs = found.names.emplace_back();
      if (reply.is_error(RedisClient::kLost)) continue;
      if (!reply.is_error("WRONGTYPE")) DS_TRY(check_reply(reply));
      for (const Reply& one : reply.list) {
        auto ref = parse_member(one.text);
        if (!ref || refs.size() == kMostOfName) continue;
        named.emplace(ref->key, std::pair(names[i], one.text));
        const auto same = [&](const ObjectRef& other) { return other.key == ref->key; };
        if (std::none_of(refs.begin(), refs.end(), same)) refs.push_back(std::move(*ref));
        any = true;
      }
    }
    if (!any) DS_TRY(found.unasked);
    std::lock_guard lock(mutex_);
    named_ = std::move(named);
    return found;
  }

  Status remove(const std::string& key) override {
    DS_TRY(check_store_key(key));
    const Keys keys = keys_of(key);
    forget(key);
    std::vector<Command> commands{{{"GETDEL", keys.object}}};
    DS_TRY(client_->run(commands));
    DS_TRY(check_reply(commands[0].reply));
    if (commands[0].reply.kind == Kind::kNone) return none(key);
    auto before = Manifest::parse(commands[0].reply.text);
    commands.clear();
    for (const std::string& k : {keys.used(), keys.pin(), keys.readers()})
      commands.push_back({{"UNLINK", k}});
    Status status = client_->run(commands);
    if (before.ok()) retire(keys, key, *before, -1, {});
    return status;
  }

  Result<std::vector<ObjectInfo>> list(std::string_view begins) override {
    DS_ASSIGN(std::vector<size_t> masters, client_->masters({}));
    std::set<std::string> keys, parts;
    for (size_t node : masters) {
      if (Status s = scan(node, begins, keys, parts); !s.ok())
        return s.with_context(fmt::format("listing store '{}'", url()));
    }
    keep_from_leaking(parts);
    std::vector<Command> commands;
    for (const std::string& key : keys) {
      const Keys k = keys_of(key);
      commands.push_back({{"GETRANGE", k.object, "0", std::to_string(kFixed - 1)}});
      commands.push_back({{"GET", k.used()}});
      commands.push_back({{"EXISTS", k.pin()}});
    }
    DS_TRY(client_->run(commands));
    std::vector<ObjectInfo> all;
    size_t at = 0;
    for (const std::string& key : keys) {
      const Command* c = &commands[3 * at++];
      if (!c[0].reply.is_error("WRONGTYPE")) DS_TRY(check_reply(c[0].reply));
      auto manifest = Manifest::parse(c[0].reply.text);
      if (!manifest.ok()) continue;  // gone meanwhile, or somebody else's
      ObjectInfo object{.key = key, .bytes = manifest->bytes, .written_s = manifest->written_s};
      const std::string& used = c[1].reply.text;
      (void)std::from_chars(used.data(), used.data() + used.size(), object.used_s);
      object.used_s = std::max(object.used_s, object.written_s);
      object.pinned = c[2].reply.integer == 1;
      all.push_back(std::move(object));
    }
    return all;
  }

  void touch(const std::string& key) override {
    if (check_store_key(key).ok())
      client_->unanswered({"SET", keys_of(key).used(), std::to_string(seconds_now()), "XX", "KEEPTTL"});
  }

  Status pin(const std::string& key, bool pinned) override {
    DS_TRY(check_store_key(key));
    const Keys keys = keys_of(key);
    std::vector<Command> commands{{{"EXISTS", keys.object}}};
    DS_TRY(client_->run(commands));
    DS_TRY(check_reply(commands[0].reply));
    if (commands[0].reply.integer == 0) return none(key);
    commands[0].words = pinned ? std::vector<std::string>{"SET", keys.pin(), "1"}
                               : std::vector<std::string>{"UNLINK", keys.pin()};
    DS_TRY(client_->run(commands));
    return check_reply(commands[0].reply);
  }

  Result<std::unique_ptr<LiveWriter>> begin_live(const std::string& key, std::string_view head,
                                                 Names names) override {
    DS_TRY(check_store_key(key));
    DS_TRY(check_store_names(names));
    return begin_redis_live(client_, key, head, names);
  }
  Result<std::vector<std::vector<ObjectRef>>> find_live(Names names, std::string_view) override {
    DS_TRY(check_store_names(names));
    return find_redis_live(*client_, names);
  }
  Result<std::unique_ptr<LiveObject>> follow(const ObjectRef& found) override {
    DS_TRY(check_store_key(found.key));
    return follow_redis_live(client_, found);
  }
  Result<std::vector<LiveInfo>> list_live() override {
    DS_ASSIGN(std::vector<size_t> masters, client_->masters({}));
    std::set<std::string> keys, parts;
    for (size_t node : masters) {
      if (Status s = scan(node, "", keys, parts); !s.ok())
        return s.with_context(fmt::format("listing store '{}'", url()));
    }
    std::vector<std::string> streams;
    for (const std::string& part : parts)
      if (part.ends_with(":live")) streams.push_back(part);
    return list_redis_live(*client_, streams);
  }

  Result<bool> evict(const std::string& key) override {
    DS_TRY(check_store_key(key));
    const Keys keys = keys_of(key);
    std::vector<Command> commands{
        {{"EXISTS", keys.object}}, {{"EXISTS", keys.pin()}}, {{"ZCARD", keys.readers()}}};
    DS_TRY(client_->run(commands));
    for (const Command& c : commands) DS_TRY(check_reply(c.reply));
    if (commands[0].reply.integer == 0) return none(key);
    if (commands[1].reply.integer != 0 || commands[2].reply.integer != 0) return false;
    DS_TRY(remove(key));
    return true;
  }

 private:
  Keys keys_of(std::string_view key) const { return {client_->options(), key}; }
  std::string name_key(const std::string& name) const { return client_->options().prefix + "name:" + name; }
  Status none(const std::string& key) const {
    return error(Code::kNotFound, "no object '{}' in store '{}'", key, url());
  }

  Result<std::optional<Manifest>> manifest_of(const Reply& reply, const std::string& key) const {
    if (reply.kind == Kind::kNone || (reply.kind == Kind::kText && reply.text.empty()))
      return std::optional<Manifest>();
    Status status = check_reply(reply);
    if (status.ok()) {
      auto manifest = Manifest::parse(reply.text);
      if (manifest.ok()) return std::optional(std::move(*manifest));
      status = manifest.status();
    }
    return status.with_context(fmt::format("object '{}' in store '{}'", key, url()));
  }

  Result<std::unique_ptr<StoreObject>> opened(const std::string& key, Manifest manifest) const {
    if (manifest.head.size() != manifest.head_bytes)
      return error(Code::kCorrupt, "object '{}' in store '{}': {} of its first {} bytes are there", key,
                   url(), manifest.head.size(), manifest.head_bytes);
    return open_redis_object(client_, key, std::move(manifest));
  }

  /// Objects' keys that begin so, and the server's keys of their parts.
  Status scan(size_t node, std::string_view begins, std::set<std::string>& keys,
              std::set<std::string>& parts) {
    DS_ASSIGN(RedisClient::Use use, client_->connection(node, {}));
    std::string cursor = "0", pattern;
    const std::string& prefix = client_->options().prefix;
    for (char c : fmt::format("{}{{{}", prefix, begins)) {
      if (std::string_view("*?[]^\\").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
    pattern += "*";
    do {
      use->command({"SCAN", cursor, "MATCH", pattern, "COUNT", "1000"});
      Status sent = use->flush();
      auto came = sent.ok() ? use->reply() : Result<Reply>(sent);
      if (!came.ok() && came.status().code() == Code::kIo) client_->lost(node);
      DS_ASSIGN(const Reply reply, std::move(came));
      DS_TRY(check_reply(reply));
      if (reply.list.size() != 2) return error(Code::kCorrupt, "the server's answer to SCAN is none");
      cursor = reply.list[0].text;
      for (const Reply& one : reply.list[1].list) {
        std::string_view key = one.text;
        if (key.size() < prefix.size() + 3) continue;
        key = key.substr(prefix.size() + 1);
        const size_t end = key.find('}');
        if (end == key.npos || !check_store_key(key.substr(0, end)).ok()) continue;
        if (end + 1 == key.size()) {
          keys.emplace(key.substr(0, end));
        } else if (part_generation(key.substr(end + 1))) {
          parts.insert(one.text);
        }
      }
    } while (cursor != "0");
    return ok_status();
  }

  /// ":GEN:..." of a part, or of names.
  static std::optional<uint64_t> part_generation(std::string_view text) {
    uint64_t generation = 0;
    if (text.size() < 19 || text[0] != ':' || text[17] != ':') return std::nullopt;
    const auto [end, failure] = std::from_chars(text.data() + 1, text.data() + 17, generation, 16);
    if (failure != std::errc() || end != text.data() + 17) return std::nullopt;
    return generation;
  }

  /// Who dies between taking a manifest away and letting its parts expire leaves them for good. What stays
  /// has had a manifest before; where that is another one now, nobody will read it any more.
  void keep_from_leaking(const std::set<std::string>& parts) {
    std::vector<Command> ttl, manifests, expire;
    for (const std::string& part : parts) ttl.push_back({{"TTL", part}});
    if (!client_->run(ttl).ok()) return;
    for (const Command& c : ttl)
      if (c.reply.kind == Kind::kInteger && c.reply.integer == -1)
        manifests.push_back(
            {{"GETRANGE", c.words[1].substr(0, c.words[1].find('}') + 1), "0", std::to_string(kFixed - 1)}});
    if (!client_->run(manifests).ok()) return;
    size_t at = 0;
    for (const Command& c : ttl) {
      if (c.reply.kind != Kind::kInteger || c.reply.integer != -1) continue;
      const Reply& reply = manifests[at++].reply;
      const auto now = Manifest::parse(reply.text);
      const bool gone = reply.kind == Kind::kText && reply.text.empty();
      const std::string& part = c.words[1];
      if (gone ||
          (now.ok() && now->generation != part_generation(std::string_view(part).substr(part.find('}') + 1))))
        expire.push_back({{"EXPIRE", part, std::to_string(client_->options().grace_s), "NX"}});
    }
    (void)client_->run(expire);
  }

  /// Parts and names of what is no longer there; whoever reads it has the grace.
  void retire(const Keys& keys, const std::string& key, const Manifest& m, int64_t kept_bytes, Names kept) {
    const std::string grace = std::to_string(client_->options().grace_s);
    std::vector<Command> commands;
    for (int64_t i = 0; i < m.name_parts(); ++i)
      commands.push_back({{"GET", keys.names(m.generation, i).string()}});
    (void)client_->run(commands);
    std::string names;
    for (const Command& c : commands)
      if (c.reply.kind == Kind::kText) names += c.reply.text;
    commands.clear();
    for (int64_t i = 0; i < m.parts(); ++i)
      commands.push_back({{"EXPIRE", keys.part(m.generation, i).string(), grace}});
    for (int64_t i = 0; i < m.name_parts(); ++i)
      commands.push_back({{"UNLINK", keys.names(m.generation, i).string()}});
    for (size_t i = 0; (i + 1) * kNameDigits <= names.size(); ++i) {
      const std::string name = names.substr(i * kNameDigits, kNameDigits);
      if (kept_bytes == m.bytes && i < kept.size() && kept[i] == name) continue;
      commands.push_back({{"ZREM", name_key(name), member(key, m.bytes, i)}});
    }
    (void)client_->run(commands);
  }

  Status add_names(const std::string& key, int64_t bytes, Names names) {
    if (names.empty()) return ok_status();
    const int64_t ttl = client_->options().ttl_s;
    const std::string now = std::to_string(us_now()), last = std::to_string(-kKeptOfName - 1);
    std::vector<Command> commands;
    for (size_t i = 0; i < names.size(); ++i) {
      const std::string name = name_key(names[i]);
      commands.push_back({{"ZADD", name, now, member(key, bytes, i)}});
      commands.push_back({{"ZREMRANGEBYRANK", name, "0", last}});
      commands.push_back(ttl > 0 ? Command{{"ZCARD", name}} : Command{{"PERSIST", name}});
    }
    DS_TRY(client_->run(commands));
    for (const Command& c : commands) DS_TRY(check_reply(c.reply));
    if (ttl == 0) return ok_status();
    // A name is there for as long as the longest of its objects may be; one without an end stays.
    std::vector<Command> expire;
    for (size_t i = 0; i < names.size(); ++i) {
      expire.push_back({{"EXPIRE", name_key(names[i]), std::to_string(ttl)}});
      if (commands[3 * i + 2].reply.integer > 1) expire.back().words.emplace_back("GT");
    }
    DS_TRY(client_->run(expire));
    for (const Command& c : expire) DS_TRY(check_reply(c.reply));
    return ok_status();
  }

  // What find() has seen, for the open() that follows it.
  void remember(const std::string& key, Manifest manifest) {
    if (manifest.head.size() != manifest.head_bytes) return;
    std::lock_guard lock(mutex_);
    if (remembered_.size() >= kRemembered) remembered_.erase(remembered_.begin());
    remembered_.push_back({key, std::move(manifest), now_ns()});
  }
  std::optional<Manifest> recall(const ObjectRef& found) {
    std::lock_guard lock(mutex_);
    std::optional<Manifest> manifest;
    const int64_t oldest = now_ns() - kRememberedNs;
    std::erase_if(remembered_, [&](Remembered& r) {
      if (r.key == found.key && r.manifest.bytes == found.bytes && r.seen_ns >= oldest)
        manifest = std::move(r.manifest);
      return r.key == found.key || r.seen_ns < oldest;
    });
    return manifest;
  }
  void forget(const std::string& key) {
    std::lock_guard lock(mutex_);
    std::erase_if(remembered_, [&](const Remembered& r) { return r.key == key; });
  }
  /// The server has evicted the object: its names would hide others of theirs.
  void forget_names(const std::string& key) {
    std::vector<Command> commands;
    {
      std::lock_guard lock(mutex_);
      const auto [begin, end] = named_.equal_range(key);
      for (auto it = begin; it != end; ++it)
        commands.push_back({{"ZREM", name_key(it->second.first), it->second.second}});
      named_.erase(begin, end);
    }
    (void)client_->run(commands);
  }

  struct Remembered {
    std::string key;
    Manifest manifest;
    int64_t seen_ns = 0;
  };
  const std::shared_ptr<RedisClient> client_;
  std::mutex mutex_;  // of what follows
  std::vector<Remembered> remembered_;
  std::multimap<std::string, std::pair<std::string, std::string>> named_;  // by key: the last find()'s
};

}  // namespace

std::unique_ptr<Store> make_redis_store(RedisOptions options) {
  return std::make_unique<RedisStore>(std::move(options));
}

}  // namespace ds
