// The engine's parts and its thread's work: what stands where is said by engine_*.cpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/engine/batch_scheduler.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/plan_run.h"
#include "runtime/engine/prefix_cache.h"
#include "runtime/engine/showing.h"
#include "runtime/engine/transfer_service.h"

namespace ds {

inline constexpr size_t kMostPieces = 512;  // of one step

inline int64_t round_down(int64_t rows) { return rows / PrefixCache::kBlock * PrefixCache::kBlock; }

/// The part of a request that sessions know, over its tokens.
struct RequestView {
  explicit RequestView(const EngineRequest& r) {
    for (const EngineSegment& s : r.segments)
      segments.push_back({.source = s.source,
                          .tokens = s.tokens,
                          .from = s.from,
                          .first_there = s.first_there,
                          .first_here = s.first_here,
                          .rows = s.rows,
                          .rotation = s.rotation});
    request.context = r.context;
    request.entry = r.entry;
    request.segments = segments;
    request.suffix = r.suffix;
    request.salt = r.salt;
    request.link_rate = r.link_rate;
    request.max_new_tokens = r.max_new_tokens;
  }
  RequestView(const RequestView&) = delete;
  std::vector<Segment> segments;
  Request request;
};

/// What wakes the engine's thread; tickets may outlive the engine.
struct Wake {
  std::mutex mutex;
  std::condition_variable changed;
  bool set = false;
  void operator()() {
    std::lock_guard lock(mutex);
    set = true;
    changed.notify_one();
  }
  void wait(int64_t ns) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, std::chrono::nanoseconds(ns), [&] { return set; });
    set = false;
  }
};

struct Station;

/// What a look-up has found, written by its thread.
struct LookUp {
  std::shared_ptr<Segments> segments;
  // For a publication: of how many tokens, from the context's first on, the store has all that is wanted.
  int64_t tokens = 0;
  size_t links = 0;  // entries that have them
  std::string key;   // of the last one
  Status status;
  std::atomic<bool> done{false};
  int64_t start_ns = 0, end_ns = 0;
};

/// A way in which a request may be answered, if its sender's entry is there.
struct Candidate {
  size_t plan = 0;
  const Variant* variant = nullptr;
  std::shared_ptr<LookUp> found = {};
  int64_t tokens = 0;        // of the context that its sender has; 0: not known yet
  Status why = ok_status();  // why it is not to be had
};

/// A run and what it computes in.
struct Work {
  Sequence sequence;
  std::shared_ptr<KvRange> hidden, positions;
  RunMemory memory;
  std::unique_ptr<PlanRun> run;
};

/// A request while it is the engine's.
struct Active : Work {
  static constexpr size_t kNoSlot = ~size_t{0};

  uint64_t id = 0;
  Station* station = nullptr;
  EngineRequest request;
  std::shared_ptr<Ticket> ticket;
  EngineAnswer answer;
  int64_t submitted_ns = 0, deadline_ns = 0;  // 0: none
  int64_t n = 0, m = 0;
  std::vector<int32_t> tokens;  // context, suffix, and the answer's so far
  size_t slot = kNoSlot;        // of EngineLoop::results

  enum class State : uint8_t { kQueued, kLookingUp, kComputing, kDraining, kDecoding } state = State::kQueued;
  // Its full prefill, while its plan waits for a store of which nothing has come: computed where the device
  // has nothing else to do, in memory of its own, and what the request goes on with if nothing comes.
  std::unique_ptr<Work> stand_in;
  ArenaClaim claim;                   // of what has not been reserved yet
  std::vector<Candidate> candidates;  // the best one first
  int64_t plan = -1;
  const Variant* variant = nullptr;
  // What of a sender's is in the caches: of which plan's variant, and of how many tokens. Null: nothing is.
  const Variant* reused = nullptr;
  int64_t reused_rows = 0;
  const Gate* gate = nullptr;               // of that plan
  std::shared_ptr<Segments> segments;       // that its transfers read
  std::string kept_as;                      // PrefixCache's salt; empty: its caches are not kept
  std::shared_ptr<PrefixCache::Node> node;  // of its own range
  int64_t started_ns = 0;                   // of the run
  int64_t idle_since_ns = 0;                // it waits for its link; 0: it does not
  bool alone = false;                       // decodes in no batch: one has failed
  bool retry = false;                       // its last token was not decoded
  bool over = false;                        // it has its last token
  std::optional<Sampler> sampler;
  std::optional<RuledLogits> rules;
  Choice choice;
  int32_t next = 0;  // the token chosen last
};

/// A publication while it is the engine's.
struct Publishing {
  uint64_t id = 0;
  EnginePublication asked;
  Station* station = nullptr;
  std::unique_ptr<Publication> work;
  std::unique_ptr<Workspace> workspace;  // of its own, where it maps
  std::shared_ptr<PublicationTicket> ticket;
  ArenaClaim claim;
  /// Goes on from what the store has, with caches of it that the engine still has; else they are computed.
  void go_on();
  std::shared_ptr<PrefixCache::Node> base;
  /// Begins to show what is computed, where that is asked for.
  void show(std::function<void()> wake);
  std::unique_ptr<Showing> showing;
  Status unshown;  // why nothing is
  enum class State : uint8_t { kQueued, kLookingUp, kComputing, kWriting } state = State::kQueued;
  std::shared_ptr<LookUp> found;
  // Of the thread that writes.
  std::thread writer;
  std::atomic<bool> written{false}, closing{false};
  std::atomic<int64_t> progress_ns{0};  // when the store took something last, or was asked first
  Result<Published> result = error(Code::kInternal, "nothing was published");

  int64_t last_progress_ns() const;
  /// Whether the store has let go of it.
  bool at_rest() const;
  ~Publishing();
};

/// A receiver's share of the device.
struct Station {
  std::unique_ptr<Receiver> receiver;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<DeviceMemory> hidden;  // a row for each of a batch
  std::unique_ptr<DeviceMemory> logits;  // [batch][vocab], where the host chooses
  std::vector<int32_t> ids;
  std::vector<int64_t> rows;            // 0, 1, ...
  std::vector<SequenceRows> sequences;  // [layers][batch]
  std::vector<Active*> batch;           // of the running step
  std::unique_ptr<KeyDeviation> keys;   // for gates
};

struct EngineLoop {
  Backend& backend;
  const EngineLimits limits;
  std::shared_ptr<Wake> wake = std::make_shared<Wake>();
  std::unique_ptr<KvArena> arena;
  std::unique_ptr<CommandStream> compute;
  std::unique_ptr<Event> stepped, begun,
      ended;              // a step: decoding from the first to the second, then plan ops
  int64_t decode_ns = 0;  // of the last step that had any
  std::unique_ptr<TransferService> service;

  mutable std::mutex mutex;  // of what follows
  std::condition_variable idle;
  std::vector<std::unique_ptr<Station>> stations;
  std::deque<std::unique_ptr<Active>> submitted;
  EngineStats stats;
  int64_t open = 0;  // submitted and not ended
  bool closing = false;
  uint64_t next_id = 1;
  Status lost;  // the device is; nothing runs any more
  std::vector<EngineSpan> spans;
  std::deque<std::unique_ptr<Publishing>> publications;  // the first one is worked on

  // The engine's thread's own.
  std::deque<std::unique_ptr<Active>> queue;
  std::list<std::unique_ptr<Active>> active;  // in the order in which they came
  /// Memory that a transfer may still write to.
  struct Orphan {
    uint64_t id;
    Sequence sequence;
    std::shared_ptr<KvRange> hidden;
  };
  std::vector<Orphan> orphans;
  std::vector<std::unique_ptr<Publishing>> left;  // publications that have ended, but their stores hang
  PrefixCache prefixes;
  ComputeEstimate speed;
  std::vector<std::pair<Active*, Status>> failed;  // ended at the next chance
  std::vector<size_t> free_slots;
  std::unique_ptr<DeviceMemory> results;                    // by slot: logits and a token
  int64_t result_bytes = 0, most_vocab = 0, row_bytes = 0;  // of the largest receiver
  Status publication_status;                                // of what was enqueued last
  std::vector<SequenceRows> storage;                        // of the running step's pieces
  std::vector<std::unique_ptr<Event>>
      marks;  // where spans are recorded: the step's begin, then each item's end
  std::vector<std::pair<float, int32_t>> scratch;  // of choices
  std::vector<float> ruled;
  std::thread thread;

  struct Item {
    Publishing* publishing = nullptr;
    Station* station = nullptr;  // a batch that decodes
    Active* one = nullptr;       // or one request
    PlanRun* run = nullptr;      // of it: its own, or its stand-in's
    std::optional<PlanRun::Piece> piece;
    size_t first = 0, count = 0;  // of the station's batch
  };

  EngineLoop(Backend& b, const EngineLimits& l) : backend(b), limits(l) {}

  // ---- the outside
  Station* station_of(const Receiver* receiver) const;
  int64_t cache_rows(const Active& a) const;
  Status check(const EngineRequest& r);
  Result<std::shared_ptr<Ticket>> submit(EngineRequest request);
  // With `mutex` held.
  Status check(const EnginePublication& asked) const;
  std::shared_ptr<PublicationTicket> published_already(const EnginePublication& asked) const;
  Result<std::shared_ptr<PublicationTicket>> publish(EnginePublication asked);

  // ---- publications, on the engine's thread
  Publishing* publishing();
  /// `count`: what it ends as, where the result does not say it.
  void end(Publishing& p, Result<Published> result, int64_t EngineStats::*count = nullptr);
  void end_late(Publishing& p);
  /// Whether a store has taken nothing of another publication for longer than is waited for.
  bool hangs(const Store* store) const;
  /// All that need the device yet.
  void end_publications(const Status& why);
  void look_up(Publishing& p);
  /// Of a publication whose piece was not run: what it has kept is given up, which costs less than to know.
  void begin_again(Publishing& p);
  /// What the first publication waits for.
  void watch_publication();

  // ---- endings
  void end(Active& a, Result<EngineAnswer> result, int64_t EngineStats::*count);
  void fail(Active& a, Status status);
  /// Whether the request was ended from outside, by its own clock or by its caller.
  bool stop(Active& a);

  // ---- beginnings
  static std::string exact_salt(const Receiver& receiver, const std::string& salt);
  std::string plan_salt(const Active& a, size_t plan, const Variant& v) const;
  /// Claims memory, of finished caches where there is none else.
  bool take(Active& a, int64_t bytes);
  int64_t run_bytes(const Active& a, const Variant& v, int64_t first) const;
  /// The answer is to be looked at as one of this plan's variant, of which `rows` tokens' caches are.
  void reuse(Active& a, size_t plan, const Variant& v, int64_t rows);
  /// Whether somebody is computing what this request begins with: when that is there, it costs its suffix.
  bool comes(const Active& a) const;
  /// False: there is no memory for it now.
  bool start(Active& a);
  int64_t patience(const Active& a) const;
  int64_t sender_patience(const Active& a) const;
  std::vector<Candidate> candidates(const Active& a, int64_t rate, int64_t waiting) const;
  /// All candidates' entries, side by side.
  void look_up(Active& a);
  std::shared_ptr<LookUp> look_up(const Active& a, const Candidate& candidate);
  /// What of a candidate's look-up can be run: its tokens and variant, or why nothing can. False: it may
  /// still come.
  bool settled(const Active& a, Candidate& c) const;
  /// Begins with the best of what was found, once nothing better may come.
  void take_best(Active& a);
  void miss(Active& a, Status why);
  /// Sequences of one context share exactly it, whatever else their questions have in common, so that kernels
  /// read it once for all of them. What goes on from all that a node has, a conversation, begins where it
  /// ends.
  static int64_t shared_rows(const Active& a, const PrefixCache::Hit& hit);
  /// Runs a.variant behind what the prefix cache has of the tokens.
  void compute_behind(Active& a, std::shared_ptr<PrefixCache::Node> prefix, int64_t rows);
  /// Goes on from what the receiver itself has of more than `rows` tokens. False: there is nothing.
  bool go_on(Active& a, int64_t rows);
  /// Makes memory and a run of a.variant, and sends for its transfers.
  void compute_from(Active& a, int64_t first);
  Status try_compute(Active& a, int64_t first);
  /// Memory for w.run, behind what w.sequence has already; out of `claim`.
  Status make_memory(const Active& a, Work& w, int64_t first, ArenaClaim& claim);
  /// KvRange::commit(), in place of finished caches where the device has less memory than the budget.
  Status commit(KvRange& range, int64_t rows);
  static void set_addresses(const Active& a, Work& w);
  void send_for(Active& a);

  // ---- between steps
  Active* find(uint64_t id);
  void collect();
  void end_failed();
  /// A run that waits for a link from which nothing comes goes on without it.
  void watch(Active& a);
  /// Of a request that has waited for a while, and in whose caches nothing is yet. Null: it has none.
  Work* stand_in(Active& a);
  /// What has not come of the run's transfers will not.
  void lose(Active& a, Status why);
  /// The first one is the miss.
  static void count_lost(Active& a, Status why);
  /// Goes on without the transfers that were lost, if any was.
  void repair(Active& a);
  /// A store that hangs may still write to this memory, at any time: the run goes on with a copy.
  Status leave_memory(Active& a);
  void admit();

  // ---- a step
  float* logits_of(size_t slot);
  int32_t* next_of(size_t slot);
  /// One more token for each of batch[first .. first + count).
  void decode(Station& s, size_t first, size_t count);
  bool step();
  void record(EngineSpan span);
  void record_step(const std::vector<Item>& items);
  void settle(std::vector<Item>& items, Status status);
  void give_up(Status status);
  /// What the store had, now that the run has ended.
  static void note_cache(Active& a);
  /// What the gate says of the first token; an alarm makes the full prefill answer.
  Status look_at(Active& a, std::span<const float> logits);
  /// Whether stop tokens may not be chosen yet.
  static bool must_go_on(const Active& a);
  static bool withholds(const Active& a);
  /// Whether the next token's logits come to the host, wherever tokens are chosen else.
  static bool wants_logits(const Active& a);
  int32_t chosen(const Active& a, std::span<const float> logits);
  void first_token(Active& a);
  void decoded(Station& s, size_t first, size_t count);
  void next_token(Active& a, int32_t token, std::span<const float> logits);
  void finish_ended();
  /// Keeps the finished request's caches for those that begin as it did.
  void keep(Active& a);

  // ---- the thread
  /// With the first receiver: what depends on its shape, and the thread.
  Status open_for(const ModelConfig& config);
  void loop();
  void close();
  void report();
};

/// What stores may still be in the middle of when an engine has ended. Needs nothing else.
struct Remains {
  std::unique_ptr<KvArena> arena;
  std::vector<EngineLoop::Orphan> orphans;
  std::vector<std::unique_ptr<Publishing>> publications;
  std::unique_ptr<TransferService> service;

  bool at_rest() const;
  /// Whether stores may be left to themselves.
  bool self_contained() const;
};

}  // namespace ds
