// Where a request's rows are: the entries that it names, opened, and which of its context's rows each has. A
// plan's transfers speak of chunks of the context; which entries these meet is known only here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "plans/plan.h"
#include "runtime/core/landing.h"
#include "runtime/core/request.h"
#include "runtime/store/entry.h"
#include "support/status.h"

namespace ds {

class Segments {
 public:
  /// Opens what the request names and the variant's transfers read. Errors are those of EntryReader::open(),
  /// of the first entry that is not there or not right, and kNotFound: a transfer needs rows that no segment
  /// has. `request` has been checked (check_request()).
  static Result<Segments> open(Store& store, const Request& request, const Plan& plan, const Variant& variant,
                               DType dtype);

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
};

}  // namespace ds
