#include "plans/way.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "plans/traits.h"

namespace ds {
namespace {

using Lists = WayForm::Lists;
using SendsE = ModeTraits::SendsE;

constexpr WayForm kControls[] = {
    {"reuse only", "reuse only {}", Mode::kLoad, Control::kReuseOnly, Lists::kOneRun},
    {"sender alone", "sender alone", Mode::kLoad, Control::kSenderAlone, Lists::kNothing},
    {"no context", "no context", Mode::kLoad, Control::kNoContext, Lists::kNothing},
    {"other document", "other document", Mode::kLoad, Control::kOtherDocument, Lists::kNothing},
};

Lists lists(const std::vector<LayerRange>& layers) {
  return static_cast<Lists>(std::min<size_t>(layers.size(), 2));
}

/// nullptr: there is no such way.
const WayForm* find_form(Mode mode, Control control, Lists lists) {
  for (const WayForm& form : way_forms())
    if (form.mode == mode && form.control == control && form.lists == lists) return &form;
  return nullptr;
}

/// What the sender sends of hidden states for this way's layers.
SendsE sends_e(const Way& way) {
  return way.control == Control::kNone && !way.layers.empty() ? traits_of(way.mode).sends_e : SendsE::kNever;
}

/// Layers that every chunk has in this mode, or recomputed.
std::vector<LayerRange> in_every_chunk(const Variant& v, int32_t layers, Mode mode) {
  std::vector<LayerRange> ranges;
  for (int32_t l = 0; l < layers; ++l) {
    int32_t chunks = 0;
    for (const Tile& t : v.tiles)
      if ((t.mode == mode || t.mode == Mode::kRecompute) && t.first_layer <= l && l <= t.last_layer)
        chunks += t.last_chunk - t.first_chunk + 1;
    if (chunks != v.chunks) continue;  // tiles do not overlap
    if (!ranges.empty() && ranges.back().last == l - 1) {
      ranges.back().last = l;
    } else {
      ranges.push_back({l, l});
    }
  }
  return ranges;
}

/// Modes are asked by their numbers: recompute first, so that layers that every chunk recomputes name the
/// variant, whatever else it restores. For later ones what is recomputed counts too (in_every_chunk): it is
/// more than they promise. A mode whose runs have no name leaves the variant to the next one, and at last to
/// full reuse, which every tiling is at least.
Way without_maps(const Variant& v) {
  int32_t layers = 0;
  for (const Tile& t : v.tiles) layers = std::max(layers, t.last_layer + 1);
  for (size_t m = 0; m < kModes; ++m) {
    Way way{.mode = static_cast<Mode>(m), .share = v.select_share};
    const ModeTraits& traits = traits_of(way.mode);
    if (!traits.computes || traits.selects != (way.share > 0)) continue;
    if (traits.selects) return way;
    std::vector<LayerRange> runs = in_every_chunk(v, layers, way.mode);
    if (runs.empty()) continue;
    const bool all = runs.size() == 1 && runs[0].size() == layers;
    if (all && find_form(way.mode, Control::kNone, Lists::kNothing)) return way;
    way.layers = std::move(runs);
    if (find_form(way.mode, Control::kNone, lists(way.layers))) return way;
  }
  return Way::full_reuse();
}

}  // namespace

std::span<const WayForm> way_forms() {
  static const std::vector<WayForm> kForms = [] {
    std::vector<WayForm> forms;
    for (size_t m = 0; m < kModes; ++m) {
      const auto mode = static_cast<Mode>(m);
      const auto& names = traits_of(mode).ways;
      for (size_t n = 0; n < std::size(names); ++n)
        if (!names[n].kind.empty())
          forms.push_back({names[n].kind, names[n].text, mode, Control::kNone, static_cast<Lists>(n)});
    }
    forms.insert(forms.end(), std::begin(kControls), std::end(kControls));
    return forms;
  }();
  return kForms;
}

bool WayForm::has_share() const { return traits_of(mode).selects; }

const WayForm& Way::form() const {
  if (const WayForm* exact = find_form(mode, control, lists(layers))) return *exact;
  const WayForm* best = nullptr;
  for (const WayForm& f : way_forms()) {
    if (f.mode != mode || f.control != control) continue;
    if (best == nullptr || (f.lists != Lists::kNothing && best->lists == Lists::kNothing)) best = &f;
  }
  return *best;  // every mode has a form (traits.cpp)
}

bool Way::can_align() const {
  if (sends_e(*this) != SendsE::kAtCut) return sends_e(*this) != SendsE::kNever;
  return std::any_of(layers.begin(), layers.end(), [](const LayerRange& r) { return r.first > 0; });
}

Way Way::aligned(MapForm with, std::string of_control) const {
  Way way = *this;
  way.map = with;
  way.map_control = std::move(of_control);
  return way;
}

std::vector<int64_t> Way::sent_layers() const {
  std::vector<int64_t> sent;
  if (!can_align()) return sent;
  for (const LayerRange& r : layers)
    for (int64_t l = r.first; l <= (sends_e(*this) == SendsE::kAtCut ? r.first : r.last); ++l)
      if (l > 0) sent.push_back(l);
  return sent;
}

std::string Way::name() const {
  if (map != MapForm::kNone) {
    std::string text = aligned(MapForm::kNone).name() + " aligned";
    if (map != MapForm::kFull) text += fmt::format(" ({})", map_form_name(map));
    return map_control.empty() ? text : fmt::format("{} ({})", text, map_control);
  }
  const auto text = fmt::runtime(form().text);
  return form().has_share() ? fmt::format(text, share * 100) : fmt::format(text, format_layer_set(layers));
}

int64_t Way::recomputed(int64_t total) const {
  int64_t sum = 0;
  for (const LayerRange& r : layers) sum += r.size();
  switch (control) {
    case Control::kReuseOnly:
      return total - sum;
    case Control::kSenderAlone:
      return total;
    case Control::kNoContext:
    case Control::kOtherDocument:
      return 0;
    case Control::kNone:
      break;
  }
  const ModeTraits& traits = traits_of(mode);
  if (traits.selects) return share < 1 ? 1 : total;  // all tokens of the layer that it chooses by
  if (!traits.stands) return 0;
  return layers.empty() ? total : sum;
}

Way way_of(const Variant& v) {
  Way way = without_maps(v);
  if (way.can_align()) way.map = v.map_form;
  return way;
}

std::string format_layer_set(const std::vector<LayerRange>& ranges) {
  std::vector<std::string> parts;
  for (const LayerRange& r : ranges) parts.push_back(format_layers(r));
  return fmt::format("{}", fmt::join(parts, ","));
}

Result<std::vector<LayerRange>> parse_layer_set(std::string_view text, int64_t layers) {
  std::vector<LayerRange> ranges;
  for (size_t at = 0; at <= text.size();) {
    size_t end = std::min(text.find(',', at), text.size());
    DS_ASSIGN(LayerRange range, parse_layers(text.substr(at, end - at), layers));
    if (range.empty() || (!ranges.empty() && range.first <= ranges.back().last))
      return error(Code::kInvalidArgument, "'{}': expected layers in ascending order, like 2,5-7", text);
    ranges.push_back(range);
    at = end + 1;
  }
  return ranges;
}

}  // namespace ds
