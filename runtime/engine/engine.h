// Many requests of many receivers on one device.
//
// A thread of the engine's own takes steps. In each, every sequence that is past its first token decodes one
// more, all of a receiver's together, and plan ops of waiting requests run for at most a budget of predicted
// time: a plan op, or some rows of one, is the unit of preemption, so that time between tokens holds while
// long prompts stream in. Transfers of all requests go through one queue (TransferService).
//
// A request's errors, misses and cancellation are its own: what it gives is what it would give alone, to the
// bit on a backend whose rows are independent (the CPU).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/core/logit_rules.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/kv_arena.h"
#include "runtime/engine/receiver.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

struct EngineLimits {
  int64_t cache_bytes = 0;  // of caches and hidden states of all requests, and of the prefix cache
  int64_t tokens = 0;       // of the longest sequence: context, prompt and new tokens
  int64_t batch = 32;       // most requests that are worked on at a time
  int64_t queue = 1024;     // most that wait
  /// Predicted time of plan ops in one step while others decode: what a token waits for at the most beside
  /// its own step. So long, or this share of what decoding has last taken, where that is more: else models
  /// whose steps are long would hardly come to their prompts.
  int64_t step_budget_ns = 30'000'000;
  double step_budget_share = 1;
  /// A look-up, or a link from which nothing comes, is waited for this long at least; where 8 % of the full
  /// prefill are more, so long.
  int64_t patience_ns = 20'000'000;
  /// A publication whose store takes nothing for so long ends, and those behind it go on.
  int64_t publish_patience_ns = 60'000'000'000;
  /// What closing waits for stores for, where their owners are given (store_owner).
  int64_t close_patience_ns = 10'000'000'000;
  bool prefix_cache = true;
  /// Of the step's budget while requests decode, and of cache_bytes: what publications may take. While a
  /// request has plan ops that may run, they take nothing.
  double publish_share = 0.25;
  bool record_spans = false;  // for take_spans()
};

/// What kept the link or the device busy: for pictures of how requests overlap.
struct EngineSpan {
  uint64_t request = 0;  // 0: a batch that decodes
  StreamKind stream = StreamKind::kCompute;
  std::string what;                  // "recompute 4", "kv(3)", "decode 12"
  int64_t start_ns = 0, end_ns = 0;  // on now_ns()'s clock
};

/// What may be reused for a request.
enum class Reuse : uint8_t {
  kAuto,   // what the receiver's plans allow
  kExact,  // what this receiver has computed itself
  kOff,    // nothing
};

/// As Segment, with its tokens.
struct EngineSegment {
  std::vector<int32_t> tokens;
  int64_t from = 0, first_there = 0, first_here = 0, rows = 0, rotation = 0;
  int32_t source = 0;
};

struct EngineRequest {
  const Receiver* receiver = nullptr;   // of this engine
  std::vector<int32_t> context;         // n >= 0 tokens, which a sender may have computed
  std::vector<int32_t> entry;           // as Request::entry; empty: the context
  std::vector<EngineSegment> segments;  // as Request::segments; empty: the entry has all rows
  std::vector<int32_t> suffix;          // m >= 1 tokens
  Store* store = nullptr;               // where entries may be; nullptr: none. Outlives the engine
  /// Keeps the store alive for as long as it is used: an engine that is closed then leaves one that hangs to
  /// itself. Without it, it waits for it.
  std::shared_ptr<const void> store_owner;
  std::string salt;  // of the tenant: of entries and of the prefix cache
  Reuse reuse = Reuse::kAuto;
  /// Most that a plan may promise to lose (its bound where it has one, else its loss), points; NaN: anything.
  /// Of the plans within it, by whose entries are there: the least loss, then the fastest.
  double loss_limit = kUnknown;
  int64_t link_rate = 0;      // as Request::link_rate; 0: what the engine has measured
  int64_t time_limit_ns = 0;  // from submit() until the last token; 0: none
  /// As Request::gate, of the receiver's plans, one each; what comes by a plan without one is not looked at.
  /// They live until the request has ended. Caches that came by a plan earlier are looked at, too.
  std::vector<const Gate*> gates;
  Sampling sampling;
  LogitRules rules;
  int64_t max_new_tokens = 1;
  std::vector<int32_t> stop_ids;
  int64_t min_new_tokens = 0;         // before so many, none of stop_ids is chosen, nor of withheld_ids,
  std::vector<int32_t> withheld_ids;  // which end nothing
  bool first_logits = false;          // whether the answer has those of the first token
  /// On the engine's thread: they may submit and cancel, and have to be quick.
  std::function<void(int32_t token)> on_token;
  std::function<bool(int32_t token)> is_last;
  /// Before on_token, with the logits that the token was chosen from, before its rules.
  std::function<void(int32_t token, std::span<const float> logits)> on_logits;
  std::function<void()> on_end;  // when Ticket::wait() does not block any more
};

struct EngineAnswer : Answer {
  // After the gate's alarm `cached_tokens` is 0, and lost_ns is from the first work on.
  int64_t queue_ns = 0;       // submit() -> first work
  int64_t cached_tokens = 0;  // that the prefix cache had
  // What of a sender's is in the caches that answered, reused_tokens of it: by a variant of which plan, be it
  // that it ran or that the prefix cache had what it left. Null: nothing is.
  const Variant* reused = nullptr;
  bool repaired = false;  // transfers were lost: part of what the plan reuses was computed
  int64_t transfers = 0,
          lost_transfers = 0;       // of a run that was repaired; those needless by it are lost, too
  std::vector<int64_t> token_ns;    // submit() -> each token
  std::vector<float> first_logits;  // [vocab], where asked for
};

/// A request that was submitted.
class Ticket {
 public:
  /// Blocks until the request has ended. Errors: kInvalidArgument, kExhausted (cancelled, out of time, the
  /// engine was closed), and those of a kernel (Session::run).
  Result<EngineAnswer> wait();
  bool done() const;
  /// Ends it at the next step. Does nothing to one that has ended.
  void cancel();

 private:
  friend class Engine;
  friend struct EngineLoop;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<Result<EngineAnswer>> result_;
  std::atomic<bool> cancelled_{false};
  std::function<void()> wake_;
};

/// A context that a receiver of the engine publishes, as a sender to others.
struct EnginePublication {
  const Receiver* sender = nullptr;  // of this engine
  std::vector<int32_t> context;
  Store* store = nullptr;                   // outlives the engine
  std::shared_ptr<const void> store_owner;  // as EngineRequest::store_owner
  PublishOptions options;
  std::function<void()> on_end;
};

class PublicationTicket {
 public:
  /// Blocks until the entry is in the store, or is not going to be. Errors: those of Publication, of a kernel
  /// (with its layer), kExhausted (cancelled, the engine was closed, "late: ..." where the store hangs).
  Result<Published> wait();
  void cancel();

 private:
  friend struct EngineLoop;
  mutable std::mutex mutex_;
  std::condition_variable ended_;
  std::optional<Result<Published>> result_;
  std::atomic<bool> cancelled_{false};
};

struct EngineStats {
  int64_t submitted = 0, finished = 0, failed = 0, cancelled = 0, refused = 0;
  int64_t waiting = 0, running = 0, decoding = 0;
  int64_t steps = 0;
  int64_t published = 0, publications_open = 0;
  // What became of the others: the store had it; it hung; they were cancelled; anything else.
  int64_t publications_already = 0, publications_late = 0, publications_cancelled = 0,
          publications_failed = 0;
  int64_t entry_hits = 0, entry_misses = 0, entry_repairs = 0;  // by CacheStatus, one of them each
  int64_t stand_ins = 0;  // full prefills begun while a plan waited for its store
  int64_t gate_checks = 0, gate_alarms = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
  int64_t link_bytes = 0, link_busy_ns = 0, link_rate = 0;
  int64_t compute_busy_ns = 0;
  // committed_bytes: that are memory, idle ranges' too.
  int64_t claimed_bytes = 0, peak_bytes = 0, committed_bytes = 0, prefix_bytes = 0, evictions = 0;
};

class Engine {
 public:
  /// `backend` outlives the engine. Errors: kInvalidArgument (limits), kExhausted (memory, threads).
  static Result<std::unique_ptr<Engine>> create(Backend& backend, const EngineLimits& limits);
  /// Ends what still runs (kExhausted). Waits for stores to return from what they are in the middle of: a
  /// read's next part, a look-up, 1 MiB of an entry that is being written (the rest of it is not). A store
  /// that has not returned after EngineLimits::close_patience_ns is left to itself, with a thread and the
  /// memory that it was given, if its owner was given as well; else it is waited for.
  ~Engine();

  /// Before requests name it. kExhausted: no memory for its workspace. The engine keeps it.
  Result<const Receiver*> add(std::unique_ptr<Receiver> receiver);

  /// Errors at once: kInvalidArgument (tokens outside the vocabulary or the limits, a receiver of another
  /// engine), kExhausted (the queue is full, or the request could never fit into cache_bytes).
  Result<std::shared_ptr<Ticket>> submit(EngineRequest request);

  /// Publishes a context beside the requests, in the time that they leave; nothing where the store has the
  /// entry already. The same again while it is not done: the same ticket. Errors at once: those of
  /// Publication::create(), kInvalidArgument (a sender of another engine, no store), kExhausted (more memory
  /// than publications may take).
  Result<std::shared_ptr<PublicationTicket>> publish(EnginePublication publication);

  EngineStats stats() const;
  /// Blocks until no request waits or runs.
  void drain();
  /// Since the last call, in no order; EngineLimits::record_spans.
  std::vector<EngineSpan> take_spans();

 private:
  Engine() = default;
  std::unique_ptr<struct EngineLoop> loop_;
};

}  // namespace ds
