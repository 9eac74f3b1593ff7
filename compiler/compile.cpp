#include "compiler/compile.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "compiler/pipeline.h"
#include "compiler/request.h"
#include "compiler/select/doubt.h"
#include "compiler/select/variants.h"
#include "compiler/stopwatch.h"
#include "plans/limits.h"
#include "plans/plan_file.h"

namespace ds {
namespace {

/// With one receiver the sender applies the maps where that shortens a predicted TTFT by more than this
/// share.
constexpr double kWorthTheSender = 0.01;
struct Compiler {
  Compiler(const CompileInputs& given, const CompileOptions& wanted, CompileRequest checked)
      : inputs(given), options(wanted), request(std::move(checked)) {}

  const CompileInputs& inputs;
  const CompileOptions& options;
  CompileRequest request;
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
    plan.format_version = static_cast<int32_t>(options.plan_format);
    if (options.live_sender) plan.format_version = std::max(plan.format_version, kLiveFormatVersion);
    if (plan.format_version >= 5) plan.sources = sources_of(plan);
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
      const WayScore* score = way.is_full_prefill() ? nullptr : in.quality->find(way);
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
    const WayScore* reuse = in.quality->find(Way::full_reuse());
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

  /// Chosen, one after the other.
  Status take(Chooser& chooser, const std::vector<PlacedVariant>& placed, bool live) {
    for (const PlacedVariant& p : placed) {
      DS_ASSIGN(Predicted predicted, chooser.predict(p.tiling, p.tuned));
      DS_ASSIGN(std::vector<Alternative> alternatives, chooser.alternatives(p.tuned));
      Variant v = variant_of(chooser.tilings()[p.tiling], p.tuned, predicted, in.confidence);
      v.name = fmt::format("v{}", chosen.size());
      v.policy = request.policy->name;
      v.live = live;
      v.tokens_min = p.tokens_min;
      v.tokens_max = p.tokens_max;
      v.rate_min = p.rate_min;
      v.rate_max = p.rate_max;
      v.load_min = p.load_min;
      v.load_max = p.load_max;
      v.regret = p.regret;
      v.why = chooser.objective(p.tuned);
      if (alternatives.size() > 1) v.alternatives = std::move(alternatives);
      chosen.push_back({std::move(v), false});
    }
    return ok_status();
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
    DS_TRY(take(*chooser, placed, false));
    if (options.live_sender) {
      DS_ASSIGN(std::vector<Tiling> again, request.policy->draw(in));
      Chooser live(std::move(again), slo, costs, options.schedule, true);
      DS_ASSIGN(std::vector<PlacedVariant> beside, place(live));
      if (placed.size() + beside.size() > kMaxVariants)
        return error(
            Code::kInvalidArgument,
            "{} variants are needed, {} of them for live senders, expected at most {}; give fewer lengths "
            "or rates",
            placed.size() + beside.size(), beside.size(), kMaxVariants);
      DS_TRY(take(live, beside, true));
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

Result<CompileOutput> run(const CompileInputs& inputs, const CompileOptions& options,
                          CompileRequest request) {
  Compiler compiler(inputs, options, std::move(request));
  DS_TRY(compiler.run());
  return std::move(compiler.out);
}

}  // namespace

Result<CompileOutput> compile(const CompileInputs& inputs, const CompileOptions& options) {
  DS_ASSIGN(CompileRequest request,
            check_options(options, inputs.quality.has_value(), inputs.maps.has_value()));
  return run(inputs, options, std::move(request));
}

Result<CompileOutput> compile(const CompileFiles& files, const CompileOptions& options) {
  if (files.receiver.empty() || files.sender.empty()) {
    return error(Code::kInvalidArgument, "{} is missing; a plan is for one sender and one receiver",
                 files.receiver.empty() ? "--receiver" : "--sender");
  }
  DS_ASSIGN(CompileRequest request,
            check_options(options, files.quality.has_value(), files.maps.has_value()));
  DS_ASSIGN(CompileInputs inputs, read_inputs(files, options.align_fallback.has_value()));
  return run(inputs, options, std::move(request));
}

}  // namespace ds
