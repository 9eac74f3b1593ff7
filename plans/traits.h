// What is so of each kind of op and of each mode, once: verifier, simulator, cost model, emission, text and
// pictures look here. A new kind or mode is a row of traits.cpp, and what only it does (CONTRIBUTING.md).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "plans/plan.h"

namespace ds {

/// Elements per token and layer.
int64_t payload_row(Payload payload, const Shape& shape);
/// "e", "kv"; "" of kNone; "unknown" of a number that is none.
std::string_view payload_name(Payload payload);
/// The other way round; nothing where it is no payload's.
std::optional<Payload> payload_named(std::string_view name);

/// Which of its rows go on through Q, attention and MLP, of an op that runs a layer of R and makes K and V.
enum class QueriesRule : uint8_t {
  kNone,       // it runs no layer
  kIfRead,     // all where the cells above are computed from what leaves these; else none
  kSuffix,     // all; in the last layer the last token
  kAllOfBoth,  // all where the context goes on, else the suffix's; in the last layer the last token
};

/// What its time depends on.
enum class CostCurve : uint8_t { kLink, kEmbed, kLayer, kMap, kHead };

/// One region that an op reads or writes, and in which state.
struct Access {
  enum class Memory : uint8_t { kHidden, kCache };  // the op's hidden buffer; the cache of its layer
  enum class Span : uint8_t { kRows, kContext, kSuffix, kBefore };
  enum class State : uint8_t {
    kSent,          // as it was sent: S's; hidden states may have to be mapped yet
    kEnters,        // hidden: what enters the op's layer (the embeddings: layer 0; the head: above the last)
    kLeaves,        // hidden: what enters the layer above
    kChosen,        // hidden: as kEnters, of the selected tokens only, in front
    kChosenLeaves,  // hidden: as kLeaves, of those
    kMade,          // cache: R's, as its tile says
    kReady,         // cache: as its tile says, S's or R's
  };
  enum class When : uint8_t { kAlways, kWithQueries, kAllQueries };
  bool write = false;
  Memory memory = Memory::kHidden;
  Span span = Span::kRows;  // kRows: its own; kBefore: the context's chunks in front of them
  State state = State::kEnters;
  When when = When::kAlways;  // only if it has queries; only if all of its rows are queries
};

constexpr uint8_t bit(Rows rows) { return static_cast<uint8_t>(1u << static_cast<unsigned>(rows)); }

/// A dimension in which a source has to agree with the receiver; in others it may differ.
struct ShapeField {
  std::string_view name;
  int64_t Shape::*value;
};

/// A transfer has a row for each payload, any other kind of op one.
struct OpTraits {
  OpKind kind;
  Payload payload;
  std::string_view name;        // "transfer e"
  std::string_view short_name;  // "e"; names its pattern in pictures
  char letter;                  // in schedules drawn as text
  StreamKind stream;
  bool layered;  // has a layer
  uint8_t rows;  // bit() of those that it may work on
  QueriesRule queries;
  BufferKind buffer;
  CostCurve cost;
  int32_t since;             // plan format version
  std::string_view feature;  // what came with that version
  // In pictures. `hatch`: content of an 8 x 8 pattern tile, on top of `fill`. Lightness differs too, for
  // prints in grey.
  std::string_view legend, fill, hatch;
};
/// All rows, in the order in which pictures and lists name them: transfers by payload, then the other kinds.
std::span<const OpTraits> op_traits();
bool is_known(OpKind kind);
/// Whether an op has one of these rows: its kind is known and, where that is a transfer, its payload.
bool has_traits(const Op& op);
/// Which row it is, of an op that has one.
size_t trait_row(const Op& op);
const OpTraits& traits_of(const Op& op);

/// What an op reads and writes, in this order.
std::span<const Access> accesses_of(const Op& op);

inline bool is_transfer(const Op& op) { return op.kind == OpKind::kTransfer; }

/// What decides what a row of a payload is.
std::span<const ShapeField> shape_fields_of(Payload payload);

struct ModeTraits {
  std::string_view name;  // "load"
  char letter;            // in tilings drawn as text
  enum class SendsE : uint8_t { kNever, kAtCut, kAboveEmbeddings } sends_e;
  bool sends_kv;  // S's K and V come for every cell
  bool computes;  // an op makes its cells
  bool stands;    // may stand on the tile below, or on a cut; what leaves it is there for the tile above
  bool selects;   // for some tokens only, chosen at run time by what leaves the tile below
  int32_t since;  // plan format version
  std::string_view feature;            // what came with that version
  std::string_view does, sends, done;  // "recomputes", "has a cut at", "recomputed": in messages
  std::string_view drawn_as;           // tiles are filled as ops of this short name
  std::string_view legend;             // in pictures, for a reader; "{}": the share of selected tokens
  /// What ways of this mode are called (plans/way.h): where every layer has it, one run of layers, several.
  struct WayName {
    std::string_view kind = "", text = "";  // "group", "recompute {}"; "": there is no such way
  } ways[3];
};
const ModeTraits& traits_of(Mode mode);

}  // namespace ds
