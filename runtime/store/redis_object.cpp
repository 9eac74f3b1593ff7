#include "runtime/store/redis_object_internal.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <utility>

#include "support/clock.h"

namespace ds {
namespace {

static_assert(std::endian::native == std::endian::little,
              "manifests are read and written as they lie in memory");

constexpr std::string_view kMagic = "DSPARTS1";
constexpr size_t kAhead = 4;      // parts that are asked for before the first of them is here
constexpr int64_t kReaderS = 60;  // for which a reader that says nothing more counts as one

}  // namespace

std::string RedisManifest::text() const {
  std::string out(kMagic);
  const auto put = [&](auto v) { out.append(reinterpret_cast<const char*>(&v), sizeof v); };
  put(bytes), put(part_bytes), put(generation), put(written_s), put(names), put(head_bytes);
  return out + head;
}

Result<RedisManifest> RedisManifest::parse(std::string_view text) {
  RedisManifest m;
  const char* at = text.data() + kMagic.size();
  const auto get = [&](auto& v) {
    std::memcpy(&v, at, sizeof v);
    at += sizeof v;
  };
  if (text.size() < kManifestFixed || !text.starts_with(kMagic))
    return error(Code::kCorrupt, "it is no manifest");
  get(m.bytes), get(m.part_bytes), get(m.generation), get(m.written_s), get(m.names), get(m.head_bytes);
  m.head = text.substr(kManifestFixed);
  if (m.bytes < 0 || m.bytes > kMostObject || m.part_bytes < kLeastPart || m.part_bytes > kMostPart ||
      m.head_bytes > kMostHead || m.head_bytes > m.bytes || m.parts() > kMostParts ||
      m.names > Store::kMostNames || (!m.head.empty() && m.head.size() != m.head_bytes))
    return error(Code::kCorrupt, "its manifest claims {} bytes, {} of them there, in parts of {}", m.bytes,
                 m.head_bytes, m.part_bytes);
  return m;
}

int64_t seconds_now() { return time(nullptr); }

uint64_t random_number() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

Status check_reply(const Reply& reply) {
  return reply.kind == Reply::Kind::kError ? server_error(reply.text) : ok_status();
}

namespace {

class RedisObject final : public StoreObject {
 public:
  RedisObject(std::shared_ptr<RedisClient> client, const std::string& key, RedisManifest manifest,
              bool lasting)
      : client_(std::move(client)),
        keys_(client_->options(), key),
        manifest_(std::move(manifest)),
        slot_(key_slot(keys_.object)),
        reader_(fmt::format("{:016x}", random_number())),
        readers_(keys_.readers()),
        lasting_(lasting) {
    if (lasting_) reading();
  }
  ~RedisObject() override {
    if (lasting_) client_->unanswered({"ZREM", readers_, reader_});
  }

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
    if (lasting_ && now_ns() - said_ns_ > kReaderS * 1'000'000'000 / 3) reading();
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
        if (gone && !answered && !use.fresh() && !use->silent() && told == p.to.data()) {
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
  const RedisKeys keys_;
  const RedisManifest manifest_;
  const size_t slot_;
  const std::string reader_, readers_;
  const bool lasting_;
  std::atomic<int64_t> said_ns_ = 0;
};

}  // namespace

std::unique_ptr<StoreObject> open_redis_object(std::shared_ptr<RedisClient> client, const std::string& key,
                                               RedisManifest manifest, bool lasting) {
  return std::make_unique<RedisObject>(std::move(client), key, std::move(manifest), lasting);
}

}  // namespace ds
