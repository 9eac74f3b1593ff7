// What the rules about one variant look at, and who checks which. Rules and their numbers: plans/README.md.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/limits.h"
#include "plans/plan.h"
#include "plans/traits.h"
#include "support/status.h"

namespace ds {

inline std::string limit_text(int64_t limit) {
  return limit == kNoLimit ? "no limit" : std::to_string(limit);
}

/// A variant, by cell and by buffer, and how messages name its parts.
class VariantFacts {
 protected:
  VariantFacts(const std::string& origin, const Shape& shape, std::span<const Source> sources,
               const Variant& variant)
      : origin_(origin),
        shape_(shape),
        sources_(sources),
        v_(variant),
        layers_(static_cast<int32_t>(shape.layers)),
        last_layer_(layers_ - 1),
        chunks_(variant.chunks),
        streams_(variant.streams.size()) {}

  int32_t ops() const { return static_cast<int32_t>(v_.ops.size()); }
  const Op& op(int32_t i) const { return v_.ops[static_cast<size_t>(i)]; }
  size_t cell(int32_t l, int32_t c) const {
    return static_cast<size_t>(l) * static_cast<size_t>(chunks_) + static_cast<size_t>(c);
  }
  /// Of a cell that has a tile.
  const ModeTraits& mode(int32_t l, int32_t c) const {
    return traits_of(static_cast<Mode>(mode_[cell(l, c)] - 1));
  }
  bool is(Mode mode, int32_t l, int32_t c) const {
    return mode_[cell(l, c)] == 1 + static_cast<uint8_t>(mode);
  }
  bool recomputed(int32_t l, int32_t c) const { return is(Mode::kRecompute, l, c); }
  bool selected(int32_t l, int32_t c) const { return is(Mode::kSelect, l, c); }
  /// The hidden states that leave layer l at chunk c are used: the cell above is recomputed from them.
  bool goes_on(int32_t l, int32_t c) const {
    return l < last_layer_ &&
           ((recomputed(l + 1, c) && !cut_[cell(l + 1, c)]) || (l == 0 && selected(l + 1, c)));
  }

  std::string op_name(int32_t i) const { return fmt::format("op {} ({})", i, op_label(op(i), chunks_)); }

  template <typename... Args>
  Status fail(int rule, fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kCorrupt, "plan '{}': variant '{}' {} [rule {}]", origin_, v_.name,
                 fmt::format(format, std::forward<Args>(args)...), rule);
  }
  template <typename... Args>
  Status fail_op(int32_t i, int rule, fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kCorrupt, "plan '{}': variant '{}': {} {} [rule {}]", origin_, v_.name, op_name(i),
                 fmt::format(format, std::forward<Args>(args)...), rule);
  }
  Status unknown(std::string_view where, std::string_view what, int found, int known) const {
    return error(Code::kUnsupported,
                 "plan '{}': variant '{}': {} has {} {}; this version knows 0 to {}: update droidspeak here, "
                 "or compile the "
                 "plan with an older ds-compile [rule 9]",
                 origin_, v_.name, where, what, found, known);
  }

  const std::string& origin_;
  const Shape& shape_;
  std::span<const Source> sources_;
  const Variant& v_;
  const int32_t layers_, last_layer_, chunks_;
  const size_t streams_;
  std::vector<int32_t> kv_buffer_;  // by layer
  std::vector<int32_t> hidden_;     // by buffer: number among the hidden buffers, -1
  int32_t hidden_count_ = 0;
  std::vector<uint8_t> mode_;  // by cell: 1 + Mode, 0: no tile
  std::vector<bool> cut_;      // by cell: its lower edge is a cut
  std::vector<bool> sends_e_;  // by cell: S's hidden states are sent for it
  bool selects_ = false;       // there is a select tile
};

class VariantVerifier : public VariantFacts {
 public:
  VariantVerifier(const std::string& origin, const Shape& shape, std::span<const Source> sources,
                  const Variant& variant)
      : VariantFacts(origin, shape, sources, variant) {}
  Status run();
  /// Rule 7.
  Status full_prefill() const;

 private:
  // structure.cpp: rules 4, 13, 14, and 20 as far as tiles show it. They fill in the facts by cell and
  // buffer.
  Status sizes() const;
  Status streams() const;
  Status buffers();
  Status tiles();
  // promises.cpp: rule 5.
  Status header() const;
  // ops.cpp: what an op shows by itself (rules 8 to 11, 16 and 21), and its times (rule 12).
  Status fields(int32_t i) const;
  Status source(int32_t i) const;
  Status queries(int32_t i) const;
  Status times() const;
  // coverage.cpp: which ops there are, by cell and by suffix layer (rules 15, 17 and 20).
  Status coverage() const;
};

/// Rules 18 and 19, and which hidden buffers are used (13), of a variant that keeps all others.
Status check_dataflow(const VariantFacts& facts);

}  // namespace ds
