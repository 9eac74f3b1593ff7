// A page about a profile, for people who decide how far to trust it.
#pragma once

#include <string>

#include "plans/quality.h"

namespace ds {

/// One HTML file that stands by itself: no scripts, fonts or files from elsewhere. Profiles of every version;
/// parts that the profile has no data for are left out. The same profile gives the same bytes.
std::string quality_html(const Quality& quality);

}  // namespace ds
