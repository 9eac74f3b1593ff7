// What ds-compile was asked for, checked and in numbers: everything that can be refused before a file is
// opened.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/compile.h"
#include "compiler/policy/policy.h"

namespace ds {

/// What was asked for, checked and in numbers.
struct CompileRequest {
  const PolicyTraits* policy = nullptr;
  std::vector<int64_t> lengths, rates;
  std::vector<int32_t> chunks;
  bool default_lengths = false;
  std::optional<double> divergence;  // --slo-divergence
  bool least_divergence = false;
};

/// kInvalidArgument: options that contradict each other, or lack what they need. `quality`, `maps`: there is
/// a profile, are maps.
Result<CompileRequest> check_options(const CompileOptions& options, bool quality, bool maps);

/// The canonical text of all that decides a plan, for its provenance. `maps`: a file of them was given.
std::string canonical_flags(const CompileOptions& options, const CompileRequest& request,
                            const std::optional<LayerRange>& recompute, DType dtype, bool stand_in, bool maps,
                            int64_t max_model_len);

/// "15%", "0.15": of the tokens, in (0, 1].
Result<double> parse_share(std::string_view text);
/// The form of maps that was asked for; kNone: "auto" or "none".
MapForm named_form(const CompileOptions& options);
/// "A contradicts B: why".
Status refuse(std::string_view a, std::string_view b, std::string_view why);

}  // namespace ds
