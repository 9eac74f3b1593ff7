// Names that PEFT gives to tensors and modules, and patterns that go by them.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/ranges.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <memory>
#include <set>
#include <vector>

#include "runtime/model/adapter_internal.h"

namespace ds::lora {
namespace {

/// A Python pattern (PCRE2 reads the common subset alike) against the name of a module.
class NamePattern {
 public:
  static Result<NamePattern> make(const std::string& pattern, const std::string& where) {
    int code = 0;
    size_t offset = 0;
    NamePattern p;
    p.where_ = where;
    p.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                PCRE2_UTF | PCRE2_ANCHORED, &code, &offset, nullptr),
                  pcre2_code_free);
    if (!p.code_) {
      std::array<unsigned char, 128> message{};
      pcre2_get_error_message(code, message.data(), message.size());
      return error(Code::kCorrupt, "{}: '{:.200}' is no regular expression: {} (at byte {})", where, pattern,
                   reinterpret_cast<const char*>(message.data()), offset);
    }
    return p;
  }

  /// re.match, or re.fullmatch with `whole`. Gives the text of the group `idx` where there is one.
  Result<bool> match(const std::string& text, bool whole, std::string* idx = nullptr) const {
    std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr), pcre2_match_data_free);
    if (data == nullptr) return error(Code::kExhausted, "{}: out of memory", where_);
    const int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                               whole ? PCRE2_ENDANCHORED : 0, data.get(), nullptr);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0)
      return error(Code::kExhausted, "{}: the pattern takes too long on '{}' ({})", where_, text, rc);
    if (idx != nullptr) {
      const int group = pcre2_substring_number_from_name(code_.get(), reinterpret_cast<PCRE2_SPTR>("idx"));
      const size_t* at = pcre2_get_ovector_pointer(data.get());
      if (group > 0 && at[2 * group] != PCRE2_UNSET)
        *idx = text.substr(at[2 * group], at[2 * group + 1] - at[2 * group]);
    }
    return true;
  }

 private:
  std::string where_;
  std::shared_ptr<pcre2_code> code_;
};

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> out(1);
  for (char c : text) {
    if (c == '.')
      out.emplace_back();
    else
      out.back() += c;
  }
  return out;
}

}  // namespace

Result<bool> matches(const std::string& pattern, const std::string& text, bool whole,
                     const std::string& where, std::string* idx) {
  DS_ASSIGN(NamePattern compiled, NamePattern::make(pattern, where));
  return compiled.match(text, whole, idx);
}

std::optional<Key> parse_key(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::vector<std::string> words = split(name.substr(kPrefix.size()));
  static const std::set<std::string, std::less<>> kMarks{"lora_A",           "lora_B",
                                                         "lora_embedding_A", "lora_embedding_B",
                                                         "modules_to_save",  "lora_magnitude_vector",
                                                         "base_layer"};
  auto mark = std::find_if(words.begin(), words.end(), [](const auto& w) { return kMarks.count(w) > 0; });
  Key key;
  const std::string what = mark == words.end() ? "" : *mark;
  std::vector<std::string> rest;
  if (mark == words.end()) {
    rest.push_back(words.back());
    words.pop_back();
    key.module = fmt::format("{}", fmt::join(words, "."));
  } else {
    key.module = fmt::format("{}", fmt::join(words.begin(), mark, "."));
    rest.assign(mark + 1, words.end());
  }
  std::string last = !rest.empty() && (rest.back() == "weight" || rest.back() == "bias") ? rest.back() : "";
  if (!last.empty()) rest.pop_back();
  if (rest.size() > 1 || (rest.size() == 1 && (what.empty() || what == "base_layer"))) return std::nullopt;
  if (!rest.empty()) key.adapter = rest[0];
  if (what.empty() || what == "base_layer" || what == "modules_to_save") {
    if (last.empty()) return std::nullopt;
    key.part = last == "weight" ? Part::kWeight : Part::kBias;
  } else if (what == "lora_A") {
    if (last != "weight") return std::nullopt;
    key.part = Part::kA;
  } else if (what == "lora_B") {
    if (last.empty()) return std::nullopt;
    key.part = last == "weight" ? Part::kB : Part::kBBias;
  } else if (what == "lora_magnitude_vector") {
    if (last == "bias") return std::nullopt;
    key.part = Part::kMagnitude;
  } else {
    if (!last.empty()) return std::nullopt;
    key.part = what == "lora_embedding_A" ? Part::kEmbeddingA : Part::kEmbeddingB;
  }
  return key;
}

}  // namespace ds::lora
