// What a run will do: data rendered and encoded, grouped by context, and counted.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>

#include "profiler/profile_run.h"
#include "runtime/model/joined_text.h"

namespace ds {
namespace {

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

/// Contexts in the order of the files: which others they are compared with depends on nothing but these.
void draw_others(std::vector<ProfileContext>& contexts) {
  const size_t count = contexts.size();
  if (count < 2) return;
  auto file = [&](size_t i) {
    const std::string& source = contexts[i].origins.front().source;
    return std::string_view(source).substr(0, source.find(':'));
  };
  for (size_t first = 0, end = 0; first < count; first = end) {
    while (end < count && file(end) == file(first)) ++end;
    for (size_t i = first; i < end; ++i) {
      const size_t next = end - first > 1 ? first + (i + 1 - first) % (end - first) : end % count;
      const std::vector<int32_t>& from = contexts[next].tokens;
      contexts[i].other.resize(contexts[i].tokens.size());
      for (size_t t = 0; t < contexts[i].other.size(); ++t) contexts[i].other[t] = from[t % from.size()];
    }
  }
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
  draw_others(work.contexts);
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

}  // namespace ds
