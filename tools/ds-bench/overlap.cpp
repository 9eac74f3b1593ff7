// ds-bench overlap: what a transfer costs the computation that it runs beside.
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <memory>
#include <random>

#include "plans/full_prefill.h"
#include "runtime/core/session.h"
#include "runtime/store/entry.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/model_input.h"

namespace ds {
namespace {

struct OverlapOptions {
  std::string shape = "llama-1b:4", rate = "1GB/s", store, dtype = "bf16", json;
  int64_t tokens = 512, transfer_tokens = 2048;
  int repeats = 15;
  BackendFlags on;
};

/// The entry has at least so many bytes, so that it does not come from the caches of the processor.
constexpr int64_t kEntryBytes = int64_t{256} << 20;

double seconds(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

/// Reads an entry on a link stream as a session does, some tokens of a layer per command, layer after layer
/// and then the next tokens, again and again.
class Transfer {
 public:
  Transfer(CommandStream& stream, EntryReader entry, int64_t layers, int64_t tokens)
      : stream_(stream), entry_(std::move(entry)), layers_(layers), tokens_(tokens) {}

  Status reserve(Backend& backend) {
    const EntryHeader& header = entry_.header();
    for (int64_t l = 0; l < layers_; ++l) {
      DS_ASSIGN(auto memory, backend.allocate(header.identity.tokens * header.row_bytes(TensorKind::kKv)));
      caches_.push_back(std::move(memory));
    }
    DS_ASSIGN(landing_, Landing::create(backend, header.row_bytes(TensorKind::kKv)));
    return ok_status();
  }
  void start(int64_t reads) {
    for (int64_t i = 0; i < reads; ++i) stream_.host({&read, this, 0});
  }
  /// After the command that is under way.
  Status finish() {
    stream_.cancel();
    DS_TRY(stream_.synchronize());
    DS_TRY(landing_->synchronize());
    return status_;
  }
  double wall_seconds() const { return wall_; }
  double cpu_seconds() const { return cpu_; }
  int64_t bytes() const { return entry_.bytes_read(); }

 private:
  static void read(void* context, int64_t) {
    auto& t = *static_cast<Transfer*>(context);
    if (!t.status_.ok()) return;
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
    const EntryHeader& header = t.entry_.header();
    int64_t layer = t.next_ % t.layers_, first = t.next_ / t.layers_ * t.tokens_ % header.identity.tokens;
    ++t.next_;
    t.status_ = t.landing_->read(
        t.entry_, {TensorKind::kKv, static_cast<int32_t>(layer), first, t.tokens_},
        t.caches_[static_cast<size_t>(layer)]->data() + first * header.row_bytes(TensorKind::kKv));
    t.wall_ += seconds(CLOCK_MONOTONIC) - wall;
    t.cpu_ += seconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
  }

  CommandStream& stream_;
  EntryReader entry_;
  int64_t layers_, tokens_, next_ = 0;
  std::vector<std::unique_ptr<DeviceMemory>> caches_;
  std::unique_ptr<Landing> landing_;
  Status status_;  // of the link stream's thread until finish()
  double wall_ = 0, cpu_ = 0;
};

/// K and V of every layer, random; one layer's data stands for all.
Status publish_random(Store& store, const EntryIdentity& identity, const Shape& shape) {
  std::vector<uint64_t> data(
      static_cast<size_t>(identity.tokens * shape.kv_row() * dtype_size(identity.dtype) / 8));
  std::mt19937_64 random(1);
  std::generate(data.begin(), data.end(), random);
  std::vector<EntrySource> sources;
  for (int32_t l = 0; l < shape.layers; ++l)
    sources.push_back({TensorKind::kKv, l, std::as_bytes(std::span(data))});
  return write_entry(store, identity, {.fingerprint = identity.sender}, shape, std::move(sources)).status();
}

struct Figures {
  std::vector<double> alone_s, beside_s, slowdown;  // one of each per repeat
};

Status measure(const OverlapOptions& o, Backend& backend, DeviceModel& model, const std::string& url,
               double rate, const EntryIdentity& identity) {
  const Shape shape = model.config().shape();
  DS_ASSIGN(auto store, open_store(url));
  const std::string where = store->url();  // which shows no password
  auto shaped = shape_link(std::move(store), {rate, 0});
  DS_ASSIGN(EntryReader entry, EntryReader::open(*shaped, identity, shape));
  constexpr int64_t kReads = 1 << 16;  // more than a run needs; what is left is cancelled
  DS_ASSIGN(auto link, backend.make_stream(StreamKind::kLink, kReads));
  Transfer transfer(*link, std::move(entry), shape.layers, o.transfer_tokens);
  DS_TRY(transfer.reserve(backend));

  Plan plan = full_prefill_plan({}, shape, o.dtype);
  DS_ASSIGN(auto session, Session::create(backend, model, plan, {o.tokens - 1, 1, 1}));
  DS_TRY(session->warm_up());
  std::vector<int32_t> ids(static_cast<size_t>(o.tokens));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(shape.vocab));
  Request request;
  request.context = std::span(ids).first(ids.size() - 1);
  request.suffix = std::span(ids).last(1);
  request.full_prefill = true;

  Figures f;
  ProgressBar bar("measuring");
  for (int r = -1; r < o.repeats; ++r) {  // the first round warms up
    double time[2] = {0, 0};
    for (int turn = 0; turn < 2; ++turn) {  // ABBA: a drift of the machine falls on both alike
      bool beside = (turn + r) % 2 != 0;
      if (beside) transfer.start(kReads);
      DS_ASSIGN(Answer answer, session->run(request));
      if (beside) DS_TRY(transfer.finish());
      time[beside] = static_cast<double>(answer.ttft_ns) / 1e9;
    }
    bar.update(r + 2, o.repeats + 1);
    if (r < 0) continue;
    f.alone_s.push_back(time[0]);
    f.beside_s.push_back(time[1]);
    f.slowdown.push_back(time[1] / time[0] - 1);
  }
  bar.finish();

  std::vector<double> sorted = f.slowdown;
  std::sort(sorted.begin(), sorted.end());
  double low = sorted[sorted.size() / 4], high = sorted[sorted.size() - 1 - sorted.size() / 4];
  auto bytes = static_cast<double>(transfer.bytes());
  double achieved = bytes / transfer.wall_seconds(), cpu_per_gb = transfer.cpu_seconds() / bytes * 1e9;
  // If compute lost no more than the time that the transfer's thread took, evenly on all cores.
  double cores = static_cast<double>(sysconf(_SC_NPROCESSORS_ONLN));
  double floor = 1 / (1 - transfer.cpu_seconds() / transfer.wall_seconds() / cores) - 1;
  fmt::print(
      stderr, "{} {}, {} tokens, {}; entry of {} in {}\n", o.shape, o.dtype, o.tokens, backend.description(),
      format_bytes(identity.tokens * shape.layers * shape.kv_row() * dtype_size(identity.dtype)), where);
  fmt::print(stderr, "prefill alone {:.1f} ms, beside the transfer {:.1f} ms (medians of {})\n",
             median(f.alone_s) * 1e3, median(f.beside_s) * 1e3, o.repeats);
  fmt::print(stderr,
             "slowdown {:.1f} % (half of the pairs: {:.1f} to {:.1f} %); taken CPU time alone {:.1f} %\n",
             median(f.slowdown) * 100, low * 100, high * 100, floor * 100);
  fmt::print(stderr, "transfer {} of {} asked for, {:.4f} CPU seconds per GB\n", format_rate(achieved),
             format_rate(rate), cpu_per_gb);
  if (o.json.empty()) return ok_status();
  nlohmann::ordered_json out = {{"shape", o.shape},
                                {"dtype", o.dtype},
                                {"tokens", o.tokens},
                                {"backend", backend.description()},
                                {"repeats", o.repeats},
                                {"alone_s", median(f.alone_s)},
                                {"beside_s", median(f.beside_s)},
                                {"slowdown", median(f.slowdown)},
                                {"slowdown_quartiles", {low, high}},
                                {"slowdown_all", f.slowdown},
                                {"slowdown_by_cpu_time", floor},
                                {"asked_bytes_per_s", rate},
                                {"achieved_bytes_per_s", achieved},
                                {"transfer_cpu_s_per_gb", cpu_per_gb}};
  return write_file_atomically(o.json, out.dump(2) + "\n");
}

Status bench_overlap(const OverlapOptions& o) {
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(DType dtype, parse_dtype(o.dtype));
  DS_ASSIGN(double rate, parse_rate(o.rate));
  if (o.tokens < 2 || o.tokens > config.max_positions)
    return error(Code::kInvalidArgument, "--tokens {}: expected 2 to {}", o.tokens, config.max_positions);
  std::string folder;
  std::string url = o.store;
  if (url.empty()) {
    const char* base = getenv("TMPDIR");
    folder = std::string(base != nullptr ? base : "/tmp") + "/ds-overlap-XXXXXX";
    if (mkdtemp(folder.data()) == nullptr) return io_error("create a folder", folder);
    url = "file:" + folder;
  }
  DS_ASSIGN(auto store, open_store(url));
  int64_t row = config.shape().kv_row() * dtype_size(dtype);
  int64_t part = o.transfer_tokens * row * config.layers;
  EntryIdentity identity{.sender = "ds-bench overlap",
                         .tokens = (kEntryBytes + part - 1) / part * o.transfer_tokens,
                         .dtype = dtype};
  identity.tokens_hash = hash_tokens({});
  Status status = [&]() -> Status {
    DS_TRY(publish_random(*store, identity, config.shape()));
    DS_ASSIGN(auto backend, open_backend(o.on));
    ProgressBar bar("loading " + o.shape);
    LoadOptions load{dtype, [&](int64_t done, int64_t total) { bar.update(done, total); }};
    DS_ASSIGN(auto model, backend->load_random(config, load, 1));
    bar.finish();
    return measure(o, *backend, *model, url, rate, identity);
  }();
  (void)store->remove(identity.key());
  if (!folder.empty()) (void)rmdir(folder.c_str());
  return status;
}

}  // namespace

Bench add_overlap(CLI::App& app) {
  auto o = std::make_shared<OverlapOptions>();
  CLI::App* cmd = app.add_subcommand(
      "overlap", "slowdown of a full prefill while an entry is read through a link beside it");
  cmd->add_option("--shape", o->shape, "llama-1b, llama-8b, each with :LAYERS if fewer")
      ->capture_default_str();
  cmd->add_option("--rate", o->rate, "of the link: 500MB/s, 8Gb/s")->capture_default_str();
  cmd->add_option("--tokens", o->tokens, "of the prefill")->capture_default_str();
  cmd->add_option("--transfer-tokens", o->transfer_tokens,
                  "of one layer, read by one command of the link stream")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  cmd->add_option("--store", o->store,
                  "file:PATH or redis://HOST for the entry that is read (256 MiB or more, removed at the "
                  "end); default: a folder in $TMPDIR or /tmp");
  cmd->add_option("--repeats", o->repeats, "pairs of runs, alone and beside; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--dtype", o->dtype, "bf16 or f32")->capture_default_str();
  add_backend_flags(*cmd, o->on);
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_overlap(*o); };
}

}  // namespace ds
