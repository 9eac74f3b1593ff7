// Stop texts end an answer at the same place however it comes in pieces, and show nothing of themselves.
#include "runtime/core/stop_text.h"

#include <gtest/gtest.h>

#include <random>

namespace ds {
namespace {

struct Ended {
  std::string shown;
  std::optional<std::string> by;
};

/// The text in pieces of this size.
Ended ended(const std::vector<std::string>& stops, const std::string& text, size_t piece) {
  StopText s(stops);
  Ended out;
  for (size_t at = 0; at < text.size() && !s.stopped(); at += piece)
    out.shown += s.push(text.substr(at, piece));
  if (!s.stopped()) out.shown += s.finish();
  out.by = s.stopped();
  return out;
}

TEST(StopText, WhatIsShownEndsBeforeTheStop) {
  for (size_t piece : {1, 2, 3, 100}) {
    EXPECT_EQ(ended({"\n\n"}, "one\ntwo\n\nthree", piece).shown, "one\ntwo");
    EXPECT_EQ(ended({"END"}, "the EN", piece).shown, "the EN") << "held back, then the answer ended";
    EXPECT_EQ(ended({"END"}, "the ENEND!", piece).shown, "the EN");
    EXPECT_EQ(ended({"abab", "x"}, "zababab", piece).shown, "z");
    EXPECT_EQ(ended({"abcd", "bc"}, "zabcd", piece).by, "bc") << "is complete first";
    EXPECT_EQ(ended({"c", "bc"}, "abc", piece).by, "bc") << "both end at once: the longer one";
    EXPECT_EQ(ended({"é"}, "caf\xC3\xA9s", piece).shown, "caf");
    EXPECT_EQ(ended({}, "all of it", piece).shown, "all of it");
    EXPECT_EQ(ended({"it"}, "it", piece).shown, "");
  }
}

TEST(StopText, NothingIsHeldBackThatCannotBecomeAStop) {
  StopText s({"\nUser:"});
  EXPECT_EQ(s.push("Hello"), "Hello");
  EXPECT_EQ(s.push(" you\nUs"), " you");
  EXPECT_EQ(s.push("ual"), "\nUsual");
  EXPECT_EQ(s.push("\n"), "");
  EXPECT_EQ(s.push("User: x"), "");
  EXPECT_EQ(s.stopped(), "\nUser:");
  EXPECT_EQ(s.push("more"), "");
}

TEST(StopText, PiecesMakeNoDifference) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000; ++i) {
    auto word = [&](size_t most) {
      std::string s;
      for (size_t n = 1 + random() % most; n > 0; --n) s += "ab"[random() % 2];
      return s;
    };
    std::vector<std::string> stops = {word(4), word(6)};
    std::string text = word(24);
    Ended whole = ended(stops, text, 100);
    for (size_t piece : {1, 2, 5}) {
      Ended cut = ended(stops, text, piece);
      EXPECT_EQ(cut.shown, whole.shown) << text;
      EXPECT_EQ(cut.by, whole.by) << text;
    }
    if (!whole.by) {
      EXPECT_EQ(whole.shown, text);
    }
    for (const std::string& stop : stops) EXPECT_EQ(whole.shown.find(stop), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace ds
