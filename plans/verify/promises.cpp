#include <cmath>

#include "plans/verify/variant_internal.h"

namespace ds {

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
  if (!(v_.regret == -1 || (v_.regret >= 0 && std::isfinite(v_.regret)))) {
    return fail(5, "states a regret of {}; expected 0 or more, or -1 where it is not known", v_.regret);
  }
  for (size_t a = 0; a < v_.alternatives.size(); ++a) {
    const Alternative& other = v_.alternatives[a];
    const bool diverges = other.divergence < 0 || std::isinf(other.divergence);
    if (std::isinf(other.quality_loss) || other.quality_loss < -100 || other.quality_loss > 100 ||
        other.ttft_ns < 0 || other.compute_ns < 0 || diverges) {
      return fail(
          5,
          "has alternative {} with a loss of {}, a divergence of {}, a TTFT of {} ns and {} ns of compute; "
          "expected -100 to 100 points or NaN, nats of 0 or more or NaN, and times of 0 or more",
          a, other.quality_loss, other.divergence, other.ttft_ns, other.compute_ns);
    }
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
  double loss = v_.promise.quality_loss;
  if (std::isinf(loss) || loss < -100 || loss > 100) {
    return fail(5, "promises a quality loss of {}; expected -100 to 100 points, or NaN where it is not known",
                loss);
  }
  const Promise& p = v_.promise;
  if (std::isinf(p.loss_stderr) || p.loss_stderr < 0) {
    return fail(5, "states a standard error of {} for its loss; expected 0 points or more, or NaN",
                p.loss_stderr);
  }
  if (p.confidence != 0 && !(p.confidence > 0.5 && p.confidence < 1)) {
    return fail(5, "states a confidence of {}; expected 0 (none), or above 0.5 and below 1", p.confidence);
  }
  if (std::isinf(p.loss_bound) || (p.confidence == 0 && !std::isnan(p.loss_bound))) {
    return fail(5, "bounds its loss by {} points with a confidence of {}; expected {}", p.loss_bound,
                p.confidence, p.confidence == 0 ? "NaN: no bound was asked for" : "a number, or NaN");
  }
  for (double nats : {p.divergence, p.divergence_stderr, p.divergence_bound}) {
    if (!(std::isnan(nats) || (nats >= 0 && std::isfinite(nats))))
      return fail(5,
                  "promises a divergence of {} nats, a standard error of {}, a bound of {}; expected 0 or "
                  "more, or NaN where it is not known",
                  p.divergence, p.divergence_stderr, p.divergence_bound);
  }
  if (p.confidence == 0 && !std::isnan(p.divergence_bound)) {
    return fail(
        5, "bounds its divergence by {} nats with a confidence of 0; expected NaN: no bound was asked for",
        p.divergence_bound);
  }
  if (v_.map_form > MapForm::kFull)
    return unknown("its header", "map form", static_cast<int>(v_.map_form), static_cast<int>(MapForm::kFull));
  if (v_.map_side > MapSide::kSender)
    return unknown("its header", "map side", static_cast<int>(v_.map_side),
                   static_cast<int>(MapSide::kSender));
  if (v_.promise.ttft_ns < 0)
    return fail(5, "promises a TTFT of {} ns; expected 0 or more", v_.promise.ttft_ns);
  return ok_status();
}

}  // namespace ds
