// A connection without TLS, as the HTTP library reads and writes it. The library's own asks the system
// whether it may write before each write, and idle connections look for a next request a hundred times a
// second.
#pragma once

#include <httplib.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace ds {

class PlainStream : public httplib::Stream {
 public:
  PlainStream(socket_t socket, time_t read_s, time_t write_s) : socket_(socket) {
    const timeval read{read_s, 0}, write{write_s, 0};
    (void)setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &read, sizeof read);
    (void)setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &write, sizeof write);
  }
  /// Whether something is there to be read, or the other end has gone, within so long.
  bool wait(int ms) const {
    pollfd ready{socket_, POLLIN, 0};
    return from_ < to_ || ::poll(&ready, 1, ms) > 0;
  }

  bool is_readable() const override { return wait(0); }
  bool is_writable() const override { return true; }  // write() says
  ssize_t read(char* to, size_t size) override {
    if (from_ == to_) {
      ssize_t n = 0;
      do n = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
      while (n < 0 && errno == EINTR);
      if (n <= 0) return n;
      from_ = 0;
      to_ = static_cast<size_t>(n);
    }
    const size_t n = std::min(size, to_ - from_);
    std::memcpy(to, buffer_.data() + from_, n);
    from_ += n;
    return static_cast<ssize_t>(n);
  }
  ssize_t write(const char* from, size_t size) override {
    ssize_t n = 0;
    do n = ::send(socket_, from, size, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n;
  }
  void get_remote_ip_and_port(std::string& ip, int& port) const override { name(::getpeername, ip, port); }
  void get_local_ip_and_port(std::string& ip, int& port) const override { name(::getsockname, ip, port); }
  socket_t socket() const override { return socket_; }

 private:
  template <typename Get>
  void name(Get get, std::string& ip, int& port) const {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    char host[NI_MAXHOST] = "", service[NI_MAXSERV] = "";
    auto* of = reinterpret_cast<sockaddr*>(&address);
    if (get(socket_, of, &size) != 0 || ::getnameinfo(of, size, host, sizeof host, service, sizeof service,
                                                      NI_NUMERICHOST | NI_NUMERICSERV) != 0)
      return;
    ip = host;
    port = std::atoi(service);
  }

  const socket_t socket_;
  std::array<char, 1 << 14> buffer_;
  size_t from_ = 0, to_ = 0;
};

}  // namespace ds
