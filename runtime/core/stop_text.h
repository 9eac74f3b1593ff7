// Texts that end an answer, wherever tokens' borders lie in them.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ds {

/// Takes an answer's text piece by piece and gives back what may be shown of it: what could still become a
/// stop text is held back. Of several stop texts that one ends the answer which is complete first, of two
/// that end together the longer one; it does not matter how the text is cut into pieces.
class StopText {
 public:
  /// None of `stops` is empty.
  explicit StopText(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  std::string push(std::string_view piece) {
    if (stopped_) return {};
    for (char c : piece) {
      held_ += c;
      const std::string* found = nullptr;
      for (const std::string& stop : stops_)
        if (held_.ends_with(stop) && (found == nullptr || stop.size() > found->size())) found = &stop;
      if (found != nullptr) {
        stopped_ = *found;
        held_.resize(held_.size() - found->size());
        return std::exchange(held_, {});
      }
    }
    std::string shown = held_.substr(0, held_.size() - pending());
    held_.erase(0, shown.size());
    return shown;
  }
  /// What was held back, at the answer's end.
  std::string finish() { return std::exchange(held_, {}); }

  /// The text that ended the answer; it is not part of it.
  const std::optional<std::string>& stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::optional<std::string> stopped_;

  /// Length of the longest end of what is held that a stop text begins with.
  size_t pending() const {
    size_t most = 0;
    for (const std::string& stop : stops_)
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > most; --n)
        if (std::string_view(held_).ends_with(std::string_view(stop).substr(0, n))) most = n;
    return most;
  }
};

}  // namespace ds
