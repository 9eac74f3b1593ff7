// What the parts of ds-run share: its options, the gate of a run, a request's texts, and what became of it.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/core/drift.h"
#include "runtime/core/gate.h"
#include "runtime/core/session.h"
#include "runtime/trace/run_record.h"
#include "tools/chat_input.h"
#include "tools/model_input.h"

namespace ds {

struct RunOptions {
  std::string receiver, plan, store, store_key, context, context_ids, prompt, prompt_file, prompt_ids,
      link_rate, mode, dtype = "bf16", record, dump_logits, salt, gate, gate_false_alarms = "1%", gate_window,
                       maps;
  ChatOptions chat;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_ids;
  std::optional<int64_t> max_new_tokens;  // none: 64, or what positions are left
  int64_t waiting = 0, gate_window_requests = DriftWindow::kDefaultRequests;
  double link_rtt_ms = 0, link_deadline_ms = 0;
  BackendFlags on;
  Sampling sampling;
  OpenOptions open;
  WeightCacheOptions cache;
  bool json = false, plain_cuts = false, render = false;

  bool has_prompt() const { return !prompt.empty() || !prompt_file.empty() || !prompt_ids.empty(); }
  bool ids() const { return !prompt_ids.empty() || !context_ids.empty(); }
};

/// Options that contradict each other are refused before any work starts.
Status check(const RunOptions& options);

// ---- gate.cpp

/// The gate of this run, and where its window is kept.
struct GateSetup {
  Gate gate;
  std::string profile_sha256;
  std::optional<DriftReport> drift;  // of the way that was looked at; none without a window

  GateSetup(Gate made, std::string sha256) : gate(std::move(made)), profile_sha256(std::move(sha256)) {}
};

/// Everything that could refuse the gate later is refused before the model is loaded.
Result<std::unique_ptr<GateSetup>> set_up_gate(const RunOptions& options, const Plan& plan);
/// Adds what the gate saw to its window, where one is kept.
Status update_window(const RunOptions& options, const GateVerdict& verdict, GateSetup& setup);
GateRecord gate_record(const Answer& answer, const GateSetup& setup);
nlohmann::ordered_json gate_json(const Answer& answer, const GateSetup* setup);
/// "gate passed: ...", for people.
std::string gate_text(const Answer& answer, const GateSetup& setup);

// ---- texts.cpp

/// What stands in the files and pipes that the options name; each can be read once.
struct Texts {
  std::optional<RequestText> request;  // context and prompt, through the template where there is one
  std::string prompt;                  // where `request` is none, because one of the two is given as ids
};
Result<Texts> read_texts(const RunOptions& options);
/// --render: the text that the receiver would go on from, and with --json its ids.
Status render(const RunOptions& options, const RequestText& text);
/// Ids that were asked to end an answer: --stop-ids, and what --stop names of special tokens, which are not
/// part of an answer's text.
Result<std::vector<int32_t>> asked_stop_ids(const RunOptions& options, const LoadedModel& loaded);
/// What --max-new-tokens says, or the default: fewer where the model's positions end before `read` more.
int64_t new_tokens(const RunOptions& options, int64_t positions, int64_t read);

// ---- report.cpp

/// What became of a request.
struct Outcome {
  Answer answer;
  const Plan* plan = nullptr;
  const LoadedModel* loaded = nullptr;
  const GateSetup* gate = nullptr;  // null: none was asked for
  std::string plan_sha256, mode;    // mode: "plan" or "full-prefill"
  int64_t n = 0, m = 0;             // tokens of context and suffix
  int64_t entry_tokens = 0;         // of the context by itself
  std::vector<int32_t> prompt;
  std::optional<std::string> text;  // none: no tokenizer
  std::string stop_reason;          // as requests of OpenAI's API say it, but for tokens
  nlohmann::ordered_json stop_by;   // of --stop, --stop-ids or the model's own which; null: none
  bool templated = false;           // the request went through a chat template
  bool plain_cuts = false;          // by --plain-cuts
};

/// --record.
Status write_record(const std::string& path, const Outcome& outcome);
nlohmann::ordered_json outcome_json(const Outcome& outcome);
/// Times, way, bytes, cache and gate, for people: several lines.
std::string outcome_text(const Outcome& outcome);
/// Plain cuts instead of the plan's aligned ones: what it promises does not hold. "": they are the plan's.
std::string plain_cuts_text(const Outcome& outcome);

/// Answers on these devices; `shown`: something of the answer has been printed, so that no other device may.
Status run(const RunOptions& options, const Texts& texts, const BackendFlags& on, bool& shown);

}  // namespace ds
