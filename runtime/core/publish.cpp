#include "runtime/core/publish.h"

#include <algorithm>
#include <chrono>

#include "runtime/store/entry.h"

namespace ds {
namespace {

using Clock = std::chrono::steady_clock;

int64_t since_ns(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

}  // namespace

Result<Published> publish(Backend& backend, DeviceModel& model, const ModelIdentity& sender,
                          std::span<const int32_t> context, Store& store, const PublishOptions& options) {
  const ModelConfig& config = model.config();
  auto n = static_cast<int64_t>(context.size());
  if (n < 1 || n > config.max_positions) {
    return error(Code::kInvalidArgument, "the context has {} tokens; this model can publish 1 to {}", n,
                 config.max_positions);
  }
  for (size_t i = 0; i < context.size(); ++i) {
    if (context[i] < 0 || context[i] >= config.vocab) {
      return error(Code::kInvalidArgument, "context token {} has id {}, outside the model's vocabulary 0-{}",
                   i, context[i], config.vocab - 1);
    }
  }
  for (int32_t cut : options.cuts) {
    if (cut < 1 || cut >= config.layers) {
      return error(Code::kInvalidArgument, "a cut at layer {} does not lie in layers 1-{}", cut,
                   config.layers - 1);
    }
  }

  int64_t hidden_bytes = n * config.d_model * dtype_size(model.dtype());
  int64_t kv_bytes = n * config.kv_row() * dtype_size(model.dtype());
  DS_ASSIGN(auto hidden, backend.allocate(hidden_bytes));
  DS_ASSIGN(auto workspace, model.make_workspace(n));
  DS_ASSIGN(auto stream, backend.make_stream(StreamKind::kCompute, 8));
  std::vector<std::unique_ptr<DeviceMemory>> kept;  // what the entry is written from
  std::vector<EntrySource> sources;
  auto keep = [&](TensorKind kind, int64_t layer, int64_t bytes) -> Result<std::byte*> {
    DS_ASSIGN(auto memory, backend.allocate(bytes));
    std::byte* data = memory->data();
    sources.push_back({kind, static_cast<int32_t>(layer), {data, static_cast<size_t>(bytes)}});
    kept.push_back(std::move(memory));
    return data;
  };

  auto start = Clock::now();
  model.embed(*stream, context.data(), n, hidden->data());
  for (int64_t l = 0; l < config.layers; ++l) {
    if (std::find(options.cuts.begin(), options.cuts.end(), l) != options.cuts.end()) {
      DS_ASSIGN(std::byte * e, keep(TensorKind::kE, l, hidden_bytes));
      stream->copy(e, hidden->data(), hidden_bytes);
    }
    DS_ASSIGN(std::byte * cache, keep(TensorKind::kKv, l, kv_bytes));
    // Nobody reads what leaves the last layer: its K and V are all that is needed.
    model.layer(*stream, *workspace, {l, hidden->data(), cache, 0, n, l + 1 < config.layers ? n : 0});
    DS_TRY(stream->synchronize());
    if (options.progress) options.progress(l + 1, config.layers);
  }
  Published published;
  published.prefill_ns = since_ns(start);

  start = Clock::now();
  EntryIdentity identity{sender.fingerprint, hash_tokens(context), options.salt, n, model.dtype()};
  published.key = identity.key();
  DS_ASSIGN(published.entry_bytes, write_entry(store, identity, sender, config.shape(), std::move(sources)));
  published.write_ns = since_ns(start);
  return published;
}

}  // namespace ds
