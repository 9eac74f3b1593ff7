// The fleet file: which models are served, by which plans, from which store, to whom, within which limits.
// docs/serving.md has its schema.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "runtime/core/drift.h"
#include "serve/tool_calls.h"
#include "support/json.h"
#include "support/status.h"

namespace ds {

inline constexpr int64_t kFleetVersion = 1;

struct FleetModel {
  std::string name;                      // that requests ask for
  std::string folder;                    // of a model, or of an adapter
  std::string base;                      // folder of an adapter's base; "": the one that it names
  std::string chat_template;             // a .jinja file or another model's folder; "": the folder's own
  ToolFormat tools = ToolFormat::kNone;  // how it writes calls of tools
  int64_t max_model_len = 0;             // as OpenOptions::max_model_len
  bool approximate = false;              // whether plans may answer for it
  bool publish = false;                  // whether contexts that it has read become entries
  bool publish_live = false;             // and are shown while they are computed
};

/// The models that a plan belongs to are found by its identities.
struct FleetPlan {
  std::string file, maps, profile;  // profile: quality.json, for the gate; "": no gate looks
};

/// A tenant, and the key that he shows.
struct FleetKey {
  std::string tenant, key_sha256;
  std::string salt;      // of entries and of cached beginnings
  int64_t requests = 0;  // at a time; 0: no limit of his own
};

struct Fleet {
  std::string origin = "fleet";  // the file, for messages
  // listen
  std::string host = "127.0.0.1";
  int64_t port = 8000;
  std::string certificate, private_key;  // files; "": no TLS
  int64_t connections = 256, body_bytes = int64_t{8} << 20;
  double idle_s = 5, write_s = 30;  // of a connection between requests; of a client that takes nothing
  // device
  std::string backend = "auto", dtype = "bf16";
  int64_t device = 0, threads = 0;

  std::vector<FleetModel> models;
  std::vector<FleetPlan> plans;
  std::string store, store_key;  // a URL; a file
  double registered_s = 0;       // how often plans that are registered there are looked for; 0: never
  // objectives, of requests that name none
  double loss = kUnknown;  // points; NaN: whatever the plans promise
  double ttft_ms = 0;      // 0: none
  // limits
  int64_t cache_bytes = int64_t{1} << 30, tokens = 8192, new_tokens = 4096, batch = 32, queue = 256;
  double step_budget_ms = 30, step_budget_share = 1, patience_ms = 20, request_s = 600;
  // gate
  double false_alarms = 0.01;
  int64_t window = DriftWindow::kDefaultRequests;
  bool exact_on_drift = false;

  std::vector<FleetKey> keys;  // none: whoever reaches the address is served
  bool open_metrics = false;   // /metrics and /status need no key

  /// `folder`: what relative paths start from, that of the file; "": the working folder. Reads the files of
  /// keys and salts. Errors name `origin` and the field: kCorrupt, kInvalidArgument (also an unknown key),
  /// kUnsupported (a newer version), and those of reading.
  static Result<Fleet> parse(std::string_view json, const std::string& origin, const std::string& folder);
  static Result<Fleet> read(const std::string& path);
};

}  // namespace ds
