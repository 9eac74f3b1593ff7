// ds-run: the receiver's side. Answers a prompt about a context, by a plan from a sender's entry or by a full
// prefill.
#include <cmath>
#include <filesystem>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "plans/traits.h"
#include "runtime/core/drift.h"
#include "runtime/core/gate.h"
#include "runtime/core/session.h"
#include "runtime/core/stop_text.h"
#include "runtime/model/identity.h"
#include "runtime/model/safetensors.h"
#include "runtime/store/store.h"
#include "runtime/trace/run_record.h"
#include "support/file.h"
#include "support/hash.h"
#include "tools/chat_input.h"
#include "tools/model_input.h"

using namespace ds;

namespace {

struct Options {
  std::string receiver, plan, store, context, context_ids, prompt, prompt_file, prompt_ids, link_rate, mode,
      dtype = "bf16", record, dump_logits, salt, gate, gate_false_alarms = "1%", gate_window, maps;
  ChatOptions chat;
  std::vector<std::string> stops;
  std::vector<int32_t> stop_ids;
  std::optional<int64_t> max_new_tokens;  // none: kNewTokens, or what positions are left
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

constexpr int64_t kNewTokens = 64;

/// Options that contradict each other are refused before any work starts.
Status check(const Options& o) {
  DS_TRY(check_open_options(o.open, {o.receiver}));
  auto refuse = [](std::string_view why) { return error(Code::kInvalidArgument, "{}", why); };
  if (!o.context.empty() && !o.context_ids.empty())
    return refuse("--context and --context-ids contradict each other");
  if (!o.prompt.empty() && !o.prompt_ids.empty())
    return refuse("--prompt and --prompt-ids contradict each other");
  if (!o.prompt_file.empty() && !(o.prompt.empty() && o.prompt_ids.empty()))
    return refuse("--prompt-file and --prompt or --prompt-ids contradict each other");
  if (!o.has_prompt() && o.chat.chat.empty())
    return refuse("give a prompt: --prompt TEXT, --prompt-file FILE, --prompt-ids FILE or --chat FILE");
  if (o.ids() && (o.chat.asked() || o.render))
    return refuse(
        "--template, --system, --chat and --render are for texts: token ids go through no template");
  if ((o.context == "-") + (o.prompt_file == "-") + (o.chat.chat == "-") > 1)
    return refuse("stdin can be only one of --context, --prompt-file and --chat");
  if (std::any_of(o.stops.begin(), o.stops.end(), [](auto& stop) { return stop.empty(); }))
    return refuse("--stop: a text that is empty would end every answer before it begins");
  if (o.mode == "plan" && o.plan.empty()) return refuse("--mode plan needs --plan FILE");
  if (!o.plan.empty() && o.store.empty() && o.mode != "full-prefill")
    return refuse("--plan needs --store URL (or --mode full-prefill)");
  if (o.plan.empty() && !o.store.empty()) return refuse("--store needs --plan FILE");
  if (o.plan.empty() && !o.gate.empty())
    return refuse("--gate looks at answers by a plan: it needs --plan FILE");
  if (o.plan.empty() && (!o.maps.empty() || o.plain_cuts))
    return refuse("--maps and --plain-cuts say how the cuts of a plan are used: they need --plan FILE");
  if (!o.maps.empty() && o.plain_cuts)
    return refuse("--maps and --plain-cuts contradict each other: plain cuts go through no maps");
  if (!o.gate.empty() && o.plain_cuts)
    return refuse("--gate looks for answers like those of the profile, which --plain-cuts does not give");
  if (o.gate.empty() && !o.gate_window.empty()) return refuse("--gate-window needs --gate FILE");
  if (o.store.empty() && (!o.link_rate.empty() || o.link_rtt_ms != 0)) {
    return refuse("--link-rate and --link-rtt-ms shape the way to --store, which is not given");
  }
  if (o.link_rtt_ms < 0 || o.link_rtt_ms > 60000) return refuse("--link-rtt-ms must lie in [0, 60000]");
  if (o.link_deadline_ms != 0 && o.store.empty())
    return refuse("--link-deadline-ms is for what comes from --store, which is not given");
  if (o.link_deadline_ms < 0 || o.link_deadline_ms > 3'600'000)
    return refuse("--link-deadline-ms must lie in [0, 3600000]");
  if (o.max_new_tokens && (*o.max_new_tokens < 1 || *o.max_new_tokens > 1'000'000))
    return refuse("--max-new-tokens must lie in [1, 1000000]");
  if (o.sampling.temperature < 0 || o.sampling.temperature > 100)
    return refuse("--temperature must lie in [0, 100]");
  if (!(o.sampling.top_p > 0 && o.sampling.top_p <= 1)) return refuse("--top-p must lie in (0, 1]");
  return ok_status();
}

/// The gate of this run, and where its window is kept.
struct GateSetup {
  Gate gate;
  std::string profile_sha256;
  std::optional<DriftReport> drift;  // of the way that was looked at; none without a window

  GateSetup(Gate made, std::string sha256) : gate(std::move(made)), profile_sha256(std::move(sha256)) {}
};

/// Everything that could refuse the gate later is refused before the model is loaded.
Result<std::unique_ptr<GateSetup>> set_up_gate(const Options& o, const Plan& plan) {
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

/// Adds what the gate saw to its window, where one is kept.
Status update_window(const Options& o, const GateVerdict& verdict, GateSetup& setup) {
  if (o.gate_window.empty() || !verdict.checked) return ok_status();
  const GateReference& reference = *setup.gate.reference(*verdict.variant);
  DS_ASSIGN(DriftWindow window, update_drift_window(o.gate_window, setup.profile_sha256,
                                                    o.gate_window_requests, reference.way, verdict));
  setup.drift = window.report(reference, setup.gate.false_alarms());
  return ok_status();
}

/// Proxies that were looked at.
std::vector<Proxy> watched(const GateVerdict& verdict) {
  std::vector<Proxy> proxies;
  for (size_t p = 0; p < kProxies; ++p)
    if (!std::isnan(verdict.thresholds.of[p])) proxies.push_back(static_cast<Proxy>(p));
  return proxies;
}

std::string_view name_of(Proxy proxy) { return kProxyNames[static_cast<size_t>(proxy)]; }

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

/// "gate passed: ...", for people.
std::string gate_text(const Answer& answer, const GateSetup& setup) {
  const GateVerdict& verdict = answer.gate;
  if (!verdict.checked) return "gate off: nothing was reused";
  std::string text =
      fmt::format("gate {}: {}", verdict.alarmed ? "alarm" : "passed", gate_verdict_text(verdict));
  if (verdict.alarmed) text += fmt::format("; a full prefill answered, {} lost", format_ns(answer.lost_ns));
  return setup.drift ? text + "\nlast requests: " + setup.drift->text() : text;
}

/// The maps that --maps names, and whether they are what the plan asks for; before the model is loaded, and
/// only where it is the plan's receiver: for another one nothing is reused, and so nothing is mapped.
Result<std::optional<MapSet>> read_maps(const Options& o, const Plan& plan) {
  std::optional<MapSet> maps;
  if (!o.maps.empty()) {
    if (plan.maps.fingerprint.empty())
      return error(Code::kInvalidArgument,
                   "--maps '{}': no variant of plan '{}' has aligned cuts; leave it out", o.maps, o.plan);
    DS_ASSIGN(maps, MapSet::read(o.maps));
    DS_TRY(maps->check_plan(o.maps, plan));
  }
  if (!o.plain_cuts && o.mode != "full-prefill") DS_TRY(check_maps(plan, maps ? &*maps : nullptr));
  return maps;
}

/// How hidden states of the sender were used: "plain", "aligned (full, receiver)"; "" where none were.
std::string cuts_text(const Variant& v, bool plain_cuts) {
  if (std::none_of(v.ops.begin(), v.ops.end(),
                   [](const Op& op) { return traits_of(op.kind).payload == Payload::kE; }))
    return "";
  if (v.map_form == MapForm::kNone) return "plain";
  std::string aligned = fmt::format("aligned ({}, {})", map_form_name(v.map_form), map_side_name(v.map_side));
  return plain_cuts ? "plain, instead of " + aligned : aligned;
}

/// Why this variant ran.
std::string choice(const Answer& answer, const Plan& plan, const std::string& mode, int64_t n) {
  if (mode != "plan") return "no plan was to be followed";
  if (answer.cache == CacheStatus::kMiss) return "the fall-back: " + answer.miss.message();
  if (answer.gate.alarmed)
    return fmt::format("the fall-back: the gate's alarm at variant '{}': {}", answer.gate.variant->name,
                       gate_verdict_text(answer.gate));
  std::string where = format_count(n) + " tokens";
  if (answer.link_rate > 0) {
    where += fmt::format(" at {}{}", format_rate(static_cast<double>(answer.link_rate)),
                         answer.rate_source == RateSource::kMeasured ? " (as measured)" : "");
  }
  if (answer.waiting > 0) where += fmt::format(" with {} waiting", answer.waiting);
  return answer.variant == &plan.full_prefill ? "the fall-back: no variant covers " + where
                                              : "its ranges cover " + where;
}

RunRecord make_record(const Answer& answer, const LoadedModel& model, const Plan& plan,
                      const std::string& plan_sha256, const std::string& mode, int64_t n, int64_t m) {
  const Variant& variant = *answer.variant;
  RunRecord record;
  record.plan_sha256 = plan_sha256;
  record.variant = variant.name;
  record.policy = variant.policy;
  record.scheduler = variant.scheduler;
  record.choice = choice(answer, plan, mode, n);
  record.mode = mode;
  record.sender = answer.cache == CacheStatus::kUnused ? "" : plan.sender.name;
  record.receiver = model.identity.name;
  record.backend = model.backend->name();
  record.dtype = dtype_name(model.model->dtype());
  record.context_tokens = n;
  record.suffix_tokens = m;
  record.link_rate = answer.link_rate;
  record.waiting = answer.waiting;
  record.ttft_ns = answer.ttft_ns;
  record.bytes_loaded = answer.bytes_loaded;
  record.cache_status = cache_status_name(answer.cache);
  record.cache_reason = answer.miss.message();
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    const Op& op = variant.ops[i];
    OpRecord r;
    r.op = static_cast<int32_t>(i);
    r.label = op_label(op, variant.chunks);
    r.stream = stream_kind_name(variant.streams[static_cast<size_t>(op.stream)].kind);
    r.start_ns = answer.op_times[i].start_ns;
    r.end_ns = answer.op_times[i].end_ns;
    r.bytes = transfer_bytes(plan, variant, op, n);
    record.ops.push_back(std::move(r));
  }
  return record;
}

/// What stands in the files and pipes that the options name; each can be read once.
struct Texts {
  std::optional<RequestText> request;  // context and prompt, through the template where there is one
  std::string prompt;                  // where `request` is none, because one of the two is given as ids
};

Result<Texts> read_texts(const Options& o) {
  Texts out;
  std::optional<std::string> prompt;
  if (!o.prompt_file.empty()) {
    DS_ASSIGN(prompt, read_text_file(input_path(o.prompt_file)));
  } else if (!o.prompt.empty()) {
    prompt = o.prompt;
  }
  if (o.ids()) {
    out.prompt = prompt.value_or("");
    return out;
  }
  DS_ASSIGN(std::optional<ChatTemplate> chat_template, open_chat_template(o.chat, o.receiver, o.open));
  std::string context;
  if (!o.context.empty()) {
    DS_ASSIGN(context, read_text_file(input_path(o.context)));
  }
  DS_ASSIGN(out.request, request_text(o.chat, chat_template, std::move(context), prompt));
  return out;
}

/// --render: the text that the receiver would go on from, and with --json its ids.
Status render(const Options& o, const RequestText& text) {
  if (!o.json) {
    fmt::print("{}{}", text.context, text.prompt);
    return ok_status();
  }
  nlohmann::ordered_json out = {{"text", text.context + text.prompt},
                                {"context_bytes", text.context.size()},
                                {"templated", text.templated},
                                {"context_tokens", nullptr},
                                {"token_ids", nullptr}};
  DS_ASSIGN(const std::string folder, folder_for("tokenizer.json", o.receiver, o.open));
  if (file_exists(folder + "/tokenizer.json")) {
    DS_ASSIGN(Tokenizer tokenizer, Tokenizer::load(folder));
    DS_ASSIGN(JoinedText joined, join_text(tokenizer, text.context, text.prompt, !text.templated));
    out["context_tokens"] = joined.shared;
    out["token_ids"] = joined.ids;
  }
  fmt::print("{}\n", out.dump(2));
  return ok_status();
}

/// Ids that were asked to end an answer: --stop-ids, and what --stop names of special tokens, which are not
/// part of an answer's text.
Result<std::vector<int32_t>> asked_stop_ids(const Options& o, const LoadedModel& loaded) {
  std::vector<int32_t> ids = o.stop_ids;
  for (const std::string& stop : o.stops) {
    const int32_t id = loaded.tokenizer ? loaded.tokenizer->token_id(stop) : -1;
    if (id < 0) continue;
    DS_ASSIGN(std::string text, loaded.tokenizer->decode({&id, 1}, true));
    if (text.empty()) ids.push_back(id);
  }
  return ids;
}

/// What --max-new-tokens says, or the default: fewer where the model's positions end before.
Result<int64_t> new_tokens(const Options& o, int64_t positions, int64_t read) {
  if (o.max_new_tokens) return *o.max_new_tokens;
  // The last token is not read itself. Without a position left the session says so.
  int64_t left = std::clamp<int64_t>(positions - read + 1, 1, kNewTokens);
  if (left < kNewTokens)
    fmt::print(stderr, "note: {} new token{} at most: the model has {} positions, {} are read\n", left,
               left == 1 ? "" : "s", positions, read);
  return left;
}

Status run(const Options& o, const Texts& texts, const BackendFlags& on, bool& shown) {
  double rate = 0;
  if (!o.link_rate.empty()) {
    DS_ASSIGN(rate, parse_rate(o.link_rate));
  }
  std::optional<Plan> plan;
  std::string plan_sha256;
  if (!o.plan.empty()) {
    DS_ASSIGN(std::string bytes, read_text_file(o.plan));
    DS_ASSIGN(plan, parse_plan(std::as_bytes(std::span(bytes.data(), bytes.size())), o.plan));
    plan_sha256 = sha256_hex(bytes);
  }
  std::unique_ptr<Store> store;
  if (!o.store.empty()) {
    DS_ASSIGN(store, open_store(o.store));
    if (rate > 0 || o.link_rtt_ms > 0) store = shape_link(std::move(store), {rate, o.link_rtt_ms});
  }
  std::unique_ptr<GateSetup> gate;
  if (!o.gate.empty()) {
    DS_ASSIGN(gate, set_up_gate(o, *plan));
  }
  DS_TRY(running_dtype(o.dtype));
  // Whose plan it is comes first, then what the plan needs, then what the store has: the first thing that is
  // wrong is the one that is said.
  DS_ASSIGN(OpenedModel opened, open_model(o.receiver, o.open, o.cache));
  const bool foreign = plan && !same_model(plan->receiver, opened.verified.identity);
  std::optional<MapSet> maps;
  if (plan && !foreign) {
    DS_ASSIGN(maps, read_maps(o, *plan));
  }
  DS_ASSIGN(LoadedModel loaded, load_model(std::move(opened), on, o.dtype, o.cache));
  const std::optional<RequestText>& text = texts.request;
  JoinedText joined;
  if (text) {
    DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(loaded));
    DS_ASSIGN(joined, join_text(*tokenizer, text->context, text->prompt, !text->templated));
  } else {
    DS_ASSIGN(joined, read_request(loaded, {o.context, o.context_ids, texts.prompt, o.prompt_ids}));
  }
  const std::span<const int32_t> context = joined.context(), prompt = joined.suffix();
  bool full = !plan || o.mode == "full-prefill";
  if (!plan) {
    plan = full_prefill_plan(loaded.identity, loaded.model->config().shape(),
                             std::string(dtype_name(loaded.model->dtype())));
  }
  if (!full && !plan->backend.empty() && plan->backend != loaded.backend->name())
    fmt::print(
        stderr,
        "warning: the plan's times are those of a machine with the {} backend, this is {}: what it predicts "
        "does not hold here, and another plan may be faster; calibrate with --backend {} and compile again\n",
        plan->backend, loaded.backend->name(), loaded.backend->name());
  auto n = static_cast<int64_t>(context.size()), m = static_cast<int64_t>(prompt.size());
  if (m == 0)
    return error(Code::kInvalidArgument, "the prompt has no tokens; at least one is needed to answer from");
  DS_ASSIGN(const int64_t most_tokens, new_tokens(o, loaded.model->config().max_positions, n + m));
  DS_ASSIGN(const std::vector<int32_t> asked_stops, asked_stop_ids(o, loaded));
  std::vector<int32_t> stops = loaded.model->config().eos_token_ids;
  stops.insert(stops.end(), asked_stops.begin(), asked_stops.end());
  if (text && text->templated) {
    DS_ASSIGN(stops, with_turn_end(std::move(stops), *loaded.checkpoint, *loaded.tokenizer));
  }
  // A full prefill has no cuts, and a plan for another receiver is a miss.
  DS_ASSIGN(auto session, Session::create(*loaded.backend, *loaded.model, *plan, {n, m, most_tokens},
                                          maps ? &*maps : nullptr, o.plain_cuts || full || foreign));
  DS_TRY(session->warm_up());

  std::optional<StreamingDecoder> decoder;
  if (loaded.tokenizer) decoder.emplace(*loaded.tokenizer);
  if (!decoder && !o.stops.empty())
    return error(Code::kInvalidArgument,
                 "--stop: '{}' has no tokenizer.json to read the answer's text with; give "
                 "--stop-ids",
                 o.receiver);
  StopText stop_text(o.stops);
  std::string answered;
  Status decoding;
  Request request;
  request.context = context;
  request.entry = joined.entry;
  request.suffix = prompt;
  request.store = store.get();
  request.receiver = &loaded.identity;
  request.salt = o.salt;
  if (rate > 0) request.link_rate = static_cast<int64_t>(rate);
  request.waiting = o.waiting;
  request.link_deadline_ns = static_cast<int64_t>(o.link_deadline_ms * 1e6);
  request.full_prefill = full;
  if (gate) request.gate = &gate->gate;
  request.sampling = o.sampling;
  request.max_new_tokens = most_tokens;
  request.stop_ids = stops;
  auto show = [&](const std::string& piece) {
    answered += piece;
    if (o.json) return;
    fmt::print("{}", piece);
    shown = shown || !piece.empty();
    std::fflush(stdout);
  };
  if (decoder) {
    request.is_last = [&](int32_t token) {
      auto piece = decoder->push(token);
      if (!piece.ok()) decoding = piece.status();
      if (piece.ok()) show(stop_text.push(*piece));
      return stop_text.stopped() || !decoding.ok();
    };
  }
  DS_ASSIGN(Answer answer, session->run(request));
  DS_TRY(decoding);
  if (decoder) {
    DS_ASSIGN(std::string rest, decoder->finish());
    show(stop_text.push(rest));
    if (!stop_text.stopped()) show(stop_text.finish());
    if (!o.json) fmt::print("\n");
  }
  // As requests of OpenAI's API say it, but for tokens: by which of --stop, --stop-ids or the model's own.
  std::string stop_reason = "max_new_tokens";
  nlohmann::ordered_json stop_by = nullptr;
  if (stop_text.stopped()) {
    stop_reason = "stop";
    stop_by = *stop_text.stopped();
  } else if (answer.stopped) {
    const bool asked =
        std::find(asked_stops.begin(), asked_stops.end(), answer.stop_token) != asked_stops.end();
    stop_reason = asked ? "stop" : "end_of_text";
    stop_by = answer.stop_token;
  }

  if (!o.dump_logits.empty()) {
    NamedTensor logits{"logits",
                       DType::kF32,
                       {static_cast<int64_t>(session->first_logits().size())},
                       std::as_bytes(session->first_logits())};
    DS_TRY(write_safetensors(o.dump_logits, {&logits, 1}));
  }
  std::string mode = full ? "full-prefill" : "plan";
  const std::string cuts = cuts_text(*answer.variant, o.plain_cuts);
  const bool plain_instead = o.plain_cuts && answer.variant->map_form != MapForm::kNone;
  if (plain_instead)
    fmt::print(stderr,
               "warning: the cuts are {}: what the plan promises of its answers does not hold for this one\n",
               cuts);
  if (gate) DS_TRY(update_window(o, answer.gate, *gate));
  if (!o.record.empty()) {
    RunRecord record = make_record(answer, loaded, *plan, plan_sha256, mode, n, m);
    if (plain_instead)
      record.choice += "; with " + cuts + " cuts, for which the plan's promise does not hold";
    if (answer.gate.checked) record.gate = gate_record(answer, *gate);
    DS_TRY(write_run_record(o.record, record));
  }
  const Variant& variant = *answer.variant;
  auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
  int64_t predicted =
      predicted_ttft_ns(*plan, variant, {n, m, answer.link_rate > 0 ? answer.link_rate : kNoLimit - 1});
  std::string cache(cache_status_name(answer.cache));
  if (o.json) {
    nlohmann::ordered_json out;
    out["mode"] = mode;
    out["variant"] = variant.name;
    out["policy"] = variant.policy;
    out["schedule"] = variant.scheduler;
    out["ttft_ms"] = ms(answer.ttft_ns);
    out["parts_ms"] = {{"lookup", ms(answer.lookup_ns)},
                       {"lost_to_miss", answer.gate.alarmed ? 0 : ms(answer.lost_ns)},
                       {"lost_to_gate", answer.gate.alarmed ? ms(answer.lost_ns) : 0},
                       {"link_busy", ms(answer.link_ns)},
                       {"compute_busy", ms(answer.compute_ns)}};
    out["predicted_ttft_ms"] =
        predicted > 0 ? nlohmann::ordered_json(ms(predicted)) : nlohmann::ordered_json(nullptr);
    out["decode_ms"] = ms(answer.decode_ns);
    out["load_s"] = loaded.load_seconds;
    out["weight_cache"] = weight_cache_status_name(loaded.report.weight_cache);
    out["context_tokens"] = n;
    out["entry_tokens"] = joined.entry.size();
    out["prompt_token_ids"] = std::vector(prompt.begin(), prompt.end());
    out["output_token_ids"] = answer.tokens;
    out["text"] = decoder ? nlohmann::ordered_json(answered) : nlohmann::ordered_json(nullptr);
    out["stop_reason"] = stop_reason;
    out["stop"] = stop_by;
    out["recomputed_layers"] = recomputed_layers(variant);
    out["bytes_loaded"] = answer.bytes_loaded;
    out["cuts"] = cuts.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(cuts);
    out["cache"] = {{"status", cache},
                    {"reason", answer.miss.ok() ? nlohmann::ordered_json(nullptr)
                                                : nlohmann::ordered_json(answer.miss.message())}};
    out["gate"] = gate_json(answer, gate.get());
    out["dtype"] = dtype_name(loaded.model->dtype());
    out["backend"] = loaded.backend->description();
    fmt::print("{}\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return ok_status();
  }
  if (!decoder) fmt::print("{}\n", fmt::join(answer.tokens, " "));
  std::fflush(stdout);
  fmt::print(stderr, "TTFT {}", format_ns(answer.ttft_ns));
  if (predicted > 0) fmt::print(stderr, " (predicted {})", format_ns(predicted));
  std::string way =
      variant.policy == variant.scheduler ? variant.policy : variant.policy + ", " + variant.scheduler;
  fmt::print(stderr, "; {} + {} tokens; {}, {} of {} layers recomputed{}; {} loaded; cache {}{}{}\n", n, m,
             way, recomputed_layers(variant), plan->shape.layers,
             variant.map_form == MapForm::kNone || cuts.empty() ? "" : ", cuts " + cuts,
             format_bytes(answer.bytes_loaded), cache, answer.miss.ok() ? "" : ": ", answer.miss.message());
  if (text && text->templated && n > 0 && answer.miss.code() == Code::kNotFound)
    fmt::print(stderr,
               "note: entries for requests through a chat template are published through it: ds-publish with "
               "--template of the receiver's folder, where the sender has another, and the same --system\n");
  if (gate) fmt::print(stderr, "{}\n", gate_text(answer, *gate));
  return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Answer a prompt about a context with the receiver: by a plan, from a sender's entry, or by a full "
      "prefill.\n"
      "The answer goes to stdout, everything else to stderr.\n"
      "\n"
      "Context and prompt are read as one text: where a token lies across the border, the context's last\n"
      "tokens are read again with the prompt. The tokenizer's BOS stands once, written or not; no EOS is\n"
      "added. Added tokens, and add_bos_token where tokenizer.json adds nothing itself, are taken from\n"
      "tokenizer_config.json, or from the added_tokens.json and special_tokens_map.json of older folders.",
      "ds-run"};
  Options o;
  app.add_option("--receiver", o.receiver, "the model that answers: a Hugging Face folder")->required();
  app.add_option("--plan", o.plan, "plan compiled for this receiver and a sender; without one: full prefill");
  app.add_option("--store", o.store, "where the sender's entry is: file:PATH");
  app.add_option("--context", o.context, "text file with the shared context; -: stdin");
  app.add_option("--context-ids", o.context_ids, "JSON list of token ids instead");
  app.add_option(
      "--prompt", o.prompt,
      "the question; where the receiver has a chat template it becomes the user's message, with the "
      "context before it");
  app.add_option("--prompt-file", o.prompt_file, "text file with it instead; -: stdin");
  app.add_option("--prompt-ids", o.prompt_ids, "JSON list of token ids instead");
  app.add_option("--system", o.chat.system, "system message, for the template");
  app.add_option(
      "--chat", o.chat.chat,
      "JSON file with a conversation for the template, -: stdin: a list of messages, or an object with "
      "messages,\n"
      "tools, documents and chat_template_kwargs. Arguments of tool calls go to the template as they are: "
      "most\n"
      "want an object, not OpenAI's text. The context stands before the user's first message, --prompt is "
      "one more");
  add_template_options(app, o.chat, "receiver");
  app.add_flag(
      "--render", o.render,
      "print the text that the receiver would go on from, with --json its ids too, and end: no weights are "
      "read");
  app.add_option("--max-new-tokens", o.max_new_tokens,
                 "most tokens to generate; default: 64, or what positions the model has left");
  app.add_option("--stop", o.stops,
                 "text that ends the answer and is not part of it; may be given several times")
      ->allow_extra_args(false);
  app.add_option(
         "--stop-ids", o.stop_ids,
         "ids of tokens that end the answer and are not part of it, 1,2,3, besides the model's own and the "
         "eos_token\n"
         "of a receiver that answers through a template")
      ->delimiter(',')
      ->check(CLI::Range(0, INT32_MAX));
  app.add_option("--link-rate", o.link_rate,
                 "shape the link to the store: 20MB/s, 8Gb/s; default: not shaped");
  app.add_option("--waiting", o.waiting, "other requests that wait: a plan may have variants for that")
      ->capture_default_str()
      ->check(CLI::Range(0, 1'000'000));
  app.add_option("--link-rtt-ms", o.link_rtt_ms, "round trip of that link")->capture_default_str();
  app.add_option(
         "--link-deadline-ms", o.link_deadline_ms,
         "what has not come from the store by then, counted from the request's start, is a miss and a "
         "full prefill answers; 0: wait")
      ->capture_default_str();
  app.add_option("--gate", o.gate,
                 "quality profile of the pair (ds-profile): a request that is not like its data is answered "
                 "by a full prefill");
  app.add_option("--gate-false-alarms", o.gate_false_alarms,
                 "how many requests like the profile's may be taken for others, at most")
      ->capture_default_str();
  app.add_option("--gate-window", o.gate_window,
                 "file in which the last requests are kept and held against the profile together");
  app.add_option("--gate-window-requests", o.gate_window_requests, "how many of each way are kept there")
      ->capture_default_str()
      ->check(CLI::Range(DriftWindow::kLeastRequests, DriftWindow::kMostRequests));
  app.add_option("--maps", o.maps,
                 "file of maps (ds-profile) that a plan with cuts aligned by the receiver names");
  app.add_flag(
      "--plain-cuts", o.plain_cuts,
      "run a plan with aligned cuts without its maps: what it promises of its answers does not hold then");
  app.add_option("--mode", o.mode, "plan (default where a plan is given) or full-prefill")
      ->check(CLI::IsMember({"plan", "full-prefill"}));
  app.add_option("--dtype", o.dtype, "bf16 or f32: of computation and of the entry")->capture_default_str();
  app.add_option("--temperature", o.sampling.temperature, "0: greedy")->capture_default_str();
  app.add_option("--top-p", o.sampling.top_p, "nucleus sampling")->capture_default_str();
  app.add_option("--seed", o.sampling.seed, "of sampling")->capture_default_str();
  app.add_option("--salt", o.salt, "tenant salt of the entry");
  app.add_option("--record", o.record, "write the run record (JSON lines) for ds-plan trace");
  app.add_option("--dump-logits", o.dump_logits,
                 "write the first token's logits: one f32 tensor 'logits' [vocab], safetensors");
  add_open_options(app, o.open);
  add_backend_flags(app, o.on);
  add_weight_cache_options(app, o.cache);
  app.add_flag("--json", o.json, "print one JSON object to stdout instead of the text");
  app.footer(
      "Examples:\n"
      "  ds-run --receiver agent/ --context report.txt --prompt 'Who signed it?'\n"
      "  ds-run --receiver agent/ --system 'Be brief.' --prompt 'Who are you?' --stop '\n\n'\n"
      "  ds-run --receiver agent/ --chat request.json --render\n"
      "  ds-run --receiver agent/ --weight-cache /var/cache/ds-weights --verify-weights --prompt 'Hello'\n"
      "  ds-run --receiver agent-lora/ --base Llama-3.2-1B/ --context report.txt --prompt 'Who signed it?'\n"
      "  ds-run --receiver Mistral-7B-v0.1/ --max-model-len 4096 --context report.txt --prompt 'Who signed "
      "it?'\n"
      "  ds-run --receiver agent/ --plan pair.dsplan --store file:/var/cache/ds --link-rate 20MB/s \\\n"
      "         --context report.txt --prompt 'Who signed it?' --record run.jsonl --json\n"
      "  ds-run --receiver agent/ --plan aligned.dsplan --maps maps.safetensors --store file:/var/cache/ds "
      "\\\n"
      "         --context report.txt --prompt 'Who signed it?'\n"
      "  ds-run --receiver agent/ --plan pair.dsplan --store file:/mnt/shared/ds --link-deadline-ms 500 \\\n"
      "         --context report.txt --prompt 'Who signed it?'\n"
      "  ds-run --receiver agent/ --plan pair.dsplan --store file:/var/cache/ds --gate quality.json \\\n"
      "         --gate-false-alarms 0.5% --gate-window requests.json --context report.txt --prompt 'Who "
      "signed "
      "it?'");
  return run_tool(app, argc, argv, [&]() -> Status {
    DS_TRY(check(o));
    DS_ASSIGN(const Texts texts, read_texts(o));
    if (o.render) return render(o, *texts.request);
    return with_fallback(o.on, [&](auto& on, bool& shown) {
      Status status = run(o, texts, on, shown);
      if (!status.ok() && shown && !o.json) fmt::print("\n");  // the error begins a line of its own
      return status;
    });
  });
}
