// What every backend refuses, in the same words: checked before anything is enqueued, made or laid out.
#include "runtime/backends/backend.h"

#include "support/units.h"

namespace ds {
namespace {

/// Whether a map's arrays fit its form and hidden states of `width`.
Status check_map(const AlignmentMap& map, int64_t width) {
  const bool full = map.form == MapForm::kFull, low_rank = map.form == MapForm::kLowRank;
  const std::string what = fmt::format("the {} map of layer {}", map_form_name(map.form), map.layer);
  auto size = [](const std::vector<float>& v) { return static_cast<int64_t>(v.size()); };
  if (map.form == MapForm::kNone)
    return error(Code::kInvalidArgument, "a map of layer {} without a form cannot be applied", map.layer);
  if (size(map.bias) != width)
    return error(Code::kMismatch, "{} is for hidden states of width {}, the model's have {}", what,
                 size(map.bias), width);
  if (size(map.weight) != (full ? width * width : 0) || size(map.scale) != (full ? 0 : width) ||
      map.rank < (low_rank ? 1 : 0) || map.rank > (low_rank ? width : 0) ||
      size(map.up) != width * map.rank || size(map.down) != width * map.rank)
    return error(
        Code::kInvalidArgument,
        "{} of rank {} has {} numbers in its weight, {} and {} in up and down, {} in its scale; these do "
        "not fit width {}",
        what, map.rank, size(map.weight), size(map.up), size(map.down), size(map.scale), width);
  return ok_status();
}

/// Where `status` is a failure the stream keeps it, and nothing is to be enqueued.
bool refused(CommandStream& stream, Status status) {
  if (status.ok()) return false;
  stream.fail(std::move(status));
  return true;
}

/// Kernels run on compute streams only; `what` names the call.
Status check_stream(const CommandStream& stream, std::string_view what) {
  if (stream.kind() == StreamKind::kCompute) return ok_status();
  return error(Code::kInvalidArgument, "{} enqueued on a {} stream; kernels run on compute streams only",
               what, stream_kind_name(stream.kind()));
}

Status check_token(int32_t id, int64_t index, int64_t rows, int64_t vocab) {
  if (id >= 0 && id < vocab) return ok_status();
  return error(Code::kInvalidArgument, "embed: token {} of {} is {}; the vocabulary has {}", index, rows, id,
               vocab);
}

std::string_view whose(bool own) { return own ? "of this model" : "of another model"; }

Status check_head(bool own, const std::byte* hidden, std::string_view what) {
  if (own && hidden != nullptr) return ok_status();
  return error(Code::kInvalidArgument, "{} {} hidden states, in a workspace {}", what,
               hidden == nullptr ? "without" : "of", whose(own));
}

}  // namespace

// ---- models

Result<std::unique_ptr<Workspace>> DeviceModel::make_workspace(int64_t max_context) {
  if (max_context < 1 || max_context > INT32_MAX)
    return error(Code::kInvalidArgument, "workspace for a context of {} tokens", max_context);
  return new_workspace(max_context);
}

Result<std::unique_ptr<DeviceMap>> DeviceModel::load_map(const AlignmentMap& map) {
  DS_TRY(check_map(map, config().d_model));
  return new_map(map);
}

Status DeviceModel::check_sequence(const Workspace& w, int64_t layer, const std::byte* hidden,
                                   const SequenceRows& s) const {
  const bool own = &w.model() == &owner();
  if (own && layer >= 0 && layer < config().layers && s.rows >= 1 && s.position >= 0 &&
      s.position + s.rows <= w.max_context() && s.query_rows >= 0 && s.query_rows <= s.rows &&
      s.prefix_rows >= 0 && s.prefix_rows <= s.position && (s.prefix != nullptr || s.prefix_rows == 0) &&
      hidden != nullptr && s.cache != nullptr)
    return ok_status();
  return error(Code::kInvalidArgument,
               "layer {} (of {}) over rows {} to {} with {} query rows behind a prefix of {}, {}, in a "
               "workspace {} for {} positions",
               layer, config().layers, s.position, s.position + s.rows, s.query_rows, s.prefix_rows,
               hidden == nullptr    ? "without hidden states"
               : s.cache == nullptr ? "without a cache"
                                    : "with hidden states and cache",
               whose(own), w.max_context());
}

void DeviceModel::embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) {
  if (rows == 0 || refused(stream, check_stream(stream, "embed"))) return;
  if (rows < 0 || ids == nullptr || hidden == nullptr)
    return stream.fail(error(Code::kInvalidArgument, "embed {} rows {} tokens or hidden states", rows,
                             ids == nullptr || hidden == nullptr ? "without" : "with"));
  for (int64_t i = 0; i < rows; ++i)
    if (refused(stream, check_token(ids[i], i, rows, config().vocab))) return;
  enqueue_embed(stream, ids, rows, hidden);
}

void DeviceModel::layer(CommandStream& stream, Workspace& w, const LayerCall& call) {
  const SequenceRows sequence{call.cache, call.position, call.rows, call.query_rows};
  if (refused(stream, check_stream(stream, "layer")) ||
      refused(stream, check_sequence(w, call.layer, call.hidden, sequence)))
    return;
  enqueue_layer(stream, w, call);
}

void DeviceModel::layer_batch(CommandStream& stream, Workspace& w, int64_t layer, std::byte* hidden,
                              std::span<const SequenceRows> sequences) {
  if (sequences.empty() || refused(stream, check_stream(stream, "layer"))) return;
  for (size_t i = 0; i < sequences.size(); ++i)
    if (Status status = check_sequence(w, layer, hidden, sequences[i]); !status.ok())
      return stream.fail(status.with_context(fmt::format("sequence {} of {}", i, sequences.size())));
  enqueue_batch(stream, w, layer, hidden, sequences);
}

void DeviceModel::select(CommandStream& stream, Workspace& w, const SelectCall& call) {
  if (refused(stream, check_stream(stream, "select"))) return;
  const bool memory = call.hidden != nullptr && call.cache != nullptr && call.positions != nullptr;
  const bool own = &w.model() == &owner();
  if (!own || call.layer < 0 || call.layer >= config().layers || call.rows < 1 ||
      call.rows > w.max_context() || call.count < 1 || call.count > call.rows || !memory)
    return stream.fail(
        error(Code::kInvalidArgument,
              "select {} of {} rows at layer {} (of {}), {}, in a workspace {} for {} positions", call.count,
              call.rows, call.layer, config().layers,
              memory ? "with all memory" : "without hidden states, cache or positions", whose(own),
              w.max_context()));
  enqueue_select(stream, w, call);
}

void DeviceModel::layer_selected(CommandStream& stream, Workspace& w, const SelectedCall& call) {
  if (refused(stream, check_stream(stream, "layer"))) return;
  const bool memory = call.hidden != nullptr && call.cache != nullptr && call.positions != nullptr;
  const bool own = &w.model() == &owner();
  if (!own || call.layer < 0 || call.layer >= config().layers || call.rows < 1 ||
      call.rows > w.max_context() || !memory)
    return stream.fail(error(Code::kInvalidArgument,
                             "layer {} (of {}) over {} selected rows, {}, in a workspace {} for {} positions",
                             call.layer, config().layers, call.rows,
                             memory ? "with all memory" : "without hidden states, cache or positions",
                             whose(own), w.max_context()));
  enqueue_selected(stream, w, call);
}

void DeviceModel::align(CommandStream& stream, Workspace& w, const DeviceMap& map, std::byte* hidden,
                        int64_t rows) {
  if (rows == 0 || refused(stream, check_stream(stream, "align"))) return;
  const bool own = &w.model() == &owner(), own_map = &map.model() == &owner();
  if (!own || !own_map || rows < 0 || hidden == nullptr)
    return stream.fail(error(Code::kInvalidArgument,
                             "align {} rows, {} hidden states, by a map {}, in a workspace {}", rows,
                             hidden == nullptr ? "without" : "with", whose(own_map), whose(own)));
  if (map.shape() >= w.map_shapes())
    return stream.fail(error(
        Code::kInvalidArgument,
        "align {} rows by a map that was loaded after the workspace was made; load the maps first", rows));
  enqueue_align(stream, w, map, hidden, rows);
}

void DeviceModel::head(CommandStream& stream, Workspace& w, const HeadCall& call) {
  if (call.logits == nullptr && call.next == nullptr) return;
  if (refused(stream, check_stream(stream, "head")) ||
      refused(stream, check_head(&w.model() == &owner(), call.hidden, "head")))
    return;
  enqueue_head(stream, w, call);
}

void DeviceModel::logits_batch(CommandStream& stream, Workspace& w, const std::byte* hidden,
                               std::span<const int64_t> rows, float* logits) {
  if (rows.empty() || refused(stream, check_stream(stream, "logits")) ||
      refused(stream, check_head(&w.model() == &owner(), hidden, "logits")))
    return;
  for (size_t i = 0; i < rows.size(); ++i)
    if (rows[i] < 0 || logits == nullptr)
      return stream.fail(error(Code::kInvalidArgument, "logits {} of {} of row {}, {}", i, rows.size(),
                               rows[i], logits == nullptr ? "which nobody wants" : "which is none"));
  enqueue_logits(stream, w, hidden, rows, logits);
}

void DeviceModel::step(CommandStream& stream, Workspace& w, const StepCall& call) {
  if (refused(stream, check_stream(stream, "step"))) return;
  const int64_t layers = config().layers;
  if (static_cast<int64_t>(call.caches.size()) != layers)
    return stream.fail(error(Code::kInvalidArgument, "a step with caches of {} layers; the model has {}",
                             call.caches.size(), layers));
  for (int64_t l = 0; l < layers; ++l)
    if (refused(stream,
                check_sequence(w, l, call.hidden, {call.caches[static_cast<size_t>(l)], call.position})))
      return;
  if (refused(stream, check_token(call.token, 0, 1, config().vocab))) return;
  enqueue_step(stream, w, call);
}

// ---- backends

Status Backend::check_dtype(DType dtype) const {
  if (dtype == DType::kBF16 || dtype == DType::kF32) return ok_status();
  return error(Code::kUnsupported, "the {} backend computes in bf16 or f32, not in {}", name(),
               dtype_name(dtype));
}

Status Backend::check_model(const ModelConfig& c, std::string_view model, DType dtype) const {
  DS_TRY(check_dtype(dtype));
  if (c.head_dim < 2 || c.head_dim % 2 != 0 || c.head_dim > max_head_dim())
    return error(Code::kUnsupported, "'{}': head_dim {}; the {} backend does even numbers from 2 to {}",
                 model, c.head_dim, name(), max_head_dim());
  if (c.kv_heads < 1 || c.heads % c.kv_heads != 0)
    return error(Code::kUnsupported,
                 "'{}': {} attention heads for {} kv heads; the former must be a multiple", model, c.heads,
                 c.kv_heads);
  return ok_status();
}

Result<std::unique_ptr<DeviceModel>> Backend::load(const Checkpoint& checkpoint, const LoadOptions& options) {
  DS_TRY(check_model(checkpoint.config(), checkpoint.name(), options.dtype));
  return new_model(checkpoint, options);
}

Result<std::unique_ptr<DeviceModel>> Backend::load_random(const ModelConfig& config,
                                                          const LoadOptions& options, uint64_t seed) {
  DS_TRY(check_model(config, fmt::format("random-{}", seed), options.dtype));
  return new_random_model(config, options, seed);
}

Result<std::unique_ptr<CommandStream>> Backend::make_stream(StreamKind kind, int64_t capacity) {
  constexpr int64_t kMost = int64_t{1} << 24;
  if (capacity < 1 || capacity > kMost)
    return error(Code::kInvalidArgument, "{} stream of {} commands; expected 1 to {}", stream_kind_name(kind),
                 capacity, kMost);
  return new_stream(kind, capacity);
}

Result<double> Backend::measure_matmul_flops(DType dtype) {
  DS_TRY(check_dtype(dtype));
  return time_matmul_flops(dtype);
}

}  // namespace ds
