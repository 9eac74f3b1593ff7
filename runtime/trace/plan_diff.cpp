#include "runtime/trace/plan_diff.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "plans/traits.h"
#include "runtime/trace/describe.h"
#include "support/units.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

bool same_ranges(const Variant& a, const Variant& b) {
  return a.tokens_min == b.tokens_min && a.tokens_max == b.tokens_max && a.rate_min == b.rate_min &&
         a.rate_max == b.rate_max && a.load_min == b.load_min && a.load_max == b.load_max && a.live == b.live;
}

std::string ranges_text(const Variant& v) {
  std::string text = fmt::format("context {}, link {}", tokens_range_text(v), rate_range_text(v));
  std::string waiting = waiting_range_text(v);
  return waiting == "any" ? text : text + ", waiting " + waiting;
}

class Diff {
 public:
  Diff(const Plan& a, const Plan& b) : a_(a), b_(b) {}

  std::vector<PlanChange> run() {
    if (a_ == b_) return {};
    where_ = "plan";
    whole();
    std::vector<std::pair<const Variant*, const Variant*>> pairs = match();
    for (auto [a, b] : pairs) variant(*a, *b);
    variant(a_.full_prefill, b_.full_prefill);
    where_ = "plan";
    if (changes_.empty()) add("order of variants", nullptr, nullptr, "the same variants in another order");
    return std::move(changes_);
  }

 private:
  void add(std::string field, Json a, Json b, std::string text) {
    changes_.push_back({where_, std::move(field), std::move(a), std::move(b), std::move(text)});
  }
  void words(const char* field, const std::string& a, const std::string& b) {
    auto shown = [](const std::string& s) { return s.empty() ? std::string("nothing") : s; };
    if (a != b) add(field, a, b, shown(a) + " -> " + shown(b));
  }
  template <typename Format>
  void number(const char* field, int64_t a, int64_t b, Format&& format) {
    if (a == b) return;
    std::string text = format(a) + " -> " + format(b);
    if (a > 0)
      text += fmt::format(" ({:+.1f} %)", 100.0 * (static_cast<double>(b) / static_cast<double>(a) - 1));
    add(field, a, b, text);
  }

  void whole() {
    number("format version", a_.format_version, b_.format_version, format_count);
    words("compiler", a_.provenance.compiler_version, b_.provenance.compiler_version);
    flags();
    inputs();
    model("sender", a_.sender, b_.sender);
    model("receiver", a_.receiver, b_.receiver);
    words("shape", shape_text(a_.shape), shape_text(b_.shape));
    words("sources", sources_text(a_), sources_text(b_));
    words("ids that both know", vocab_text(a_), vocab_text(b_));
    words("element type", a_.dtype, b_.dtype);
    auto maps = [](const MapsIdentity& m) {
      return m == MapsIdentity{} ? std::string() : m.name + " " + m.fingerprint.substr(0, 16);
    };
    words("maps", maps(a_.maps), maps(b_.maps));
    words("published", published_text(a_), published_text(b_));
  }
  /// Only the options that differ.
  void flags() {
    const std::string &a = a_.provenance.flags, &b = b_.provenance.flags;
    if (a == b) return;
    std::vector<std::string> x = options(a), y = options(b), gone, added;
    auto missing = [](const std::vector<std::string>& from, const std::vector<std::string>& in,
                      std::vector<std::string>& out) {
      std::copy_if(from.begin(), from.end(), std::back_inserter(out),
                   [&](const std::string& o) { return std::find(in.begin(), in.end(), o) == in.end(); });
    };
    missing(x, y, gone);
    missing(y, x, added);
    auto text = [](const std::vector<std::string>& list) {
      return list.empty() ? std::string("nothing") : fmt::format("{}", fmt::join(list, " "));
    };
    add("flags", a, b, text(gone) + " -> " + text(added));
  }
  /// "--a 1 --b 2": "--a 1", "--b 2".
  static std::vector<std::string> options(const std::string& flags) {
    std::vector<std::string> list;
    for (size_t begin = 0; begin < flags.size();) {
      size_t end = std::min(flags.find(" --", begin), flags.size());
      list.push_back(flags.substr(begin, end - begin));
      begin = end + 1;
    }
    return list;
  }
  static std::string shape_text(const Shape& s) {
    return fmt::format("{}, {} layers, d_model {}, ff {}, {} query and {} kv heads of {}, vocabulary {}",
                       s.family, s.layers, s.d_model, s.ff, s.heads, s.kv_heads, s.head_dim, s.vocab);
  }
  static std::string sources_text(const Plan& p) {
    std::string text;
    for (const Source& s : p.sources) {
      text += fmt::format("{}{} of {} {:.16}", text.empty() ? "" : "; ", source_rule_name(s.rule),
                          s.model.name, s.model.fingerprint);
      if (s.shape != p.shape) text += fmt::format(" ({})", shape_text(s.shape));
    }
    return text;
  }
  static std::string vocab_text(const Plan& p) {
    return p.shared_vocab == 0 ? "all" : fmt::format("those below {}", p.shared_vocab);
  }
  void model(const std::string& role, const ModelIdentity& a, const ModelIdentity& b) {
    if (a == b) return;
    std::string parts;
    auto part = [&](const char* name, const std::string& x, const std::string& y) {
      if (x != y) parts += std::string(parts.empty() ? "" : ", ") + name;
    };
    part("name", a.name, b.name);
    part("config", a.config, b.config);
    part("weights", a.weights, b.weights);
    part("tokenizer", a.tokenizer, b.tokenizer);
    part("fingerprint", a.fingerprint, b.fingerprint);
    add(role, {{"name", a.name}, {"fingerprint", a.fingerprint}},
        {{"name", b.name}, {"fingerprint", b.fingerprint}},
        fmt::format("'{}' {} -> '{}' {}: another {}", a.name, a.fingerprint.substr(0, 16), b.name,
                    b.fingerprint.substr(0, 16), parts));
  }
  /// By role; of several with one role, in their order.
  void inputs() {
    const auto &a = a_.provenance.inputs, &b = b_.provenance.inputs;
    if (a == b) return;
    size_t before = changes_.size();
    std::map<std::string, std::pair<std::vector<InputFile>, std::vector<InputFile>>> roles;
    for (const InputFile& i : a) roles[i.role].first.push_back(i);
    for (const InputFile& i : b) roles[i.role].second.push_back(i);
    auto json = [](const InputFile& i) { return Json{{"name", i.name}, {"sha256", i.sha256}}; };
    auto text = [](const InputFile& i) { return i.name + " " + i.sha256.substr(0, 16); };
    for (const auto& [role, files] : roles) {
      for (size_t k = 0; k < std::max(files.first.size(), files.second.size()); ++k) {
        const InputFile* x = k < files.first.size() ? &files.first[k] : nullptr;
        const InputFile* y = k < files.second.size() ? &files.second[k] : nullptr;
        if (x != nullptr && y != nullptr && *x == *y) continue;
        add("input " + role, x != nullptr ? json(*x) : Json(), y != nullptr ? json(*y) : Json(),
            (x != nullptr ? text(*x) : "none") + " -> " + (y != nullptr ? text(*y) : "none"));
      }
    }
    if (changes_.size() == before) add("inputs", nullptr, nullptr, "the same inputs in another order");
  }

  std::vector<std::pair<const Variant*, const Variant*>> match() {
    std::vector<std::pair<const Variant*, const Variant*>> pairs;
    std::vector<const Variant*> left, right;
    for (const Variant& v : b_.variants) right.push_back(&v);
    auto take = [&](const Variant& v, auto&& same) {
      auto found = std::find_if(right.begin(), right.end(), [&](const Variant* o) { return same(v, *o); });
      if (found == right.end()) return false;
      pairs.emplace_back(&v, *found);
      right.erase(found);
      return true;
    };
    for (const Variant& v : a_.variants) {
      if (!take(v, same_ranges)) left.push_back(&v);
    }
    for (const Variant* v : left) {
      if (take(*v, [](const Variant& x, const Variant& y) { return x.name == y.name; })) continue;
      where_ = v->name;
      add("variant", summary(a_, *v), nullptr, "only in the first: " + summary_text(a_, *v));
    }
    for (const Variant* v : right) {
      where_ = v->name;
      add("variant", nullptr, summary(b_, *v), "only in the second: " + summary_text(b_, *v));
    }
    return pairs;
  }
  static Json summary(const Plan& p, const Variant& v) {
    return {{"ranges", ranges_text(v)},
            {"tiling", tiling_text(v)},
            {"promised_ttft_ns", v.promise.ttft_ns},
            {"bytes", bytes_sent(p, v)}};
  }
  static std::string summary_text(const Plan& p, const Variant& v) {
    return fmt::format("{}; {}; TTFT {}, sends {}", ranges_text(v), tiling_text(v),
                       format_ns(v.promise.ttft_ns), format_bytes(bytes_sent(p, v)));
  }

  void variant(const Variant& a, const Variant& b) {
    if (a == b) return;
    where_ = a.name;
    size_t before = changes_.size();
    words("name", a.name, b.name);
    if (!same_ranges(a, b)) words("ranges", ranges_text(a), ranges_text(b));
    words("policy", a.policy, b.policy);
    words("scheduler", a.scheduler, b.scheduler);
    words("why", a.why, b.why);
    if (a.regret != b.regret)
      add("regret", a.regret, b.regret, regret_text(a.regret) + " -> " + regret_text(b.regret));
    if (a.alternatives != b.alternatives) alternatives(a, b);
    number("tuned context", a.tuned_tokens, b.tuned_tokens, format_count);
    number("tuned suffix", a.tuned_suffix, b.tuned_suffix, format_count);
    number("tuned link", a.tuned_rate, b.tuned_rate,
           [](int64_t r) { return format_rate(static_cast<double>(r)); });
    number("chunks", a.chunks, b.chunks, format_count);
    words("tiling", tiling_text(a), tiling_text(b));
    auto cuts = [](const Variant& v) {
      std::string text = alignment_text(v);
      return text.empty() ? std::string("plain") : text;
    };
    words("cuts", cuts(a), cuts(b));
    if (a.select_share != b.select_share) {
      add("selected share", a.select_share, b.select_share,
          fmt::format("{:g} % -> {:g} % of the tokens", 100 * a.select_share, 100 * b.select_share));
    }
    double x = a.promise.quality_loss, y = b.promise.quality_loss;
    if (x != y && !(std::isnan(x) && std::isnan(y))) {
      auto json = [](double loss) { return std::isnan(loss) ? Json(nullptr) : Json(loss); };
      add("promised loss", json(x), json(y), fmt::format("{} -> {} (points)", loss_text(x), loss_text(y)));
    }
    const std::string nats = promised_divergence_text(a.promise),
                      nats_now = promised_divergence_text(b.promise);
    words("promised divergence", nats.empty() ? "not known" : nats,
          nats_now.empty() ? "not known" : nats_now);
    words("way", a.way, b.way);
    Promise shown = a.promise;
    shown.quality_loss = y;
    shown.ttft_ns = b.promise.ttft_ns;
    shown.divergence = b.promise.divergence;
    shown.divergence_stderr = b.promise.divergence_stderr;
    shown.divergence_bound = b.promise.divergence_bound;
    if (!(shown == b.promise)) {
      auto json = [](const Promise& p) {
        auto known = [](double value) { return std::isnan(value) ? Json(nullptr) : Json(value); };
        return Json{{"loss_stderr", known(p.loss_stderr)},
                    {"loss_bound", known(p.loss_bound)},
                    {"confidence", p.confidence}};
      };
      add("certainty of loss", json(a.promise), json(b.promise),
          promised_loss_text(a.promise) + " -> " + promised_loss_text(b.promise));
    }
    number("promised TTFT", a.promise.ttft_ns, b.promise.ttft_ns, format_ns);
    number("makespan", a.makespan_ns, b.makespan_ns, format_ns);
    number("lower bound", a.lower_bound_ns, b.lower_bound_ns, format_ns);
    if (a.proven_optimal != b.proven_optimal) {
      add("proof", a.proven_optimal, b.proven_optimal,
          b.proven_optimal ? "now proven optimal" : "no longer proven optimal");
    }
    number("bytes moved", bytes_sent(a_, a), bytes_sent(b_, b), format_bytes);
    order("transfers", a, b, true);
    order("kernels", a, b, false);
    if (labels_differ_) {
      labels_differ_ = false;
    } else {
      ops(a, b);
    }
    if (a.streams != b.streams) number("streams", count(a.streams), count(b.streams), format_count);
    if (a.buffers != b.buffers && a.buffers.size() != b.buffers.size())
      number("buffers", count(a.buffers), count(b.buffers), format_count);
    if (changes_.size() == before)
      add("details", nullptr, nullptr, "streams, buffers or tiles are listed otherwise");
  }
  void alternatives(const Variant& a, const Variant& b) {
    auto names = [](const Variant& v) {
      Json list = Json::array();
      for (const Alternative& x : v.alternatives) list.push_back(x.what);
      return list;
    };
    Json x = names(a), y = names(b);
    add("alternatives", x, y,
        x == y ? fmt::format("the same {}, with other times or losses", x.size())
               : fmt::format("{} -> {}, others", x.size(), y.size()));
  }
  template <typename T>
  static int64_t count(const std::vector<T>& list) {
    return static_cast<int64_t>(list.size());
  }

  /// Which there are, then in which order they run.
  void order(const char* what, const Variant& a, const Variant& b, bool transfers) {
    auto labels = [&](const Variant& v) {
      std::vector<std::string> names;
      for (const Op& op : v.ops) {
        if (is_transfer(op) == transfers) names.push_back(op_label(op, v.chunks));
      }
      return names;
    };
    std::vector<std::string> x = labels(a), y = labels(b);
    if (x == y) return;
    labels_differ_ = true;
    // A label occurs once in a variant, but for embeddings.
    std::multiset<std::string> in_x(x.begin(), x.end()), in_y(y.begin(), y.end());
    std::vector<std::string> gone, added;
    for (const std::string& label : x) {
      if (auto found = in_y.find(label); found != in_y.end()) {
        in_y.erase(found);
      } else {
        gone.push_back(label);
      }
    }
    for (const std::string& label : y) {
      if (auto found = in_x.find(label); found != in_x.end()) {
        in_x.erase(found);
      } else {
        added.push_back(label);
      }
    }
    if (gone.empty() && added.empty()) {
      auto [p, q] = std::mismatch(x.begin(), x.end(), y.begin());
      add(fmt::format("order of {}", what), x, y,
          fmt::format("the same {}, from number {} on in another order: {} -> {}", what, p - x.begin() + 1,
                      *p, *q));
      return;
    }
    std::string text = fmt::format("{} -> {}", x.size(), y.size());
    auto list = [&](const char* verb, const std::vector<std::string>& names) {
      if (names.empty()) return;
      constexpr size_t kShown = 8;
      std::vector<std::string> first(names.begin(),
                                     names.begin() + static_cast<ptrdiff_t>(std::min(kShown, names.size())));
      text += fmt::format("; {} {}{}", verb, fmt::join(first, ", "),
                          names.size() > kShown ? fmt::format(" and {} more", names.size() - kShown) : "");
    };
    list("gone", gone);
    list("new", added);
    add(what, x, y, text);
  }

  /// For variants whose transfers and kernels are the same in the same order.
  void ops(const Variant& a, const Variant& b) {
    int64_t longer = 0, shorter = 0, moved = 0, other = 0;
    for (size_t i = 0; i < std::min(a.ops.size(), b.ops.size()); ++i) {
      const Op &x = a.ops[i], &y = b.ops[i];
      if (x == y) continue;
      longer += y.duration_ns > x.duration_ns ? 1 : 0;
      shorter += y.duration_ns < x.duration_ns ? 1 : 0;
      moved += y.start_ns != x.start_ns ? 1 : 0;
      Op same = y;
      same.start_ns = x.start_ns;
      same.duration_ns = x.duration_ns;
      other += same == x ? 0 : 1;
    }
    if (longer + shorter > 0)
      add("durations", nullptr, nullptr, fmt::format("{} ops longer, {} shorter", longer, shorter));
    if (moved > 0) add("starts", nullptr, nullptr, fmt::format("{} ops start at another time", moved));
    if (other > 0) add("operations", nullptr, nullptr, fmt::format("{} ops wait or work otherwise", other));
  }

  const Plan &a_, &b_;
  std::string where_;
  bool labels_differ_ = false;
  std::vector<PlanChange> changes_;
};

}  // namespace

std::vector<PlanChange> diff_plans(const Plan& a, const Plan& b) { return Diff(a, b).run(); }

std::string plan_diff_text(const std::vector<PlanChange>& changes) {
  std::string out, where;
  for (const PlanChange& c : changes) {
    if (c.where != where) {
      where = c.where;
      out +=
          (out.empty() ? "" : "\n") + (where == "plan" ? "The plan as a whole\n" : "Variant " + where + "\n");
    }
    out += fmt::format("  {:<18} {}\n", c.field, c.text);
  }
  return out;
}

Json plan_diff_json(const std::vector<PlanChange>& changes) {
  Json list = Json::array();
  for (const PlanChange& c : changes)
    list.push_back({{"where", c.where}, {"field", c.field}, {"a", c.a}, {"b", c.b}, {"text", c.text}});
  return list;
}

}  // namespace ds
