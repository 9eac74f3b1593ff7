#include "runtime/trace/describe.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "plans/simulate.h"
#include "plans/traits.h"
#include "support/units.h"

namespace ds {

std::string tokens_range_text(const Variant& v) {
  const std::string live = v.live ? " (live sender)" : "";
  if (v.tokens_max == kNoLimit)
    return (v.tokens_min <= 1 ? "any" : format_count(v.tokens_min) + " and more") + live;
  return format_count(v.tokens_min) + " to " + format_count(v.tokens_max - 1) + live;
}

std::string rate_range_text(const Variant& v) {
  auto rate = [](int64_t r) { return format_rate(static_cast<double>(r)); };
  if (v.rate_max == kNoLimit) return v.rate_min <= 0 ? "any" : rate(v.rate_min) + " and more";
  return v.rate_min <= 0 ? "below " + rate(v.rate_max) : rate(v.rate_min) + " to " + rate(v.rate_max);
}

std::string waiting_range_text(const Variant& v) {
  if (v.load_max == kNoLimit) return v.load_min <= 0 ? "any" : format_count(v.load_min) + " and more";
  if (v.load_max == v.load_min + 1) return v.load_min == 0 ? "none" : format_count(v.load_min);
  return format_count(v.load_min) + " to " + format_count(v.load_max - 1);
}

std::string regret_text(double regret) {
  return regret < 0 || std::isnan(regret) ? "not known" : fmt::format("{:.1f} %", 100 * regret);
}

std::string loss_text(double loss) { return std::isnan(loss) ? "not known" : fmt::format("{:.4g}", loss); }

namespace {

using Layers = std::set<int64_t>;

std::string ranges_text(const Layers& layers) {
  std::string text;
  for (auto it = layers.begin(); it != layers.end();) {
    LayerRange range{*it, *it};
    while (++it != layers.end() && *it == range.last + 1) range.last = *it;
    text += (text.empty() ? "" : ", ") + format_layers(range);
  }
  return text;
}

/// Layers of which some cell has this mode: "2-5, 9"; empty: none.
std::string layers_text(const Variant& v, Mode mode) {
  Layers layers;
  for (const Tile& t : v.tiles)
    for (int64_t l = t.first_layer; t.mode == mode && l <= t.last_layer; ++l) layers.insert(l);
  return ranges_text(layers);
}

/// A run of chunks that recompute more layers than all chunks do.
struct Stair {
  enum class Kind : uint8_t { kFromEmbeddings, kToTop, kOther } kind = Kind::kOther;
  int32_t first = 0, count = 0;  // chunks
  Layers layers;
};
struct Stairs {
  Layers band;  // recomputed for every token
  std::vector<Stair> more;
};

Stairs stairs_of(const Variant& v) {
  std::vector<Layers> by_chunk(static_cast<size_t>(std::max(v.chunks, 1)));
  int64_t top = 0;
  for (const Tile& t : v.tiles) {
    top = std::max<int64_t>(top, t.last_layer);
    for (int32_t c = t.first_chunk; t.mode == Mode::kRecompute && c <= t.last_chunk; ++c)
      for (int64_t l = t.first_layer; l <= t.last_layer; ++l) by_chunk[static_cast<size_t>(c)].insert(l);
  }
  Stairs out;
  out.band = by_chunk[0];
  for (const Layers& layers : by_chunk)
    std::erase_if(out.band, [&](int64_t l) { return !layers.contains(l); });
  for (size_t c = 0; c < by_chunk.size(); ++c) {
    if (by_chunk[c] == out.band) continue;
    bool goes_on = c > 0 && !out.more.empty() && by_chunk[c] == by_chunk[c - 1];
    if (goes_on) {
      ++out.more.back().count;
      continue;
    }
    Stair stair{Stair::Kind::kOther, static_cast<int32_t>(c), 1, by_chunk[c]};
    Layers to_top = out.band;
    for (int64_t l = out.band.empty() ? top + 1 : *out.band.rbegin() + 1; l <= top; ++l) to_top.insert(l);
    if (static_cast<int64_t>(stair.layers.size()) == top + 1) {
      stair.kind = Stair::Kind::kFromEmbeddings;
    } else if (stair.layers == to_top) {
      stair.kind = Stair::Kind::kToTop;
    }
    out.more.push_back(std::move(stair));
  }
  return out;
}

}  // namespace

std::string recomputed_text(const Variant& v) {
  const Stairs stairs = stairs_of(v);
  std::string text = ranges_text(stairs.band), restored = layers_text(v, Mode::kRestore);
  if (text.empty()) text = "none";
  if (!restored.empty()) text += fmt::format(" (restore {})", restored);
  if (v.map_form != MapForm::kNone) text += " aligned";
  if (v.select_share > 0)
    text += fmt::format(" (select {:g} % in {})", 100 * v.select_share, layers_text(v, Mode::kSelect));
  for (const Stair& s : stairs.more) {
    text += fmt::format(", {} of {} chunks ", s.count, v.chunks);
    text += s.kind == Stair::Kind::kFromEmbeddings ? "from the embeddings"
            : s.kind == Stair::Kind::kToTop        ? "to the top"
                                                   : ranges_text(s.layers);
  }
  return text;
}

std::string measured_text(const Variant& v) {
  if (v.way.empty()) return "not known";
  const Stairs stairs = stairs_of(v);
  if (stairs.more.empty()) return v.way;
  std::string text = v.way + ": what every token gets at least";
  for (const Stair& s : stairs.more) {
    std::string which = s.count == 1 ? fmt::format("chunk {} of {}", s.first + 1, v.chunks)
                        : s.first == 0
                            ? fmt::format("the first {} of {} chunks", s.count, v.chunks)
                            : fmt::format("chunks {} to {} of {}", s.first + 1, s.first + s.count, v.chunks);
    bool one = s.count == 1;
    text += "; " + which;
    if (s.kind == Stair::Kind::kFromEmbeddings) {
      text += fmt::format(" {} the receiver's own in every layer", one ? "is" : "are");
    } else if (s.kind == Stair::Kind::kToTop) {
      text += fmt::format(" {} on from there to the top layer", one ? "goes" : "go");
    } else {
      text += fmt::format(" {} {} recomputed", one ? "has" : "have", ranges_text(s.layers));
    }
  }
  return text;
}

std::string promised_loss_text(const Promise& p) {
  if (std::isnan(p.quality_loss)) return "not known";
  std::string text = loss_text(p.quality_loss);
  if (p.loss_stderr > 0) text += fmt::format(" ± {:.2g}", p.loss_stderr);
  text += " points";
  if (p.confidence <= 0) return text;
  return text + (std::isnan(p.loss_bound)
                     ? fmt::format(", not bounded with {:g} % confidence", 100 * p.confidence)
                     : fmt::format(", at most {} with {:g} % confidence", loss_text(p.loss_bound),
                                   100 * p.confidence));
}

std::string nats_text(double nats) { return std::isnan(nats) ? "not known" : fmt::format("{:.3g}", nats); }

std::string promised_divergence_text(const Promise& p) {
  if (std::isnan(p.divergence)) return "";
  std::string text = nats_text(p.divergence);
  if (p.divergence_stderr > 0) text += fmt::format(" ± {:.2g}", p.divergence_stderr);
  text += " nats per token";
  if (std::isnan(p.divergence_bound)) return text;
  return text + fmt::format(", at most {} with {:g} % confidence", nats_text(p.divergence_bound),
                            100 * p.confidence);
}

std::string alignment_text(const Variant& v) {
  if (v.map_form == MapForm::kNone) return "";
  return fmt::format("aligned ({} map, by the {})", map_form_name(v.map_form), map_side_name(v.map_side));
}

std::string published_text(const Plan& plan) {
  std::map<MapForm, std::vector<int32_t>> layers;
  for (const Cut& cut : published_cuts(plan)) layers[cut.form].push_back(cut.layer);
  std::string text = "KV of every layer";
  for (const auto& [form, list] : layers) {
    text += fmt::format(", E of layer {}", fmt::join(list, ", "));
    if (form != MapForm::kNone) text += fmt::format(" as mapped ({} map)", map_form_name(form));
  }
  return text;
}

std::string modes_text(const Variant& v) {
  std::string text;
  for (size_t m = 0; m < kModes; ++m) {
    const ModeTraits& traits = traits_of(static_cast<Mode>(m));
    const bool has = std::any_of(v.tiles.begin(), v.tiles.end(),
                                 [&](const Tile& t) { return t.mode == static_cast<Mode>(m); });
    if (traits.since > 1 && !has) continue;
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", traits.letter,
                        fmt::format(fmt::runtime(traits.legend), 100 * v.select_share));
  }
  return text;
}

std::string tiling_text(const Variant& v) {
  std::vector<Tile> tiles = v.tiles;
  std::sort(tiles.begin(), tiles.end(),
            [](const Tile& a, const Tile& b) { return a.first_layer < b.first_layer; });
  // Between two neighbouring edges all chunks are alike.
  std::set<int32_t> edges = {0, v.chunks};
  for (const Tile& t : tiles) edges.insert({t.first_chunk, t.last_chunk + 1});
  std::string text, last;
  int32_t first_chunk = 0;
  auto flush = [&](int32_t end) {
    if (last.empty()) return;
    text += text.empty() ? "" : "; ";
    if (v.chunks > 1 && end - first_chunk < v.chunks) {
      text += end - first_chunk == 1 ? fmt::format("chunk {}: ", first_chunk)
                                     : fmt::format("chunks {}-{}: ", first_chunk, end - 1);
    }
    text += last;
  };
  for (auto edge = edges.begin(); edge != edges.end() && *edge < v.chunks; ++edge) {
    std::string row;
    for (const Tile& t : tiles) {
      if (*edge < t.first_chunk || *edge > t.last_chunk) continue;
      row += fmt::format("{}{} {}{}", row.empty() ? "" : ", ", mode_name(t.mode),
                         format_layers({t.first_layer, t.last_layer}), t.cut ? " from E" : "");
      bool sends = t.sends_e(t.first_layer) || t.sends_e(t.last_layer);
      if (sends && v.map_form != MapForm::kNone) row += fmt::format(" {}", alignment_text(v));
      if (t.mode == Mode::kSelect) row += fmt::format(" ({:g} % of the tokens)", 100 * v.select_share);
    }
    if (row == last) continue;
    flush(*edge);
    first_chunk = *edge;
    last = row;
  }
  flush(v.chunks);
  return text;
}

size_t columns(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

int64_t bytes_sent(const Plan& plan, const Variant& v) {
  int64_t bytes = 0;
  for (const Op& op : v.ops) {
    bytes += transfer_bytes(plan, v, op, v.tuned_tokens);
    if (bytes > INT64_MAX / 4) break;  // an absurd plan: one op is below 2^59
  }
  return bytes;
}

}  // namespace ds
