// ds-profile fit: the maps of aligned cuts alone, without scoring anything.
#include <cmath>
#include <memory>
#include <tuple>

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
  std::vector<std::string> data, forms;
  int64_t truncate = 0, contexts = 0;
  bool json = false, control = false;
};

struct Outcome {
  MapSet set;
  std::vector<std::string> left_out, limits;
  double seconds = 0;
  int64_t memory_bytes = 0;
};

nlohmann::ordered_json json_of(const FitToolOptions& o, const Outcome& done) {
  auto entry = [](int64_t layer, MapForm form, int64_t rank, const MapFit& fit) -> nlohmann::ordered_json {
    return {{"layer", layer},
            {"form", map_form_name(form)},
            {"rank", rank},
            {"tokens", fit.tokens},
            {"contexts", fit.contexts},
            {"massive_tokens", fit.massive_tokens},
            {"ridge", fit.ridge},
            {"plain_error", fit.plain_error},
            {"error", fit.error},
            {"gain_stderr", fit.gain_stderr},
            {"plain_ordinary_error", fit.plain_ordinary_error},
            {"ordinary_error", fit.ordinary_error}};
  };
  nlohmann::ordered_json json{{"fingerprint", done.set.fingerprint()},
                              {"seconds", done.seconds},
                              {"memory_bytes", done.memory_bytes},
                              {"left_out", done.left_out},
                              {"limits", done.limits}};
  if (o.control) json["shuffled"] = shuffled_path_for(o.out);
  json["maps"] = json["plain"] = nlohmann::ordered_json::array();
  for (const AlignmentMap& m : done.set.maps) json["maps"].push_back(entry(m.layer, m.form, m.rank, m.fit));
  for (const PlainLayer& p : done.set.plain) json["plain"].push_back(entry(p.layer, p.form, 0, p.fit));
  return json;
}

void print_table(const MapSet& set) {
  struct Line {
    int64_t layer;
    MapForm form;
    const MapFit* fit;
    bool plain;
  };
  std::vector<Line> lines;
  for (const AlignmentMap& m : set.maps) lines.push_back({m.layer, m.form, &m.fit, false});
  for (const PlainLayer& p : set.plain) lines.push_back({p.layer, p.form, &p.fit, true});
  if (lines.empty()) return;
  std::sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) {
    return std::tie(a.layer, a.form) < std::tie(b.layer, b.form);
  });
  fmt::print(
      "squared distance to the receiver's hidden states, each token's beside its own norm, as a share of "
      "their "
      "variance,\non contexts that were held out; ordinary: without massive tokens, of more than {:g} times "
      "the "
      "median norm\n"
      "{:>5}  {:<8}  {:>9}  {:>9}  {:>16}  {:>7}  {:>19}  {:>7}\n",
      kMassiveNorm, "layer", "form", "plain cut", "with map", "gain", "ridge", "ordinary: cut, map",
      "massive");
  for (const Line& l : lines)
    fmt::print("{:>5}  {:<8}  {:>9.4f}  {:>9.4f}  {:>7.4f} ± {:<6.4f}  {:>7}  {:>9.4f}, {:>8.4f}  {:>7}{}\n",
               l.layer, map_form_name(l.form), l.fit->plain_error, l.fit->error,
               l.fit->plain_error - l.fit->error, l.fit->gain_stderr,
               std::isnan(l.fit->ridge) ? "no W" : fmt::format("{:.0e}", l.fit->ridge),
               l.fit->plain_ordinary_error, l.fit->ordinary_error, l.fit->massive_tokens,
               l.plain ? "  stays plain" : "");
  fmt::print("{} of {} maps are kept\n", set.maps.size(), lines.size());
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
  FitOptions options{{}, o.align.rank, o.align.fallback == "plain", o.control};
  DS_ASSIGN(options.forms, forms_named(o.forms));
  int64_t tokens = 0, longest = 0;
  for (const auto& c : contexts) {
    tokens += static_cast<int64_t>(c.size());
    longest = std::max(longest, static_cast<int64_t>(c.size()));
  }
  Outcome done;
  const auto count = static_cast<int64_t>(contexts.size());
  done.memory_bytes = MapFitter::memory_bytes(config, options, count, longest);
  fmt::print(
      stderr,
      "fitting {} maps for layers 1 to {} on {} contexts ({} tokens); {} of memory beside the models\n",
      fmt::join(o.forms, ", "), config.layers - 1, count, format_count(tokens),
      format_bytes(done.memory_bytes));
  ProfileWork work;
  work.fit_tokens = tokens;
  work.fit = std::move(contexts);
  DS_ASSIGN(Pace pace, measure_pace(*pair.receiver.backend, *pair.receiver.model, work, options.forms));
  const double expected = estimate_time(pace, work, config, options).fit_s;
  fmt::print(stderr, "about {} ({})\n", format_duration(expected), basis_of(pace));
  const int64_t begin = now_ns();
  DS_ASSIGN(MapFitter::Fitted fitted, fit_pair(pair, work.fit, options, expected, stop_on_interrupt()));
  done.set = maps_of(pair, data.inputs);
  if (o.control) {
    MapSet control = done.set;
    control.maps = std::move(fitted.shuffled);
    DS_TRY(control.write(shuffled_path_for(o.out)));
  }
  done.set.maps = std::move(fitted.maps);
  done.set.plain = std::move(fitted.plain);
  DS_TRY(done.set.write(o.out));
  done.seconds = static_cast<double>(now_ns() - begin) / 1e9;
  done.left_out = std::move(fitted.left_out);
  done.limits = std::move(fitted.limits);
  say_unmapped(done.left_out, done.set.plain, done.limits);
  if (o.json) {
    fmt::print("{}\n", json_of(o, done).dump(1));
  } else {
    print_table(done.set);
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
  fit->add_option("--align", o->forms, "forms of maps to fit: full, low-rank, diagonal")
      ->default_val(std::vector<std::string>{"full"});
  fit->add_flag("--shuffled", o->control,
                "also maps fitted to tokens in a wrong order, a control: beside OUTPUT, its extension "
                ".shuffled.safetensors, where ds-profile --maps looks for them");
  fit->add_flag("--json", o->json, "print the statistics as JSON");
  fit->footer(
      "Sums over tokens are kept in f64: 32 d^2 bytes for each layer (512 KiB for d = 128, 537 MB for d = "
      "4,096). One\n"
      "context of five is held out: it chooses each map's ridge, and whether the layer has a map at all. "
      "Where "
      "the best\n"
      "map is no better than the plain cut by more than the standard error, it is not written.\n\n"
      "Examples:\n"
      "  ds-profile fit --sender S/ --receiver R/ --data hotpotqa.jsonl -o pair.maps.safetensors\n"
      "  ds-profile fit --sender S/ --receiver R/ --data hotpotqa.jsonl --align full low-rank --shuffled -o "
      "pair.maps.safetensors");
  return [o] { return run_fit(*o); };
}

}  // namespace ds
