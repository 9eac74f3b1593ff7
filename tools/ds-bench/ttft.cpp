// ds-bench ttft: one request, several ways to answer, interleaved in one process.
#include <memory>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "runtime/store/store.h"
#include "runtime/trace/describe.h"
#include "support/file.h"
#include "tools/chat_input.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/rounds.h"
#include "tools/model_input.h"

namespace ds {
namespace {

struct TtftOptions {
  std::string receiver, store, context, context_ids, prompt, answer, link_rate, dtype = "bf16", json, maps;
  std::vector<std::string> plans;
  double link_rtt_ms = 0;
  int64_t max_new_tokens = 16;
  int repeats = 7;
  ChatOptions chat{.use = "none"};
  BackendFlags on;
  OpenOptions open;
  WeightCacheOptions cache;
};

/// One way to answer: the full prefill or a plan.
struct NamedPlan {
  std::string name;
  Plan plan;
};

std::vector<double> in_ms(const std::vector<int64_t>& ns) {
  std::vector<double> ms;
  for (int64_t x : ns) ms.push_back(static_cast<double>(x) / 1e6);
  return ms;
}

Status bench_ttft(const TtftOptions& o) {
  if (o.repeats < 1 || o.repeats > 1000)
    return error(Code::kInvalidArgument, "--repeats must lie in [1, 1000]");
  double rate = 0;
  if (!o.link_rate.empty()) {
    DS_ASSIGN(rate, parse_rate(o.link_rate));
  }
  std::vector<NamedPlan> ways(1);
  ways[0].name = "full prefill";
  for (const std::string& named : o.plans) {
    size_t at = named.find('=');
    if (at == std::string::npos || at == 0) {
      return error(Code::kInvalidArgument,
                   "--plan '{}': expected NAME=FILE, for example 'full reuse=reuse.dsplan'", named);
    }
    NamedPlan way;
    way.name = named.substr(0, at);
    DS_ASSIGN(way.plan, read_plan(named.substr(at + 1)));
    ways.push_back(std::move(way));
  }
  std::optional<MapSet> maps;
  if (!o.maps.empty()) {
    DS_ASSIGN(maps, MapSet::read(o.maps));
    for (const NamedPlan& way : ways)
      if (!way.plan.maps.fingerprint.empty()) DS_TRY(maps->check_plan(o.maps, way.plan));
  }
  DS_ASSIGN(auto store, open_store(o.store));
  if (rate > 0 || o.link_rtt_ms > 0) store = shape_link(std::move(store), {rate, o.link_rtt_ms});
  DS_TRY(check_open_options(o.open, {o.receiver}));
  std::optional<RequestText> text;  // none: token ids, which go through no template
  if (o.context_ids.empty()) {
    DS_ASSIGN(const std::optional<ChatTemplate> chat_template,
              open_chat_template(o.chat, o.receiver, o.open));
    std::string context;
    if (!o.context.empty()) {
      DS_ASSIGN(context, read_text_file(o.context));
    }
    DS_ASSIGN(text, request_text(o.chat, chat_template, std::move(context), o.prompt));
  } else if (o.chat.asked()) {
    return error(Code::kInvalidArgument,
                 "--template and --system are for texts: token ids go through no template");
  }
  DS_ASSIGN(LoadedModel loaded, load_model(o.receiver, o.open, o.on, o.dtype, o.cache));
  // A plan's own full prefill comes with a prediction; without a plan there is none.
  ways[0].plan = ways.size() > 1
                     ? ways[1].plan
                     : full_prefill_plan(loaded.identity, loaded.model->config().shape(), o.dtype);
  DS_ASSIGN(const JoinedText joined, request_tokens(loaded, text, {o.context, o.context_ids, o.prompt, ""}));
  std::vector<int32_t> stop_ids = loaded.model->config().eos_token_ids;
  if (text && text->templated) {
    DS_ASSIGN(stop_ids, with_turn_end(std::move(stop_ids), *loaded.checkpoint, *loaded.tokenizer));
  }
  const std::span<const int32_t> context = joined.context(), prompt = joined.suffix();
  auto n = static_cast<int64_t>(context.size()), m = static_cast<int64_t>(prompt.size());
  std::vector<Contender> contenders;
  for (NamedPlan& way : ways) {
    auto make = [&, plan = &way.plan] {
      return Session::create(*loaded.backend, *loaded.model, *plan, {n, m, o.max_new_tokens},
                             maps ? &*maps : nullptr);
    };
    contenders.push_back({.name = way.name, .make_session = make, .full_prefill = &way == &ways[0]});
  }
  Request request;
  request.context = context;
  request.entry = joined.entry;
  request.suffix = prompt;
  request.store = store.get();
  request.receiver = &loaded.identity;
  if (rate > 0) request.link_rate = static_cast<int64_t>(rate);
  request.max_new_tokens = o.max_new_tokens;
  request.stop_ids = stop_ids;
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(ways.size()) * (o.repeats + 1);
  DS_TRY(run_rounds(contenders, request, {o.repeats, [&](const Contender&) { bar.update(++done, total); }}));
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
  fmt::print("{:<14} {:<14} {:<6} {:>10} {:>10} {:>9} {:>11}  {}\n", "way", "answer", "", "TTFT", "predicted",
             "speed-up", "moved", fmt::format("recomputed, of {}", ways[0].plan.shape.layers));
  double base = median(in_ms(figures(contenders[0], &Answer::ttft_ns)));
  int64_t way_rate = rate > 0 ? static_cast<int64_t>(rate) : kNoLimit - 1;
  for (size_t w = 0; w < ways.size(); ++w) {
    const NamedPlan& way = ways[w];
    const Answer& answer = contenders[w].last();
    std::string text = fmt::format("{}", fmt::join(answer.tokens, " "));
    if (loaded.tokenizer) {
      DS_ASSIGN(text, loaded.tokenizer->decode(answer.tokens, true));
    }
    while (!text.empty() && text.front() == ' ') text.erase(0, 1);
    bool right = text == o.answer;
    std::vector<double> all_ms = in_ms(figures(contenders[w], &Answer::ttft_ns));
    double ms = median(all_ms);
    int64_t predicted = predicted_ttft_ns(way.plan, *answer.variant, {n, m, way_rate});
    int64_t recomputed = recomputed_layers(*answer.variant);
    fmt::print("{:<14} {:<14} {:<6} {:>7.2f} ms {:>10} {:>8.2f}x {:>11}  {}\n", way.name, text,
               o.answer.empty() ? ""
               : right          ? "right"
                                : "WRONG",
               ms, predicted > 0 ? fmt::format("{:.2f} ms", static_cast<double>(predicted) / 1e6) : "-",
               base / ms, format_bytes(answer.bytes_loaded), recomputed_text(*answer.variant));
    nlohmann::ordered_json row = {{"way", way.name},
                                  {"text", text},
                                  {"ttft_ms", ms},
                                  {"ttft_ms_all", all_ms},
                                  {"speedup", base / ms},
                                  {"predicted_ttft_ms", static_cast<double>(predicted) / 1e6},
                                  {"bytes_loaded", answer.bytes_loaded},
                                  {"recomputed_layers", recomputed},
                                  {"policy", answer.variant->policy},
                                  {"schedule", answer.variant->scheduler}};
    if (!o.answer.empty()) row["right"] = right;
    out["ways"].push_back(row);
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_ttft(CLI::App& app) {
  auto o = std::make_shared<TtftOptions>();
  CLI::App* cmd = app.add_subcommand("ttft", "one request, several ways, interleaved in one process");
  cmd->add_option("--receiver", o->receiver, "Hugging Face folder")->required();
  cmd->add_option("--plan", o->plans,
                  "NAME=FILE; may be given several times; the full prefill is always there");
  cmd->add_option("--maps", o->maps, "maps of the plans whose cuts are aligned");
  cmd->add_option("--store", o->store, "file:PATH or redis://HOST, holding the sender's entry")->required();
  cmd->add_option("--context", o->context, "text file");
  cmd->add_option("--context-ids", o->context_ids, "JSON list of token ids instead");
  cmd->add_option("--prompt", o->prompt, "the question")->required();
  cmd->add_option("--system", o->chat.system, "system message, for the template");
  add_template_options(*cmd, o->chat, "receiver");
  cmd->add_option("--answer", o->answer, "the right answer, to mark rows by");
  cmd->add_option("--link-rate", o->link_rate, "20MB/s, 8Gb/s");
  cmd->add_option("--link-rtt-ms", o->link_rtt_ms, "round trip")->capture_default_str();
  cmd->add_option("--max-new-tokens", o->max_new_tokens, "of the answer")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  cmd->add_option("--repeats", o->repeats, "the median counts")->capture_default_str();
  cmd->add_option("--dtype", o->dtype, "bf16 or f32")->capture_default_str();
  add_backend_flags(*cmd, o->on);
  add_open_options(*cmd, o->open);
  add_weight_cache_options(*cmd, o->cache);
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_ttft(*o); };
}

}  // namespace ds
