#include "plans/traits.h"

namespace ds {
namespace {

constexpr uint8_t kChunks = bit(Rows::kChunk), kSuffixRows = bit(Rows::kSuffix), kAllRows = bit(Rows::kAll),
                  kSelectedRows = bit(Rows::kSelected);

// plans/plan.h says what each does.
constexpr OpTraits kOps[] = {
    {.kind = OpKind::kTransfer,
     .payload = Payload::kE,
     .name = "transfer e",
     .short_name = "e",
     .letter = 'E',
     .stream = StreamKind::kLink,
     .layered = true,
     .rows = kChunks,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kLink,
     .since = 1,
     .feature = "",
     .legend = "transfer E (cut)",
     .fill = "#f2a65a",
     .hatch = R"x(<path d="M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4" stroke="#8a4b08" stroke-width="1.6"/>)x"},
    {.kind = OpKind::kTransfer,
     .payload = Payload::kKv,
     .name = "transfer kv",
     .short_name = "kv",
     .letter = 'K',
     .stream = StreamKind::kLink,
     .layered = true,
     .rows = kChunks,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kKv,
     .cost = CostCurve::kLink,
     .since = 1,
     .feature = "",
     .legend = "transfer KV",
     .fill = "#bcdcf2",
     .hatch = ""},
    {.kind = OpKind::kEmbed,
     .payload = Payload::kNone,
     .name = "embed",
     .short_name = "embed",
     .letter = 'e',
     .stream = StreamKind::kCompute,
     .layered = false,
     .rows = kChunks | kSuffixRows | kAllRows,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kEmbed,
     .since = 1,
     .feature = "",
     .legend = "embed",
     .fill = "#e4e4e4",
     .hatch = R"x(<path d="M4,0 v8" stroke="#777" stroke-width="1"/>)x"},
    {.kind = OpKind::kRecompute,
     .payload = Payload::kNone,
     .name = "recompute",
     .short_name = "recompute",
     .letter = 'R',
     .stream = StreamKind::kCompute,
     .layered = true,
     .rows = kChunks | kSelectedRows,
     .queries = QueriesRule::kIfRead,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kLayer,
     .since = 1,
     .feature = "",
     .legend = "recompute",
     .fill = "#e58a7a",
     .hatch = R"x(<path d="M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4" stroke="#8c2a1a" stroke-width="1"/>)x"},
    {.kind = OpKind::kSuffix,
     .payload = Payload::kNone,
     .name = "suffix",
     .short_name = "suffix",
     .letter = 'S',
     .stream = StreamKind::kCompute,
     .layered = true,
     .rows = kSuffixRows,
     .queries = QueriesRule::kSuffix,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kLayer,
     .since = 1,
     .feature = "",
     .legend = "suffix",
     .fill = "#9fd3a8",
     .hatch = R"x(<circle cx="4" cy="4" r="1.3" fill="#1f6b30"/>)x"},
    {.kind = OpKind::kPrefill,
     .payload = Payload::kNone,
     .name = "prefill",
     .short_name = "prefill",
     .letter = 'P',
     .stream = StreamKind::kCompute,
     .layered = true,
     .rows = kAllRows,
     .queries = QueriesRule::kAllOfBoth,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kLayer,
     .since = 1,
     .feature = "",
     .legend = "prefill",
     .fill = "#c9b3e6",
     .hatch = R"x(<path d="M0,0 l8,8 M8,0 l-8,8" stroke="#5e3a99" stroke-width="0.9"/>)x"},
    {.kind = OpKind::kHead,
     .payload = Payload::kNone,
     .name = "head",
     .short_name = "head",
     .letter = 'h',
     .stream = StreamKind::kCompute,
     .layered = false,
     .rows = kSuffixRows,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kHead,
     .since = 1,
     .feature = "",
     .legend = "head",
     .fill = "#444444",
     .hatch = ""},
    {.kind = OpKind::kSelect,
     .payload = Payload::kNone,
     .name = "select",
     .short_name = "select",
     .letter = 'c',
     .stream = StreamKind::kCompute,
     .layered = true,
     .rows = kChunks,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kLayer,
     .since = 3,
     .feature = "selected tokens",
     .legend = "select tokens",
     .fill = "#f3dc7c",
     .hatch = R"x(<path d="M1,3 h6 M1,6 h3" stroke="#7a6300" stroke-width="1.2"/>)x"},
    {.kind = OpKind::kAlign,
     .payload = Payload::kNone,
     .name = "align",
     .short_name = "align",
     .letter = 'a',
     .stream = StreamKind::kCompute,
     .layered = true,
     .rows = kChunks,
     .queries = QueriesRule::kNone,
     .buffer = BufferKind::kHidden,
     .cost = CostCurve::kMap,
     .since = 4,
     .feature = "aligned cuts",
     .legend = "align (map at a cut)",
     .fill = "#d9a0c8",
     .hatch = R"x(<path d="M1,7 l6,-6 M4,1 h3 v3" stroke="#7a2a66" stroke-width="1.2" fill="none"/>)x"},
};
constexpr size_t kPayloadRows = kPayloads - 1, kFirstOther = 2;  // of OpKind
static_assert(std::size(kOps) == kPayloadRows + kOpKinds - 1 - kFirstOther);

constexpr size_t row_of(OpKind kind, Payload payload) {
  if (kind == OpKind::kTransfer) return static_cast<size_t>(payload) - 1;
  // The transfer's number lies among the others'.
  return kPayloadRows + static_cast<size_t>(kind) - kFirstOther - (kind > OpKind::kTransfer ? 1 : 0);
}
constexpr bool rows_stand_where_they_are_looked_up() {
  for (size_t r = 0; r < std::size(kOps); ++r)
    if (row_of(kOps[r].kind, kOps[r].payload) != r) return false;
  return true;
}
static_assert(rows_stand_where_they_are_looked_up());

constexpr ShapeField kEFields[] = {{"layers", &Shape::layers}, {"d_model", &Shape::d_model}};
constexpr ShapeField kKvFields[] = {
    {"layers", &Shape::layers}, {"kv_heads", &Shape::kv_heads}, {"head_dim", &Shape::head_dim}};

// By Mode.
constexpr ModeTraits kModeRows[] = {
    {.name = "load",
     .letter = 'L',
     .sends_e = ModeTraits::SendsE::kNever,
     .sends_kv = true,
     .computes = false,
     .stands = false,
     .selects = false,
     .since = 1,
     .feature = "",
     .does = "loads",
     .sends = "loads",
     .done = "loaded",
     .drawn_as = "kv",
     .legend = "loaded from the sender",
     .ways = {{"full reuse", "full reuse"}}},
    {.name = "recompute",
     .letter = 'R',
     .sends_e = ModeTraits::SendsE::kAtCut,
     .sends_kv = false,
     .computes = true,
     .stands = true,
     .selects = false,
     .since = 1,
     .feature = "",
     .does = "recomputes",
     .sends = "has a cut at",
     .done = "recomputed",
     .drawn_as = "recompute",
     .legend = "recomputed",
     .ways = {{"full prefill", "full prefill"}, {"group", "recompute {}"}, {"scattered", "scattered {}"}}},
    {.name = "restore",
     .letter = 'E',
     .sends_e = ModeTraits::SendsE::kAboveEmbeddings,
     .sends_kv = false,
     .computes = true,
     .stands = false,
     .selects = false,
     .since = 3,
     .feature = "restored layers",
     .does = "restores",
     .sends = "restores",
     .done = "restored",
     .drawn_as = "e",
     .legend = "restored: K and V of the sender's E",
     .ways = {{}, {"restore", "restore {}"}}},
    {.name = "select",
     .letter = 'S',
     .sends_e = ModeTraits::SendsE::kNever,
     .sends_kv = true,
     .computes = true,
     .stands = false,
     .selects = true,
     .since = 3,
     .feature = "selected tokens",
     .does = "recomputes selected tokens of",
     .sends = "selects tokens of",
     .done = "selected",
     .drawn_as = "select",
     .legend = "loaded, but recomputed for the {:g} % of the tokens that deviate most",
     .ways = {{"select", "select {:g} %"}}},
};
static_assert(std::size(kModeRows) == kModes);
constexpr bool every_mode_has_a_way() {
  for (const ModeTraits& mode : kModeRows) {
    bool named = false;
    for (const ModeTraits::WayName& way : mode.ways) named = named || !way.kind.empty();
    if (!named) return false;
  }
  return true;
}
static_assert(every_mode_has_a_way());

using Memory = Access::Memory;
using Span = Access::Span;
using State = Access::State;
using When = Access::When;

constexpr Access read(Memory memory, Span span, State state, When when = When::kAlways) {
  return {false, memory, span, state, when};
}
constexpr Access write(Memory memory, Span span, State state, When when = When::kAlways) {
  return {true, memory, span, state, when};
}

constexpr Access kTransferE[] = {write(Memory::kHidden, Span::kRows, State::kSent)};
constexpr Access kTransferKv[] = {write(Memory::kCache, Span::kRows, State::kSent)};
constexpr Access kEmbed[] = {write(Memory::kHidden, Span::kRows, State::kEnters)};
constexpr Access kRecompute[] = {read(Memory::kHidden, Span::kRows, State::kEnters),
                                 write(Memory::kCache, Span::kRows, State::kMade),
                                 read(Memory::kCache, Span::kBefore, State::kReady, When::kWithQueries),
                                 write(Memory::kHidden, Span::kRows, State::kLeaves, When::kWithQueries)};
constexpr Access kRecomputeSelected[] = {
    read(Memory::kHidden, Span::kContext, State::kChosen), read(Memory::kCache, Span::kContext, State::kSent),
    write(Memory::kCache, Span::kContext, State::kMade),
    write(Memory::kHidden, Span::kContext, State::kChosenLeaves, When::kWithQueries)};
constexpr Access kSuffix[] = {read(Memory::kHidden, Span::kSuffix, State::kEnters),
                              write(Memory::kCache, Span::kSuffix, State::kMade),
                              read(Memory::kCache, Span::kContext, State::kReady),
                              write(Memory::kHidden, Span::kSuffix, State::kLeaves)};
constexpr Access kPrefill[] = {read(Memory::kHidden, Span::kRows, State::kEnters),
                               write(Memory::kCache, Span::kRows, State::kMade),
                               write(Memory::kHidden, Span::kContext, State::kLeaves, When::kAllQueries),
                               write(Memory::kHidden, Span::kSuffix, State::kLeaves)};
constexpr Access kHead[] = {read(Memory::kHidden, Span::kSuffix, State::kEnters)};
constexpr Access kSelect[] = {read(Memory::kHidden, Span::kRows, State::kEnters),
                              read(Memory::kCache, Span::kRows, State::kSent),
                              write(Memory::kHidden, Span::kRows, State::kChosen)};
constexpr Access kAlign[] = {read(Memory::kHidden, Span::kRows, State::kSent),
                             write(Memory::kHidden, Span::kRows, State::kEnters)};

// By row of kOps; a recompute of selected rows stands apart.
constexpr std::span<const Access> kAccesses[] = {kTransferE, kTransferKv, kEmbed,  kRecompute, kSuffix,
                                                 kPrefill,   kHead,       kSelect, kAlign};
static_assert(std::size(kAccesses) == std::size(kOps));

}  // namespace

std::span<const OpTraits> op_traits() { return kOps; }
size_t trait_row(const Op& op) { return row_of(op.kind, op.payload); }
const OpTraits& traits_of(const Op& op) { return kOps[trait_row(op)]; }
const ModeTraits& traits_of(Mode mode) { return kModeRows[static_cast<size_t>(mode)]; }

bool is_known(OpKind kind) {
  return static_cast<size_t>(kind) >= kFirstOther && static_cast<size_t>(kind) < kOpKinds;
}

bool has_traits(const Op& op) {
  return is_known(op.kind) && static_cast<size_t>(op.payload) < kPayloads &&
         is_transfer(op) == (op.payload != Payload::kNone);
}

std::span<const Access> accesses_of(const Op& op) {
  if (op.rows == Rows::kSelected) return kRecomputeSelected;
  return kAccesses[trait_row(op)];
}

std::string_view payload_name(Payload payload) {
  if (static_cast<size_t>(payload) >= kPayloads) return "unknown";
  return payload == Payload::kNone ? "" : kOps[row_of(OpKind::kTransfer, payload)].short_name;
}

std::optional<Payload> payload_named(std::string_view name) {
  for (const OpTraits& row : kOps)
    if (row.payload != Payload::kNone && row.short_name == name) return row.payload;
  return std::nullopt;
}

int64_t payload_row(Payload payload, const Shape& shape) {
  switch (payload) {
    case Payload::kNone:
      return 0;
    case Payload::kE:
      return shape.e_row();
    case Payload::kKv:
      return shape.kv_row();
  }
  return 0;
}

std::span<const ShapeField> shape_fields_of(Payload payload) {
  switch (payload) {
    case Payload::kNone:
      return {};
    case Payload::kE:
      return kEFields;
    case Payload::kKv:
      return kKvFields;
  }
  return {};
}

}  // namespace ds
