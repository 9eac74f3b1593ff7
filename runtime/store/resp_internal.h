// The protocol of Redis and Valkey (RESP2), of the client's side, over one connection.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/store/wire_internal.h"
#include "support/status.h"

namespace ds {

struct Reply {
  enum class Kind { kNone, kText, kError, kInteger, kList };
  Kind kind = Kind::kNone;  // kNone: there is no such value
  std::string text;         // of kText and kError
  int64_t integer = 0;
  std::vector<Reply> list;
  bool is_error(std::string_view word) const {
    return kind == Kind::kError && (text == word || text.starts_with(std::string(word) + " "));
  }
};

/// What came instead of, or as, a value of a known size.
struct BulkReply {
  enum class Kind { kWhole, kNone, kOther, kError };
  Kind kind = Kind::kNone;
  int64_t bytes = 0;  // of kOther: the value's
  std::string error;
};

/// Commands may be sent ahead of their replies; replies are read in that order. One thread at a time.
/// Whatever cannot be understood, and whatever has been read in part only, leaves it lost(): it is of no
/// more use. A server's word is bounded before anything is allocated for it.
class RespConnection {
 public:
  static constexpr int64_t kMostBytes = 2 << 20;    // of the texts of one reply that is kept, all together
  static constexpr int64_t kMostReplies = 1 << 17;  // in one reply

  RespConnection(std::unique_ptr<Wire> wire, double timeout_s);

  /// Puts a command into the queue; flush() sends it.
  void command(std::initializer_list<std::string_view> words);
  void command(std::span<const std::string_view> words);
  /// The same with one more word, which is sent from where it is before this returns.
  Status command(std::span<const std::string_view> words, std::span<const std::byte> last);
  /// The same as the first, and its reply is passed over, whatever it is. Only while nothing else is due.
  void unanswered(std::initializer_list<std::string_view> words);
  /// kIo: the connection is gone, or takes nothing for the timeout.
  Status flush();

  /// kIo: the connection is gone, or silent for the timeout; kCorrupt: no RESP.
  Result<Reply> reply(const Waiting& waiting = {});
  /// A value of just `out.size()` bytes is read to there, `arrived` told of its parts (and of none while none
  /// come); any other is passed over. Fails as reply() does, or as `arrived` did.
  Status bulk(std::span<std::byte> out, const std::function<Status(std::span<const std::byte>)>& arrived,
              BulkReply& reply);
  bool lost() const { return lost_; }
  bool silent() const { return silent_; }  // lost because nothing came, or went, for the timeout
  /// Whether somebody else may use it: nothing is due but what is passed over.
  bool settled() const { return !lost_ && due_ == passed_over_ && queue_.empty(); }
  bool alive() { return wire_->alive(); }
  int64_t passed_over() const { return passed_over_; }

 private:
  template <typename... A>
  Status no_resp(fmt::format_string<A...> format, A&&... args);
  Status receive(std::span<std::byte> out, bool fill, size_t& got, const Waiting& waiting);
  Status send(std::span<const std::byte> bytes);
  Result<std::string_view> line(const Waiting& waiting);
  Result<int64_t> number(std::string_view text);
  Status exactly(std::span<std::byte> out, const Waiting& waiting);
  Status line_end(const Waiting& waiting);
  Status pass_over(const Waiting& waiting);
  Status read(Reply& reply, int depth, int64_t& bytes, int64_t& replies, const Waiting& waiting);

  std::unique_ptr<Wire> wire_;
  const int64_t timeout_ns_;
  bool lost_ = false, silent_ = false;
  int64_t due_ = 0;          // replies
  int64_t passed_over_ = 0;  // of them: these come first
  std::string queue_;
  std::array<char, 4096> in_;
  size_t begin_ = 0, end_ = 0;  // of what is in it
};

}  // namespace ds
