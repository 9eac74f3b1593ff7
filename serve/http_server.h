// HTTP and TLS for the API.
#pragma once

#include <memory>
#include <string>

#include "serve/api.h"
#include "serve/fleet.h"
#include "support/status.h"

namespace ds {

class HttpServer {
 public:
  /// Binds the fleet's address; `api` outlives it. Errors: kInvalidArgument (a certificate or a key that
  /// cannot be used), kIo (the address is taken, or not this machine's).
  static Result<std::unique_ptr<HttpServer>> create(const Fleet& fleet, Api& api);
  ~HttpServer();

  /// "http://127.0.0.1:8000"
  const std::string& url() const { return url_; }
  /// Serves, on threads of its own.
  Status start();
  /// Turns new requests away, waits for those that run, and closes.
  void stop();

 private:
  struct Impl;
  HttpServer();
  Api* api_ = nullptr;
  std::string url_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ds
