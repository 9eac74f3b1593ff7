// ds-compile: two model folders of one architecture and what is wanted -> a plan file.
#include "compiler/compile.h"
#include "support/file.h"
#include "tools/model_input.h"
#include "tools/open_options.h"
#include "tools/tool.h"

int main(int argc, char** argv) {
  using namespace ds;
  CLI::App app("Compiles a plan for one sender, one receiver, and ranges of context lengths and link rates.",
               "ds-compile");
  app.footer(
      "Layers count from 0; A-B means A up to and including B. Rates need a unit: MB/s is bytes, Gb/s is "
      "bits.\n\n"
      "Examples:\n"
      "  Recompute layers 3 to 6, load the others:\n"
      "    ds-compile --receiver base --sender tuned --recompute 3-6 -o pair.dsplan\n"
      "  The fastest plan that loses at most 2 points, on a measured machine, for two rates:\n"
      "    ds-compile --receiver base --sender tuned --quality quality.json --slo-loss 2 \\\n"
      "        --machine machine.json --link-rates 20MB/s,8Gb/s -o pair.dsplan\n"
      "  The fastest plan whose answers' distributions differ by at most 0.05 nats per token, with 95 %\n"
      "  confidence (a profile tells divergences apart with fewer contexts than losses):\n"
      "    ds-compile --receiver base --sender tuned --quality quality.json --slo-divergence 0.05 \\\n"
      "        --confidence 0.95 -o pair.dsplan\n"
      "  Without a profile, by rule of thumb: the last third of 30 layers, or the first.\n"
      "  No loss is promised; a profile scores such rules beside what it finds:\n"
      "    ds-compile --receiver base --sender tuned --recompute 20-29 -o pair.dsplan\n"
      "    ds-compile --receiver base --sender tuned --recompute 0-9 -o pair.dsplan\n"
      "  At most 2 points, with cuts that may be aligned by maps that ds-profile has fitted:\n"
      "    ds-compile --receiver base --sender tuned --quality quality.json --slo-loss 2 \\\n"
      "        --maps maps.safetensors -o pair.dsplan\n"
      "  A base as sender, a LoRA adapter of it as receiver:\n"
      "    ds-compile --receiver adapter --sender base --base base --recompute 3-6 -o pair.dsplan\n"
      "  Recompute layers 7 to 10 from an aligned cut:\n"
      "    ds-compile --receiver base --sender tuned --recompute 7-10 --maps maps.safetensors --align full "
      "\\\n"
      "        -o pair.dsplan\n"
      "  The tiling as text, then the schedule as text:\n"
      "    ds-compile --receiver base --sender tuned --recompute 3-6 --emit reuse -o -\n"
      "    ds-compile --receiver base --sender tuned --recompute 3-6 --emit schedule -o - | less");
  CompileFiles files;
  CompileOptions o;
  o.compiler_version = kVersion;
  std::string output;
  app.add_option("--receiver", files.receiver, "Model folder of the receiver, who answers")
      ->required()
      ->type_name("DIR");
  app.add_option("--sender", files.sender, "Model folder of the sender, whose caches are reused")
      ->required()
      ->type_name("DIR");
  add_open_options(app, files.open);
  app.add_option("--recompute", o.recompute,
                 "Layers that the receiver recomputes; with --policy restore, those that it restores")
      ->type_name("A-B");
  app.add_option(
         "--policy", o.policy,
         "balanced (a group of layers, and stairs on it where the link is slow, or restored layers where the "
         "profile has scored them; the default without --recompute), "
         "droidspeak (a group of layers), restore (K and V computed from the sender's hidden "
         "states), select (the tokens that deviate most), cake (a "
         "split along the tokens), full-prefill or full-reuse")
      ->type_name("NAME");
  app.add_option("--select-share", o.select_share,
                 "With --policy select: how many of the tokens are recomputed, those that deviate most")
      ->type_name("PERCENT");
  app.add_option("--quality", files.quality, "Quality profile of the pair, from ds-profile")
      ->type_name("FILE");
  app.add_option("--machine", files.machine, "Machine profile, from ds-calibrate; without it a stand-in")
      ->type_name("FILE");
  app.add_option("--maps", files.maps,
                 "Maps of the pair, from ds-profile: they take the sender's hidden states at a cut to the "
                 "receiver's")
      ->type_name("FILE");
  app.add_option(
         "--align", o.align,
         "auto (plain cuts and every form that --maps has compete), none (plain cuts only), or the form "
         "that cuts are mapped in: full, low-rank, diagonal")
      ->capture_default_str()
      ->type_name("FORM");
  app.add_option(
         "--align-side", o.align_side,
         "Who applies the maps: receiver (entries hold plain cuts, for any receiver), sender (entries "
         "hold a receiver's own cuts, and nothing is left to do), or auto: the receiver, unless "
         "--receivers is 1 and the sender shortens the predicted TTFT by more than 1 %")
      ->capture_default_str()
      ->type_name("SIDE");
  app.add_option("--receivers", o.receivers, "How many receivers are to share one entry")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--align-fallback", o.align_fallback,
                 "plain: where the maps cannot be read, or belong to another pair or profile, say so and "
                 "compile plain cuts")
      ->type_name("WHAT");
  app.add_option("--slo-loss", o.slo_loss, "Most points of the metric that may be lost")->type_name("POINTS");
  app.add_option(
         "--slo-divergence", o.slo_divergence,
         "Most nats per token of the reference answers by which distributions may differ from the full "
         "prefill's; beside --slo-loss both hold. least: with --slo-ttft-ms, the least within that time")
      ->type_name("NATS");
  app.add_option("--confidence", o.confidence,
                 "Holds --slo-loss and --slo-divergence against what loss and divergence exceed with "
                 "probability 1 - P only, not against their means: above 0.5 and below 1, like 0.95")
      ->type_name("P");
  app.add_option("--slo-ttft-ms", o.slo_ttft_ms, "Longest predicted time to first token")->type_name("MS");
  app.add_option("--context-lengths", o.context_lengths,
                 std::string("Context lengths to tune for; a variant holds where it is best, between and "
                             "beyond them (default ") +
                     kDefaultContextLengths + ")")
      ->type_name("N,N,...");
  app.add_option("--suffix-length", o.suffix_length, "Suffix length to tune for")
      ->capture_default_str()
      ->type_name("M");
  app.add_option("--link-rates", o.link_rates,
                 std::string("Link rates to tune for (default ") + kDefaultLinkRates + ")")
      ->type_name("RATE,RATE,...");
  app.add_option("--chunks", o.chunks,
                 "Most parts into which the context is divided, so that recomputation starts with the first "
                 "part of E; 1: no parts")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--max-variants", o.max_variants,
                 "Where more would come of it, neighbours that differ least share one")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--schedule", o.schedule,
                 "best; or a baseline: serial, kv-preload, e-first, kv-first, cake, two-pointer")
      ->capture_default_str()
      ->type_name("NAME");
  app.add_option("--dtype", o.dtype, "bf16 or f32 (default: the machine profile's, else bf16)")
      ->type_name("TYPE");
  app.add_option("--emit", o.emit, "Stop after a phase: reuse, plan, schedule (text) or flatbuffer")
      ->capture_default_str()
      ->type_name("PHASE");
  app.add_flag(
      "--live-sender", o.live_sender,
      "Beside those for entries that are there, variants for a sender that is still computing the context "
      "(ds-publish --live): they take its rows as they come. The file then has format 6");
  app.add_option(
         "--plan-format", o.plan_format,
         "Format of the plan file: 5 says what it reads and is smaller; 4 can be read by older versions")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("-o,--output", output, "Where to write; - is standard output (the default for text)")
      ->type_name("FILE");
  WeightCacheOptions cache;
  add_weight_cache_options(app, cache);
  files.identify = [&](const Checkpoint& checkpoint) -> Result<ModelIdentity> {
    DS_ASSIGN(Verified verified,
              verify_weights(checkpoint, weight_cache_folder(cache.where, checkpoint), cache));
    return std::move(verified.identity);
  };
  return run_tool(app, argc, argv, [&]() -> Status {
    if (output.empty()) {
      if (o.emit == "flatbuffer")
        return error(Code::kInvalidArgument,
                     "-o is missing; a plan file goes to a file, or to standard output with -o -");
      output = "-";
    }
    DS_TRY(check_open_options(files.open, {files.sender, files.receiver}));
    DS_ASSIGN(CompileOutput out, compile(files, o));
    for (const std::string& note : out.notes) fmt::print(stderr, "ds-compile: note: {}\n", note);
    for (const std::string& text : out.warnings) fmt::print(stderr, "ds-compile: warning: {}\n", text);
    return write_file_atomically(output, out.bytes);
  });
}
