// What a request asks of a receiver, and what it gets.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "runtime/core/gate.h"
#include "runtime/core/sampler.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

struct SessionLimits {
  int64_t context = 0;     // most context tokens of a request
  int64_t suffix = 1;      // most suffix tokens
  int64_t new_tokens = 1;  // most tokens generated
};

/// A run of the context's rows that an entry has.
struct Segment {
  int32_t source = 0;                    // index into the plan's sources
  std::span<const int32_t> tokens = {};  // that the sender had read when it published the entry
  int64_t from = 0;                      // the entry has rows of `tokens` from this one on
  int64_t first_there = 0;               // row of the entry, a multiple of kChecksumRows
  int64_t first_here = 0;                // token of the context, as well
  int64_t rows = 0;                      // a multiple as well, but where the context or the entry ends
  int64_t rotation = 0;  // positions by which its K is to be turned: 0, nothing else is done yet
};

struct Request {
  std::span<const int32_t> context;  // n >= 0 tokens
  /// What the sender's entry was published for, where that is more than `context`, its beginning: an entry
  /// serves every request that begins as it does (JoinedText). Empty: `context`.
  std::span<const int32_t> entry;
  /// Which entries have the context's rows, where they are not to be looked for (find_chain()): ascending,
  /// none over another. Rows that the plan's transfers need and none has are a miss.
  std::span<const Segment> segments;
  std::span<const int32_t> suffix;  // m >= 1 tokens
  Store* store = nullptr;           // where the sender's entry may be; nullptr: do not reuse (kUnused)
  bool follow = true;               // where the sender is still computing what there is not: wait for it
  const ModelIdentity* receiver =
      nullptr;       // who answers; a plan for another receiver is a miss. nullptr: not checked
  std::string salt;  // tenant salt of the entry
  // For the choice of a variant: the link's rate in bytes per second (0: what this session's transfers have
  // shown lately; as fast as can be while none have run), and how many other requests wait.
  int64_t link_rate = 0;
  int64_t waiting = 0;
  bool full_prefill = false;  // ignore the variants
  // From the start of run() until the last transfer must be there; later is a miss. 0: no such limit. Noticed
  // while a tensor is read (EntryReader::read_rows) and before the next one; a look-up is cut short by
  // Store::set_patience() alone.
  int64_t link_deadline_ns = 0;
  /// Looks at the answer of a variant that reuses something before its first token is chosen; an alarm makes
  /// the full prefill answer. Of this session's plan. nullptr: none.
  const Gate* gate = nullptr;
  Sampling sampling;
  int64_t max_new_tokens = 1;
  std::span<const int32_t> stop_ids;  // generation ends with one of these, which is not part of the answer
  std::function<void(int32_t token)> on_token;  // called as tokens come; may be empty
  /// Asked after on_token: whether this token, which stays part of the answer, is its last. May be empty.
  std::function<bool(int32_t token)> is_last;
};

/// Where the link rate came from that a variant was chosen by.
enum class RateSource : uint8_t { kGiven, kMeasured, kUnknown };

/// kRepaired: some of what a plan would have sent was lost and computed instead, the rest was used. An
/// engine's.
enum class CacheStatus : uint8_t { kUnused, kHit, kMiss, kRepaired };
std::string_view cache_status_name(CacheStatus status);  // "unused", "hit", "miss", "repaired"

struct Answer {
  std::vector<int32_t> tokens;         // without the stop token
  bool stopped = false;                // ended by a stop token, not by max_new_tokens
  int32_t stop_token = -1;             // which one
  bool ended_by_caller = false;        // ended by Request::is_last
  const Variant* variant = nullptr;    // what ran in the end
  int64_t link_rate = 0, waiting = 0;  // what it was chosen by, besides the context's length
  RateSource rate_source = RateSource::kUnknown;
  CacheStatus cache = CacheStatus::kUnused;
  Status miss;          // why the cache missed, or what was repaired first: a fault of the store or the entry
  int64_t ttft_ns = 0;  // tokens in hand -> first token chosen
  int64_t lookup_ns = 0;  // finding and checking the entries
  /// Tokens of the context, from its beginning on, that came by plan; the rest of it, where the sender has
  /// published less, went through every layer like the suffix.
  int64_t reused_tokens = 0;
  Status shorter;                       // why it is not all of it (Chain::why); OK where it is
  bool live = false;                    // of an entry that its sender was still computing
  GateVerdict gate;                     // after an alarm `cache` stays "hit" and the full prefill answers
  int64_t lost_ns = 0;                  // spent before a miss was noticed, or the gate's alarm
  int64_t link_ns = 0, compute_ns = 0;  // busy times of the streams, in the run that gave the answer
  int64_t decode_ns = 0;                // first token -> last token
  int64_t bytes_loaded =
      0;  // tensors moved over the link, including those of an attempt that missed or alarmed
  std::vector<OpTime> op_times;  // of `variant`, by op index
};

/// Whether what a request says fits together, the plan and the limits: kInvalidArgument; kUnsupported: K that
/// is to be turned. Whether the entries are there and right is for whoever opens them to check.
Status check_request(const Request& request, const Plan& plan, const SessionLimits& limits);

}  // namespace ds
