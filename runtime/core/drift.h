// Drift: do the last requests, taken together, still look like the profile's data? The gate judges one
// request and leaves most that are only somewhat off alone; many of them are visible long before.
//
// One look has a stated level; a look after every request is many looks, whose windows overlap: take a report
// as a reason to profile again, not as a proof.
#pragma once

#include <array>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "runtime/core/gate.h"
#include "support/kolmogorov.h"
#include "support/status.h"

namespace ds {

inline constexpr int64_t kDriftWindowVersion = 1;

struct DriftReport {
  enum class State : uint8_t { kTooFew, kInLine, kDrifted };
  State state = State::kTooFew;
  std::string way;
  int64_t requests = 0, alarms = 0;  // in the window
  struct Test {
    int64_t values = 0;   // in the window
    bool tested = false;  // there were enough of them
    KolmogorovSmirnov result;
    bool drifted = false;
  };
  std::array<Test, kProxies> tests;

  /// "in line with the profile (64 requests, 1.56 % alarms)", "drifted: entropy (p = 2e-05), profile again
  /// (64 requests, 20.3 % alarms)", "too few requests yet (5 of 16)".
  std::string text() const;
};
std::string_view drift_state_name(DriftReport::State state);  // "too few", "in line", "drifted"

/// The last requests of each way, of one profile.
class DriftWindow {
 public:
  static constexpr int64_t kDefaultRequests = 64, kLeastRequests = 16, kMostRequests = 4096;

  /// `profile_sha256`: of the profile's bytes. kInvalidArgument: a window outside [16, 4096] requests.
  static Result<DriftWindow> make(std::string profile_sha256, int64_t requests = kDefaultRequests);

  /// A verdict that was `checked`, of a run as the profile's; others are ignored.
  void add(const Way& way, const GateVerdict& verdict);

  /// The window of the reference's way against the reference: two-sided Kolmogorov-Smirnov per proxy, each at
  /// `level` / 3, where the window has 16 values. K deviations count once per value: it is the context's, and
  /// many questions about one context are no drift.
  DriftReport report(const GateReference& reference, double level = 0.01) const;

  nlohmann::ordered_json to_json() const;
  /// kCorrupt, kInvalidArgument, kUnsupported: damaged or newer; kMismatch: not such a file, or of another
  /// profile. Of a window that was longer the last requests are kept.
  static Result<DriftWindow> parse(const nlohmann::json& json, const std::string& origin,
                                   const std::string& profile_sha256, int64_t requests);
  /// The same from a file; one that is not there is an empty window.
  static Result<DriftWindow> read(const std::string& path, const std::string& profile_sha256,
                                  int64_t requests);

  bool operator==(const DriftWindow&) const = default;

 private:
  struct Seen {
    ProxyValues values;  // NaN: not looked at, or not a number
    bool alarmed = false;
    bool operator==(const Seen& other) const;
  };
  struct Lane {
    std::string way;
    std::vector<Seen> requests;  // oldest first
    bool operator==(const Lane&) const = default;
  };
  Lane& lane(const std::string& way);

  std::string profile_sha256_;
  int64_t requests_ = kDefaultRequests;
  std::vector<Lane> lanes_;  // in the order of their first requests
};

/// Reads `path`, adds one verdict and writes it back atomically, while no other process does the same.
/// Nothing is written where it cannot be read.
Result<DriftWindow> update_drift_window(const std::string& path, const std::string& profile_sha256,
                                        int64_t requests, const Way& way, const GateVerdict& verdict);

}  // namespace ds
