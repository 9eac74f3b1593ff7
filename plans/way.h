// Ways: the signatures of tilings, by which a profile scores them and a plan promises a loss. What a way is
// called, sends and computes follows from its mode (plans/traits.h).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/alignment.h"
#include "plans/plan.h"
#include "support/status.h"
#include "support/units.h"

namespace ds {

/// What a profile scores beside tilings, to compare them with: no plan does it.
enum class Control : uint8_t {
  kNone,           // it is the signature of a tiling
  kReuseOnly,      // one layer the sender's, the rest the receiver's own: how sensitive that layer is
  kSenderAlone,    // the sender itself answers, over its own
  kNoContext,      // the receiver is asked without the context: what it knows or guesses
  kOtherDocument,  // all layers the sender's of another document, as many tokens: a cache that says nothing
};

/// How a way is written: one of these for each mode and number of runs that has a name, and for each control.
struct WayForm {
  std::string_view kind;  // "group", in files
  std::string_view text;  // "recompute {}", with its layers; "select {:g} %", with its share
  Mode mode = Mode::kLoad;
  Control control = Control::kNone;
  enum class Lists : uint8_t { kNothing, kOneRun, kSeveralRuns } lists = Lists::kNothing;
  bool has_share() const;
};
std::span<const WayForm> way_forms();

/// Every token has `mode` in `layers` and the sender's K and V elsewhere; no layers: in all that can have it.
struct Way {
  Mode mode = Mode::kLoad;
  std::vector<LayerRange> layers;  // ascending, apart
  double share = 0;                // of the tokens, in (0, 1], where the mode selects them
  MapForm map = MapForm::kNone;    // the sender's hidden states go through maps of this form first
  std::string map_control;  // "": this pair's maps; a control: "shuffled", "pair NAME"; with a map only
  Control control = Control::kNone;  // its layers, where it has any, are the sender's

  static Way full_reuse() { return {}; }
  static Way full_prefill() { return {.mode = Mode::kRecompute}; }
  static Way group(const LayerRange& range) { return {.mode = Mode::kRecompute, .layers = {range}}; }
  /// Several groups, each from hidden states of the sender.
  static Way scattered(std::vector<LayerRange> ranges) {
    return {.mode = Mode::kRecompute, .layers = std::move(ranges)};
  }
  static Way restore(const LayerRange& range) { return {.mode = Mode::kRestore, .layers = {range}}; }
  static Way select(double share) { return {.mode = Mode::kSelect, .share = share}; }
  static Way reuse_only(int64_t layer) {
    return {.layers = {{layer, layer}}, .control = Control::kReuseOnly};
  }
  static Way sender_alone() { return {.control = Control::kSenderAlone}; }
  static Way no_context() { return {.control = Control::kNoContext}; }
  static Way other_document() { return {.control = Control::kOtherDocument}; }

  /// Can a plan do it with the pair's own maps?
  bool is_control() const { return control != Control::kNone || !map_control.empty(); }
  /// Does it give the receiver's own answer, with nothing of the sender?
  bool is_full_prefill() const { return in(Mode::kRecompute) && layers.empty(); }
  bool is_full_reuse() const { return in(Mode::kLoad); }
  bool is_group() const { return in(Mode::kRecompute) && layers.size() == 1; }
  bool is_scattered() const { return in(Mode::kRecompute) && layers.size() > 1; }
  bool restores() const { return in(Mode::kRestore); }
  bool selects() const { return in(Mode::kSelect); }

  /// How it is written. Where its number of runs has no name of its own: as the mode's ways that list layers
  /// are, whose text takes any number of runs ("restore 1-2,5"), and else as the mode's only one.
  const WayForm& form() const;
  /// Does it start from hidden states of the sender, so that maps mean something?
  bool can_align() const;
  Way aligned(MapForm with, std::string of_control = {}) const;
  /// Layers whose entering hidden states come from the sender: what an aligned way needs maps for.
  std::vector<int64_t> sent_layers() const;
  /// "recompute 7-11", "restore 4-11 aligned", "select 15 %": unique within a profile.
  std::string name() const;
  /// Layers that are computed for every token of the context, of `total`. A restored layer counts as none.
  int64_t recomputed(int64_t total) const;
  bool operator==(const Way&) const = default;

 private:
  bool in(Mode m) const { return control == Control::kNone && mode == m; }
};

/// Which way a variant is, by the layers that every token gets in a mode, or recomputed: a promise is what
/// every token gets at least. Where tokens are selected: their share.
Way way_of(const Variant& variant);

/// "2,5-7": several ranges in one text.
std::string format_layer_set(const std::vector<LayerRange>& ranges);
Result<std::vector<LayerRange>> parse_layer_set(std::string_view text, int64_t layers);

}  // namespace ds
