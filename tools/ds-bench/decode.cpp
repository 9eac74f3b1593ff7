// ds-bench decode: tokens per second of a batch of sequences beside what reading weights and caches must
// take.
#include <chrono>
#include <map>
#include <memory>

#include "plans/work.h"
#include "support/file.h"
#include "support/units.h"
#include "tools/ds-bench/bench.h"

namespace ds {
namespace {

struct DecodeOptions {
  RandomModelOptions model;
  std::string batches = "1,2,4,8,16,32";
  int64_t context = 512, shared = 0;
  int steps = 4;
};

Status bench_decode(const DecodeOptions& options) {
  const RandomModelOptions& o = options.model;
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> batches, parse_int_list(options.batches, 1, 4096));
  int64_t context = options.context, most = batches.back();
  if (context < 1 || context > config.max_positions)
    return error(Code::kInvalidArgument, "--context {}: expected 1 to {}", context, config.max_positions);
  if (options.shared < 0 || options.shared >= context)
    return error(Code::kInvalidArgument, "--shared {}: expected 0 to {}, less than --context", options.shared,
                 context - 1);
  DS_ASSIGN(RandomModel loaded, load_random_model(o, config));
  auto& [backend, model, dtype] = loaded;
  int64_t element = dtype_size(dtype), cache_bytes = context * config.kv_row() * element;
  DS_ASSIGN(auto workspace, model->make_workspace(context));
  DS_ASSIGN(auto stream, backend->make_stream(StreamKind::kCompute, config.layers + 8));
  DS_ASSIGN(auto hidden, backend->allocate(most * config.d_model * element));
  DS_ASSIGN(auto caches, backend->allocate(most * config.layers * cache_bytes));
  std::vector<int32_t> ids = scattered_ids(most, config.vocab);
  std::vector<float> logits(static_cast<size_t>(most * config.vocab));
  std::vector<int64_t> rows(static_cast<size_t>(most));
  std::vector<SequenceRows> sequences;  // of layer 0, then of layer 1
  for (int64_t b = 0; b < most; ++b) rows[static_cast<size_t>(b)] = b;
  for (int64_t l = 0; l < config.layers; ++l)
    for (int64_t b = 0; b < most; ++b)
      sequences.push_back({caches->data() + (b * config.layers + l) * cache_bytes, context - 1, 1, 1});

  // The same, but for the first `shared` positions, which all read where the first sequence has them.
  std::vector<SequenceRows> sharing = sequences;
  for (int64_t i = 0; options.shared > 0 && i < config.layers * most; ++i) {
    SequenceRows& s = sharing[static_cast<size_t>(i)];
    s.prefix = sequences[static_cast<size_t>(i / most * most)].cache;
    s.prefix_rows = options.shared;
    s.cache += options.shared * config.kv_row() * element;
  }

  std::vector<std::byte*> step_caches;  // of the first sequence, by layer
  for (int64_t l = 0; l < config.layers; ++l)
    step_caches.push_back(sequences[static_cast<size_t>(l * most)].cache);
  int32_t next = 0;

  // What a step must read: every weight but the embeddings, once; every sequence's cache.
  double weights = static_cast<double>(model->weight_bytes() - config.vocab * config.d_model * element);
  auto bytes = [&](int64_t batch) {
    return weights + static_cast<double>(batch * config.layers * cache_bytes);
  };
  LayerWork work = layer_work(config.shape(), {context - 1, 1, 1});
  auto attention_flops = [&](int64_t batch) {
    return static_cast<double>(batch * config.layers) * work.attention;
  };
  auto flops = [&](int64_t batch) {
    return attention_flops(batch) +
           static_cast<double>(batch) *
               (static_cast<double>(config.layers) * work.matmul +
                2.0 * static_cast<double>(config.d_model) * static_cast<double>(config.vocab));
  };

  auto layers = [&](std::vector<SequenceRows>& of, size_t n) {
    for (int64_t l = 0; l < config.layers; ++l)
      model->layer_batch(*stream, *workspace, l, hidden->data(),
                         std::span(of).subspan(static_cast<size_t>(l * most), n));
  };

  struct Figures {
    std::vector<double> seconds;
    PhaseTimes times;
    std::vector<double> own_ns, shared_ns;  // attention of a step, in turns
  };
  std::map<int64_t, Figures> figures;
  std::vector<double> bandwidths, peaks;
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(batches.size()) * (o.repeats + 1);
  for (int r = -1; r < o.repeats; ++r)  // interleaved with the bounds; the first round warms up
    for (int64_t batch : batches) {
      DS_ASSIGN(double bandwidth, backend->measure_read_bandwidth());
      DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
      Figures& f = figures[batch];
      // A last step shows where the time goes; it is not among those that count.
      for (int step = 0; step <= options.steps; ++step) {
        auto n = static_cast<size_t>(batch);
        const bool profiled = step == options.steps;
        if (profiled) model->set_profile(&f.times);
        auto start = std::chrono::steady_clock::now();
        if (batch == 1 && !profiled) {
          model->step(*stream, *workspace,
                      {ids[0], context - 1, hidden->data(), step_caches, logits.data(), {}, &next});
          DS_TRY(stream->synchronize());
          std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
          if (r >= 0) f.seconds.push_back(seconds.count());
          continue;
        }
        model->embed(*stream, ids.data(), batch, hidden->data());
        layers(sequences, n);
        model->logits_batch(*stream, *workspace, hidden->data(), std::span(rows).first(n), logits.data());
        DS_TRY(stream->synchronize());
        std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        if (r >= 0 && !profiled) f.seconds.push_back(seconds.count());
      }
      for (int step = 0; options.shared > 0 && step < options.steps; ++step)
        for (bool shares : {false, true}) {
          PhaseTimes times;
          model->set_profile(&times);
          model->embed(*stream, ids.data(), batch, hidden->data());
          layers(shares ? sharing : sequences, static_cast<size_t>(batch));
          DS_TRY(stream->synchronize());
          if (r >= 0)
            (shares ? f.shared_ns : f.own_ns)
                .push_back(static_cast<double>(times[Phase::kAttention] + times[Phase::kAttentionPack]));
        }
      model->set_profile(nullptr);
      if (r < 0) f.times = {};
      bandwidths.push_back(bandwidth);
      peaks.push_back(peak);
      bar.update(++done, total);
    }
  bar.finish();

  // The best seen: on a shared machine a median of the bound may lie below what is held against it.
  double bandwidth = *std::max_element(bandwidths.begin(), bandwidths.end());
  double peak = *std::max_element(peaks.begin(), peaks.end());
  nlohmann::ordered_json out = {{"shape", o.shape},
                                {"dtype", o.dtype},
                                {"context", context},
                                {"backend", backend->description()},
                                {"read_bytes_per_second", bandwidth},
                                {"matmul_gflops", peak / 1e9},
                                {"repeats", o.repeats}};
  fmt::print(stderr,
             "{} {}, {} positions, {}; reading memory: {:.1f} GB/s; one large matrix product: {:.0f} "
             "GFLOP/s\n",
             o.shape, o.dtype, context, backend->description(), bandwidth / 1e9, peak / 1e9);
  fmt::print(stderr, "{:>6} {:>10} {:>10} {:>12} {:>8} {:>12} {:>9} {:>7} {:>8} {:>11}\n", "batch",
             "ms a step", "tokens/s", "bytes/token", "GB/s", "bound by", "bound ms", "share", "in turn",
             "attention");
  for (int64_t batch : batches) {
    Figures& f = figures[batch];
    double s = median(f.seconds), memory = bytes(batch) / bandwidth, arithmetic = flops(batch) / peak;
    double bound = std::max(memory, arithmetic), tokens = static_cast<double>(batch);
    // Attention waits for products and they for it: while caches are read nothing of the products is
    // computed.
    double in_turn = std::max(weights / bandwidth, (flops(batch) - attention_flops(batch)) / peak) +
                     std::max((bytes(batch) - weights) / bandwidth, attention_flops(batch) / peak);
    double attention = static_cast<double>(f.times[Phase::kAttention]) / 1e9 / o.repeats;
    fmt::print(stderr,
               "{:>6} {:>10.2f} {:>10.1f} {:>12} {:>8.1f} {:>12} {:>9.2f} {:>6.0f}% {:>7.0f}% {:>8.2f} ms\n",
               batch, s * 1e3, tokens / s, format_bytes(static_cast<int64_t>(bytes(batch) / tokens)),
               bytes(batch) / s / 1e9, memory > arithmetic ? "memory" : "arithmetic", bound * 1e3,
               100 * bound / s, 100 * in_turn / s, attention * 1e3);
    nlohmann::ordered_json phases;
    for (size_t i = 0; i < kPhases; ++i)
      phases[std::string(kPhaseNames[i])] = static_cast<double>(f.times.ns[i]) / 1e6 / o.repeats;
    out["batches"].push_back({{"batch", batch},
                              {"seconds", s},
                              {"tokens_per_second", tokens / s},
                              {"bytes_per_token", bytes(batch) / tokens},
                              {"bytes_per_second", bytes(batch) / s},
                              {"bound_by", memory > arithmetic ? "memory" : "arithmetic"},
                              {"bound_seconds", bound},
                              {"share", bound / s},
                              {"share_in_turn", in_turn / s},
                              {"phases_ms", phases}});
    if (options.shared == 0) continue;
    // The shortest of each: what else runs on the machine only adds.
    const double own = *std::min_element(f.own_ns.begin(), f.own_ns.end()),
                 together = *std::min_element(f.shared_ns.begin(), f.shared_ns.end());
    fmt::print(stderr,
               "       attention of {} sequences: {:.2f} ms over caches of their own, {:.2f} ms ({:.2f}) "
               "where they share {} positions\n",
               batch, own / 1e6, together / 1e6, together / own, options.shared);
    out["batches"].back()["attention_own_ms"] = own / 1e6;
    out["batches"].back()["attention_shared_ms"] = together / 1e6;
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_decode(CLI::App& app) {
  auto o = std::make_shared<DecodeOptions>();
  CLI::App* cmd = app.add_subcommand("decode", "one token for each of a batch of sequences");
  add_random_model(*cmd, o->model);
  cmd->add_option("--batch", o->batches, "sequences at once")->capture_default_str();
  cmd->add_option("--context", o->context, "positions that each new token sees")->capture_default_str();
  cmd->add_option("--shared", o->shared,
                  "measure attention also where all sequences share their first N positions, in turns");
  cmd->add_option("--steps", o->steps, "steps in a row in each run")
      ->capture_default_str()
      ->check(CLI::Range(1, 10000));
  return [o] { return bench_decode(*o); };
}

}  // namespace ds
