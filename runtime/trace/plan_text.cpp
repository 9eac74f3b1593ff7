#include "runtime/trace/plan_text.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "plans/simulate.h"
#include "plans/traits.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/table_internal.h"
#include "runtime/trace/tracks.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr int64_t kCellsPerLine = 80;
constexpr int64_t kTimeColumns = 84;

std::string left(std::string text, size_t width) {
  size_t have = columns(text);
  return have < width ? text + std::string(width - have, ' ') : text;
}
std::string right(std::string text, size_t width) {
  size_t have = columns(text);
  return have < width ? std::string(width - have, ' ') + text : text;
}

class Text {
 public:
  Text(const Plan& plan, const TextOptions& options) : p_(plan), o_(options) {}

  std::string run() {
    header();
    table();
    const Variant* v = o_.variant;
    if (v == nullptr) v = p_.variants.empty() ? &p_.full_prefill : &p_.variants[0];
    variant(*v);
    if (o_.variant == nullptr && p_.variants.size() > 1) {
      line(fmt::format("\nThis was {}. The layers and operations of another variant: --variant NAME",
                       v->name));
    }
    return std::move(out_);
  }

 private:
  void line(std::string text) {
    while (!text.empty() && text.back() == ' ') text.pop_back();
    out_ += text + "\n";
  }
  void field(std::string_view name, const std::string& value) { line(left(std::string(name), 12) + value); }
  /// A long text, broken between words.
  void wrapped(std::string text) {
    constexpr size_t kColumns = 96;
    while (text.size() > kColumns) {
      size_t at = text.rfind(' ', kColumns);
      // An option stays with its value where that can be had.
      if (size_t option = text.rfind(" --", kColumns); option != std::string::npos && option > 0) at = option;
      if (at == std::string::npos || at == 0) at = text.find(' ', kColumns);
      if (at == std::string::npos) break;
      field("", text.substr(0, at));
      text.erase(0, at + 1);
    }
    field("", text);
  }

  std::string model(const ModelIdentity& m) {
    return left(m.name.empty() ? "(no name)" : m.name, 28) + "  fingerprint " + m.fingerprint.substr(0, 16);
  }

  void header() {
    const Shape& s = p_.shape;
    std::string file = o_.origin + fmt::format("   format {}", p_.format_version);
    if (o_.file_bytes >= 0) file += ", " + format_bytes(o_.file_bytes);
    if (!o_.sha256.empty()) file += ", sha256 " + o_.sha256.substr(0, 16);
    field("Plan", file);
    field("Sender", model(p_.sender));
    field("Receiver", model(p_.receiver));
    for (size_t i = 1; i < p_.sources.size(); ++i)
      field(fmt::format("Source {}", i),
            model(p_.sources[i].model) + fmt::format(", as a {}", source_rule_name(p_.sources[i].rule)));
    field("Shape",
          fmt::format("{}, {} layers, d_model {}, ff {}, {} query and {} kv heads of {}, vocabulary {}",
                      s.family, s.layers, format_count(s.d_model), format_count(s.ff), s.heads, s.kv_heads,
                      s.head_dim, format_count(s.vocab)));
    if (p_.shared_vocab > 0)
      field("Both know", fmt::format("token ids below {}; a context with others is a miss",
                                     format_count(p_.shared_vocab)));
    int64_t element = p_.dtype == "f32" ? 4 : 2;
    field(
        "Per token",
        fmt::format("{}: KV {} a layer, {} in all; E {} a cut", p_.dtype, format_bytes(s.kv_row() * element),
                    format_bytes(s.kv_row() * element * s.layers), format_bytes(s.e_row() * element)));
    field("Publish", published_text(p_));
    if (p_.maps != MapsIdentity{})
      field("Maps", left(p_.maps.name.empty() ? "(no name)" : p_.maps.name, 28) + "  fingerprint " +
                        p_.maps.fingerprint.substr(0, 16));
    field("Compiler", fmt::format("ds-compile {}", p_.provenance.compiler_version));
    if (!p_.provenance.flags.empty()) wrapped(p_.provenance.flags);
    std::string_view name = "Inputs";
    for (const InputFile& i : p_.provenance.inputs) {
      field(name, left(i.role, 10) + "  " + left(i.name, 28) + "  " + i.sha256.substr(0, 16));
      name = "";
    }
  }

  /// One row per variant, the full prefill last.
  void table() {
    std::vector<std::vector<std::string>> rows = {{"variant", "context", "link", "waiting", "policy",
                                                   "scheduler", "recompute", "sends", "loss", "TTFT"}};
    std::vector<const Variant*> all;
    for (const Variant& v : p_.variants) all.push_back(&v);
    const bool divergence = std::any_of(all.begin(), all.end(),
                                        [](const Variant* v) { return !std::isnan(v->promise.divergence); });
    if (divergence) rows[0].insert(rows[0].end() - 1, "nats");
    all.push_back(&p_.full_prefill);
    for (const Variant* v : all) {
      rows.push_back({v->name, tokens_range_text(*v), rate_range_text(*v), waiting_range_text(*v), v->policy,
                      v->scheduler, recomputed_text(*v), format_bytes(bytes_sent(p_, *v)),
                      std::isnan(v->promise.quality_loss) ? "?" : loss_text(v->promise.quality_loss),
                      v->makespan_ns > 0 ? format_ns(v->promise.ttft_ns) : "?"});
      const double nats = v->promise.divergence;
      if (divergence) rows.back().insert(rows.back().end() - 1, std::isnan(nats) ? "?" : nats_text(nats));
    }
    // Most plans do not ask how many wait.
    constexpr size_t kWaiting = 3;
    if (std::all_of(rows.begin() + 1, rows.end(), [](const auto& r) { return r[kWaiting] == "any"; })) {
      for (auto& row : rows) row.erase(row.begin() + kWaiting);
    }
    size_t numbers = rows[0].size() - (divergence ? 4 : 3);  // sends, loss, nats and TTFT stand to the right
    line("");
    const std::vector<size_t> widths = column_widths(rows);
    std::vector<std::string> rules;
    for (size_t width : widths) {
      rules.emplace_back();
      for (size_t k = 0; k < width; ++k) rules.back() += "─";
    }
    rows.insert(rows.begin() + 1, std::move(rules));
    for (const auto& row : rows) line(table_line(row, widths, numbers));
  }

  void variant(const Variant& v) {
    line("");
    std::string head = fmt::format("Variant {}", v.name);
    line(head);
    std::string rule;
    for (size_t k = 0; k < columns(head); ++k) rule += "═";
    line(rule);
    bool timed = v.makespan_ns > 0;
    if (timed) {
      bool link = bytes_sent(p_, v) > 0;
      field("Tuned for",
            fmt::format("{} context tokens, {} suffix tokens{}", format_count(v.tuned_tokens),
                        format_count(v.tuned_suffix),
                        link ? ", link " + format_rate(static_cast<double>(v.tuned_rate)) : std::string()));
      std::string bound =
          v.proven_optimal ? "proven optimal"
                           : fmt::format("lower bound {}, {:.2f} % above it", format_ns(v.lower_bound_ns),
                                         v.lower_bound_ns > 0
                                             ? 100.0 * static_cast<double>(v.makespan_ns - v.lower_bound_ns) /
                                                   static_cast<double>(v.lower_bound_ns)
                                             : 0.0);
      field("Promise", fmt::format("TTFT {}; quality loss {}", format_ns(v.promise.ttft_ns),
                                   promised_loss_text(v.promise)));
      if (!std::isnan(v.promise.divergence)) field("Divergence", promised_divergence_text(v.promise));
      if (!v.way.empty()) field("Measured as", measured_text(v));
      if (v.map_form != MapForm::kNone) field("Cuts", alignment_text(v));
      if (!v.why.empty()) field("Chosen by", v.why);
      if (v.regret >= 0)
        field("Regret", regret_text(v.regret) + " slower than the best choice, at worst in these ranges");
      if (!v.alternatives.empty()) {
        field("Instead of",
              fmt::format("{} alternatives; 'ds-plan explain' lists them", v.alternatives.size()));
      }
      field("Schedule", fmt::format("{} ops, {}, {}", v.ops.size(), format_ns(v.makespan_ns), bound));
      if (p_.full_prefill.makespan_ns > 0 && &v != &p_.full_prefill &&
          tuned_point(v).tokens == tuned_point(p_.full_prefill).tokens) {
        field("", fmt::format(
                      "full prefill {}: {:.2f} times as long", format_ns(p_.full_prefill.makespan_ns),
                      static_cast<double>(p_.full_prefill.makespan_ns) / static_cast<double>(v.makespan_ns)));
      }
    } else {
      field("Schedule", fmt::format("{} ops, no predicted times", v.ops.size()));
    }
    layers(v);
    if (timed) gantt(v);
    ops(v);
  }

  /// The plane: layers to the right, chunks (collapsed where alike) down.
  void layers(const Variant& v) {
    int64_t count = p_.shape.layers;
    std::vector<std::string> rows(static_cast<size_t>(v.chunks),
                                  std::string(static_cast<size_t>(count), '?'));
    std::set<int64_t> cuts;
    for (const Tile& t : v.tiles) {
      for (int32_t c = t.first_chunk; c <= t.last_chunk; ++c) {
        for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
          rows[static_cast<size_t>(c)][static_cast<size_t>(l)] = traits_of(t.mode).letter;
        }
      }
      if (t.cut) cuts.insert(t.first_layer);
    }
    line("");
    field("Layers", fmt::format("{}{}", modes_text(v),
                                cuts.empty() ? std::string()
                                : v.map_form == MapForm::kNone
                                    ? ", ▲ cut: the sender's E enters"
                                    : ", ▲ cut: the sender's E enters, " + alignment_text(v)));
    int64_t cell = count <= 26 ? 3 : count <= 40 ? 2 : 1;
    for (int64_t first = 0; first < count; first += kCellsPerLine / cell) {
      int64_t last = std::min(first + kCellsPerLine / cell, count);
      std::string numbers;
      for (int64_t l = first; l < last; ++l) {
        auto at = static_cast<size_t>((l - first) * cell);
        bool show = cell == 3 || l % 5 == 0;
        if (show && numbers.size() <= at)
          numbers += std::string(at - numbers.size(), ' ') + std::to_string(l);
      }
      field("", numbers);
      for (size_t c = 0; c < rows.size();) {
        size_t same = c;
        while (same + 1 < rows.size() && rows[same + 1] == rows[c]) ++same;
        std::string marks;
        for (int64_t l = first; l < last; ++l) {
          marks += left(std::string(1, rows[c][static_cast<size_t>(l)]), static_cast<size_t>(cell));
        }
        std::string name;
        if (rows.size() > 1)
          name = same > c ? fmt::format("chunk {}-{}", c, same) : fmt::format("chunk {}", c);
        field(name, marks);
        c = same + 1;
      }
      std::string marks;
      bool any = false;
      for (int64_t l = first; l < last; ++l) {
        any |= cuts.count(l) > 0;
        marks += left(cuts.count(l) > 0 ? "▲" : " ", static_cast<size_t>(cell));
      }
      if (any) field("", marks);
    }
  }

  /// One line per stream: each column shows the kind that holds it longest, or nothing but idle time.
  void gantt(const Variant& v) {
    std::vector<std::string> names = stream_names(v);
    line("");
    std::string key;
    std::set<size_t> kinds;  // rows of op_traits()
    for (const Op& op : v.ops) kinds.insert(trait_row(op));
    for (size_t k : kinds) key += fmt::format("{} {}, ", op_traits()[k].letter, op_traits()[k].name);
    field("Time", key + "· idle");
    double column = static_cast<double>(v.makespan_ns) / static_cast<double>(kTimeColumns);
    for (size_t s = 0; s < v.streams.size(); ++s) {
      std::vector<std::vector<double>> share(static_cast<size_t>(kTimeColumns),
                                             std::vector<double>(op_traits().size()));
      int64_t busy = 0;
      for (const Op& op : v.ops) {
        if (static_cast<size_t>(op.stream) != s || op.duration_ns == 0) continue;
        busy += op.duration_ns;
        auto from = static_cast<double>(op.start_ns), to = from + static_cast<double>(op.duration_ns);
        auto last = std::min(kTimeColumns - 1, static_cast<int64_t>(to / column));
        for (auto c = static_cast<int64_t>(from / column); c <= last; ++c) {
          double part = std::min(to, static_cast<double>(c + 1) * column) -
                        std::max(from, static_cast<double>(c) * column);
          share[static_cast<size_t>(c)][trait_row(op)] += std::max(part, 0.0);
        }
      }
      std::string row;
      for (const auto& column_share : share) {
        auto most = std::max_element(column_share.begin(), column_share.end());
        row += *most > 0
                   ? std::string(1, op_traits()[static_cast<size_t>(most - column_share.begin())].letter)
                   : "·";
      }
      field(names[s], row + fmt::format("  {:5.1f} % busy", 100.0 * static_cast<double>(busy) /
                                                                static_cast<double>(v.makespan_ns)));
    }
    std::string axis = "0", end = format_ns(v.makespan_ns), middle = format_ns(v.makespan_ns / 2);
    auto half = static_cast<size_t>(kTimeColumns) / 2;
    axis += std::string(half - 1 - middle.size() / 2, ' ') + middle;
    axis += std::string(static_cast<size_t>(kTimeColumns) - axis.size() - end.size(), ' ') + end;
    field("", axis);
  }

  /// Every op in the order of its start, in the column of its stream.
  void ops(const Variant& v) {
    std::vector<std::string> names = stream_names(v);
    std::vector<size_t> width;
    for (const std::string& name : names) width.push_back(std::max<size_t>(name.size(), 6));
    auto shown = [&](const Op& op) {
      std::string label = op_label(op, v.chunks);
      if (op.kind == OpKind::kEmbed)
        label += op.rows == Rows::kAll ? " all" : op.rows == Rows::kSuffix ? " suffix" : " context";
      if (op.source != 0) label += fmt::format(" of source {}", op.source);
      if (op.rows == Rows::kSelected) label += " selected";
      if (op.kind == OpKind::kRecompute && op.queries == Queries::kNone) label += " (K, V)";
      if (op.kind == OpKind::kPrefill && op.queries == Queries::kSuffix) label += " (context: K, V)";
      return label;
    };
    for (const Op& op : v.ops) {
      size_t& w = width[static_cast<size_t>(op.stream)];
      w = std::max(w, shown(op).size());
    }
    line("");
    // One unit for the whole column, so that points stand under one another.
    bool in_ms = v.makespan_ns >= 1'000'000;
    std::string unit = in_ms ? "ms" : "us";
    auto time = [&](int64_t ns) {
      return v.makespan_ns == 0 ? std::string("-")
                                : fmt::format("{:.3f}", static_cast<double>(ns) / (in_ms ? 1e6 : 1e3));
    };
    std::string head =
        left("Operations", 12) + right("start/" + unit, 12) + right("takes/" + unit, 12) + "   ";
    for (size_t s = 0; s < names.size(); ++s) head += "│ " + left(names[s], width[s]) + " ";
    line(head + "│ waits for");
    size_t listed = std::min(v.ops.size(), o_.max_ops);
    for (size_t i = 0; i < listed; ++i) {
      const Op& op = v.ops[i];
      std::string row = right(std::to_string(i), 10) + "  " + right(time(op.start_ns), 12) +
                        right(time(op.duration_ns), 12) + "   ";
      for (size_t s = 0; s < names.size(); ++s) {
        bool here = static_cast<size_t>(op.stream) == s;
        row += "│ " + left(here ? shown(op) : "", width[s]) + " ";
      }
      row += "│ ";
      for (size_t w = 0; w < op.waits.size(); ++w) {
        const Op& other = v.ops[static_cast<size_t>(op.waits[w])];
        row += fmt::format("{}{} {}", w > 0 ? ", " : "", op.waits[w], op_label(other, v.chunks));
      }
      line(row);
    }
    if (listed < v.ops.size())
      line(fmt::format("{:>10}  {} more; --all-ops lists them", "...", v.ops.size() - listed));
  }

  const Plan& p_;
  const TextOptions& o_;
  std::string out_;
};

}  // namespace

std::string plan_to_text(const Plan& plan, const TextOptions& options) { return Text(plan, options).run(); }

}  // namespace ds
