#include "plans/traits.h"

namespace ds {
namespace {

constexpr uint8_t kChunks = bit(Rows::kChunk), kSuffixRows = bit(Rows::kSuffix), kAllRows = bit(Rows::kAll),
                  kSelectedRows = bit(Rows::kSelected);

// By OpKind. plans/plan.h says what each does.
constexpr OpTraits kOps[] = {
    {.name = "transfer e",
     .short_name = "e",
     .letter = 'E',
     .stream = StreamKind::kLink,
     .payload = Payload::kE,
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
    {.name = "transfer kv",
     .short_name = "kv",
     .letter = 'K',
     .stream = StreamKind::kLink,
     .payload = Payload::kKv,
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
    {.name = "embed",
     .short_name = "embed",
     .letter = 'e',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "recompute",
     .short_name = "recompute",
     .letter = 'R',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "suffix",
     .short_name = "suffix",
     .letter = 'S',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "prefill",
     .short_name = "prefill",
     .letter = 'P',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "head",
     .short_name = "head",
     .letter = 'h',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "select",
     .short_name = "select",
     .letter = 'c',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
    {.name = "align",
     .short_name = "align",
     .letter = 'a',
     .stream = StreamKind::kCompute,
     .payload = Payload::kNone,
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
static_assert(std::size(kOps) == kOpKinds);

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
     .drawn_as = OpKind::kTransferKv,
     .legend = "loaded from the sender"},
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
     .drawn_as = OpKind::kRecompute,
     .legend = "recomputed"},
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
     .drawn_as = OpKind::kTransferE,
     .legend = "restored: K and V of the sender's E"},
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
     .drawn_as = OpKind::kSelect,
     .legend = "loaded, but recomputed for the {:g} % of the tokens that deviate most"},
};
static_assert(std::size(kModeRows) == kModes);

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

// By OpKind; a recompute of selected rows stands apart.
constexpr std::span<const Access> kAccesses[] = {kTransferE, kTransferKv, kEmbed,  kRecompute, kSuffix,
                                                 kPrefill,   kHead,       kSelect, kAlign};
static_assert(std::size(kAccesses) == kOpKinds);

}  // namespace

const OpTraits& traits_of(OpKind kind) { return kOps[static_cast<size_t>(kind)]; }
const ModeTraits& traits_of(Mode mode) { return kModeRows[static_cast<size_t>(mode)]; }

std::span<const Access> accesses_of(OpKind kind, Rows rows) {
  if (rows == Rows::kSelected) return kRecomputeSelected;
  return kAccesses[static_cast<size_t>(kind)];
}

}  // namespace ds
