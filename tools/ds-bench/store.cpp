// ds-bench store: what a store moves, in and out, and what a look-up takes.
#include <chrono>
#include <nlohmann/json.hpp>
#include <random>

#include "runtime/store/store.h"
#include "support/clock.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/store_input.h"

namespace ds {
namespace {

struct StoreBenchOptions {
  std::string store, bytes = "256MiB", read = "4MiB", json;
  int repeats = 5;
};

constexpr const char* kKey = "ds-bench-store";

Status measure(const StoreBenchOptions& o, Store& store, int64_t bytes, int64_t read) {
  std::vector<std::byte> data(static_cast<size_t>(bytes)), buffer(static_cast<size_t>(read));
  std::mt19937_64 random(1);
  for (size_t at = 0; at + 8 <= data.size(); at += 8) {
    const uint64_t value = random();
    std::memcpy(&data[at], &value, sizeof value);
  }
  std::vector<double> writes, reads, look_ups;
  const auto seconds = [](int64_t begin) { return static_cast<double>(now_ns() - begin) / 1e9; };
  for (int r = -1; r < o.repeats; ++r) {  // the first round warms up
    int64_t begin = now_ns();
    DS_TRY(store.put(kKey, [&](const Store::Sink& sink) { return sink(data); }));
    const double write_s = seconds(begin);
    begin = now_ns();
    const std::string keys[] = {kKey};
    DS_ASSIGN(Found found, store.find(keys, {}));
    if (!found.keys[0]) return error(Code::kNotFound, "'{}' was written, and is not in '{}'", kKey, store.url());
    DS_ASSIGN(auto object, store.open(*found.keys[0]));
    const double look_up_s = seconds(begin);
    begin = now_ns();
    for (int64_t at = 0; at < bytes; at += read) {
      const auto some = static_cast<size_t>(std::min(read, bytes - at));
      DS_TRY(object->read(at, std::span(buffer).first(some)));
    }
    const double read_s = seconds(begin);
    if (r < 0) continue;
    writes.push_back(static_cast<double>(bytes) / write_s);
    reads.push_back(static_cast<double>(bytes) / read_s);
    look_ups.push_back(look_up_s);
  }
  fmt::print(stderr, "{}: {} in reads of {}: written at {}, read at {}; found and opened in {:.0f} us (medians of {})\n",
             store.url(), format_bytes(bytes), format_bytes(read), format_rate(median(writes)),
             format_rate(median(reads)), median(look_ups) * 1e6, o.repeats);
  if (o.json.empty()) return ok_status();
  const nlohmann::ordered_json out = {{"store", store.url()},
                                      {"bytes", bytes},
                                      {"read_bytes", read},
                                      {"write_bytes_per_s", median(writes)},
                                      {"read_bytes_per_s", median(reads)},
                                      {"look_up_s", median(look_ups)},
                                      {"write_bytes_per_s_all", writes},
                                      {"read_bytes_per_s_all", reads}};
  return write_file_atomically(o.json, out.dump(2) + "\n");
}

Status bench_store(const StoreBenchOptions& o) {
  DS_ASSIGN(const int64_t bytes, parse_bytes(o.bytes));
  DS_ASSIGN(const int64_t read, parse_bytes(o.read));
  if (bytes < 1 || read < 1 || read > bytes)
    return error(Code::kInvalidArgument, "--bytes {}, --read {}: expected a read of 1 byte to all of them", o.bytes,
                 o.read);
  DS_ASSIGN(auto store, open_store(o.store));
  Status status = measure(o, *store, bytes, read);
  (void)store->remove(kKey);
  return status;
}

}  // namespace

Bench add_store(CLI::App& app) {
  auto o = std::make_shared<StoreBenchOptions>();
  CLI::App* cmd = app.add_subcommand("store", "What a store moves, in and out, and what a look-up takes");
  cmd->add_option("--store", o->store, fmt::format("{}; the object is removed at the end", kStoreUrls))->required();
  cmd->add_option("--bytes", o->bytes, "size of the object")->capture_default_str();
  cmd->add_option("--read", o->read, "size of each read, into one buffer")->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "rounds; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_store(*o); };
}

}  // namespace ds
