// A step: every sequence past its first token decodes one more, and plan ops run for a budget of time.
#include "runtime/engine/engine_internal.h"

#include "runtime/core/finite.h"
#include "support/clock.h"

namespace ds {
namespace {

// A stand-in's step is a part of the budget: what comes meanwhile waits for it.
constexpr int64_t kStandInSteps = 4;

}  // namespace

float* EngineLoop::logits_of(size_t slot) {
  return reinterpret_cast<float*>(results->data() + static_cast<int64_t>(slot) * result_bytes);
}

int32_t* EngineLoop::next_of(size_t slot) { return reinterpret_cast<int32_t*>(logits_of(slot) + most_vocab); }

void EngineLoop::decode(Station& s, size_t first, size_t count) {
  DeviceModel& model = s.receiver->model();
  const int64_t layers = model.config().layers, width = s.receiver->row_bytes().hidden;
  std::byte* hidden = s.hidden->data() + static_cast<int64_t>(first) * width;
  for (size_t i = first; i < first + count; ++i) {
    Active& a = *s.batch[i];
    s.ids[i] = a.next;
    const auto position = static_cast<int64_t>(a.tokens.size()) - 1;
    for (int64_t l = 0; l < layers; ++l)
      s.sequences[static_cast<size_t>(l * limits.batch) + i] = a.sequence.rows(l, position, 1, 1);
  }
  model.embed(*compute, s.ids.data() + first, static_cast<int64_t>(count), hidden);
  for (int64_t l = 0; l < layers; ++l)
    model.layer_batch(*compute, *s.workspace, l, hidden,
                      std::span(s.sequences).subspan(static_cast<size_t>(l * limits.batch) + first, count));
  if (s.logits) {
    model.logits_batch(
        *compute, *s.workspace, hidden, std::span(s.rows).first(count),
        reinterpret_cast<float*>(s.logits->data()) + static_cast<int64_t>(first) * model.config().vocab);
  } else {
    for (size_t i = first; i < first + count; ++i) {
      Active& a = *s.batch[i];
      model.head(*compute, *s.workspace,
                 {s.hidden->data() + static_cast<int64_t>(i) * width,
                  wants_logits(a) ? logits_of(a.slot) : nullptr, a.choice, next_of(a.slot)});
    }
  }
}

bool EngineLoop::step() {
  std::vector<Item> items;
  auto mark = [&] {  // what comes before it belongs to the item that was begun last
    if (!limits.record_spans) return;
    marks[items.size()]->reset();
    compute->record(*marks[items.size()]);
  };
  auto begin = [&](Item item) {
    mark();
    compute->begin_op(static_cast<int64_t>(items.size()));
    items.push_back(std::move(item));
  };
  std::vector<Station*> decoding;
  for (auto& a : active) a->station->batch.clear();
  for (auto& a : active) {
    if (a->state != Active::State::kDecoding) continue;
    if (Status status =
            commit(*a->sequence.own, static_cast<int64_t>(a->tokens.size()) - a->sequence.own_first);
        !status.ok()) {
      failed.emplace_back(a.get(), std::move(status));
      continue;
    }
    if (!a->retry) a->choice = a->sampler->next();
    if (a->station->batch.empty()) decoding.push_back(a->station);
    a->station->batch.push_back(a.get());
  }
  end_failed();
  const bool decodes = !decoding.empty();
  stepped->reset();
  if (decodes) compute->record(*stepped);
  const int64_t budget_ns = decodes
                                ? step_budget_ns(limits.step_budget_ns, limits.step_budget_share, decode_ns)
                                : limits.step_budget_ns;
  for (Station* s : decoding) {
    // Those of a batch that failed go one by one, so that the fault is found and nobody else's.
    std::stable_partition(s->batch.begin(), s->batch.end(), [](const Active* a) { return !a->alone; });
    const auto together = static_cast<size_t>(
        std::count_if(s->batch.begin(), s->batch.end(), [](const Active* a) { return !a->alone; }));
    if (together > 0) {
      begin({.station = s, .first = 0, .count = together});
      decode(*s, 0, together);
    }
    for (size_t i = together; i < s->batch.size(); ++i) {
      begin({.station = s, .first = i, .count = 1});
      decode(*s, i, 1);
    }
  }
  std::vector<PlanRun*> runs;
  std::vector<Active*> of;
  for (auto& a : active)
    if (a->state == Active::State::kComputing) {
      runs.push_back(a->run.get());
      of.push_back(a.get());
    }
  double flops = 0;
  begun->reset();
  ended->reset();
  compute->begin_op(-1);
  compute->record(*begun);
  fill_step(runs, speed.flops(budget_ns), kMostPieces, [&](const ScheduledPiece& p) {
    Active& a = *of[p.run];
    begin({.one = &a, .run = a.run.get(), .piece = p.piece});
    a.run->issue(p.piece, *compute, a.memory, storage[items.size() - 1]);
    flops += p.piece.flops;
  });
  if (Publishing* p = publishing(); p != nullptr && p->state == Publishing::State::kComputing &&
                                    !p->work->done() && !p->ticket->cancelled_ && flops == 0) {
    begin({.publishing = p});
    const double share = decodes ? limits.publish_share : 1;
    const double per_row = PlanRun::layer_flops(p->asked.sender->model().config());
    const double rows = share * speed.flops(limits.step_budget_ns) / per_row;
    const auto most = std::max<int64_t>(
        PlanRun::kBlock, std::min(rows, 1e9) < 1e9 ? round_down(static_cast<int64_t>(rows)) : 1 << 30);
    const int64_t left = p->work->rows_left();
    publication_status =
        p->work->enqueue(most, *compute, p->workspace ? *p->workspace : *p->station->workspace);
    flops = per_row * static_cast<double>(std::min(most, left));
  }
  for (auto& a : active) {
    if (!items.empty()) break;
    Work* w = stand_in(*a);
    const auto piece =
        w == nullptr ? std::nullopt : w->run->next(speed.flops(limits.step_budget_ns / kStandInSteps));
    if (!piece) continue;
    begin({.one = a.get(), .run = w->run.get(), .piece = piece});
    w->run->issue(*piece, *compute, w->memory, storage[0]);
    flops = piece->flops;
  }
  mark();
  compute->begin_op(-1);
  compute->record(*ended);
  const int64_t start = now_ns();
  Status status = compute->synchronize();
  if (items.empty()) {
    // A stand-in may have been at its end when it was taken.
    const bool ended = std::any_of(active.begin(), active.end(), [](const auto& a) {
      return a->state == Active::State::kComputing && a->run->finished();
    });
    if (ended) settle(items, std::move(status));
    return ended;
  }
  const int64_t busy = now_ns() - start;
  {
    std::lock_guard lock(mutex);
    ++stats.steps;
    stats.compute_busy_ns += busy;
  }
  if (limits.record_spans && status.ok()) record_step(items);
  if (status.ok()) speed.add(flops, ended->time_ns() - begun->time_ns());
  if (status.ok() && decodes) decode_ns = begun->time_ns() - stepped->time_ns();
  settle(items, std::move(status));
  return true;
}

void EngineLoop::record(EngineSpan span) {
  std::lock_guard lock(mutex);
  spans.push_back(std::move(span));
}

void EngineLoop::record_step(const std::vector<Item>& items) {
  for (size_t i = 0; i < items.size(); ++i) {
    const Item& item = items[i];
    record({item.one != nullptr          ? item.one->id
            : item.publishing != nullptr ? item.publishing->id
                                         : 0,
            StreamKind::kCompute,
            item.one != nullptr          ? item.run->label(*item.piece)
            : item.publishing != nullptr ? "publish"
                                         : fmt::format("decode {}", item.count),
            marks[i]->time_ns(), marks[i + 1]->time_ns()});
  }
}

void EngineLoop::settle(std::vector<Item>& items, Status status) {
  // Work before the failure has run, what comes after it has not.
  size_t ran = items.size();
  if (!status.ok()) {
    const int64_t op = compute->failed_op();
    if (is_device_failure(status.code()) || op < 0) return give_up(std::move(status));
    ran = static_cast<size_t>(op);
  }
  for (size_t i = 0; i < ran; ++i) {
    Item& item = items[i];
    if (item.station != nullptr) {
      decoded(*item.station, item.first, item.count);
    } else if (item.publishing != nullptr) {
      if (!publication_status.ok())
        end(*item.publishing, std::exchange(publication_status, {}));
      else if (item.publishing->showing)
        item.publishing->showing->tell(item.publishing->work->progress());
    } else {
      item.run->complete(*item.piece);
      item.one->answer.compute_ns += speed.ns(item.piece->flops);
    }
  }
  for (size_t i = ran; i < items.size(); ++i)
    if (items[i].one != nullptr) items[i].run->rewind();
  if (ran + 1 < items.size() && items.back().publishing != nullptr) begin_again(*items.back().publishing);
  if (ran < items.size()) {
    Item& item = items[ran];
    if (item.one != nullptr) {
      failed.emplace_back(item.one, status.with_context(fmt::format(
                                        "variant '{}', op {} ({})", item.one->variant->name,
                                        item.run->op(*item.piece), item.run->label(*item.piece))));
    } else if (item.publishing != nullptr) {
      end(*item.publishing,
          status.with_context(fmt::format("publishing, layer {}", item.publishing->work->layer())));
    } else if (item.count == 1) {
      Active& a = *item.station->batch[item.first];
      failed.emplace_back(
          &a, status.with_context(fmt::format("token {} of the answer", a.answer.tokens.size() + 1)));
    } else {
      for (size_t i = item.first; i < item.first + item.count; ++i) item.station->batch[i]->alone = true;
    }
    // A token that was not decoded is chosen as it would have been.
    for (size_t i = ran; i < items.size(); ++i)
      if (items[i].station != nullptr)
        for (size_t k = items[i].first; k < items[i].first + items[i].count; ++k)
          items[i].station->batch[k]->retry = true;
  }
  for (auto& a : active) {
    if (a->state != Active::State::kComputing) continue;
    if (a->run->finished())
      first_token(*a);
    else
      send_for(*a);  // to where something was read
  }
  finish_ended();
  end_failed();
}

void EngineLoop::note_cache(Active& a) {
  a.answer.repaired = a.run->repaired();
  if (a.run->repaired()) {
    a.answer.transfers = a.run->transfers();
    a.answer.lost_transfers = a.run->lost_transfers();
  }
  if (a.plan < 0) return;
  if (a.answer.miss.ok())
    a.answer.cache = CacheStatus::kHit;
  else if (a.run->repaired() && !a.run->exact())
    a.answer.cache = CacheStatus::kRepaired;
}

Status EngineLoop::look_at(Active& a, std::span<const float> logits) {
  const Gate& gate = *std::exchange(a.gate, nullptr);
  const bool repaired = a.run->repaired();
  // Of a repaired run there may be nothing of the sender left.
  if (repaired && a.run->exact()) return ok_status();
  std::function<Result<double>()> keys = [&] {
    return a.station->keys->measure(
        *compute, *a.station->workspace,
        std::span<const int32_t>(a.tokens).first(static_cast<size_t>(a.reused_rows)),
        a.sequence.prefix_rows > 0 ? a.sequence.base->range().layer(0) : a.sequence.own->layer(0));
  };
  if (repaired && a.run->computes(0)) keys = nullptr;
  DS_ASSIGN(a.answer.gate, gate.look(*a.reused, logits, keys, repaired));
  {
    std::lock_guard lock(mutex);
    ++stats.gate_checks;
    stats.gate_alarms += a.answer.gate.alarmed ? 1 : 0;
  }
  if (!a.answer.gate.alarmed) return ok_status();
  note_cache(a);
  a.answer.lost_ns = now_ns() - a.submitted_ns - a.answer.queue_ns;
  a.answer.cached_tokens = a.answer.link_ns = a.answer.compute_ns = 0;
  a.plan = -1;
  a.variant = &a.request.receiver->exact().full_prefill;
  if (!a.kept_as.empty()) a.kept_as = exact_salt(*a.request.receiver, a.request.salt);
  a.reused = nullptr;
  // Nobody claims memory between here and take(), which had it from the beginning.
  a.run.reset();
  a.segments.reset();
  a.hidden.reset();
  a.positions.reset();
  a.sequence = {};
  a.claim = {};
  const int64_t bytes =
      arena->needs(a.request.receiver->row_bytes(), cache_rows(a)) + run_bytes(a, *a.variant, 0);
  if (!take(a, bytes))
    return error(Code::kInternal, "no memory for the full prefill that the gate's alarm asks for");
  return try_compute(a, 0);
}

bool EngineLoop::must_go_on(const Active& a) {
  return static_cast<int64_t>(a.answer.tokens.size()) < a.request.min_new_tokens;
}

bool EngineLoop::withholds(const Active& a) {
  return must_go_on(a) && !(a.request.stop_ids.empty() && a.request.withheld_ids.empty());
}

bool EngineLoop::wants_logits(const Active& a) { return a.rules || a.request.on_logits || withholds(a); }

int32_t EngineLoop::chosen(const Active& a, std::span<const float> logits) {
  if (!a.rules && !withholds(a)) return choose(logits, a.choice, scratch);
  ruled.assign(logits.begin(), logits.end());
  if (withholds(a)) {
    mask(ruled, a.request.stop_ids);
    mask(ruled, a.request.withheld_ids);
  }
  if (a.rules) a.rules->apply(ruled);
  return choose(ruled, a.choice, scratch);
}

void EngineLoop::first_token(Active& a) {
  const int64_t vocab = a.request.receiver->model().config().vocab;
  const std::span<const float> logits(logits_of(a.slot), static_cast<size_t>(vocab));
  if (Status status = check_finite(logits, static_cast<int64_t>(a.answer.tokens.size()) + 1, *a.variant);
      !status.ok()) {
    failed.emplace_back(&a, std::move(status));
    return;
  }
  if (a.gate != nullptr) {
    if (Status status = look_at(a, logits); !status.ok()) {
      failed.emplace_back(&a, status.with_context("the gate"));
      return;
    }
    if (a.answer.gate.alarmed) return;
    a.claim = {};
  }
  if (a.request.first_logits) a.answer.first_logits.assign(logits.begin(), logits.end());
  note_cache(a);
  a.answer.variant = a.variant;
  if (!(a.run->repaired() && a.run->exact())) {
    a.answer.reused = a.reused;
    if (a.reused != nullptr) a.answer.reused_tokens = a.reused_rows;
  }
  a.answer.ttft_ns = now_ns() - a.submitted_ns;
  if (a.run->repaired())
    a.kept_as = a.run->exact() && !a.kept_as.empty() ? exact_salt(*a.request.receiver, a.request.salt) : "";
  a.run.reset();
  a.segments.reset();
  a.hidden.reset();
  a.positions.reset();
  // Others that begin as this one did need not wait for its end.
  if (!a.kept_as.empty() && a.sequence.base == nullptr) {
    a.node = prefixes.insert(a.kept_as, a.tokens, a.sequence.own);
    if (a.node != nullptr) {
      a.sequence.base = a.node;
      a.sequence.prefix_rows = a.n > 0 ? a.n : round_down(a.m);
    }
  }
  a.state = Active::State::kDecoding;
  next_token(a, wants_logits(a) ? chosen(a, logits) : *next_of(a.slot), logits);
}

void EngineLoop::decoded(Station& s, size_t first, size_t count) {
  const auto vocab = static_cast<size_t>(s.receiver->model().config().vocab);
  for (size_t i = first; i < first + count; ++i) {
    Active& a = *s.batch[i];
    std::span<const float> logits;
    if (s.logits)
      logits = {reinterpret_cast<const float*>(s.logits->data()) + i * vocab, vocab};
    else if (wants_logits(a))
      logits = {logits_of(a.slot), vocab};
    if (!logits.empty()) {
      if (Status status = check_finite(logits, static_cast<int64_t>(a.answer.tokens.size()) + 1, *a.variant);
          !status.ok()) {
        failed.emplace_back(&a, std::move(status));
        continue;
      }
    }
    next_token(a, logits.empty() ? *next_of(a.slot) : chosen(a, logits), logits);
  }
}

void EngineLoop::next_token(Active& a, int32_t token, std::span<const float> logits) {
  const EngineRequest& r = a.request;
  a.retry = false;
  if (!must_go_on(a) && std::find(r.stop_ids.begin(), r.stop_ids.end(), token) != r.stop_ids.end()) {
    a.answer.stopped = true;
    a.answer.stop_token = token;
    a.over = true;
    return;
  }
  a.answer.tokens.push_back(token);
  a.answer.token_ns.push_back(now_ns() - a.submitted_ns);
  a.tokens.push_back(token);
  a.next = token;
  if (a.rules) a.rules->add(token);
  if (r.on_logits) r.on_logits(token, logits);
  if (r.on_token) r.on_token(token);
  if (r.is_last && r.is_last(token)) {
    a.answer.ended_by_caller = true;
    a.over = true;
  }
  if (static_cast<int64_t>(a.answer.tokens.size()) >= r.max_new_tokens) a.over = true;
}

}  // namespace ds
