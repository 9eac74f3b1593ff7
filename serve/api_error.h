// Errors of requests in the form that OpenAI's API gives them.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "support/status.h"

namespace ds {

struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::string param;    // the field; "": none
  std::string code;     // a word for programs; "": none
  int retry_after = 0;  // seconds; 0: not to be tried again as it is

  nlohmann::ordered_json json() const {
    auto text = [](const std::string& s) {
      return s.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(s);
    };
    return {{"error", {{"message", message}, {"type", type}, {"param", text(param)}, {"code", text(code)}}}};
  }
  static ApiError of_field(std::string field, std::string message) {
    return {400, std::move(message), "invalid_request_error", std::move(field), ""};
  }
  /// What a Status of the engine is over HTTP.
  static ApiError of(const Status& status) {
    switch (status.code()) {
      case Code::kInvalidArgument:
      case Code::kCorrupt:
      case Code::kUnsupported:
      case Code::kNotFound:
        return {400, status.message(), "invalid_request_error", "", ""};
      case Code::kExhausted:
      case Code::kUnavailable:
      case Code::kDeviceMemory:
        return {503, status.message(), "server_error", "", "unavailable", 1};
      default:
        return {500, status.message(), "server_error", "", "internal_error"};
    }
  }
};

/// None: it is right.
using ApiFault = std::optional<ApiError>;

}  // namespace ds
