// Whether the other end of a connection has gone away while its request is worked on.
#pragma once

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstdlib>
#include <string>

namespace ds {

/// With TLS the HTTP library does not tell a handler its socket: it is found by the peer's address, which is
/// the request's own as long as its handler runs.
class PeerWatch {
 public:
  /// `socket`: -1: it is to be found.
  PeerWatch(std::string address, int port, int socket)
      : address_(std::move(address)), port_(port), fd_(socket), looked_(socket >= 0) {}

  bool gone() {
    if (!looked_) fd_ = find();
    looked_ = true;
    if (fd_ < 0) return false;
    pollfd poll_fd{fd_, POLLRDHUP, 0};
    return ::poll(&poll_fd, 1, 0) > 0 && (poll_fd.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
  }

 private:
  int find() const {
    DIR* folder = opendir("/proc/self/fd");
    if (folder == nullptr) return -1;
    int found = -1;
    while (dirent* entry = readdir(folder)) {
      const int fd = std::atoi(entry->d_name);
      sockaddr_storage peer{};
      socklen_t size = sizeof(peer);
      if (fd <= 2 || getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
      char text[INET6_ADDRSTRLEN] = "";
      int port = -1;
      if (peer.ss_family == AF_INET) {
        const auto* in = reinterpret_cast<const sockaddr_in*>(&peer);
        inet_ntop(AF_INET, &in->sin_addr, text, sizeof(text));
        port = ntohs(in->sin_port);
      } else if (peer.ss_family == AF_INET6) {
        const auto* in = reinterpret_cast<const sockaddr_in6*>(&peer);
        inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof(text));
        port = ntohs(in->sin6_port);
      }
      if (port == port_ && address_ == text) found = fd;
    }
    closedir(folder);
    return found;
  }

  std::string address_;
  int port_ = -1, fd_ = -1;
  bool looked_ = false;
};

}  // namespace ds
