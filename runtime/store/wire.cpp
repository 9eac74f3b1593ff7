#include "runtime/store/wire_internal.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>

#include "support/clock.h"

namespace ds {
namespace {

constexpr timeval kTick{0, 50'000};

std::string text_of(int number) { return std::generic_category().message(number); }

/// One that a signal's default would end the process for (SIGPIPE) is none that it may make: MSG_NOSIGNAL.
class Tcp : public Wire {
 public:
  explicit Tcp(int fd) : fd_(fd) {}
  Tcp(const Tcp&) = delete;
  ~Tcp() override { close(fd_); }

  Result<size_t> receive(std::span<std::byte> out, bool fill) override {
    const ssize_t got = recv(fd_, out.data(), out.size(), fill ? MSG_WAITALL : 0);
    if (got > 0) return static_cast<size_t>(got);
    if (got == 0) return error(Code::kIo, "the server has closed the connection");
    return nothing("receive from the server");
  }
  Result<size_t> send(std::span<const std::byte> bytes) override {
    const ssize_t put = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (put >= 0) return static_cast<size_t>(put);
    return nothing("send to the server");
  }
  bool alive() override {
    char byte;
    const ssize_t got = recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got > 0 || (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK));
  }
  int fd() const { return fd_; }

 private:
  static Result<size_t> nothing(std::string_view what) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return size_t{0};
    return error(Code::kIo, "cannot {}: {}", what, text_of(errno));
  }
  int fd_;
};

/// The first message of OpenSSL's queue, which is emptied.
std::string tls_text() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason == nullptr ? "no reason given" : reason;
}

// OpenSSL's own socket BIO writes with write(2), which raises SIGPIPE where the other side is gone.
int bio_write(BIO* bio, const char* data, int bytes) {
  BIO_clear_retry_flags(bio);
  const ssize_t put =
      send(static_cast<Tcp*>(BIO_get_data(bio))->fd(), data, static_cast<size_t>(bytes), MSG_NOSIGNAL);
  if (put < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) BIO_set_retry_write(bio);
  return static_cast<int>(put);
}
int bio_read(BIO* bio, char* out, int bytes) {
  BIO_clear_retry_flags(bio);
  const ssize_t got = recv(static_cast<Tcp*>(BIO_get_data(bio))->fd(), out, static_cast<size_t>(bytes), 0);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) BIO_set_retry_read(bio);
  return static_cast<int>(got);
}
long bio_control(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

BIO* make_bio(Tcp& tcp) {
  static BIO_METHOD* const method = [] {
    BIO_METHOD* m = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "droidspeak socket");
    BIO_meth_set_write(m, bio_write);
    BIO_meth_set_read(m, bio_read);
    BIO_meth_set_ctrl(m, bio_control);
    return m;
  }();
  BIO* bio = BIO_new(method);
  BIO_set_data(bio, &tcp);
  BIO_set_init(bio, 1);
  return bio;
}

class Tls final : public Wire {
 public:
  explicit Tls(std::unique_ptr<Tcp> tcp) : tcp_(std::move(tcp)) {}
  Tls(const Tls&) = delete;
  ~Tls() override {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }

  Status start(const RedisOptions& o, const RedisHost& host, const Waiting& waiting) {
    ERR_clear_error();
    context_ = SSL_CTX_new(TLS_client_method());
    if (context_ == nullptr) return error(Code::kIo, "no TLS: {}", tls_text());
    SSL_CTX_set_min_proto_version(context_, TLS1_2_VERSION);
    // A server that just closes is as gone as one that says so first: values have lengths.
    SSL_CTX_set_options(context_, SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
    if (o.ca.empty() ? SSL_CTX_set_default_verify_paths(context_) != 1
                     : SSL_CTX_load_verify_file(context_, o.ca.c_str()) != 1)
      return error(Code::kInvalidArgument, "cannot read the certificates of '{}': {}", o.ca, tls_text());
    if (!o.certificate.empty()) {
      if (SSL_CTX_use_certificate_chain_file(context_, o.certificate.c_str()) != 1)
        return error(Code::kInvalidArgument, "cannot read our certificate '{}': {}", o.certificate,
                     tls_text());
      if (SSL_CTX_use_PrivateKey_file(context_, o.key.c_str(), SSL_FILETYPE_PEM) != 1)
        return error(Code::kInvalidArgument, "cannot use the key '{}': {}", o.key, tls_text());
    }
    ssl_ = SSL_new(context_);
    if (ssl_ == nullptr) return error(Code::kIo, "no TLS: {}", tls_text());
    SSL_set_mode(ssl_, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    in6_addr unused;
    const bool address = inet_pton(AF_INET, host.name.c_str(), &unused) == 1 ||
                         inet_pton(AF_INET6, host.name.c_str(), &unused) == 1;
    if (!address) SSL_set_tlsext_host_name(ssl_, host.name.c_str());
    if ((address ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl_), host.name.c_str())
                 : SSL_set1_host(ssl_, host.name.c_str())) != 1)
      return error(Code::kInvalidArgument, "no name that a certificate can have: {}", tls_text());
    BIO* bio = make_bio(*tcp_);
    SSL_set_bio(ssl_, bio, bio);
    const int64_t end = now_ns() + static_cast<int64_t>(o.timeout_s * 1e9);
    while (true) {
      const int done = SSL_connect(ssl_);
      if (done == 1) return ok_status();
      const int why = SSL_get_error(ssl_, done);
      if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE) {
        if (const long verified = SSL_get_verify_result(ssl_); verified != X509_V_OK) {
          ERR_clear_error();
          return error(Code::kIo,
                       "its certificate is not good: {} (say whom to trust with ?ca=FILE; it must name '{}')",
                       X509_verify_cert_error_string(verified), host.name);
        }
        return error(Code::kIo, "no TLS there: {}", tls_text());
      }
      if (waiting) DS_TRY(waiting());
      if (now_ns() > end) return error(Code::kIo, "no TLS there within {} s", o.timeout_s);
    }
  }

  Result<size_t> receive(std::span<std::byte> out, bool fill) override {
    ERR_clear_error();
    size_t have = 0;
    while (have < out.size()) {
      size_t got = 0;
      const int done = SSL_read_ex(ssl_, out.data() + have, out.size() - have, &got);
      if (done != 1) {
        if (have > 0) return have;  // a failure comes again
        return nothing(done, "receive from the server");
      }
      have += got;
      if (!fill) break;
    }
    return have;
  }
  Result<size_t> send(std::span<const std::byte> bytes) override {
    ERR_clear_error();
    size_t put = 0;
    const int done = SSL_write_ex(ssl_, bytes.data(), bytes.size(), &put);
    if (done == 1) return put;
    return nothing(done, "send to the server");
  }
  bool alive() override { return tcp_->alive(); }

 private:
  Result<size_t> nothing(int done, std::string_view what) {
    const int why = SSL_get_error(ssl_, done);
    if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) return size_t{0};
    if (why == SSL_ERROR_ZERO_RETURN) return error(Code::kIo, "the server has closed the connection");
    if (why == SSL_ERROR_SYSCALL && errno != 0)
      return error(Code::kIo, "cannot {}: {}", what, text_of(errno));
    return error(Code::kIo, "cannot {}: {}", what, tls_text());
  }
  std::unique_ptr<Tcp> tcp_;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
};

/// What a host is called at, in time: name servers may take longer than anybody wants to wait, so that they
/// are asked on a thread that is left behind then.
struct Addresses {
  Addresses() = default;
  Addresses(const Addresses&) = delete;
  ~Addresses() {
    if (list != nullptr) freeaddrinfo(list);
  }
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  int failure = 0;
  addrinfo* list = nullptr;
};

int resolve(Addresses& found, const RedisHost& host, int flags) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | flags;
  return getaddrinfo(host.name.c_str(), std::to_string(host.port).c_str(), &hints, &found.list);
}

Result<std::shared_ptr<Addresses>> addresses_of(const RedisHost& host, int64_t end_ns,
                                                const Waiting& waiting) {
  auto found = std::make_shared<Addresses>();
  if (resolve(*found, host, AI_NUMERICHOST) == 0) return found;
  std::thread([found, host] {
    auto own = std::make_unique<Addresses>();
    const int failure = resolve(*own, host, 0);
    std::lock_guard lock(found->mutex);
    std::swap(found->list, own->list);
    found->failure = failure;
    found->done = true;
    found->changed.notify_all();
  }).detach();
  std::unique_lock lock(found->mutex);
  while (!found->changed.wait_for(lock, std::chrono::milliseconds(50), [&] { return found->done; })) {
    if (waiting) DS_TRY(waiting());
    if (now_ns() > end_ns) return error(Code::kIo, "no address of '{}' in time", host.name);
  }
  if (found->failure != 0)
    return error(Code::kIo, "no address of '{}': {}", host.name, gai_strerror(found->failure));
  return found;
}

/// To one address; kIo, or what `waiting` says.
Result<int> connected_socket(const addrinfo& at, int64_t end_ns, const Waiting& waiting) {
  const int fd = socket(at.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, at.ai_protocol);
  if (fd < 0) return error(Code::kIo, "{}", text_of(errno));
  int failure = connect(fd, at.ai_addr, at.ai_addrlen) == 0 ? 0 : errno;
  Status status;
  while (failure == EINPROGRESS || failure == EINTR) {
    pollfd p{fd, POLLOUT, 0};
    const int ready = poll(&p, 1, 50);
    if (ready > 0) {
      socklen_t size = sizeof failure;
      if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) != 0) failure = errno;
      break;
    }
    if (waiting) status = waiting();
    if (now_ns() > end_ns || !status.ok()) failure = ETIMEDOUT;
  }
  if (failure != 0) {
    close(fd);
    return status.ok() ? error(Code::kIo, "{}", text_of(failure)) : status;
  }
  const int on = 1;
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kTick, sizeof kTick);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kTick, sizeof kTick);
  return fd;
}

}  // namespace

Result<std::unique_ptr<Wire>> connect_wire(const RedisOptions& options, const RedisHost& host,
                                           const Waiting& waiting) {
  const int64_t end = now_ns() + static_cast<int64_t>(options.timeout_s * 1e9);
  DS_ASSIGN(auto found, addresses_of(host, end, waiting));
  Result<int> fd = error(Code::kIo, "it has no address");
  for (const addrinfo* at = found->list; at != nullptr && !fd.ok(); at = at->ai_next)
    fd = connected_socket(*at, end, waiting);
  if (!fd.ok() && fd.status().code() != Code::kIo) return fd.status();  // told to stop
  if (!fd.ok()) return error(Code::kIo, "cannot connect to {}: {}", host.text(), fd.status().message());
  auto tcp = std::make_unique<Tcp>(*fd);
  if (!options.tls) return std::unique_ptr<Wire>(std::move(tcp));
  auto tls = std::make_unique<Tls>(std::move(tcp));
  if (Status s = tls->start(options, host, waiting); !s.ok())
    return s.with_context(fmt::format("connecting to {}", host.text()));
  return std::unique_ptr<Wire>(std::move(tls));
}

}  // namespace ds
