// Answers questions about a context over many caches at once: what the profiler's time goes into.
//
// For each first layer a the layers a .. L-1 are run once, from the sender's hidden states that enter a, and
// once more with each kind of map between; every group [a, b) takes its caches from such a run. So a context
// costs L(L+1)/2 layer-runs for all groups instead of the sum of their sizes. All ways are answered in
// batches: one set of weights, many mixed caches, which share the context's rows as prefixes and are never
// copied.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "profiler/ways.h"
#include "runtime/backends/backend.h"
#include "runtime/core/gate.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// Most tokens of a reference answer that the divergence is taken over (a vocabulary's worth of logits each).
inline constexpr int64_t kDivergenceTokens = 64;

struct Question {
  std::vector<int32_t> suffix;     // m >= 1 tokens behind the context
  std::vector<int32_t> reference;  // the reference answer's tokens; may be empty
  int64_t max_new_tokens = 1;
  std::vector<int32_t> alone;  // the whole text with an empty context; empty: nobody asks it without
};

struct WayAnswer {
  std::vector<int32_t> tokens;  // greedy, without the token that ended it
  double divergence = 0;        // nats per token of the reference answer; NaN: the sender alone
  double entropy = 0;           // of the first token's distribution, nats
  double margin = 0;            // its first less its second probability
};

struct ContextAnswers {
  std::vector<std::vector<WayAnswer>> ways;  // [way][question]; empty where the way was not active
  double k_deviation = 0;                    // runtime/core/gate.h
};

/// Counts and times, summed over contexts.
struct EngineWork {
  int64_t layer_runs = 0;   // one layer over one context
  int64_t kv_runs = 0;      // K and V alone of one layer over one context
  int64_t answer_rows = 0;  // rows of questions and answers through all layers
  int64_t sender_ns = 0, runs_ns = 0, answers_ns = 0, scores_ns = 0;
  PhaseTimes answer_phases = {};  // where the kernels' part of answers_ns goes
};

struct ProfileEngineLimits {
  int64_t context = 0;   // most tokens of a context
  int64_t question = 0;  // most of suffix + max(reference up to kDivergenceTokens, max_new_tokens)
  /// Rows answered at once. 0: as many as take 256 MiB of caches, 2,048 to 32,768. At least `question`.
  int64_t batch_rows = 0;
  /// Token ids from it on only the receiver knows; 0: the sender knows all of its vocabulary.
  int64_t shared_vocab = 0;
  int64_t alone = 0;  // as `question`, of the whole text with an empty context
};

class ProfileEngine {
 public:
  /// Maps by Way::map_control: "" this pair's.
  using Maps = std::map<std::string, const MapSet*>;
  /// Both models of one shape and dtype, loaded by `backend`. `ways` from all_ways(). All arguments outlive
  /// the engine, but for `maps`. kNotFound: a way needs a map that is not there. kExhausted: says what is
  /// needed and what there is.
  static Result<std::unique_ptr<ProfileEngine>> create(Backend& backend, DeviceModel& sender,
                                                       DeviceModel& receiver, const std::vector<Way>& ways,
                                                       const ProfileEngineLimits& limits,
                                                       std::vector<int32_t> stop_ids, const Maps& maps = {});
  ~ProfileEngine();

  /// The same bits for a context whatever was run before. Only ways with active[i] are answered; the full
  /// prefill always is. `other`: another document's tokens, as many as the context's, for the control of that
  /// name.
  Result<ContextAnswers> run(std::span<const int32_t> context, std::span<const Question> questions,
                             const std::vector<bool>& active, std::span<const int32_t> other = {});

  /// Bytes that caches and hidden states take, known before anything is allocated.
  static int64_t memory_bytes(const ModelConfig& config, DType dtype, const std::vector<Way>& ways,
                              const ProfileEngineLimits& limits);
  const EngineWork& work() const { return work_; }

 private:
  /// K and V of layers first .. first + count - 1 over the context.
  struct CacheSet {
    int64_t first = 0, count = 0;
    std::unique_ptr<DeviceMemory> memory;
  };
  struct Sequence;
  ProfileEngine(Backend& backend, DeviceModel& sender, DeviceModel& receiver, const std::vector<Way>& ways,
                const ProfileEngineLimits& limits, std::vector<int32_t> stop_ids);
  Status reserve();
  Status load_maps(const Maps& maps);
  Status run_sender(std::span<const int32_t> context, size_t set);
  Status run_receiver(std::span<const int32_t> context, const std::vector<bool>& active);
  Status run_restore(std::span<const int32_t> context, const MapKey& maps, size_t set);
  /// The sender's hidden states that enter a layer, through that map -> hidden_.
  void enter(int64_t layer, const MapKey& maps, int64_t rows);
  Status run_select(std::span<const int32_t> context, double share, size_t set);
  std::byte* cache(size_t set, int64_t layer) const;
  /// By layer: which set the way takes it from.
  std::vector<size_t> sources(const Way& way) const;

  /// The receiver asked without the context.
  Status answer_alone(const std::vector<size_t>& ways, std::span<const Question> questions,
                      ContextAnswers& out);
  /// All of one model: the sender's own, or the receiver's.
  Status answer(const std::vector<size_t>& ways, std::span<const Question> questions, ContextAnswers& out);
  Status answer_batch(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch,
                      ContextAnswers& out);
  Status read_logits(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch,
                     ContextAnswers& out);
  Status decode(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch, ContextAnswers& out);
  bool stops(int32_t token) const;

  Backend& backend_;
  DeviceModel &sender_, &receiver_;
  const std::vector<Way>& ways_;
  ProfileEngineLimits limits_;
  std::vector<int32_t> stop_ids_;
  int64_t layers_ = 0, hidden_row_ = 0, kv_row_ = 0;

  // Sets: 0 the sender's; 1 + i the run runs_.runs[i]; then what is restored, with each kind of map, and the
  // selections, and the sender's of another document, where asked for.
  SharedRuns runs_;
  std::vector<CacheSet> sets_;
  size_t restore_set_ = 0, select_set_ = 0, other_set_ = 0;
  std::vector<MapKey> restored_;  // kinds of maps that layers are restored with, by set
  std::map<std::pair<int64_t, MapKey>, std::unique_ptr<DeviceMap>> maps_;  // by layer
  std::unique_ptr<DeviceMemory> positions_;                                // of selected tokens
  std::unique_ptr<DeviceMemory> entering_, hidden_, tails_;  // E by layer; rows at work; K and V of questions
  std::unique_ptr<Workspace> sender_workspace_, receiver_workspace_;
  std::unique_ptr<CommandStream> stream_;
  std::unique_ptr<KeyDeviation> deviation_;
  // Of the context at work:
  int64_t context_tokens_ = 0;
  std::vector<std::vector<float>>
      reference_;  // by question: the full prefill's log-probabilities [positions][vocab]
  EngineWork work_;
};

}  // namespace ds
