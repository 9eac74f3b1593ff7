// Publications: contexts that become entries in the time that requests leave.
#include "runtime/engine/engine_internal.h"

#include "support/units.h"

namespace ds {

Result<Published> PublicationTicket::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return result_.has_value(); });
  return *result_;
}

void PublicationTicket::cancel() { cancelled_ = true; }

Result<std::shared_ptr<PublicationTicket>> EngineLoop::publish(EnginePublication asked) {
  std::lock_guard lock(mutex);
  Station* station = asked.sender == nullptr ? nullptr : station_of(asked.sender);
  if (station == nullptr || asked.store == nullptr)
    return error(Code::kInvalidArgument,
                 "a publication needs a sender of this engine and a store; {} is there",
                 station == nullptr ? "no such sender" : "no store");
  if (!lost.ok()) return lost;
  if (closing) return error(Code::kExhausted, "the engine is closing");
  auto p = std::make_unique<Publishing>();
  DS_ASSIGN(p->work, Publication::create(backend, asked.sender->model(), asked.sender->identity(),
                                         asked.context, asked.options));
  if (p->work->maps()) {
    DS_ASSIGN(p->workspace, asked.sender->model().make_workspace(static_cast<int64_t>(asked.context.size())));
  }
  const auto most = static_cast<int64_t>(limits.publish_share * static_cast<double>(limits.cache_bytes));
  if (p->work->bytes() > most || static_cast<int64_t>(asked.context.size()) > limits.tokens)
    return error(
        Code::kExhausted,
        "publishing {} tokens takes {} of memory; this engine gives publications {} and contexts of {} "
        "tokens",
        asked.context.size(), format_bytes(p->work->bytes()), format_bytes(most), limits.tokens);
  for (const auto& other : publications)
    if (other->work->identity().key() == p->work->identity().key() && other->asked.store == asked.store &&
        other->asked.options.cuts == asked.options.cuts && !p->work->maps() && !other->ticket->cancelled_)
      return other->ticket;
  p->id = next_id++;
  p->asked = std::move(asked);
  p->station = station;
  p->ticket = std::make_shared<PublicationTicket>();
  auto ticket = p->ticket;
  publications.push_back(std::move(p));
  ++stats.publications_open;
  (*wake)();
  return ticket;
}

Publishing* EngineLoop::publishing() {
  std::lock_guard lock(mutex);
  return publications.empty() ? nullptr : publications.front().get();
}

void EngineLoop::end(Publishing& p, Result<Published> result) {
  if (p.writer.joinable()) p.writer.join();
  auto ticket = p.ticket;
  auto on_end = std::move(p.asked.on_end);
  {
    std::lock_guard lock(mutex);
    stats.published += result.ok() && !result->already ? 1 : 0;
    --stats.publications_open;
    std::erase_if(publications, [&](const auto& other) { return other.get() == &p; });
  }
  {
    std::lock_guard lock(ticket->mutex_);
    ticket->result_ = std::move(result);
    ticket->ended_.notify_all();
  }
  if (on_end) on_end();
}

void EngineLoop::begin_again(Publishing& p) {
  auto work = Publication::create(backend, p.asked.sender->model(), p.asked.sender->identity(),
                                  p.asked.context, p.asked.options);
  if (!work.ok()) return end(p, work.status());
  p.work = std::move(work).value();
}

void EngineLoop::watch_publication() {
  Publishing* p = publishing();
  if (p == nullptr) return;
  if (p->ticket->cancelled_ && p->state != Publishing::State::kWriting)
    return end(*p, error(Code::kExhausted, "the publication was cancelled"));
  switch (p->state) {
    case Publishing::State::kQueued:
      p->found = std::make_shared<LookUp>();
      p->state = Publishing::State::kLookingUp;
      service->look_up(p->asked.store,
                       [found = p->found, store = p->asked.store, identity = p->work->identity(),
                        shape = p->asked.sender->model().config().shape()] {
                         auto entry = EntryReader::open(*store, identity, shape);
                         if (entry.ok()) found->header = entry->header();
                         found->status = entry.status();
                         found->done.store(true, std::memory_order_release);
                       });
      break;
    case Publishing::State::kLookingUp:
      if (!p->found->done.load(std::memory_order_acquire)) break;
      if (p->found->status.ok() && p->work->same(p->found->header)) {
        Published there;
        there.key = p->work->identity().key();
        there.already = true;
        return end(*p, std::move(there));
      }
      // Requests' memory goes first: it waits until there is some.
      if (auto claim = arena->claim(p->work->bytes()); claim.ok()) {
        p->claim = std::move(claim).value();
        p->state = Publishing::State::kComputing;
      }
      break;
    case Publishing::State::kComputing:
      if (!p->work->done()) break;
      p->state = Publishing::State::kWriting;
      p->writer = std::thread([p, w = wake] {
        p->result = p->work->write(*p->asked.store);
        p->written.store(true, std::memory_order_release);
        (*w)();
      });
      break;
    case Publishing::State::kWriting:
      if (p->written.load(std::memory_order_acquire)) end(*p, std::move(p->result));
      break;
  }
}

}  // namespace ds
