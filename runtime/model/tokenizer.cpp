#include "runtime/model/tokenizer.h"

#include <algorithm>
#include <map>
#include <optional>
#include <unordered_set>

#include "runtime/model/tokenizer_beside_internal.h"
#include "runtime/model/tokenizer_bpe_internal.h"
#include "runtime/model/tokenizer_steps_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/file.h"
#include "support/json.h"

namespace ds {
namespace {

/// Finds added tokens in a text: at each place the longest, from left to right.
class TokenFinder {
 public:
  /// False where the text was added before.
  bool add(std::string_view text, const AddedToken* token) {
    int32_t node = 0;
    for (char c : text) node = child(node, static_cast<unsigned char>(c));
    if (nodes_[static_cast<size_t>(node)].token != nullptr) return false;
    nodes_[static_cast<size_t>(node)].token = token;
    return true;
  }
  bool empty() const { return nodes_.size() == 1; }

  const AddedToken* longest_at(std::string_view text, size_t at) const {
    const AddedToken* found = nullptr;
    int32_t node = first_[static_cast<unsigned char>(text[at])];
    while (node > 0) {
      const Node& n = nodes_[static_cast<size_t>(node)];
      if (n.token != nullptr) found = n.token;
      if (++at == text.size()) break;
      node = next(n, static_cast<unsigned char>(text[at]));
    }
    return found;
  }

 private:
  struct Node {
    const AddedToken* token = nullptr;
    std::vector<std::pair<unsigned char, int32_t>> children;  // sorted
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
  std::array<int32_t, 256> first_{};  // children of the root; 0: none

  static int32_t next(const Node& n, unsigned char c) {
    auto it = std::lower_bound(n.children.begin(), n.children.end(), std::pair<unsigned char, int32_t>(c, 0));
    return it != n.children.end() && it->first == c ? it->second : 0;
  }
  int32_t child(int32_t node, unsigned char c) {
    Node& n = nodes_[static_cast<size_t>(node)];
    int32_t found = node == 0 ? first_[c] : next(n, c);
    if (found > 0) return found;
    auto made = static_cast<int32_t>(nodes_.size());
    if (node == 0) {
      first_[c] = made;
    } else {
      n.children.insert(
          std::lower_bound(n.children.begin(), n.children.end(), std::pair<unsigned char, int32_t>(c, 0)),
          {c, made});
    }
    nodes_.emplace_back();
    return made;
  }
};

/// A stretch of text, or an added token that stands in it.
struct Segment {
  size_t begin = 0, end = 0;
  const AddedToken* token = nullptr;
};

char32_t char_before(std::string_view text, size_t at) {
  --at;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return unicode::next_char(text, at);
}

std::vector<Segment> find_segments(const TokenFinder& finder, std::string_view text) {
  std::vector<Segment> out;
  size_t covered = 0;
  if (!finder.empty()) {
    for (size_t at = 0; at < text.size();) {
      const AddedToken* token = finder.longest_at(text, at);
      if (token == nullptr) {
        ++at;
        continue;
      }
      size_t begin = at, end = at + token->matched.size();
      at = end;
      if (token->single_word) {
        size_t after = end;
        if ((begin > 0 && unicode::is_word(char_before(text, begin))) ||
            (end < text.size() && unicode::is_word(unicode::next_char(text, after)))) {
          continue;
        }
      }
      if (token->lstrip) {
        while (begin > covered && unicode::is_white_space(char_before(text, begin))) {
          --begin;
          while ((static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
        }
        begin = std::max(begin, covered);
      }
      if (token->rstrip) {
        for (size_t after = end; after < text.size();) {
          if (!unicode::is_white_space(unicode::next_char(text, after))) break;
          end = after;
        }
      }
      if (begin >= end) continue;  // the token before has taken all of it, with the space behind itself
      if (covered < begin) out.push_back({covered, begin, nullptr});
      out.push_back({begin, end, token});
      covered = end;
    }
  }
  if (covered < text.size()) out.push_back({covered, text.size(), nullptr});
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  std::string path;
  Bpe bpe;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  std::map<int32_t, AddedToken> added;                    // by id
  std::map<std::string, int32_t, std::less<>> added_ids;  // by content
  std::unordered_set<std::string> special;                // contents
  TokenFinder plain_finder, normalized_finder;
  // The template: ids to put in, -1 where the text's own go.
  std::vector<int32_t> pieces = {kText};
  static constexpr int32_t kText = -1;

  Status read(const nlohmann::json& root, const std::string& folder);
  Status read_added(const nlohmann::json& list, const std::string& where);
  Status add(AddedToken token, const std::string& where);
  Status make_finders();
  void frame_text(const BesideTokenizer& beside);
  int32_t next_id() const;
  Status read_post_processor(const nlohmann::json& value, const std::string& where, int depth, bool& done);
  Status read_template(const JsonObject& object);
  int32_t token_id(std::string_view content) const;
  Status encode_text(std::string_view text, bool at_start, Bpe::Scratch& scratch, TextPool& pool,
                     std::vector<int32_t>& out) const;

  /// The text that decoding starts from; data() null: no token has this id.
  std::string_view token(int32_t id) const {
    auto it = added.find(id);
    return it != added.end() ? std::string_view(it->second.decoded) : bpe.token(id);
  }
  /// As it is written; data() null: no token has this id.
  std::string_view content(int32_t id) const {
    auto it = added.find(id);
    return it != added.end() ? std::string_view(it->second.content) : bpe.token(id);
  }
  /// How texts are searched for it.
  std::string how_added(int32_t id) const {
    auto it = added.find(id);
    if (it == added.end()) return "of the vocabulary only";
    const AddedToken& t = it->second;
    return fmt::format("added{}{}{}{}", t.single_word ? ", single word" : "", t.lstrip ? ", lstrip" : "",
                       t.rstrip ? ", rstrip" : "", t.normalized ? ", normalized" : "");
  }
  Status feed(Decoder::Run& run, int32_t id, bool skip_special, std::string& out) const {
    const std::string_view text = token(id);
    if (text.data() == nullptr) return ok_status();
    if (skip_special && special.count(std::string(text)) > 0) return ok_status();
    return run.feed(text, out);
  }
};

Status Tokenizer::Impl::read(const nlohmann::json& root, const std::string& folder) {
  DS_ASSIGN(JsonObject object, JsonObject::make(root, path));
  DS_ASSIGN(std::string version, object.string_or("version", "1.0"));
  if (version != "1.0") {
    return error(Code::kUnsupported, "{}: found '{}', this version reads '1.0'", object.at("version"),
                 version);
  }
  const nlohmann::json null;
  auto part = [&](const char* key) -> const nlohmann::json& {
    auto it = root.find(key);
    return it == root.end() ? null : *it;
  };
  DS_ASSIGN(JsonObject model, object.object("model"));
  DS_ASSIGN(bpe, Bpe::read(model.json(), model.where()));
  DS_ASSIGN(normalizer, Normalizer::read(part("normalizer"), object.at("normalizer")));
  DS_ASSIGN(pre_tokenizer, PreTokenizer::read(part("pre_tokenizer"), object.at("pre_tokenizer")));
  DS_ASSIGN(decoder, Decoder::read(part("decoder"), object.at("decoder")));
  if (object.has("added_tokens")) {
    DS_ASSIGN(const nlohmann::json* list, object.array("added_tokens"));
    DS_TRY(read_added(*list, object.at("added_tokens")));
  }
  std::vector<AddedToken> own;
  for (const auto& [id, token] : added) own.push_back(token);
  DS_ASSIGN(BesideTokenizer beside, read_beside(folder, own));
  for (AddedToken& token : beside.tokens) {
    token.id = token_id(token.content);
    if (token.id < 0) {
      token.id = next_id();
      if (std::string_view taken = bpe.token(token.id); taken.data() != nullptr)
        return error(Code::kCorrupt,
                     "{}: token '{}' beside tokenizer.json would get the next id, {}, which its vocabulary "
                     "gives to '{}'; add the token to tokenizer.json",
                     folder, token.content, token.id, taken);
    }
    DS_TRY(add(std::move(token), folder + ": an added token beside tokenizer.json"));
  }
  DS_TRY(make_finders());
  bool done = false;
  if (!part("post_processor").is_null()) {
    DS_TRY(read_post_processor(part("post_processor"), object.at("post_processor"), 0, done));
  }
  frame_text(beside);
  return ok_status();
}

/// The package gives ids itself: the model's where it has the token, else the next free one.
int32_t Tokenizer::Impl::token_id(std::string_view content) const {
  auto it = added_ids.find(content);
  return it != added_ids.end() ? it->second : bpe.token_id(content);
}
int32_t Tokenizer::Impl::next_id() const {
  const auto size = static_cast<int32_t>(bpe.size());
  return added.empty() ? size : std::max(size, added.rbegin()->first + 1);
}

/// Where tokenizer.json puts nothing before a text, or nothing behind it, tokenizer_config.json may.
void Tokenizer::Impl::frame_text(const BesideTokenizer& beside) {
  if (pieces.empty()) return;
  if (beside.add_bos && !beside.bos_token.empty() && pieces.front() == kText)
    pieces.insert(pieces.begin(), token_id(beside.bos_token));
  if (beside.add_eos && !beside.eos_token.empty() && pieces.back() == kText)
    pieces.push_back(token_id(beside.eos_token));
}

Status Tokenizer::Impl::read_added(const nlohmann::json& list, const std::string& where) {
  for (size_t i = 0; i < list.size(); ++i) {
    DS_ASSIGN(JsonObject object, JsonObject::make(list[i], fmt::format("{}[{}]", where, i)));
    AddedToken token;
    DS_ASSIGN(int64_t id, object.integer("id", 0, INT32_MAX));
    DS_ASSIGN(token.content, object.string("content"));
    DS_ASSIGN(token.single_word, object.boolean("single_word"));
    DS_ASSIGN(token.lstrip, object.boolean("lstrip"));
    DS_ASSIGN(token.rstrip, object.boolean("rstrip"));
    DS_ASSIGN(token.normalized, object.boolean("normalized"));
    DS_ASSIGN(token.special, object.boolean("special"));
    if (token.content.empty()) continue;

    int32_t expected = token_id(token.content);
    if (expected < 0) expected = next_id();
    if (id != expected) {
      return error(Code::kCorrupt, "{}: token '{}' has id {}, expected {} ({})", object.at("id"),
                   token.content, id, expected,
                   bpe.token_id(token.content) >= 0 ? "its id in the vocabulary"
                                                    : "the first id after the vocabulary");
    }
    if (bpe.token(static_cast<int32_t>(id)).data() != nullptr && bpe.token_id(token.content) != id) {
      return error(Code::kCorrupt, "{}: token '{}' has id {}, which the vocabulary gives to '{}'",
                   object.at("id"), token.content, id, bpe.token(static_cast<int32_t>(id)));
    }
    token.id = expected;
    DS_TRY(add(std::move(token), object.where()));
  }
  return ok_status();
}

/// One that is there already gets the new flags, but stays special, and is decoded as it was (in the package,
/// too).
Status Tokenizer::Impl::add(AddedToken token, const std::string& where) {
  token.matched = token.content;
  if (token.normalized) {
    bool at_start = true;
    DS_TRY(normalizer.apply(token.matched, at_start).with_context(where));
    if (token.matched.empty()) {
      return error(Code::kCorrupt, "{}: nothing is left of token '{}' after the normalizer", where,
                   token.content);
    }
  }
  auto before = added.find(token.id);
  token.decoded = token.normalized || before == added.end() ? token.matched : before->second.decoded;
  if (token.special) special.insert(token.content);
  added_ids[token.content] = token.id;
  added[token.id] = std::move(token);
  return ok_status();
}

Status Tokenizer::Impl::make_finders() {
  for (const auto& [id, token] : added) {
    if (!(token.normalized ? normalized_finder : plain_finder).add(token.matched, &token)) {
      return error(Code::kCorrupt, "{}: several added tokens are '{}' after the normalizer", path,
                   token.matched);
    }
  }
  return ok_status();
}

Status Tokenizer::Impl::read_post_processor(const nlohmann::json& value, const std::string& where, int depth,
                                            bool& done) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  DS_ASSIGN(std::string type, object.string("type"));
  if (type == "ByteLevel") return ok_status();  // touches offsets only
  if (type == "Sequence") {
    if (depth >= 16) return error(Code::kUnsupported, "{}: sequences nested deeper than 16", where);
    DS_ASSIGN(const nlohmann::json* list, object.array("processors"));
    for (size_t i = 0; i < list->size(); ++i) {
      DS_TRY(read_post_processor((*list)[i], fmt::format("{}[{}]", object.at("processors"), i), depth + 1,
                                 done));
    }
    return ok_status();
  }
  if (type != "TemplateProcessing") {
    return error(
        Code::kUnsupported,
        "{}: post-processor '{}' is not supported; supported: TemplateProcessing, ByteLevel, Sequence", where,
        type);
  }
  if (done) return error(Code::kUnsupported, "{}: a second template is not supported", where);
  done = true;
  return read_template(object);
}

Status Tokenizer::Impl::read_template(const JsonObject& object) {
  DS_ASSIGN(const nlohmann::json* single, object.array("single"));
  DS_ASSIGN(JsonObject tokens, object.object("special_tokens"));
  pieces.clear();
  for (size_t i = 0; i < single->size(); ++i) {
    DS_ASSIGN(JsonObject piece,
              JsonObject::make((*single)[i], fmt::format("{}[{}]", object.at("single"), i)));
    if (piece.has("Sequence")) {
      DS_ASSIGN(JsonObject sequence, piece.object("Sequence"));
      DS_ASSIGN(std::string id, sequence.string("id"));
      if (id != "A") return error(Code::kCorrupt, "{}: found '{}', expected 'A'", sequence.at("id"), id);
      pieces.push_back(kText);
      continue;
    }
    DS_ASSIGN(JsonObject special_token, piece.object("SpecialToken"));
    DS_ASSIGN(std::string name, special_token.string("id"));
    DS_ASSIGN(JsonObject entry, tokens.object(name));
    DS_ASSIGN(const nlohmann::json* ids, entry.array("ids"));
    for (const nlohmann::json& id : *ids) {
      bool integral = id.is_number_integer() && !(id.is_number_unsigned() && id.get<uint64_t>() > INT64_MAX);
      int64_t number = integral ? id.get<int64_t>() : -1;
      if (number < 0 || number > INT32_MAX || token(static_cast<int32_t>(number)).data() == nullptr) {
        return error(Code::kCorrupt, "{}: found {}, expected ids of the vocabulary", entry.at("ids"),
                     ids->dump());
      }
      pieces.push_back(static_cast<int32_t>(number));
    }
  }
  return ok_status();
}

Status Tokenizer::Impl::encode_text(std::string_view text, bool at_start, Bpe::Scratch& scratch,
                                    TextPool& pool, std::vector<int32_t>& out) const {
  if (!normalizer.empty()) {
    std::string& normalized = pool.add(std::string(text));
    DS_TRY(normalizer.apply(normalized, at_start));
    text = normalized;
  }
  std::vector<Piece> words;
  for (const Segment& s : find_segments(normalized_finder, text)) {
    if (s.token != nullptr) {
      out.push_back(s.token->id);
      continue;
    }
    words.assign(1, {text.substr(s.begin, s.end - s.begin), at_start && s.begin == 0});
    DS_TRY(pre_tokenizer.apply(words, pool));
    for (const Piece& word : words) DS_TRY(bpe.encode(word.text, scratch, out));
  }
  return ok_status();
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::load(const std::string& folder) {
  auto impl = std::make_unique<Impl>();
  impl->path = folder + "/tokenizer.json";
  DS_ASSIGN(nlohmann::json root, read_json_file(impl->path));
  DS_TRY(impl->read(root, folder));
  return Tokenizer(std::move(impl));
}

Status check_utf8(std::string_view text) {
  size_t valid = unicode::valid_utf8_prefix(text);
  if (valid == text.size()) return ok_status();
  return error(Code::kInvalidArgument, "the text is not UTF-8: byte {} of {} is 0x{:02X}; convert it first",
               valid, text.size(), static_cast<unsigned char>(text[valid]));
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, bool add_special) const {
  DS_TRY(check_utf8(text));
  if (text.size() > INT32_MAX / 4) {
    return error(Code::kInvalidArgument, "the text has {} bytes; the most are {}", text.size(),
                 INT32_MAX / 4);
  }
  Bpe::Scratch scratch;
  TextPool pool;
  std::vector<int32_t> ids;
  for (const Segment& s : find_segments(impl_->plain_finder, text)) {
    if (s.token != nullptr) {
      ids.push_back(s.token->id);
    } else {
      DS_TRY(impl_->encode_text(text.substr(s.begin, s.end - s.begin), s.begin == 0, scratch, pool, ids));
    }
  }
  if (impl_->pieces.size() == 1 && impl_->pieces[0] == Impl::kText) return ids;
  std::vector<int32_t> out;
  for (int32_t piece : impl_->pieces) {
    if (piece == Impl::kText) {
      out.insert(out.end(), ids.begin(), ids.end());
    } else if (add_special) {
      out.push_back(piece);
    }
  }
  return out;
}

Result<std::string> Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  Decoder::Run run(impl_->decoder);
  std::string out;
  for (int32_t id : ids) DS_TRY(impl_->feed(run, id, skip_special, out));
  DS_TRY(run.finish(out));
  return out;
}

std::span<const int32_t> Tokenizer::prefix() const {
  const std::vector<int32_t>& pieces = impl_->pieces;
  const auto text = std::find(pieces.begin(), pieces.end(), Impl::kText);
  return std::span(pieces).first(static_cast<size_t>(text - pieces.begin()));
}

int64_t Tokenizer::vocab_size() const {
  int64_t count = impl_->bpe.size();
  for (const auto& [content, id] : impl_->added_ids) count += impl_->bpe.token_id(content) < 0 ? 1 : 0;
  return count;
}

int32_t Tokenizer::token_id(std::string_view content) const { return impl_->token_id(content); }

IdsComparison compare_ids(const Tokenizer& a, const std::string& name_a, const Tokenizer& b,
                          const std::string& name_b) {
  IdsComparison out;
  const Tokenizer::Impl &x = *a.impl_, &y = *b.impl_;
  auto differ = [&](std::string_view what, const std::string& of_a, const std::string& of_b) {
    if (out.difference.empty())
      out.difference = fmt::format("{}: {} in '{}', {} in '{}'", what, of_a, name_a, of_b, name_b);
  };
  auto name = [](int32_t id, std::string_view text) { return fmt::format("{} '{}'", id, text); };

  auto end_of = [](const Tokenizer::Impl& t) {
    return std::max(t.bpe.end_id(), t.added.empty() ? 0 : t.added.rbegin()->first + 1);
  };
  out.end_a = end_of(x);
  out.end_b = end_of(y);
  for (int32_t id = 0; id < std::max(out.end_a, out.end_b); ++id) {
    const std::string_view of_a = x.content(id), of_b = y.content(id);
    if (of_a.data() == nullptr && of_b.data() == nullptr) continue;
    if (of_b.data() == nullptr) {
      if (int32_t other = y.token_id(of_a); other >= 0)
        differ(fmt::format("the id of token '{}'", of_a), std::to_string(id), std::to_string(other));
      out.only_a.push_back({id, std::string(of_a)});
    } else if (of_a.data() == nullptr) {
      if (int32_t other = x.token_id(of_b); other >= 0)
        differ(fmt::format("the id of token '{}'", of_b), std::to_string(other), std::to_string(id));
      out.only_b.push_back({id, std::string(of_b)});
    } else if (of_a != of_b) {
      differ(fmt::format("token {}", id), fmt::format("'{}'", of_a), fmt::format("'{}'", of_b));
    } else if (const std::string how_a = x.how_added(id), how_b = y.how_added(id); how_a != how_b) {
      differ("token " + name(id, of_a), how_a, how_b);
    }
  }

  const auto steps = [&](std::string_view what, const std::vector<std::string>& of_a,
                         const std::vector<std::string>& of_b) {
    for (size_t i = 0; i < std::max(of_a.size(), of_b.size()); ++i) {
      const std::string step_a = i < of_a.size() ? of_a[i] : "none",
                        step_b = i < of_b.size() ? of_b[i] : "none";
      if (step_a != step_b) return differ(fmt::format("{} {}", what, i + 1), step_a, step_b);
    }
  };
  steps("normalizer", x.normalizer.canonical(), y.normalizer.canonical());
  steps("pre-tokenizer", x.pre_tokenizer.canonical(), y.pre_tokenizer.canonical());
  if (x.bpe.options() != y.bpe.options()) differ("the model", x.bpe.options(), y.bpe.options());
  if (out.difference.empty()) {
    const auto merges_a = x.bpe.merges(), merges_b = y.bpe.merges();
    auto text = [](const Bpe& bpe, const auto& merges, size_t i) {
      return i < merges.size()
                 ? fmt::format("'{} {}'", bpe.token(merges[i].first), bpe.token(merges[i].second))
                 : std::string("none");
    };
    const size_t most = std::max(merges_a.size(), merges_b.size());
    for (size_t i = 0; i < most; ++i) {
      if (i < merges_a.size() && i < merges_b.size() && merges_a[i] == merges_b[i]) continue;
      differ(fmt::format("merge {}", i + 1), text(x.bpe, merges_a, i), text(y.bpe, merges_b, i));
      break;
    }
  }
  if (!std::ranges::equal(a.prefix(), b.prefix()))
    differ("what stands before a text", fmt::format("[{}]", fmt::join(a.prefix(), ", ")),
           fmt::format("[{}]", fmt::join(b.prefix(), ", ")));
  return out;
}

Result<int64_t> check_same_ids(const Tokenizer& sender, const std::string& sender_name,
                               const Tokenizer& receiver, const std::string& receiver_name) {
  const IdsComparison found = compare_ids(sender, sender_name, receiver, receiver_name);
  if (found.agree()) return int64_t{found.end_a < found.end_b ? found.end_a : 0};
  return error(Code::kMismatch,
               "sender and receiver have different tokenizers: the same text would be other tokens, so that "
               "nothing can be reused; {}",
               found.difference);
}

namespace {

/// Whether both folders have the same bytes there, or nothing.
Result<bool> same_file(const std::string& a, const std::string& b) {
  auto read = [](const std::string& path) -> Result<std::optional<MappedFile>> {
    Result<MappedFile> file = MappedFile::open(path);
    if (file.ok()) return std::optional<MappedFile>(std::move(*file));
    if (file.status().code() == Code::kNotFound) return std::optional<MappedFile>();
    return file.status();
  };
  DS_ASSIGN(std::optional<MappedFile> of_a, read(a));
  DS_ASSIGN(std::optional<MappedFile> of_b, read(b));
  if (!of_a || !of_b) return !of_a && !of_b;
  return std::ranges::equal(of_a->bytes(), of_b->bytes());
}

}  // namespace

Result<int64_t> check_same_ids(const std::string& sender_folder, const std::string& receiver_folder) {
  // The same files need not be understood.
  bool same = true;
  for (const char* name :
       {"/tokenizer.json", "/tokenizer_config.json", "/special_tokens_map.json", "/added_tokens.json"}) {
    DS_ASSIGN(bool same_here, same_file(sender_folder + name, receiver_folder + name));
    same = same && same_here;
  }
  if (same) return int64_t{0};
  std::optional<Tokenizer> tokenizers[2];
  for (auto [folder, to] : {std::pair(&sender_folder, &tokenizers[0]), {&receiver_folder, &tokenizers[1]}}) {
    Result<Tokenizer> read = Tokenizer::load(*folder);
    if (!read.ok() && read.status().code() == Code::kNotFound) return int64_t{0};
    DS_TRY(read);
    *to = std::move(*read);
  }
  return check_same_ids(*tokenizers[0], sender_folder, *tokenizers[1], receiver_folder);
}

struct StreamingDecoder::State {
  Decoder::Run run;
};

StreamingDecoder::StreamingDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(tokenizer.impl_.get()),
      skip_special_(skip_special),
      state_(new State{Decoder::Run(tokenizer.impl_->decoder)}) {}
StreamingDecoder::StreamingDecoder(StreamingDecoder&&) noexcept = default;
StreamingDecoder::~StreamingDecoder() = default;

Result<std::string> StreamingDecoder::push(int32_t id) {
  std::string out;
  DS_TRY(tokenizer_->feed(state_->run, id, skip_special_, out));
  return out;
}

Result<std::string> StreamingDecoder::finish() {
  std::string out;
  DS_TRY(state_->run.finish(out));
  state_.reset(new State{Decoder::Run(tokenizer_->decoder)});
  return out;
}

}  // namespace ds
