// What a backend is: streams, events, memory and the kernels of one model. The executor sees nothing else.
//
// What may be asked is checked here (backend.cpp), once for every backend: public calls are not virtual, they
// check and then call the protected ones, which a backend implements and which trust their arguments.
//
// All work is enqueued on streams and runs in order there; order between streams exists only through events.
// Enqueuing never blocks and never allocates once make_stream() has returned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "plans/plan.h"
#include "runtime/backends/choice.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/maps.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds {

/// A point in a stream's order. Recorded once per request; reset() between requests, when no stream uses it.
/// One thread may record it while another enqueues a wait for it.
class Event {
 public:
  virtual ~Event() = default;
  virtual void reset() = 0;
  virtual bool done() const = 0;
  /// Blocks, without spinning, until it is done().
  virtual void block() const = 0;
  /// steady_clock nanoseconds at which it completed; valid once done().
  virtual int64_t time_ns() const = 0;
};

/// A call into host code, made in stream order (transfers). Must not throw.
struct HostTask {
  void (*call)(void* context, int64_t argument) = nullptr;
  void* context = nullptr;
  int64_t argument = 0;
};

class CommandStream {
 public:
  virtual ~CommandStream() = default;
  virtual StreamKind kind() const = 0;
  virtual void wait(Event& event) = 0;    // what follows starts after `event`
  virtual void record(Event& event) = 0;  // `event` completes when all before it has
  virtual void host(HostTask task) = 0;
  /// What is enqueued from now on belongs to this op of a plan (negative: to none): for failed_op().
  virtual void begin_op(int64_t) {}
  /// The op whose work failed, where that is known, of the failure that synchronize() has returned last;
  /// negative: none.
  virtual int64_t failed_op() const { return -1; }
  /// By the thread that enqueues: keeps the first failure for synchronize(); work after it is skipped, events
  /// still complete, so that no other stream hangs.
  virtual void fail(Status status) = 0;
  /// Copies between any two of host and device memory. Where host memory is none that allocate() gave
  /// (MemoryKind::kHost), a device may make the caller wait until the copy is done.
  virtual void copy(std::byte* to, const std::byte* from, int64_t bytes) = 0;
  /// From any thread: work that has not started is skipped until the next synchronize(); events still
  /// complete. What a device has already been given runs.
  virtual void cancel() = 0;
  /// Blocks until all that was enqueued has run; returns the first failure since the last call (kernel,
  /// shapes).
  virtual Status synchronize() = 0;
};

enum class MemoryKind : uint8_t {
  kDevice,  // where kernels read and write; the host may only where Backend::host_visible()
  kHost,    // where the host does, and copies run at the link's full rate; no kernel reads it
};

/// Zeroed, 64-byte aligned. `data()` of device memory is an address for calls and copies.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual std::byte* data() = 0;
  virtual int64_t size() const = 0;
};

/// Caches are read in tiles: up to the next multiple of so many rows, counted from row 0 of LayerCall::cache,
/// and what lies behind the last row that counts is thrown away. allocate() leaves room for that behind what
/// it gives; in a range these rows are to be committed, too.
inline constexpr int64_t kCacheTileRows = 128;

/// A range of device addresses of which only parts are memory yet: caches that grow as tokens come stay where
/// they are. 64-byte aligned; zeroed where it is committed. Given back as what allocate() gives: what streams
/// were given before may still use it.
class GrowingMemory : public DeviceMemory {
 public:
  /// Makes [offset, offset + bytes) memory; what is already stays as it is. May commit more, in whole steps
  /// (Backend::range_step()).
  /// kExhausted (of the host) or kDeviceMemory: what was there before still is. kInvalidArgument: outside of
  /// the range. No kernel or copy uses the range meanwhile, except for parts that were committed before.
  Status commit(int64_t offset, int64_t bytes);
  /// Bytes that are memory now. size() is that of the range.
  virtual int64_t committed() const = 0;

 protected:
  virtual Status commit_range(int64_t offset, int64_t bytes) = 0;
};

class DeviceModel;

/// Scratch of the kernels of one stream; sized once for a longest context.
class Workspace {
 public:
  Workspace(const Workspace&) = delete;
  virtual ~Workspace() = default;
  const DeviceModel& model() const { return model_; }
  int64_t max_context() const { return max_context_; }
  int64_t map_shapes() const { return map_shapes_; }  // of maps that it has scratch for

 protected:
  Workspace(const DeviceModel& model, int64_t max_context, int64_t map_shapes)
      : model_(model), max_context_(max_context), map_shapes_(map_shapes) {}

 private:
  const DeviceModel& model_;
  const int64_t max_context_, map_shapes_;
};

/// An AlignmentMap, laid out for a backend. Matrices are in the compute dtype of the model that has loaded
/// it, scales and biases in f32.
class DeviceMap {
 public:
  DeviceMap(const DeviceMap&) = delete;
  virtual ~DeviceMap() = default;
  virtual int64_t bytes() const = 0;  // of device memory
  const DeviceModel& model() const { return model_; }
  /// Among the shapes of matrices that the model's maps have, in the order in which they came; -1: this one
  /// has no matrix.
  int64_t shape() const { return shape_; }

 protected:
  DeviceMap(const DeviceModel& model, int64_t shape) : model_(model), shape_(shape) {}

 private:
  const DeviceModel& model_;
  const int64_t shape_;
};

/// Hidden states are rows of d_model elements, caches rows of [2][kv_heads][head_dim] elements (K, after
/// RoPE, then V), both in the model's compute dtype: the wire's layout, so that a transfer lands where
/// kernels read.
struct LayerCall {
  int64_t layer = 0;
  std::byte* hidden =
      nullptr;  // first of `rows` rows; the last `query_rows` are replaced by the layer's output
  std::byte* cache = nullptr;  // this layer's cache, row 0 = position 0; rows before `position` are read
  int64_t position = 0;        // position of the first row
  int64_t rows = 0;            // K and V are computed and stored for all of them
  int64_t query_rows = 0;      // the last of them that go through Q, attention, MLP; 0: K and V only, and the
                               // cache's rows before `position` need not exist
};

/// What a batched call does with one sequence: `rows` rows from `position` on, of a cache of its own.
/// Decoding is one row. Many sequences may share what they have in common as a `prefix`, which is only read.
struct SequenceRows {
  std::byte* cache = nullptr;  // of the layer; as in LayerCall, but its row 0 is position `prefix_rows`
  int64_t position = 0;        // >= prefix_rows
  int64_t rows = 1;
  int64_t query_rows = 1;
  const std::byte* prefix = nullptr;  // the layer's cache of positions 0 .. prefix_rows - 1
  int64_t prefix_rows = 0;
};

/// Chooses the tokens of a context whose K deviates most from another model's.
struct SelectCall {
  int64_t layer = 0;
  std::byte* hidden = nullptr;  // `rows` rows that enter the layer, from position 0 on; the chosen ones are
                                // moved to the front, in order of position, the others are lost
  const std::byte* cache = nullptr;  // this layer's cache: another model's K and V of rows 0 to rows - 1
  int64_t rows = 0;
  int64_t count = 0;             // how many are chosen: 1 to rows
  int32_t* positions = nullptr;  // device memory: the chosen positions, ascending
};

/// A layer over tokens that select() has chosen: as LayerCall, but each row at a position of its own. Every
/// row sees exactly the positions up to its own: rows of the cache that are none of these stay as they are.
struct SelectedCall {
  int64_t layer = 0;
  std::byte* hidden = nullptr;  // `rows` rows; replaced by the layer's output unless `queries` is false
  std::byte* cache = nullptr;   // of the layer, row 0 = position 0; K and V of the rows replace what is there
  const int32_t* positions = nullptr;  // device memory, `rows` of them, ascending; read when the kernel runs
  int64_t rows = 0;
  bool queries = true;  // false: K and V only
};

/// A row that has left the last layer -> `vocab` f32 logits, and the token that is chosen by them.
struct HeadCall {
  const std::byte* hidden = nullptr;
  float* logits = nullptr;  // host memory; null: not wanted
  Choice choice = {};
  int32_t* next = nullptr;  // host memory; null: not wanted
};

/// One token through the whole model, at the end of what the caches hold.
struct StepCall {
  int32_t token = 0;                        // in [0, vocab)
  int64_t position = 0;                     // of it
  std::byte* hidden = nullptr;              // one row of scratch
  std::span<std::byte* const> caches = {};  // by layer, as in LayerCall; lives until the stream has run
  float* logits = nullptr;                  // as in HeadCall
  Choice choice = {};
  int32_t* next = nullptr;
};

/// Where the time of a model's kernels goes.
enum class Phase : uint8_t {
  kEmbed,
  kNorm,  // and the residual
  kQkv,
  kRope,  // and what is written to the cache
  kAttentionPack,
  kAttention,
  kO,
  kGateUp,
  kSwiglu,
  kDown,
  kLogits,
  kAlign,
};
inline constexpr std::string_view kPhaseNames[] = {
    "embed",     "norm+residual",   "qkv product", "rope+cache",   "attention pack", "attention",
    "o product", "gate|up product", "silu*up",     "down product", "logits",         "align"};
inline constexpr size_t kPhases = std::size(kPhaseNames);
struct PhaseTimes {
  int64_t ns[kPhases] = {};
  int64_t& operator[](Phase phase) { return ns[static_cast<size_t>(phase)]; }
};

/// The weights of one model, laid out for a backend, and its kernels. Results do not depend on how rows are
/// split into calls beyond rounding; the conformance suite says where they are equal to the bit.
///
/// Calls that enqueue report what is wrong with them to the stream (kInvalidArgument: it names the layer, the
/// rows, what is missing or whose workspace it is), and enqueue nothing then. No rows are no work.
class DeviceModel {
 public:
  virtual ~DeviceModel() = default;
  virtual const ModelConfig& config() const = 0;
  virtual DType dtype() const = 0;  // of hidden states and caches
  virtual int64_t weight_bytes() const = 0;
  /// kInvalidArgument, kExhausted, kDeviceMemory.
  Result<std::unique_ptr<Workspace>> make_workspace(int64_t max_context);
  /// For align() of this model, and with workspaces that are made after it. `map` is copied. kMismatch: a map
  /// for hidden states of another width; kInvalidArgument: arrays that do not fit its form; kExhausted,
  /// kDeviceMemory. May run beside streams and other calls of load_map() and make_workspace().
  Result<std::unique_ptr<DeviceMap>> load_map(const AlignmentMap& map);

  /// `ids` (host memory, in [0, vocab), living until the stream has run) -> `rows` rows of hidden states.
  void embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden);
  void layer(CommandStream& stream, Workspace& workspace, const LayerCall& call);
  /// The same for many sequences at once, which read the weights once. `hidden` holds the rows of the first
  /// sequence, then those of the second, and so on. Every row's result is that of layer().
  /// `sequences` (host memory) lives until the stream has run.
  void layer_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                   std::span<const SequenceRows> sequences);
  /// Computes K of all rows of the call (norm, K projection, position: as the cache holds it, rounded to its
  /// type) and compares it with the cache's. A token's deviation is the sum of squared differences over all
  /// elements of K, in f32, in their order. The `count` tokens with the largest are chosen; of equal ones the
  /// earlier. The cache is only read. `positions` is written on the stream, so that no host waits for it.
  void select(CommandStream& stream, Workspace& workspace, const SelectCall& call);
  /// One layer over the chosen tokens. Every row's result is that of layer() calls of one row each in the
  /// order of positions over the same cache.
  void layer_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call);
  /// Takes `rows` rows of hidden states through a map, in place: each becomes x + (W x + (scale * x + bias)),
  /// the sum in f32, rounded once; where all that is added is 0 the row keeps its bits. The products read W
  /// and x (low-rank: also what lies between the two) in the compute dtype and sum in f32. `map` lives until
  /// the stream has run.
  void align(CommandStream& stream, Workspace& workspace, const DeviceMap& map, std::byte* hidden,
             int64_t rows);
  /// Final norm, lm_head and the choice of a token, of one row.
  void head(CommandStream& stream, Workspace& workspace, const HeadCall& call);
  void logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden, float* logits) {
    head(stream, workspace, {.hidden = hidden, .logits = logits});
  }
  /// The same for many rows: rows[i] of `hidden` -> logits[i][vocab]. `rows` (host memory, each >= 0) lives
  /// until the stream has run.
  void logits_batch(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                    std::span<const int64_t> rows, float* logits);
  /// embed(), a layer() of one row for each layer, and head(), as one: what decoding does per token.
  void step(CommandStream& stream, Workspace& workspace, const StepCall& call);
  /// From now on kernels add their times to `times` (null: no longer). Only while no stream runs; as long as
  /// it is set, one stream at a time may run this model.
  virtual void set_profile(PhaseTimes* times) = 0;

 protected:
  // As the public calls, of what they have let pass. Streams are of this backend and compute.
  virtual Result<std::unique_ptr<Workspace>> new_workspace(int64_t max_context) = 0;
  virtual Result<std::unique_ptr<DeviceMap>> new_map(const AlignmentMap& map) = 0;
  virtual void enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) = 0;
  virtual void enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) = 0;
  virtual void enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                             std::span<const SequenceRows> sequences) = 0;
  virtual void enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) = 0;
  virtual void enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) = 0;
  virtual void enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map,
                             std::byte* hidden, int64_t rows) = 0;
  virtual void enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) = 0;
  virtual void enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                              std::span<const int64_t> rows, float* logits) = 0;
  virtual void enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) = 0;
  /// Whose workspaces and maps this model's calls take: one that wraps another's has those of the other.
  virtual const DeviceModel& owner() const { return *this; }

 private:
  Status check_sequence(const Workspace& workspace, int64_t layer, const std::byte* hidden,
                        const SequenceRows& sequence) const;
};

/// What became of the file of packed weights at a load.
enum class WeightCacheStatus : uint8_t {
  kOff,      // none was asked for, or the backend has none
  kHit,      // the weights are mapped from it
  kWritten,  // there was none that fits; the weights were packed, written and mapped
  kFailed,   // it could not be written; the weights were packed into memory
};
std::string_view weight_cache_status_name(WeightCacheStatus status);  // "off", "hit", "written", "failed"

struct LoadReport {
  WeightCacheStatus weight_cache = WeightCacheStatus::kOff;
  std::string path;          // of the file
  std::string reason;        // why a file that was there is not used, or why none could be written
  int64_t shared_bytes = 0;  // packed weights of an adapter that are its base's, mapped from the base's file
};

struct LoadOptions {
  DType dtype = DType::kBF16;                                      // compute and cache type: kBF16 or kF32
  std::function<void(int64_t done, int64_t total)> progress = {};  // weight bytes; may be empty
  std::string weight_cache = {};      // folder of packed weights; empty: pack into memory at every start
  std::string fingerprint = {};       // of the checkpoint (ModelIdentity); weight_cache needs it
  std::string base_fingerprint = {};  // of an adapter's base: where most of its weights are the base's, these
                                      // are packed and mapped once, as the base's own file in weight_cache
  LoadReport* report = nullptr;       // filled where given
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual std::string description() const = 0;  // device, ISA, threads, library versions
  /// kUnsupported: types, or shapes of heads, that no kernel is for.
  Result<std::unique_ptr<DeviceModel>> load(const Checkpoint& checkpoint, const LoadOptions& options);
  /// A model of random weights as Checkpoint::random() draws them, or like them where a device makes its own.
  Result<std::unique_ptr<DeviceModel>> load_random(const ModelConfig& config, const LoadOptions& options,
                                                   uint64_t seed);
  /// Whether the host may read and write what kernels do: then nothing needs to be copied between the two.
  virtual bool host_visible() const = 0;
  /// kExhausted (of the host) or kDeviceMemory: says needed and available bytes.
  virtual Result<std::unique_ptr<DeviceMemory>> allocate(int64_t bytes,
                                                         MemoryKind kind = MemoryKind::kDevice) = 0;
  /// Ranges become memory in multiples of so many bytes; 0: each as a whole, when it is reserved.
  virtual int64_t range_step() const { return 0; }
  /// Addresses for `bytes` of device memory, none of it committed yet. kExhausted: no such range is free. A
  /// backend without virtual memory of its own commits all of it at once.
  virtual Result<std::unique_ptr<GrowingMemory>> reserve(int64_t bytes);
  /// `capacity`: most commands enqueued between two synchronize() calls.
  Result<std::unique_ptr<CommandStream>> make_stream(StreamKind kind, int64_t capacity);
  virtual Result<std::unique_ptr<Event>> make_event() = 0;
  /// FLOP per second of one large matrix product of this type, measured now: the bound that a prefill is held
  /// against.
  Result<double> measure_matmul_flops(DType dtype);
  /// Bytes per second that all threads together read from memory, measured now over a buffer far larger than
  /// the caches: the bound that decoding is held against.
  virtual Result<double> measure_read_bandwidth() = 0;

 protected:
  // As the public calls, of what they have let pass.
  virtual int64_t max_head_dim() const = 0;
  virtual Result<std::unique_ptr<DeviceModel>> new_model(const Checkpoint& checkpoint,
                                                         const LoadOptions& options) = 0;
  virtual Result<std::unique_ptr<DeviceModel>> new_random_model(const ModelConfig& config,
                                                                const LoadOptions& options,
                                                                uint64_t seed) = 0;
  virtual Result<std::unique_ptr<CommandStream>> new_stream(StreamKind kind, int64_t capacity) = 0;
  virtual Result<double> time_matmul_flops(DType dtype) = 0;

 private:
  Status check_dtype(DType dtype) const;
  Status check_model(const ModelConfig& config, std::string_view model, DType dtype) const;
};

}  // namespace ds
