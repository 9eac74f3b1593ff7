// Commands to a Redis or Valkey server, or to the masters of a cluster.
#pragma once

#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/store/redis_url_internal.h"
#include "runtime/store/resp_internal.h"
#include "support/status.h"

namespace ds {

/// Which of a cluster's slots a key is in: of what stands between its first '{' and the '}' behind that.
size_t key_slot(std::string_view key);

/// What a server's error says, by its first word alone: the rest may repeat what it was sent. kExhausted: its
/// memory is full.
Status server_error(std::string_view text);

/// Thread-safe. Connections are kept for the next who needs one. Errors: kIo, kExhausted, kCorrupt (no RESP).
class RedisClient {
 public:
  explicit RedisClient(RedisOptions options);

  const RedisOptions& options() const { return options_; }
  /// Before anything is asked: RedisOptions::timeout_s is that at the most.
  void set_patience(double seconds) { options_.timeout_s = std::min(options_.timeout_s, seconds); }

  struct Command {
    std::vector<std::string> words;        // the second one is the key
    std::span<const std::byte> last = {};  // one word more, where it is not empty
    Reply reply = {};
  };
  /// Sends all at once, to whichever servers have their keys, and fills the replies in, errors of servers
  /// among them. Follows redirections. Each goes to a server once, but for a connection that was lost before
  /// anything came back; all of them may be done twice. With `lost`, those for a server that is not there
  /// fail by themselves: their replies are errors, kLost, and why is left there.
  Status run(std::span<Command> commands, const Waiting& waiting = {}, Status* lost = nullptr);
  static constexpr std::string_view kLost = "LOST";

  /// A connection of one user; the next may have it afterwards, unless it is lost or replies are due.
  class Use {
   public:
    Use(RedisClient& client, size_t node, std::unique_ptr<RespConnection> connection, bool fresh)
        : client_(&client), node_(node), connection_(std::move(connection)), fresh_(fresh) {}
    Use(Use&&) = default;
    Use& operator=(Use&& other) noexcept {
      give_back();
      client_ = other.client_;
      node_ = other.node_;
      connection_ = std::move(other.connection_);
      fresh_ = other.fresh_;
      return *this;
    }
    ~Use() { give_back(); }
    RespConnection* operator->() const { return connection_.get(); }
    size_t node() const { return node_; }
    bool fresh() const { return fresh_; }  // nobody had it before

   private:
    void give_back();
    RedisClient* client_;
    size_t node_;
    std::unique_ptr<RespConnection> connection_;
    bool fresh_;
  };
  enum class Which : uint8_t { kAny, kFresh };
  Result<Use> connection(size_t node, const Waiting& waiting, Which which = Which::kAny);
  /// Sent if a connection to the key's server is free; nobody waits for an answer.
  void unanswered(std::initializer_list<std::string_view> words);

  /// Whom a slot's keys are asked of; finds out who there is, the first time, and once a second at the most
  /// after somebody was lost, a slot has moved, or the cluster has said that a part of it is not there: of
  /// any node that answers, replicas too.
  Result<size_t> node_of(size_t slot, const Waiting& waiting);
  Result<std::vector<size_t>> masters(const Waiting& waiting);
  struct Redirection {
    size_t node = 0;
    bool asking = false;  // this once only, with ASKING in front
  };
  /// Where an error of `from` sends a command; none: it is no redirection. Notes what it says of the cluster.
  std::optional<Redirection> redirection(std::string_view error, size_t from);
  /// A connection to it was lost, or cannot be made.
  void lost(size_t node);
  /// "redis://host:port", for messages.
  std::string shown(size_t node);

  static constexpr int kMostRedirections = 8;

 private:
  struct Node {
    RedisHost host;
    std::vector<std::unique_ptr<RespConnection>> idle;
    int64_t lost_ns = 0;
  };
  struct Going {
    size_t command = 0, node = 0;
    bool asking = false;
  };
  static constexpr size_t kMostIdle = 16, kMostNodes = 1024, kMostAtOnce = 1 << 14;
  static constexpr size_t kSlots = 1 << 14;

  Status discover(const Waiting& waiting);
  Status ask_for_slots(const Waiting& waiting);
  bool take_slots(const Reply& reply, size_t from);
  size_t node_at(const RedisHost& host);  // mutex_ is held
  Status send(Use& use, std::span<Command> commands, std::span<const Going> going);
  Status run_some(std::span<Command> commands, const Waiting& waiting, Status* why_lost);
  Status run_at(size_t node, std::span<Command> commands, std::span<const Going> going,
                std::optional<Use> use, std::vector<Going>& again, const Waiting& waiting);

  RedisOptions options_;
  std::mutex mutex_;  // of what follows
  std::condition_variable discovered_;
  bool discovering_ = false;  // somebody asks who there is
  std::deque<Node> nodes_;
  std::array<uint16_t, kSlots> slots_{};
  bool known_ = false, stale_ = false;
  bool one_ = false;  // a server that has said that it is no cluster's: it redirects nobody
  int64_t next_discovery_ns_ = 0;
};

}  // namespace ds
