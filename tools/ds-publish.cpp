// ds-publish: the sender's side. Prefills a context and stores its caches, and hidden states at the plans'
// cuts.
#include <algorithm>

#include "plans/plan_file.h"
#include "runtime/core/publish.h"
#include "runtime/store/store.h"
#include "tools/model_input.h"

using namespace ds;

int main(int argc, char** argv) {
  CLI::App app{
      "Prefill a context with the sender and publish one entry: K and V of every layer, and the hidden "
      "states (E)\n"
      "at the cuts that the plans name.",
      "ds-publish"};
  std::string model_dir, context, context_ids, store_url, dtype = "bf16", salt, backend = "auto";
  std::vector<std::string> plans;
  int threads = 0;
  WeightCacheOptions cache;
  bool json = false;
  app.add_option("--model", model_dir, "the sender: a Hugging Face folder")->required();
  app.add_option("--context", context, "text file with the shared context");
  app.add_option("--context-ids", context_ids, "JSON list of token ids instead");
  app.add_option("--store", store_url, "where to put the entry: file:PATH")->required();
  app.add_option("--plan", plans, "plan whose cuts are published; may be given several times")->required();
  app.add_option("--dtype", dtype, "bf16 or f32: of computation and of the entry")->capture_default_str();
  app.add_option("--salt", salt, "tenant salt: entries of one salt are never found with another");
  app.add_option("--backend", backend, "cpu or auto")->capture_default_str();
  app.add_option("--threads", threads, "compute threads; 0: all cores")->capture_default_str();
  add_weight_cache_options(app, cache);
  app.add_flag("--json", json, "print one JSON object to stdout");
  app.footer(
      "Examples:\n"
      "  ds-publish --model base-agent/ --context report.txt --store file:/var/cache/ds --plan pair.dsplan\n"
      "  ds-publish --model S/ --context-ids ids.json --store file:cache --plan a.dsplan --plan b.dsplan "
      "--dtype f32");
  return run_tool(app, argc, argv, [&]() -> Status {
    if (context.empty() == context_ids.empty()) {
      return error(Code::kInvalidArgument, "give the context once: --context FILE or --context-ids FILE");
    }
    DS_ASSIGN(std::unique_ptr<Store> store, open_store(store_url));
    PublishOptions options;
    std::vector<Plan> read;
    for (const std::string& path : plans) {
      DS_ASSIGN(Plan plan, read_plan(path));
      read.push_back(std::move(plan));
    }
    DS_ASSIGN(LoadedModel loaded, load_model(model_dir, backend, threads, dtype, cache));
    for (size_t i = 0; i < read.size(); ++i) {
      if (read[i].sender.fingerprint != loaded.identity.fingerprint) {
        return error(
            Code::kMismatch,
            "plan '{}' is for sender '{}' (fingerprint {:.12}), '{}' has {:.12}: its weights, config or "
            "tokenizer differ; compile a plan with --sender {}",
            plans[i], read[i].sender.name, read[i].sender.fingerprint, model_dir, loaded.identity.fingerprint,
            model_dir);
      }
      for (int32_t cut : cut_layers(read[i])) options.cuts.push_back(cut);
    }
    std::sort(options.cuts.begin(), options.cuts.end());
    options.cuts.erase(std::unique(options.cuts.begin(), options.cuts.end()), options.cuts.end());
    DS_ASSIGN(std::vector<int32_t> ids, context_tokens(loaded, context, context_ids));

    ProgressBar bar("prefilling " + format_count(static_cast<int64_t>(ids.size())) + " tokens");
    options.salt = salt;
    options.progress = [&](int64_t layer, int64_t layers) { bar.update(layer, layers); };
    DS_ASSIGN(Published done, publish(*loaded.backend, *loaded.model, loaded.identity, ids, *store, options));
    bar.finish();
    if (json) {
      nlohmann::ordered_json out = {{"key", done.key},
                                    {"store", store->url()},
                                    {"sender", loaded.identity.name},
                                    {"fingerprint", loaded.identity.fingerprint},
                                    {"context_tokens", ids.size()},
                                    {"dtype", dtype_name(loaded.model->dtype())},
                                    {"cuts", options.cuts},
                                    {"entry_bytes", done.entry_bytes},
                                    {"prefill_ms", static_cast<double>(done.prefill_ns) / 1e6},
                                    {"write_ms", static_cast<double>(done.write_ns) / 1e6}};
      fmt::print("{}\n", out.dump(2));
    } else {
      fmt::print("published {} tokens of '{}' as {:.16} in {}: {}, E at {}; prefill {}, write {}\n",
                 ids.size(), loaded.identity.name, done.key, store->url(), format_bytes(done.entry_bytes),
                 options.cuts.empty() ? "no layer" : fmt::format("layer {}", fmt::join(options.cuts, ", ")),
                 format_ns(done.prefill_ns), format_ns(done.write_ns));
    }
    return ok_status();
  });
}
