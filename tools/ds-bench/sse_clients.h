// Streaming clients of ds-serve on one thread of their own, which cost as little as can be: what is measured
// is the server.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/status.h"

namespace ds {

struct SseAnswer {
  bool good = false;              // a whole answer
  std::vector<int64_t> token_ns;  // from when the request was due to each token; at least one where `good`
  double engine_ttft_ms = 0;      // as the answer says
};

struct SseRun {
  std::vector<SseAnswer> answers;  // by request
  int64_t processor_ns = 0;        // of the clients' thread
};

/// POSTs each of `bodies`, a request for a stream with token ids, to http://127.0.0.1:port/v1/completions: so
/// many at a time, or each at its own time after the start. kIo: the server cannot be reached.
Result<SseRun> run_sse_clients(int port, const std::vector<std::string>& bodies, int64_t clients,
                               const std::vector<double>& at_s);

}  // namespace ds
