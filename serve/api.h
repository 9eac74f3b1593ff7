// What the server does with a request, without HTTP: paths and bodies in, bodies or events out.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "serve/api_error.h"
#include "serve/loaded_fleet.h"
#include "serve/metrics.h"
#include "serve/openai_request.h"

namespace ds {

struct HttpCall {
  std::string method, path, body;
  std::string key;             // of "Authorization: Bearer"; "": none
  std::string id;              // x-request-id
  std::function<bool()> gone;  // whether who asked has gone away
};

/// An answer that is written while it comes.
class EventStream {
 public:
  virtual ~EventStream() = default;  // cancels what has not ended
  /// Waits a moment at the most for what comes next, which may be nothing. False: that was all.
  virtual bool next(std::string& out) = 0;
};

struct HttpReply {
  int status = 200;
  std::string type = "application/json", body;
  std::vector<std::pair<std::string, std::string>> headers;
  std::shared_ptr<EventStream> stream;  // instead of a body
};

struct ApiOptions {
  std::function<void(const std::string&)> log = [](const std::string&) {};  // a line
  bool log_requests = false;  // a line of JSON for each answer; never its text
};

class Api {
 public:
  /// `fleet` outlives it.
  Api(LoadedFleet& fleet, ApiOptions options);
  ~Api();

  HttpReply handle(const HttpCall& call);
  /// From now on requests are turned away (503); returns when those that run have ended.
  void drain();

 private:
  friend class RunningRequest;
  HttpReply route(const HttpCall& call);
  HttpReply list_models() const;
  HttpReply tokenize(const HttpCall& call);
  HttpReply detokenize(const HttpCall& call);
  HttpReply answer(const HttpCall& call, Tenant& tenant, bool chat);
  HttpReply health() const;
  HttpReply status() const;
  ApiFault find_model(const std::string& name, ServedModel*& out) const;
  ApiFault prompt_ids(const ServedModel& model, const ApiRequest& request,
                      std::vector<std::vector<int32_t>>& out) const;
  bool enter(Tenant& tenant, HttpReply& refusal);
  void leave(Tenant& tenant);
  void watch_drift(ServedModel& model, const EngineAnswer& answer);
  void publish(const ServedModel& model, const std::vector<int32_t>& prompt, const std::string& salt);

  LoadedFleet& fleet_;
  ApiOptions options_;
  Metrics metrics_;
  const int64_t started_s_;
  mutable std::mutex mutex_;  // of what follows
  std::condition_variable idle_;
  int64_t running_ = 0;
  bool draining_ = false;
  std::deque<nlohmann::ordered_json> recent_;  // newest first
  std::deque<std::string> published_;          // what was asked for lately
};

}  // namespace ds
