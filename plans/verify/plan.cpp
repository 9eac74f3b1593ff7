// The semantic verifier. Rules and their numbers: plans/README.md. It shares nothing with the compiler that
// makes plans; the executor relies on every rule and checks none of them again.
#include <cmath>
#include <unordered_set>

#include "plans/plan_file.h"
#include "plans/verify/variant_internal.h"

namespace ds {
namespace {

/// UTF-8 without control characters: such text can go into any message, JSON or picture.
bool clean_text(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    auto c = static_cast<unsigned char>(s[i]);
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (length == 0 || i + length > s.size() || c < 0x20 || c == 0x7f) return false;
    uint32_t point = length == 1 ? c : c & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      auto next = static_cast<unsigned char>(s[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      point = point << 6 | (next & 0x3f);
    }
    if ((length == 3 && point < 0x800) || (length == 4 && (point < 0x10000 || point > 0x10ffff)) ||
        (point >= 0xd800 && point < 0xe000)) {
      return false;
    }
    i += length;
  }
  return true;
}

bool is_sha256(std::string_view s) {
  return s.size() == 64 && s.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

}  // namespace

Status verify_plan(const Plan& plan, const std::string& origin) {
  auto fail = [&](int rule, const std::string& message) {
    return error(Code::kCorrupt, "plan '{}': {} [rule {}]", origin, message, rule);
  };
  if (plan.format_version > kPlanFormatVersion) {
    return error(
        Code::kUnsupported,
        "plan '{}': format version is {}; this version reads 1 to {}: update droidspeak here [rule 1]",
        origin, plan.format_version, kPlanFormatVersion);
  }
  if (plan.format_version < 1) {
    return fail(1, fmt::format("format version is {}; expected 1 to {}: compile the plan again",
                               plan.format_version, kPlanFormatVersion));
  }
  // Texts.
  if (plan.variants.size() > kMaxVariants) {
    return fail(4, fmt::format("has {} variants; expected at most {}", plan.variants.size(), kMaxVariants));
  }
  if (plan.provenance.inputs.size() > kMaxInputs) {
    return fail(4,
                fmt::format("has {} inputs; expected at most {}", plan.provenance.inputs.size(), kMaxInputs));
  }
  auto text = [&](const std::string& what, const std::string& value, bool may_be_empty) -> Status {
    size_t limit = what == "provenance.flags" ? kMaxFlags : kMaxText;
    if (value.size() > limit) {
      return fail(2, fmt::format("{} has {} bytes; expected at most {}", what, value.size(), limit));
    }
    if (value.empty() && !may_be_empty) return fail(2, fmt::format("{} is empty; expected a text", what));
    if (!clean_text(value)) {
      return fail(2, fmt::format("{} is not plain text; expected UTF-8 without control characters", what));
    }
    return ok_status();
  };
  DS_TRY(text("provenance.compiler_version", plan.provenance.compiler_version, true));
  DS_TRY(text("provenance.flags", plan.provenance.flags, true));
  for (size_t i = 0; i < plan.provenance.inputs.size(); ++i) {
    const InputFile& input = plan.provenance.inputs[i];
    DS_TRY(text(fmt::format("provenance.inputs[{}].role", i), input.role, false));
    DS_TRY(text(fmt::format("provenance.inputs[{}].name", i), input.name, true));
    DS_TRY(text(fmt::format("provenance.inputs[{}].sha256", i), input.sha256, false));
  }
  auto model = [&](const std::string& role, const ModelIdentity& m) -> Status {
    DS_TRY(text(role + ".name", m.name, true));
    DS_TRY(text(role + ".config", m.config, true));
    DS_TRY(text(role + ".weights", m.weights, true));
    DS_TRY(text(role + ".tokenizer", m.tokenizer, true));
    if (is_sha256(m.fingerprint)) return ok_status();
    DS_TRY(text(role + ".fingerprint", m.fingerprint, true));
    return fail(
        2, fmt::format("{}.fingerprint is \"{}\"; expected a SHA-256 in hexadecimal", role, m.fingerprint));
  };
  DS_TRY(model("sender", plan.sender));
  DS_TRY(model("receiver", plan.receiver));
  DS_TRY(text("shape.family", plan.shape.family, false));
  DS_TRY(text("dtype", plan.dtype, false));
  DS_TRY(text("backend", plan.backend, true));
  if (plan.dtype != "bf16" && plan.dtype != "f32") {
    return fail(2, fmt::format("dtype is \"{}\"; expected \"bf16\" or \"f32\"", plan.dtype));
  }
  auto shape = [&](const std::string& name, const Shape& s) -> Status {
    struct Dimension {
      const char* name;
      int64_t value, limit;
    };
    for (const Dimension& d :
         {Dimension{"layers", s.layers, kMaxLayers}, Dimension{"d_model", s.d_model, kMaxDimension},
          Dimension{"ff", s.ff, kMaxDimension}, Dimension{"heads", s.heads, kMaxDimension},
          Dimension{"kv_heads", s.kv_heads, kMaxDimension}, Dimension{"head_dim", s.head_dim, kMaxDimension},
          Dimension{"vocab", s.vocab, kMaxVocab}}) {
      if (d.value < 1 || d.value > d.limit)
        return fail(3, fmt::format("{}.{} is {}; expected 1 to {}", name, d.name, d.value, d.limit));
    }
    if (s.heads % s.kv_heads != 0) {
      return fail(3, fmt::format("{0}.heads is {1}, {0}.kv_heads {2}; expected a multiple", name, s.heads,
                                 s.kv_heads));
    }
    if (s.kv_row() > kMaxDimension) {
      return fail(3, fmt::format("a row of the KV cache has 2 * {} * {} elements; expected at most {}",
                                 s.kv_heads, s.head_dim, kMaxDimension));
    }
    return ok_status();
  };
  DS_TRY(shape("shape", plan.shape));
  if (plan.shared_vocab < 0 || plan.shared_vocab >= plan.shape.vocab) {
    return fail(3, fmt::format("shared_vocab is {}; expected 0 (all), or fewer than the vocabulary's {}",
                               plan.shared_vocab, plan.shape.vocab));
  }
  // Sources.
  if (plan.format_version < 5 ? !plan.sources.empty()
                              : plan.sources.empty() || plan.sources.size() > kMaxSources) {
    return fail(21, fmt::format("has {} sources in format version {}; expected {}", plan.sources.size(),
                                plan.format_version,
                                plan.format_version < 5 ? std::string("none: they came with version 5")
                                                        : fmt::format("1 to {}", kMaxSources)));
  }
  for (size_t i = 0; i < plan.sources.size(); ++i) {
    const Source& source = plan.sources[i];
    if (static_cast<size_t>(source.rule) >= kSourceRules) {
      return error(Code::kUnsupported,
                   "plan '{}': source {} has rule {}; this version knows 0 to {}: update droidspeak here, or "
                   "compile the plan with an older ds-compile [rule 9]",
                   origin, i, static_cast<int>(source.rule), kSourceRules - 1);
    }
    DS_TRY(model(fmt::format("sources[{}]", i), source.model));
    DS_TRY(text(fmt::format("sources[{}].shape.family", i), source.shape.family, false));
    DS_TRY(shape(fmt::format("sources[{}].shape", i), source.shape));
    if (i == 0 && (source.rule != SourceRule::kPrefix || source.model != plan.sender)) {
      return fail(21, fmt::format("its first source is a {} of '{}' ({:.12}); expected the prefix of its "
                                  "sender, '{}' ({:.12})",
                                  source_rule_name(source.rule), source.model.name, source.model.fingerprint,
                                  plan.sender.name, plan.sender.fingerprint));
    }
  }
  // Variants.
  for (const Variant& v : plan.variants) {
    bool several = std::any_of(v.ops.begin(), v.ops.end(), [](const Op& op) { return op.last_chunk != -1; });
    auto newer = [&](std::string_view what, int since) {
      return fail(1, fmt::format("format version is {}, but variant '{}' has {}, which came with version {}; "
                                 "compile the plan again",
                                 plan.format_version, v.name, what, since));
    };
    if (plan.format_version < 2 && (several || v.load_min != 0 || v.load_max != kNoLimit))
      return newer(several ? "ops over several chunks" : "a range of loads", 2);
    for (const Tile& t : v.tiles) {
      if (static_cast<size_t>(t.mode) < kModes && plan.format_version < traits_of(t.mode).since)
        return newer(traits_of(t.mode).feature, traits_of(t.mode).since);
    }
    bool uncertain = !std::isnan(v.promise.loss_stderr) || v.promise.confidence != 0;
    if (plan.format_version < 3 && (v.select_share != 0 || uncertain || !v.way.empty())) {
      return newer(v.select_share != 0 ? traits_of(Mode::kSelect).feature
                   : uncertain         ? "a loss with its uncertainty"
                                       : "a way",
                   3);
    }
    for (const Op& op : v.ops) {
      if (has_traits(op) && plan.format_version < traits_of(op).since)
        return newer(traits_of(op).feature, traits_of(op).since);
    }
    if (plan.format_version < 4 && v.map_form != MapForm::kNone)
      return newer(traits_of(Op{.kind = OpKind::kAlign}).feature, 4);
    if (plan.format_version < kLiveFormatVersion && v.live) return newer("a live sender", kLiveFormatVersion);
    if (plan.format_version < 4 && !std::isnan(v.promise.divergence))
      return newer("a promised divergence", 4);
  }
  auto aligned = [](const Variant& v) { return v.map_form != MapForm::kNone; };
  const bool maps = std::any_of(plan.variants.begin(), plan.variants.end(), aligned);
  DS_TRY(text("maps.name", plan.maps.name, true));
  if (maps ? !is_sha256(plan.maps.fingerprint) : plan.maps != MapsIdentity{}) {
    DS_TRY(text("maps.fingerprint", plan.maps.fingerprint, true));
    return fail(20, fmt::format("maps.fingerprint is \"{}\"; expected {}", plan.maps.fingerprint,
                                maps ? "a SHA-256 in hexadecimal: a variant has aligned cuts"
                                     : "no maps: no variant has aligned cuts"));
  }
  const std::vector<Source> sources = sources_of(plan);
  std::unordered_set<std::string_view> names;
  std::vector<const Variant*> all;
  for (const Variant& v : plan.variants) all.push_back(&v);
  all.push_back(&plan.full_prefill);
  for (size_t i = 0; i < all.size(); ++i) {
    std::string where =
        i < plan.variants.size() ? fmt::format("variants[{}]", i) : std::string("full_prefill");
    DS_TRY(text(where + ".name", all[i]->name, false));
    DS_TRY(text(where + ".policy", all[i]->policy, false));
    DS_TRY(text(where + ".scheduler", all[i]->scheduler, false));
    DS_TRY(text(where + ".why", all[i]->why, true));
    DS_TRY(text(where + ".way", all[i]->way, true));
    for (size_t a = 0; a < all[i]->alternatives.size(); ++a)
      DS_TRY(text(fmt::format("{}.alternatives[{}].what", where, a), all[i]->alternatives[a].what, false));
    if (!names.insert(all[i]->name).second) {
      return fail(5, fmt::format("{}.name is \"{}\", as another variant's; expected names that differ", where,
                                 all[i]->name));
    }
    VariantVerifier verifier(origin, plan.shape, sources, *all[i]);
    DS_TRY(verifier.run());
    if (all[i] == &plan.full_prefill) DS_TRY(verifier.full_prefill());
  }
  for (size_t i = 0; i < plan.variants.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const Variant &a = plan.variants[j], &b = plan.variants[i];
      if (a.live == b.live && a.tokens_min < b.tokens_max && b.tokens_min < a.tokens_max &&
          a.rate_min < b.rate_max && b.rate_min < a.rate_max && a.load_min < b.load_max &&
          b.load_min < a.load_max) {
        return fail(
            6,
            fmt::format(
                "variants '{}' and '{}' both cover {} tokens at {} B/s with {} requests waiting; expected at "
                "most one variant for each length, rate and load, and one for a live sender",
                a.name, b.name, std::max(a.tokens_min, b.tokens_min), std::max(a.rate_min, b.rate_min),
                std::max(a.load_min, b.load_min)));
      }
    }
  }
  return ok_status();
}

}  // namespace ds
