// Which options contradict each other.
#include <algorithm>

#include "tools/ds-run/run.h"

namespace ds {

Status check(const RunOptions& o) {
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
  if (o.store.empty() && !o.store_key.empty()) return refuse("--store-key needs --store URL");
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

}  // namespace ds
