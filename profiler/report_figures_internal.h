// What the pictures of the page about a profile share: colours, which ways are shown as what, what a mark
// says.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <string>

#include "profiler/report_internal.h"
#include "runtime/trace/chart.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/markup.h"

namespace ds::report {

inline constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Classes of colours by what is shown; shapes differ too.
inline const std::string kPrefillCss = colour_class(0), kScatteredCss = colour_class(1),
                         kReuseCss = colour_class(2), kSenderCss = colour_class(3),
                         kNoCutCss = colour_class(4), kGroupCss = colour_class(5),
                         kRestoreCss = colour_class(6), kSelectCss = colour_class(7),
                         kAlignedCss = colour_class(8), kWorstCss = colour_class(9);

inline bool is_plain_group(const WayScore& w) { return is_group(w) && is_plain(w); }
inline bool is_aligned_group(const WayScore& w) { return is_group(w) && is_aligned(w); }

inline std::string figure(std::string_view caption, const std::string& content) {
  return fmt::format("<figure>{}{}</figure>\n",
                     caption.empty() ? "" : html_cell("figcaption", escape_markup(caption)), content);
}

inline std::string hover(const WayScore& w, const Mean& score) {
  std::string text = fmt::format("{}: {}", w.way.name(), mean_text(score));
  if (std::isfinite(w.loss.value)) text += fmt::format(", loss {}", mean_text(w.loss));
  if (std::isfinite(w.divergence.value))
    text += fmt::format(", divergence {} nats", ds::nats_text(w.divergence.value));
  if (w.dropped) text += fmt::format("; dropped after {} contexts", w.contexts);
  return text;
}

}  // namespace ds::report
