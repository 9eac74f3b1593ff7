#include "serve/registered_cuts.h"

#include <algorithm>
#include <chrono>
#include <system_error>

#include "runtime/model/identity.h"
#include "runtime/store/registered_plans.h"

namespace ds {

RegisteredCuts::~RegisteredCuts() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  if (looking_.joinable()) looking_.join();
}

Status RegisteredCuts::keep_looking() {
  try {
    looking_ = std::thread([this] {
      const auto every = std::chrono::duration<double>(fleet_.fleet().registered_s);
      std::unique_lock lock(mutex_);
      while (!changed_.wait_for(lock, every, [this] { return stopping_; })) {
        lock.unlock();
        look();
        lock.lock();
      }
    });
  } catch (const std::system_error& e) {
    return error(Code::kExhausted, "starting the thread that looks for registered plans: {}", e.what());
  }
  return ok_status();
}

/// None: it is gone meanwhile.
std::optional<RegisteredCuts::Known> RegisteredCuts::read(const std::string& key) const {
  Known known;
  auto plan = registered_plan(*fleet_.store(), key);
  if (!plan.ok()) {
    if (plan.status().code() == Code::kNotFound) return std::nullopt;
    known.problem = plan.status().message();
    return known;
  }
  known.sender = plan->sender.name;
  known.receiver = plan->receiver.name;
  const auto problem = [&](const std::string& what) {
    known.problem = fmt::format("registered plan '{}' in '{}': {}", key, fleet_.store()->url(), what);
  };
  for (const auto& model : fleet_.models()) {
    if (!model->given.publish || !same_model(plan->sender, model->identity)) continue;
    if (plan->sender.fingerprint != model->identity.fingerprint) {
      problem(
          fmt::format("it names the sender by another file of its tokenizer ({:.12}; model '{}' has "
                      "{:.12}), and would not find what is published; compile it again",
                      plan->sender.fingerprint, model->given.name, model->identity.fingerprint));
      continue;
    }
    MappedCuts cuts{published_cuts(*plan), nullptr};
    if (through_maps(cuts.cuts)) {
      const auto& plans = fleet_.plans();
      const auto with = std::find_if(plans.begin(), plans.end(), [&](const auto& p) {
        return p->maps && p->plan.maps.fingerprint == plan->maps.fingerprint;
      });
      if (with == plans.end()) {
        problem(
            fmt::format("the sender takes its hidden states through the maps '{}' ({:.12}), which no plan "
                        "of the fleet file has; name it there, with its 'maps'",
                        plan->maps.name, plan->maps.fingerprint));
        continue;
      }
      cuts.maps = &*(*with)->maps;
      if (Status status = cuts.maps->check_plan((*with)->given.maps, *plan); !status.ok()) {
        problem(status.message());
        continue;
      }
    }
    known.wanted.emplace_back(model.get(), std::move(cuts));
  }
  return known;
}

void RegisteredCuts::look() {
  const auto keys = registered_keys(*fleet_.store());
  const std::string before = std::exchange(unasked_, keys.status().message());
  if (!keys.ok()) {
    if (unasked_ != before)
      say_(fmt::format("plans that are registered in '{}' cannot be looked for now: {}",
                       fleet_.store()->url(), unasked_));
    return;
  }
  // Only this changes known_.
  std::map<std::string, Known> now;
  for (const std::string& key : *keys) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return;
    }
    const auto old = known_.find(key);
    // A key is its plan's hash; one that could not be used may have been put right.
    if (old != known_.end() && old->second.problem.empty()) {
      now.insert(*old);
      continue;
    }
    auto known = read(key);
    if (!known) continue;
    if (!known->problem.empty() && (old == known_.end() || old->second.problem != known->problem))
      say_(known->problem + "; nothing is published for it");
    now.emplace(key, std::move(*known));
  }
  std::lock_guard lock(mutex_);
  if (now == known_) return;
  known_ = std::move(now);
  ++version_;
}

bool RegisteredCuts::add_to(const ServedModel& model, WantedCuts& wanted) const {
  std::lock_guard lock(mutex_);
  bool any = false;
  for (const auto& [key, known] : known_)
    for (const auto& [whose, cuts] : known.wanted) {
      if (whose != &model) continue;
      wanted.add(cuts);
      any = true;
    }
  return any;
}

int64_t RegisteredCuts::version() const {
  std::lock_guard lock(mutex_);
  return version_;
}

std::vector<RegisteredCuts::Shown> RegisteredCuts::shown() const {
  std::lock_guard lock(mutex_);
  std::vector<Shown> all;
  for (const auto& [key, known] : known_) {
    all.push_back({key, known.sender, known.receiver, {}, known.problem});
    for (const auto& [model, cuts] : known.wanted) all.back().models.push_back(model->given.name);
  }
  return all;
}

}  // namespace ds
