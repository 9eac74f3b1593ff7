// ds-profile fit: the maps of aligned cuts alone, without scoring anything.
#include <memory>

#include "support/clock.h"
#include "support/file.h"
#include "tools/ds-profile/pair.h"
#include "tools/ds-profile/profile.h"

namespace ds {
namespace {

struct FitToolOptions {
  PairOptions pair;
  AlignOptions align;
  std::string out, prompts;
  ChatOptions chat;
  std::vector<std::string> data;
  int64_t truncate = 0, contexts = 0;
  bool json = false, control = false;
};

nlohmann::ordered_json json_of(const MapSet& set, const std::vector<std::string>& left_out, double seconds,
                               int64_t bytes) {
  nlohmann::ordered_json json{{"fingerprint", set.fingerprint()}, {"seconds", seconds}, {"sum_bytes", bytes}};
  json["left_out"] = left_out;
  json["maps"] = nlohmann::ordered_json::array();
  for (const AlignmentMap& m : set.maps)
    json["maps"].push_back({{"layer", m.layer},
                            {"form", map_form_name(m.form)},
                            {"rank", m.rank},
                            {"tokens", m.fit.tokens},
                            {"contexts", m.fit.contexts},
                            {"ridge", m.fit.ridge},
                            {"plain_error", m.fit.plain_error},
                            {"error", m.fit.error}});
  return json;
}

Status run_fit(const FitToolOptions& o) {
  DS_TRY(need_option(o.pair.sender, "--sender", "the model whose hidden states are mapped"));
  DS_TRY(need_option(o.pair.receiver, "--receiver", "the model to whose hidden states they are mapped"));
  DS_ASSIGN(PromptTemplates prompts, read_prompts(o.prompts));
  bool templated = false;
  DS_TRY(through_template(prompts, o.chat, o.pair, templated));
  DS_ASSIGN(DataFiles data, read_data(o.data, prompts));
  DS_ASSIGN(LoadedPair pair, load_pair(o.pair));
  const ModelConfig& config = pair.receiver.model->config();
  int64_t none = 0;
  DS_ASSIGN(auto contexts,
            fit_contexts(data.sets, prompts, *pair.receiver.tokenizer, config, o.truncate, {}, none));
  for (const auto& c : contexts) DS_TRY(check_sender_knows(pair, c, "a context to fit maps on"));
  if (o.contexts > 0 && o.contexts < static_cast<int64_t>(contexts.size()))
    contexts.resize(static_cast<size_t>(o.contexts));
  int64_t tokens = 0;
  for (const auto& c : contexts) tokens += static_cast<int64_t>(c.size());
  FitOptions options{o.align.rank, o.align.fallback == "plain", o.control};
  const int64_t bytes = MapFitter::memory_bytes(config, options);
  fmt::print(stderr, "fitting maps for layers 1 to {} on {} contexts ({} tokens); {} of memory for sums\n",
             config.layers - 1, contexts.size(), format_count(tokens), format_bytes(bytes));
  ProfileWork work;
  work.fit_tokens = tokens;
  work.fit = std::move(contexts);
  DS_ASSIGN(Pace pace, measure_pace(*pair.receiver.backend, *pair.receiver.model, work));
  const double expected = estimate_time(pace, work, config, options).fit_s;
  fmt::print(stderr, "about {} ({})\n", format_duration(expected), basis_of(pace));
  const int64_t begin = now_ns();
  DS_ASSIGN(MapFitter::Fitted fitted, fit_pair(pair, work.fit, options, expected, stop_on_interrupt()));
  MapSet set = maps_of(pair, data.inputs);
  set.maps = o.control ? std::move(fitted.shuffled) : std::move(fitted.maps);
  DS_TRY(set.write(o.out));
  const double seconds = static_cast<double>(now_ns() - begin) / 1e9;
  for (const std::string& why : fitted.left_out) fmt::print(stderr, "plain cut: {}\n", why);
  if (o.json) {
    fmt::print("{}\n", json_of(set, fitted.left_out, seconds, bytes).dump(1));
    return ok_status();
  }
  fmt::print(
      "mean squared distance to the receiver's hidden states, as a share of their variance, held out\n"
      "{:>5}  {:>9}  {:>9}  {:>9}  {:>9}  {:>7}\n",
      "layer", "plain cut", "diagonal", "low-rank", "full", "ridge");
  for (int64_t l = 1; l < config.layers; ++l) {
    const AlignmentMap *full = set.find(l, MapForm::kFull), *low = set.find(l, MapForm::kLowRank),
                       *diagonal = set.find(l, MapForm::kDiagonal);
    if (full == nullptr || low == nullptr || diagonal == nullptr) continue;
    fmt::print("{:>5}  {:>9.4f}  {:>9.4f}  {:>9.4f}  {:>9.4f}  {:>7.0e}\n", l, full->fit.plain_error,
               diagonal->fit.error, low->fit.error, full->fit.error, full->fit.ridge);
  }
  return ok_status();
}

}  // namespace

Action add_fit(CLI::App& app) {
  CLI::App* fit = app.add_subcommand("fit",
                                     "Fit the maps of aligned cuts: they take the sender's hidden states to "
                                     "the receiver's, layer by layer.");
  auto o = std::make_shared<FitToolOptions>();
  add_pair_options(*fit, o->pair);
  add_align_options(*fit, o->align);
  fit->add_option("--data", o->data, "JSON lines with LongBench's fields; only their contexts are read")
      ->required();
  add_prompt_template_options(*fit, o->chat);
  fit->add_option("--prompts", o->prompts, "prompt templates by task; default: context + input");
  fit->add_option("-o,--output", o->out, "file of maps to write (.safetensors)")->required();
  fit->add_option("--contexts", o->contexts, "only the first so many contexts; 0: all")
      ->check(CLI::Range(0, 1 << 30));
  fit->add_option("--truncate", o->truncate,
                  "contexts of more tokens keep their first and last halves of this many")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  fit->add_flag("--shuffled", o->control, "fit to tokens in a wrong order: a control, worth nothing");
  fit->add_flag("--json", o->json, "print the statistics as JSON");
  fit->footer(
      "Sums over tokens are kept in f64: 32 d^2 bytes for each layer (512 KiB for d = 128, 537 MB for d = "
      "4,096). One\n"
      "context of five chooses the ridge.\n\n"
      "Example:\n  ds-profile fit --sender S/ --receiver R/ --data hotpotqa.jsonl -o pair.maps.safetensors");
  return [o] { return run_fit(*o); };
}

}  // namespace ds
