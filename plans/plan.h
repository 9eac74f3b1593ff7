// The plan in memory: what ds-compile emits, a .dsplan file holds and the runtime executes.
//
// A plan is a tiling of the (layer, token) plane (WHAT, `tiles`) and a schedule for it (WHEN, `ops`). Its ops
// speak of chunks of the context, not of tokens, so that a variant is right for every length in its range.
// All times are nanoseconds from the start of the request, all sizes bytes, all layers counted from 0.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "plans/alignment.h"
#include "support/units.h"

namespace ds {

inline constexpr int32_t kPlanFormatVersion = 6;     // newest that is read
inline constexpr int32_t kWrittenFormatVersion = 4;  // what is written where nobody asks for a newer one
inline constexpr int32_t kLiveFormatVersion = 6;     // what is written where a variant is for a live sender
inline constexpr int64_t kNoLimit = INT64_MAX;       // an open upper end of a range

/// Rows of a layer that a live sender computes, and shows, at a time: few, so that who follows need not wait,
/// but a kernel's worth.
inline constexpr int64_t kLiveRows = 512;

/// How a cell (layer, token) of the context gets its K and V. Room is left for project and splice.
enum class Mode : uint8_t {
  kLoad = 0,       // S's
  kRecompute = 1,  // R's own, by its whole layers, from hidden states at the tile's lower edge
  kRestore = 2,    // R's projections of S's hidden states, which are sent for every layer above 0 (HCache)
  kSelect = 3,     // S's, but R's own for the tokens whose K deviates most, chosen at run time (CacheBlend)
};
inline constexpr size_t kModes = 4;

/// link: network or store -> memory of kernels; copy: host -> device; compute: kernels. No plan has a copy
/// stream: where kernels read from a device, what a transfer reads is copied there block by block behind the
/// link (runtime/core/landing.h), and its time says so (MachineModel::conditions). Backends have such
/// streams.
enum class StreamKind : uint8_t { kLink = 0, kCopy = 1, kCompute = 2 };
inline constexpr StreamKind kPlanStreams[] = {StreamKind::kLink, StreamKind::kCompute};

/// What each kind has in its other fields; the verifier insists (plans/README.md, rules 10 and 16). The same
/// and more as a table: plans/traits.h.
///   kind           layer  chunk  rows     queries                                          buffer
///   transfer       l      c      chunk    none                                             by its payload
///   embed          -1     c      chunk    none                                             hidden
///   embed          -1     -1     suffix   none                                             hidden
///   embed          -1     -1     all      none                                             hidden
///   recompute      l      c      chunk    all; none at a group's top and where restored    hidden
///   recompute      l      -1     selected all; none in the last layer                      hidden
///   select         1      0      chunk    none                                             hidden
///   align          l      c      chunk    none                                             hidden
///   suffix         l      -1     suffix   all; last in the last layer                      hidden
///   prefill        l      -1     all      all; suffix at a group's top; last in the last   hidden
///   head           -1     -1     suffix   none                                             hidden
/// Recompute, suffix and prefill also write the cache of their layer: the one kKv buffer with that layer.
enum class OpKind : uint8_t {
  // 0 and 1: transfers of E and of K and V, in files up to format 4.
  kEmbed = 2,      // R's embeddings of `rows` -> `buffer`
  kRecompute = 3,  // layer `layer` over one context chunk of `buffer`, in place; K and V -> the layer's cache
  kSuffix = 4,     // layer `layer` over the suffix rows
  kPrefill = 5,    // layer `layer` over context and suffix together (one chunk, from the embeddings up)
  kHead = 6,       // final norm and logits of the last suffix token: the first token
  // Chooses the tokens whose K (R's, of the hidden states entering `layer`, against S's in the cache)
  // deviates most; their hidden states are moved to the front of `buffer`'s context rows. See
  // DeviceModel::select().
  kSelect = 7,
  kAlign = 8,     // takes S's hidden states entering `layer`, one chunk of `buffer`, to R's, in place
  kTransfer = 9,  // `payload` of `layer`, one chunk: `source` -> `buffer`
};
inline constexpr size_t kOpKinds = 10;  // numbers, of which the first two are no kinds

/// What a transfer takes from its source. A buffer of hidden states takes E, the cache of `layer` K and V.
enum class Payload : uint8_t { kNone = 0, kE = 1, kKv = 2 };
inline constexpr size_t kPayloads = 3;  // with kNone

/// The rows of hidden states that an op works on. Selected rows are the context's at the positions that the
/// variant's select op has chosen.
enum class Rows : uint8_t { kChunk = 0, kSuffix = 1, kAll = 2, kSelected = 3 };

/// Which of its rows go on through Q, attention and MLP; K and V are made for every row.
enum class Queries : uint8_t { kNone = 0, kAll = 1, kSuffix = 2, kLast = 3 };

struct Op {
  OpKind kind = OpKind::kHead;
  Payload payload = Payload::kNone;  // of a transfer
  int32_t stream = 0;                // index into Variant::streams
  int32_t layer = -1;                // -1: embed and head
  int32_t chunk = -1;                // index of the (first) context chunk; -1 where rows != kChunk
  Rows rows = Rows::kChunk;
  Queries queries = Queries::kNone;
  int32_t buffer = -1;   // index into Variant::buffers: what it writes (transfers) or updates (hidden states)
  int64_t start_ns = 0;  // predicted at the tuned length and rate
  int64_t duration_ns = 0;
  std::vector<int32_t>
      waits;                // ops (indices, all smaller than its own) that must have ended before it starts
  int32_t last_chunk = -1;  // last chunk of an op over several; -1: `chunk` alone
  int32_t source = 0;       // of a transfer: index into Plan::sources

  /// One past its last chunk; 0 where rows != kChunk.
  int32_t chunk_end() const { return (last_chunk < 0 ? chunk : last_chunk) + 1; }
  bool operator==(const Op&) const = default;
};

/// Start and end of an op in nanoseconds from the start of the request: predicted, simulated or measured.
struct OpTime {
  int64_t start_ns = 0, end_ns = 0;
};

struct Stream {
  StreamKind kind = StreamKind::kCompute;
  bool operator==(const Stream&) const = default;
};

enum class BufferKind : uint8_t {
  kKv = 0,      // the cache of one layer: context and suffix (and later tokens), rows of 2*kv_heads*head_dim
                // elements
  kHidden = 1,  // hidden states, rows of d_model elements
};

struct Buffer {
  BufferKind kind = BufferKind::kKv;
  int32_t layer = -1;        // kKv: its layer; kHidden: the layer at which the chain of this buffer starts
  bool with_suffix = false;  // has suffix rows behind its context rows
  bool with_context = true;  // has context rows
  bool operator==(const Buffer&) const = default;
};

/// One rectangle of the plane: layers first..last (inclusive), chunks first_chunk..last_chunk (inclusive). A
/// recompute tile without a cut stands on the embeddings (layer 0) or on recomputed cells. A restore tile
/// stands on nothing: E of each of its layers is sent, and layer 0 has the embeddings. A select tile covers
/// all tokens, in one chunk, of layer 1 to the last and stands on a recomputed layer 0.
struct Tile {
  Mode mode = Mode::kLoad;
  int32_t first_layer = 0, last_layer = 0;
  int32_t first_chunk = 0, last_chunk = 0;
  bool cut = false;  // recompute: its lower edge is S's hidden states (E of first_layer), sent

  /// Are hidden states of S sent for layer `l` of this tile?
  bool sends_e(int32_t l) const;
  bool operator==(const Tile&) const = default;
};

/// Equal, or both NaN (not known).
constexpr bool same_number(double a, double b) { return a == b || (a != a && b != b); }

inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

struct Promise {
  double quality_loss = 0;        // points of the task's metric (0 to 100); NaN: not known
  int64_t ttft_ns = 0;            // predicted at the tuned point
  double loss_stderr = kUnknown;  // standard error of quality_loss, points; NaN: not known
  double loss_bound = kUnknown;   // the true loss exceeds it with probability 1 - confidence only; NaN: none
                                  // was asked for, or it is not known
  double confidence = 0;          // of that bound, one-sided: above 0.5 and below 1; 0: none was asked for
  double divergence = kUnknown;   // nats per token of the reference answers, KL(full prefill || this way);
                                  // NaN: not known
  double divergence_stderr = kUnknown, divergence_bound = kUnknown;  // as those of the loss
  bool operator==(const Promise& o) const {
    return ttft_ns == o.ttft_ns && confidence == o.confidence && same_number(quality_loss, o.quality_loss) &&
           same_number(loss_stderr, o.loss_stderr) && same_number(loss_bound, o.loss_bound) &&
           same_number(divergence, o.divergence) && same_number(divergence_stderr, o.divergence_stderr) &&
           same_number(divergence_bound, o.divergence_bound);
  }
};

/// Another choice that the compiler had at a variant's tuned point.
struct Alternative {
  std::string what;              // "recompute 3-6"
  double quality_loss = 0;       // points; NaN: not known
  int64_t ttft_ns = 0;           // predicted
  int64_t compute_ns = 0;        // predicted busy time of the compute streams
  double divergence = kUnknown;  // nats per reference token; NaN: not known
  bool operator==(const Alternative& o) const {
    return what == o.what && ttft_ns == o.ttft_ns && compute_ns == o.compute_ns &&
           same_number(quality_loss, o.quality_loss) && same_number(divergence, o.divergence);
  }
};

/// Half-open ranges; the upper end may be kNoLimit.
struct Variant {
  std::string name;                               // "v0", "full-prefill"
  std::string policy;                             // droidspeak, balanced, cake, full-reuse, full-prefill
  std::string scheduler;                          // best, e-first, kv-preload, serial
  int64_t tokens_min = 1, tokens_max = kNoLimit;  // context length n
  int64_t rate_min = 0, rate_max = kNoLimit;      // link, bytes per second
  int64_t tuned_tokens = 0, tuned_suffix = 0, tuned_rate = 0;  // where start_ns and duration_ns hold
  int32_t chunks = 1;                                          // context chunks; see chunk_begin()
  Promise promise;
  int64_t makespan_ns = 0, lower_bound_ns = 0;
  bool proven_optimal = false;
  std::vector<Tile> tiles;
  std::vector<Stream> streams;
  std::vector<Buffer> buffers;
  std::vector<Op> ops;                        // ordered by start; the order on each stream is the order here
  int64_t load_min = 0, load_max = kNoLimit;  // other requests that wait while this one starts
  /// How much longer than the best candidate's its predicted TTFT (with a load: compute time) is, at the
  /// worst point of its ranges that was looked at: 0.05 is five percent. -1: not known.
  double regret = -1;
  std::string why;                        // the objective that it was chosen by, for people
  std::vector<Alternative> alternatives;  // at the tuned point, by TTFT; none beats another in loss and time
  double select_share =
      0;            // of the context's tokens that select tiles recompute, in (0, 1]; 0: there are none
  std::string way;  // whose loss in quality.json is promised (Way::name()): "recompute 7-11"; "": not known
  /// Of the maps that all hidden states of the sender go through before R's layers or projections do.
  MapForm map_form = MapForm::kNone;
  MapSide map_side =
      MapSide::kReceiver;  // the sender: what is sent has been mapped, and there is no align op

  /// For a sender that begins to compute the context as the request comes: transfers wait for what it shows.
  bool live = false;

  /// The form in which E is to be in the entry: as S has it (kNone), or mapped.
  MapForm sent_form() const { return map_side == MapSide::kSender ? map_form : MapForm::kNone; }
  /// Does R map what it gets?
  bool aligns() const { return map_form != MapForm::kNone && map_side == MapSide::kReceiver; }
  bool operator==(const Variant&) const = default;
};

/// First token of chunk c when n tokens are cut into `chunks`: multiples of 64, as even as can be;
/// chunk_begin(n, chunks, chunks) == n.
constexpr int64_t chunk_begin(int64_t n, int64_t chunks, int64_t c) {
  if (c >= chunks) return n;
  int64_t at = n * c / chunks;
  return at - at % 64;
}

/// Which rows an op works on for n context and m suffix tokens: positions [first, first + rows), of which the
/// last `queries` go through Q, attention and MLP.
struct OpRows {
  int64_t first = 0, rows = 0, queries = 0;
};
/// Selected rows are not at these positions; as far as work goes, they are taken to be the context's last.
OpRows op_rows(const Op& op, int32_t chunks, int64_t n, int64_t m, double select_share);

/// How many of n tokens a share are, at least 1: rounded up, where a millionth of a token is rounding itself.
int64_t selected_rows(double share, int64_t n);

/// What a model is, for identity checks. `fingerprint` covers all the others.
struct ModelIdentity {
  std::string name;         // the folder's name; for people only
  std::string fingerprint;  // SHA-256 over the fields below, hexadecimal
  std::string config;       // SHA-256 of the canonical architecture
  std::string weights;      // hash of all weight tensors
  std::string tokenizer;    // SHA-256 of tokenizer.json, "" where the folder has none
  bool operator==(const ModelIdentity&) const = default;
};

struct Shape {
  std::string family;  // llama, mistral, qwen2, qwen3: for people only, the numbers decide
  int64_t layers = 0, d_model = 0, ff = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0;
  int64_t kv_row() const { return 2 * kv_heads * head_dim; }  // elements per token and layer
  int64_t e_row() const { return d_model; }
  bool operator==(const Shape&) const = default;
};

/// How a source's rows came about, and so where they are right.
enum class SourceRule : uint8_t {
  kPrefix = 0,   // of the context's tokens from position 0 on: each row knows all before it
  kSegment = 1,  // of a run of tokens by itself: no row knows anything of what stands before the run
};
inline constexpr size_t kSourceRules = 2;

/// What transfers read. Which entries it is, and where their rows stand, is the request's business.
struct Source {
  SourceRule rule = SourceRule::kPrefix;
  ModelIdentity model;  // whose
  Shape shape;          // of that model
  bool operator==(const Source&) const = default;
};

struct InputFile {
  std::string role;    // "quality", "machine", "sender", "receiver"
  std::string name;    // file name without folders
  std::string sha256;  // of its bytes (models: the fingerprint)
  bool operator==(const InputFile&) const = default;
};

struct Provenance {
  std::string compiler_version;
  std::string flags;  // canonical text of all options that decided the result
  std::vector<InputFile> inputs;
  bool operator==(const Provenance&) const = default;
};

struct Plan {
  int32_t format_version = kWrittenFormatVersion;
  Provenance provenance;
  ModelIdentity sender, receiver;
  Shape shape;
  std::string dtype;              // element type for which the times were predicted: bf16 or f32
  std::string backend;            // of the machine that they were predicted from: cpu, cuda; "": not known
  std::vector<Variant> variants;  // ranges do not overlap
  Variant full_prefill;           // the fall-back: valid for every length and rate
  MapsIdentity maps;              // of all aligned cuts; empty: there are none
  int64_t shared_vocab = 0;       // token ids from it on only the receiver knows; 0: the sender knows all
  /// The first is the sender's. Up to format 4 there are none, and transfers read the one that sources_of()
  /// gives.
  std::vector<Source> sources;
  bool operator==(const Plan&) const = default;
};

/// A plan's sources; where it lists none, the one that it means: the sender, from position 0, of its shape.
std::vector<Source> sources_of(const Plan& plan);
/// Layers that a variant recomputes for at least one token (full prefill: all; a restored layer is none).
int64_t recomputed_layers(const Variant& variant);
/// Layers at which E is transferred, ascending, over all variants.
std::vector<int32_t> cut_layers(const Plan& plan);
/// E of a layer, as S has it or mapped.
struct Cut {
  int32_t layer = 0;
  MapForm form = MapForm::kNone;
  auto operator<=>(const Cut&) const = default;
};
/// What a sender must publish for a plan, over all variants, ascending.
std::vector<Cut> published_cuts(const Plan& plan);
/// The variant for a context of n tokens at a link rate (bytes per second) while `waiting` other requests
/// wait; nullptr: none covers it.
/// `live`: one for a live sender, where there is such a one; else only those for entries that are there.
const Variant* select_variant(const Plan& plan, int64_t n, int64_t rate, int64_t waiting = 0,
                              bool live = false);

std::string_view op_name(const Op& op);  // "transfer e", "recompute", ...
/// Names of enumerators: the schema's, in small letters (plans_test); "unknown" of a number that is none.
/// Payloads': plans/traits.h; forms and sides of maps: plans/alignment.h.
std::string_view mode_name(Mode mode);  // "load", "recompute", "restore", "select"
std::string_view stream_kind_name(StreamKind kind);
std::string_view buffer_kind_name(BufferKind kind);
std::string_view rows_name(Rows rows);
std::string_view queries_name(Queries queries);
std::string_view source_rule_name(SourceRule rule);
/// "e(3)", "kv(0)", "recompute 4", "suffix 4", "head": short label for pictures and records.
std::string op_label(const Op& op, int32_t chunks);

}  // namespace ds
