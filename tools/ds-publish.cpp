// ds-publish: the sender's side. Prefills a context and stores its caches, and hidden states at the plans'
// cuts.
#include <algorithm>
#include <set>

#include "plans/plan_file.h"
#include "plans/published_kv.h"
#include "runtime/core/publish.h"
#include "runtime/model/identity.h"
#include "runtime/store/registered_plans.h"
#include "runtime/store/store.h"
#include "tools/chat_input.h"
#include "tools/model_input.h"
#include "tools/store_input.h"

using namespace ds;

namespace {

/// A file of maps that was given.
struct GivenMaps {
  std::string path, fingerprint;
  MapSet set;
};

Result<std::vector<GivenMaps>> read_maps(const std::vector<std::string>& paths) {
  std::vector<GivenMaps> given;
  for (const std::string& path : paths) {
    DS_ASSIGN(MapSet set, MapSet::read(path));
    std::string fingerprint = set.fingerprint();
    given.push_back({path, std::move(fingerprint), std::move(set)});
  }
  return given;
}

/// What is published for a plan: its cuts, and the maps that they go through here, if any.
Result<MappedCuts> cuts_for(const Plan& plan, const std::string& plan_path,
                            const std::vector<GivenMaps>& given) {
  MappedCuts out{published_cuts(plan), nullptr};
  if (!through_maps(out.cuts)) return out;
  for (const GivenMaps& maps : given) {
    if (maps.fingerprint != plan.maps.fingerprint) continue;
    DS_TRY(maps.set.check_plan(maps.path, plan));
    out.maps = &maps.set;
    return out;
  }
  // With one file there is no doubt which one was meant.
  if (given.size() == 1) DS_TRY(given[0].set.check_plan(given[0].path, plan));
  return error(
      Code::kInvalidArgument,
      "plan '{}' has the sender take its hidden states through the maps '{}' (fingerprint {:.12}), which "
      "were not given; give that file with --maps",
      plan_path, plan.maps.name, plan.maps.fingerprint);
}

/// "E of layer 3 (52.4 MB), of layer 5 through the full map of 0123456789ab (52.4 MB)"
std::string describe(const std::vector<PublishedCut>& cuts) {
  std::string text;
  for (const PublishedCut& c : cuts) {
    text += fmt::format("{} of layer {}", text.empty() ? "E" : ",", c.cut.layer);
    if (c.cut.form != MapForm::kNone)
      text += fmt::format(" through the {} map of {:.12}", map_form_name(c.cut.form), c.maps);
    text += fmt::format(" ({})", format_bytes(c.bytes));
  }
  return text.empty() ? "E of no layer" : text;
}

/// The text that is published: the context as requests begin that go through the template, or as it is.
struct PublishedText {
  std::string text;
  bool templated = false;
};

Result<PublishedText> read_published(const ChatOptions& o, const std::string& model_dir,
                                     const OpenOptions& open, const std::string& context) {
  DS_ASSIGN(std::optional<ChatTemplate> chat_template, open_chat_template(o, model_dir, open));
  DS_ASSIGN(std::string text, read_text_file(input_path(context)));
  if (!chat_template) return PublishedText{std::move(text), false};
  DS_ASSIGN(Conversation conversation, read_conversation(o, std::nullopt));
  DS_ASSIGN(std::string shared, chat_template->shared_text(conversation, text, o.now()));
  return PublishedText{std::move(shared), true};
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Prefill a context with the sender and publish one entry: K and V of every layer, and the hidden "
      "states (E)\n"
      "at the cuts that the plans name. Of a context that has grown only the new tokens are computed and "
      "stored.",
      "ds-publish"};
  std::string model_dir, context, context_ids, store_url, dtype = "bf16", salt, store_key;
  std::vector<std::string> plans, maps;
  BackendFlags on;
  OpenOptions open;
  WeightCacheOptions cache;
  ChatOptions chat;
  bool json = false, whole = false, live = false, registered = false, wanted_only = false;
  int64_t every = 0;
  app.add_option("--model", model_dir, "the sender: a Hugging Face folder")->required();
  app.add_option("--context", context, "text file with the shared context; -: stdin");
  app.add_option("--context-ids", context_ids, "JSON list of token ids instead");
  app.add_option("--system", chat.system,
                 "system message that stands before the context in requests through a chat template");
  app.add_option(
      "--chat", chat.chat,
      "JSON file with a conversation, -: stdin: what stands before the user's first message, and tools, as "
      "ds-run reads them; the rest is not looked at");
  add_template_options(app, chat, "sender");
  app.add_option(
         "--store", store_url,
         fmt::format("where to put the entry: {}. A folder is made for you alone, mode 0700, where it is "
                     "missing; entries have 0600: they can be read back into the context's text",
                     kStoreUrls))
      ->required();
  app.add_option("--plan", plans, "plan whose cuts are published; may be given several times");
  app.add_flag(
      "--registered", registered,
      "publish for all plans of this sender that are registered in the store (ds-store register), too");
  app.add_flag("--wanted-only", wanted_only,
               "store K and V of those layers only that one of the plans reads; a context that has grown is "
               "then computed from its beginning");
  app.add_option(
      "--maps", maps,
      "file of maps (ds-profile) of a plan whose cuts the sender aligns; may be given several times");
  app.add_option("--dtype", dtype, "bf16 or f32: of computation and of the entry")->capture_default_str();
  app.add_option("--salt", salt, "tenant salt: entries of one salt are never found with another");
  app.add_flag("--whole", whole,
               "publish all of the context, and replace its entry, even where the store's entries have its "
               "beginning; without it only what comes after them is computed and stored");
  app.add_option(
         "--every", every,
         "write an entry for every so many tokens, a multiple of 64, as soon as they are computed: who "
         "asks meanwhile reuses what is there (16 entries at the most; 0: one, at the end)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  app.add_flag("--live", live,
               "show each layer's rows as soon as they are computed: who asks meanwhile follows, and reuses "
               "them while the rest is computed; the entry at the end is the same");
  add_store_key_option(app, store_key);
  add_open_options(app, open);
  add_backend_flags(app, on);
  add_weight_cache_options(app, cache);
  app.add_flag("--json", json, "print one JSON object to stdout");
  app.footer(
      "Examples:\n"
      "  ds-publish --model base-agent/ --context report.txt --store file:/var/cache/ds --plan pair.dsplan\n"
      "  DROIDSPEAK_REDIS_PASSWORD=... ds-publish --model S/ --context report.txt --store "
      "redis://agent@cache.example "
      "--plan pair.dsplan\n"
      "  ds-publish --model S/ --template R/ --system 'Be brief.' --context report.txt --store file:cache "
      "--plan pair.dsplan\n"
      "  ds-publish --model S/ --context-ids ids.json --store file:cache --plan a.dsplan --plan b.dsplan "
      "--dtype f32\n"
      "  ds-publish --model S/ --context report.txt --store file:cache --plan aligned.dsplan --maps "
      "maps.safetensors");
  std::optional<PublishedText> published;                       // read once: it may come from a pipe
  auto run = [&](const BackendFlags& where, bool&) -> Status {  // shows nothing before all is done
    DS_TRY(check_open_options(open, {model_dir}));
    if (context.empty() == context_ids.empty()) {
      return error(Code::kInvalidArgument, "give the context once: --context FILE or --context-ids FILE");
    }
    if (context.empty() && chat.asked())
      return error(Code::kInvalidArgument,
                   "--template, --system and --chat are for texts: token ids go through no template");
    if (context == "-" && chat.chat == "-")
      return error(Code::kInvalidArgument, "stdin can be only one of --context and --chat");
    DS_ASSIGN(std::unique_ptr<Store> store, open_signed_store(store_url, store_key));
    PublishOptions options;
    if (plans.empty() && !registered)
      return error(Code::kInvalidArgument,
                   "whose plans are published for? Give --plan FILE, or --registered for those of the store");
    std::vector<Plan> read;
    std::vector<std::string> origins = plans;
    for (const std::string& path : plans) {
      DS_ASSIGN(Plan plan, read_plan(path));
      read.push_back(std::move(plan));
    }
    DS_TRY(running_dtype(dtype));
    // Whose plans they are comes before what they need.
    DS_ASSIGN(OpenedModel opened, open_model(model_dir, open, cache));
    const ModelIdentity& identity = opened.verified.identity;
    if (registered) {
      DS_ASSIGN(std::vector<RegisteredPlan> all, registered_plans(*store));
      for (RegisteredPlan& one : all) {
        if (!one.plan.ok()) {
          fmt::print(stderr, "warning: {}; nothing is published for it\n", one.plan.status().message());
        } else if (same_model(one.plan->sender, identity)) {
          read.push_back(std::move(one.plan).value());
          origins.push_back(one.key);
        }
      }
      if (read.empty())
        return error(Code::kNotFound,
                     "no plan of sender '{}' (fingerprint {:.12}) is registered in '{}'; register one with "
                     "'ds-store register', or give --plan",
                     identity.name, identity.fingerprint, store->url());
    }
    for (size_t i = 0; i < read.size(); ++i) {
      if (!same_model(read[i].sender, identity)) {
        return error(Code::kMismatch,
                     "plan '{}' is for sender '{}' (fingerprint {:.12}), '{}' has {:.12}: {}", origins[i],
                     read[i].sender.name, read[i].sender.fingerprint, model_dir, identity.fingerprint,
                     same_model(read[i].receiver, identity)
                         ? "it is the plan's receiver; give the sender with --model"
                         : "its weights or config differ; compile a plan with --sender " + model_dir);
      }
      if (read[i].sender.fingerprint != read[0].sender.fingerprint)
        return error(
            Code::kMismatch,
            "plans '{}' and '{}' name the sender by two files of its tokenizer ({:.12}, {:.12}), and "
            "an entry has one name; publish for each by itself, or compile one of them again",
            origins[0], origins[i], read[0].sender.fingerprint, read[i].sender.fingerprint);
    }
    DS_ASSIGN(std::vector<GivenMaps> given, read_maps(maps));
    for (const GivenMaps& m : given) {
      if (std::any_of(read.begin(), read.end(), [&](auto& p) { return p.maps.fingerprint == m.fingerprint; }))
        continue;
      // With one plan there is no doubt which one was meant.
      if (read.size() == 1 && !read[0].maps.fingerprint.empty()) DS_TRY(m.set.check_plan(m.path, read[0]));
      return error(
          Code::kInvalidArgument,
          "--maps '{}' (fingerprint {:.12}): no plan that was given names these maps; leave them out, or "
          "give their plan",
          m.path, m.fingerprint);
    }
    for (size_t i = 0; i < read.size(); ++i) {
      DS_ASSIGN(MappedCuts cuts, cuts_for(read[i], origins[i], given));
      options.more.push_back(std::move(cuts));
    }
    if (wanted_only) {
      std::set<int32_t> layers;
      for (const Plan& plan : read)
        for (int32_t layer : published_kv(plan)) layers.insert(layer);
      options.kv_layers.assign(layers.begin(), layers.end());
    }
    if (!context.empty() && !published) {
      DS_ASSIGN(published, read_published(chat, model_dir, open, context));
    }
    DS_ASSIGN(LoadedModel loaded, load_model(std::move(opened), where, dtype, cache));
    // Under the name that requests by these plans look for, should the tokenizer have been saved again since.
    loaded.identity.tokenizer = read[0].sender.tokenizer;
    loaded.identity.fingerprint = read[0].sender.fingerprint;
    std::vector<int32_t> ids;
    if (context.empty()) {
      DS_ASSIGN(ids, read_ids(context_ids));
    } else {
      DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(loaded));
      auto read_text = text_ids(*tokenizer, published->text, !published->templated);
      if (!read_text.ok()) return read_text.status().with_context(context);
      ids = std::move(*read_text);
    }

    ProgressBar bar("prefilling " + format_count(static_cast<int64_t>(ids.size())) + " tokens");
    options.salt = salt;
    options.only_new = !whole;
    options.every = every;
    options.live_rows = live ? kLiveRows : 0;
    options.progress = [&](int64_t layer, int64_t layers) { bar.update(layer, layers); };
    DS_ASSIGN(Published done, publish(*loaded.backend, *loaded.model, loaded.identity, ids, *store, options));
    bar.finish();
    if (!done.live.ok())
      fmt::print(stderr,
                 "warning: nobody could follow it to its end: {}; the entry itself is there all the same\n",
                 done.live.message());
    if (json) {
      nlohmann::ordered_json cuts = nlohmann::ordered_json::array();
      for (const PublishedCut& c : done.cuts)
        cuts.push_back(
            {{"layer", c.cut.layer},
             {"form", map_form_name(c.cut.form)},
             {"maps", c.maps.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(c.maps)},
             {"bytes", c.bytes}});
      nlohmann::ordered_json out = {{"key", done.key},
                                    {"store", store->url()},
                                    {"sender", loaded.identity.name},
                                    {"fingerprint", loaded.identity.fingerprint},
                                    {"context_tokens", ids.size()},
                                    {"first_token", done.first},
                                    {"after_entries", done.after},
                                    {"entries", done.already ? 0 : done.entries},
                                    {"already", done.already},
                                    {"templated", published && published->templated},
                                    {"dtype", dtype_name(loaded.model->dtype())},
                                    {"cuts", cuts},
                                    {"entry_bytes", done.entry_bytes},
                                    {"prefill_ms", static_cast<double>(done.prefill_ns) / 1e6},
                                    {"write_ms", static_cast<double>(done.write_ns) / 1e6}};
      fmt::print("{}\n", out.dump(2));
    } else if (const std::string entries =
                   done.after == 1 ? "one entry" : fmt::format("{} entries", done.after);
               done.already) {
      fmt::print(
          "{} has these {} tokens of '{}' already, in {}; nothing was computed (--whole publishes them "
          "again)\n",
          store->url(), format_count(done.first), loaded.identity.name, entries);
    } else {
      const std::string after =
          done.first == 0 ? ""
                          : fmt::format(", from token {} on, behind {} that {} the rest",
                                        format_count(done.first), entries, done.after == 1 ? "has" : "have");
      fmt::print("published {} tokens of '{}'{} as {} in {}{}: {}, {}; prefill {}, write {}\n", ids.size(),
                 loaded.identity.name, published && published->templated ? " through the chat template" : "",
                 short_key(done.key) +
                     (done.entries > 1 ? fmt::format(" and {} entries before it", done.entries - 1) : ""),
                 store->url(), after, format_bytes(done.entry_bytes), describe(done.cuts),
                 format_ns(done.prefill_ns), format_ns(done.write_ns));
    }
    return ok_status();
  };
  return run_tool(app, argc, argv, [&] { return with_fallback(on, run); });
}
