#include "plans/verify/promises.h"

#include <cmath>

#include "plans/verify/variant_internal.h"

namespace ds {
namespace {

/// 0 or more, or not known.
bool is_size(double value) { return std::isnan(value) || (value >= 0 && std::isfinite(value)); }
bool is_loss(double points) { return !(std::isinf(points) || points < -100 || points > 100); }

}  // namespace

std::string fault_of_regret(double regret) {
  if (regret == -1 || (regret >= 0 && std::isfinite(regret))) return "";
  return fmt::format("states a regret of {}; expected 0 or more, or -1 where it is not known", regret);
}

std::string fault_of(const Alternative& a) {
  if (is_loss(a.quality_loss) && is_size(a.divergence) && a.ttft_ns >= 0 && a.compute_ns >= 0) return "";
  return fmt::format(
      "a loss of {}, a divergence of {}, a TTFT of {} ns and {} ns of compute; expected -100 to 100 points "
      "or "
      "NaN, nats of 0 or more or NaN, and times of 0 or more",
      a.quality_loss, a.divergence, a.ttft_ns, a.compute_ns);
}

std::string fault_of(const Promise& p) {
  if (!is_loss(p.quality_loss)) {
    return fmt::format(
        "promises a quality loss of {}; expected -100 to 100 points, or NaN where it is not known",
        p.quality_loss);
  }
  if (!is_size(p.loss_stderr)) {
    return fmt::format("states a standard error of {} for its loss; expected 0 points or more, or NaN",
                       p.loss_stderr);
  }
  if (p.confidence != 0 && !(p.confidence > 0.5 && p.confidence < 1)) {
    return fmt::format("states a confidence of {}; expected 0 (none), or above 0.5 and below 1",
                       p.confidence);
  }
  if (std::isinf(p.loss_bound) || (p.confidence == 0 && !std::isnan(p.loss_bound))) {
    return fmt::format("bounds its loss by {} points with a confidence of {}; expected {}", p.loss_bound,
                       p.confidence, p.confidence == 0 ? "NaN: no bound was asked for" : "a number, or NaN");
  }
  if (!is_size(p.divergence) || !is_size(p.divergence_stderr) || !is_size(p.divergence_bound)) {
    return fmt::format(
        "promises a divergence of {} nats, a standard error of {}, a bound of {}; expected 0 or more, or NaN "
        "where it is not known",
        p.divergence, p.divergence_stderr, p.divergence_bound);
  }
  if (p.confidence == 0 && !std::isnan(p.divergence_bound)) {
    return fmt::format(
        "bounds its divergence by {} nats with a confidence of 0; expected NaN: no bound was asked for",
        p.divergence_bound);
  }
  if (p.ttft_ns < 0) return fmt::format("promises a TTFT of {} ns; expected 0 or more", p.ttft_ns);
  return "";
}

Status VariantVerifier::header() const {
  if (v_.tokens_min < 1 || v_.tokens_max <= v_.tokens_min) {
    return fail(5, "is for context lengths [{}, {}); expected a range that is not empty, from 1 up",
                v_.tokens_min, limit_text(v_.tokens_max));
  }
  if (v_.rate_min < 0 || v_.rate_max <= v_.rate_min) {
    return fail(5, "is for link rates [{}, {}); expected a range that is not empty, from 0 up", v_.rate_min,
                limit_text(v_.rate_max));
  }
  if (v_.load_min < 0 || v_.load_max <= v_.load_min) {
    return fail(5, "is for loads [{}, {}); expected a range that is not empty, from 0 up", v_.load_min,
                limit_text(v_.load_max));
  }
  if (const std::string fault = fault_of_regret(v_.regret); !fault.empty()) return fail(5, "{}", fault);
  for (size_t a = 0; a < v_.alternatives.size(); ++a) {
    if (const std::string fault = fault_of(v_.alternatives[a]); !fault.empty())
      return fail(5, "has alternative {} with {}", a, fault);
  }
  bool untuned = v_.tuned_tokens == 0 && v_.tuned_suffix == 0 && v_.tuned_rate == 0 && v_.makespan_ns == 0;
  if (!untuned && (v_.tuned_tokens < v_.tokens_min || v_.tuned_tokens >= v_.tokens_max ||
                   v_.tuned_tokens > kMaxTokens || v_.tuned_suffix < 1 || v_.tuned_suffix > kMaxTokens ||
                   v_.tuned_rate < v_.rate_min || v_.tuned_rate >= v_.rate_max)) {
    return fail(5,
                "is tuned for {} tokens, a suffix of {} and {} B/s; expected a suffix of 1 or more and a "
                "point in its own ranges [{}, {}) and [{}, {}), at most {} tokens, or zeros for a plan "
                "without times",
                v_.tuned_tokens, v_.tuned_suffix, v_.tuned_rate, v_.tokens_min, limit_text(v_.tokens_max),
                v_.rate_min, limit_text(v_.rate_max), kMaxTokens);
  }
  if (const std::string fault = fault_of(v_.promise); !fault.empty()) return fail(5, "{}", fault);
  if (v_.map_form > MapForm::kFull)
    return unknown("its header", "map form", static_cast<int>(v_.map_form), static_cast<int>(MapForm::kFull));
  if (v_.map_side > MapSide::kSender)
    return unknown("its header", "map side", static_cast<int>(v_.map_side),
                   static_cast<int>(MapSide::kSender));
  return ok_status();
}

}  // namespace ds
