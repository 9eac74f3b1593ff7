#include "runtime/core/publish.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <numeric>
#include <tuple>

#include <fmt/ranges.h>

#include "runtime/model/identity.h"
#include "runtime/store/entry.h"
#include "runtime/store/live_entry.h"
#include "support/clock.h"

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
  std::string fingerprint;
  if (maps != nullptr && through_maps(cuts)) {
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

struct Publication::State {
  Backend& backend;
  DeviceModel& model;
  const ModelIdentity sender;
  const std::vector<int32_t> context;
  const std::string salt;
  int64_t first = 0;  // token whose rows are the first that are stored
  int64_t from = 0;   // and that are computed: 0 or `first`
  int64_t every = 0;  // PublishOptions::every, as it is kept to
  Earlier earlier = {};
  const bool direct;  // the entry is written from where kernels write
  std::vector<Wanted> wanted;
  std::vector<int32_t> kv_layers;  // whose K and V are stored
  EntryIdentity identity = {};
  int64_t n, hidden_row, kv_row;  // rows; bytes
  // Where kernels cannot write what is the host's, they have rows of their own, which are copied from.
  std::unique_ptr<DeviceMemory> hidden, mapped, computed;
  /// A tensor of all that is computed.
  struct Kept {
    TensorKind kind;
    int32_t layer;
    std::string map;
    int64_t begin, row_bytes;  // token of its first row
    std::unique_ptr<DeviceMemory> memory;
    std::byte* row(int64_t token) const { return memory->data() + (token - begin) * row_bytes; }
  };
  std::vector<Kept> kept;      // in the order in which they come
  size_t next = 0;             // of them, for the entry that is computed
  int64_t begin = 0, end = 0;  // that entry's tokens; those before `first` are not stored
  std::byte* kv = nullptr;     // of the layer
  int64_t layer = 0, row = 0;
  Published published;
  Clock::time_point start;
  std::unique_ptr<LiveEntryWriter> live;  // of who is shown what has been computed
  std::atomic<int64_t> shown_ns{0};

  bool is_first() const { return begin == from; }
  bool stores(TensorKind kind, int32_t of) const {
    return kind != TensorKind::kKv || std::binary_search(kv_layers.begin(), kv_layers.end(), of);
  }
  void begin_entry(int64_t at) {
    begin = row = at;
    end = every == 0 ? n : std::min(std::max(at, first) + every, n);
    layer = 0;
    next = 0;
  }
  /// What depends on where it begins to store and to compute.
  void set_first(int64_t token, int64_t from_token, int64_t asked_every) {
    first = token;
    from = from_token;
    constexpr auto kMost = static_cast<int64_t>(kLongestChain);
    const int64_t least =
        ((n - first + kMost - 1) / kMost + kChecksumRows - 1) / kChecksumRows * kChecksumRows;
    every = asked_every == 0 ? 0 : std::max(asked_every, least);
    identity = entry_identity(sender.fingerprint, context, first, salt, model.dtype());
    published.key = identity.key();
    published.first = first;
    published.entries = 0;
    begin_entry(from);
  }
  Result<const Kept*> keep(TensorKind kind, int64_t row_bytes, std::string map = {}) {
    if (is_first()) {
      const int64_t at = kind == TensorKind::kE ? from : 0;
      DS_ASSIGN(auto memory,
                backend.allocate((n - at) * row_bytes, direct ? MemoryKind::kDevice : MemoryKind::kHost));
      kept.push_back({kind, static_cast<int32_t>(layer), std::move(map), at, row_bytes, std::move(memory)});
    }
    return &kept[next++];
  }
  Status begin_layer(CommandStream& stream, Workspace& workspace);
  void end_live(Status why) {
    live.reset();
    published.live = std::move(why);
  }
};

Publication::Publication(std::unique_ptr<State> state) : state_(std::move(state)) {}
Publication::~Publication() = default;

Result<std::unique_ptr<Publication>> Publication::create(Backend& backend, DeviceModel& model,
                                                         const ModelIdentity& sender,
                                                         std::vector<int32_t> context,
                                                         const PublishOptions& options) {
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
  if (options.live_rows < 0 || options.live_rows % kChecksumRows != 0)
    return error(Code::kInvalidArgument, "{} rows are to be shown at a time; expected a multiple of {}, or 0",
                 options.live_rows, kChecksumRows);
  if (options.live_rows > 0 && options.every > 0)
    return error(Code::kInvalidArgument,
                 "an entry for every {} tokens and one that is shown while it is computed contradict each "
                 "other: either serves who asks meanwhile",
                 options.every);
  if (options.every < 0 || options.every % kChecksumRows != 0)
    return error(Code::kInvalidArgument, "an entry for every {} tokens; expected a multiple of {}, or 0",
                 options.every, kChecksumRows);
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
  std::vector<int32_t> kv_layers = options.kv_layers;
  if (kv_layers.empty()) {
    kv_layers.resize(static_cast<size_t>(config.layers));
    std::iota(kv_layers.begin(), kv_layers.end(), 0);
  }
  if (kv_layers.front() < 0 || kv_layers.back() >= config.layers ||
      std::adjacent_find(kv_layers.begin(), kv_layers.end(), std::greater_equal<>()) != kv_layers.end())
    return error(Code::kInvalidArgument,
                 "K and V of layers {} are to be stored; expected ascending ones of layers 0-{}",
                 fmt::join(kv_layers, ", "), config.layers - 1);
  const int64_t element = dtype_size(model.dtype());
  std::unique_ptr<State> state(new State{.backend = backend,
                                         .model = model,
                                         .sender = sender,
                                         .context = std::move(context),
                                         .salt = options.salt,
                                         .direct = backend.host_visible(),
                                         .wanted = std::move(wanted),
                                         .kv_layers = std::move(kv_layers),
                                         .n = n,
                                         .hidden_row = config.d_model * element,
                                         .kv_row = config.kv_row() * element});
  // Never moved: show() may read what is there while more comes.
  state->kept.reserve(state->wanted.size() + static_cast<size_t>(config.layers));
  state->set_first(options.first, 0, options.every);
  return std::unique_ptr<Publication>(new Publication(std::move(state)));
}

void Publication::go_on_from(int64_t first, Earlier earlier) {
  State& s = *state_;
  s.earlier = std::move(earlier);
  s.set_first(first, s.earlier ? first : 0, s.every);
}

int64_t Publication::bytes() const {
  const State& s = *state_;
  const int64_t beside = s.direct ? 0 : s.kv_row + (maps() ? s.hidden_row : 0);
  return s.n * (s.model.config().layers * s.kv_row + beside) +
         (s.n - s.from) * (static_cast<int64_t>(s.wanted.size()) + 1) * s.hidden_row;
}

bool Publication::maps() const {
  return std::any_of(state_->wanted.begin(), state_->wanted.end(),
                     [](const Wanted& w) { return w.loaded != nullptr; });
}

const EntryIdentity& Publication::identity() const { return state_->identity; }

std::function<Status(const EntryReader&)> Publication::has_all() const {
  std::vector<std::pair<int32_t, std::string>> hidden;
  for (const Wanted& w : state_->wanted)
    hidden.emplace_back(static_cast<int32_t>(w.cut.layer), entry_map(w.maps, w.cut.form));
  return [hidden = std::move(hidden), layers = state_->kv_layers](const EntryReader& entry) {
    for (int32_t l : layers) DS_TRY(entry.has(TensorKind::kKv, l));
    for (const auto& [layer, map] : hidden) DS_TRY(entry.has(TensorKind::kE, layer, map));
    return ok_status();
  };
}

int64_t Publication::layer() const { return state_->layer; }
int64_t Publication::rows_left() const { return state_->end - state_->row; }
bool Publication::done() const { return state_->layer == state_->model.config().layers; }
int64_t Publication::entries_left() const {
  const State& s = *state_;
  if (s.every == 0) return 1 - static_cast<int64_t>(s.published.entries);
  return (s.n - std::max(s.begin, s.first) + s.every - 1) / s.every;
}
int64_t Publication::commands() const { return static_cast<int64_t>(3 * state_->wanted.size()) + 8; }

/// What enters the layer is kept where it is a cut, and room made for its K and V.
Status Publication::State::begin_layer(CommandStream& stream, Workspace& workspace) {
  const int64_t rows = end - begin;
  if (layer == 0) {
    if (is_first()) {
      start = Clock::now();
      if (!direct) {
        DS_ASSIGN(computed, backend.allocate(n * kv_row));
        DS_ASSIGN(mapped, backend.allocate((n - from) * hidden_row));
      }
      DS_ASSIGN(hidden, backend.allocate((n - from) * hidden_row));
    }
    model.embed(stream, context.data() + begin, rows, hidden->data() + (begin - from) * hidden_row);
  }
  const std::byte* entering = hidden->data() + (begin - from) * hidden_row;
  for (const Wanted& w : wanted) {
    if (w.cut.layer != layer) continue;
    DS_ASSIGN(const Kept* e, keep(TensorKind::kE, hidden_row, entry_map(w.maps, w.cut.form)));
    if (w.loaded) {
      std::byte* to = direct ? e->row(begin) : mapped->data();
      stream.copy(to, entering, rows * hidden_row);
      model.align(stream, workspace, *w.loaded, to, rows);
      if (!direct) stream.copy(e->row(begin), to, rows * hidden_row);
    } else {
      stream.copy(e->row(begin), entering, rows * hidden_row);
    }
    if (is_first()) published.cuts.push_back({w.cut, w.maps, (n - first) * hidden_row});
  }
  DS_ASSIGN(const Kept* of_layer, keep(TensorKind::kKv, kv_row));
  kv = of_layer->row(0);
  if (!is_first()) {
    if (!direct) stream.copy(computed->data(), kv, begin * kv_row);
  } else if (from > 0) {
    DS_TRY(earlier(layer, direct ? kv : computed->data(), stream));
  }
  return ok_status();
}

Status Publication::enqueue(int64_t rows, CommandStream& stream, Workspace& workspace) {
  State& s = *state_;
  if (s.row == s.begin) DS_TRY(s.begin_layer(stream, workspace));
  const int64_t layers = s.model.config().layers;
  rows = std::min(rows, s.end - s.row);
  std::byte* cache = s.direct ? s.kv : s.computed->data();
  // Nobody reads what leaves the last layer: its K and V are all that is needed.
  s.model.layer(stream, workspace,
                {s.layer, s.hidden->data() + (s.row - s.from) * s.hidden_row, cache, s.row, rows,
                 s.layer + 1 < layers ? rows : 0});
  s.row += rows;
  if (s.row < s.end) return ok_status();
  const int64_t at = (s.is_first() ? 0 : s.begin) * s.kv_row;
  if (!s.direct) stream.copy(s.kv + at, cache + at, s.end * s.kv_row - at);
  s.row = s.begin;
  ++s.layer;
  return ok_status();
}

void Publication::go_live(Store& store) {
  State& s = *state_;
  if (s.every > 0) return;
  std::vector<LiveTensor> tensors;
  for (const Wanted& w : s.wanted)
    tensors.push_back({TensorKind::kE, static_cast<int32_t>(w.cut.layer), entry_map(w.maps, w.cut.form)});
  for (int32_t l : s.kv_layers) tensors.push_back({TensorKind::kKv, l});
  auto live =
      LiveEntryWriter::begin(store, s.identity, s.sender, s.model.config().shape(), std::move(tensors));
  if (live.ok()) s.live = std::move(*live);
  s.published.live = live.status();
}

Publication::Progress Publication::progress() const {
  return {state_->kept.size(), state_->layer, state_->row};
}

int64_t Publication::last_shown_ns() const { return state_->shown_ns; }

void Publication::hide() {
  state_->end_live(error(Code::kExhausted, "the publication has ended before its entry was there"));
}

void Publication::show(const Progress& progress) {
  State& s = *state_;
  if (s.live == nullptr) return;
  for (size_t i = 0; i < progress.tensors; ++i) {
    const State::Kept& k = s.kept[i];
    if (!s.stores(k.kind, k.layer)) continue;
    // Rows of the context that are computed: hidden states come all at once, K and V in the order of rows,
    // but where they are copied, all at once as well.
    const bool some = k.kind == TensorKind::kKv && k.layer == progress.layer;
    const int64_t computed = !some ? s.n : s.direct ? progress.row : 0;
    const int64_t whole = computed == s.n ? s.n : computed / kChecksumRows * kChecksumRows;
    const LiveTensor tensor{k.kind, k.layer, k.map};
    const int64_t from = s.first + s.live->rows(tensor);
    if (whole <= from) continue;
    Status status = s.live->add(tensor, {k.row(from), static_cast<size_t>((whole - from) * k.row_bytes)});
    if (!status.ok()) return s.end_live(std::move(status));
    s.shown_ns = now_ns();
  }
}

Result<Published> Publication::write(Store& store) {
  State& s = *state_;
  const auto start = Clock::now();
  const int64_t at = std::max(s.begin, s.first);
  const EntryIdentity identity =
      entry_identity(s.sender.fingerprint, std::span(s.context).first(static_cast<size_t>(s.end)), at, s.salt,
                     s.model.dtype());
  std::vector<EntrySource> sources;
  for (const State::Kept& k : s.kept)
    if (s.stores(k.kind, k.layer))
      sources.push_back(
          {k.kind, k.layer, {k.row(at), static_cast<size_t>((s.end - at) * k.row_bytes)}, k.map});
  DS_ASSIGN(const int64_t bytes,
            write_entry(store, identity, s.sender, s.model.config().shape(), std::move(sources)));
  s.published.key = identity.key();
  s.published.entry_bytes += bytes;
  ++s.published.entries;
  s.published.write_ns += since_ns(start);
  s.published.prefill_ns = since_ns(s.start) - s.published.write_ns;
  if (s.end < s.n)
    s.begin_entry(s.end);
  else
    s.begin = s.n;
  if (s.live != nullptr) s.end_live(s.live->end());
  return s.published;
}

Chain chain_to_go_on_from(Store& store, std::span<const int32_t> context, const ChainQuery& query) {
  auto chain = find_chain(store, context, query);
  if (!chain.ok()) return {};
  const bool all = chain->tokens() == static_cast<int64_t>(context.size());
  return all || chain->links.size() < kLongestChain ? std::move(*chain) : Chain{};
}

Result<Published> publish(Backend& backend, DeviceModel& model, const ModelIdentity& sender,
                          std::span<const int32_t> context, Store& store, const PublishOptions& options) {
  DS_ASSIGN(auto publication,
            Publication::create(backend, model, sender, {context.begin(), context.end()}, options));
  const auto n = static_cast<int64_t>(context.size());
  Chain chain;
  std::unique_ptr<DeviceMemory> staged;  // where kernels cannot read what is the host's
  Status torn;                           // the chain is
  if (options.only_new) {
    chain = chain_to_go_on_from(
        store, context,
        {sender.fingerprint, model.config().shape(), options.salt, model.dtype(), publication->has_all()});
  }
  if (n > 0 && chain.tokens() == n)
    return Published{.key = chain.links.back().key, .first = n, .after = chain.links.size(), .already = true};
  if (chain.tokens() > 0) {
    const int64_t kv_row = model.config().kv_row() * dtype_size(model.dtype());
    if (!backend.host_visible()) {
      DS_ASSIGN(staged, backend.allocate(chain.tokens() * kv_row, MemoryKind::kHost));
    }
    const Publication::Earlier earlier = [&, kv_row](int64_t layer, std::byte* to, CommandStream& stream) {
      std::byte* rows = staged ? staged->data() : to;
      for (ChainLink& link : chain.links) {
        torn = link.entry.read_rows(TensorKind::kKv, static_cast<int32_t>(layer), link.first_row(),
                                    link.end - link.begin, rows + link.begin * kv_row);
        if (!torn.ok()) return torn;
      }
      if (staged) stream.copy(to, rows, chain.tokens() * kv_row);
      return ok_status();
    };
    publication->go_on_from(chain.tokens(), options.kv_layers.empty() ? earlier : Publication::Earlier());
  }
  if (options.live_rows > 0) publication->go_live(store);
  const int64_t rows = options.live_rows > 0 ? options.live_rows : n;
  DS_ASSIGN(auto workspace, model.make_workspace(n));
  DS_ASSIGN(auto stream, backend.make_stream(StreamKind::kCompute, publication->commands()));
  const int64_t layers = model.config().layers, entries = publication->entries_left();
  Result<Published> published = error(Code::kInternal, "nothing was published");
  while (publication->entries_left() > 0) {
    while (!publication->done()) {
      Status status = publication->enqueue(rows, *stream, *workspace);
      DS_TRY(stream->synchronize());
      if (!torn.ok()) {
        PublishOptions whole = options;
        whole.only_new = false;
        return publish(backend, model, sender, context, store, whole);
      }
      DS_TRY(status);
      publication->show(publication->progress());
      if (options.progress)
        options.progress((entries - publication->entries_left()) * layers + publication->layer(),
                         entries * layers);
    }
    published = publication->write(store);
    if (!published.ok()) return published;
  }
  published->after = chain.links.size();
  return published;
}

}  // namespace ds
