#include "tools/ds-bench/sse_clients.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>
#include <string_view>

#include "support/clock.h"

namespace ds {
namespace {

struct Connection {
  int socket = -1;
  size_t request = 0;
  bool busy = false;
  int64_t due_ns = 0;
  std::string text;  // of the answer so far
  size_t seen = 0;   // of it
};

int64_t own_processor_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec;
}

class SseClients {
 public:
  SseClients(int port, const std::vector<std::string>& bodies) : port_(port), bodies_(bodies) {
    run_.answers.resize(bodies.size());
  }
  ~SseClients() {
    for (const Connection& c : connections_)
      if (c.socket >= 0) close(c.socket);
  }

  Result<SseRun> run(int64_t clients, const std::vector<double>& at_s) {
    const int64_t start = now_ns(), used = own_processor_ns();
    size_t next = 0, done = 0;
    auto due = [&](size_t i) { return at_s.empty() ? now_ns() : start + std::llround(at_s[i] * 1e9); };
    while (done < bodies_.size()) {
      while (next < bodies_.size() &&
             (at_s.empty() ? static_cast<int64_t>(next - done) < clients : now_ns() >= due(next))) {
        DS_TRY(send_request(next, due(next)));
        ++next;
      }
      std::vector<pollfd> waiting;
      std::vector<size_t> of;
      for (size_t i = 0; i < connections_.size(); ++i)
        if (connections_[i].busy) {
          waiting.push_back({connections_[i].socket, POLLIN, 0});
          of.push_back(i);
        }
      timespec most{60, 0};
      if (!at_s.empty() && next < bodies_.size()) {
        const int64_t left = std::max<int64_t>(0, due(next) - now_ns());
        most = {left / 1'000'000'000, left % 1'000'000'000};
      }
      if (ppoll(waiting.data(), waiting.size(), &most, nullptr) < 0 && errno != EINTR)
        return error(Code::kIo, "waiting for answers: {}", std::strerror(errno));
      for (size_t i = 0; i < waiting.size(); ++i)
        if (waiting[i].revents != 0 && read(connections_[of[i]])) ++done;
    }
    run_.processor_ns = own_processor_ns() - used;
    return std::move(run_);
  }

 private:
  Status send_request(size_t request, int64_t due_ns) {
    auto at = std::find_if(connections_.begin(), connections_.end(), [](const auto& c) { return !c.busy; });
    if (at == connections_.end()) at = connections_.emplace(at);
    Connection& c = *at;
    // One that the server has closed since it was last used, as connection pools look.
    if (char byte; c.socket >= 0 && recv(c.socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) {
      close(c.socket);
      c.socket = -1;
    }
    if (c.socket < 0) {
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_port = htons(static_cast<uint16_t>(port_));
      to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      c.socket = socket(AF_INET, SOCK_STREAM, 0);
      const int yes = 1;
      (void)setsockopt(c.socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
      if (c.socket < 0 || connect(c.socket, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0)
        return error(Code::kIo, "connecting to port {}: {}", port_, std::strerror(errno));
    }
    const std::string& body = bodies_[request];
    const std::string text = fmt::format(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: {}\r\n\r\n{}",
        body.size(), body);
    c.request = request;
    c.busy = true;
    c.due_ns = due_ns;
    c.text.clear();
    c.seen = 0;
    for (size_t sent = 0; sent < text.size();) {
      const ssize_t n = send(c.socket, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return error(Code::kIo, "sending a request: {}", std::strerror(errno));
      sent += static_cast<size_t>(n);
    }
    return ok_status();
  }

  /// Whether the connection's request has ended.
  bool read(Connection& c) {
    char part[1 << 16];
    const ssize_t n = recv(c.socket, part, sizeof part, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    SseAnswer& answer = run_.answers[c.request];
    if (n > 0) {
      c.text.append(part, static_cast<size_t>(n));
      count_tokens(c, answer);
    }
    const std::string_view text = c.text;
    const bool right = text.substr(0, 12) == "HTTP/1.1 200";
    const bool whole = right && text.ends_with("0\r\n\r\n") && text.find("data: [DONE]") != text.npos;
    if (n > 0 && !whole && (right || text.size() < 12)) return false;
    answer.good = whole && !answer.token_ns.empty();
    constexpr std::string_view kTtft = "\"ttft_ms\":";
    if (const size_t at = text.rfind(kTtft); answer.good && at != text.npos)
      answer.engine_ttft_ms = std::strtod(c.text.c_str() + at + kTtft.size(), nullptr);
    c.busy = false;
    if (!whole) {  // whatever is left of it is nobody's
      close(c.socket);
      c.socket = -1;
    }
    return true;
  }

  /// Those of the events that have come.
  static void count_tokens(Connection& c, SseAnswer& answer) {
    constexpr std::string_view kIds = "\"token_ids\":[";
    const int64_t now = now_ns() - c.due_ns;
    for (;;) {
      const size_t at = c.text.find(kIds, c.seen);
      const size_t end = at == c.text.npos ? at : c.text.find(']', at);
      if (end == c.text.npos) return;
      const auto first = c.text.begin() + static_cast<int64_t>(at + kIds.size()),
                 last = c.text.begin() + static_cast<int64_t>(end);
      c.seen = end;
      if (first == last) continue;
      answer.token_ns.insert(answer.token_ns.end(), static_cast<size_t>(std::count(first, last, ',') + 1),
                             now);
    }
  }

  const int port_;
  const std::vector<std::string>& bodies_;
  std::vector<Connection> connections_;
  SseRun run_;
};

}  // namespace

Result<SseRun> run_sse_clients(int port, const std::vector<std::string>& bodies, int64_t clients,
                               const std::vector<double>& at_s) {
  return SseClients(port, bodies).run(clients, at_s);
}

}  // namespace ds
