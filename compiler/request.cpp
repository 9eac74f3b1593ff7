#include "compiler/request.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "compiler/scheduling/schedulers.h"
#include "plans/limits.h"

namespace ds {
namespace {

const std::vector<std::string_view> kEmits = {"reuse", "plan", "schedule", "flatbuffer"};
const std::vector<std::string_view> kAligns = {"auto", "none", "full", "low-rank", "diagonal"};
const std::vector<std::string_view> kSides = {"auto", "receiver", "sender"};
constexpr int64_t kMaxReceivers = 1'000'000;
constexpr int64_t kMaxLength = int64_t{1} << 30;
constexpr int64_t kMostChunks = 256;

Status one_of(std::string_view flag, std::string_view found, const std::vector<std::string_view>& known) {
  if (std::find(known.begin(), known.end(), found) != known.end()) return ok_status();
  return error(Code::kInvalidArgument, "{} is '{}', expected one of {}", flag, found, fmt::join(known, ", "));
}

Result<std::vector<int64_t>> parse_rates(std::string_view text) {
  std::vector<int64_t> rates;
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find(',', begin), text.size());
    DS_ASSIGN(double rate, parse_rate(text.substr(begin, end - begin)));
    rates.push_back(std::max<int64_t>(1, std::llround(rate)));
    if (rates.size() > 1 && rates.back() <= rates[rates.size() - 2])
      return error(Code::kInvalidArgument, "'{}' is not greater than the rate before it",
                   text.substr(begin, end - begin));
    begin = end + 1;
  }
  return rates;
}

Status read_divergence(const CompileOptions& o, CompileRequest& r) {
  if (!o.slo_divergence) return ok_status();
  if (*o.slo_divergence == "least") {
    r.least_divergence = true;
    if (o.slo_ttft_ms) return ok_status();
    return error(
        Code::kInvalidArgument,
        "--slo-divergence least needs --slo-ttft-ms: whatever the time, the full prefill diverges least");
  }
  char* end = nullptr;
  const double nats = std::strtod(o.slo_divergence->c_str(), &end);
  if (o.slo_divergence->empty() || *end != '\0' || !(nats >= 0 && nats <= 1e6))
    return error(Code::kInvalidArgument,
                 "--slo-divergence is '{}', expected nats per token, 0 or more, like 0.05, or least",
                 *o.slo_divergence);
  r.divergence = nats;
  return ok_status();
}

}  // namespace

Result<double> parse_share(std::string_view text) {
  bool percent = !text.empty() && text.back() == '%';
  std::string number(text.substr(0, text.size() - (percent ? 1 : 0)));
  char* end = nullptr;
  double share = std::strtod(number.c_str(), &end);
  if (percent) share /= 100;
  if (number.empty() || *end != '\0' || !(share > 0 && share <= 1))
    return error(Code::kInvalidArgument,
                 "bad share '{}'; expected more than 0, at most 100%, like 15% or 0.15", text);
  return share;
}

MapForm named_form(const CompileOptions& o) { return map_form_named(o.align).value_or(MapForm::kNone); }

/// `maps`: a file of them was given.
Status check_align(const CompileOptions& o, bool maps) {
  DS_TRY(one_of("--align", o.align, kAligns));
  DS_TRY(one_of("--align-side", o.align_side, kSides));
  if (o.align_fallback) DS_TRY(one_of("--align-fallback", *o.align_fallback, {"plain"}));
  if (o.receivers < 1 || o.receivers > kMaxReceivers)
    return error(Code::kInvalidArgument, "--receivers is {}, expected 1 to {}", o.receivers, kMaxReceivers);
  const bool form = named_form(o) != MapForm::kNone;
  std::string option = form                     ? "--align " + o.align
                       : o.align_side != "auto" ? "--align-side " + o.align_side
                       : o.receivers != 1       ? fmt::format("--receivers {}", o.receivers)
                       : o.align_fallback       ? "--align-fallback plain"
                                                : "";
  if (!maps && !option.empty())
    return error(Code::kInvalidArgument, "{} needs --maps FILE: what cuts are mapped with, from ds-profile",
                 option);
  if (!form || !o.policy) return ok_status();
  DS_ASSIGN(const PolicyTraits* policy, find_policy(*o.policy));
  if (policy->sends_hidden) return ok_status();
  return refuse("--align " + o.align, "--policy " + *o.policy,
                "that policy sends no hidden states, so there is nothing to map");
}

Status refuse(std::string_view a, std::string_view b, std::string_view why) {
  return error(Code::kInvalidArgument, "{} contradicts {}: {}", a, b, why);
}

Result<CompileRequest> check_options(const CompileOptions& o, bool quality, bool maps) {
  CompileRequest r;
  DS_TRY(check_align(o, maps));
  DS_TRY(one_of("--schedule", o.schedule, scheduler_names()));
  // Layers that the user named are recomputed, and no others.
  DS_ASSIGN(r.policy, find_policy(o.policy.value_or(o.recompute ? "droidspeak" : "balanced")));
  DS_TRY(one_of("--emit", o.emit, kEmits));
  if (o.dtype && *o.dtype != "bf16" && *o.dtype != "f32")
    return error(Code::kInvalidArgument, "--dtype is '{}', expected bf16 or f32", *o.dtype);
  if (o.slo_loss && !(*o.slo_loss >= 0 && *o.slo_loss <= 100))
    return error(Code::kInvalidArgument, "--slo-loss is {}, expected points from 0 to 100", *o.slo_loss);
  if (o.confidence && !(*o.confidence > 0.5 && *o.confidence < 1))
    return error(Code::kInvalidArgument, "--confidence is {}, expected above 0.5 and below 1, like 0.95",
                 *o.confidence);
  if (o.confidence && !quality)
    return error(Code::kInvalidArgument,
                 "--confidence needs --quality: how certain a loss is, the profile's standard errors say");
  if (o.slo_ttft_ms && !(*o.slo_ttft_ms > 0 && *o.slo_ttft_ms <= 1e9))
    return error(Code::kInvalidArgument, "--slo-ttft-ms is {}, expected milliseconds above 0, at most 1e9",
                 *o.slo_ttft_ms);
  DS_TRY(read_divergence(o, r));
  if (o.suffix_length < 1 || o.suffix_length > kMaxLength)
    return error(Code::kInvalidArgument, "--suffix-length is {}, expected 1 to {}", o.suffix_length,
                 kMaxLength);

  const PolicyTraits& policy = *r.policy;
  const std::string named = "--policy " + std::string(policy.name);
  std::string_view slo = o.slo_loss         ? "--slo-loss"
                         : o.slo_divergence ? "--slo-divergence"
                         : o.slo_ttft_ms    ? "--slo-ttft-ms"
                                            : "";
  if (o.select_share && !policy.takes_share)
    return refuse("--select-share", o.policy ? named : "no --policy select",
                  "only that policy selects tokens");
  if (o.select_share) {
    auto share = parse_share(*o.select_share);
    if (!share.ok()) return share.status().with_context("--select-share");
  }
  if (!slo.empty() && o.select_share)
    return refuse(slo, "--select-share", "the share is either given or chosen for an objective");
  if (o.recompute && policy.takes_share)
    return refuse("--recompute", named, "that policy selects tokens, and recomputes them in every layer");
  if (o.recompute && policy.named_layers == nullptr)
    return refuse("--recompute", named, "that policy decides which layers are recomputed");
  if (!slo.empty() && !policy.chooses) return refuse(slo, named, "that policy has nothing to choose from");
  if (!slo.empty() && o.recompute)
    return refuse(slo, "--recompute", "the layers are either given or chosen for an objective");
  if (!slo.empty() && !quality) {
    return error(Code::kInvalidArgument,
                 "{} needs --quality: without a profile nobody knows what a group of layers costs", slo);
  }
  if (!o.recompute && !o.select_share && policy.chooses) {
    if (!quality && policy.takes_share) {
      return error(Code::kInvalidArgument,
                   "how many tokens are to be selected? Give --select-share PERCENT, or --quality FILE with "
                   "--slo-loss, --slo-divergence or --slo-ttft-ms");
    }
    if (!quality) {
      return error(Code::kInvalidArgument,
                   "which layers are to be recomputed? Give --recompute A-B, --quality FILE with --slo-loss, "
                   "--slo-divergence or --slo-ttft-ms, or --policy full-prefill or full-reuse");
    }
    if (slo.empty())
      return error(
          Code::kInvalidArgument,
          "--quality needs an objective: give --slo-loss, --slo-divergence, --slo-ttft-ms or several");
  }
  if (quality && !policy.may_lose) return refuse("--quality", named, "the full prefill loses nothing");
  if (o.chunks < 1 || o.chunks > kMostChunks)
    return error(Code::kInvalidArgument, "--chunks is {}, expected 1 to {}", o.chunks, kMostChunks);
  if (o.plan_format < kWrittenFormatVersion || o.plan_format > kPlanFormatVersion)
    return error(Code::kInvalidArgument, "--plan-format is {}, expected {} (which older readers know) to {}",
                 o.plan_format, kWrittenFormatVersion, kPlanFormatVersion);
  if (o.max_variants < 1 || o.max_variants > static_cast<int64_t>(kMaxVariants))
    return error(Code::kInvalidArgument, "--max-variants is {}, expected 1 to {}", o.max_variants,
                 kMaxVariants);
  for (int64_t chunks = 1; chunks < o.chunks; chunks *= 2) r.chunks.push_back(static_cast<int32_t>(chunks));
  r.chunks.push_back(static_cast<int32_t>(o.chunks));

  r.default_lengths = !o.context_lengths;
  auto lengths = parse_int_list(o.context_lengths.value_or(kDefaultContextLengths), 1, kMaxLength);
  if (!lengths.ok()) return lengths.status().with_context("--context-lengths");
  r.lengths = *lengths;
  auto rates = parse_rates(o.link_rates.value_or(kDefaultLinkRates));
  if (!rates.ok()) return rates.status().with_context("--link-rates");
  r.rates = *rates;
  if (r.lengths.size() * r.rates.size() > kMaxVariants) {
    return error(Code::kInvalidArgument,
                 "{} context lengths times {} link rates are {} variants, expected at most {}",
                 r.lengths.size(), r.rates.size(), r.lengths.size() * r.rates.size(), kMaxVariants);
  }
  return r;
}

std::string canonical_flags(const CompileOptions& o, const CompileRequest& r,
                            const std::optional<LayerRange>& recompute, DType dtype, bool stand_in, bool maps,
                            int64_t max_model_len) {
  std::string flags = fmt::format("--policy {}", r.policy->name);
  if (recompute) flags += " --recompute " + format_layers(*recompute);
  if (o.select_share) flags += fmt::format(" --select-share {:g}%", 100 * *parse_share(*o.select_share));
  if (o.slo_loss) flags += fmt::format(" --slo-loss {}", *o.slo_loss);
  if (r.divergence) flags += fmt::format(" --slo-divergence {}", *r.divergence);
  if (r.least_divergence) flags += " --slo-divergence least";
  if (o.slo_ttft_ms) flags += fmt::format(" --slo-ttft-ms {}", *o.slo_ttft_ms);
  if (o.confidence) flags += fmt::format(" --confidence {}", *o.confidence);
  std::vector<std::string> rates;
  for (int64_t rate : r.rates) rates.push_back(fmt::format("{}B/s", rate));
  flags += fmt::format(
      " --context-lengths {} --suffix-length {} --link-rates {} --chunks {} --max-variants {} --schedule {} "
      "--dtype {}",
      fmt::join(r.lengths, ","), o.suffix_length, fmt::join(rates, ","), o.chunks, o.max_variants, o.schedule,
      dtype_name(dtype));
  if (maps) {
    flags += fmt::format(" --align {} --align-side {} --receivers {}", o.align, o.align_side, o.receivers);
    if (o.align_fallback) flags += " --align-fallback " + *o.align_fallback;
  }
  if (max_model_len > 0) flags += fmt::format(" --max-model-len {}", max_model_len);
  if (o.live_sender) flags += " --live-sender";
  if (o.plan_format != kWrittenFormatVersion) flags += fmt::format(" --plan-format {}", o.plan_format);
  flags += stand_in ? " (machine: stand-in)" : "";
  return flags;
}

}  // namespace ds
