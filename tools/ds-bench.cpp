// ds-bench: what the README's numbers come from.
#include <algorithm>
#include <cmath>
#include <map>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "plans/work.h"
#include "runtime/core/session.h"
#include "runtime/store/store.h"
#include "support/file.h"
#include "tools/model_input.h"

using namespace ds;

namespace {

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  size_t n = v.size();
  return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

/// Floating-point operations that a full prefill of n tokens needs: in the last layer K and V of all tokens,
/// the rest of the last one only.
double prefill_flops(const Shape& shape, int64_t n) {
  LayerWork whole = layer_work(shape, {0, n, n}), last = layer_work(shape, {0, n, 1});
  double head = 2.0 * static_cast<double>(shape.d_model) * static_cast<double>(shape.vocab);
  return static_cast<double>(shape.layers - 1) * (whole.matmul + whole.attention) + last.matmul +
         last.attention + head;
}

struct PrefillOptions {
  std::string shape = "llama-1b", lengths = "512,2048,4096", dtype = "bf16", backend = "auto", json;
  int threads = 0, repeats = 3;
};

Status bench_prefill(const PrefillOptions& o) {
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> lengths, parse_int_list(o.lengths, 1, config.max_positions - 1));
  DS_ASSIGN(DType dtype, parse_dtype(o.dtype));
  DS_ASSIGN(auto backend, make_backend(o.backend, o.threads));
  std::unique_ptr<DeviceModel> model;
  {
    DS_ASSIGN(Checkpoint checkpoint, Checkpoint::random(config, 1));
    ProgressBar bar("loading " + o.shape);
    LoadOptions load{dtype, [&](int64_t done, int64_t total) { bar.update(done, total); }};
    DS_ASSIGN(model, backend->load(checkpoint, load));
  }
  Plan plan = full_prefill_plan({}, config.shape(), o.dtype);
  DS_ASSIGN(auto session, Session::create(*backend, *model, plan, {lengths.back() - 1, 1, 1}));
  DS_TRY(session->warm_up());
  std::vector<int32_t> ids(static_cast<size_t>(lengths.back()));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.vocab));

  std::map<int64_t, std::vector<double>> seconds;
  std::vector<double> peaks;
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(lengths.size()) * o.repeats;
  for (int r = 0; r < o.repeats; ++r) {
    for (int64_t n : lengths) {  // interleaved, with the bound measured beside each: a shared machine drifts
      DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
      peaks.push_back(peak);
      Request request;
      request.context = std::span(ids).first(static_cast<size_t>(n - 1));
      request.suffix = std::span(ids).subspan(static_cast<size_t>(n - 1), 1);
      request.full_prefill = true;
      DS_ASSIGN(Answer answer, session->run(request));
      seconds[n].push_back(static_cast<double>(answer.ttft_ns) / 1e9);
      bar.update(++done, total);
    }
  }
  bar.finish();
  double peak = median(peaks);
  nlohmann::ordered_json out = {{"shape", o.shape},
                                {"dtype", o.dtype},
                                {"backend", backend->description()},
                                {"matmul_gflops", peak / 1e9},
                                {"repeats", o.repeats}};
  fmt::print(stderr, "{} {}, {}; one large matrix product: {:.0f} GFLOP/s\n", o.shape, o.dtype,
             backend->description(), peak / 1e9);
  fmt::print(stderr, "{:>8} {:>12} {:>12} {:>14} {:>8}\n", "tokens", "seconds", "tokens/s", "bound tokens/s",
             "share");
  for (int64_t n : lengths) {
    double s = median(seconds[n]), bound = prefill_flops(config.shape(), n) / peak;
    auto [low, high] = std::minmax_element(seconds[n].begin(), seconds[n].end());
    double tokens = static_cast<double>(n);
    fmt::print(stderr, "{:>8} {:>12.3f} {:>12.1f} {:>14.1f} {:>7.0f}%\n", n, s, tokens / s, tokens / bound,
               100 * bound / s);
    out["lengths"].push_back({{"tokens", n},
                              {"seconds", s},
                              {"seconds_min", *low},
                              {"seconds_max", *high},
                              {"tokens_per_second", tokens / s},
                              {"bound_tokens_per_second", tokens / bound},
                              {"share", bound / s}});
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

struct TtftOptions {
  std::string receiver, store, context, context_ids, prompt, answer, link_rate, dtype = "bf16",
                                                                                backend = "auto", json;
  std::vector<std::string> plans;
  double link_rtt_ms = 0;
  int64_t max_new_tokens = 16;
  int threads = 0, repeats = 7;
};

/// One way to answer: the full prefill or a plan.
struct Way {
  std::string name;
  Plan plan;
  std::unique_ptr<Session> session;
  std::vector<double> ttft_ms;
  Answer answer;
  std::string text;
};

Status bench_ttft(const TtftOptions& o) {
  if (o.repeats < 1 || o.repeats > 1000)
    return error(Code::kInvalidArgument, "--repeats must lie in [1, 1000]");
  double rate = 0;
  if (!o.link_rate.empty()) {
    DS_ASSIGN(rate, parse_rate(o.link_rate));
  }
  std::vector<Way> ways(1);
  ways[0].name = "full prefill";
  for (const std::string& named : o.plans) {
    size_t at = named.find('=');
    if (at == std::string::npos || at == 0) {
      return error(Code::kInvalidArgument,
                   "--plan '{}': expected NAME=FILE, for example 'full reuse=reuse.dsplan'", named);
    }
    Way way;
    way.name = named.substr(0, at);
    DS_ASSIGN(way.plan, read_plan(named.substr(at + 1)));
    ways.push_back(std::move(way));
  }
  DS_ASSIGN(auto store, open_store(o.store));
  if (rate > 0 || o.link_rtt_ms > 0) store = shape_link(std::move(store), {rate, o.link_rtt_ms});
  DS_ASSIGN(LoadedModel loaded, load_model(o.receiver, o.backend, o.threads, o.dtype));
  // A plan's own full prefill comes with a prediction; without a plan there is none.
  ways[0].plan = ways.size() > 1
                     ? ways[1].plan
                     : full_prefill_plan(loaded.identity, loaded.model->config().shape(), o.dtype);
  DS_ASSIGN(std::vector<int32_t> context, context_tokens(loaded, o.context, o.context_ids));
  DS_ASSIGN(std::vector<int32_t> prompt, encode(loaded, o.prompt, context.empty()));
  auto n = static_cast<int64_t>(context.size()), m = static_cast<int64_t>(prompt.size());
  for (Way& way : ways) {
    DS_ASSIGN(way.session,
              Session::create(*loaded.backend, *loaded.model, way.plan, {n, m, o.max_new_tokens}));
    DS_TRY(way.session->warm_up());
  }
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(ways.size()) * (o.repeats + 1);
  for (int r = -1; r < o.repeats; ++r) {  // interleaved; the first round warms up
    for (Way& way : ways) {
      Request request;
      request.context = context;
      request.suffix = prompt;
      request.store = store.get();
      request.receiver = &loaded.identity;
      if (rate > 0) request.link_rate = static_cast<int64_t>(rate);
      request.full_prefill = &way == &ways[0];
      request.max_new_tokens = o.max_new_tokens;
      request.stop_ids = loaded.model->config().eos_token_ids;
      DS_ASSIGN(way.answer, way.session->run(request));
      if (way.answer.cache == CacheStatus::kMiss) {
        return error(way.answer.miss.code(), "'{}' missed the cache, so there is nothing to compare: {}",
                     way.name, way.answer.miss.message());
      }
      if (r >= 0) way.ttft_ms.push_back(static_cast<double>(way.answer.ttft_ns) / 1e6);
      bar.update(++done, total);
    }
  }
  bar.finish();

  nlohmann::ordered_json out = {{"receiver", loaded.identity.name},
                                {"context_tokens", n},
                                {"prompt_tokens", m},
                                {"link_bytes_per_s", rate},
                                {"link_rtt_ms", o.link_rtt_ms},
                                {"repeats", o.repeats},
                                {"dtype", o.dtype},
                                {"backend", loaded.backend->description()},
                                {"ways", nlohmann::json::array()}};
  fmt::print("{} context + {} prompt tokens, {}, link {}, median of {}\n", n, m, o.dtype,
             rate > 0 ? format_rate(rate) : "not shaped", o.repeats);
  fmt::print("{:<14} {:<14} {:<6} {:>10} {:>10} {:>9} {:>11} {:>11}\n", "way", "answer", "", "TTFT",
             "predicted", "speed-up", "moved", "recomputed");
  double base = median(ways[0].ttft_ms);
  int64_t way_rate = rate > 0 ? static_cast<int64_t>(rate) : kNoLimit - 1;
  for (Way& way : ways) {
    if (loaded.tokenizer) {
      DS_ASSIGN(way.text, loaded.tokenizer->decode(way.answer.tokens, true));
    } else {
      way.text = fmt::format("{}", fmt::join(way.answer.tokens, " "));
    }
    while (!way.text.empty() && way.text.front() == ' ') way.text.erase(0, 1);
    bool right = way.text == o.answer;
    double ms = median(way.ttft_ms);
    int64_t predicted = predicted_ttft_ns(way.plan, *way.answer.variant, {n, m, way_rate});
    int64_t recomputed = recomputed_layers(*way.answer.variant);
    fmt::print("{:<14} {:<14} {:<6} {:>7.2f} ms {:>10} {:>8.2f}x {:>11} {:>5} of {:>2}\n", way.name, way.text,
               o.answer.empty() ? ""
               : right          ? "right"
                                : "WRONG",
               ms, predicted > 0 ? fmt::format("{:.2f} ms", static_cast<double>(predicted) / 1e6) : "-",
               base / ms, format_bytes(way.answer.bytes_loaded), recomputed, way.plan.shape.layers);
    nlohmann::ordered_json row = {{"way", way.name},
                                  {"text", way.text},
                                  {"ttft_ms", ms},
                                  {"ttft_ms_all", way.ttft_ms},
                                  {"speedup", base / ms},
                                  {"predicted_ttft_ms", static_cast<double>(predicted) / 1e6},
                                  {"bytes_loaded", way.answer.bytes_loaded},
                                  {"recomputed_layers", recomputed},
                                  {"policy", way.answer.variant->policy},
                                  {"schedule", way.answer.variant->scheduler}};
    if (!o.answer.empty()) row["right"] = right;
    out["ways"].push_back(row);
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Measure this machine: full prefill against its FLOP bound, and ways to a first token beside one "
      "another.",
      "ds-bench"};
  app.require_subcommand(1);
  PrefillOptions p;
  CLI::App* prefill = app.add_subcommand("prefill", "tokens per second of a full prefill, random weights");
  prefill->add_option("--shape", p.shape, "llama-1b, llama-8b or llama-8b:LAYERS")->capture_default_str();
  prefill->add_option("--lengths", p.lengths, "tokens")->capture_default_str();
  prefill->add_option("--dtype", p.dtype, "bf16 or f32")->capture_default_str();
  prefill->add_option("--repeats", p.repeats, "runs of each length, interleaved; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  prefill->add_option("--threads", p.threads, "0: all cores")->capture_default_str();
  prefill->add_option("--backend", p.backend, "cpu or auto")->capture_default_str();
  prefill->add_option("--json", p.json, "write figures to FILE; '-': stdout");
  TtftOptions t;
  CLI::App* ttft = app.add_subcommand("ttft", "one request, several ways, interleaved in one process");
  ttft->add_option("--receiver", t.receiver, "Hugging Face folder")->required();
  ttft->add_option("--plan", t.plans,
                   "NAME=FILE; may be given several times; the full prefill is always there");
  ttft->add_option("--store", t.store, "file:PATH, holding the sender's entry")->required();
  ttft->add_option("--context", t.context, "text file");
  ttft->add_option("--context-ids", t.context_ids, "JSON list of token ids instead");
  ttft->add_option("--prompt", t.prompt, "the question")->required();
  ttft->add_option("--answer", t.answer, "the right answer, to mark rows by");
  ttft->add_option("--link-rate", t.link_rate, "20MB/s, 8Gb/s");
  ttft->add_option("--link-rtt-ms", t.link_rtt_ms, "round trip")->capture_default_str();
  ttft->add_option("--max-new-tokens", t.max_new_tokens, "of the answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  ttft->add_option("--repeats", t.repeats, "the median counts")->capture_default_str();
  ttft->add_option("--dtype", t.dtype, "bf16 or f32")->capture_default_str();
  ttft->add_option("--threads", t.threads, "0: all cores")->capture_default_str();
  ttft->add_option("--json", t.json, "write figures to FILE; '-': stdout");
  app.footer(
      "Examples:\n"
      "  ds-bench prefill --shape llama-1b --lengths 512,2048,4096 --json prefill.json\n"
      "  ds-bench ttft --receiver R/ --store file:cache --context c.txt --prompt 'Where?' --link-rate 20MB/s "
      "\\\n"
      "      --plan 'full reuse=reuse.dsplan' --plan plan=pair.dsplan");
  return run_tool(app, argc, argv, [&] { return *prefill ? bench_prefill(p) : bench_ttft(t); });
}
