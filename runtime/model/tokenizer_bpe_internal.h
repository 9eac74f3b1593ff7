// Byte-pair encoding of one piece of text, with the rules of the package's model "BPE".
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/json.h"
#include "support/status.h"

namespace ds {

class Bpe {
 public:
  /// `value` is the JSON under "model". Errors: kCorrupt (ids, merges), kUnsupported (another model, dropout,
  /// sub-word affixes).
  static Result<Bpe> read(const nlohmann::json& value, const std::string& where);

  /// Words met before in one text, and work space.
  struct Scratch {
    std::unordered_map<std::string_view, std::pair<uint32_t, uint32_t>> words;  // into ids
    std::vector<int32_t> ids;
    struct Symbol {
      int32_t id, previous, next;
      bool alive;
    };
    struct Candidate {
      int32_t rank, position, merged;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<int32_t> short_ids;
    std::vector<uint64_t> short_merges;
  };
  /// Appends the ids of one piece; the scratch keeps views of `piece`.
  Status encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

  int32_t token_id(std::string_view token) const;  // -1: none
  std::string_view token(int32_t id) const;        // data() null: none
  int64_t size() const { return static_cast<int64_t>(vocab_.size()); }
  int32_t end_id() const { return static_cast<int32_t>(tokens_.size()); }  // behind the last one
  /// The options that decide ids, in words; those without effect are left out.
  std::string options() const;
  /// The pairs that merge, the first one first.
  std::vector<std::pair<int32_t, int32_t>> merges() const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    int32_t rank = 0, merged = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr size_t kShort = 24;         // symbols; up to here a scan beats a heap
  static constexpr size_t kCachedBytes = 256;  // longer pieces hardly come twice

  std::string where_, unk_token_;
  std::vector<std::string> owned_;        // the tokens' texts, in the order of the file
  std::vector<std::string_view> tokens_;  // by id
  std::unordered_map<std::string_view, int32_t> vocab_;
  std::vector<Merge> merges_;  // open addressing, a power of two
  std::vector<int32_t> char_ids_ = std::vector<int32_t>(0x800, -1);
  std::array<int32_t, 256> byte_ids_{};
  bool has_unk_ = false, fuse_unk_ = false, byte_fallback_ = false, ignore_merges_ = false;
  int32_t unk_id_ = -1;

  static uint64_t pair_of(int32_t a, int32_t b) {
    return static_cast<uint64_t>(static_cast<uint32_t>(a)) << 32 | static_cast<uint32_t>(b);
  }
  const Merge* find_merge(int32_t a, int32_t b) const;
  void add_merge(int32_t a, int32_t b, int32_t rank, int32_t merged);
  Status read_vocab(const nlohmann::json& vocab, const std::string& where);
  Status read_merges(const nlohmann::json& merges, const std::string& where);
  Status to_symbols(std::string_view piece, std::vector<int32_t>& ids) const;
  void merge_short(std::vector<int32_t>& ids, Scratch& scratch) const;
  void merge_long(std::vector<int32_t>& ids, Scratch& scratch) const;
};

}  // namespace ds
