// The sender's side: prefill a context and put its caches, and the hidden states at the cuts, into a store.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/backends/backend.h"
#include "runtime/core/chain.h"
#include "runtime/model/maps.h"
#include "runtime/store/entry.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

/// Whether the sender takes hidden states of some of these through maps.
inline bool through_maps(std::span<const Cut> cuts) {
  return std::any_of(cuts.begin(), cuts.end(), [](Cut c) { return c.form != MapForm::kNone; });
}

/// Cuts that go through maps of one pair, where they have a form.
struct MappedCuts {
  std::vector<Cut> cuts;
  const MapSet* maps = nullptr;
  bool operator==(const MappedCuts&) const = default;
};

struct PublishOptions {
  std::vector<Cut> cuts;                                        // E that is stored; layers in [1, layers)
  std::string salt;                                             // tenant salt
  std::function<void(int64_t layer, int64_t layers)> progress;  // may be empty
  const MapSet* maps = nullptr;                                 // of those cuts that have a form
  std::vector<MappedCuts> more;                                 // for further receivers, each with its maps
  /// Layers whose K and V are stored, ascending: what the plans of all who read it need (published_kv()).
  /// Empty: all. Without all of them a context that has grown is computed again from its beginning, where
  /// nobody else has them, though only its new tokens are stored.
  std::vector<int32_t> kv_layers = {};
  /// The first token whose rows are stored, a multiple of kChecksumRows: those before it are in other
  /// entries, which this one goes on from.
  int64_t first = 0;
  /// Instead of `first`: goes on from the longest chain of the store's entries that agrees with the context
  /// and has what is to be published, so that a context that grows costs its new tokens; a chain of
  /// kLongestChain entries is not gone on from. Nothing is done where the store has all of it.
  bool only_new = false;
  /// An entry for every so many tokens, a multiple of kChecksumRows, each written as soon as it is computed:
  /// a receiver that comes meanwhile reuses what is there. More, where else there would be over kLongestChain
  /// of them. 0: one entry, at the end; so does an engine whatever stands here.
  int64_t every = 0;
  /// Shows what has been computed while the rest is not (runtime/store/live_entry.h), so many rows of a layer
  /// at a time, a multiple of kChecksumRows: who asks meanwhile follows. Not with `every`. 0: shows nothing.
  int64_t live_rows = 0;
};

/// Who reads a chain opens each of its entries.
inline constexpr size_t kLongestChain = 16;

/// What is there of a context that is to be published: the chain that covers all of it, or that it may go on
/// from; none where that cannot be looked up, or is in too many pieces.
Chain chain_to_go_on_from(Store& store, std::span<const int32_t> context, const ChainQuery& query);

/// One E of an entry.
struct PublishedCut {
  Cut cut;
  std::string maps;  // fingerprint; empty: as the sender has it
  int64_t bytes = 0;
};

struct Published {
  std::string key;
  std::vector<PublishedCut> cuts;  // by layer, form and maps, each once
  int64_t entry_bytes = 0;
  int64_t prefill_ns = 0, write_ns = 0;
  int64_t first = 0;     // the entry's first token
  size_t after = 0;      // entries that have those before it (PublishOptions::only_new)
  size_t entries = 1;    // that were written (PublishOptions::every); `key` is the last one's
  bool already = false;  // the store had it: nothing was computed or written
  Status live;           // why it could not be followed to its end, where that was asked for
};

/// A sender's prefill whose caches, and hidden states at cuts, become an entry; some rows of a layer at a
/// time, so that it may run beside other work.
class Publication {
 public:
  /// `backend` and `model` outlive it; maps of `options` are loaded into the model. Errors: kInvalidArgument
  /// (no tokens, ids outside the vocabulary, more positions than the model has, cuts outside the layers, a
  /// cut with a form but no maps, a first token that is none), kNotFound (maps without that layer and form),
  /// kMismatch (maps of another sender or shape), kExhausted.
  static Result<std::unique_ptr<Publication>> create(Backend& backend, DeviceModel& model,
                                                     const ModelIdentity& sender,
                                                     std::vector<int32_t> context,
                                                     const PublishOptions& options);
  ~Publication();

  /// Of memory, once all is computed.
  int64_t bytes() const;
  /// Whether hidden states go through maps: the workspace is then to be made after it.
  bool maps() const;
  const EntryIdentity& identity() const;

  /// Puts K and V of the tokens before `first`, of a layer, to `to`; what it enqueues may be running when it
  /// returns.
  using Earlier = std::function<Status(int64_t layer, std::byte* to, CommandStream& stream)>;
  /// Before anything is enqueued: only rows from token `first` on (as PublishOptions::first) are stored, and
  /// where `earlier` is not empty only they are computed.
  void go_on_from(int64_t first, Earlier earlier);

  /// Says what an entry lacks of the tensors that this one would have; may outlive the publication.
  std::function<Status(const EntryReader& entry)> has_all() const;

  /// What comes next: the layer (all of them: done()), and how many of its rows are left.
  int64_t layer() const;
  int64_t rows_left() const;
  /// Whether the entry can be written: the only one, or with PublishOptions::every the next one.
  bool done() const;
  /// That are not written.
  int64_t entries_left() const;
  /// Enqueues that layer for the next `rows` rows at the most. kExhausted: no memory for what it keeps.
  Status enqueue(int64_t rows, CommandStream& stream, Workspace& workspace);
  /// Most commands of one enqueue().
  int64_t commands() const;

  /// Begins to show what will be computed, as PublishOptions::live_rows has it; before anything is enqueued.
  /// What fails of that, here and later, fails nothing else: Published::live tells.
  void go_live(Store& store);
  /// How much has been computed; when the stream has run.
  struct Progress {
    size_t tensors = 0;  // of those that are kept, in the order in which they come
    int64_t layer = 0, row = 0;
  };
  Progress progress() const;
  /// Shows what has been computed since. It may run beside enqueue(), on one thread at a time.
  void show(const Progress& progress);
  /// When the store has taken something of what is shown last, on now_ns()'s clock; 0: never. Any thread.
  int64_t last_shown_ns() const;
  /// What was shown goes, as with a writer that gives up.
  void hide();

  /// Writes the entry, atomically; after done(), when the stream has run. While there are entries_left() the
  /// next one is to be computed then. kExhausted (disk), kIo.
  Result<Published> write(Store& store);

 private:
  struct State;
  explicit Publication(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// Runs `model` (the sender, of identity `sender`) over `context` and writes one entry, atomically. Errors:
/// those of Publication. With PublishOptions::only_new K and V of what is there already are read, not
/// computed.
Result<Published> publish(Backend& backend, DeviceModel& model, const ModelIdentity& sender,
                          std::span<const int32_t> context, Store& store, const PublishOptions& options);

}  // namespace ds
