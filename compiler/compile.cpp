#include "compiler/compile.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "compiler/pipeline.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/select/doubt.h"
#include "compiler/select/variants.h"
#include "compiler/stopwatch.h"
#include "plans/limits.h"
#include "plans/plan_file.h"
#include "runtime/model/identity.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {
namespace {

const std::vector<std::string_view> kEmits = {"reuse", "plan", "schedule", "flatbuffer"};
const std::vector<std::string_view> kAligns = {"auto", "none", "full", "low-rank", "diagonal"};
const std::vector<std::string_view> kSides = {"auto", "receiver", "sender"};
/// With one receiver the sender applies the maps where that shortens a predicted TTFT by more than this
/// share.
constexpr double kWorthTheSender = 0.01;
constexpr int64_t kMaxReceivers = 1'000'000;
constexpr int64_t kMaxLength = int64_t{1} << 30;
constexpr int64_t kMostChunks = 256;

/// What was asked for, checked and in numbers.
struct Request {
  const PolicyTraits* policy = nullptr;
  std::vector<int64_t> lengths, rates;
  std::vector<int32_t> chunks;
  bool default_lengths = false;
  std::optional<double> divergence;  // --slo-divergence
  bool least_divergence = false;
};

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

/// "15%", "0.15": of the tokens, in (0, 1].
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

Status read_divergence(const CompileOptions& o, Request& r) {
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

Status refuse(std::string_view a, std::string_view b, std::string_view why) {
  return error(Code::kInvalidArgument, "{} contradicts {}: {}", a, b, why);
}

/// The form that was asked for; kNone: "auto" or "none".
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

/// Everything that can be refused without opening a file. `quality`, `maps`: there is a profile, are maps.
Result<Request> check_options(const CompileOptions& o, bool quality, bool maps) {
  Request r;
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

/// The last part of a path; a trailing slash does not count.
std::string base_name(const std::string& path) {
  std::filesystem::path p(path);
  if (!p.has_filename()) p = p.parent_path();
  return p.filename().string();
}

std::string canonical_flags(const CompileOptions& o, const Request& r,
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
  flags += stand_in ? " (machine: stand-in)" : "";
  return flags;
}

/// A file's place in the provenance: role, name without folders, hash of its bytes.
Result<InputFile> input_file(std::string role, const std::string& path) {
  DS_ASSIGN(std::string text, read_text_file(path));
  return InputFile{std::move(role), base_name(path), sha256_hex(text)};
}

struct Compiler {
  Compiler(const CompileInputs& given, const CompileOptions& wanted, Request checked)
      : inputs(given), options(wanted), request(std::move(checked)) {}

  const CompileInputs& inputs;
  const CompileOptions& options;
  Request request;
  CompileOutput out;
  MachineModel machine;
  std::optional<LayerRange> recompute;
  Plan plan;  // head, and variants as chosen: ranges, tiles, promise
  std::vector<ChosenVariant> chosen;
  PolicyInput in;

  Status take_inputs() {
    plan.sender = inputs.pair.sender;
    plan.receiver = inputs.pair.receiver;
    plan.shape = inputs.pair.config.shape();
    plan.shared_vocab = inputs.pair.shared_vocab;
    plan.provenance.inputs = inputs.files;
    if (inputs.machine) {
      machine = *inputs.machine;
      if (options.dtype && dtype_name(machine.dtype) != *options.dtype) {
        std::string name = machine.name;
        for (const InputFile& file : inputs.files)
          if (file.role == "machine") name = file.name;
        return error(Code::kMismatch,
                     "--dtype is {}, but '{}' was measured in {}; leave --dtype out or measure anew",
                     *options.dtype, name, dtype_name(machine.dtype));
      }
    } else {
      machine = MachineModel::stand_in(options.dtype == "f32" ? DType::kF32 : DType::kBF16);
      out.notes.push_back(fmt::format(
          "no --machine given: times are predicted for a stand-in ({}); run ds-calibrate for this one",
          machine.name));
    }
    plan.dtype = dtype_name(machine.dtype);
    if (inputs.machine) plan.backend = machine.backend;
    return ok_status();
  }

  Status check_lengths() {
    int64_t longest = inputs.pair.config.max_positions - options.suffix_length;
    if (inputs.pair.config.max_positions <= 0) return ok_status();
    auto too_long =
        std::find_if(request.lengths.begin(), request.lengths.end(), [&](int64_t n) { return n > longest; });
    if (too_long == request.lengths.end()) return ok_status();
    if (!request.default_lengths || too_long == request.lengths.begin()) {
      return error(Code::kInvalidArgument,
                   "--context-lengths: {} tokens and a suffix of {} do not fit the models' {} positions "
                   "(max_position_embeddings); expected at most {}",
                   *too_long, options.suffix_length, inputs.pair.config.max_positions, longest);
    }
    out.notes.push_back(
        fmt::format("default context lengths from {} on are left out: the models have {} positions",
                    *too_long, inputs.pair.config.max_positions));
    request.lengths.erase(too_long, request.lengths.end());
    return ok_status();
  }

  /// Which of the maps, if any, cuts may go through.
  Status take_maps() {
    if (!inputs.maps_fault.empty()) note_plain(inputs.maps_fault);
    if (!inputs.maps || options.align == "none") return ok_status();
    if (Status status = check_scored_maps(); !status.ok()) {
      if (!options.align_fallback) return status;
      note_plain(status.message());
      return ok_status();
    }
    const MapForm named = named_form(options);
    in.maps = &*inputs.maps;
    in.map_side = options.align_side == "sender" ? MapSide::kSender : MapSide::kReceiver;
    for (const AlignmentMap& m : inputs.maps->maps) in.map_rank = std::max(in.map_rank, m.rank);
    if (named != MapForm::kNone) {
      in.forms = {named};
      return check_named_maps(named);
    }
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) {
      bool any = std::any_of(in.maps->maps.begin(), in.maps->maps.end(),
                             [&](const AlignmentMap& m) { return m.form == form; });
      if (any) in.forms.push_back(form);
    }
    return ok_status();
  }

  void note_plain(const std::string& why) {
    out.notes.push_back(fmt::format("no cut is aligned (--align-fallback plain): {}", why));
  }

  /// Losses of aligned ways hold for the maps that they were scored with.
  Status check_scored_maps() const {
    if (!inputs.quality) return ok_status();
    const Quality& q = *inputs.quality;
    bool scored = std::any_of(q.ways.begin(), q.ways.end(), [](const WayScore& w) {
      return w.way.map != MapForm::kNone && w.way.map_control.empty();
    });
    if (!scored || q.maps.fingerprint == inputs.maps_identity.fingerprint) return ok_status();
    return error(Code::kMismatch,
                 "maps '{}' have fingerprint {:.12}, but the profile's aligned ways were scored with '{}' "
                 "({:.12}); give those maps, or run ds-profile with these",
                 inputs.maps_identity.name, inputs.maps_identity.fingerprint, q.maps.name,
                 q.maps.fingerprint);
  }

  /// What the user has named must be there.
  Status check_named_maps(MapForm form) const {
    std::vector<std::string> there;
    for (const AlignmentMap& m : in.maps->maps)
      if (m.form == form) there.push_back(std::to_string(m.layer));
    auto missing = [&](const std::string& where) {
      return error(Code::kMismatch,
                   "--align {}: maps '{}' have no {} map{}; they have one for {}; fit it with ds-profile, or "
                   "give another form or other layers",
                   options.align, inputs.maps_identity.name, options.align, where,
                   there.empty()
                       ? "no layer"
                       : fmt::format("layer{} {}", there.size() > 1 ? "s" : "", fmt::join(there, ", ")));
    };
    if (there.empty()) return missing("");
    if (!recompute) return ok_status();
    const Way way = request.policy->named_layers(*recompute, in.layers);
    const std::vector<int64_t> layers = way.sent_layers();
    if (layers.empty())
      return refuse("--align " + options.align, "--recompute " + format_layers(*recompute),
                    "that starts from the receiver's own embeddings, so there is no cut to map");
    for (int64_t l : layers)
      if (!in.maps->find(l, form)) return missing(fmt::format(" for layer {}", l));
    return ok_status();
  }

  Result<std::vector<PlacedVariant>> place(Chooser& chooser) {
    Grid grid{request.lengths, request.rates, options.suffix_length};
    return place_variants(chooser, grid, static_cast<size_t>(options.max_variants));
  }

  /// Does it pay to let the sender apply the maps? Either way the same bytes go over the link; but an entry
  /// then needs cuts of its own for each receiver.
  Result<bool> sender_is_worth_it(Chooser& chooser, const std::vector<PlacedVariant>& placed) {
    if (options.align_side != "auto" || options.receivers != 1) return false;
    for (const PlacedVariant& p : placed) {
      if (!chooser.tilings()[p.tiling].aligns()) continue;
      DS_ASSIGN(int64_t less, chooser.ttft_with_mapped_cuts(p.tiling, p.tuned));
      DS_ASSIGN(Predicted now, chooser.predict(p.tiling, p.tuned));
      if (static_cast<double>(less) < static_cast<double>(now.ttft_ns) * (1 - kWorthTheSender)) return true;
    }
    return false;
  }

  /// Where maps were given, what has become of them.
  void note_alignment() {
    if (!in.maps) return;
    size_t aligned = 0;
    MapSide side = MapSide::kReceiver;
    for (const auto& [v, fallback] : chosen) {
      if (v.map_form == MapForm::kNone) continue;
      ++aligned;
      side = v.map_side;
    }
    if (aligned == 0) {
      bool scored = !inputs.quality || !inputs.quality->maps.fingerprint.empty();
      out.notes.push_back(
          fmt::format("maps '{}' are not used: {}", inputs.maps_identity.name,
                      scored ? "without them the objective is kept in less time"
                             : "the profile has scored no aligned way, so none promises a loss"));
      return;
    }
    plan.maps = inputs.maps_identity;
    if (options.align_side == "auto" && side == MapSide::kSender)
      out.notes.push_back(
          fmt::format("the sender applies the maps, which shortens a predicted TTFT by more than {:g} %: its "
                      "entries then "
                      "hold this receiver's cuts; more --receivers share plain ones",
                      100 * kWorthTheSender));
  }

  /// Says so where the plan takes ways of which the profile cannot tell that they keep the limit: the one
  /// with the largest error, and how many there are.
  void warn_of_doubt(const Chooser& chooser, const std::vector<PlacedVariant>& placed, Mean WayScore::*of,
                     double limit) {
    std::map<std::string, std::pair<const WayScore*, Doubt>> doubts;
    for (const PlacedVariant& p : placed) {
      const Way& way = chooser.tilings()[p.tiling].way;
      const WayScore* score = way.kind == WayKind::kFullPrefill ? nullptr : in.quality->find(way);
      if (score == nullptr) continue;
      if (auto doubt = doubt_of(score->*of, score->contexts, limit))
        doubts.emplace(way.name(), std::pair(score, *doubt));
    }
    if (doubts.empty()) return;
    const auto& [name, worst] =
        *std::max_element(doubts.begin(), doubts.end(), [](const auto& a, const auto& b) {
          return a.second.second.mean.standard_error < b.second.second.mean.standard_error;
        });
    const auto& [score, doubt] = worst;
    const bool points = of == &WayScore::loss;
    std::string text = fmt::format(
        "the profile cannot tell whether '{}' {} at most {:g} {}: {:.{}f} ± {:.{}f} over {} contexts", name,
        points ? "loses" : "diverges by", limit, points ? "points" : "nats per token", doubt.mean.value,
        points ? 1 : 4, doubt.mean.standard_error, points ? 1 : 4, doubt.contexts);
    text += doubt.would_tell > 0
                ? fmt::format("; about {} contexts would tell", format_count(doubt.would_tell))
                : "; no number of contexts would tell";
    if (doubts.size() > 1)
      text += fmt::format(". The same holds of {} other way{} here", doubts.size() - 1,
                          doubts.size() > 2 ? "s" : "");
    const WayScore* reuse = in.quality->find({WayKind::kFullReuse});
    if (points && reuse && score != reuse && reuse->divergence.value > 0 &&
        std::isfinite(score->divergence.value))
      text += fmt::format(". Its divergence is {:.0f} % of full reuse's ({:.3g} of {:.3g} nats per token)",
                          100 * score->divergence.value / reuse->divergence.value, score->divergence.value,
                          reuse->divergence.value);
    text += ". --confidence 0.95 takes only what the profile can tell";
    if (points && in.quality->has_divergences())
      text += "; --slo-divergence NATS goes by divergences, which fewer contexts tell apart";
    out.warnings.push_back(std::move(text));
  }

  Status choose_tiles() {
    in.layers = plan.shape.layers;
    if (options.recompute) {
      auto group = parse_layers(*options.recompute, in.layers);
      if (!group.ok()) return group.status().with_context("--recompute");
      in.recompute = recompute = *group;
    }
    if (options.select_share) {
      DS_ASSIGN(in.select_share, parse_share(*options.select_share));
    }
    if (inputs.quality) in.quality = &*inputs.quality;
    in.chunks = request.chunks;
    in.confidence = options.confidence.value_or(0);
    in.by_divergence = options.slo_divergence.has_value();
    if (in.by_divergence && !in.quality->has_divergences())
      return error(
          Code::kInvalidArgument,
          "--slo-divergence: the profile (version {}) says nothing of divergences; run ds-profile for "
          "one that does",
          in.quality->version);
    DS_TRY(take_maps());
    DS_ASSIGN(std::vector<Tiling> tilings, request.policy->draw(in));
    Slo slo{options.slo_loss, {}, in.confidence, request.divergence, request.least_divergence};
    if (options.slo_ttft_ms) slo.ttft_ns = std::llround(*options.slo_ttft_ms * 1e6);
    CostModel costs(machine, plan.shape);
    std::optional<Chooser> chooser(std::in_place, std::move(tilings), slo, costs, options.schedule);
    DS_ASSIGN(std::vector<PlacedVariant> placed, place(*chooser));
    DS_ASSIGN(bool by_sender, sender_is_worth_it(*chooser, placed));
    if (by_sender) {
      // What is best may be another choice then.
      in.map_side = MapSide::kSender;
      DS_ASSIGN(std::vector<Tiling> mapped, request.policy->draw(in));
      chooser.emplace(std::move(mapped), slo, costs, options.schedule);
      DS_ASSIGN(placed, place(*chooser));
    }
    if (placed.size() > kMaxVariants) {
      return error(Code::kInvalidArgument,
                   "{} variants are needed, expected at most {}; give fewer lengths or rates", placed.size(),
                   kMaxVariants);
    }
    if (static_cast<int64_t>(placed.size()) > options.max_variants) {
      out.notes.push_back(fmt::format("the objective needs {} variants, more than --max-variants {}",
                                      placed.size(), options.max_variants));
    }
    for (const PlacedVariant& p : placed) {
      DS_ASSIGN(Predicted predicted, chooser->predict(p.tiling, p.tuned));
      DS_ASSIGN(std::vector<Alternative> alternatives, chooser->alternatives(p.tuned));
      Variant v = variant_of(chooser->tilings()[p.tiling], p.tuned, predicted, in.confidence);
      v.name = fmt::format("v{}", chosen.size());
      v.policy = request.policy->name;
      v.tokens_min = p.tokens_min;
      v.tokens_max = p.tokens_max;
      v.rate_min = p.rate_min;
      v.rate_max = p.rate_max;
      v.load_min = p.load_min;
      v.load_max = p.load_max;
      v.regret = p.regret;
      v.why = chooser->objective(p.tuned);
      if (alternatives.size() > 1) v.alternatives = std::move(alternatives);
      chosen.push_back({std::move(v), false});
    }
    if (in.confidence == 0 && in.quality) {
      if (options.slo_loss) warn_of_doubt(*chooser, placed, &WayScore::loss, *options.slo_loss);
      if (request.divergence) warn_of_doubt(*chooser, placed, &WayScore::divergence, *request.divergence);
    }
    // The fall-back holds everywhere; its times are those of a length in the middle of the list.
    DS_ASSIGN(std::vector<Tiling> whole, draw_full_prefill(in));
    Chooser fallback(std::move(whole), {}, costs, options.schedule);
    Point middle{request.lengths[request.lengths.size() / 2], options.suffix_length,
                 request.rates[request.rates.size() / 2]};
    DS_ASSIGN(Predicted predicted, fallback.predict(0, middle));
    Variant v = variant_of(fallback.tilings()[0], middle, predicted, in.confidence);
    v.name = v.policy = "full-prefill";
    chosen.push_back({std::move(v), true});
    note_alignment();
    return ok_status();
  }

  static Variant variant_of(const Tiling& tiling, const Point& tuned, const Predicted& predicted,
                            double confidence) {
    Variant v;
    v.tiles = tiling.tiles;
    v.chunks = tiling.chunks;
    v.tuned_tokens = tuned.tokens;
    v.tuned_suffix = tuned.suffix;
    v.tuned_rate = tuned.rate;
    v.promise = {tiling.loss, predicted.ttft_ns, tiling.loss_stderr,       tiling.loss_bound,
                 confidence,  tiling.divergence, tiling.divergence_stderr, tiling.divergence_bound};
    v.way = tiling.way.name();
    v.select_share = tiling.way.share;
    v.map_form = tiling.way.map;
    if (tiling.way.map != MapForm::kNone) v.map_side = tiling.map_side;
    return v;
  }

  /// What the predicted times rest on.
  void note_coverage(const Plan& compiled) {
    CostModel costs(machine, compiled.shape);
    Coverage all;
    for (const Variant& v : compiled.variants)
      all += costs.coverage(v, {v.tuned_tokens, v.tuned_suffix, v.tuned_rate, v.chunks, v.select_share,
                                v.aligns() ? v.map_form : MapForm::kNone, in.map_rank});
    if (std::string note = all.note(); !note.empty()) out.notes.push_back(std::move(note));
  }

  Status run() {
    Stopwatch watch;
    DS_TRY(take_inputs());
    DS_TRY(check_lengths());
    DS_TRY(choose_tiles());
    out.times.choose_ns = watch.lap();
    plan.provenance.compiler_version = options.compiler_version;
    plan.provenance.flags = canonical_flags(options, request, recompute, machine.dtype, !inputs.machine,
                                            inputs.maps || !inputs.maps_fault.empty(), inputs.max_model_len);

    PipelineOptions pipeline{options.schedule, options.emit, machine, in.map_rank};
    DS_ASSIGN(PipelineOutput made, run_pipeline(plan, chosen, pipeline));
    out.times.lower_ns = made.lower_ns;
    out.times.schedule_ns = made.schedule_ns;
    if (!made.plan) {
      out.bytes = std::move(made.text);
      return ok_status();
    }
    watch.lap();
    if (inputs.machine) note_coverage(*made.plan);
    out.bytes = serialize_plan(*made.plan);
    out.plan = std::move(made.plan);
    out.times.emit_ns = made.emit_ns + watch.lap();
    return ok_status();
  }
};

/// Before what belongs to the pair is called another pair's: the same two, the other way round.
Status check_not_swapped(std::string_view option, const std::string& path, const std::string& sender,
                         const std::string& receiver, const ModelPair& pair) {
  if (names_model(sender, pair.sender) || !names_model(sender, pair.receiver) ||
      !names_model(receiver, pair.sender)) {
    return ok_status();
  }
  return error(Code::kMismatch,
               "{} '{}' is of '{}' as the sender and '{}' as the receiver: --sender and --receiver are the "
               "other way round; swap them, or run ds-profile for this direction",
               option, path, pair.receiver.name, pair.sender.name);
}

Status read_maps(const std::string& path, const Shape& shape, CompileInputs& in) {
  DS_ASSIGN(MapSet maps, MapSet::read(path));
  DS_TRY(check_not_swapped("--maps", path, maps.sender_fingerprint, maps.receiver_fingerprint, in.pair));
  DS_TRY(maps.check_pair(path, in.pair.sender, in.pair.receiver, shape.layers, shape.d_model));
  DS_ASSIGN(std::string bytes, read_text_file(path, INT64_MAX));
  in.maps_identity = {base_name(path), maps.fingerprint()};
  in.maps = std::move(maps);
  in.files.push_back({"maps", in.maps_identity.name, sha256_hex(bytes)});
  return ok_status();
}

Result<CompileOutput> run(const CompileInputs& inputs, const CompileOptions& options, Request request) {
  Compiler compiler(inputs, options, std::move(request));
  DS_TRY(compiler.run());
  return std::move(compiler.out);
}

}  // namespace

Result<CompileInputs> read_inputs(const CompileFiles& files, bool plain_without_maps) {
  CompileInputs in;
  DS_ASSIGN(in.pair, read_pair(files.sender, files.receiver, files.open, files.identify));
  in.max_model_len = files.open.max_model_len;
  in.files.push_back({"sender", base_name(files.sender), in.pair.sender.fingerprint});
  in.files.push_back({"receiver", base_name(files.receiver), in.pair.receiver.fingerprint});
  const Shape shape = in.pair.config.shape();
  if (files.quality) {
    DS_ASSIGN(in.quality, Quality::read(*files.quality));
    DS_TRY(check_not_swapped("--quality", *files.quality, in.quality->sender_fingerprint,
                             in.quality->receiver_fingerprint, in.pair));
    DS_TRY(in.quality->check_pair(*files.quality, names_of_model(in.pair.sender),
                                  names_of_model(in.pair.receiver), shape.layers));
    DS_ASSIGN(InputFile file, input_file("quality", *files.quality));
    in.files.push_back(std::move(file));
  }
  if (files.machine) {
    DS_ASSIGN(in.machine, MachineModel::read(*files.machine));
    DS_TRY(in.machine->check_shape(*files.machine, shape));
    DS_ASSIGN(InputFile file, input_file("machine", *files.machine));
    in.files.push_back(std::move(file));
  }
  if (files.maps) {
    Status status = read_maps(*files.maps, shape, in);
    if (!status.ok() && !plain_without_maps) return status;
    if (!status.ok()) in.maps_fault = status.message();
  }
  return in;
}

Result<CompileOutput> compile(const CompileInputs& inputs, const CompileOptions& options) {
  DS_ASSIGN(Request request, check_options(options, inputs.quality.has_value(), inputs.maps.has_value()));
  return run(inputs, options, std::move(request));
}

Result<CompileOutput> compile(const CompileFiles& files, const CompileOptions& options) {
  if (files.receiver.empty() || files.sender.empty()) {
    return error(Code::kInvalidArgument, "{} is missing; a plan is for one sender and one receiver",
                 files.receiver.empty() ? "--receiver" : "--sender");
  }
  DS_ASSIGN(Request request, check_options(options, files.quality.has_value(), files.maps.has_value()));
  DS_ASSIGN(CompileInputs inputs, read_inputs(files, options.align_fallback.has_value()));
  return run(inputs, options, std::move(request));
}

}  // namespace ds
