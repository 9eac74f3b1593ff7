// One request, from the files that the options name to what is printed of it.
#include <algorithm>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "runtime/core/stop_text.h"
#include "runtime/model/identity.h"
#include "runtime/model/safetensors.h"
#include "runtime/store/store.h"
#include "support/hash.h"
#include "tools/ds-run/run.h"
#include "tools/store_input.h"

namespace ds {
namespace {

/// The maps that --maps names, and whether they are what the plan asks for; before the model is loaded, and
/// only where it is the plan's receiver: for another one nothing is reused, and so nothing is mapped.
Result<std::optional<MapSet>> read_maps(const RunOptions& o, const Plan& plan) {
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

}  // namespace

Status run(const RunOptions& o, const Texts& texts, const BackendFlags& on, bool& shown) {
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
    DS_ASSIGN(store, open_signed_store(o.store, o.store_key));
    if (o.link_deadline_ms > 0) store->set_patience(o.link_deadline_ms / 1e3);
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
  DS_ASSIGN(const JoinedText joined,
            request_tokens(loaded, text, {o.context, o.context_ids, texts.prompt, o.prompt_ids}));
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
  const int64_t most_tokens = new_tokens(o, loaded.model->config().max_positions, n + m);
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
  Outcome out;
  DS_ASSIGN(out.answer, session->run(request));
  DS_TRY(decoding);
  if (decoder) {
    DS_ASSIGN(std::string rest, decoder->finish());
    show(stop_text.push(rest));
    if (!stop_text.stopped()) show(stop_text.finish());
    if (!o.json) fmt::print("\n");
  }
  out.stop_reason = "max_new_tokens";
  if (stop_text.stopped()) {
    out.stop_reason = "stop";
    out.stop_by = *stop_text.stopped();
  } else if (out.answer.stopped) {
    const bool asked =
        std::find(asked_stops.begin(), asked_stops.end(), out.answer.stop_token) != asked_stops.end();
    out.stop_reason = asked ? "stop" : "end_of_text";
    out.stop_by = out.answer.stop_token;
  }
  out.plan = &*plan;
  out.loaded = &loaded;
  out.gate = gate.get();
  out.plan_sha256 = plan_sha256;
  out.mode = full ? "full-prefill" : "plan";
  out.n = n;
  out.m = m;
  out.entry_tokens = static_cast<int64_t>(joined.entry.size());
  out.prompt.assign(prompt.begin(), prompt.end());
  if (decoder) out.text = answered;
  out.templated = text && text->templated;
  out.plain_cuts = o.plain_cuts;

  if (!o.dump_logits.empty()) {
    NamedTensor logits{"logits",
                       DType::kF32,
                       {static_cast<int64_t>(session->first_logits().size())},
                       std::as_bytes(session->first_logits())};
    DS_TRY(write_safetensors(o.dump_logits, {&logits, 1}));
  }
  if (const std::string cuts = plain_cuts_text(out); !cuts.empty())
    fmt::print(stderr,
               "warning: the cuts are {}: what the plan promises of its answers does not hold for this one\n",
               cuts);
  if (gate) DS_TRY(update_window(o, out.answer.gate, *gate));
  if (!o.record.empty()) DS_TRY(write_record(o.record, out));
  if (o.json) {
    fmt::print("{}\n", outcome_json(out).dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return ok_status();
  }
  if (!decoder) fmt::print("{}\n", fmt::join(out.answer.tokens, " "));
  std::fflush(stdout);
  fmt::print(stderr, "{}", outcome_text(out));
  return ok_status();
}

}  // namespace ds
