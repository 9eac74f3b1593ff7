#include "runtime/model/tokenizer_steps_internal.h"

#include <algorithm>
#include <unordered_map>

namespace ds {
namespace {

constexpr int kMaxDepth = 16;  // of sequences in sequences

// The pattern that ByteLevel splits with; GPT-2's.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct ByteTable {
  std::array<std::string, 256> chars;
  std::array<int16_t, 0x200> bytes{};  // by code point; -1: none
  ByteTable() {
    bytes.fill(-1);
    char32_t next = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      char32_t c = printable ? b : next++;
      unicode::append_char(chars[b], c);
      bytes[c] = static_cast<int16_t>(b);
    }
  }
};
const ByteTable& byte_table() {
  static const ByteTable table;
  return table;
}

/// The steps under `key` of a Sequence.
Status for_each_step(const JsonObject& object, std::string_view key, int depth,
                     const std::function<Status(const nlohmann::json&, const std::string&)>& read) {
  if (depth >= kMaxDepth) {
    return error(Code::kUnsupported, "{}: sequences nested deeper than {}", object.where(), kMaxDepth);
  }
  DS_ASSIGN(const nlohmann::json* list, object.array(key));
  for (size_t i = 0; i < list->size(); ++i) {
    DS_TRY(read((*list)[i], fmt::format("{}[{}]", object.at(key), i)));
  }
  return ok_status();
}

/// {"String": ".."} or {"Regex": ".."} under "pattern".
Result<Pattern> read_pattern(const JsonObject& object) {
  DS_ASSIGN(JsonObject pattern, object.object("pattern"));
  if (pattern.has("String")) {
    DS_ASSIGN(std::string text, pattern.string("String"));
    return Pattern::literal(std::move(text), pattern.where());
  }
  if (pattern.has("Regex")) {
    DS_ASSIGN(std::string text, pattern.string("Regex"));
    return Pattern::regex(text, pattern.where());
  }
  return error(Code::kCorrupt, "{}: found {}, expected {{\"String\": ..}} or {{\"Regex\": ..}}",
               pattern.where(),
               pattern.json().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 60));
}

Result<std::string> read_char(const JsonObject& object, std::string_view key) {
  DS_ASSIGN(std::string text, object.string(key));
  if (unicode::only_char(text) == 0) {
    return error(Code::kCorrupt, "{}: found '{}', expected one character", object.at(key), text);
  }
  return text;
}

Status not_supported(const JsonObject& object, std::string_view what, std::string_view type,
                     std::string_view supported) {
  return error(Code::kUnsupported, "{}: {} '{}' is not supported; supported: {}", object.where(), what, type,
               supported);
}

Result<bool> read_drop_first(const JsonObject& object, std::string& scheme) {
  DS_ASSIGN(scheme, object.string_or("prepend_scheme", "always"));
  if (scheme != "first" && scheme != "never" && scheme != "always") {
    return error(Code::kCorrupt, "{}: found '{}', expected first, never or always",
                 object.at("prepend_scheme"), scheme);
  }
  if (object.has("add_prefix_space")) {
    DS_ASSIGN(bool add, object.boolean("add_prefix_space"));
    if (!add && object.has("prepend_scheme") && scheme != "never") {
      return error(Code::kCorrupt, "{}: 'add_prefix_space' is false, but 'prepend_scheme' is '{}'",
                   object.where(), scheme);
    }
    if (!add) scheme = "never";
  }
  return scheme != "never";
}

}  // namespace

std::string_view byte_level_char(unsigned char byte) { return byte_table().chars[byte]; }

// ---------------------------------------------------------------------------------------------- normalizers

Result<Normalizer> Normalizer::read(const nlohmann::json& value, const std::string& where) {
  Normalizer n;
  if (!value.is_null()) DS_TRY(read_into(value, where, 0, n.steps_));
  return n;
}

Status Normalizer::read_into(const nlohmann::json& value, const std::string& where, int depth,
                             std::vector<Step>& steps) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  DS_ASSIGN(std::string type, object.string("type"));
  Step step;
  if (type == "Sequence") {
    return for_each_step(object, "normalizers", depth, [&](const nlohmann::json& v, const std::string& at) {
      return read_into(v, at, depth + 1, steps);
    });
  }
  if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    DS_ASSIGN(step.text, object.string("prepend"));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    DS_ASSIGN(step.pattern, read_pattern(object));
    DS_ASSIGN(step.text, object.string("content"));
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.kind = Kind::kForm;
    step.form = type == "NFC"    ? unicode::Form::kNfc
                : type == "NFD"  ? unicode::Form::kNfd
                : type == "NFKC" ? unicode::Form::kNfkc
                                 : unicode::Form::kNfkd;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    DS_ASSIGN(step.left, object.boolean("strip_left"));
    DS_ASSIGN(step.right, object.boolean("strip_right"));
  } else {
    return not_supported(object, "normalizer", type,
                         "Prepend, Replace, NFC, NFD, NFKC, NFKD, Strip, Sequence");
  }
  steps.push_back(std::move(step));
  return ok_status();
}

Status Normalizer::apply(std::string& text, bool& at_start) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kPrepend:
        if (!text.empty()) text.insert(0, step.text);
        break;
      case Kind::kReplace: {
        std::vector<Span> spans;
        DS_TRY(step.pattern.split(text, spans));
        if (spans.empty() || (spans.size() == 1 && !spans[0].match)) break;
        for (const Span& s : spans) {
          if (!s.match || s.begin < s.end) continue;
          return error(Code::kUnsupported,
                       "normalizer Replace: its pattern matches between characters (byte {} of {}), "
                       "which is not supported",
                       s.begin, text.size());
        }
        // What stands in for a match begins where its last character did.
        if (spans[0].match) {
          size_t first = unicode::char_size(static_cast<unsigned char>(text[0]));
          if (step.text.empty() || spans[0].end > first) at_start = false;
        }
        std::string out;
        out.reserve(text.size() + spans.size() / 2 * step.text.size());
        for (const Span& s : spans) {
          if (s.match) {
            out += step.text;
          } else {
            out.append(text, s.begin, s.end - s.begin);
          }
        }
        text = std::move(out);
        break;
      }
      case Kind::kForm:
        if (!unicode::normalize(text, step.form)) {
          return error(Code::kExhausted, "out of memory while normalizing {} bytes of text", text.size());
        }
        break;
      case Kind::kStrip: {
        size_t begin = 0, end = text.size();
        for (size_t at = 0; step.left && at < text.size();) {
          if (!unicode::is_white_space(unicode::next_char(text, at))) break;
          begin = at;
        }
        while (step.right && end > begin) {
          size_t last = end - 1;
          while ((static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
          size_t at = last;
          if (!unicode::is_white_space(unicode::next_char(text, at))) break;
          end = last;
        }
        if (begin > 0) at_start = false;
        text = text.substr(begin, end - begin);
        break;
      }
    }
  }
  return ok_status();
}

std::vector<std::string> Normalizer::canonical() const {
  std::vector<std::string> out;
  for (const Step& s : steps_) {
    switch (s.kind) {
      case Kind::kPrepend:
        out.push_back(fmt::format("Prepend '{}'", s.text));
        break;
      case Kind::kReplace:
        out.push_back(fmt::format("Replace {} by '{}'", s.pattern.canonical(), s.text));
        break;
      case Kind::kForm:
        out.push_back(std::array{"NFC", "NFD", "NFKC", "NFKD"}[static_cast<size_t>(s.form)]);
        break;
      case Kind::kStrip:
        out.push_back(fmt::format("Strip{}{}", s.left ? " left" : "", s.right ? " right" : ""));
        break;
    }
  }
  return out;
}

// ------------------------------------------------------------------------------------------- pre-tokenizers

Result<PreTokenizer> PreTokenizer::read(const nlohmann::json& value, const std::string& where) {
  PreTokenizer p;
  if (!value.is_null()) DS_TRY(read_into(value, where, 0, p.steps_));
  return p;
}

Status PreTokenizer::read_into(const nlohmann::json& value, const std::string& where, int depth,
                               std::vector<Step>& steps) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  DS_ASSIGN(std::string type, object.string("type"));
  Step step;
  if (type == "Sequence") {
    return for_each_step(object, "pretokenizers", depth, [&](const nlohmann::json& v, const std::string& at) {
      return read_into(v, at, depth + 1, steps);
    });
  }
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    DS_ASSIGN(step.prefix_space, object.boolean("add_prefix_space"));
    DS_ASSIGN(step.splits, object.boolean_or("use_regex", true));
    if (step.splits) {
      DS_ASSIGN(step.pattern, Pattern::regex(kByteLevelPattern, where));
    }
  } else if (type == "Split") {
    step.kind = Kind::kSplit;
    DS_ASSIGN(step.pattern, read_pattern(object));
    DS_ASSIGN(step.invert, object.boolean("invert"));
    DS_ASSIGN(std::string behavior, object.string("behavior"));
    static const std::unordered_map<std::string, Behavior> kBehaviors = {
        {"Isolated", Behavior::kIsolated},
        {"Removed", Behavior::kRemoved},
        {"MergedWithPrevious", Behavior::kMergedWithPrevious},
        {"MergedWithNext", Behavior::kMergedWithNext},
        {"Contiguous", Behavior::kContiguous}};
    auto it = kBehaviors.find(behavior);
    if (it == kBehaviors.end()) {
      return error(
          Code::kCorrupt,
          "{}: found '{}', expected Isolated, Removed, MergedWithPrevious, MergedWithNext or Contiguous",
          object.at("behavior"), behavior);
    }
    step.behavior = it->second;
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    DS_ASSIGN(step.replacement, read_char(object, "replacement"));
    std::string scheme;
    DS_TRY(read_drop_first(object, scheme));
    step.prepend = scheme == "first"   ? Prepend::kFirst
                   : scheme == "never" ? Prepend::kNever
                                       : Prepend::kAlways;
    DS_ASSIGN(step.splits, object.boolean_or("split", true));
    step.behavior = Behavior::kMergedWithNext;
    DS_ASSIGN(step.pattern, Pattern::literal(step.replacement, where));
  } else if (type == "Digits") {
    step.kind = Kind::kDigits;
    DS_ASSIGN(bool each, object.boolean("individual_digits"));
    step.behavior = each ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Whitespace") {
    step.kind = Kind::kWhitespace;
    step.behavior = Behavior::kRemoved;
  } else if (type == "WhitespaceSplit") {
    step.kind = Kind::kWhitespaceSplit;
    step.behavior = Behavior::kRemoved;
  } else {
    return not_supported(object, "pre-tokenizer", type,
                         "ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, Sequence");
  }
  steps.push_back(std::move(step));
  return ok_status();
}

std::vector<std::string> PreTokenizer::canonical() const {
  std::vector<std::string> out;
  for (const Step& s : steps_) {
    const std::string behavior = std::array{"isolated", "removed", "merged with previous", "merged with next",
                                            "contiguous"}[static_cast<size_t>(s.behavior)];
    switch (s.kind) {
      case Kind::kByteLevel:
        out.push_back(fmt::format("ByteLevel{}{}", s.prefix_space ? " with a space before" : "",
                                  s.splits ? ", splits" : ""));
        break;
      case Kind::kSplit:
        out.push_back(
            fmt::format("Split {}{}, {}", s.invert ? "but for " : "", s.pattern.canonical(), behavior));
        break;
      case Kind::kMetaspace:
        out.push_back(fmt::format("Metaspace '{}', prepended {}{}", s.replacement,
                                  std::array{"first", "never", "always"}[static_cast<size_t>(s.prepend)],
                                  s.splits ? ", splits" : ""));
        break;
      case Kind::kDigits:
        out.push_back("Digits, " + behavior);
        break;
      case Kind::kWhitespace:
        out.push_back("Whitespace");
        break;
      case Kind::kWhitespaceSplit:
        out.push_back("WhitespaceSplit");
        break;
    }
  }
  return out;
}

Status PreTokenizer::find(const Step& step, std::string_view text, std::vector<Span>& spans) {
  if (step.kind == Kind::kByteLevel || step.kind == Kind::kSplit || step.kind == Kind::kMetaspace) {
    DS_TRY(step.pattern.split(text, spans));
    if (step.invert) {
      for (Span& s : spans) s.match = !s.match;
    }
    return ok_status();
  }
  spans.clear();
  int last_class = -1;
  for (size_t at = 0; at < text.size();) {
    size_t begin = at;
    char32_t c = unicode::next_char(text, at);
    if (step.kind == Kind::kWhitespace) {
      // \w+|[^\w\s]+ is what stays, in runs of one class; white space is the match that goes.
      int char_class = unicode::is_word(c) ? 1 : unicode::is_white_space(c) ? 0 : 2;
      if (char_class == last_class) {
        spans.back().end = at;
      } else {
        spans.push_back({begin, at, char_class == 0});
      }
      last_class = char_class;
      continue;
    }
    bool match = step.kind == Kind::kDigits ? unicode::is_numeric(c) : unicode::is_white_space(c);
    if (!match && !spans.empty() && !spans.back().match) {
      spans.back().end = at;
    } else {
      spans.push_back({begin, at, match});
    }
  }
  return ok_status();
}

/// Joins spans as the package's split does; afterwards `match` says whether a span is dropped.
void PreTokenizer::arrange(Behavior behavior, std::vector<Span>& spans) {
  if (behavior == Behavior::kRemoved) return;
  if (behavior == Behavior::kIsolated) {
    for (Span& s : spans) s.match = false;
    return;
  }
  bool previous = false, next = behavior == Behavior::kMergedWithNext;
  std::vector<Span> out;
  if (next) std::reverse(spans.begin(), spans.end());
  for (const Span& s : spans) {
    bool join = behavior == Behavior::kContiguous ? s.match == previous : s.match && !previous;
    if (join && !out.empty()) {
      (next ? out.back().begin : out.back().end) = next ? s.begin : s.end;
    } else {
      out.push_back({s.begin, s.end, false});
    }
    previous = s.match;
  }
  if (next) std::reverse(out.begin(), out.end());
  spans = std::move(out);
}

Status PreTokenizer::apply(std::vector<Piece>& pieces, TextPool& pool) const {
  std::vector<Span> spans;
  std::vector<Piece> out;
  for (const Step& step : steps_) {
    out.clear();
    for (Piece piece : pieces) {
      if (piece.text.empty()) continue;
      if (step.kind == Kind::kByteLevel && step.prefix_space && !piece.text.starts_with(' ')) {
        piece.text = pool.add(fmt::format(" {}", piece.text));
      } else if (step.kind == Kind::kMetaspace) {
        std::string& text = pool.add();
        text.reserve(piece.text.size() + piece.text.size() / 2 + step.replacement.size());
        bool starts = piece.text.starts_with(' ') || piece.text.starts_with(step.replacement);
        if (!starts &&
            (step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && piece.at_start))) {
          text += step.replacement;
        }
        for (char c : piece.text) {
          if (c == ' ') {
            text += step.replacement;
          } else {
            text += c;
          }
        }
        piece.text = text;
      }
      if (!step.splits) {
        out.push_back(piece);
        continue;
      }
      DS_TRY(find(step, piece.text, spans));
      arrange(step.behavior, spans);
      for (const Span& s : spans) {
        if (s.match || s.begin == s.end) continue;
        out.push_back({piece.text.substr(s.begin, s.end - s.begin), piece.at_start && s.begin == 0});
      }
    }
    pieces.swap(out);
    if (step.kind != Kind::kByteLevel) continue;
    size_t size = 0;
    for (const Piece& piece : pieces) {
      for (char c : piece.text) size += byte_level_char(static_cast<unsigned char>(c)).size();
    }
    std::string& text = pool.add();
    text.reserve(size);  // the views below point into it
    for (Piece& piece : pieces) {
      size_t begin = text.size();
      for (char c : piece.text) text += byte_level_char(static_cast<unsigned char>(c));
      piece.text = std::string_view(text).substr(begin);
    }
  }
  return ok_status();
}

// ------------------------------------------------------------------------------------------------- decoders

Result<Decoder> Decoder::read(const nlohmann::json& value, const std::string& where) {
  Decoder d;
  if (value.is_null()) {
    d.steps_.push_back({.kind = Kind::kJoin});
    return d;
  }
  DS_TRY(read_into(value, where, 0, d.steps_));
  bool fused = false;  // by Fuse or ByteLevel, all tokens have become one
  for (Step& step : d.steps_) {
    bool in_parts = step.kind == Kind::kFuse || (step.kind == Kind::kStrip && step.stop == 0);
    step.parts = fused && in_parts;
    step.whole = fused && !in_parts;
    fused = fused || step.kind == Kind::kFuse || step.kind == Kind::kByteLevel;
  }
  return d;
}

Status Decoder::read_into(const nlohmann::json& value, const std::string& where, int depth,
                          std::vector<Step>& steps) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  DS_ASSIGN(std::string type, object.string("type"));
  Step step;
  if (type == "Sequence") {
    return for_each_step(object, "decoders", depth, [&](const nlohmann::json& v, const std::string& at) {
      return read_into(v, at, depth + 1, steps);
    });
  }
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    DS_ASSIGN(step.content, read_char(object, "replacement"));
    std::string scheme;
    DS_ASSIGN(step.drop_first, read_drop_first(object, scheme));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    DS_ASSIGN(step.pattern, read_pattern(object));
    DS_ASSIGN(step.content, object.string("content"));
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    DS_ASSIGN(step.content, read_char(object, "content"));
    DS_ASSIGN(int64_t start, object.integer("start", 0, INT32_MAX));
    DS_ASSIGN(int64_t stop, object.integer("stop", 0, INT32_MAX));
    step.start = static_cast<size_t>(start);
    step.stop = static_cast<size_t>(stop);
  } else {
    return not_supported(object, "decoder", type,
                         "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, Sequence");
  }
  steps.push_back(std::move(step));
  return ok_status();
}

/// A step on a token of its own; `first`: the first of all.
Result<std::string> Decoder::apply(const Step& step, std::string_view token, bool first) {
  std::string out;
  switch (step.kind) {
    case Kind::kReplace:
      return step.pattern.replace(token, step.content);
    case Kind::kMetaspace: {
      for (size_t at = 0; at < token.size();) {
        if (token.substr(at).starts_with(step.content)) {
          if (!(first && step.drop_first)) out += ' ';
          at += step.content.size();
        } else {
          out += token[at++];
        }
      }
      return out;
    }
    case Kind::kStrip: {
      for (size_t i = 0; i < step.start && token.starts_with(step.content); ++i)
        token.remove_prefix(step.content.size());
      for (size_t i = 0; i < step.stop && token.ends_with(step.content); ++i)
        token.remove_suffix(step.content.size());
      return std::string(token);
    }
    case Kind::kByteLevel: {
      // A token with any character that stands for no byte is taken as it is.
      for (size_t at = 0; at < token.size();) {
        char32_t c = unicode::next_char(token, at);
        if (c >= byte_table().bytes.size() || byte_table().bytes[c] < 0) return std::string(token);
        out += static_cast<char>(byte_table().bytes[c]);
      }
      return out;
    }
    default:
      return std::string(token);
  }
}

namespace {

/// The byte that a token like "<0x0A>" stands for; -1: none.
int byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  auto digit = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
  };
  int high = token[3] == '+' ? 0 : digit(token[3]), low = digit(token[4]);  // the package reads a sign, too
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

Status Decoder::Run::feed(size_t at, std::string_view token, std::string& out) {
  if (at == states_.size()) {
    out += token;
    return ok_status();
  }
  const Step& step = decoder_.steps_[at];
  State& state = states_[at];
  if (step.whole) {
    state.held += token;
    return ok_status();
  }
  switch (step.kind) {
    case Kind::kJoin:
      if (state.count++ > 0) DS_TRY(feed(at + 1, " ", out));
      return feed(at + 1, token, out);
    case Kind::kFuse:
      return feed(at + 1, token, out);
    case Kind::kByteFallback: {
      int byte = byte_of_token(token);
      if (byte >= 0) {
        state.held += static_cast<char>(byte);
        return ok_status();
      }
      DS_TRY(flush_bytes(at, out));
      return feed(at + 1, token, out);
    }
    case Kind::kByteLevel: {
      DS_ASSIGN(std::string bytes, apply(step, token, false));
      state.held += bytes;
      std::string text;
      state.held.erase(0, unicode::append_lossy(text, state.held, false));
      return text.empty() ? ok_status() : feed(at + 1, text, out);
    }
    case Kind::kStrip:
      if (step.parts) {
        while (state.count < step.start && token.starts_with(step.content)) {
          token.remove_prefix(step.content.size());
          ++state.count;
        }
        if (!token.empty()) state.count = step.start;
        return feed(at + 1, token, out);
      }
      [[fallthrough]];
    default: {
      DS_ASSIGN(std::string text, apply(step, token, state.count++ == 0));
      return feed(at + 1, text, out);
    }
  }
}

/// A run of byte tokens is text where all of it is UTF-8, else one U+FFFD per byte.
Status Decoder::Run::flush_bytes(size_t at, std::string& out) {
  std::string bytes = std::move(states_[at].held);
  states_[at].held.clear();
  if (bytes.empty()) return ok_status();
  if (unicode::valid_utf8_prefix(bytes) == bytes.size()) return feed(at + 1, bytes, out);
  for (size_t i = 0; i < bytes.size(); ++i) DS_TRY(feed(at + 1, "\xEF\xBF\xBD", out));
  return ok_status();
}

Status Decoder::Run::finish(std::string& out) {
  for (size_t at = 0; at < states_.size(); ++at) {
    const Step& step = decoder_.steps_[at];
    State& state = states_[at];
    if (step.whole) {
      std::string token = std::move(state.held);
      if (step.kind == Kind::kByteFallback) {
        state.held.clear();
        int byte = byte_of_token(token);
        if (byte < 0) {
          DS_TRY(feed(at + 1, token, out));
          continue;
        }
        state.held = static_cast<char>(byte);
        DS_TRY(flush_bytes(at, out));
        continue;
      }
      DS_ASSIGN(std::string text, apply(step, token, true));
      if (step.kind == Kind::kByteLevel) {
        std::string lossy;
        unicode::append_lossy(lossy, text, true);
        text = std::move(lossy);
      }
      DS_TRY(feed(at + 1, text, out));
    } else if (step.kind == Kind::kByteFallback) {
      DS_TRY(flush_bytes(at, out));
    } else if (step.kind == Kind::kByteLevel && !state.held.empty()) {
      std::string text;
      unicode::append_lossy(text, state.held, true);
      state.held.clear();
      DS_TRY(feed(at + 1, text, out));
    }
  }
  return ok_status();
}

}  // namespace ds
