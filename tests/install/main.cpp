// usage: outside FOLDER
// Writes a plan and reads it back, opens a store, asks the backend and the tokenizer for something: one
// symbol of each installed library.
#include <cstdio>
#include <string>
#include <string_view>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "runtime/backends/backends.h"
#include "runtime/core/session.h"
#include "runtime/model/tokenizer.h"
#include "runtime/store/entry.h"
#include "runtime/store/store.h"
#include "support/file.h"

namespace {

ds::Status run(const std::string& folder) {
  ds::ModelIdentity model{"outside", std::string(64, '1'), std::string(64, '2'), std::string(64, '3'), ""};
  ds::Shape shape{"llama", 3, 64, 128, 4, 2, 16, 100};
  std::string path = folder + "/outside.dsplan";
  DS_TRY(ds::write_file_atomically(path, ds::serialize_plan(ds::full_prefill_plan(model, shape, "bf16"))));
  DS_ASSIGN(ds::Plan plan, ds::read_plan(path));
  std::printf("plan: %s, %d layers, %zu operations\n", plan.full_prefill.policy.c_str(),
              static_cast<int>(plan.shape.layers), plan.full_prefill.ops.size());

  DS_ASSIGN(auto store, ds::open_store("file:" + folder + "/store"));
  DS_TRY(store->put("greeting", [](const ds::Store::Sink& sink) {
    std::string_view text = "hello";
    return sink(std::as_bytes(std::span(text.data(), text.size())));
  }));
  DS_ASSIGN(int64_t size, store->size("greeting"));
  std::printf("store: %s, %d bytes\n", store->url().c_str(), static_cast<int>(size));
  ds::EntryIdentity identity{model.fingerprint, ds::hash_tokens({}), "", 1, ds::DType::kBF16};
  std::printf(
      "entry: %s\n",
      std::string(ds::code_name(ds::EntryReader::open(*store, identity, shape).status().code())).c_str());

  DS_ASSIGN(auto backend, ds::make_cpu_backend({1}));
  std::printf("backend: %s\n", std::string(backend->name()).c_str());
  std::printf("cache: %s\n", std::string(ds::cache_status_name(ds::CacheStatus::kHit)).c_str());
  std::printf("tokenizer: %s\n",
              std::string(ds::code_name(ds::Tokenizer::load(folder + "/absent").status().code())).c_str());
  return ds::ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: outside FOLDER\n");
    return 2;
  }
  ds::Status status = run(argv[1]);
  if (!status.ok()) std::fprintf(stderr, "outside: error: %s\n", status.message().c_str());
  return ds::exit_code(status.code());
}
