// ds-bench store: what a store moves, in and out, beside the barest loop that moves the same, and what a
// look-up takes.
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
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

/// The barest loop that moves as many bytes from where the store has them; false: of such a store there is
/// none.
class BareLoop {
 public:
  BareLoop(const std::string& url, int64_t bytes) : bytes_(bytes) {
    if (url.starts_with("file:")) path_ = url.substr(5) + "/" + kKey;
    constexpr std::string_view kPlain = "redis://";
    const size_t colon = url.rfind(':');
    if (!url.starts_with(kPlain) || url.find('@') != url.npos || colon < kPlain.size()) return;
    host_ = url.substr(kPlain.size(), colon - kPlain.size());
    port_ = url.substr(colon + 1);
  }
  BareLoop(const BareLoop&) = delete;
  ~BareLoop() {
    if (fd_ >= 0) close(fd_);
  }
  bool known() const { return !path_.empty() || !host_.empty(); }

  /// Once the object is there.
  Status open(std::span<const std::byte> data) {
    if (!path_.empty()) {
      fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
      return fd_ < 0 ? io_error("open", path_) : ok_status();
    }
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (const int failure = getaddrinfo(host_.c_str(), port_.c_str(), &hints, &found); failure != 0)
      return error(Code::kIo, "no address of '{}': {}", host_, gai_strerror(failure));
    fd_ = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool connected = fd_ >= 0 && connect(fd_, found->ai_addr, found->ai_addrlen) == 0;
    freeaddrinfo(found);
    if (!connected) return io_error("connect to", host_);
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    for (int64_t i = 0; i * kValue < bytes_; ++i) {
      const std::string key = key_of(i);
      const auto value = value_of(data, i);
      DS_TRY(send_all(fmt::format("*3\r\n$3\r\nSET\r\n${}\r\n{}\r\n${}\r\n", key.size(), key, value.size())));
      DS_TRY(send_all(value));
      DS_TRY(send_all("\r\n"));
      char ok[5];
      DS_TRY(receive_all(std::as_writable_bytes(std::span(ok))));
      if (std::string_view(ok, 5) != "+OK\r\n")
        return error(Code::kIo, "the server takes no values of {} bytes", kValue);
    }
    return ok_status();
  }

  Status read(std::span<std::byte> buffer) {
    for (int64_t at = 0; at < bytes_;) {
      if (!path_.empty()) {
        const ssize_t got =
            pread(fd_, buffer.data(), std::min(buffer.size(), static_cast<size_t>(bytes_ - at)), at);
        if (got <= 0) return io_error("read", path_);
        at += got;
        continue;
      }
      // One value after the other, to where the store's own go.
      const std::string key = key_of(at / kValue);
      const auto bytes = static_cast<size_t>(std::min(kValue, bytes_ - at));
      DS_TRY(send_all(fmt::format("*2\r\n$3\r\nGET\r\n${}\r\n{}\r\n", key.size(), key)));
      std::array<std::byte, 32> line;
      DS_TRY(receive_all(std::span(line).first(fmt::formatted_size("${}\r\n", bytes))));
      const size_t place = static_cast<size_t>(at) % buffer.size();
      DS_TRY(receive_all(buffer.subspan(place + bytes <= buffer.size() ? place : 0).first(bytes)));
      DS_TRY(receive_all(std::span(line).first(2)));
      at += static_cast<int64_t>(bytes);
    }
    return ok_status();
  }

  void remove() {
    for (int64_t i = 0; path_.empty() && i * kValue < bytes_; ++i) {
      const std::string key = key_of(i);
      std::array<std::byte, 4> one;
      if (!send_all(fmt::format("*2\r\n$3\r\nDEL\r\n${}\r\n{}\r\n", key.size(), key)).ok() ||
          !receive_all(one).ok())
        return;
    }
  }

  static constexpr int64_t kValue = int64_t{1} << 20;

 private:
  static std::string key_of(int64_t i) { return fmt::format("{}:bare:{}", kKey, i); }
  static std::span<const std::byte> value_of(std::span<const std::byte> data, int64_t i) {
    const auto at = static_cast<size_t>(i * kValue);
    return data.subspan(at, std::min(static_cast<size_t>(kValue), data.size() - at));
  }
  Status send_all(const std::string& text) { return send_all(std::as_bytes(std::span(text))); }
  Status send_all(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t put = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (put < 0) return io_error("send to", host_);
      bytes = bytes.subspan(static_cast<size_t>(put));
    }
    return ok_status();
  }
  Status receive_all(std::span<std::byte> out) {
    while (!out.empty()) {
      const ssize_t got = recv(fd_, out.data(), out.size(), MSG_WAITALL);
      if (got <= 0) return io_error("receive from", host_);
      out = out.subspan(static_cast<size_t>(got));
    }
    return ok_status();
  }
  const int64_t bytes_;
  std::string path_, host_, port_;
  int fd_ = -1;
};

Status measure(const StoreBenchOptions& o, Store& store, int64_t bytes, int64_t read) {
  std::vector<std::byte> data(static_cast<size_t>(bytes)), buffer(static_cast<size_t>(read));
  std::mt19937_64 random(1);
  for (size_t at = 0; at + 8 <= data.size(); at += 8) {
    const uint64_t value = random();
    std::memcpy(&data[at], &value, sizeof value);
  }
  std::vector<double> writes, reads, look_ups, bares, ratios;
  const auto seconds = [](int64_t begin) { return static_cast<double>(now_ns() - begin) / 1e9; };
  const auto rate = [&](double s) { return static_cast<double>(bytes) / s; };
  const auto put = [&]() -> Status {
    const int64_t begin = now_ns();
    DS_TRY(store.put(kKey, [&](const Store::Sink& sink) { return sink(data); }));
    writes.push_back(rate(seconds(begin)));
    return ok_status();
  };
  for (int r = 0; r < 3; ++r) DS_TRY(put());
  BareLoop bare(store.url(), bytes);
  if (bare.known()) DS_TRY(bare.open(data));
  const std::string keys[] = {kKey};
  for (int r = -1; r < o.repeats; ++r) {  // the first round warms up
    double times[2] = {0, 0};
    for (int turn = 0; turn < 2; ++turn) {
      const bool ours = (turn + r) % 2 == 0;  // ABBA: a drift of the machine falls on both alike
      if (!ours && !bare.known()) continue;
      int64_t begin = now_ns();
      if (!ours) {
        DS_TRY(bare.read(buffer));
        times[1] = seconds(begin);
        continue;
      }
      DS_ASSIGN(Found found, store.find(keys, {}));
      if (!found.keys[0])
        return error(Code::kNotFound, "'{}' was written, and is not in '{}'", kKey, store.url());
      DS_ASSIGN(auto object, store.open(*found.keys[0]));
      if (r >= 0) look_ups.push_back(seconds(begin));
      begin = now_ns();
      for (int64_t at = 0; at < bytes; at += read)
        DS_TRY(object->read(at, std::span(buffer).first(static_cast<size_t>(std::min(read, bytes - at)))));
      times[0] = seconds(begin);
    }
    if (r < 0) continue;
    reads.push_back(rate(times[0]));
    if (!bare.known()) continue;
    bares.push_back(rate(times[1]));
    ratios.push_back(times[1] / times[0]);
  }
  if (bare.known()) bare.remove();
  fmt::print(
      stderr,
      "{}: {} in reads of {}: written at {}, read at {}; found and opened in {:.0f} us (medians of {})\n",
      store.url(), format_bytes(bytes), format_bytes(read), format_rate(median(writes)),
      format_rate(median(reads)), median(look_ups) * 1e6, o.repeats);
  if (bare.known())
    fmt::print(stderr,
               "the barest loop: {}; the store reaches {:.0f} % of it (median of the rounds' ratios)\n",
               format_rate(median(bares)), median(ratios) * 100);
  if (o.json.empty()) return ok_status();
  nlohmann::ordered_json out = {{"store", store.url()},
                                {"bytes", bytes},
                                {"read_bytes", read},
                                {"write_bytes_per_s", median(writes)},
                                {"read_bytes_per_s", median(reads)},
                                {"look_up_s", median(look_ups)},
                                {"read_bytes_per_s_all", reads}};
  if (bare.known()) {
    out["bare_bytes_per_s"] = median(bares);
    out["of_bare"] = median(ratios);
    out["of_bare_all"] = ratios;
  }
  return write_file_atomically(o.json, out.dump(2) + "\n");
}

Status bench_store(const StoreBenchOptions& o) {
  DS_ASSIGN(const int64_t bytes, parse_bytes(o.bytes));
  DS_ASSIGN(const int64_t read, parse_bytes(o.read));
  if (bytes < 1 || read < 1 || read > bytes)
    return error(Code::kInvalidArgument, "--bytes {}, --read {}: expected a read of 1 byte to all of them",
                 o.bytes, o.read);
  DS_ASSIGN(auto store, open_store(o.store));
  Status status = measure(o, *store, bytes, read);
  (void)store->remove(kKey);
  return status;
}

}  // namespace

Bench add_store(CLI::App& app) {
  auto o = std::make_shared<StoreBenchOptions>();
  CLI::App* cmd = app.add_subcommand(
      "store", "What a store moves, beside a bare loop of pread or GET, and what a look-up takes");
  cmd->add_option("--store", o->store, fmt::format("{}; the object is removed at the end", kStoreUrls))
      ->required();
  cmd->add_option("--bytes", o->bytes, "size of the object")->capture_default_str();
  cmd->add_option("--read", o->read, "size of each read, into one buffer")->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "rounds; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_store(*o); };
}

}  // namespace ds
