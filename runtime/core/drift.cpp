#include "runtime/core/drift.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "support/file.h"
#include "support/schema.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr const char* kSchema = "droidspeak.gate_window";
constexpr double kLargest = 1e300;

/// Held until it is destroyed; processes that update one window take turns. A file system without locks costs
/// the order only: the file itself is always replaced as a whole.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path) {
    std::string folder = std::filesystem::path(path).parent_path().string();
    fd_ = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ >= 0) (void)flock(fd_, LOCK_EX);
  }
  FolderLock(const FolderLock&) = delete;
  ~FolderLock() {
    if (fd_ >= 0) close(fd_);
  }

 private:
  int fd_ = -1;
};

/// The sample of one proxy that the reference is held against, ascending.
std::vector<double> sample(std::vector<double> values, Proxy proxy) {
  std::sort(values.begin(), values.end());
  if (proxy == Proxy::kKDeviation) values.erase(std::unique(values.begin(), values.end()), values.end());
  return values;
}

}  // namespace

std::string_view drift_state_name(DriftReport::State state) {
  return state == DriftReport::State::kTooFew   ? "too few"
         : state == DriftReport::State::kInLine ? "in line"
                                                : "drifted";
}

std::string DriftReport::text() const {
  if (state == State::kTooFew)
    return fmt::format("too few requests yet ({} of {})", requests, DriftWindow::kLeastRequests);
  std::string text;
  for (size_t p = 0; p < kProxies; ++p)
    if (tests[p].drifted)
      text += fmt::format("{}{} (p = {:.2g})", text.empty() ? "drifted: " : ", ", kProxyNames[p],
                          tests[p].result.p);
  text += text.empty() ? "in line with the profile" : ", profile again";
  return text + fmt::format(" ({} requests, {} alarms)", requests,
                            format_percent(static_cast<double>(alarms) / static_cast<double>(requests)));
}

bool DriftWindow::Seen::operator==(const Seen& other) const {
  auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
  return alarmed == other.alarmed &&
         std::equal(values.of.begin(), values.of.end(), other.values.of.begin(), same);
}

Result<DriftWindow> DriftWindow::make(std::string profile_sha256, int64_t requests) {
  if (requests < kLeastRequests || requests > kMostRequests)
    return error(Code::kInvalidArgument, "a window of {} requests; expected {} to {}", requests,
                 kLeastRequests, kMostRequests);
  DriftWindow window;
  window.profile_sha256_ = std::move(profile_sha256);
  window.requests_ = requests;
  return window;
}

DriftWindow::Lane& DriftWindow::lane(const std::string& way) {
  auto at = std::find_if(lanes_.begin(), lanes_.end(), [&](const Lane& l) { return l.way == way; });
  return at != lanes_.end() ? *at : lanes_.emplace_back(Lane{way, {}});
}

void DriftWindow::add(const Way& way, const GateVerdict& verdict) {
  if (!verdict.checked || verdict.repaired) return;
  Seen seen;
  for (size_t p = 0; p < kProxies; ++p)
    if (!std::isnan(verdict.thresholds.of[p]) && std::abs(verdict.values.of[p]) <= kLargest)
      seen.values.of[p] = verdict.values.of[p];
  seen.alarmed = verdict.alarmed;
  auto& requests = lane(way.name()).requests;
  requests.push_back(seen);
  if (static_cast<int64_t>(requests.size()) > requests_) requests.erase(requests.begin());
}

DriftReport DriftWindow::report(const GateReference& reference, double level) const {
  DriftReport report;
  report.way = reference.way.name();
  auto at = std::find_if(lanes_.begin(), lanes_.end(), [&](const Lane& l) { return l.way == report.way; });
  if (at == lanes_.end()) return report;
  report.requests = static_cast<int64_t>(at->requests.size());
  report.alarms =
      std::count_if(at->requests.begin(), at->requests.end(), [](const Seen& s) { return s.alarmed; });
  for (size_t p = 0; p < kProxies; ++p) {
    DriftReport::Test& test = report.tests[p];
    std::vector<double> values;
    for (const Seen& s : at->requests)
      if (!std::isnan(s.values.of[p])) values.push_back(s.values.of[p]);
    values = sample(std::move(values), static_cast<Proxy>(p));
    test.values = static_cast<int64_t>(values.size());
    test.tested = test.values >= kLeastRequests && !reference.samples[p].empty();
    if (!test.tested) continue;
    test.result = kolmogorov_smirnov(values, reference.samples[p]);
    test.drifted = test.result.p < level / static_cast<double>(kProxies);
    if (report.state == DriftReport::State::kTooFew) report.state = DriftReport::State::kInLine;
    if (test.drifted) report.state = DriftReport::State::kDrifted;
  }
  return report;
}

// ---- the file

nlohmann::ordered_json DriftWindow::to_json() const {
  nlohmann::ordered_json root = {{"schema", kSchema},
                                 {"version", kDriftWindowVersion},
                                 {"profile_sha256", profile_sha256_},
                                 {"requests", requests_},
                                 {"ways", nlohmann::ordered_json::array()}};
  for (const Lane& l : lanes_) {
    nlohmann::ordered_json window = nlohmann::ordered_json::array();
    for (const Seen& s : l.requests) {
      nlohmann::ordered_json seen = nlohmann::ordered_json::object();
      for (size_t p = 0; p < kProxies; ++p)
        if (!std::isnan(s.values.of[p])) seen[std::string(kProxyNames[p])] = s.values.of[p];
      seen["alarm"] = s.alarmed;
      window.push_back(std::move(seen));
    }
    root["ways"].push_back({{"way", l.way}, {"window", std::move(window)}});
  }
  return root;
}

Result<DriftWindow> DriftWindow::parse(const nlohmann::json& json, const std::string& origin,
                                       const std::string& profile_sha256, int64_t requests) {
  DS_ASSIGN(DriftWindow window, make(profile_sha256, requests));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, origin));
  DS_TRY(check_schema(root, kSchema, kDriftWindowVersion));
  DS_TRY(check_keys(root, {"schema", "version", "profile_sha256", "requests", "ways"}));
  DS_ASSIGN(std::string profile, root.string("profile_sha256"));
  if (profile != profile_sha256) {
    return error(Code::kMismatch,
                 "{}: profile_sha256 is {:.12}..., but this profile has {:.12}...: its requests were held "
                 "against another profile; name a new file for this one, or delete it",
                 origin, profile, profile_sha256);
  }
  DS_TRY(root.integer("requests", kLeastRequests, kMostRequests));
  DS_ASSIGN(const nlohmann::json* ways, root.array("ways"));
  for (size_t w = 0; w < ways->size(); ++w) {
    DS_ASSIGN(JsonObject way, JsonObject::make((*ways)[w], fmt::format("{}: ways[{}]", origin, w)));
    DS_TRY(check_keys(way, {"way", "window"}));
    DS_ASSIGN(std::string name, way.string("way"));
    if (std::any_of(window.lanes_.begin(), window.lanes_.end(), [&](const Lane& l) { return l.way == name; }))
      return error(Code::kInvalidArgument, "{}: '{}' for the second time; expected each way once",
                   way.where(), name);
    Lane& lane = window.lane(name);
    DS_ASSIGN(const nlohmann::json* list, way.array("window"));
    for (size_t i = 0; i < list->size(); ++i) {
      DS_ASSIGN(JsonObject o, JsonObject::make((*list)[i], fmt::format("{}: window[{}]", way.where(), i)));
      DS_TRY(check_keys(o, {kProxyNames[0], kProxyNames[1], kProxyNames[2], "alarm"}));
      Seen seen;
      for (size_t p = 0; p < kProxies; ++p) {
        DS_ASSIGN(seen.values.of[p], o.number_or(kProxyNames[p], -kLargest, kLargest, std::nan("")));
      }
      DS_ASSIGN(seen.alarmed, o.boolean("alarm"));
      lane.requests.push_back(seen);
    }
    auto excess = static_cast<int64_t>(lane.requests.size()) - requests;
    if (excess > 0) lane.requests.erase(lane.requests.begin(), lane.requests.begin() + excess);
  }
  return window;
}

Result<DriftWindow> DriftWindow::read(const std::string& path, const std::string& profile_sha256,
                                      int64_t requests) {
  Result<nlohmann::json> json = read_json_file(path);
  if (!json.ok() && json.status().code() == Code::kNotFound) return make(profile_sha256, requests);
  if (!json.ok()) return json.status().with_context("reading a gate's window");
  auto window = parse(*json, path, profile_sha256, requests);
  if (!window.ok()) return window.status().with_context("reading a gate's window");
  return window;
}

Result<DriftWindow> update_drift_window(const std::string& path, const std::string& profile_sha256,
                                        int64_t requests, const Way& way, const GateVerdict& verdict) {
  FolderLock lock(path);
  DS_ASSIGN(DriftWindow window, DriftWindow::read(path, profile_sha256, requests));
  window.add(way, verdict);
  DS_TRY(write_file_atomically(path, window.to_json().dump(1) + "\n", {.owner_only = true}));
  return window;
}

}  // namespace ds
