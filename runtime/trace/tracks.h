// What the pictures of a schedule share: its lanes, its times, its critical path.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "plans/critical_path.h"
#include "runtime/trace/draw.h"
#include "runtime/trace/markup.h"

namespace ds {

struct Bar {
  int32_t op;
  int64_t start, end;
};
struct Lane {
  std::string name;
  std::vector<Bar> bars;  // by start
  int64_t busy = 0;
};
/// One schedule: the predicted one or the measured one.
struct Track {
  std::string name, note;
  std::vector<Lane> lanes;
  std::vector<OpTime> times;  // by op; start -1: did not run
  std::vector<CriticalStep> critical;
  int64_t end = 0;
  int64_t lower_bound = 0;  // 0: not known
};

/// Predicted, and measured where there is a record.
std::vector<Track> make_tracks(const Picture& picture);

/// One name per stream of the variant; numbered where a kind occurs twice.
std::vector<std::string> stream_names(const Variant& variant);

std::string picture_title(const Picture& picture);
/// 0 where the whole is 0.
double percent(int64_t part, int64_t whole);

/// The drawing at the width of a page (1200) or of a phone (360). Ids of `narrow` differ, so that both can
/// stand on one page. `title`: with the picture's title on top.
std::string draw_svg(const Picture& picture, bool narrow, bool title);

}  // namespace ds
