// The gate of a run: its profile and its window, and what it said as record, JSON and text.
#include <cmath>
#include <filesystem>

#include "runtime/model/identity.h"
#include "support/hash.h"
#include "tools/ds-run/run.h"

namespace ds {
namespace {

/// Proxies that were looked at.
std::vector<Proxy> watched(const GateVerdict& verdict) {
  std::vector<Proxy> proxies;
  for (size_t p = 0; p < kProxies; ++p)
    if (!std::isnan(verdict.thresholds.of[p])) proxies.push_back(static_cast<Proxy>(p));
  return proxies;
}

std::string_view name_of(Proxy proxy) { return kProxyNames[static_cast<size_t>(proxy)]; }

}  // namespace

Result<std::unique_ptr<GateSetup>> set_up_gate(const RunOptions& o, const Plan& plan) {
  auto false_alarms = parse_percent(o.gate_false_alarms);
  if (!false_alarms.ok()) return false_alarms.status().with_context("--gate-false-alarms");
  DS_ASSIGN(Quality quality, Quality::read(o.gate));
  DS_TRY(quality.check_pair(o.gate, names_of_model(plan.sender), names_of_model(plan.receiver),
                            plan.shape.layers, "the plan's "));
  DS_ASSIGN(std::string bytes, read_text_file(o.gate));
  std::string sha256 = sha256_hex(bytes);
  for (const InputFile& input : plan.provenance.inputs) {
    if (input.role != "quality" || input.sha256 == sha256) continue;
    fmt::print(
        stderr,
        "warning: the plan was compiled from '{}' ({:.12}...), --gate is '{}' ({:.12}...): its promise "
        "rests on another profile than the gate\n",
        input.name, input.sha256, o.gate, sha256);
  }
  DS_ASSIGN(Gate gate, Gate::create(plan, quality, o.gate, *false_alarms));
  if (!o.gate_window.empty()) {
    std::filesystem::path folder = std::filesystem::path(o.gate_window).parent_path();
    if (!folder.empty() && !std::filesystem::is_directory(folder))
      return error(Code::kNotFound, "--gate-window '{}': there is no folder '{}'; make it first",
                   o.gate_window, folder.string());
    DS_TRY(DriftWindow::read(o.gate_window, sha256, o.gate_window_requests));
  }
  return std::make_unique<GateSetup>(std::move(gate), std::move(sha256));
}

Status update_window(const RunOptions& o, const GateVerdict& verdict, GateSetup& setup) {
  if (o.gate_window.empty() || !verdict.checked) return ok_status();
  const GateReference& reference = *setup.gate.reference(*verdict.variant);
  DS_ASSIGN(DriftWindow window, update_drift_window(o.gate_window, setup.profile_sha256,
                                                    o.gate_window_requests, reference.way, verdict));
  setup.drift = window.report(reference, setup.gate.false_alarms());
  return ok_status();
}

GateRecord gate_record(const Answer& answer, const GateSetup& setup) {
  const GateVerdict& verdict = answer.gate;
  GateRecord record;
  record.status = verdict.alarmed ? "alarm" : "passed";
  record.variant = verdict.variant->name;
  record.way = setup.gate.reference(*verdict.variant)->way.name();
  for (Proxy p : watched(verdict))
    record.proxies.push_back(
        {std::string(name_of(p)), verdict.values[p], verdict.thresholds[p], verdict.alarms(p)});
  record.gate_ns = verdict.gate_ns;
  record.lost_ns = answer.lost_ns;
  if (setup.drift) record.drift = setup.drift->text();
  return record;
}

nlohmann::ordered_json gate_json(const Answer& answer, const GateSetup* setup) {
  const GateVerdict& verdict = answer.gate;
  if (setup == nullptr || !verdict.checked) return {{"status", "off"}};
  nlohmann::ordered_json out, proxies, thresholds;
  nlohmann::ordered_json alarms = nlohmann::ordered_json::array();
  for (Proxy p : watched(verdict)) {
    std::string name(name_of(p));
    proxies[name] = verdict.values[p];  // not a number: null
    thresholds[name] = verdict.thresholds[p];
    if (verdict.alarms(p)) alarms.push_back(name);
  }
  out["status"] = verdict.alarmed ? "alarm" : "passed";
  out["variant"] = verdict.variant->name;
  out["way"] = setup->gate.reference(*verdict.variant)->way.name();
  out["false_alarms"] = setup->gate.false_alarms();
  out["alarms"] = alarms;
  out["proxies"] = proxies;
  out["thresholds"] = thresholds;
  out["gate_ms"] = static_cast<double>(verdict.gate_ns) / 1e6;
  out["drift"] = nullptr;
  if (setup->drift) {
    const DriftReport& drift = *setup->drift;
    nlohmann::ordered_json p_values = nlohmann::ordered_json::object();
    for (size_t p = 0; p < kProxies; ++p)
      if (drift.tests[p].tested) p_values[std::string(kProxyNames[p])] = drift.tests[p].result.p;
    out["drift"] = {{"status", drift_state_name(drift.state)},
                    {"text", drift.text()},
                    {"requests", drift.requests},
                    {"alarms", drift.alarms},
                    {"p", p_values}};
  }
  return out;
}

std::string gate_text(const Answer& answer, const GateSetup& setup) {
  const GateVerdict& verdict = answer.gate;
  if (!verdict.checked) return "gate off: nothing was reused";
  std::string text =
      fmt::format("gate {}: {}", verdict.alarmed ? "alarm" : "passed", gate_verdict_text(verdict));
  if (verdict.alarmed) text += fmt::format("; a full prefill answered, {} lost", format_ns(answer.lost_ns));
  return setup.drift ? text + "\nlast requests: " + setup.drift->text() : text;
}

}  // namespace ds
