// Objects at a Redis or Valkey server, or in a cluster of them. All of an object's keys are in one slot:
//
//   ds:{KEY}            the manifest: what there is of it, and its first bytes (all, of a small object)
//   ds:{KEY}:GEN:0 ...  the rest in parts of 1 MiB; GEN is of one put, so that parts of two are never mixed
//   ds:{KEY}:GEN:n:0    the names that it was put with, so that they can be taken away with it
//   ds:{KEY}:used, :pin, :readers
//   ds:name:NAME        objects by name: a sorted set, by time
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
#include "runtime/store/store_internal.h"
#include "support/clock.h"

namespace ds {
namespace {

static_assert(std::endian::native == std::endian::little,
              "manifests are read and written as they lie in memory");

using Command = RedisClient::Command;
using Kind = Reply::Kind;

constexpr std::string_view kMagic = "DSPARTS1";
constexpr size_t kFixed = 48;
/// Of an object, in its manifest: what a reader asks for first (runtime/store/entry.cpp) comes with the
/// look-up.
constexpr int64_t kMostHead = 64 << 10;
constexpr int64_t kMostObject = int64_t{1} << 50, kMostParts = 1 << 20, kLeastPart = 4096;
constexpr size_t kBatch = 8;      // parts that are written at once
constexpr size_t kAhead = 4;      // parts that are asked for before the first of them is here
constexpr int64_t kReaderS = 60;  // for which a reader that says nothing more counts as one
constexpr int64_t kKeptOfName = 16;
constexpr size_t kRemembered = 8;
constexpr int64_t kRememberedNs = 1'000'000'000;

struct Manifest {
  int64_t bytes = 0, part_bytes = 0;
  uint64_t generation = 0;
  int64_t written_s = 0;
  uint32_t names = 0;
  uint32_t head_bytes = 0;
  std::string head;

  int64_t parts() const { return (bytes - head_bytes + part_bytes - 1) / part_bytes; }
  int64_t name_parts() const {
    const int64_t all = int64_t{names} * static_cast<int64_t>(Store::kNameDigits);
    return (all + part_bytes - 1) / part_bytes;
  }
  std::string text() const {
    std::string out(kMagic);
    const auto put = [&](auto v) { out.append(reinterpret_cast<const char*>(&v), sizeof v); };
    put(bytes), put(part_bytes), put(generation), put(written_s), put(names), put(head_bytes);
    return out + head;
  }
  /// `text` may end behind the numbers. kCorrupt.
  static Result<Manifest> parse(std::string_view text) {
    Manifest m;
    const char* at = text.data() + kMagic.size();
    const auto get = [&](auto& v) {
      std::memcpy(&v, at, sizeof v);
      at += sizeof v;
    };
    if (text.size() < kFixed || !text.starts_with(kMagic)) return error(Code::kCorrupt, "it is no manifest");
    get(m.bytes), get(m.part_bytes), get(m.generation), get(m.written_s), get(m.names), get(m.head_bytes);
    m.head = text.substr(kFixed);
    if (m.bytes < 0 || m.bytes > kMostObject || m.part_bytes < kLeastPart || m.part_bytes > 64 << 20 ||
        m.head_bytes > kMostHead || m.head_bytes > m.bytes || m.parts() > kMostParts ||
        m.names > Store::kMostNames || (!m.head.empty() && m.head.size() != m.head_bytes))
      return error(Code::kCorrupt, "its manifest claims {} bytes, {} of them there, in parts of {}", m.bytes,
                   m.head_bytes, m.part_bytes);
    return m;
  }
};

int64_t seconds_now() { return time(nullptr); }

int64_t us_now() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

uint64_t random_number() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

/// A key, or what stands in front of it, without memory of its own.
class KeyText {
 public:
  template <typename... A>
  explicit KeyText(fmt::format_string<A...> format, A&&... args) {
    size_ = std::min(text_.size(),
                     fmt::format_to_n(text_.data(), text_.size(), format, std::forward<A>(args)...).size);
  }
  operator std::string_view() const { return {text_.data(), size_}; }  // NOLINT: it is one
  std::string string() const { return {text_.data(), size_}; }

 private:
  std::array<char, 400> text_;  // prefix 100, key 200, the rest 40
  size_t size_ = 0;
};

struct Keys {
  std::string object;  // the manifest's
  Keys(const RedisOptions& o, std::string_view key) : object(fmt::format("{}{{{}}}", o.prefix, key)) {}
  KeyText part(uint64_t generation, int64_t i) const {
    return KeyText("{}:{:016x}:{}", object, generation, i);
  }
  KeyText names(uint64_t generation, int64_t i) const {
    return KeyText("{}:{:016x}:n:{}", object, generation, i);
  }
  std::string used() const { return object + ":used"; }
  std::string pin() const { return object + ":pin"; }
  std::string readers() const { return object + ":readers"; }
};

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

Status check_reply(const Reply& reply) {
  return reply.kind == Kind::kError ? server_error(reply.text) : ok_status();
}

class RedisObject final : public StoreObject {
 public:
  RedisObject(std::shared_ptr<RedisClient> client, const std::string& key, Manifest manifest)
      : client_(std::move(client)),
        keys_(client_->options(), key),
        manifest_(std::move(manifest)),
        slot_(key_slot(keys_.object)),
        reader_(fmt::format("{:016x}", random_number())),
        readers_(keys_.readers()) {
    reading();
  }
  ~RedisObject() override { client_->unanswered({"ZREM", readers_, reader_}); }

  int64_t size() const override { return manifest_.bytes; }

  Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
    if (offset < 0)
      return error(Code::kInvalidArgument, "cannot read '{}' from byte {}", keys_.object, offset);
    if (out.empty()) return ok_status();
    if (offset > manifest_.bytes || static_cast<int64_t>(out.size()) > manifest_.bytes - offset)
      return error(Code::kCorrupt, "'{}' ends at byte {}; {} bytes from {} on were expected there",
                   keys_.object, manifest_.bytes, out.size(), offset);
    if (offset < manifest_.head_bytes) {
      const auto some = out.first(std::min(out.size(), static_cast<size_t>(manifest_.head_bytes - offset)));
      std::memcpy(some.data(), manifest_.head.data() + offset, some.size());
      DS_TRY(arrived(some));
      offset += static_cast<int64_t>(some.size());
      out = out.subspan(some.size());
    }
    if (out.empty()) return ok_status();
    if (now_ns() - said_ns_ > kReaderS * 1'000'000'000 / 3) reading();
    return read_parts(offset - manifest_.head_bytes, out, arrived);
  }

 private:
  /// What of a part is asked for, and where to.
  struct Piece {
    int64_t part = 0, from = 0;
    std::span<std::byte> to;
    bool whole = false;   // all of the part
    bool landed = false;  // it is there, but nobody has been told
  };

  void reading() {
    said_ns_ = now_ns();
    client_->unanswered({"ZADD", readers_, "1", reader_});
    client_->unanswered({"EXPIRE", readers_, std::to_string(kReaderS)});
  }

  Piece piece(int64_t at, std::span<std::byte> rest) const {
    Piece p;
    p.part = at / manifest_.part_bytes;
    p.from = at % manifest_.part_bytes;
    const int64_t begin = p.part * manifest_.part_bytes;
    const int64_t bytes = std::min(manifest_.part_bytes, manifest_.bytes - manifest_.head_bytes - begin);
    p.to = rest.first(std::min(rest.size(), static_cast<size_t>(bytes - p.from)));
    p.whole = static_cast<int64_t>(p.to.size()) == bytes;
    return p;
  }

  void ask(RespConnection& connection, const Piece& p) const {
    const KeyText key = keys_.part(manifest_.generation, p.part);
    if (p.whole) {
      connection.command({"GET", key});
      return;
    }
    const KeyText first("{}", p.from), last("{}", p.from + static_cast<int64_t>(p.to.size()) - 1);
    connection.command({"GETRANGE", key, first, last});
  }

  /// What came is no value of the right size, and no redirection.
  Status not_there(const Piece& p, const BulkReply& reply) const {
    if (reply.kind == BulkReply::Kind::kError) return server_error(reply.error).with_context(part_text(p));
    // GETRANGE of a key that is not there is an empty value.
    if (reply.kind == BulkReply::Kind::kNone || reply.bytes == 0)
      return error(
          Code::kNotFound,
          "{} is gone from the server: its memory limit or a time to live has taken it, or the object "
          "was replaced or removed more than {} s ago",
          part_text(p), client_->options().grace_s);
    return error(Code::kCorrupt, "{} has {} bytes where {} were expected", part_text(p), reply.bytes,
                 p.to.size());
  }
  std::string part_text(const Piece& p) const { return fmt::format("part {} of '{}'", p.part, keys_.object); }

  Status read_parts(int64_t at, std::span<std::byte> out, const Arrived& arrived) {
    bool refused = false;  // by who is told
    const auto tell = [&](std::span<const std::byte> some) {
      Status status = arrived(some);
      refused = refused || !status.ok();
      return status;
    };
    const auto asked = [&] { return tell({}); };
    const Waiting waiting = std::ref(asked);
    std::array<Piece, kAhead> ring{};  // [done, sent) of it are asked for
    size_t done = 0, sent = 0;
    DS_ASSIGN(size_t node, client_->node_of(slot_, waiting));
    DS_ASSIGN(RedisClient::Use use, client_->connection(node, waiting));
    bool answered = false;
    while (done < sent || !out.empty()) {
      while (sent - done < kAhead && !out.empty()) {
        Piece& p = ring[sent++ % kAhead];
        p = piece(at, out);
        at += static_cast<int64_t>(p.to.size());
        out = out.subspan(p.to.size());
        ask(*use.operator->(), p);
      }
      Piece& p = ring[done % kAhead];
      if (p.landed) {
        DS_TRY(arrived(p.to));
        ++done;
        continue;
      }
      BulkReply reply;
      const std::byte* told = p.to.data();
      Status status = use->flush();
      if (status.ok())
        status = use->bulk(
            p.to,
            [&](std::span<const std::byte> some) {
              if (!some.empty()) told = some.data() + some.size();
              return tell(some);
            },
            reply);
      if (refused) return status;
      if (!status.ok()) {
        const bool gone = use->lost() && status.code() == Code::kIo;
        if (gone && !answered && !use.fresh() && told == p.to.data()) {
          // It has been closed since it was last used.
          DS_ASSIGN(use, client_->connection(node, waiting, RedisClient::Which::kFresh));
          for (size_t i = done; i < sent; ++i) ask(*use.operator->(), ring[i % kAhead]);
          answered = true;
          continue;
        }
        if (gone) client_->lost(node);
        return status.with_context(fmt::format("reading {} from {}", part_text(p), client_->shown(node)));
      }
      answered = true;
      if (reply.kind == BulkReply::Kind::kWhole) {
        ++done;
        continue;
      }
      auto to =
          reply.kind == BulkReply::Kind::kError ? client_->redirection(reply.error, node) : std::nullopt;
      if (!to) return not_there(p, reply);
      // Those behind it may be here or there: they are taken as they come, and told of in their turn.
      for (size_t i = done + 1; i < sent; ++i) {
        Piece& other = ring[i % kAhead];
        if (other.landed) continue;
        BulkReply its;
        DS_TRY(use->bulk(
            other.to, [&](auto) { return asked(); }, its));
        other.landed = its.kind == BulkReply::Kind::kWhole;
        if (use->lost()) break;
      }
      DS_TRY(redirected(p, *to, tell));
      ++done;
      DS_ASSIGN(node, client_->node_of(slot_, waiting));
      DS_ASSIGN(use, client_->connection(node, waiting));
      for (size_t i = done; i < sent; ++i)
        if (!ring[i % kAhead].landed) ask(*use.operator->(), ring[i % kAhead]);
    }
    return ok_status();
  }

  /// One piece by itself, from where it is.
  Status redirected(const Piece& p, RedisClient::Redirection to, const Arrived& arrived) {
    const auto asked = [&] { return arrived({}); };
    for (int turn = 0; turn < RedisClient::kMostRedirections; ++turn) {
      DS_ASSIGN(RedisClient::Use use,
                client_->connection(to.node, std::ref(asked), RedisClient::Which::kFresh));
      if (to.asking) use->command({"ASKING"});
      ask(*use.operator->(), p);
      DS_TRY(use->flush());
      if (to.asking) DS_TRY(use->reply(std::ref(asked)));
      BulkReply reply;
      DS_TRY(use->bulk(p.to, arrived, reply));
      if (reply.kind == BulkReply::Kind::kWhole) return ok_status();
      auto next =
          reply.kind == BulkReply::Kind::kError ? client_->redirection(reply.error, to.node) : std::nullopt;
      if (!next) return not_there(p, reply);
      to = *next;
    }
    return error(Code::kIo, "{}: redirected more than {} times", part_text(p),
                 RedisClient::kMostRedirections);
  }

  const std::shared_ptr<RedisClient> client_;
  const Keys keys_;
  const Manifest manifest_;
  const size_t slot_;
  const std::string reader_, readers_;
  std::atomic<int64_t> said_ns_ = 0;
};

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
    DS_TRY(client_->run(commands));
    Found found;
    for (size_t i = 0; i < keys.size(); ++i) {
      auto manifest = manifest_of(commands[i].reply, keys[i]);
      if (!manifest.ok() && manifest.status().code() != Code::kCorrupt) return manifest.status();
      auto& ref = found.keys.emplace_back();
      // What is somebody else's is looked at, and spoken of, by who opens it.
      if (!manifest.ok()) ref = ObjectRef{keys[i], 0};
      if (!manifest.ok() || !*manifest) continue;
      ref = ObjectRef{keys[i], (*manifest)->bytes};
      if (whole) remember(keys[i], std::move(**manifest));
    }
    std::multimap<std::string, std::pair<std::string, std::string>> named;
    for (size_t i = 0; i < names.size(); ++i) {
      const Reply& reply = commands[keys.size() + i].reply;
      if (!reply.is_error("WRONGTYPE")) DS_TRY(check_reply(reply));
      auto& refs = found.names.emplace_back();
      for (const Reply& one : reply.list) {
        auto ref = parse_member(one.text);
        if (!ref || refs.size() == kMostOfName) continue;
        named.emplace(ref->key, std::pair(names[i], one.text));
        const auto same = [&](const ObjectRef& other) { return other.key == ref->key; };
        if (std::none_of(refs.begin(), refs.end(), same)) refs.push_back(std::move(*ref));
      }
    }
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

  Result<std::vector<ObjectInfo>> list() override {
    DS_ASSIGN(std::vector<size_t> masters, client_->masters({}));
    std::set<std::string> keys, parts;
    for (size_t node : masters) {
      if (Status s = scan(node, keys, parts); !s.ok())
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
    return std::unique_ptr<StoreObject>(std::make_unique<RedisObject>(client_, key, std::move(manifest)));
  }

  /// Objects' keys, and the server's keys of their parts.
  Status scan(size_t node, std::set<std::string>& keys, std::set<std::string>& parts) {
    DS_ASSIGN(RedisClient::Use use, client_->connection(node, {}));
    std::string cursor = "0", pattern;
    const std::string& prefix = client_->options().prefix;
    for (char c : prefix) {
      if (std::string_view("*?[]^\\").find(c) != std::string_view::npos) pattern += '\\';
      pattern += c;
    }
    pattern += "{*";
    do {
      use->command({"SCAN", cursor, "MATCH", pattern, "COUNT", "1000"});
      DS_TRY(use->flush());
      DS_ASSIGN(Reply reply, use->reply());
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
