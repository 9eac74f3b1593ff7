#include "runtime/model/tokenizer_bpe_internal.h"

#include <algorithm>
#include <bit>

#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds {
namespace {

constexpr int64_t kMaxId = (int64_t{1} << 22) - 1;  // far above any vocabulary, low enough for a table by id

std::string shown(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 60);
}

}  // namespace

Result<Bpe> Bpe::read(const nlohmann::json& value, const std::string& where) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  DS_ASSIGN(std::string type, object.string_or("type", "BPE"));  // GPT-2's own file names no type
  if (type != "BPE") {
    return error(Code::kUnsupported, "{}: model '{}' is not supported; supported: BPE", where, type);
  }
  Bpe bpe;
  bpe.where_ = where;
  if (object.has("dropout")) {
    DS_ASSIGN(double dropout, object.number("dropout", 0, 1));
    if (dropout > 0) {
      return error(Code::kUnsupported, "{}: is {}, but random merges are not supported; set it to null",
                   object.at("dropout"), dropout);
    }
  }
  for (std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    DS_ASSIGN(std::string affix, object.string_or(key, ""));
    if (!affix.empty()) {
      return error(Code::kUnsupported, "{}: is '{}', but sub-word affixes are not supported", object.at(key),
                   affix);
    }
  }
  DS_ASSIGN(bpe.fuse_unk_, object.boolean_or("fuse_unk", false));
  DS_ASSIGN(bpe.byte_fallback_, object.boolean_or("byte_fallback", false));
  DS_ASSIGN(bpe.ignore_merges_, object.boolean_or("ignore_merges", false));
  bpe.has_unk_ = object.has("unk_token");
  DS_ASSIGN(bpe.unk_token_, object.string_or("unk_token", ""));
  DS_ASSIGN(JsonObject vocab, object.object("vocab"));
  DS_ASSIGN(const nlohmann::json* merges, object.array("merges"));
  DS_TRY(bpe.read_vocab(vocab.json(), vocab.where()));
  DS_TRY(bpe.read_merges(*merges, object.at("merges")));

  bpe.unk_id_ = bpe.token_id(bpe.unk_token_);
  for (int b = 0; b < 256; ++b) {
    bpe.byte_ids_[static_cast<size_t>(b)] = bpe.token_id(fmt::format("<0x{:02X}>", b));
  }
  for (char32_t c = 0; c < bpe.char_ids_.size(); ++c) {
    std::string text;
    unicode::append_char(text, c);
    bpe.char_ids_[c] = bpe.token_id(text);
  }
  return bpe;
}

Status Bpe::read_vocab(const nlohmann::json& vocab, const std::string& where) {
  int64_t highest = -1;
  for (const auto& [token, id] : vocab.items()) {
    bool integral = id.is_number_integer() && !(id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX);
    if (!integral || id.get<int64_t>() < 0 || id.get<int64_t>() > kMaxId) {
      return error(Code::kCorrupt, "{}: token '{}' has id {}, expected an integer in [0, {}]", where, token,
                   shown(id), kMaxId);
    }
    highest = std::max(highest, id.get<int64_t>());
  }
  owned_.reserve(vocab.size());
  vocab_.reserve(vocab.size());
  tokens_.assign(static_cast<size_t>(highest + 1), {});
  for (const auto& [token, id] : vocab.items()) {
    auto value = id.get<int32_t>();
    std::string_view& slot = tokens_[static_cast<size_t>(value)];
    if (slot.data() != nullptr) {
      return error(Code::kCorrupt, "{}: id {} belongs to two tokens, '{}' and '{}'", where, value, slot,
                   token);
    }
    slot = owned_.emplace_back(token);
    vocab_.emplace(slot, value);
  }
  return ok_status();
}

Status Bpe::read_merges(const nlohmann::json& merges, const std::string& where) {
  merges_.assign(std::bit_ceil(std::max<size_t>(merges.size() * 2, 16)), {});
  int32_t rank = 0;
  std::string joined;
  for (size_t i = 0; i < merges.size(); ++i) {
    const nlohmann::json& entry = merges[i];
    std::string_view left, right;
    if (entry.is_string()) {
      std::string_view text = entry.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      size_t space = text.find(' ');
      if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
        return error(Code::kCorrupt, "{}[{}]: found '{}', expected two tokens with one space between", where,
                     i, text);
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
      left = entry[0].get_ref<const std::string&>();
      right = entry[1].get_ref<const std::string&>();
    } else {
      return error(Code::kCorrupt, "{}[{}]: found {}, expected \"a b\" or [\"a\", \"b\"]", where, i,
                   shown(entry));
    }
    joined.assign(left).append(right);
    int32_t ids[3];
    std::string_view names[3] = {left, right, joined};
    for (int k = 0; k < 3; ++k) {
      ids[k] = token_id(names[k]);
      if (ids[k] < 0) {
        return error(Code::kCorrupt, "{}[{}] ('{}' and '{}'): the vocabulary has no token '{}'", where, i,
                     left, right, names[k]);
      }
    }
    add_merge(ids[0], ids[1], rank++, ids[2]);
  }
  return ok_status();
}

int32_t Bpe::token_id(std::string_view token) const {
  auto it = vocab_.find(token);
  return it == vocab_.end() ? -1 : it->second;
}

std::string_view Bpe::token(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() ? tokens_[static_cast<size_t>(id)]
                                                             : std::string_view();
}

std::string Bpe::options() const {
  std::string out = ignore_merges_ ? "words of the vocabulary are not merged" : "all words are merged";
  const bool all_bytes =
      byte_fallback_ && std::all_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id >= 0; });
  if (all_bytes) return out + "; unknown characters are bytes";
  if (byte_fallback_) out += "; unknown characters are bytes where all of these are tokens";
  if (!has_unk_) return out + "; unknown characters are nothing";
  return out + fmt::format("; unknown characters are '{}'{}", unk_token_,
                           fuse_unk_ ? ", one for neighbours" : ", each");
}

std::vector<std::pair<int32_t, int32_t>> Bpe::merges() const {
  std::vector<const Merge*> used;
  for (const Merge& m : merges_)
    if (m.pair != kNoPair) used.push_back(&m);
  std::sort(used.begin(), used.end(), [](const Merge* a, const Merge* b) { return a->rank < b->rank; });
  std::vector<std::pair<int32_t, int32_t>> out;
  out.reserve(used.size());
  for (const Merge* m : used)
    out.emplace_back(static_cast<int32_t>(m->pair >> 32), static_cast<int32_t>(m->pair & 0xFFFFFFFFu));
  return out;
}

const Bpe::Merge* Bpe::find_merge(int32_t a, int32_t b) const {
  uint64_t pair = pair_of(a, b);
  size_t mask = merges_.size() - 1;
  for (size_t i = pair * 0x9E3779B97F4A7C15u >> 32 & mask;; i = (i + 1) & mask) {
    if (merges_[i].pair == pair) return &merges_[i];
    if (merges_[i].pair == kNoPair) return nullptr;
  }
}

void Bpe::add_merge(int32_t a, int32_t b, int32_t rank, int32_t merged) {
  uint64_t pair = pair_of(a, b);
  size_t mask = merges_.size() - 1;
  size_t i = pair * 0x9E3779B97F4A7C15u >> 32 & mask;
  while (merges_[i].pair != kNoPair && merges_[i].pair != pair) i = (i + 1) & mask;
  merges_[i] = {pair, rank, merged};  // of equal pairs the last one counts, as in the package
}

Status Bpe::to_symbols(std::string_view piece, std::vector<int32_t>& ids) const {
  int32_t pending_unk = -1;
  for (size_t at = 0; at < piece.size();) {
    size_t begin = at;
    char32_t c = unicode::next_char(piece, at);
    std::string_view text = piece.substr(begin, at - begin);
    int32_t id = c < char_ids_.size() ? char_ids_[c] : token_id(text);
    if (id >= 0) {
      if (pending_unk >= 0) ids.push_back(pending_unk);
      pending_unk = -1;
      ids.push_back(id);
      continue;
    }
    if (byte_fallback_ && std::all_of(text.begin(), text.end(), [&](char b) {
          return byte_ids_[static_cast<unsigned char>(b)] >= 0;
        })) {
      // The package leaves an unknown token before these bytes pending: it comes after them.
      for (char b : text) ids.push_back(byte_ids_[static_cast<unsigned char>(b)]);
      continue;
    }
    if (!has_unk_) continue;  // the package drops such a character
    if (unk_id_ < 0) {
      return error(Code::kCorrupt,
                   "{}: the text has a character '{}' that needs 'unk_token', but the vocabulary has no "
                   "token '{}'",
                   where_, text, unk_token_);
    }
    if (pending_unk >= 0 && !fuse_unk_) ids.push_back(pending_unk);
    pending_unk = unk_id_;
  }
  if (pending_unk >= 0) ids.push_back(pending_unk);
  return ok_status();
}

/// Best merge first, the leftmost of equals; a scan over all pairs for each.
void Bpe::merge_short(std::vector<int32_t>& ids, Scratch& scratch) const {
  constexpr uint64_t kNone = ~uint64_t{0};
  std::vector<uint64_t>& merges = scratch.short_merges;  // rank and result of each pair
  auto merge_at = [&](size_t i) -> uint64_t {
    const Merge* m = find_merge(ids[i], ids[i + 1]);
    return m == nullptr ? kNone : static_cast<uint64_t>(m->rank) << 32 | static_cast<uint32_t>(m->merged);
  };
  merges.clear();
  for (size_t i = 0; i + 1 < ids.size(); ++i) merges.push_back(merge_at(i));
  while (!merges.empty()) {
    auto best = std::min_element(merges.begin(), merges.end(),
                                 [](uint64_t a, uint64_t b) { return a >> 32 < b >> 32; });
    if (*best == kNone) break;
    auto i = static_cast<size_t>(best - merges.begin());
    ids[i] = static_cast<int32_t>(*best & 0xFFFFFFFFu);
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    merges.erase(best);
    if (i < merges.size()) merges[i] = merge_at(i);
    if (i > 0) merges[i - 1] = merge_at(i - 1);
  }
}

/// The same with a heap and a linked list: O(n log n) whatever the text.
void Bpe::merge_long(std::vector<int32_t>& ids, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  auto worse = [](const Scratch::Candidate& a, const Scratch::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  symbols.clear();
  heap.clear();
  auto n = static_cast<int32_t>(ids.size());
  for (int32_t i = 0; i < n; ++i)
    symbols.push_back({ids[static_cast<size_t>(i)], i - 1, i + 1 < n ? i + 1 : -1, true});
  auto symbol = [&](int32_t i) -> Scratch::Symbol& { return symbols[static_cast<size_t>(i)]; };
  auto consider = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) return false;
    const Merge* m = find_merge(symbol(left).id, symbol(right).id);
    if (m == nullptr) return false;
    heap.push_back({m->rank, left, m->merged});
    return true;
  };
  for (int32_t i = 0; i + 1 < n; ++i) consider(i, i + 1);
  std::make_heap(heap.begin(), heap.end(), worse);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    Scratch::Candidate top = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbol(top.position);
    if (!left.alive || left.next < 0) continue;
    Scratch::Symbol& right = symbol(left.next);
    const Merge* m = find_merge(left.id, right.id);
    if (m == nullptr || m->merged != top.merged) continue;  // the pair has changed since
    left.id = top.merged;
    left.next = right.next;
    right.alive = false;
    if (right.next >= 0) symbol(right.next).previous = top.position;
    if (consider(left.previous, top.position)) std::push_heap(heap.begin(), heap.end(), worse);
    if (consider(top.position, left.next)) std::push_heap(heap.begin(), heap.end(), worse);
  }
  ids.clear();
  for (const auto& s : symbols) {
    if (s.alive) ids.push_back(s.id);
  }
}

Status Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (piece.empty()) return ok_status();
  if (ignore_merges_) {
    if (int32_t id = token_id(piece); id >= 0) {
      out.push_back(id);
      return ok_status();
    }
  }
  bool cached = piece.size() <= kCachedBytes;
  if (cached) {
    auto it = scratch.words.find(piece);
    if (it != scratch.words.end()) {
      auto [begin, count] = it->second;
      out.insert(out.end(), scratch.ids.begin() + begin, scratch.ids.begin() + begin + count);
      return ok_status();
    }
  }
  std::vector<int32_t>& ids = scratch.short_ids;
  ids.clear();
  DS_TRY(to_symbols(piece, ids));
  if (ids.size() <= kShort) {
    merge_short(ids, scratch);
  } else {
    merge_long(ids, scratch);
  }
  out.insert(out.end(), ids.begin(), ids.end());
  if (cached) {
    scratch.words.emplace(
        piece, std::pair(static_cast<uint32_t>(scratch.ids.size()), static_cast<uint32_t>(ids.size())));
    scratch.ids.insert(scratch.ids.end(), ids.begin(), ids.end());
  }
  return ok_status();
}

}  // namespace ds
