// Publications: contexts that become entries in the time that requests leave.
#include "runtime/engine/engine_internal.h"

#include "support/clock.h"
#include "support/units.h"

namespace ds {
namespace {

bool same(const EnginePublication& a, const EnginePublication& b) {
  const PublishOptions &x = a.options, &y = b.options;
  return a.sender == b.sender && a.store == b.store && a.context == b.context && x.salt == y.salt &&
         x.cuts == y.cuts && x.maps == y.maps && x.more == y.more && x.kv_layers == y.kv_layers &&
         x.live_rows == y.live_rows && x.first == y.first && x.only_new == y.only_new;
}

/// A store to which nothing more is written once nobody wants it.
class StoppableStore final : public Store {
 public:
  StoppableStore(Store& under, std::function<Status()> go_on) : under_(under), go_on_(std::move(go_on)) {
    set_signing(under.signing());
  }
  std::string url() const override { return under_.url(); }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return under_.put(
        key,
        [&](const Sink& sink) {
          return produce([&](std::span<const std::byte> bytes) -> Status {
            for (size_t at = 0; at < bytes.size(); at += kPart) {
              DS_TRY(go_on_());
              DS_TRY(sink(bytes.subspan(at, std::min(kPart, bytes.size() - at))));
            }
            return go_on_();
          });
        },
        names);
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override { return under_.open(key); }
  Status remove(const std::string& key) override { return under_.remove(key); }

 private:
  static constexpr size_t kPart = size_t{1} << 20;
  Store& under_;
  const std::function<Status()> go_on_;
};

}  // namespace

Result<Published> PublicationTicket::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return result_.has_value(); });
  return *result_;
}

void PublicationTicket::cancel() { cancelled_ = true; }

Status EngineLoop::check(const EnginePublication& asked) const {
  const bool known = asked.sender != nullptr && station_of(asked.sender) != nullptr;
  if (!known || asked.store == nullptr)
    return error(Code::kInvalidArgument,
                 "a publication needs a sender of this engine and a store; {} is there",
                 known ? "no store" : "no such sender");
  if (!lost.ok()) return lost;
  if (closing) return error(Code::kExhausted, "the engine is closing");
  return ok_status();
}

std::shared_ptr<PublicationTicket> EngineLoop::published_already(const EnginePublication& asked) const {
  for (const auto& other : publications)
    if (same(other->asked, asked) && !other->ticket->cancelled_) return other->ticket;
  return nullptr;
}

Result<std::shared_ptr<PublicationTicket>> EngineLoop::publish(EnginePublication asked) {
  asked.options.every = 0;
  {
    std::lock_guard lock(mutex);
    DS_TRY(check(asked));
    if (auto ticket = published_already(asked)) return ticket;
  }
  // Maps are loaded and memory is taken while the engine goes on.
  auto p = std::make_unique<Publishing>();
  DS_ASSIGN(p->work, Publication::create(backend, asked.sender->model(), asked.sender->identity(),
                                         asked.context, asked.options));
  const auto most = static_cast<int64_t>(limits.publish_share * static_cast<double>(limits.cache_bytes));
  if (p->work->bytes() > most || static_cast<int64_t>(asked.context.size()) > limits.tokens)
    return error(
        Code::kExhausted,
        "publishing {} tokens takes {} of memory; this engine gives publications {} and contexts of {} "
        "tokens",
        asked.context.size(), format_bytes(p->work->bytes()), format_bytes(most), limits.tokens);
  if (p->work->maps()) {
    DS_ASSIGN(p->workspace, asked.sender->model().make_workspace(static_cast<int64_t>(asked.context.size())));
  }
  std::lock_guard lock(mutex);
  DS_TRY(check(asked));
  if (auto ticket = published_already(asked)) return ticket;
  p->id = next_id++;
  p->station = station_of(asked.sender);
  p->asked = std::move(asked);
  p->ticket = std::make_shared<PublicationTicket>();
  auto ticket = p->ticket;
  publications.push_back(std::move(p));
  ++stats.publications_open;
  (*wake)();
  return ticket;
}

Publishing::~Publishing() {
  if (writer.joinable()) writer.join();
}

bool Publishing::at_rest() const {
  return (!writer.joinable() || written.load(std::memory_order_acquire)) &&
         (showing == nullptr || showing->ended());
}

int64_t Publishing::last_progress_ns() const { return std::max<int64_t>(progress_ns, work->last_shown_ns()); }

Publishing* EngineLoop::publishing() {
  std::lock_guard lock(mutex);
  return publications.empty() ? nullptr : publications.front().get();
}

void EngineLoop::end(Publishing& p, Result<Published> result, int64_t EngineStats::*count) {
  if (count == nullptr)
    count = !result.ok()      ? &EngineStats::publications_failed
            : result->already ? &EngineStats::publications_already
                              : &EngineStats::published;
  p.closing = true;
  if (p.showing) p.showing->stop();
  p.workspace.reset();
  p.base.reset();
  auto ticket = p.ticket;
  auto on_end = std::move(p.asked.on_end);
  std::unique_ptr<Publishing> ended;
  {
    std::lock_guard lock(mutex);
    ++(stats.*count);
    --stats.publications_open;
    const auto at = std::ranges::find_if(publications, [&](const auto& other) { return other.get() == &p; });
    ended = std::move(*at);
    publications.erase(at);
  }
  // A store that is in the middle of something holds nobody up.
  ended->at_rest() ? ended.reset() : left.push_back(std::move(ended));
  {
    std::lock_guard lock(ticket->mutex_);
    ticket->result_ = std::move(result);
    ticket->ended_.notify_all();
  }
  if (on_end) on_end();
}

void EngineLoop::end_late(Publishing& p) {
  end(p,
      error(Code::kExhausted, "late: the store has taken nothing for {} ms",
            (now_ns() - p.last_progress_ns()) / 1'000'000),
      &EngineStats::publications_late);
}

bool EngineLoop::hangs(const Store* store) const {
  return std::ranges::any_of(left, [&](const auto& p) {
    return p->asked.store == store && now_ns() - p->last_progress_ns() > limits.publish_patience_ns;
  });
}

void EngineLoop::end_publications(const Status& why) {
  std::vector<Publishing*> ended;
  {
    std::lock_guard lock(mutex);
    for (const auto& p : publications)
      if (p->state != Publishing::State::kWriting) ended.push_back(p.get());
  }
  for (Publishing* p : ended) end(*p, why);
}

void EngineLoop::begin_again(Publishing& p) {
  auto work = Publication::create(backend, p.asked.sender->model(), p.asked.sender->identity(),
                                  p.asked.context, p.asked.options);
  if (!work.ok()) return end(p, work.status());
  if (p.showing) {  // what it shows goes when its store lets it
    auto before = std::make_unique<Publishing>();
    before->asked.store = p.asked.store;
    before->asked.store_owner = p.asked.store_owner;
    before->progress_ns = now_ns();
    before->work = std::move(p.work);
    before->showing = std::move(p.showing);
    before->showing->stop();
    left.push_back(std::move(before));
  }
  p.work = std::move(work).value();
  p.go_on();
  p.show([w = wake] { (*w)(); });
}

void EngineLoop::look_up(Publishing& p) {
  p.found = std::make_shared<LookUp>();
  const Receiver& sender = *p.asked.sender;
  // It has all of its own: it may outlive the publication, and the engine.
  auto look = [found = p.found, store = p.asked.store, context = p.asked.context,
               identity = p.work->identity(), has_all = p.work->has_all(),
               shape = sender.model().config().shape(), salt = p.asked.options.salt,
               dtype = sender.model().dtype(), only_new = p.asked.options.only_new] {
    const auto n = static_cast<int64_t>(context.size());
    if (only_new) {
      const Chain chain =
          chain_to_go_on_from(*store, context, {identity.sender, shape, salt, dtype, has_all});
      if (!chain.links.empty()) {
        found->tokens = chain.tokens();
        found->links = chain.links.size();
        found->key = chain.links.back().key;
      }
    } else if (auto entry = EntryReader::open(*store, identity, shape); entry.ok()) {
      if (has_all(*entry).ok()) found->tokens = n;
      found->key = identity.key();
    }
    found->done.store(true, std::memory_order_release);
  };
  service->look_up(p.asked.store, p.asked.store_owner, std::move(look));
}

void Publishing::go_on() {
  if (found == nullptr || found->tokens == 0) return;
  const int64_t first = found->tokens;
  if (base == nullptr) return work->go_on_from(first, {});
  work->go_on_from(first, [range = &base->range(), bytes = first * station->receiver->row_bytes().kv](
                              int64_t layer, std::byte* to, CommandStream& stream) {
    stream.copy(to, range->layer(layer), bytes);
    return ok_status();
  });
}

void Publishing::show(std::function<void()> wake) {
  if (asked.options.live_rows == 0) return;
  auto begun = Showing::begin(*work, *asked.store, asked.options.live_rows, std::move(wake));
  unshown = begun.status();
  if (begun.ok()) showing = std::move(*begun);
}

void EngineLoop::watch_publication() {
  std::erase_if(left, [](const auto& p) { return p->at_rest(); });
  Publishing* p = publishing();
  if (p == nullptr) return;
  const auto late = [&] { return now_ns() - p->last_progress_ns() > limits.publish_patience_ns; };
  if (p->ticket->cancelled_ && p->state != Publishing::State::kWriting) {
    // What is shown goes first, if the store lets it.
    if (p->showing) p->showing->stop();
    if (p->showing && !p->showing->ended() && !late()) return;
    return end(*p, error(Code::kExhausted, "the publication was cancelled"),
               &EngineStats::publications_cancelled);
  }
  switch (p->state) {
    case Publishing::State::kQueued:
      if (hangs(p->asked.store))
        return end(*p, error(Code::kExhausted, "late: the store hangs in another publication"),
                   &EngineStats::publications_late);
      p->progress_ns = now_ns();
      look_up(*p);
      p->state = Publishing::State::kLookingUp;
      break;
    case Publishing::State::kLookingUp: {
      const LookUp& found = *p->found;
      if (!found.done.load(std::memory_order_acquire)) {
        if (late()) end_late(*p);
        break;
      }
      const auto& context = p->asked.context;
      if (found.tokens == static_cast<int64_t>(context.size()))
        return end(*p,
                   Published{.key = found.key, .first = found.tokens, .after = found.links, .already = true});
      if (found.tokens > 0 && limits.prefix_cache) {
        auto hit = prefixes.find(exact_salt(*p->asked.sender, p->asked.options.salt), context);
        if (hit.rows >= found.tokens) p->base = std::move(hit.node);
      }
      p->go_on();
      // Requests' memory goes first: it waits until there is some.
      if (auto claim = arena->claim(p->work->bytes()); claim.ok()) {
        p->claim = std::move(claim).value();
        p->state = Publishing::State::kComputing;
        p->show([w = wake] { (*w)(); });
      }
      break;
    }
    case Publishing::State::kComputing:
      if (!p->work->done()) break;
      p->base.reset();
      p->state = Publishing::State::kWriting;
      p->progress_ns = now_ns();
      p->writer = std::thread([p, w = wake] {
        if (p->showing) p->showing->finish();
        StoppableStore store(*p->asked.store, [p]() -> Status {
          p->progress_ns = now_ns();
          if (p->closing) return error(Code::kExhausted, "the engine was closed");
          return p->ticket->cancelled_ ? error(Code::kExhausted, "the publication was cancelled")
                                       : ok_status();
        });
        p->result = p->work->write(store);
        if (p->result.ok()) {
          p->result->after = p->found->links;
          if (!p->unshown.ok()) p->result->live = p->unshown;
        } else if (p->showing) {
          p->work->hide();
        }
        p->written.store(true, std::memory_order_release);
        (*w)();
      });
      break;
    case Publishing::State::kWriting:
      if (p->written.load(std::memory_order_acquire)) {
        const bool cancelled = !p->result.ok() && p->ticket->cancelled_;
        end(*p, std::move(p->result), cancelled ? &EngineStats::publications_cancelled : nullptr);
      } else if (late()) {
        end_late(*p);
      }
      break;
  }
}

}  // namespace ds
