// What a Redis store's reads move beside the barest loop that keeps as many values under way: the same
// server, values of the same size, one connection, GETs sent DEPTH ahead, what comes read into one buffer and
// not looked at.
//
// redis_loop_bench HOST PORT [MIB [ROUNDS [DEPTH]]]: a server without password; what it writes it removes
// again.
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/program.h"
#include "runtime/store/store.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kValue = int64_t{1} << 20,
                  kRead = int64_t{4} << 20;  // as a store's parts, and its readers' reads

class Loop {
 public:
  Loop(const char* host, const char* port) {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host, port, &hints, &found) != 0) fail("no such host");
    fd_ = socket(found->ai_family, SOCK_STREAM, 0);
    if (fd_ < 0 || connect(fd_, found->ai_addr, found->ai_addrlen) != 0) fail("cannot connect");
    freeaddrinfo(found);
    const int on = 1;
    (void)setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  ~Loop() { close(fd_); }
  Loop(const Loop&) = delete;

  void send(const std::string& bytes) const {
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t sent = ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL);
      if (sent <= 0) fail("the server has gone");
      at += static_cast<size_t>(sent);
    }
  }
  void receive(char* to, size_t bytes) const {
    for (size_t at = 0; at < bytes;) {
      const ssize_t got = recv(fd_, to + at, bytes - at, 0);
      if (got <= 0) fail("the server has gone");
      at += static_cast<size_t>(got);
    }
  }
  void set(int64_t i, const std::string& value) const {
    const std::string key = key_of(i);
    send(fmt::format("*3\r\n$3\r\nSET\r\n${}\r\n{}\r\n${}\r\n{}\r\n", key.size(), key, value.size(), value));
    char answer[5];
    receive(answer, sizeof answer);
    if (std::memcmp(answer, "+OK\r\n", sizeof answer) != 0) fail("the server keeps no values");
  }
  void forget(int64_t i) const {
    const std::string key = key_of(i);
    send(fmt::format("*2\r\n$6\r\nUNLINK\r\n${}\r\n{}\r\n", key.size(), key));
    char answer[4];
    receive(answer, sizeof answer);
  }
  /// Values 0 to count - 1, one after the other, `depth` of them under way.
  void read(int64_t count, int64_t depth, char* to) const {
    const std::string head = fmt::format("${}\r\n", kValue);
    char said[32];
    int64_t asked = 0;
    for (int64_t i = 0; i < count; ++i) {
      for (; asked < std::min(count, i + depth); ++asked) {
        const std::string key = key_of(asked);
        send(fmt::format("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", key.size(), key));
      }
      receive(said, head.size());
      if (head.compare(0, head.size(), said, head.size()) != 0) fail("a value is not there");
      receive(to, kValue);
      receive(said, 2);
    }
  }

 private:
  static std::string key_of(int64_t i) { return fmt::format("bench:loop:{}", i); }
  int fd_ = -1;
};

int run(const char* host, const char* port, int64_t mib, int64_t rounds, int64_t depth) {
  const Loop loop(host, port);
  auto store = take(open_store(fmt::format("redis://{}:{}?prefix=bench:store:", host, port)));
  std::string value(static_cast<size_t>(kValue), 'x');
  for (int64_t i = 0; i < mib; ++i) loop.set(i, value);
  const Status put = store->put("object", [&](const Store::Sink& sink) -> Status {
    for (int64_t i = 0; i < mib; ++i) DS_TRY(sink(std::as_bytes(std::span(value))));
    return ok_status();
  });
  if (!put.ok()) fail(put.message());
  std::vector<std::byte> to(static_cast<size_t>(kRead));
  std::vector<double> bare, ours, ratios;
  for (int64_t round = -1; round < rounds; ++round) {  // the first warms up
    const int64_t start = now_ns();
    loop.read(mib, depth, reinterpret_cast<char*>(to.data()));
    const int64_t middle = now_ns();
    auto object = take(store->open("object"));
    for (int64_t at = 0; at < object->size(); at += kRead) {
      const auto piece = std::span(to).first(static_cast<size_t>(std::min(kRead, object->size() - at)));
      if (Status s = object->read(at, piece); !s.ok()) fail(s.message());
    }
    const int64_t end = now_ns();
    if (round < 0) continue;
    const double bytes = static_cast<double>(mib * kValue);
    bare.push_back(bytes / static_cast<double>(middle - start));
    ours.push_back(bytes / static_cast<double>(end - middle));
    ratios.push_back(100 * ours.back() / bare.back());
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf(
      "%lld MiB, %lld rounds in turns, medians: loop of %lld under way %.2f GB/s, store %.2f GB/s, %.0f %% "
      "of it (middle half %.0f to %.0f)\n",
      static_cast<long long>(mib), static_cast<long long>(rounds), static_cast<long long>(depth),
      median(bare), median(ours), median(ratios), ratios[ratios.size() / 4], ratios[ratios.size() * 3 / 4]);
  for (int64_t i = 0; i < mib; ++i) loop.forget(i);
  (void)store->remove("object");
  return 0;
}

}  // namespace
}  // namespace ds

int main(int argc, char** argv) {
  const ds::Arguments given(argc, argv, 2, 5, "HOST PORT [MIB [ROUNDS [DEPTH]]]");
  return ds::run(given[0], given[1], given.number(2, 256), given.number(3, 15), given.number(4, 4));
}
