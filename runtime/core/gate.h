// The gate: is this request like those that the plan's promise was measured on?
//
// A promise holds for the data of the profile. Three numbers that cost next to nothing say how far a request
// is from that data: how far the receiver's keys are from the sender's, how undecided the first answer token
// is, and how far its best candidate leads. Where one of them is past a threshold that requests like the
// profile's pass at a stated rate only, the answer is thrown away before a token of it is seen, and a full
// prefill answers.
//
// The thresholds are order statistics of the profile's samples (split conformal prediction): with k = floor(
// alpha * (n + 1)), a new value exceeds the k-th largest of n others with probability k / (n + 1) <= alpha at
// most, whatever their distribution, if all n + 1 are exchangeable. Several questions about one context are
// not quite that: the rate then holds on average over contexts, and varies more from one user to the next.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "plans/quality.h"
#include "plans/way.h"
#include "runtime/backends/backend.h"
#include "support/status.h"

namespace ds {

enum class Proxy : uint8_t {
  kKDeviation,  // KeyDeviation; too far above the profile's is an alarm. (Below is not: keys that agree are
                // what reuse hopes for.)
  kEntropy,     // nats, of the first answer token's distribution; above is an alarm
  kMargin,      // probability of its first less that of its second; below is an alarm
};
inline constexpr std::string_view kProxyNames[] = {"k_deviation", "entropy", "margin"};
inline constexpr size_t kProxies = std::size(kProxyNames);

/// One number by proxy. NaN: there is none.
struct ProxyValues {
  std::array<double, kProxies> of;
  ProxyValues();  // NaN everywhere
  double& operator[](Proxy proxy) { return of[static_cast<size_t>(proxy)]; }
  double operator[](Proxy proxy) const { return of[static_cast<size_t>(proxy)]; }
};

/// Entropy and margin of softmax(logits), temperature 1; the sums are f64. At least one logit. A NaN among
/// them makes both NaN.
ProxyValues first_token_proxies(std::span<const float> logits);

/// How far the receiver's keys of layer 0 are from the sender's, on a sample of the context's tokens:
///   sqrt(sum |K_R - K_S|^2 / sum |K_R|^2)
/// over all rows where n <= 256, else over four blocks of 64 rows, block i beginning at (n - 64) * i / 3; in
/// f64, row by row. The receiver's keys come from its own embeddings. The one definition for the profiler and
/// for the runtime. Owns its scratch; measure() allocates nothing.
class KeyDeviation {
 public:
  static constexpr int64_t kBlocks = 4, kBlockRows = 64;
  static constexpr int64_t kCommands = 4 * kBlocks;  // most that measure() enqueues

  static Result<std::unique_ptr<KeyDeviation>> create(Backend& backend, DeviceModel& model);

  /// `sender`: its rows of layer 0, [n][2][kv_heads][head_dim] in the model's type, of host or device.
  /// `stream` and `workspace` (for n positions at least) are idle. Waits for the stream. 0 for keys that are
  /// equal to the bit. Errors: no context, and what the kernels say.
  Result<double> measure(CommandStream& stream, Workspace& workspace, std::span<const int32_t> context,
                         const std::byte* sender);

 private:
  explicit KeyDeviation(DeviceModel& model) : model_(model) {}
  DeviceModel& model_;
  int64_t kv_row_ = 0, hidden_row_ = 0;          // bytes
  std::unique_ptr<DeviceMemory> hidden_, keys_;  // kBlocks * kBlockRows rows each
  std::unique_ptr<DeviceMemory> compared_;       // on the host: as many rows of K and V, twice
};

/// The profile's samples for one way.
struct GateReference {
  Way way;
  std::array<std::vector<double>, kProxies> samples;  // ascending; empty: the profile has none

  /// `origin` names the profile in messages. kNotFound where it has no samples of this way's first tokens:
  /// says which ways have some.
  static Result<GateReference> make(const Quality& quality, const std::string& origin, const Way& way);

  /// Thresholds at which requests like the profile's raise an alarm at a rate of `false_alarms` at most, in
  /// (0, 1). The proxies that there are share it equally (Bonferroni); `with_keys`: K of layer 0 can be
  /// compared. kInfeasible where there are too few samples for it: names the number needed.
  Result<ProxyValues> thresholds(double false_alarms, bool with_keys, const std::string& origin) const;
};

/// What the gate said of one request.
struct GateVerdict {
  bool checked = false;              // false: no gate was given, or nothing was reused
  bool alarmed = false;              // a full prefill answered
  bool repaired = false;             // of a variant of which some was computed instead of sent
  const Variant* variant = nullptr;  // whose answer was looked at
  ProxyValues values;                // rounded as a profile's are
  ProxyValues thresholds;            // NaN: this proxy is not looked at
  int64_t gate_ns = 0;               // what looking took

  /// A value that is not a number is an alarm too.
  bool alarms(Proxy proxy) const;
};

/// "entropy 3.2 (alarm above 2.1), margin 0.9 (alarm below 0.1)", those that raised an alarm first.
std::string gate_verdict_text(const GateVerdict& verdict);

/// A profile made ready for one plan: thresholds for each variant that reuses something.
class Gate {
 public:
  /// `plan` outlives the gate. Errors: those of GateReference, with the variant's name; kInvalidArgument: a
  /// rate outside (0, 1).
  static Result<Gate> create(const Plan& plan, const Quality& quality, const std::string& origin,
                             double false_alarms);

  const Plan& plan() const { return *plan_; }
  double false_alarms() const { return false_alarms_; }
  /// nullptr: this variant reuses nothing (or is not the plan's), so that there is nothing to look at.
  const ProxyValues* thresholds(const Variant& variant) const;
  const GateReference* reference(const Variant& variant) const;
  /// Looks at an answer of `variant` by the logits of its first token. `keys` measures the KeyDeviation; it
  /// is called only where the variant has a threshold for it. Not `checked` where there is nothing to look
  /// at. Where the run was repaired, more of it is the receiver's than the profile's was: an alarm still says
  /// that the answer is less decided than any of those, and costs a full prefill, but the stated rate of
  /// false alarms is not promised. `keys` is empty then where layer 0 has keys of the receiver: they would be
  /// compared with themselves.
  Result<GateVerdict> look(const Variant& variant, std::span<const float> logits,
                           const std::function<Result<double>()>& keys, bool repaired = false) const;

 private:
  struct Entry {
    size_t reference = 0;
    ProxyValues thresholds;
    bool reuses = false;
  };
  const Entry* find(const Variant& variant) const;

  const Plan* plan_ = nullptr;
  double false_alarms_ = 0;
  std::vector<GateReference> references_;  // by way
  std::vector<Entry> entries_;             // by variant
};

}  // namespace ds
