#include "runtime/store/redis_client_internal.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <map>
#include <utility>

#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kBetweenDiscoveriesNs = 1'000'000'000;

/// CRC-16/XMODEM, as the cluster's specification has it.
uint16_t crc16(std::string_view text) {
  uint16_t crc = 0;
  for (char c : text) {
    crc = static_cast<uint16_t>(crc ^ (static_cast<unsigned char>(c) << 8));
    for (int bit = 0; bit < 8; ++bit)
      crc = static_cast<uint16_t>((crc & 0x8000) != 0 ? (crc << 1) ^ 0x1021 : crc << 1);
  }
  return crc;
}

std::string_view first_word(std::string_view text) { return text.substr(0, text.find(' ')); }

}  // namespace

size_t key_slot(std::string_view key) {
  if (const size_t open = key.find('{'); open != key.npos)
    if (const size_t close = key.find('}', open); close != key.npos && close > open + 1)
      key = key.substr(open + 1, close - open - 1);
  return crc16(key) % (1 << 14);
}

Status server_error(std::string_view text) {
  std::string word(first_word(text).substr(0, 32));
  for (char& c : word)
    if (c < 'A' || c > 'Z') c = '?';
  const auto io = [&](std::string_view what) {
    return error(Code::kIo, "the server says {}: {}", word, what);
  };
  if (word == "WRONGPASS") return io("user and password are not right");
  if (word == "NOAUTH")
    return io(
        "it wants a password; give it in the URL (redis://user:password@host), or in the environment's "
        "DROIDSPEAK_REDIS_PASSWORD");
  if (word == "NOPERM")
    return io(
        "this user has no right to that; 'ACL SETUSER' with ~ds:* +@read +@write +@connection "
        "+cluster|slots gives what is needed");
  if (word == "OOM")
    return error(Code::kExhausted,
                 "the server says OOM: its memory is full, and it may evict nothing (maxmemory, "
                 "maxmemory-policy); remove entries, or give it more");
  if (word == "WRONGTYPE")
    return error(Code::kCorrupt, "the server says WRONGTYPE: the key is somebody else's");
  if (word == "CLUSTERDOWN") return io("a part of the cluster is not there");
  if (word == "LOADING") return io("it is still loading its data");
  if (word == "READONLY") return io("it is a replica, give the master");
  return error(Code::kIo, "the server refuses the command ({})", word);
}

void RedisClient::Use::give_back() {
  if (connection_ == nullptr) return;
  if (connection_->settled()) {
    std::lock_guard lock(client_->mutex_);
    auto& idle = client_->nodes_[node_].idle;
    if (idle.size() < kMostIdle) idle.push_back(std::move(connection_));
  }
  connection_.reset();
}

RedisClient::RedisClient(RedisOptions options) : options_(std::move(options)) {
  for (const RedisHost& host : options_.hosts) node_at(host);
}

size_t RedisClient::node_at(const RedisHost& host) {
  for (size_t i = 0; i < nodes_.size(); ++i)
    if (nodes_[i].host == host) return i;
  // More than any cluster has: whoever names so many is no longer believed.
  if (nodes_.size() == kMostNodes) return 0;
  nodes_.emplace_back().host = host;
  nodes_.back().idle.reserve(kMostIdle);
  return nodes_.size() - 1;
}

std::string RedisClient::shown(size_t node) {
  std::lock_guard lock(mutex_);
  return fmt::format("redis{}://{}", options_.tls ? "s" : "", nodes_[node].host.text());
}

void RedisClient::lost(size_t node) {
  std::lock_guard lock(mutex_);
  nodes_[node].idle.clear();
  nodes_[node].lost_ns = now_ns();
  stale_ = true;
}

Result<RedisClient::Use> RedisClient::connection(size_t node, const Waiting& waiting, Which which) {
  RedisHost host;
  {
    std::lock_guard lock(mutex_);
    auto& idle = nodes_[node].idle;
    while (which == Which::kAny && !idle.empty()) {
      std::unique_ptr<RespConnection> connection = std::move(idle.back());
      idle.pop_back();
      if (connection->alive()) return Use(*this, node, std::move(connection), false);
    }
    host = nodes_[node].host;
  }
  auto wire = connect_wire(options_, host, waiting);
  if (!wire.ok()) {
    if (wire.status().code() == Code::kIo) lost(node);
    return wire.status();
  }
  auto connection = std::make_unique<RespConnection>(std::move(*wire), options_.timeout_s);
  const auto greet = [&]() -> Status {
    if (!options_.user.empty()) {
      connection->command({"AUTH", options_.user, options_.password});
    } else if (!options_.password.empty()) {
      connection->command({"AUTH", options_.password});
    }
    if (options_.db > 0) connection->command({"SELECT", std::to_string(options_.db)});
    DS_TRY(connection->flush());
    while (!connection->settled()) {
      DS_ASSIGN(Reply reply, connection->reply(waiting));
      if (reply.kind == Reply::Kind::kError) return server_error(reply.text);
    }
    return ok_status();
  };
  if (Status s = greet(); !s.ok()) {
    if (connection->lost()) lost(node);
    return s.with_context(shown(node));
  }
  return Use(*this, node, std::move(connection), true);
}

void RedisClient::unanswered(std::initializer_list<std::string_view> words) {
  constexpr int64_t kMostUnread = 256;  // whose replies wait in the socket
  std::unique_ptr<RespConnection> connection;
  size_t node = 0;
  {
    std::lock_guard lock(mutex_);
    node = slots_[key_slot(*(words.begin() + 1))];
    auto& idle = nodes_[node].idle;
    if (!known_ || idle.empty() || idle.back()->passed_over() > kMostUnread) return;
    connection = std::move(idle.back());
    idle.pop_back();
  }
  connection->unanswered(words);
  (void)connection->flush();
  Use given_back(*this, node, std::move(connection), false);
}

Result<size_t> RedisClient::node_of(size_t slot, const Waiting& waiting) {
  DS_TRY(discover(waiting));
  std::lock_guard lock(mutex_);
  return size_t{slots_[slot]};
}

Result<std::vector<size_t>> RedisClient::masters(const Waiting& waiting) {
  DS_TRY(discover(waiting));
  std::lock_guard lock(mutex_);
  std::vector<size_t> all(slots_.begin(), slots_.end());
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::optional<RedisClient::Redirection> RedisClient::redirection(std::string_view error, size_t from) {
  const std::string_view word = first_word(error);
  if (word == "CLUSTERDOWN" || word == "READONLY") {  // a slot that nobody has, or a master that is none now
    std::lock_guard lock(mutex_);
    stale_ = true;
    return std::nullopt;
  }
  const bool moved = word == "MOVED";
  if (!moved && word != "ASK") return std::nullopt;
  std::string_view rest = error.substr(word.size());
  size_t slot = 0;
  rest.remove_prefix(std::min<size_t>(1, rest.size()));
  const char* end = rest.data() + rest.size();
  const auto [number_end, failure] = std::from_chars(rest.data(), end, slot);
  if (failure != std::errc() || slot >= kSlots || number_end == end || *number_end != ' ')
    return std::nullopt;
  std::string where(number_end + 1, static_cast<size_t>(end - number_end - 1));
  std::lock_guard lock(mutex_);
  if (one_) return std::nullopt;
  if (where.starts_with(':')) where.insert(where.begin(), '?');  // the same host
  auto host = RedisHost::parse(where);
  if (!host) return std::nullopt;
  if (host->name == "?") host->name = nodes_[from].host.name;
  const size_t node = node_at(*host);
  if (moved) {
    slots_[slot] = static_cast<uint16_t>(node);
    stale_ = true;
  }
  return Redirection{node, !moved};
}

/// What CLUSTER SLOTS has said: whether it was that.
bool RedisClient::take_slots(const Reply& reply, size_t from) {
  if (reply.kind != Reply::Kind::kList || reply.list.empty()) return false;
  std::lock_guard lock(mutex_);
  for (const Reply& range : reply.list) {
    const auto& r = range.list;
    if (r.size() < 3 || r[0].kind != Reply::Kind::kInteger || r[1].kind != Reply::Kind::kInteger ||
        r[2].list.size() < 2 || r[2].list[1].kind != Reply::Kind::kInteger || r[0].integer < 0 ||
        r[1].integer >= static_cast<int64_t>(kSlots) || r[2].list[1].integer < 1 ||
        r[2].list[1].integer > 65535)
      return false;
    RedisHost host{r[2].list[0].text, static_cast<int>(r[2].list[1].integer)};
    if (host.name.empty() || host.name == "?") host.name = nodes_[from].host.name;
    // Through the same check as any other.
    const auto checked = RedisHost::parse(host.text());
    if (!checked) return false;
    const size_t node = node_at(*checked);
    for (int64_t slot = r[0].integer; slot <= r[1].integer; ++slot)
      slots_[static_cast<size_t>(slot)] = static_cast<uint16_t>(node);
    // Its replicas know as well who there is, and one of them may be master next.
    for (size_t i = 3; i < r.size(); ++i) {
      if (r[i].list.size() < 2 || r[i].list[0].text.empty()) continue;
      const auto replica = RedisHost::parse(fmt::format("{}:{}", r[i].list[0].text, r[i].list[1].integer));
      if (replica && replica->name != "?") node_at(*replica);
    }
  }
  return true;
}

Status RedisClient::discover(const Waiting& waiting) {
  {
    std::unique_lock lock(mutex_);
    while (true) {
      if (known_ && (!stale_ || one_ || now_ns() < next_discovery_ns_)) return ok_status();
      if (!std::exchange(discovering_, true)) break;
      discovered_.wait_for(lock, std::chrono::milliseconds(50));
      lock.unlock();
      if (waiting) DS_TRY(waiting());
      lock.lock();
    }
  }
  Status status = ask_for_slots(waiting);
  std::lock_guard lock(mutex_);
  next_discovery_ns_ = now_ns() + kBetweenDiscoveriesNs;
  discovering_ = false;
  discovered_.notify_all();
  return status;
}

Status RedisClient::ask_for_slots(const Waiting& waiting) {
  std::vector<size_t> ask;
  bool first_time = false;
  {
    std::lock_guard lock(mutex_);
    first_time = !known_;
    for (size_t i = 0; i < nodes_.size(); ++i) ask.push_back(i);
    // Those that were lost, and the latest of them, last.
    std::stable_sort(ask.begin(), ask.end(),
                     [&](size_t a, size_t b) { return nodes_[a].lost_ns < nodes_[b].lost_ns; });
  }
  Status first;
  const int64_t end = now_ns() + static_cast<int64_t>(options_.timeout_s * 1e9);
  for (size_t node : ask) {
    if (!first_time && now_ns() > end) break;  // of those that say nothing each takes its time
    const auto answer = [&]() -> Result<Reply> {
      DS_ASSIGN(Use use, connection(node, waiting));
      use->command({"CLUSTER", "SLOTS"});
      Status status = use->flush();
      Result<Reply> reply = status.ok() ? use->reply(waiting) : Result<Reply>(status);
      if (!reply.ok() && reply.status().code() == Code::kIo) lost(node);
      return reply;
    }();
    if (waiting) DS_TRY(waiting());
    if (!answer.ok()) {
      if (first.ok()) first = answer.status();
      continue;
    }
    if (take_slots(*answer, node)) {
      std::lock_guard lock(mutex_);
      known_ = true;
      stale_ = one_ = false;
      return ok_status();
    }
    if (answer->is_error("NOAUTH")) {
      if (first.ok()) first = server_error(answer->text).with_context(shown(node));
      continue;
    }
    if (!first_time) continue;
    // No cluster, or one whose slots this user may not ask for: then its redirections say it.
    std::lock_guard lock(mutex_);
    slots_.fill(static_cast<uint16_t>(node));
    one_ = answer->is_error("ERR");
    known_ = true;
    stale_ = false;
    return ok_status();
  }
  // Who is known already may still be there.
  return first_time ? first : ok_status();
}

Status RedisClient::send(Use& use, std::span<Command> commands, std::span<const Going> going) {
  std::vector<std::string_view> words;
  for (const Going& g : going) {
    const Command& c = commands[g.command];
    if (g.asking) use->command({"ASKING"});
    words.assign(c.words.begin(), c.words.end());
    if (c.last.empty()) {
      use->command(words);
    } else {
      DS_TRY(use->command(words, c.last));
    }
  }
  return use->flush();
}

Status RedisClient::run_at(size_t node, std::span<Command> commands, std::span<const Going> going,
                           std::optional<Use> use, std::vector<Going>& again, const Waiting& waiting) {
  bool began = false;
  const auto talk = [&]() -> Status {
    for (const Going& g : going) {
      if (g.asking) DS_TRY((*use)->reply(waiting));
      DS_ASSIGN(commands[g.command].reply, (*use)->reply(waiting));
      began = true;
      const Reply& reply = commands[g.command].reply;
      if (reply.kind != Reply::Kind::kError) continue;
      if (auto to = redirection(reply.text, node)) again.push_back({g.command, to->node, to->asking});
    }
    return ok_status();
  };
  Status status = talk();
  if (!status.ok() && status.code() == Code::kIo && !began && !use->fresh() && !(*use)->silent() &&
      (!waiting || waiting().ok())) {
    // It has been closed since it was last used.
    use.reset();
    DS_ASSIGN(use, connection(node, waiting, Which::kFresh));
    status = send(*use, commands, going);
    if (status.ok()) status = talk();
  }
  if (status.ok()) return status;
  if ((*use)->lost() && status.code() == Code::kIo) lost(node);
  return status.with_context(shown(node));
}

Status RedisClient::run_some(std::span<Command> commands, const Waiting& waiting, Status* why_lost) {
  DS_TRY(discover(waiting));
  const auto missed = [&](const std::vector<Going>& its, Status status) -> Status {
    if (why_lost == nullptr || status.code() != Code::kIo || (waiting && !waiting().ok())) return status;
    for (const Going& g : its)
      commands[g.command].reply = {.kind = Reply::Kind::kError, .text = std::string(kLost)};
    if (why_lost->ok()) *why_lost = std::move(status);
    return ok_status();
  };
  std::vector<Going> going(commands.size()), again;
  {
    std::lock_guard lock(mutex_);
    for (size_t i = 0; i < commands.size(); ++i) going[i] = {i, slots_[key_slot(commands[i].words.at(1))]};
  }
  for (int turn = 0; turn <= kMostRedirections; ++turn) {
    std::map<size_t, std::vector<Going>> by_node;
    for (const Going& g : going) by_node[g.node].push_back(g);
    // All are at work before any is waited for.
    std::vector<std::optional<Use>> uses;
    for (auto& [node, its] : by_node) {
      auto use = connection(node, waiting);
      Status status = use.status();
      if (use.ok()) {
        // Of one that had been there before it is seen when its replies are read.
        if (Status s = send(*use, commands, its); !s.ok() && use->fresh()) {
          lost(node);
          status = s.with_context(shown(node));
        }
      }
      uses.emplace_back();
      if (status.ok()) {
        uses.back().emplace(std::move(*use));
      } else {
        DS_TRY(missed(its, std::move(status)));
      }
    }
    again.clear();
    size_t at = 0;
    for (auto& [node, its] : by_node) {
      auto& use = uses[at++];
      if (!use) continue;
      if (Status s = run_at(node, commands, its, std::move(use), again, waiting); !s.ok())
        DS_TRY(missed(its, std::move(s)));
    }
    if (again.empty()) return ok_status();
    std::swap(going, again);
  }
  return error(Code::kIo, "{}: redirected more than {} times", shown(going[0].node), kMostRedirections);
}

Status RedisClient::run(std::span<Command> commands, const Waiting& waiting, Status* lost) {
  while (!commands.empty()) {
    const auto some = commands.first(std::min(commands.size(), kMostAtOnce));
    DS_TRY(run_some(some, waiting, lost));
    commands = commands.subspan(some.size());
  }
  return ok_status();
}

}  // namespace ds
