#include "profiler/engine.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "plans/plan.h"
#include "profiler/engine_internal.h"
#include "support/brief_team.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr size_t kSenderSet = 0;
int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

std::vector<MapKey> restored_with(const std::vector<Way>& ways) {
  std::set<MapKey> kinds;
  for (const Way& w : ways)
    if (w.restores()) kinds.insert(map_key(w));
  return {kinds.begin(), kinds.end()};
}

int64_t rows_at_once(const ModelConfig& config, DType dtype, const ProfileEngineLimits& limits) {
  // Each step of a batch costs the same few microseconds per layer however many rows it has.
  constexpr int64_t kBytes = int64_t{256} << 20, kLeast = 2048, kMost = 32768;
  int64_t fit = std::clamp(kBytes / (config.layers * config.kv_row() * dtype_size(dtype)), kLeast, kMost);
  return std::max({limits.batch_rows > 0 ? limits.batch_rows : fit, limits.question, limits.alone});
}

int64_t log_softmax(std::span<float> x) {
  auto best = std::max_element(x.begin(), x.end());
  const double top = *best;
  double sum = 0;
  for (float v : x) sum += std::exp(static_cast<double>(v) - top);
  const double shift = top + std::log(sum);
  auto index = best - x.begin();
  for (float& v : x) v = static_cast<float>(static_cast<double>(v) - shift);
  return index;
}

double divergence(std::span<const float> p, std::span<const float> q) {
  double sum = 0;
  for (size_t i = 0; i < p.size(); ++i)
    sum += std::exp(static_cast<double>(p[i])) * (static_cast<double>(p[i]) - static_cast<double>(q[i]));
  return sum;
}

/// One question over one way's caches.
struct ProfileEngine::Sequence {
  size_t way = 0, question = 0;
  const Question* ask = nullptr;
  const std::vector<size_t>* sources = nullptr;  // by layer
  int64_t forced = 0;     // tokens of the reference answer that are read with the question
  int64_t tail_rows = 0;  // its rows of tails_
  int64_t tail = 0;       // the first of them
  int64_t row = 0;        // its first row in hidden_
  int64_t position = 0;   // where the next token goes
  int32_t next = 0;       // that token
  bool decoding = false;
};

ProfileEngine::ProfileEngine(Backend& backend, DeviceModel& sender, DeviceModel& receiver,
                             const std::vector<Way>& ways, const ProfileEngineLimits& limits,
                             std::vector<int32_t> stop_ids)
    : backend_(backend),
      sender_(sender),
      receiver_(receiver),
      ways_(ways),
      limits_(limits),
      stop_ids_(std::move(stop_ids)) {}

ProfileEngine::~ProfileEngine() = default;

Result<std::unique_ptr<ProfileEngine>> ProfileEngine::create(
    Backend& backend, DeviceModel& sender, DeviceModel& receiver, const std::vector<Way>& ways,
    const ProfileEngineLimits& limits, std::vector<int32_t> stop_ids, const Maps& maps) {
  DS_TRY(check_same_architecture(sender.config(), receiver.config(), "sender", "receiver"));
  if (sender.dtype() != receiver.dtype())
    return error(Code::kMismatch, "sender and receiver differ in the type that they compute in");
  if (limits.context < 1 || limits.question < 2)
    return error(Code::kInvalidArgument, "limits: {} context and {} question rows; expected at least 1 and 2",
                 limits.context, limits.question);
  int64_t positions = receiver.config().max_positions;
  if (limits.context + limits.question > positions)
    return error(Code::kInvalidArgument,
                 "context, question and answer come to {} positions ({} + {}), the models have {}",
                 limits.context + limits.question, limits.context, limits.question, positions);
  std::unique_ptr<ProfileEngine> engine(
      new ProfileEngine(backend, sender, receiver, ways, limits, std::move(stop_ids)));
  engine->limits_.batch_rows = rows_at_once(receiver.config(), receiver.dtype(), limits);
  const int64_t rows = sender.config().vocab, all = receiver.config().vocab;
  if (rows < all)
    engine->limits_.shared_vocab = limits.shared_vocab == 0 ? rows : std::min(limits.shared_vocab, rows);
  DS_TRY(engine->load_maps(maps));
  DS_TRY(engine->reserve());
  return engine;
}

int64_t ProfileEngine::memory_bytes(const ModelConfig& config, DType dtype, const std::vector<Way>& ways,
                                    const ProfileEngineLimits& limits) {
  const int64_t layers = config.layers, element = dtype_size(dtype);
  SharedRuns runs = shared_runs(ways, std::vector<bool>(ways.size(), true), layers);
  int64_t cached_layers = layers;
  for (const SharedRuns::Run& run : runs.runs) cached_layers += layers - run.first;
  cached_layers += static_cast<int64_t>(restored_with(ways).size()) * layers;
  for (const Way& w : ways) cached_layers += w.selects() ? layers : 0;
  cached_layers += runs.other_document ? layers : 0;
  int64_t batch = rows_at_once(config, dtype, limits);
  return cached_layers * limits.context * config.kv_row() * element +
         layers * limits.context * config.d_model * element +
         std::max(limits.context, batch) * config.d_model * element +
         layers * batch * config.kv_row() * element;
}

Status ProfileEngine::load_maps(const Maps& maps) {
  for (const Way& way : ways_) {
    if (way.map == MapForm::kNone) continue;
    auto set = maps.find(way.map_control);
    for (int64_t l : way.sent_layers()) {
      const AlignmentMap* map = set == maps.end() ? nullptr : set->second->find(l, way.map);
      AlignmentMap plain{l, MapForm::kDiagonal};  // what another pair's fit has left plain stays so
      if (map == nullptr && set != maps.end() && !way.map_control.empty()) {
        plain.scale = plain.bias = std::vector<float>(static_cast<size_t>(receiver_.config().d_model));
        map = &plain;
      }
      if (map == nullptr)
        return error(Code::kNotFound, "'{}' needs a {} map for layer {}, which was not given", way.name(),
                     map_form_name(way.map), l);
      std::unique_ptr<DeviceMap>& loaded = maps_[{l, map_key(way)}];
      if (loaded != nullptr) continue;
      DS_ASSIGN(loaded, receiver_.load_map(*map));
    }
  }
  return ok_status();
}

Status ProfileEngine::reserve() {
  const ModelConfig& config = receiver_.config();
  layers_ = config.layers;
  const int64_t element = dtype_size(receiver_.dtype()), n = limits_.context, batch = limits_.batch_rows;
  hidden_row_ = config.d_model * element;
  kv_row_ = config.kv_row() * element;
  runs_ = shared_runs(ways_, std::vector<bool>(ways_.size(), true), layers_);
  auto add_set = [&](int64_t first) -> Status {
    DS_ASSIGN(auto memory, backend_.allocate((layers_ - first) * align(n * kv_row_)));
    sets_.push_back({first, layers_ - first, std::move(memory)});
    return ok_status();
  };
  DS_TRY(add_set(0));
  for (const SharedRuns::Run& run : runs_.runs) DS_TRY(add_set(run.first));
  restore_set_ = sets_.size();
  restored_ = restored_with(ways_);
  for (size_t i = 0; i < restored_.size(); ++i) DS_TRY(add_set(0));
  select_set_ = sets_.size();
  for (const Way& w : ways_)
    if (w.selects()) DS_TRY(add_set(0));
  other_set_ = sets_.size();
  if (runs_.other_document) DS_TRY(add_set(0));
  DS_ASSIGN(entering_, backend_.allocate(layers_ * align(n * hidden_row_)));
  DS_ASSIGN(hidden_, backend_.allocate(std::max(n, batch) * hidden_row_));
  DS_ASSIGN(tails_, backend_.allocate(layers_ * align(batch * kv_row_)));
  DS_ASSIGN(positions_, backend_.allocate(n * static_cast<int64_t>(sizeof(int32_t))));
  DS_ASSIGN(sender_workspace_, sender_.make_workspace(n + limits_.question));
  DS_ASSIGN(receiver_workspace_, receiver_.make_workspace(std::max(n + limits_.question, limits_.alone)));
  DS_ASSIGN(stream_,
            backend_.make_stream(StreamKind::kCompute, std::max(4 * layers_ + 8, KeyDeviation::kCommands)));
  DS_ASSIGN(deviation_, KeyDeviation::create(backend_, receiver_));
  return ok_status();
}

std::byte* ProfileEngine::cache(size_t set, int64_t layer) const {
  const CacheSet& s = sets_[set];
  return s.memory->data() + (layer - s.first) * align(limits_.context * kv_row_);
}

std::vector<size_t> ProfileEngine::sources(const Way& way) const {
  std::vector<size_t> from(static_cast<size_t>(layers_), kSenderSet);
  auto run_from = [&](int64_t first) { return 1 + runs_.find(first, map_key(way)); };
  auto take = [&](const LayerRange& range, size_t set) {
    for (int64_t l = range.first; l <= range.last; ++l) from[static_cast<size_t>(l)] = set;
  };
  const LayerRange all = {0, layers_ - 1};
  if (way.is_full_prefill()) {
    take(all, run_from(0));
  } else if (way.control == Control::kReuseOnly) {
    take(all, run_from(0));
    take(way.layers[0], kSenderSet);
  } else if (way.control == Control::kOtherDocument) {
    take(all, other_set_);
  } else if (way.restores()) {
    const auto at = std::lower_bound(restored_.begin(), restored_.end(), map_key(way)) - restored_.begin();
    take(way.layers[0], restore_set_ + static_cast<size_t>(at));
  } else if (way.selects()) {
    size_t set = select_set_;
    for (const Way& w : ways_) {
      if (w == way) break;
      set += w.selects();
    }
    take(all, set);
  } else if (way.is_group() || way.is_scattered()) {
    for (const LayerRange& range : way.layers) take(range, run_from(range.first));
  }
  return from;
}

Status ProfileEngine::run_sender(std::span<const int32_t> context, size_t set) {
  const auto n = static_cast<int64_t>(context.size());
  sender_.embed(*stream_, context.data(), n, hidden_->data());
  for (int64_t l = 0; l < layers_; ++l) {
    stream_->copy(entering_->data() + l * align(limits_.context * hidden_row_), hidden_->data(),
                  n * hidden_row_);
    int64_t queries = l + 1 < layers_ ? n : 0;
    sender_.layer(*stream_, *sender_workspace_, {l, hidden_->data(), cache(set, l), 0, n, queries});
  }
  work_.layer_runs += layers_;
  return stream_->synchronize();
}

Status ProfileEngine::run_receiver(std::span<const int32_t> context, const std::vector<bool>& active) {
  const auto n = static_cast<int64_t>(context.size());
  SharedRuns needed = shared_runs(ways_, active, layers_);
  for (const auto& [first, maps, top] : needed.runs) {
    const size_t set = 1 + runs_.find(first, maps);
    if (first == 0) {
      receiver_.embed(*stream_, context.data(), n, hidden_->data());
    } else {
      enter(first, maps, n);
    }
    for (int64_t l = first; l < top; ++l)
      receiver_.layer(*stream_, *receiver_workspace_,
                      {l, hidden_->data(), cache(set, l), 0, n, l + 1 < top ? n : 0});
    work_.layer_runs += top - first;
    DS_TRY(stream_->synchronize());
  }
  return ok_status();
}

void ProfileEngine::enter(int64_t layer, const MapKey& maps, int64_t rows) {
  stream_->copy(hidden_->data(), entering_->data() + layer * align(limits_.context * hidden_row_),
                rows * hidden_row_);
  if (maps.form != MapForm::kNone)
    receiver_.align(*stream_, *receiver_workspace_, *maps_.at({layer, maps}), hidden_->data(), rows);
}

Status ProfileEngine::run_restore(std::span<const int32_t> context, const MapKey& maps, size_t set) {
  const auto n = static_cast<int64_t>(context.size());
  for (int64_t l = 0; l < layers_; ++l) {
    if (l == 0) {
      receiver_.embed(*stream_, context.data(), n, hidden_->data());
    } else if (maps.form != MapForm::kNone && !maps_.contains({l, maps})) {
      continue;  // no way restores it
    } else {
      enter(l, maps, n);
    }
    receiver_.layer(*stream_, *receiver_workspace_, {l, hidden_->data(), cache(set, l), 0, n, 0});
  }
  work_.kv_runs += layers_;
  return stream_->synchronize();
}

/// CacheBlend: all tokens through layer 0, then those whose keys of layer 1 are furthest from the sender's
/// through all the others, over the sender's rows where a token is not among them.
Status ProfileEngine::run_select(std::span<const int32_t> context, double share, size_t set) {
  const auto n = static_cast<int64_t>(context.size());
  const int64_t count = selected_rows(share, n);
  std::byte* hidden = hidden_->data();
  auto* positions = reinterpret_cast<int32_t*>(positions_->data());
  receiver_.embed(*stream_, context.data(), n, hidden);
  receiver_.layer(*stream_, *receiver_workspace_, {0, hidden, cache(set, 0), 0, n, n});
  work_.layer_runs += 1;
  for (int64_t l = 1; l < layers_; ++l) stream_->copy(cache(set, l), cache(kSenderSet, l), n * kv_row_);
  if (layers_ > 1) {
    receiver_.select(*stream_, *receiver_workspace_, {1, hidden, cache(set, 1), n, count, positions});
    work_.kv_runs += 1;
  }
  for (int64_t l = 1; l < layers_; ++l)
    receiver_.layer_selected(*stream_, *receiver_workspace_,
                             {l, hidden, cache(set, l), positions, count, l + 1 < layers_});
  return stream_->synchronize();
}

bool ProfileEngine::stops(int32_t token) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), token) != stop_ids_.end();
}

Status ProfileEngine::answer_batch(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch,
                                   ContextAnswers& out) {
  const int64_t n = context_tokens_;
  std::vector<int32_t> ids;
  int64_t tail = 0;
  for (Sequence& s : batch) {
    s.row = static_cast<int64_t>(ids.size());
    s.tail = tail;
    tail += s.tail_rows;
    ids.insert(ids.end(), s.ask->suffix.begin(), s.ask->suffix.end());
    ids.insert(ids.end(), s.ask->reference.begin(), s.ask->reference.begin() + s.forced);
  }
  model.embed(*stream_, ids.data(), static_cast<int64_t>(ids.size()), hidden_->data());
  std::vector<std::vector<SequenceRows>> rows(static_cast<size_t>(layers_));
  for (int64_t l = 0; l < layers_; ++l) {
    for (const Sequence& s : batch) {
      const auto m = static_cast<int64_t>(s.ask->suffix.size()), all = m + s.forced;
      // The top layer's output is read from the last token of the question on.
      rows[static_cast<size_t>(l)].push_back(
          {tails_->data() + l * align(limits_.batch_rows * kv_row_) + s.tail * kv_row_, n, all,
           l + 1 < layers_ ? all : s.forced + 1, cache((*s.sources)[static_cast<size_t>(l)], l), n});
    }
    model.layer_batch(*stream_, workspace, l, hidden_->data(), rows[static_cast<size_t>(l)]);
  }
  work_.answer_rows += static_cast<int64_t>(ids.size());
  DS_TRY(stream_->synchronize());
  DS_TRY(read_logits(model, workspace, batch, out));
  return decode(model, workspace, batch, out);
}

/// The first token's proxies, the divergence over the reference answer, and as much of the greedy answer as
/// the reference's tokens tell: while they are what greedy decoding gives, it goes on from them.
Status ProfileEngine::read_logits(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch,
                                  ContextAnswers& out) {
  const int64_t vocab = model.config().vocab, most = std::max<int64_t>(1, kLogitBytes / (vocab * 4));
  std::vector<float> logits;
  for (size_t at = 0; at < batch.size();) {
    std::vector<int64_t> rows;
    size_t end = at;
    for (; end < batch.size(); ++end) {
      const Sequence& s = batch[end];
      if (end > at && static_cast<int64_t>(rows.size()) + s.forced + 1 > most) break;
      for (int64_t i = 0; i <= s.forced; ++i)
        rows.push_back(s.row + static_cast<int64_t>(s.ask->suffix.size()) - 1 + i);
    }
    logits.resize(rows.size() * static_cast<size_t>(vocab));
    model.logits_batch(*stream_, workspace, hidden_->data(), rows, logits.data());
    DS_TRY(stream_->synchronize());
    int64_t begin = now_ns();
    std::vector<size_t> offset(end - at);
    for (size_t i = at, sum = 0; i < end; sum += static_cast<size_t>(batch[i].forced) + 1, ++i)
      offset[i - at] = sum;
    const BriefTeam team;
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = at; i < end; ++i) {
      Sequence& s = batch[i];
      WayAnswer& answer = out.ways[s.way][s.question];
      auto row = [&](int64_t j) {
        return std::span(logits).subspan(
            (offset[i - at] + static_cast<size_t>(j)) * static_cast<size_t>(vocab),
            static_cast<size_t>(vocab));
      };
      ProxyValues proxies = first_token_proxies(row(0));
      answer.entropy = proxies[Proxy::kEntropy];
      answer.margin = proxies[Proxy::kMargin];
      std::vector<int32_t> greedy;
      for (int64_t j = 0; j <= s.forced; ++j) greedy.push_back(static_cast<int32_t>(log_softmax(row(j))));
      const int64_t compared = std::max<int64_t>(s.forced, 1);
      std::vector<float>& reference = reference_[s.question];
      if (ways_[s.way].is_full_prefill()) reference.assign(row(0).begin(), row(0).begin() + compared * vocab);
      // The sender by itself may have other tokens to choose from, and is not compared.
      double sum = ways_[s.way].control == Control::kSenderAlone ? std::nan("") : 0;
      for (int64_t j = 0; j < compared && !std::isnan(sum); ++j)
        sum += divergence(
            std::span(reference).subspan(static_cast<size_t>(j * vocab), static_cast<size_t>(vocab)), row(j));
      answer.divergence = sum / static_cast<double>(compared);
      int64_t j = 0;
      const int64_t longest = s.ask->max_new_tokens;
      while (j < s.forced && greedy[static_cast<size_t>(j)] == s.ask->reference[static_cast<size_t>(j)] &&
             !stops(greedy[static_cast<size_t>(j)]) && j + 1 < longest)
        answer.tokens.push_back(greedy[static_cast<size_t>(j++)]);
      s.next = greedy[static_cast<size_t>(j)];
      s.position = static_cast<int64_t>(s.ask->suffix.size()) + j;
      s.decoding = !stops(s.next);
      if (s.decoding) answer.tokens.push_back(s.next);
      if (static_cast<int64_t>(answer.tokens.size()) >= longest) s.decoding = false;
    }
    work_.scores_ns += now_ns() - begin;
    at = end;
  }
  return ok_status();
}

Status ProfileEngine::decode(DeviceModel& model, Workspace& workspace, std::span<Sequence> batch,
                             ContextAnswers& out) {
  std::vector<Sequence*> open;
  for (Sequence& s : batch)
    if (s.decoding) open.push_back(&s);
  const int64_t vocab = model.config().vocab, most = std::max<int64_t>(1, kLogitBytes / (vocab * 4));
  const int64_t n = context_tokens_;
  std::vector<float> logits;
  while (!open.empty()) {
    std::vector<int32_t> ids;
    for (const Sequence* s : open) ids.push_back(s->next);
    model.embed(*stream_, ids.data(), static_cast<int64_t>(ids.size()), hidden_->data());
    std::vector<std::vector<SequenceRows>> rows(static_cast<size_t>(layers_));
    for (int64_t l = 0; l < layers_; ++l) {
      for (const Sequence* s : open) {
        rows[static_cast<size_t>(l)].push_back(
            {tails_->data() + l * align(limits_.batch_rows * kv_row_) + s->tail * kv_row_, n + s->position, 1,
             1, cache((*s->sources)[static_cast<size_t>(l)], l), n});
      }
      model.layer_batch(*stream_, workspace, l, hidden_->data(), rows[static_cast<size_t>(l)]);
    }
    DS_TRY(stream_->synchronize());
    work_.answer_rows += static_cast<int64_t>(open.size());
    for (size_t at = 0; at < open.size(); at += static_cast<size_t>(most)) {
      size_t end = std::min(open.size(), at + static_cast<size_t>(most));
      std::vector<int64_t> picked;
      for (size_t i = at; i < end; ++i) picked.push_back(static_cast<int64_t>(i));
      logits.resize(picked.size() * static_cast<size_t>(vocab));
      model.logits_batch(*stream_, workspace, hidden_->data(), picked, logits.data());
      DS_TRY(stream_->synchronize());
      for (size_t i = at; i < end; ++i) {
        Sequence& s = *open[i];
        auto row =
            std::span(logits).subspan((i - at) * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
        std::vector<int32_t>& tokens = out.ways[s.way][s.question].tokens;
        s.next = static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
        ++s.position;
        s.decoding = !stops(s.next);
        if (s.decoding) tokens.push_back(s.next);
        if (static_cast<int64_t>(tokens.size()) >= s.ask->max_new_tokens) s.decoding = false;
      }
    }
    std::erase_if(open, [](const Sequence* s) { return !s->decoding; });
  }
  return ok_status();
}

Status ProfileEngine::answer(const std::vector<size_t>& ways, std::span<const Question> questions,
                             ContextAnswers& out) {
  std::vector<std::vector<size_t>> from;
  for (size_t way : ways) from.push_back(sources(ways_[way]));
  bool sender = !ways.empty() && ways_[ways[0]].control == Control::kSenderAlone;
  DeviceModel& model = sender ? sender_ : receiver_;
  Workspace& workspace = sender ? *sender_workspace_ : *receiver_workspace_;
  // Of a question with tokens that only the receiver knows, the sender by itself reads the others.
  std::vector<Question> known;
  if (sender && limits_.shared_vocab > 0) {
    known.assign(questions.begin(), questions.end());
    for (Question& q : known) {
      for (std::vector<int32_t>* ids : {&q.suffix, &q.reference})
        std::erase_if(*ids, [&](int32_t id) { return id >= limits_.shared_vocab; });
      if (q.suffix.empty())
        return error(Code::kMismatch, "question {} has no token that the sender knows; leave it out",
                     &q - known.data());
    }
    questions = known;
  }
  std::vector<Sequence> batch;
  int64_t rows = 0;
  auto flush = [&]() -> Status {
    DS_TRY(answer_batch(model, workspace, batch, out));
    batch.clear();
    rows = 0;
    return ok_status();
  };
  for (size_t i = 0; i < ways.size(); ++i) {
    out.ways[ways[i]].resize(questions.size());
    for (size_t q = 0; q < questions.size(); ++q) {
      Sequence s{.way = ways[i], .question = q, .ask = &questions[q], .sources = &from[i]};
      s.forced = std::min<int64_t>(static_cast<int64_t>(questions[q].reference.size()), kDivergenceTokens);
      s.tail_rows =
          static_cast<int64_t>(questions[q].suffix.size()) + std::max(s.forced, questions[q].max_new_tokens);
      if (rows + s.tail_rows > limits_.batch_rows) DS_TRY(flush());
      rows += s.tail_rows;
      batch.push_back(s);
    }
  }
  return batch.empty() ? ok_status() : flush();
}

Status ProfileEngine::answer_alone(const std::vector<size_t>& ways, std::span<const Question> questions,
                                   ContextAnswers& out) {
  if (ways.empty()) return ok_status();
  std::vector<Question> alone(questions.begin(), questions.end());
  for (Question& q : alone) {
    const auto m = static_cast<int64_t>(q.alone.size());
    const int64_t forced = std::min<int64_t>(static_cast<int64_t>(q.reference.size()), kDivergenceTokens);
    if (m < 1 || m + std::max(forced, q.max_new_tokens) > limits_.alone)
      return error(
          Code::kInvalidArgument,
          "a question of {} tokens without its context, with {} new ones; expected at least 1, {} together",
          m, q.max_new_tokens, limits_.alone);
    q.suffix = std::move(q.alone);
  }
  const int64_t context = std::exchange(context_tokens_, 0);
  Status status = answer(ways, alone, out);
  context_tokens_ = context;
  return status;
}

Result<ContextAnswers> ProfileEngine::run(std::span<const int32_t> context,
                                          std::span<const Question> questions,
                                          const std::vector<bool>& active, std::span<const int32_t> other) {
  const auto n = static_cast<int64_t>(context.size());
  if (n < 1 || n > limits_.context)
    return error(Code::kInvalidArgument, "a context of {} tokens; expected 1 to {}", n, limits_.context);
  for (const Question& q : questions) {
    auto m = static_cast<int64_t>(q.suffix.size());
    int64_t forced = std::min<int64_t>(static_cast<int64_t>(q.reference.size()), kDivergenceTokens);
    if (m < 1 || q.max_new_tokens < 1 || m + std::max(forced, q.max_new_tokens) > limits_.question)
      return error(Code::kInvalidArgument,
                   "a question of {} tokens with {} new ones; expected at least 1 of each, {} together", m,
                   q.max_new_tokens, limits_.question);
  }
  const bool others = shared_runs(ways_, active, layers_).other_document;
  if (others && other.size() != context.size())
    return error(Code::kInvalidArgument, "another document of {} tokens; expected {}, the context's",
                 other.size(), n);
  context_tokens_ = n;
  reference_.assign(questions.size(), {});
  ContextAnswers out;
  out.ways.resize(ways_.size());

  int64_t begin = now_ns();
  if (others) DS_TRY(run_sender(other, other_set_));
  DS_TRY(run_sender(context, kSenderSet));  // last: its hidden states are what receivers' runs start from
  work_.sender_ns += now_ns() - begin;
  begin = now_ns();
  DS_TRY(run_receiver(context, active));
  std::vector<size_t> mixed, sender, alone;
  std::set<MapKey> restore;
  for (size_t i = 1; i < ways_.size(); ++i) {
    if (!active[i]) continue;
    (ways_[i].control == Control::kSenderAlone ? sender
     : ways_[i].control == Control::kNoContext ? alone
                                               : mixed)
        .push_back(i);
    if (ways_[i].restores()) restore.insert(map_key(ways_[i]));
  }
  for (size_t i = 0; i < restored_.size(); ++i)
    if (restore.contains(restored_[i])) DS_TRY(run_restore(context, restored_[i], restore_set_ + i));
  for (size_t i : mixed)
    if (ways_[i].selects()) DS_TRY(run_select(context, ways_[i].share, sources(ways_[i])[0]));
  DS_ASSIGN(out.k_deviation,
            deviation_->measure(*stream_, *receiver_workspace_, context, cache(kSenderSet, 0)));
  work_.runs_ns += now_ns() - begin;
  begin = now_ns();
  // The full prefill first: the others diverge from it.
  receiver_.set_profile(&work_.answer_phases);
  DS_TRY(answer({0}, questions, out));
  DS_TRY(answer(mixed, questions, out));
  receiver_.set_profile(nullptr);
  DS_TRY(answer(sender, questions, out));
  DS_TRY(answer_alone(alone, questions, out));
  work_.answers_ns += now_ns() - begin;
  return out;
}

}  // namespace ds
