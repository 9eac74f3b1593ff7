#include "runtime/core/request.h"

#include <algorithm>

namespace ds {

std::string_view cache_status_name(CacheStatus status) {
  return status == CacheStatus::kHit ? "hit" : status == CacheStatus::kMiss ? "miss" : "unused";
}

Status check_request(const Request& request, const Plan& plan, const SessionLimits& limits) {
  auto n = static_cast<int64_t>(request.context.size()), m = static_cast<int64_t>(request.suffix.size());
  if (m < 1)
    return error(Code::kInvalidArgument, "the prompt has no tokens; at least one is needed to answer from");
  if (n + m > limits.context + limits.suffix || request.max_new_tokens > limits.new_tokens) {
    return error(Code::kInvalidArgument,
                 "the request has {} context and {} prompt tokens and asks for {}; this session was made for "
                 "{}, {} and {}",
                 n, m, request.max_new_tokens, limits.context, limits.suffix, limits.new_tokens);
  }
  if (request.gate != nullptr && &request.gate->plan() != &plan)
    return error(Code::kInvalidArgument,
                 "the request's gate was made for another plan than this session's; make one for this plan");
  if (request.link_rate < 0 || request.waiting < 0) {
    return error(Code::kInvalidArgument,
                 "the link rate is {} B/s and {} requests wait; expected 0 or more of each",
                 request.link_rate, request.waiting);
  }
  if (request.link_deadline_ns < 0) {
    return error(Code::kInvalidArgument, "the deadline for transfers is {} ns; expected 0 (none) or more",
                 request.link_deadline_ns);
  }
  if (request.max_new_tokens < 1)
    return error(Code::kInvalidArgument, "at least one new token must be asked for");
  if (!request.entry.empty() &&
      (request.entry.size() < request.context.size() ||
       !std::equal(request.context.begin(), request.context.end(), request.entry.begin()))) {
    return error(Code::kInvalidArgument,
                 "the request's {} context tokens are not the first of the {} tokens of its entry",
                 request.context.size(), request.entry.size());
  }
  for (auto part : {request.context, request.suffix}) {
    for (size_t i = 0; i < part.size(); ++i) {
      if (part[i] < 0 || part[i] >= plan.shape.vocab) {
        return error(Code::kInvalidArgument, "{} token {} has id {}, outside the model's vocabulary 0-{}",
                     part.data() == request.context.data() ? "context" : "prompt", i, part[i],
                     plan.shape.vocab - 1);
      }
    }
  }
  return ok_status();
}

}  // namespace ds
