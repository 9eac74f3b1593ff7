#include "runtime/core/request.h"

#include <algorithm>

#include "runtime/store/entry.h"

namespace ds {

std::string_view cache_status_name(CacheStatus status) {
  switch (status) {
    case CacheStatus::kHit:
      return "hit";
    case CacheStatus::kMiss:
      return "miss";
    case CacheStatus::kRepaired:
      return "repaired";
    default:
      return "unused";
  }
}

namespace {

int64_t size_of(std::span<const int32_t> ids) { return static_cast<int64_t>(ids.size()); }

/// One of a request's segments; `before`: the one of its source in front of it, null: it is the first.
Status check_segment(const Segment& s, const Segment* before, SourceRule rule,
                     std::span<const int32_t> context) {
  const int64_t n = size_of(context), all = size_of(s.tokens);
  if (s.from < 0 || s.from >= all || s.from % kChecksumRows != 0)
    return error(Code::kInvalidArgument,
                 "its entry begins at token {} of {}; expected a multiple of {} below that", s.from, all,
                 kChecksumRows);
  const int64_t there = all - s.from;
  if (s.rows < 1 || s.first_there < 0 || s.first_there >= there || s.rows > there - s.first_there)
    return error(Code::kInvalidArgument,
                 "it takes {} rows from row {} on; expected 1 or more of the {} that "
                 "its entry has",
                 s.rows, s.first_there, there);
  if (s.first_here < 0 || s.first_here >= n || s.rows > n - s.first_here)
    return error(Code::kInvalidArgument,
                 "it is {} rows from token {} on; expected 1 or more of the {} that "
                 "the context has",
                 s.rows, s.first_here, n);
  if (before != nullptr && s.first_here < before->first_here + before->rows)
    return error(Code::kInvalidArgument,
                 "it begins at token {} of the context, the one before it ends at {}; expected ascending "
                 "segments, none over another",
                 s.first_here, before->first_here + before->rows);
  const bool ends = s.first_here + s.rows == n || s.first_there + s.rows == there;
  if (s.first_there % kChecksumRows != 0 || s.first_here % kChecksumRows != 0 ||
      (s.rows % kChecksumRows != 0 && !ends))
    return error(Code::kInvalidArgument,
                 "it takes {} rows from row {} on, to token {}; expected multiples of {} (of rows, unless "
                 "the entry or the context ends with them): that many are verified together",
                 s.rows, s.first_there, s.first_here, kChecksumRows);
  if (s.rotation != 0)
    return error(Code::kUnsupported,
                 "its K is to be turned by {} positions; this version takes K as it is (0)", s.rotation);
  const int64_t at = s.from + s.first_there;
  if (at != s.first_here)
    return error(Code::kInvalidArgument,
                 "it takes rows of positions {} and up to token {}; expected the same position: K is turned "
                 "to where it stood",
                 at, s.first_here);
  // Of a prefix all tokens up to its end count: its rows depend on them.
  const int64_t begin = rule == SourceRule::kPrefix ? 0 : at, end = at + s.rows;
  const auto mine = context.begin() + begin, last = context.begin() + end;
  const auto [found, theirs] = std::mismatch(mine, last, s.tokens.begin() + begin);
  if (found != last)
    return error(
        Code::kInvalidArgument,
        "its entry has token {} at position {}, the context {}; expected the same tokens{}", *theirs,
        found - context.begin(), *found,
        rule == SourceRule::kPrefix ? " up to its end: rows depend on all that lies before them" : "");
  return ok_status();
}

}  // namespace

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
  if (!request.entry.empty() && !request.segments.empty())
    return error(Code::kInvalidArgument,
                 "the request names an entry of {} tokens and {} segments; expected one of the two",
                 request.entry.size(), request.segments.size());
  const std::vector<Source> sources = request.segments.empty() ? std::vector<Source>() : sources_of(plan);
  std::vector<const Segment*> before(sources.size());
  for (size_t i = 0; i < request.segments.size(); ++i) {
    const Segment& segment = request.segments[i];
    if (segment.source < 0 || static_cast<size_t>(segment.source) >= sources.size())
      return error(Code::kInvalidArgument, "segment {} of the request is of source {}; the plan has 0 to {}",
                   i, segment.source, sources.size() - 1);
    const auto of = static_cast<size_t>(segment.source);
    if (Status s = check_segment(segment, before[of], sources[of].rule, request.context); !s.ok())
      return s.with_context(fmt::format("segment {} of the request", i));
    before[of] = &segment;
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
