#include "runtime/core/publish.h"

#include <algorithm>
#include <chrono>
#include <tuple>

#include "runtime/model/identity.h"
#include "runtime/store/entry.h"

namespace ds {
namespace {

using Clock = std::chrono::steady_clock;

int64_t since_ns(Clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
}

/// E of one layer, as it is to be stored.
struct Wanted {
  Cut cut;
  std::string maps;                   // fingerprint
  const AlignmentMap* map = nullptr;  // null: as the sender has it
  std::shared_ptr<DeviceMap> loaded = {};
  bool operator<(const Wanted& o) const { return std::tie(cut, maps) < std::tie(o.cut, o.maps); }
};

Status check_maps(const MapSet& maps, const ModelIdentity& sender, const ModelConfig& config) {
  if (!names_model(maps.sender_fingerprint, sender))
    return error(
        Code::kMismatch,
        "the maps ({:.12}) take hidden states of sender '{}' (fingerprint {:.12}) to '{}', this sender is "
        "'{}' ({:.12}); give maps of this sender",
        maps.fingerprint(), maps.sender_name, maps.sender_fingerprint, maps.receiver_name, sender.name,
        sender.fingerprint);
  if (maps.layers == config.layers && maps.d_model == config.d_model) return ok_status();
  return error(Code::kMismatch,
               "the maps ({:.12}) are for {} layers of width {}, the sender has {} of width {}",
               maps.fingerprint(), maps.layers, maps.d_model, config.layers, config.d_model);
}

/// Adds `cuts` to `wanted`, after everything that could be wrong with them.
Status add_cuts(const std::vector<Cut>& cuts, const MapSet* maps, const ModelIdentity& sender,
                const ModelConfig& config, std::vector<Wanted>& wanted) {
  const bool mapped = std::any_of(cuts.begin(), cuts.end(), [](Cut c) { return c.form != MapForm::kNone; });
  std::string fingerprint;
  if (mapped && maps != nullptr) {
    DS_TRY(check_maps(*maps, sender, config));
    fingerprint = maps->fingerprint();
  }
  for (const Cut& cut : cuts) {
    if (cut.layer < 1 || cut.layer >= config.layers)
      return error(Code::kInvalidArgument, "a cut at layer {} does not lie in layers 1-{}", cut.layer,
                   config.layers - 1);
    if (cut.form == MapForm::kNone) {
      wanted.push_back({cut, ""});
      continue;
    }
    const std::string_view form = map_form_name(cut.form);
    if (maps == nullptr)
      return error(
          Code::kInvalidArgument,
          "the cut at layer {} is to go through a {} map, but no maps were given; give the plan's file of "
          "maps",
          cut.layer, form);
    const AlignmentMap* map = maps->find(cut.layer, cut.form);
    if (map == nullptr)
      return error(Code::kNotFound, "the maps ({:.12}) from '{}' to '{}' have no {} map of layer {}",
                   fingerprint, maps->sender_name, maps->receiver_name, form, cut.layer);
    wanted.push_back({cut, fingerprint, map});
  }
  return ok_status();
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
  if (options.first < 0 || options.first >= n || options.first % kChecksumRows != 0)
    return error(Code::kInvalidArgument,
                 "the entry is to begin at token {} of {}; expected a multiple of {} below that",
                 options.first, n, kChecksumRows);
  std::vector<Wanted> wanted;
  DS_TRY(add_cuts(options.cuts, options.maps, sender, config, wanted));
  for (const MappedCuts& more : options.more) DS_TRY(add_cuts(more.cuts, more.maps, sender, config, wanted));
  std::sort(wanted.begin(), wanted.end());
  auto same = [](const Wanted& a, const Wanted& b) { return !(a < b) && !(b < a); };
  wanted.erase(std::unique(wanted.begin(), wanted.end(), same), wanted.end());
  for (Wanted& w : wanted) {
    if (w.map == nullptr) continue;
    DS_ASSIGN(std::unique_ptr<DeviceMap> loaded, model.load_map(*w.map));
    w.loaded = std::move(loaded);
  }

  int64_t hidden_bytes = n * config.d_model * dtype_size(model.dtype());
  int64_t kv_bytes = n * config.kv_row() * dtype_size(model.dtype());
  // What the entry is written from is the host's. Where kernels cannot write that, they have rows of their
  // own, which are copied from.
  const bool direct = backend.host_visible();
  std::vector<std::unique_ptr<DeviceMemory>> kept;
  std::unique_ptr<DeviceMemory> mapped, computed;
  if (!direct) {
    DS_ASSIGN(computed, backend.allocate(kv_bytes));
    if (std::any_of(wanted.begin(), wanted.end(), [](const Wanted& w) { return w.loaded != nullptr; })) {
      DS_ASSIGN(mapped, backend.allocate(hidden_bytes));
    }
  }
  DS_ASSIGN(auto hidden, backend.allocate(hidden_bytes));
  DS_ASSIGN(auto workspace, model.make_workspace(n));
  DS_ASSIGN(auto stream,
            backend.make_stream(StreamKind::kCompute, static_cast<int64_t>(3 * wanted.size()) + 8));
  std::vector<EntrySource> sources;
  auto keep = [&](TensorKind kind, int64_t layer, int64_t bytes, std::string map = {}) -> Result<std::byte*> {
    DS_ASSIGN(auto memory, backend.allocate(bytes, direct ? MemoryKind::kDevice : MemoryKind::kHost));
    std::byte* data = memory->data();
    const std::span<const std::byte> rows(data, static_cast<size_t>(bytes));
    const auto skipped = static_cast<size_t>(bytes / n * options.first);
    sources.push_back({kind, static_cast<int32_t>(layer), rows.subspan(skipped), std::move(map)});
    kept.push_back(std::move(memory));
    return data;
  };

  Published published;
  auto start = Clock::now();
  model.embed(*stream, context.data(), n, hidden->data());
  for (int64_t l = 0; l < config.layers; ++l) {
    for (const Wanted& w : wanted) {
      if (w.cut.layer != l) continue;
      DS_ASSIGN(std::byte * e, keep(TensorKind::kE, l, hidden_bytes, entry_map(w.maps, w.cut.form)));
      if (w.loaded) {
        std::byte* rows = direct ? e : mapped->data();
        stream->copy(rows, hidden->data(), hidden_bytes);
        model.align(*stream, *workspace, *w.loaded, rows, n);
        if (!direct) stream->copy(e, rows, hidden_bytes);
      } else {
        stream->copy(e, hidden->data(), hidden_bytes);
      }
      published.cuts.push_back({w.cut, w.maps, static_cast<int64_t>(sources.back().data.size())});
    }
    DS_ASSIGN(std::byte * kv, keep(TensorKind::kKv, l, kv_bytes));
    std::byte* cache = direct ? kv : computed->data();
    // Nobody reads what leaves the last layer: its K and V are all that is needed.
    model.layer(*stream, *workspace, {l, hidden->data(), cache, 0, n, l + 1 < config.layers ? n : 0});
    if (!direct) stream->copy(kv, cache, kv_bytes);
    DS_TRY(stream->synchronize());
    if (options.progress) options.progress(l + 1, config.layers);
  }
  published.prefill_ns = since_ns(start);

  start = Clock::now();
  const EntryIdentity identity =
      entry_identity(sender.fingerprint, context, options.first, options.salt, model.dtype());
  published.key = identity.key();
  DS_ASSIGN(published.entry_bytes, write_entry(store, identity, sender, config.shape(), std::move(sources)));
  published.write_ns = since_ns(start);
  return published;
}

}  // namespace ds
