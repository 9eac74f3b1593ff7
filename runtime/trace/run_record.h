// The run record: what a request really did, op by op. Opt-in, a file of its own (JSON lines), joined to the
// plan by op index. `ds-plan trace` draws it beside the plan's prediction.
//
// One JSON object per line: a header
//   {"schema": "droidspeak.run_record", "version": 1, "plan_sha256": "...", "variant": "v0", ...},
// one object per op that ran
//   {"op": 3, "label": "recompute 4", "stream": "compute", "start_ns": 3300, "end_ns": 5200, "bytes": 0},
// and last {"summary": {"ops": 25, "ttft_ns": 41200000, "bytes_loaded": 123, "cache": {...}, "dropped": 0}},
// with a "gate" object where a gate looked at the answer.
// A file without its summary was cut off while being written. Unknown keys are ignored: fields are only
// added.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds {

inline constexpr int64_t kRunRecordVersion = 1;

/// One op of a plan's variant as it ran. Times are nanoseconds from the start of the request (tokens in hand,
/// models loaded: where the TTFT starts).
struct OpRecord {
  int32_t op = 0;      // index into Variant::ops
  std::string label;   // op_label(): "e(3)", "recompute 4"
  std::string stream;  // stream_kind_name(): "link", "compute"
  int64_t start_ns = 0;
  int64_t end_ns = 0;
  int64_t bytes = 0;  // moved by a transfer; 0 for kernels
  bool operator==(const OpRecord&) const = default;
};

/// What the gate said (runtime/core/gate.h).
struct GateRecord {
  std::string status;        // "passed", "alarm": the record's ops are then those of the full prefill
  std::string variant, way;  // whose answer was looked at; its way in the profile
  struct Proxy {
    std::string name;  // "k_deviation", "entropy", "margin"
    double value = 0;  // NaN: not a number
    double threshold = 0;
    bool alarm = false;
    bool operator==(const Proxy& o) const {
      return name == o.name && (value == o.value || (value != value && o.value != o.value)) &&
             threshold == o.threshold && alarm == o.alarm;
    }
  };
  std::vector<Proxy> proxies;
  int64_t gate_ns = 0;  // what looking took
  int64_t lost_ns = 0;  // start of the request to the alarm; 0: none
  std::string drift;    // of the last requests, for people; "" where no window was kept
  bool operator==(const GateRecord&) const = default;

  /// "alarm: entropy 3.2 (alarm; threshold 2.1); variant 'v0' was tried and 4.2 ms lost", "passed: ...".
  std::string text() const;
};

struct RunRecord {
  // Header: what ran, and at which point.
  std::string plan_sha256;        // of the plan file's bytes; "" where no plan file was given
  std::string variant;            // Variant::name; "full-prefill" for the fall-back
  std::string policy, scheduler;  // of that variant
  std::string choice;             // why it ran: "its ranges cover 403 tokens at 200 MB/s"
  std::string mode;               // as ds-run reports it: "plan", "full-prefill"
  std::string sender, receiver;   // ModelIdentity::name; sender "" where none took part
  std::string backend;            // "cpu"
  std::string dtype;              // "bf16", "f32"
  int64_t context_tokens = 0;     // n
  int64_t suffix_tokens = 0;      // m
  int64_t link_rate = 0;          // bytes per second that the variant was chosen by; 0: not known
  int64_t waiting = 0;            // other requests that waited

  std::vector<OpRecord> ops;  // any order; every op index at most once

  // Summary.
  int64_t ttft_ns = 0;        // start of the request to the first token chosen
  int64_t bytes_loaded = 0;   // from the entry
  std::string cache_status;   // "hit", "miss", "unused"
  std::string cache_reason;   // why not "hit"; "" otherwise
  std::string cache_shorter;  // why the entries have not all of the context; "": they have, or none is used
  int64_t dropped = 0;        // ops that ran but could not be recorded
  std::optional<GateRecord> gate;  // none: no gate looked at this request
  bool operator==(const RunRecord&) const = default;
};

/// Writes `path` ("-": stdout) atomically. Errors: kIo, kExhausted; kInvalidArgument for a record that could
/// not be read back (negative times, an op twice).
Status write_run_record(const std::string& path, const RunRecord& record);

/// Errors: kNotFound, kIo; kCorrupt (empty, not JSON, cut off, an op twice, an end before its start) with
/// file and line; kUnsupported for a newer version, stating both.
Result<RunRecord> read_run_record(const std::string& path);

/// The same on text; `origin` names it in messages.
std::string run_record_text(const RunRecord& record);
Result<RunRecord> parse_run_record(std::string_view text, const std::string& origin);

}  // namespace ds
