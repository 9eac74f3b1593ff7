// Where a request's rows are: the entries that it names, opened, and which of its context's rows each has. A
// plan's transfers speak of chunks of the context; which entries these meet is known only here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "runtime/core/landing.h"
#include "runtime/core/request.h"
#include "runtime/store/entry.h"
#include "support/status.h"

namespace ds {

class Segments {
 public:
  /// Opens the entries that the request names, or else those that agree with its context from the beginning
  /// on and have what the variant's transfers read (find_chain(); E through `map`, entry_map()). Errors:
  /// those of EntryReader::open(), of the first entry that is not there or not right, and kNotFound: a
  /// transfer needs rows that no segment has. `request` has been checked (check_request()).
  static Result<Segments> open(Store& store, const Request& request, const Plan& plan, const Variant& variant,
                               std::string_view map, DType dtype);

  /// How much of the context, from its beginning on, is there: all of it where the request names segments.
  int64_t tokens() const { return tokens_; }
  /// Why it is not all of it; OK where it is.
  const Status& shorter() const { return shorter_; }
  /// Whether an entry's sender is still computing it, so that reads may wait for it.
  bool live() const;
  /// Whether rows can be read without waiting for a sender.
  bool ready(int32_t source, const LandingRows& rows) const;
  /// As EntryReader::when_more(), of all of them.
  void when_more(const std::function<void()>& tell);
  /// The variant for as much: `chosen`, which open() was asked for, where all of a context of n tokens is
  /// there; where its sender is still computing it, one for that. kNotFound: the plan reuses nothing of so
  /// few.
  Result<const Variant*> variant(const Plan& plan, const Variant& chosen, int64_t n, int64_t rate,
                                 int64_t waiting) const;

  /// Rows of the context that a source has, from wherever they are; as Landing::read().
  Status read(Landing& landing, int32_t source, const LandingRows& rows, std::byte* to,
              const std::function<Status()>& go_on = {});
  /// Bytes of tensors read so far.
  int64_t bytes_read() const;

 private:
  struct Part {
    int32_t source = 0;
    int64_t begin = 0, end = 0;  // tokens of the context
    int64_t there = 0;           // row of the entry that is token `begin`
    EntryReader entry;
  };
  std::vector<Part> parts_;  // ascending within a source
  int64_t tokens_ = 0;
  Status shorter_;
};

}  // namespace ds
