#include "runtime/core/gate.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "plans/traits.h"
#include "support/clock.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
// alpha * (n + 1) may be a whole number on paper and a rounding error below it in binary.
constexpr double kRounding = 1e-12;

bool alarms_above(Proxy proxy) { return proxy != Proxy::kMargin; }

/// How many of n samples a new value may be beyond: 0 where n is too small for alpha.
int64_t conformal_rank(int64_t n, double alpha) {
  return std::min(n, static_cast<int64_t>(alpha * static_cast<double>(n + 1) * (1 + kRounding)));
}

int64_t samples_needed(double alpha) {
  return static_cast<int64_t>(std::ceil(std::min(1e15, 1 / alpha) * (1 - kRounding))) - 1;
}

/// Three digits, rounded up: a rate that can be asked for.
double round_up(double share) {
  double unit = std::pow(10, std::floor(std::log10(share)) - 2);
  return std::ceil(share / unit * (1 - kRounding)) * unit;
}

/// Every cell of layer 0 holds the sender's K and V as they were sent.
bool loads_layer_0(const Variant& v) {
  return std::all_of(v.tiles.begin(), v.tiles.end(), [](const Tile& t) {
    const ModeTraits& mode = traits_of(t.mode);
    return t.first_layer > 0 || (mode.sends_kv && !mode.computes);
  });
}

double as_f64(const std::byte* data, DType dtype, int64_t i) {
  if (dtype == DType::kBF16) {
    uint16_t half = 0;
    std::memcpy(&half, data + 2 * i, 2);
    return bf16_to_f32(half);
  }
  float value = 0;
  std::memcpy(&value, data + 4 * i, 4);
  return value;
}

/// `rows` rows before `at` of memory that begins at `base`: where a cache would have to begin for its row
/// `rows` to be `at`. The address alone is used; a layer without queries touches no row before its first.
std::byte* cache_before(std::byte* at, int64_t bytes) {
  return reinterpret_cast<std::byte*>(reinterpret_cast<uintptr_t>(at) - static_cast<uintptr_t>(bytes));
}

}  // namespace

ProxyValues::ProxyValues() { of.fill(kNone); }

ProxyValues first_token_proxies(std::span<const float> logits) {
  double first = -INFINITY, second = -INFINITY;
  for (float logit : logits) {
    if (std::isnan(logit)) return {};
    if (logit > first) {
      second = first;
      first = logit;
    } else if (logit > second) {
      second = logit;
    }
  }
  if (!std::isfinite(first)) return {};
  double sum = 0, weighted = 0;
  for (float logit : logits) {
    double below = logit - first, weight = std::exp(below);
    sum += weight;
    if (weight > 0) weighted += weight * below;  // a probability of 0 adds nothing, though its logit is -inf
  }
  ProxyValues values;
  values[Proxy::kEntropy] = std::max(0.0, std::log(sum) - weighted / sum);
  values[Proxy::kMargin] = (1 - std::exp(second - first)) / sum;
  return values;
}

// ---- keys

Result<std::unique_ptr<KeyDeviation>> KeyDeviation::create(Backend& backend, DeviceModel& model) {
  std::unique_ptr<KeyDeviation> made(new KeyDeviation(model));
  constexpr int64_t kRows = kBlocks * kBlockRows;
  const ModelConfig& config = model.config();
  made->kv_row_ = config.kv_row() * dtype_size(model.dtype());
  made->hidden_row_ = config.d_model * dtype_size(model.dtype());
  DS_ASSIGN(made->hidden_, backend.allocate(kRows * made->hidden_row_));
  DS_ASSIGN(made->keys_, backend.allocate(kRows * made->kv_row_));
  DS_ASSIGN(made->compared_, backend.allocate(2 * kRows * made->kv_row_, MemoryKind::kHost));
  return made;
}

Result<double> KeyDeviation::measure(CommandStream& stream, Workspace& workspace,
                                     std::span<const int32_t> context, const std::byte* sender) {
  auto n = static_cast<int64_t>(context.size());
  if (n < 1) return error(Code::kInvalidArgument, "the deviation of keys: the context has no tokens");
  const bool all = n <= kBlocks * kBlockRows;
  const int64_t blocks = all ? 1 : kBlocks, rows = all ? n : kBlockRows;
  std::byte *own_rows = compared_->data(), *sent_rows = own_rows + kBlocks * kBlockRows * kv_row_;
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = all ? 0 : (n - kBlockRows) * i / (kBlocks - 1), at = i * rows * kv_row_;
    std::byte *hidden = hidden_->data() + i * rows * hidden_row_, *keys = keys_->data() + at;
    model_.embed(stream, context.data() + first, rows, hidden);
    model_.layer(stream, workspace, {0, hidden, cache_before(keys, first * kv_row_), first, rows, 0});
    stream.copy(own_rows + at, keys, rows * kv_row_);
    stream.copy(sent_rows + at, sender + first * kv_row_, rows * kv_row_);
  }
  DS_TRY(stream.synchronize());
  const int64_t elements = model_.config().kv_row() / 2;  // K is the first half of a row
  double apart = 0, length = 0;
  for (int64_t row = 0; row < blocks * rows; ++row) {
    for (int64_t e = 0; e < elements; ++e) {
      double own = as_f64(own_rows + row * kv_row_, model_.dtype(), e);
      double sent = as_f64(sent_rows + row * kv_row_, model_.dtype(), e);
      apart += (own - sent) * (own - sent);
      length += own * own;
    }
  }
  return apart == 0 ? 0 : std::sqrt(apart / length);
}

// ---- thresholds

Result<GateReference> GateReference::make(const Quality& quality, const std::string& origin, const Way& way) {
  const WayScore* score = quality.find(way);
  if (score == nullptr || score->entropy.empty() || score->margin.empty()) {
    std::vector<std::string> others;
    for (const WayScore& w : quality.ways)
      if (!w.dropped && !w.entropy.empty() && !w.margin.empty()) others.push_back(w.way.name());
    return error(Code::kNotFound,
                 "{}: {} for '{}', which the gate needs; ways with samples: {}; profile that way with this "
                 "version of ds-profile",
                 origin, score == nullptr ? "no score" : "no samples of the first token's entropy and margin",
                 way.name(), others.empty() ? "none" : fmt::format("{}", fmt::join(others, ", ")));
  }
  return GateReference{way, {quality.k_deviation, score->entropy, score->margin}};
}

Result<ProxyValues> GateReference::thresholds(double false_alarms, bool with_keys,
                                              const std::string& origin) const {
  std::vector<Proxy> used;
  for (size_t p = 0; p < kProxies; ++p) {
    auto proxy = static_cast<Proxy>(p);
    if (!samples[p].empty() && (with_keys || proxy != Proxy::kKDeviation)) used.push_back(proxy);
  }
  auto count = [&](Proxy p) { return static_cast<int64_t>(samples[static_cast<size_t>(p)].size()); };
  const double shared_by = static_cast<double>(used.size()), alpha = false_alarms / shared_by;
  const Proxy fewest =
      *std::min_element(used.begin(), used.end(), [&](Proxy a, Proxy b) { return count(a) < count(b); });
  if (conformal_rank(count(fewest), alpha) < 1) {
    return error(
        Code::kInfeasible,
        "{}: {} samples of {} for '{}', but false alarms at a rate of {}, shared by {} proxies, need {} "
        "of each; profile more {}, or allow a higher rate ({} with these)",
        origin, count(fewest), kProxyNames[static_cast<size_t>(fewest)], way.name(),
        format_percent(false_alarms), used.size(), samples_needed(alpha),
        fewest == Proxy::kKDeviation ? "contexts" : "questions",
        format_percent(round_up(shared_by / static_cast<double>(count(fewest) + 1))));
  }
  ProxyValues at;
  for (Proxy p : used) {
    const int64_t n = count(p), rank = conformal_rank(n, alpha);
    at[p] = samples[static_cast<size_t>(p)][static_cast<size_t>(alarms_above(p) ? n - rank : rank - 1)];
  }
  return at;
}

bool GateVerdict::alarms(Proxy proxy) const {
  const double at = thresholds[proxy], value = values[proxy];
  if (std::isnan(at)) return false;
  return !(alarms_above(proxy) ? value <= at : value >= at);
}

std::string gate_verdict_text(const GateVerdict& verdict) {
  std::string text;
  for (bool alarmed : {true, false}) {
    for (size_t p = 0; p < kProxies; ++p) {
      auto proxy = static_cast<Proxy>(p);
      if (std::isnan(verdict.thresholds[proxy]) || verdict.alarms(proxy) != alarmed) continue;
      text += fmt::format("{}{} {:.4g} (alarm {} {:.4g})", text.empty() ? "" : ", ", kProxyNames[p],
                          verdict.values[proxy], alarms_above(proxy) ? "above" : "below",
                          verdict.thresholds[proxy]);
    }
  }
  return text;
}

// ---- the gate of a plan

Result<Gate> Gate::create(const Plan& plan, const Quality& quality, const std::string& origin,
                          double false_alarms) {
  if (!(false_alarms > 0 && false_alarms < 1))
    return error(Code::kInvalidArgument,
                 "a rate of false alarms of {}; expected more than 0 % and less than 100 %",
                 format_percent(false_alarms));
  Gate gate;
  gate.plan_ = &plan;
  gate.false_alarms_ = false_alarms;
  for (const Variant& v : plan.variants) {
    Entry entry;
    Way way = way_of(v);
    entry.reuses = !way.is_full_prefill();
    if (entry.reuses) {
      std::string where = fmt::format("the gate for variant '{}'", v.name);
      auto known = std::find_if(gate.references_.begin(), gate.references_.end(),
                                [&](const GateReference& r) { return r.way == way; });
      entry.reference = static_cast<size_t>(known - gate.references_.begin());
      if (known == gate.references_.end()) {
        auto reference = GateReference::make(quality, origin, way);
        if (!reference.ok()) return reference.status().with_context(where);
        gate.references_.push_back(std::move(*reference));
      }
      auto at = gate.references_[entry.reference].thresholds(false_alarms, loads_layer_0(v), origin);
      if (!at.ok()) return at.status().with_context(where);
      entry.thresholds = *at;
    }
    gate.entries_.push_back(entry);
  }
  return gate;
}

const Gate::Entry* Gate::find(const Variant& variant) const {
  for (size_t i = 0; i < entries_.size(); ++i)
    if (&plan_->variants[i] == &variant) return entries_[i].reuses ? &entries_[i] : nullptr;
  return nullptr;
}

const ProxyValues* Gate::thresholds(const Variant& variant) const {
  const Entry* entry = find(variant);
  return entry ? &entry->thresholds : nullptr;
}

const GateReference* Gate::reference(const Variant& variant) const {
  const Entry* entry = find(variant);
  return entry ? &references_[entry->reference] : nullptr;
}

Result<GateVerdict> Gate::look(const Variant& variant, std::span<const float> logits,
                               const std::function<Result<double>()>& keys, bool repaired) const {
  GateVerdict verdict;
  const ProxyValues* at = thresholds(variant);
  if (at == nullptr) return verdict;
  const int64_t start = now_ns();
  verdict.checked = true;
  verdict.variant = &variant;
  verdict.repaired = repaired;
  verdict.thresholds = *at;
  if (!keys) verdict.thresholds[Proxy::kKDeviation] = kUnknown;
  verdict.values = first_token_proxies(logits);
  if (!std::isnan(verdict.thresholds[Proxy::kKDeviation])) {
    DS_ASSIGN(verdict.values[Proxy::kKDeviation], keys());
  }
  for (double& value : verdict.values.of) value = profile_precision(value);
  for (size_t p = 0; p < kProxies; ++p) verdict.alarmed |= verdict.alarms(static_cast<Proxy>(p));
  verdict.gate_ns = now_ns() - start;
  return verdict;
}

}  // namespace ds
