// The maps of a profiling run.
#include "support/file.h"
#include "tools/ds-profile/run.h"

namespace ds {

Result<MapInputs> read_map_inputs(RunOptions& o, const PromptTemplates& prompts) {
  MapInputs in;
  if (!o.maps.empty()) {
    DS_ASSIGN(in.given, MapSet::read(o.maps));
    const std::string control = shuffled_path_for(o.maps);
    if (o.profile.ways.shuffled) {
      DS_ASSIGN(in.shuffled, MapSet::read(control));
      fmt::print(stderr, "control: shuffled maps '{}'\n", control);
    } else if (!o.no_controls) {
      fmt::print(stderr,
                 "no control with shuffled maps: '{}' is not there; `ds-profile fit --shuffled` writes it\n",
                 control);
    }
  }
  if (!o.other_maps.empty()) {
    DS_ASSIGN(in.other, MapSet::read(o.other_maps));
    o.profile.ways.other_pair = in.other->sender_name;
  }
  DS_ASSIGN(in.data, read_data(o.fit_data, prompts));
  return in;
}

Status check_maps(const RunOptions& o, const MapInputs& in, const LoadedPair& pair) {
  const ModelConfig& config = pair.receiver.model->config();
  auto check_own = [&](const std::optional<MapSet>& maps, const std::string& path) -> Status {
    if (!maps) return ok_status();
    return maps->check_pair(path, pair.sender.identity, pair.receiver.identity, config.layers,
                            config.d_model);
  };
  DS_TRY(check_own(in.given, o.maps));
  DS_TRY(check_own(in.shuffled, shuffled_path_for(o.maps)));
  if (in.other && (in.other->layers != config.layers || in.other->d_model != config.d_model))
    return error(Code::kMismatch,
                 "--control-maps '{}' are for {} layers of width {}, this pair has {} of width {}",
                 o.other_maps, in.other->layers, in.other->d_model, config.layers, config.d_model);
  return ok_status();
}

Result<RunMaps> prepare_maps(const RunOptions& o, const MapInputs& in, const LoadedPair& pair,
                             const DataFiles& data, double expected_seconds, ProfileWork& work) {
  RunMaps maps;
  if (o.profile.ways.align.empty()) return maps;
  auto make = [&]() -> Result<RunMaps> {
    RunMaps made;
    if (in.given) {
      made.own = *in.given;
      if (in.shuffled) made.shuffled = *in.shuffled;
      return made;
    }
    size_t longest = 0;
    for (const auto& c : work.fit) longest = std::max(longest, c.size());
    fmt::print(stderr, "fitting maps on {} contexts ({} tokens); {} of memory beside the models\n",
               work.fit.size(), format_count(work.fit_tokens),
               format_bytes(MapFitter::memory_bytes(pair.receiver.model->config(), o.profile.fit,
                                                    static_cast<int64_t>(work.fit.size()),
                                                    static_cast<int64_t>(longest))));
    DS_ASSIGN(auto fitted, fit_pair(pair, work.fit, o.profile.fit, expected_seconds, stop_on_interrupt()));
    // Without files of their own the fit's contexts are a share of those that are scored.
    made.own = made.shuffled = maps_of(pair, o.fit_data.empty() ? data.inputs : in.data.inputs);
    made.own.maps = std::move(fitted.maps);
    made.own.plain = std::move(fitted.plain);
    made.shuffled.maps = std::move(fitted.shuffled);
    made.left_out = std::move(fitted.left_out);
    made.limits = std::move(fitted.limits);
    return made;
  };
  DS_ASSIGN(maps, run_maps(o.state, o.profile.ways.shuffled, stop_on_interrupt(), make));
  say_unmapped(maps.left_out, maps.own.plain, maps.limits);
  if (in.other) maps.given = &*in.other;
  work.ways = available_ways(work.ways, maps.own);
  return maps;
}

}  // namespace ds
