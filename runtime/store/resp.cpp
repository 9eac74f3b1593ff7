#include "runtime/store/resp_internal.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <utility>

#include "runtime/store/store_internal.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int kMostDepth = 8;
constexpr int64_t kMostBulk = int64_t{1} << 30;  // passed over; a server's own limit is 512 MiB

/// Of a server, for a message.
std::string shown(std::string_view text) {
  std::string out;
  for (char c : text.substr(0, 60)) out += c >= 32 && c < 127 ? c : '?';
  return out;
}

}  // namespace

RespConnection::RespConnection(std::unique_ptr<Wire> wire, double timeout_s)
    : wire_(std::move(wire)), timeout_ns_(static_cast<int64_t>(timeout_s * 1e9)) {
  queue_.reserve(4096);
}

template <typename... A>
Status RespConnection::no_resp(fmt::format_string<A...> format, A&&... args) {
  lost_ = true;
  return error(Code::kCorrupt, "the server does not speak Redis' protocol: {}",
               fmt::format(format, std::forward<A>(args)...));
}

void RespConnection::command(std::span<const std::string_view> words) {
  fmt::format_to(std::back_inserter(queue_), "*{}\r\n", words.size());
  for (std::string_view word : words) {
    fmt::format_to(std::back_inserter(queue_), "${}\r\n", word.size());
    queue_.append(word).append("\r\n");
  }
  ++due_;
}

void RespConnection::command(std::initializer_list<std::string_view> words) {
  command(std::span(words.begin(), words.size()));
}

Status RespConnection::command(std::span<const std::string_view> words, std::span<const std::byte> last) {
  fmt::format_to(std::back_inserter(queue_), "*{}\r\n", words.size() + 1);
  for (std::string_view word : words)
    fmt::format_to(std::back_inserter(queue_), "${}\r\n{}\r\n", word.size(), word);
  fmt::format_to(std::back_inserter(queue_), "${}\r\n", last.size());
  ++due_;
  DS_TRY(flush());
  DS_TRY(send(last));
  queue_.append("\r\n");
  return ok_status();
}

void RespConnection::unanswered(std::initializer_list<std::string_view> words) {
  command(words);
  ++passed_over_;
}

Status RespConnection::flush() {
  DS_TRY(send(std::as_bytes(std::span(queue_.data(), queue_.size()))));
  queue_.clear();
  return ok_status();
}

Status RespConnection::send(std::span<const std::byte> bytes) {
  if (lost_) return error(Code::kIo, "the connection is lost");
  for (int64_t since = now_ns(); !bytes.empty();) {
    auto put = wire_->send(bytes);
    if (!put.ok()) {
      lost_ = true;
      return put.status();
    }
    if (*put == 0 && now_ns() - since > timeout_ns_) {
      lost_ = silent_ = true;
      return error(Code::kIo, "the server has taken nothing for {} s",
                   static_cast<double>(timeout_ns_) / 1e9);
    }
    if (*put == 0) continue;
    bytes = bytes.subspan(*put);
    since = now_ns();
  }
  return ok_status();
}

Status RespConnection::receive(std::span<std::byte> out, bool fill, size_t& got, const Waiting& waiting) {
  if (lost_) return error(Code::kIo, "the connection is lost");
  for (const int64_t since = now_ns();;) {
    auto received = wire_->receive(out, fill);
    if (!received.ok()) {
      lost_ = true;
      return received.status();
    }
    got = *received;
    if (got > 0) return ok_status();
    if (waiting) {
      if (Status s = waiting(); !s.ok()) {
        lost_ = true;
        return s;
      }
    }
    if (now_ns() - since > timeout_ns_) {
      lost_ = silent_ = true;
      return error(Code::kIo, "the server has said nothing for {} s", static_cast<double>(timeout_ns_) / 1e9);
    }
  }
}

/// Until the next line's end, which the view leaves out; good until anything else is read.
Result<std::string_view> RespConnection::line(const Waiting& waiting) {
  for (size_t looked = begin_;;) {
    const char* found = static_cast<const char*>(std::memchr(in_.data() + looked, '\n', end_ - looked));
    if (found != nullptr) {
      std::string_view line(in_.data() + begin_, static_cast<size_t>(found - in_.data()) - begin_);
      if (!line.ends_with('\r')) return no_resp("a line ends without CR: '{}'", shown(line));
      begin_ += line.size() + 1;
      line.remove_suffix(1);
      return line;
    }
    looked = end_;
    if (begin_ > 0) {
      std::memmove(in_.data(), in_.data() + begin_, end_ - begin_);
      looked -= begin_;
      end_ -= begin_;
      begin_ = 0;
    }
    if (end_ == in_.size()) return no_resp("a line of more than {} bytes", in_.size());
    size_t got = 0;
    DS_TRY(receive(std::as_writable_bytes(std::span(in_)).subspan(end_), false, got, waiting));
    end_ += got;
  }
}

Result<int64_t> RespConnection::number(std::string_view text) {
  int64_t value = 0;
  auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (failure != std::errc() || end != text.data() + text.size())
    return no_resp("'{}' is to be a whole number", shown(text));
  return value;
}

Status RespConnection::exactly(std::span<std::byte> out, const Waiting& waiting) {
  const size_t have = std::min(out.size(), end_ - begin_);
  if (have > 0) std::memcpy(out.data(), in_.data() + begin_, have);
  begin_ += have;
  for (out = out.subspan(have); !out.empty();) {
    size_t got = 0;
    DS_TRY(receive(out, true, got, waiting));
    out = out.subspan(got);
  }
  return ok_status();
}

Status RespConnection::line_end(const Waiting& waiting) {
  DS_ASSIGN(std::string_view rest, line(waiting));
  if (!rest.empty()) return no_resp("'{}' behind a value, expected its line's end", shown(rest));
  return ok_status();
}

Status RespConnection::read(Reply& r, int depth, int64_t& bytes, int64_t& replies, const Waiting& waiting) {
  DS_ASSIGN(std::string_view text, line(waiting));
  if (text.empty()) return no_resp("an empty line, expected a reply");
  const char kind = text[0];
  text.remove_prefix(1);
  if (kind == '+' || kind == '-') {
    r.kind = kind == '+' ? Reply::Kind::kText : Reply::Kind::kError;
    r.text = text;
    bytes -= static_cast<int64_t>(text.size());
    return bytes < 0 ? no_resp("a reply of more than {} bytes", kMostBytes) : ok_status();
  }
  if (kind != ':' && kind != '$' && kind != '*')
    return no_resp("a reply begins with '{}'", shown(std::string_view(&kind, 1)));
  DS_ASSIGN(const int64_t value, number(text));
  if (kind == ':') {
    r.kind = Reply::Kind::kInteger;
    r.integer = value;
    return ok_status();
  }
  if (value == -1) return ok_status();  // kNone
  if (kind == '$') {
    if (value < 0 || value > bytes)
      return no_resp("a value of {} bytes where at most {} are due", value, bytes);
    bytes -= value;
    r.kind = Reply::Kind::kText;
    r.text.resize(static_cast<size_t>(value));
    DS_TRY(exactly(std::as_writable_bytes(std::span(r.text)), waiting));
    return line_end(waiting);
  }
  replies -= std::max<int64_t>(value, 0);
  if (value < 0 || replies < 0 || depth == kMostDepth)
    return no_resp("a list of {} replies at depth {}, expected at most {} to depth {}", value, depth,
                   kMostReplies, kMostDepth);
  r.kind = Reply::Kind::kList;
  // As they come, so that a number alone takes no memory.
  for (int64_t i = 0; i < value; ++i) DS_TRY(read(r.list.emplace_back(), depth + 1, bytes, replies, waiting));
  return ok_status();
}

Status RespConnection::pass_over(const Waiting& waiting) {
  while (passed_over_ > 0) {
    Reply unused;
    int64_t bytes = kMostBytes, replies = kMostReplies;
    DS_TRY(read(unused, 0, bytes, replies, waiting));
    --passed_over_;
    --due_;
  }
  return ok_status();
}

Result<Reply> RespConnection::reply(const Waiting& waiting) {
  DS_TRY(pass_over(waiting));
  Reply r;
  int64_t bytes = kMostBytes, replies = kMostReplies;
  DS_TRY(read(r, 0, bytes, replies, waiting));
  --due_;
  return r;
}

Status RespConnection::bulk(std::span<std::byte> out,
                            const std::function<Status(std::span<const std::byte>)>& arrived,
                            BulkReply& reply) {
  const auto asked = [&] { return arrived({}); };
  const Waiting waiting = std::ref(asked);  // so small that nothing is allocated for it
  DS_TRY(pass_over(waiting));
  DS_ASSIGN(std::string_view text, line(waiting));
  const char kind = text.empty() ? ' ' : text[0];
  if (kind == '-') {
    reply.kind = BulkReply::Kind::kError;
    reply.error = text.substr(1);
    --due_;
    return ok_status();
  }
  if (kind != '$') return no_resp("a reply begins with '{}' where a value is due", shown(text.substr(0, 1)));
  DS_ASSIGN(const int64_t bytes, number(text.substr(1)));
  if (bytes == -1) {
    reply.kind = BulkReply::Kind::kNone;
    --due_;
    return ok_status();
  }
  if (bytes < 0 || bytes > kMostBulk) return no_resp("a value of {} bytes", bytes);
  const bool whole = bytes == static_cast<int64_t>(out.size());
  reply.kind = whole ? BulkReply::Kind::kWhole : BulkReply::Kind::kOther;
  reply.bytes = bytes;
  if (!whole) {
    if (bytes > static_cast<int64_t>(in_.size())) {  // cheaper to begin anew than to pass it over
      lost_ = true;
      return ok_status();
    }
    std::array<std::byte, 4096> unused;
    DS_TRY(exactly(std::span(unused).first(static_cast<size_t>(bytes)), waiting));
  } else {
    while (!out.empty()) {
      size_t got = std::min({out.size(), end_ - begin_, kReadPart});
      if (got > 0) {
        std::memcpy(out.data(), in_.data() + begin_, got);
        begin_ += got;
      }
      if (const size_t part = std::min(out.size(), kReadPart); got < part) {
        size_t more = 0;
        DS_TRY(receive(out.subspan(got, part - got), true, more, waiting));
        got += more;
      }
      if (Status s = arrived(out.first(got)); !s.ok()) {
        lost_ = true;
        return s;
      }
      out = out.subspan(got);
    }
  }
  DS_TRY(line_end(waiting));
  --due_;
  return ok_status();
}

}  // namespace ds
