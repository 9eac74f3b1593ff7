#include "profiler/profile_run.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "profiler/aggregate.h"
#include "runtime/model/identity.h"
#include "runtime/model/joined_text.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"
#include "support/schema.h"
#include "support/student.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

std::string record_path(const std::string& folder, int64_t index, std::string_view extension) {
  return fmt::format("{}/context-{:06}.{}", folder, index, extension);
}

Result<ContextRecord> read_record(const std::string& path, size_t ways) {
  DS_ASSIGN(std::string text, read_text_file(path));
  return parse_record(text, path, ways);
}

Json identity_json(const RunIdentity& run) {
  auto model = [](const ModelIdentity& m) {
    return Json{{"name", m.name}, {"fingerprint", model_fingerprint(m)}};
  };
  const WayOptions& w = run.options.ways;
  Json json;
  json["schema"] = "droidspeak.profile-run";
  json["version"] = 1;
  json["sender"] = model(run.sender);
  json["receiver"] = model(run.receiver);
  json["layers"] = run.layers;
  json["dtype"] = run.dtype;
  json["backend"] = run.backend;
  json["data"] = Json::array();
  for (const auto& d : run.data) json["data"].push_back({{"name", d.name}, {"sha256", d.sha256}});
  json["template"] = {{"name", run.prompts.name}, {"sha256", run.prompts.sha256}};
  json["granularity"] = w.granularity;
  json["scattered"] = w.scattered;
  json["seed"] = w.seed;
  json["select"] = w.select_shares;
  json["restore"] = w.restore;
  json["reuse_only"] = w.reuse_only;
  json["sender_alone"] = w.sender_alone;
  json["align"] = Json::array();
  for (MapForm form : w.align) json["align"].push_back(map_form_name(form));
  json["shuffled"] = w.shuffled;
  json["other_pair"] = w.other_pair;
  json["heuristics"] = w.heuristics;
  json["no_context"] = w.no_context;
  json["only"] = Json::array();
  for (const LayerRange& range : w.only) json["only"].push_back(format_layers(range));
  json["fit_share"] = run.options.fit_share;
  json["most_contexts"] = run.options.most_contexts;
  json["fit_data"] = Json::array();
  for (const auto& d : run.fit_data) json["fit_data"].push_back({{"name", d.name}, {"sha256", d.sha256}});
  json["rank"] = run.options.fit.rank;
  json["plain_where_unfit"] = run.options.fit.plain;
  json["maps"] = run.maps;
  json["other_maps"] = run.other_maps;
  json["truncate"] = run.options.truncate;
  json["race"] = run.options.race ? Json(*run.options.race) : Json(nullptr);
  json["race_round"] = run.options.race_round;
  json["contexts"] = run.contexts;
  // Only where scores depend on it, so that other runs stay those that they were.
  if (!run.words.empty()) json["words"] = run.words;
  return json;
}

/// Fields in which two runs differ that must not.
std::vector<std::string> differences(const nlohmann::json& a, const nlohmann::json& b,
                                     std::initializer_list<std::string_view> may_differ) {
  std::vector<std::string> found;
  for (const auto& [key, value] : a.items()) {
    if (std::find(may_differ.begin(), may_differ.end(), key) != may_differ.end()) continue;
    auto at = b.find(key);
    // Folders may be renamed; what a model or a file is, its hash says.
    auto content = [](const nlohmann::json& v) {
      nlohmann::json copy = v;
      auto strip = [](nlohmann::json& o) {
        if (o.is_object()) o.erase("name");
      };
      strip(copy);
      if (copy.is_array())
        for (auto& o : copy) strip(o);
      return copy;
    };
    if (at == b.end() || content(*at) != content(value))
      found.push_back(
          fmt::format("{} ({} there, {} here)", key, at == b.end() ? "nothing" : at->dump(), value.dump()));
  }
  return found;
}

/// Takes the middle out of a context of `n` tokens, which `ids` begin with, so that `truncate` are left. As
/// LongBench does: what matters stands at the ends more often.
void truncate_context(std::vector<int32_t>& ids, size_t n, int64_t truncate) {
  const auto most = static_cast<size_t>(truncate);
  if (truncate <= 0 || n <= most) return;
  auto at = [&](size_t i) { return ids.begin() + static_cast<ptrdiff_t>(std::min(i, ids.size())); };
  ids.erase(at(most / 2), at(n - (most - most / 2)));
}

Result<JoinedText> read_prompt(const Prompt& text, const Tokenizer& tokenizer, int64_t truncate) {
  DS_ASSIGN(JoinedText joined, join_text(tokenizer, text.context, text.suffix, !text.templated));
  const size_t n = joined.entry.size();
  truncate_context(joined.ids, n, truncate);
  truncate_context(joined.entry, n, truncate);
  joined.shared = shared_tokens(joined.entry, joined.ids);
  return joined;
}

struct AnswerIds {
  std::vector<int32_t> ids;
  bool merges = false;  // the prompt's last token is another one once the answer follows
};

/// The ids of `answer` behind the text `prompt`. Where they are not those of the whole text's end, for a
/// token lies across, they are its own.
Result<AnswerIds> read_answer(const std::string& prompt, const std::string& answer,
                              const Tokenizer& tokenizer) {
  DS_ASSIGN(std::vector<int32_t> before, tokenizer.encode(prompt, false));
  DS_ASSIGN(std::vector<int32_t> whole, tokenizer.encode(prompt + answer, false));
  if (whole.size() < before.size() || !std::equal(before.begin(), before.end(), whole.begin())) {
    DS_ASSIGN(std::vector<int32_t> alone, tokenizer.encode(answer, false));
    return AnswerIds{std::move(alone), true};
  }
  whole.erase(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(before.size()));
  return AnswerIds{std::move(whole)};
}

/// The whole text of an item whose context is empty.
Result<std::vector<int32_t>> read_alone(const PromptTemplates& prompts, const PromptTemplate& prompt,
                                        const Item& item, const Tokenizer& tokenizer) {
  Item without = item;
  without.context.clear();
  DS_ASSIGN(Prompt text, prompts.render(prompt, without));
  return text_ids(tokenizer, text.context + text.suffix, !text.templated);
}

/// Sums over contexts, and what they need.
void count_work(ProfileWork& work, const ModelConfig& config) {
  const SharedRuns runs = shared_runs(work.ways, std::vector<bool>(work.ways.size(), true), config.layers);
  const auto n = static_cast<int64_t>(work.contexts.size());
  work.layer_runs = n * runs.layer_runs(config.layers);
  work.naive_layer_runs = n * naive_layer_runs(work.ways, config.layers);
  work.tokens = work.questions = work.fit_tokens = 0;
  work.limits.context = work.limits.question = work.limits.alone = 0;
  for (const auto& c : work.fit) work.fit_tokens += static_cast<int64_t>(c.size());
  for (const ProfileContext& c : work.contexts) {
    work.tokens += static_cast<int64_t>(c.tokens.size());
    work.questions += static_cast<int64_t>(c.questions.size());
    work.limits.context = std::max(work.limits.context, static_cast<int64_t>(c.tokens.size()));
    for (const Question& q : c.questions) {
      const int64_t answer = std::max(
          std::min<int64_t>(static_cast<int64_t>(q.reference.size()), kDivergenceTokens), q.max_new_tokens);
      work.limits.question = std::max(work.limits.question, static_cast<int64_t>(q.suffix.size()) + answer);
      if (!q.alone.empty())
        work.limits.alone = std::max(work.limits.alone, static_cast<int64_t>(q.alone.size()) + answer);
    }
  }
}

/// What all questions of a context leave of its entry; `tokens` and suffixes are made by it.
Status share_context(ProfileContext& context) {
  size_t shared = context.entry.size();
  for (const Question& q : context.questions)
    shared = std::min(shared, static_cast<size_t>(shared_tokens(context.entry, q.suffix)));
  if (shared == 0)
    return error(Code::kInvalidArgument, "{}: {}; expected at least one that can be reused",
                 context.origins[0].item->where,
                 context.entry.empty() ? "the context has no tokens"
                                       : "no token of the context is one of the text with a question, too");
  context.tokens.assign(context.entry.begin(), context.entry.begin() + static_cast<ptrdiff_t>(shared));
  for (Question& q : context.questions)
    q.suffix.erase(q.suffix.begin(), q.suffix.begin() + static_cast<ptrdiff_t>(shared));
  return ok_status();
}

/// Of a run's ways what a budget chooses.
Status read_chosen(const JsonObject& root, int64_t layers, WayOptions& w) {
  DS_ASSIGN(w.granularity, root.integer("granularity", 1, layers));
  DS_ASSIGN(w.scattered, root.integer("scattered", 0, INT32_MAX));
  DS_ASSIGN(const nlohmann::json* shares, root.array("select"));
  w.select_shares.clear();
  for (const auto& s : *shares)
    if (s.is_number()) w.select_shares.push_back(s.get<double>());
  DS_ASSIGN(w.reuse_only, root.boolean("reuse_only"));
  DS_ASSIGN(w.sender_alone, root.boolean("sender_alone"));
  if (root.has("shuffled")) {
    DS_ASSIGN(w.shuffled, root.boolean("shuffled"));
  }
  return ok_status();
}

/// What aligned ways a run has.
Status read_align(const JsonObject& root, WayOptions& w) {
  if (!root.has("align")) return ok_status();  // of a run from before there were any
  DS_ASSIGN(const nlohmann::json* forms, root.array("align"));
  for (const auto& form : *forms) {
    DS_ASSIGN(MapForm named,
              parse_map_form(form.is_string() ? form.get<std::string>() : "", root.at("align")));
    w.align.push_back(named);
  }
  DS_ASSIGN(w.shuffled, root.boolean("shuffled"));
  DS_ASSIGN(w.other_pair, root.string("other_pair"));
  DS_ASSIGN(const nlohmann::json* only, root.array("only"));
  for (const auto& range : *only) {
    DS_ASSIGN(LayerRange layers, parse_layers(range.is_string() ? range.get<std::string>() : "", INT32_MAX));
    w.only.push_back(layers);
  }
  return ok_status();
}

Result<ContextRecord> work_on(const ProfileWork& work, const Tokenizer& tokenizer, ProfileEngine& engine,
                              int64_t index, const std::vector<bool>& active) {
  const ProfileContext& context = work.contexts[static_cast<size_t>(index)];
  DS_ASSIGN(ContextAnswers answers, engine.run(context.tokens, context.questions, active));
  ContextRecord record{index, static_cast<int64_t>(context.tokens.size()), answers.k_deviation, {}};
  for (size_t q = 0; q < context.questions.size(); ++q) {
    const ProfileContext::Origin& origin = context.origins[q];
    ItemRecord item{origin.source,       origin.task,          origin.item->input,
                    origin.item->metric, origin.item->answers, {}};
    item.ways.resize(work.ways.size());
    for (size_t w = 0; w < work.ways.size(); ++w) {
      if (answers.ways[w].empty()) continue;
      const WayAnswer& a = answers.ways[w][q];
      WayResult& r = item.ways[w];
      DS_ASSIGN(std::string text, tokenizer.decode(a.tokens, true));
      r.text = std::string(cut_answer(*origin.prompt, origin.task, text));
      r.scored = true;
      r.score = score(item.metric, r.text, item.references, {origin.item->classes, work.words.get()});
      r.exact = score(Metric::kExactMatch, r.text, item.references);
      r.divergence = a.divergence;
      r.entropy = a.entropy;
      r.margin = a.margin;
    }
    record.items.push_back(std::move(item));
  }
  return record;
}

}  // namespace

Result<ProfileWork> plan_work(const std::vector<Dataset>& data, const PromptTemplates& prompts,
                              const Tokenizer& tokenizer, const ModelConfig& config,
                              const ProfileOptions& options) {
  ProfileWork work;
  DS_ASSIGN(work.ways, all_ways(config.layers, options.ways));
  std::map<std::string, size_t> by_text;
  for (const Dataset& set : data) {
    for (const Item& item : set.items) {
      DS_ASSIGN(const PromptTemplate* prompt, prompts.find(item.task));
      DS_ASSIGN(Prompt text, prompts.render(*prompt, item));
      auto [at, fresh] = by_text.try_emplace(text.context, work.contexts.size());
      if (fresh) {
        work.contexts.emplace_back();
      }
      ProfileContext& context = work.contexts[at->second];
      Question question;
      auto joined = read_prompt(text, tokenizer, options.truncate);
      if (!joined.ok()) return joined.status().with_context(item.where);
      auto reference = read_answer(text.suffix, reference_text(*prompt, text, item), tokenizer);
      if (!reference.ok()) return reference.status().with_context(item.where);
      context.entry = std::move(joined->entry);
      question.suffix = std::move(joined->ids);  // all of the text, until what is shared is known
      question.reference = std::move(reference->ids);
      question.max_new_tokens = prompt->max_new_tokens;
      ProfileWork::Merged& merged = work.merged[item.task];
      merged.items += reference->merges;
      ++merged.of;
      if (options.ways.no_context) {
        auto alone = read_alone(prompts, *prompt, item, tokenizer);
        if (!alone.ok()) return alone.status().with_context(item.where + ": without its context");
        question.alone = std::move(*alone);
      }
      context.questions.push_back(std::move(question));
      context.origins.push_back({&item, prompt, fmt::format("{}:{}", set.sha256, item.line), item.task});
    }
  }
  for (ProfileContext& context : work.contexts) {
    DS_TRY(share_context(context));
    const auto n = static_cast<int64_t>(context.tokens.size());
    for (size_t q = 0; q < context.questions.size(); ++q) {
      const Question& question = context.questions[q];
      int64_t forced = std::min<int64_t>(static_cast<int64_t>(question.reference.size()), kDivergenceTokens);
      int64_t rows = static_cast<int64_t>(question.suffix.size()) + std::max(forced, question.max_new_tokens);
      if (n + rows > config.max_positions)
        return error(
            Code::kInvalidArgument,
            "{}: {} tokens of context and {} of question and answer do not fit the models' {} positions; "
            "give --truncate {} or shorten it",
            context.origins[q].item->where, n, rows, config.max_positions,
            std::max<int64_t>(config.max_positions - rows, 1));
    }
  }
  // Files are often sorted by kind; a run that is looked at early should have seen some of each.
  std::mt19937_64 random(options.ways.seed);
  for (size_t i = work.contexts.size(); i > 1; --i)
    std::swap(work.contexts[i - 1], work.contexts[random() % i]);
  DS_TRY(keep_contexts(work, config, options));
  return work;
}

Status set_ways(ProfileWork& work, const ModelConfig& config, const WayOptions& options) {
  DS_ASSIGN(work.ways, all_ways(config.layers, options));
  count_work(work, config);
  return ok_status();
}

Status keep_contexts(ProfileWork& work, const ModelConfig& config, const ProfileOptions& options) {
  // Those to fit on stand behind those that are scored, and fit holds them backwards.
  if (options.fit_share > 0)
    for (; !work.fit.empty(); work.fit.pop_back())
      work.contexts.emplace_back().entry = std::move(work.fit.back());
  if (options.most_contexts > 0 && options.most_contexts < static_cast<int64_t>(work.contexts.size()))
    work.contexts.resize(static_cast<size_t>(options.most_contexts));
  auto aside = static_cast<size_t>(std::ceil(options.fit_share * static_cast<double>(work.contexts.size())));
  if (aside >= work.contexts.size())
    return error(Code::kInfeasible,
                 "{} of {} contexts are set aside to fit maps on; give more data, a smaller --fit-share, "
                 "--fit-data, or "
                 "--no-align",
                 aside, work.contexts.size());
  for (; aside > 0; --aside) {
    work.fit.push_back(std::move(work.contexts.back().entry));
    work.contexts.pop_back();
  }
  count_work(work, config);
  return ok_status();
}

Result<std::vector<std::vector<int32_t>>> fit_contexts(const std::vector<Dataset>& data,
                                                       const PromptTemplates& prompts,
                                                       const Tokenizer& tokenizer, const ModelConfig& config,
                                                       int64_t truncate,
                                                       const std::vector<ProfileContext>& scored,
                                                       int64_t& left_out) {
  std::set<std::vector<int32_t>> seen;
  for (const ProfileContext& c : scored) seen.insert(c.entry);
  const std::set<std::vector<int32_t>> of_scored = seen;
  std::set<std::vector<int32_t>> counted;
  std::vector<std::vector<int32_t>> contexts;
  for (const Dataset& set : data) {
    for (const Item& item : set.items) {
      DS_ASSIGN(const PromptTemplate* prompt, prompts.find(item.task));
      DS_ASSIGN(Prompt text, prompts.render(*prompt, item));
      auto ids = text_ids(tokenizer, text.context, !text.templated);
      if (!ids.ok()) return ids.status().with_context(item.where);
      truncate_context(*ids, ids->size(), truncate);
      if (ids->empty() || static_cast<int64_t>(ids->size()) > config.max_positions)
        return error(Code::kInvalidArgument,
                     "{}: a context of {} tokens to fit on; expected 1 to {}: give --truncate", item.where,
                     ids->size(), config.max_positions);
      if (of_scored.contains(*ids)) left_out += counted.insert(*ids).second;
      if (seen.insert(*ids).second) contexts.push_back(std::move(*ids));
    }
  }
  return contexts;
}

ProfileEngine::Maps RunMaps::by_control(const std::string& other_pair) const {
  ProfileEngine::Maps maps{{"", &own}, {kShuffled, &shuffled}};
  if (given != nullptr) maps["pair " + other_pair] = given;
  return maps;
}

Result<RunMaps> run_maps(const std::string& folder, bool shuffled, const std::atomic<bool>& stop,
                         const std::function<Result<RunMaps>()>& fit) {
  const std::string path = folder + "/maps.safetensors", control = folder + "/shuffled.safetensors";
  while (!stop.load()) {
    FileLock lock;
    DS_ASSIGN(bool mine, lock.take(folder + "/maps.lock"));
    if (!mine) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    RunMaps maps;
    if (!file_exists(path)) {
      DS_ASSIGN(maps, fit());
      auto kept = [&](Status status) {
        return status.with_context("keeping the run's maps; the same command goes on from there");
      };
      if (shuffled) DS_TRY(kept(maps.shuffled.write(control)));
      DS_TRY(kept(maps.own.write(path)));  // last: where it is, all are
      return maps;
    }
    DS_ASSIGN(maps.own, MapSet::read(path));
    if (shuffled) {
      DS_ASSIGN(maps.shuffled, MapSet::read(control));
    }
    return maps;
  }
  return error(Code::kInfeasible,
               "stopped before the maps were fitted; the same command begins with them again");
}

std::vector<Way> available_ways(const std::vector<Way>& ways, const MapSet& own) {
  std::vector<Way> available;
  for (const Way& way : ways) {
    bool all = true;
    for (int64_t l : way.sent_layers()) all = all && own.find(l, way.map) != nullptr;
    if (all || way.map == MapForm::kNone) available.push_back(way);
  }
  return available;
}

Status open_run(const std::string& folder, const RunIdentity& identity) {
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) return error(Code::kIo, "cannot make the folder '{}': {}", folder, failure.message());
  Json json = identity_json(identity);
  const std::string path = folder + "/run.json";
  if (!file_exists(path)) return write_file_atomically(path, json.dump(1) + "\n");
  auto found = read_json_file(path);
  if (!found.ok())
    return found.status().with_context(
        "this run cannot be gone on with; remove its folder or give another --state");
  DS_ASSIGN(JsonObject root, JsonObject::make(*found, path));
  DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
  std::vector<std::string> differ = differences(nlohmann::json(json), *found, {});
  if (differ.empty()) return ok_status();
  return error(
      Code::kMismatch,
      "'{}' holds another run; it differs in {}; give another --state, or remove the folder to begin anew",
      folder, fmt::join(differ, ", "));
}

Result<std::optional<ProfileOptions>> options_of_run(const std::string& folder, const ProfileOptions& asked) {
  const std::string path = folder + "/run.json";
  if (!file_exists(path)) return std::optional<ProfileOptions>();
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
  ProfileOptions options = asked;
  DS_ASSIGN(int64_t layers, root.integer("layers", 1, 100'000));
  DS_TRY(read_chosen(root, layers, options.ways));
  DS_ASSIGN(options.most_contexts, root.integer_or("most_contexts", 0, INT32_MAX, 0));
  return std::optional(options);
}

Result<RunRecords> read_records(const std::string& folder, size_t ways) {
  RunRecords out;
  std::vector<std::string> paths;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure))
    if (entry.path().filename().string().starts_with("context-") && entry.path().extension() == ".jsonl")
      paths.push_back(entry.path().string());
  if (failure) return error(Code::kNotFound, "cannot read the folder '{}': {}", folder, failure.message());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    auto record = read_record(path, ways);
    if (record.ok()) {
      out.records.push_back(std::move(*record));
    } else {
      out.damaged.push_back(record.status().message());
    }
  }
  std::sort(out.records.begin(), out.records.end(),
            [](const ContextRecord& a, const ContextRecord& b) { return a.index < b.index; });
  return out;
}

std::vector<bool> racing_ways(const std::vector<Way>& ways, int64_t layers,
                              const std::vector<ContextRecord>& records, const ProfileOptions& o,
                              int64_t index) {
  std::vector<bool> active(ways.size(), true);
  if (!o.race) return active;
  std::vector<size_t> groups;
  for (size_t i = 0; i < ways.size(); ++i)
    if (ways[i].kind == WayKind::kGroup) groups.push_back(i);
  // Every comparison of every look may err; all together no more often than 1 - confidence.
  const auto pairs = static_cast<double>(groups.size() * groups.size());
  const Scores scores(ways, records);
  for (int64_t end = o.race_round; end <= index; end += o.race_round) {
    std::vector<bool> seen(records.size());
    int64_t count = 0;
    for (size_t i = 0; i < records.size(); ++i) {
      seen[i] = records[i].index < end;
      count += seen[i];
    }
    // Looks have shares of the risk that halve, so that the total does not depend on how many follow.
    auto look = static_cast<double>(end / o.race_round);
    double risk = (1 - *o.race) / pairs * std::pow(0.5, look);
    double t = student_quantile(1 - risk, std::max<int64_t>(count - 1, 1));
    std::vector<bool> before = active;
    for (size_t g : groups) {
      if (!before[g]) continue;
      for (size_t h : groups) {
        if (h == g || !before[h] || ways[h].recomputed(layers) > ways[g].recomputed(layers)) continue;
        // Groups with other maps are other lists: one does not beat the other's.
        if (map_key(ways[h]) != map_key(ways[g])) continue;
        Mean d = scores.difference(h, g, Scores::score, {&seen});
        // Contexts that all agree have no spread to judge by: one more that says the opposite is thinkable.
        double floor = 100.0 / static_cast<double>(count * count);
        if (d.value - t * std::max(d.standard_error, floor) > 0) {
          active[g] = false;
          break;
        }
      }
    }
  }
  return active;
}

Status run_contexts(const std::string& folder, const ProfileWork& work, const ProfileOptions& options,
                    const Tokenizer& tokenizer, int64_t layers, ProfileEngine& engine,
                    const std::atomic<bool>& stop, const std::function<void(const RunProgress&)>& progress) {
  const auto total = static_cast<int64_t>(work.contexts.size());
  std::set<int64_t> done;
  DS_ASSIGN(RunRecords before, read_records(folder, work.ways.size()));
  for (const ContextRecord& r : before.records)
    if (r.index < total) done.insert(r.index);
  auto interrupted = [&]() -> Status {
    return error(
        Code::kInfeasible,
        "stopped after {} of {} contexts; they are kept in '{}', and the same command goes on from there",
        done.size(), total, folder);
  };
  auto weight = [&](int64_t index) {
    return work.seconds.empty() ? 1.0 : work.seconds[static_cast<size_t>(index)];
  };
  double all = 0;
  for (int64_t index = 0; index < total; ++index) all += weight(index);
  auto report = [&] {
    double sum = 0;
    for (int64_t index : done) sum += weight(index);
    progress({static_cast<int64_t>(done.size()), total, sum / all});
  };
  std::vector<bool> active(work.ways.size(), true);
  int64_t decided = -1;  // the round that `active` is for
  while (static_cast<int64_t>(done.size()) < total) {
    bool worked = false;
    for (int64_t index = 0; index < total; ++index) {
      if (stop.load()) return interrupted();
      report();
      if (done.contains(index)) continue;
      const std::string path = record_path(folder, index, "jsonl");
      if (read_record(path, work.ways.size()).ok()) {
        done.insert(index);  // by another process, meanwhile
        continue;
      }
      if (int64_t round = options.race ? index / options.race_round : 0; options.race && round != decided) {
        // All of the earlier rounds must be there, wherever they were made.
        bool complete = true;
        for (int64_t i = 0; i < round * options.race_round; ++i) complete = complete && done.contains(i);
        if (!complete) break;
        DS_ASSIGN(RunRecords seen, read_records(folder, work.ways.size()));
        active = racing_ways(work.ways, layers, seen.records, options, round * options.race_round);
        decided = round;
      }
      FileLock lock;
      DS_ASSIGN(bool mine, lock.take(record_path(folder, index, "lock")));
      if (!mine) continue;
      if (!read_record(path, work.ways.size()).ok()) {
        DS_ASSIGN(ContextRecord record, work_on(work, tokenizer, engine, index, active));
        DS_TRY(
            write_file_atomically(path, record_text(record), {.owner_only = true})
                .with_context(fmt::format("{} contexts are kept in '{}'; the same command goes on from there",
                                          done.size(), folder)));
      }
      done.insert(index);
      worked = true;
    }
    if (!worked && static_cast<int64_t>(done.size()) < total)
      std::this_thread::sleep_for(std::chrono::milliseconds(200));  // others work on what is left
  }
  report();
  return ok_status();
}

Result<Quality> profile_of_runs(const std::vector<std::string>& folders, const Quality* other_pair) {
  Quality q;
  nlohmann::json first;
  std::vector<Way> ways;
  std::vector<ContextRecord> all;
  std::set<std::string> sources;
  ProfileOptions options;
  int64_t layers = 0;
  for (const std::string& folder : folders) {
    const std::string path = folder + "/run.json";
    DS_ASSIGN(nlohmann::json json, read_json_file(path));
    DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
    DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
    if (first.is_null()) {
      first = json;
      DS_ASSIGN(layers, root.integer("layers", 1, 100'000));
      WayOptions& w = options.ways;
      DS_TRY(read_chosen(root, layers, w));
      DS_ASSIGN(w.heuristics, root.boolean_or("heuristics", false));
      DS_ASSIGN(w.no_context, root.boolean_or("no_context", false));
      DS_ASSIGN(int64_t seed, root.integer("seed", 0, INT64_MAX));
      w.seed = static_cast<uint64_t>(seed);
      DS_ASSIGN(w.restore, root.boolean("restore"));
      if (root.has("race")) {
        DS_ASSIGN(options.race, root.number("race", 0.5, 1));
      }
      DS_ASSIGN(options.race_round, root.integer("race_round", 1, INT32_MAX));
      DS_TRY(read_align(root, w));
      DS_ASSIGN(ways, all_ways(layers, w));
      if (!w.align.empty()) {
        DS_ASSIGN(MapSet maps, MapSet::read(folder + "/maps.safetensors"));
        q.maps = {"maps.safetensors", maps.fingerprint()};
        ways = available_ways(ways, maps);
      }
      DS_ASSIGN(JsonObject sender, root.object("sender"));
      DS_ASSIGN(q.sender_name, sender.string("name"));
      DS_ASSIGN(q.sender_fingerprint, sender.string("fingerprint"));
      DS_ASSIGN(JsonObject receiver, root.object("receiver"));
      DS_ASSIGN(q.receiver_name, receiver.string("name"));
      DS_ASSIGN(q.receiver_fingerprint, receiver.string("fingerprint"));
      DS_ASSIGN(q.dtype, root.string("dtype"));
      DS_ASSIGN(JsonObject prompts, root.object("template"));
      DS_ASSIGN(q.prompt_template.name, prompts.string("name"));
      DS_ASSIGN(q.prompt_template.sha256, prompts.string("sha256"));
      q.layers = layers;
      q.granularity = w.granularity;
      q.seed = seed;
    } else if (auto differ = differences(
                   json, first,
                   {"data", "contexts", "backend", "fit_data", "fit_share", "most_contexts", "maps"});
               !differ.empty()) {
      return error(Code::kMismatch, "'{}' cannot be merged with '{}': they differ in {}", folder, folders[0],
                   fmt::join(differ, ", "));
    } else if (options.race) {
      return error(Code::kInvalidArgument,
                   "'{}': a run that raced dropped groups by its own data; merge runs made without --race",
                   folder);
    }
    if (!options.ways.align.empty() && &folder != &folders[0]) {
      DS_ASSIGN(MapSet maps, MapSet::read(folder + "/maps.safetensors"));
      if (maps.fingerprint() != q.maps.fingerprint)
        return error(Code::kMismatch,
                     "'{}' cannot be merged with '{}': their maps differ; fit them once (ds-profile fit) and "
                     "give both "
                     "runs --maps",
                     folder, folders[0]);
    }
    DS_ASSIGN(const nlohmann::json* data, root.array("data"));
    for (const auto& d : *data) {
      DS_ASSIGN(JsonObject o, JsonObject::make(d, path + ": data"));
      Quality::Input input;
      DS_ASSIGN(input.name, o.string("name"));
      DS_ASSIGN(input.sha256, o.string("sha256"));
      if (std::find(q.data.begin(), q.data.end(), input) == q.data.end()) q.data.push_back(std::move(input));
    }
    DS_ASSIGN(int64_t contexts, root.integer("contexts", 1, INT32_MAX));
    DS_ASSIGN(RunRecords found, read_records(folder, ways.size()));
    if (!found.damaged.empty())
      return error(Code::kCorrupt, "{}; run ds-profile again with the same options to make it anew",
                   found.damaged[0]);
    if (static_cast<int64_t>(found.records.size()) != contexts)
      return error(Code::kInfeasible,
                   "'{}' has {} of {} contexts; run ds-profile again with the same options to finish it",
                   folder, found.records.size(), contexts);
    const auto offset = static_cast<int64_t>(all.size());
    for (ContextRecord& r : found.records) {
      r.index += offset;
      std::erase_if(r.items, [&](const ItemRecord& item) { return !sources.insert(item.source).second; });
      if (!r.items.empty()) all.push_back(std::move(r));
    }
  }
  AggregateOptions a;
  a.layers = layers;
  a.seed = options.ways.seed;
  a.other_pair = other_pair;
  SharedRuns runs = shared_runs(ways, std::vector<bool>(ways.size(), true), layers);
  const auto contexts = static_cast<int64_t>(all.size());
  if (options.race) {
    std::vector<bool> active = racing_ways(ways, layers, all, options, contexts);
    a.dropped.resize(ways.size());
    for (size_t i = 0; i < ways.size(); ++i) a.dropped[i] = !active[i];
  }
  int64_t answers = 0;
  for (const ContextRecord& r : all)
    for (const ItemRecord& item : r.items)
      answers +=
          std::count_if(item.ways.begin(), item.ways.end(), [](const WayResult& w) { return w.scored; });
  aggregate(ways, std::move(all), a, q);
  q.cost = {{"answers", answers},
            {"layer_runs", contexts * runs.layer_runs(layers)},
            {"layer_runs_each_way_by_itself", contexts * naive_layer_runs(ways, layers)}};
  return q;
}

}  // namespace ds
