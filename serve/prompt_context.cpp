#include "serve/prompt_context.h"

#include <algorithm>
#include <set>

namespace ds {

int64_t shared_blocks(int64_t prompt_tokens) {
  return std::max<int64_t>(0, prompt_tokens - 1) / kChecksumRows * kChecksumRows;
}

int64_t context_tokens(const ServedModel& model, Store* store, std::span<const int32_t> prompt,
                       const std::string& salt) {
  const int64_t blocks = shared_blocks(static_cast<int64_t>(prompt.size()));
  int64_t longest = 0;
  if (store == nullptr || blocks == 0) return blocks;
  const DType dtype = model.model->dtype();
  std::set<std::string> senders;
  for (const ServedPlan* p : model.plans) {
    const std::string& sender = p->plan.sender.fingerprint;
    if (!senders.insert(sender).second) continue;
    const auto names = block_names(sender, prompt.first(static_cast<size_t>(blocks)), 0, salt, dtype);
    auto found = store->find({}, names);
    if (!found.ok()) continue;
    // The longest entries have the last of the names; one that goes on otherwise than the prompt is not it.
    std::set<std::string> seen;
    for (size_t i = names.size(); i-- > 0;) {
      for (const ObjectRef& ref : found->names[i]) {
        if (!seen.insert(ref.key).second) continue;
        auto entry = EntryReader::open_named(*store, ref, names[i], p->plan.shape);
        if (!entry.ok()) continue;
        const EntryIdentity& is = entry->header().identity;
        if (is.first != 0 || is.tokens <= longest || is.tokens >= static_cast<int64_t>(prompt.size()))
          continue;
        if (hash_tokens(prompt.first(static_cast<size_t>(is.tokens))) == is.tokens_hash) longest = is.tokens;
      }
    }
  }
  return longest > 0 ? longest : blocks;
}

}  // namespace ds
