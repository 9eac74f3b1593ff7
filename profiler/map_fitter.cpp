#include "profiler/map_fitter.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/brief_team.h"

namespace ds {
namespace {

constexpr int64_t kHeldOutOf = 5;  // one context of so many is held out

int64_t rank_of(const ModelConfig& config, const FitOptions& options) {
  return options.rank > 0 ? options.rank : std::max<int64_t>(1, config.d_model / 8);
}

/// One of so many of them.
int64_t held_out_every(int64_t contexts) { return std::clamp<int64_t>(contexts, 1, kHeldOutOf); }

/// Tokens that are kept of a held-out context: together with the others' about as many as the width, so that
/// they need half as much memory as the sums of a half.
int64_t kept_tokens(const ModelConfig& config, int64_t contexts) {
  constexpr int64_t kLeast = 64;
  return std::max(kLeast, config.d_model / std::max<int64_t>(1, contexts / held_out_every(contexts)));
}

}  // namespace

int64_t MapFitter::memory_bytes(const ModelConfig& config, const FitOptions& options, int64_t contexts,
                                int64_t most_tokens) {
  const int64_t d = config.d_model, held_out = contexts / held_out_every(contexts),
                kept = std::min(kept_tokens(config, contexts), most_tokens), rows = kept * held_out;
  const int64_t sums = 32 * d * d + HeldOut::bytes(d, kept, held_out);
  constexpr int64_t kStates =
      2 * 8 + 8 + 4 + 4 * 2;  // both models' and their difference, as read, on the device
  return (config.layers - 1) * sums * (options.shuffled ? 2 : 1) + fit_scratch_bytes(d, rows) +
         kStates * most_tokens * d;
}

Result<std::unique_ptr<MapFitter>> MapFitter::create(Backend& backend, DeviceModel& sender,
                                                     DeviceModel& receiver, const FitOptions& options,
                                                     int64_t contexts, int64_t most_tokens) {
  const ModelConfig& config = receiver.config();
  DS_TRY(check_same_architecture(sender.config(), config, "sender", "receiver"));
  if (sender.dtype() != receiver.dtype())
    return error(Code::kMismatch, "sender and receiver differ in the type that they compute in");
  if (contexts < 2 || most_tokens < 1)
    return error(Code::kInvalidArgument,
                 "maps are fitted on {} contexts; expected at least 2, one of them to choose the ridge on",
                 contexts);
  if (rank_of(config, options) > config.d_model)
    return error(Code::kInvalidArgument,
                 "low-rank maps of rank {}; expected 1 to {}, the width of hidden states", options.rank,
                 config.d_model);
  std::unique_ptr<MapFitter> fitter(new MapFitter(backend, sender, receiver, options));
  fitter->contexts_ = contexts;
  fitter->most_tokens_ = most_tokens;
  std::sort(fitter->options_.forms.begin(), fitter->options_.forms.end());
  for (int64_t l = 1; l < config.layers; ++l) {
    const Sums none{CutMoments(config.d_model), CutMoments(config.d_model),
                    HeldOut(config.d_model, kept_tokens(config, contexts))};
    fitter->cuts_.push_back(none);
    if (options.shuffled) fitter->shuffled_.push_back(none);
  }
  const int64_t element = dtype_size(receiver.dtype());
  for (auto [side, model, name] :
       {std::tuple{&fitter->s_, &sender, "sender"}, std::tuple{&fitter->r_, &receiver, "receiver"}}) {
    side->model = model;
    side->name = name;
    DS_ASSIGN(side->workspace, model->make_workspace(most_tokens));
    DS_ASSIGN(side->hidden, backend.allocate(most_tokens * config.d_model * element));
    DS_ASSIGN(side->cache, backend.allocate(most_tokens * config.kv_row() * element));
  }
  fitter->host_.resize(static_cast<size_t>(most_tokens * config.d_model * element));
  DS_ASSIGN(fitter->stream_, backend.make_stream(StreamKind::kCompute, 16));
  return fitter;
}

Status MapFitter::read(Side& side, int64_t layer, int64_t rows) {
  const int64_t elements = rows * side.model->config().d_model;
  const DType dtype = side.model->dtype();
  stream_->copy(host_.data(), side.hidden->data(), elements * dtype_size(dtype));
  DS_TRY(stream_->synchronize());
  side.rows.resize(static_cast<size_t>(elements));
  for (size_t i = 0; i < side.rows.size(); ++i) {
    if (dtype == DType::kF32) {
      float value = 0;
      std::memcpy(&value, host_.data() + i * sizeof value, sizeof value);
      side.rows[i] = value;
    } else {
      uint16_t half = 0;
      std::memcpy(&half, host_.data() + i * sizeof half, sizeof half);
      side.rows[i] = bf16_to_f32(half);
    }
  }
  if (std::all_of(side.rows.begin(), side.rows.end(), [](double x) { return std::isfinite(x); }))
    return ok_status();
  return error(Code::kCorrupt,
               "the {}'s hidden states that enter layer {} are not finite: its weights hold NaN or overflow; "
               "check the "
               "checkpoint",
               side.name, layer);
}

Status MapFitter::add(std::span<const int32_t> context, const std::function<void(int64_t layers)>& progress) {
  const BriefTeam team;
  const auto n = static_cast<int64_t>(context.size());
  const int64_t layers = receiver_.config().layers, d = receiver_.config().d_model;
  if (n < 1 || n > most_tokens_ || added_ >= contexts_)
    return error(Code::kInvalidArgument, "context {} of {} has {} tokens; expected 1 to {}", added_ + 1,
                 contexts_, n, most_tokens_);
  const int64_t every = held_out_every(contexts_);
  const bool held_out = added_ % every == every - 1;
  for (Side* side : {&s_, &r_}) side->model->embed(*stream_, context.data(), n, side->hidden->data());
  for (int64_t l = 1; l < layers; ++l) {
    for (Side* side : {&s_, &r_}) {
      side->model->layer(*stream_, *side->workspace,
                         {l - 1, side->hidden->data(), side->cache->data(), 0, n, n});
      DS_TRY(read(*side, l, n));
    }
    residual_.resize(s_.rows.size());
    auto add_to = [&](Sums& sums, size_t turn) {
      for (size_t i = 0; i < residual_.size(); ++i)
        residual_[i] = r_.rows[(i + turn) % residual_.size()] - s_.rows[i];
      const TokenWeights weights = weigh_tokens(s_.rows, residual_, d);
      CutMoments& m = held_out ? sums.held_out : sums.fit;
      m.add(s_.rows, residual_, weights.weight);
      ++m.contexts;
      m.massive_tokens += std::count(weights.massive.begin(), weights.massive.end(), 1);
      if (held_out) sums.rows.add(s_.rows, residual_, weights);
    };
    const auto at = static_cast<size_t>(l - 1);
    add_to(cuts_[at], 0);
    // The receiver's states of other tokens of the same context.
    if (!shuffled_.empty()) add_to(shuffled_[at], static_cast<size_t>((n + 1) / 2 * d));
    if (progress) progress(l);
  }
  ++added_;
  return ok_status();
}

Result<MapFitter::Fitted> MapFitter::fit(const std::function<void(int64_t layers)>& progress) {
  const BriefTeam team;
  Fitted out;
  FitRequest request{0, options_.forms, rank_of(receiver_.config(), options_)};
  auto solve = [&](std::vector<Sums>& of, size_t layer) {
    Sums sums = std::move(of[layer]);
    return fit_maps(request, std::move(sums.fit), std::move(sums.held_out), sums.rows);
  };
  auto append = [](auto& to, auto& from) { std::move(from.begin(), from.end(), std::back_inserter(to)); };
  for (size_t i = 0; i < cuts_.size(); ++i) {
    request = {static_cast<int64_t>(i) + 1, options_.forms, request.rank};
    auto fitted = solve(cuts_, i);
    if (!fitted.ok()) {
      if (!options_.plain) return fitted.status().with_context("fitting maps for aligned cuts");
      out.left_out.push_back(fitted.status().message());
    } else {
      append(out.plain, fitted->plain);
      append(out.limits, fitted->limits);
      if (!shuffled_.empty() && !fitted->maps.empty()) {
        request.control = true;
        request.forms.clear();
        for (const AlignmentMap& m : fitted->maps) request.forms.push_back(m.form);
        auto wrong = solve(shuffled_, i);
        if (!wrong.ok()) return wrong.status().with_context("fitting the shuffled control");
        append(out.shuffled, wrong->maps);
      }
      append(out.maps, fitted->maps);
    }
    if (progress) progress(static_cast<int64_t>(i) + 1);
  }
  return out;
}

}  // namespace ds
