#include "serve/http_server.h"

#include <httplib.h>

#include <cstring>
#include <random>
#include <thread>

#include "serve/openai_answer.h"
#include "serve/peer_watch.h"
#include "serve/plain_stream.h"
#include "support/short_slices.h"

namespace ds {
namespace {

constexpr int kBacklog = 1024;

/// The library listens with a backlog of 5: of clients that come together the rest would wait for a second.
template <typename Base>
class Listener : public Base {
 public:
  using Base::Base;
  void deepen_backlog() { ::listen(this->svr_sock_, kBacklog); }
};

/// The socket of the connection that this thread serves; -1: not known.
thread_local int served_socket = -1;

class PlainServer : public Listener<httplib::Server> {
 private:
  bool process_and_close_socket(socket_t socket) override {
    served_socket = socket;
    PlainStream stream(socket, read_timeout_sec_, write_timeout_sec_);
    bool good = true, closed = false;
    while (good && !closed && next_request(stream)) good = process_request(stream, false, closed, nullptr);
    served_socket = -1;
    ::shutdown(socket, SHUT_RDWR);
    ::close(socket);
    return good;
  }
  /// An idle connection does not outlive the server by more than a moment.
  bool next_request(const PlainStream& stream) const {
    constexpr int kMomentMs = 500;
    for (int64_t ms = keep_alive_timeout_sec_ * 1000; ms > 0 && svr_sock_ != INVALID_SOCKET; ms -= kMomentMs)
      if (stream.wait(kMomentMs)) return true;
    return false;
  }
};

std::string request_id(const httplib::Request& request) {
  std::string id = request.get_header_value("X-Request-Id");
  const bool plain =
      !id.empty() && id.size() <= 128 &&
      id.find_first_not_of("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.:") == id.npos;
  if (plain) return id;
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{:016x}{:016x}", random(), random());
}

/// The library limits what a header announces, not what comes in chunks or is unpacked.
bool read_body(const httplib::Request& request, const httplib::ContentReader& reader, size_t most,
               std::string& body, httplib::Response& response) {
  if (request.is_multipart_form_data()) {
    response.status = 415;
    return false;
  }
  bool fits = true;
  const bool read = reader([&](const char* data, size_t size) {
    fits = body.size() + size <= most;
    if (fits) body.append(data, size);
    return fits;
  });
  if (!fits)
    response.status = 413;
  else if (!read && response.status < 400)
    response.status = 400;
  return fits && read;
}

HttpCall call_of(const httplib::Request& request, std::string id) {
  HttpCall call{request.method, request.path, "", "", std::move(id), {}};
  const std::string authorization = request.get_header_value("Authorization");
  constexpr std::string_view kBearer = "Bearer ";
  if (authorization.starts_with(kBearer)) call.key = authorization.substr(kBearer.size());
  return call;
}

void serve(Api& api, const httplib::Request& request, std::string body, httplib::Response& response) {
  static thread_local const bool short_slices = (ask_for_short_slices(), true);
  (void)short_slices;
  HttpCall call = call_of(request, request_id(request));
  call.body = std::move(body);
  auto watch = std::make_shared<PeerWatch>(request.remote_addr, request.remote_port, served_socket);
  call.gone = [watch] { return watch->gone(); };
  HttpReply reply = api.handle(call);
  response.status = reply.status;
  response.set_header("X-Request-Id", call.id);
  for (const auto& [name, value] : reply.headers) response.set_header(name, value);
  if (reply.status == 499 || reply.status == 503) response.set_header("Connection", "close");
  if (!reply.stream) {
    response.set_content(reply.body, reply.type);
    return;
  }
  response.set_chunked_content_provider(
      reply.type, [stream = std::move(reply.stream), watch](size_t, httplib::DataSink& sink) {
        std::string text;
        if (!stream->next(text)) {
          sink.done();
          return true;
        }
        if (text.empty()) return !watch->gone();
        return sink.write(text.data(), text.size());
      });
}

ApiError error_of(int status) {
  switch (status) {
    case 413:
      return {413, "the request's body is longer than this server takes", "invalid_request_error", "",
              "request_too_large"};
    case 415:
      return {415, "the request's body is a form; expected JSON", "invalid_request_error", "", ""};
    case 414:
      return {414, "the request's path is too long", "invalid_request_error", "", "request_too_large"};
    case 404:
      return {404, "nothing is served there", "invalid_request_error", "", "not_found"};
    default:
      return {status, status < 500 ? "the request cannot be read" : "the server failed",
              status < 500 ? "invalid_request_error" : "server_error", "", ""};
  }
}

}  // namespace

struct HttpServer::Impl {
  std::unique_ptr<httplib::Server> server;
  std::thread thread;
};

HttpServer::HttpServer() : impl_(std::make_unique<Impl>()) {}

HttpServer::~HttpServer() { stop(); }

Result<std::unique_ptr<HttpServer>> HttpServer::create(const Fleet& fleet, Api& api) {
  std::unique_ptr<HttpServer> out(new HttpServer());
  out->api_ = &api;
  std::function<void()> deepen;
  if (fleet.certificate.empty()) {
    auto server = std::make_unique<PlainServer>();
    deepen = [s = server.get()] { s->deepen_backlog(); };
    out->impl_->server = std::move(server);
  } else {
    auto server =
        std::make_unique<Listener<httplib::SSLServer>>(fleet.certificate.c_str(), fleet.private_key.c_str());
    deepen = [s = server.get()] { s->deepen_backlog(); };
    out->impl_->server = std::move(server);
  }
  httplib::Server& server = *out->impl_->server;
  if (!server.is_valid())
    return error(Code::kInvalidArgument,
                 "{}: listen: tls: certificate '{}' and private key '{}' cannot be used; expected two PEM "
                 "files that belong together",
                 fleet.origin, fleet.certificate, fleet.private_key);
  server.new_task_queue = [n = static_cast<size_t>(fleet.connections)] { return new httplib::ThreadPool(n); };
  server.set_tcp_nodelay(true);
  server.set_payload_max_length(static_cast<size_t>(fleet.body_bytes));
  server.set_keep_alive_max_count(size_t{1} << 40);  // with TLS; without it there is no limit
  server.set_keep_alive_timeout(std::max<time_t>(1, static_cast<time_t>(fleet.idle_s)));
  server.set_read_timeout(std::max<time_t>(1, static_cast<time_t>(fleet.write_s)));
  server.set_write_timeout(std::max<time_t>(1, static_cast<time_t>(fleet.write_s)));
  server.Get(".*", [&api](const httplib::Request& request, httplib::Response& response) {
    serve(api, request, "", response);
  });
  const httplib::Server::HandlerWithContentReader with_body =
      [&api, most = static_cast<size_t>(fleet.body_bytes)](const httplib::Request& request,
                                                           httplib::Response& response,
                                                           const httplib::ContentReader& reader) {
        std::string body;
        if (read_body(request, reader, most, body, response))
          serve(api, request, std::move(body), response);
        else
          response.set_header("Connection", "close");  // the rest of the body is no request
      };
  server.Post(".*", with_body);
  server.Put(".*", with_body);
  server.Delete(".*", with_body);
  server.set_error_handler([](const httplib::Request&, httplib::Response& response) {
    if (response.body.empty())
      response.set_content(json_text(error_of(response.status).json()), "application/json");
  });
  server.set_exception_handler([](const httplib::Request&, httplib::Response& response, std::exception_ptr) {
    response.status = 500;
    response.set_content(json_text(error_of(500).json()), "application/json");
  });
  // The library shares a port with whoever else has it, unless told otherwise.
  server.set_socket_options([](socket_t socket) {
    const int yes = 1;
    (void)setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  int port = static_cast<int>(fleet.port);
  const bool bound =
      port == 0 ? (port = server.bind_to_any_port(fleet.host)) > 0 : server.bind_to_port(fleet.host, port);
  if (!bound)
    return error(
        Code::kIo,
        "{}: listen: cannot bind {}:{}: {}; another server may be there, or it is no address of this machine",
        fleet.origin, fleet.host, fleet.port, errno != 0 ? std::strerror(errno) : "no such host");
  deepen();
  const std::string host = fleet.host.find(':') == std::string::npos ? fleet.host : "[" + fleet.host + "]";
  out->url_ = fmt::format("{}://{}:{}", fleet.certificate.empty() ? "http" : "https", host, port);
  return out;
}

Status HttpServer::start() {
  try {
    impl_->thread = std::thread([server = impl_->server.get()] { server->listen_after_bind(); });
  } catch (const std::system_error& e) {
    return error(Code::kExhausted, "starting the server's thread: {}", e.what());
  }
  return ok_status();
}

void HttpServer::stop() {
  if (!impl_->thread.joinable()) return;
  api_->drain();
  while (!impl_->server->is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  impl_->server->stop();
  impl_->thread.join();
}

}  // namespace ds
