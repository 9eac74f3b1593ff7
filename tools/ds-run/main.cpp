// ds-run: the receiver's side. Answers a prompt about a context, by a plan from a sender's entry or by a full
// prefill.
#include "tools/ds-run/run.h"
#include "tools/store_input.h"

using namespace ds;

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
  RunOptions o;
  app.add_option("--receiver", o.receiver, "the model that answers: a Hugging Face folder")->required();
  app.add_option("--plan", o.plan, "plan compiled for this receiver and a sender; without one: full prefill");
  app.add_option("--store", o.store, fmt::format("where the sender's entry is: {}", kStoreUrls));
  add_store_key_option(app, o.store_key);
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
      "  ds-run --receiver agent/ --plan pair.dsplan --store redis://cache.example --link-deadline-ms 500 "
      "\\\n"
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
