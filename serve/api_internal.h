// What the parts of the API share: replies.
#pragma once

#include <string>

#include "serve/api.h"
#include "serve/openai_answer.h"

namespace ds {

inline HttpReply reply(const nlohmann::ordered_json& json) { return {.body = json_text(json)}; }

inline HttpReply reply(const ApiError& fault) {
  HttpReply out{.status = fault.status, .body = json_text(fault.json())};
  if (fault.retry_after > 0) out.headers.emplace_back("Retry-After", std::to_string(fault.retry_after));
  if (fault.status == 401) out.headers.emplace_back("WWW-Authenticate", "Bearer");
  return out;
}

}  // namespace ds
