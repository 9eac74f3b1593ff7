#include "runtime/backends/cuda/algorithms_internal.h"

#include <cctype>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds::cuda {
namespace {

constexpr const char* kFormat = "droidspeak.algorithms";
constexpr int64_t kVersion = 1;
constexpr size_t kBytes = sizeof(cublasLtMatmulAlgo_t);

std::string to_hex(const cublasLtMatmulAlgo_t& algo) {
  std::string text;
  const auto* bytes = reinterpret_cast<const unsigned char*>(&algo);
  for (size_t i = 0; i < kBytes; ++i) text += fmt::format("{:02x}", bytes[i]);
  return text;
}

bool from_hex(const std::string& text, cublasLtMatmulAlgo_t& algo) {
  if (text.size() != 2 * kBytes) return false;
  auto* bytes = reinterpret_cast<unsigned char*>(&algo);
  for (size_t i = 0; i < kBytes; ++i) {
    const char* at = text.data() + 2 * i;
    if (auto [end, failed] = std::from_chars(at, at + 2, bytes[i], 16);
        failed != std::errc() || end != at + 2)
      return false;
  }
  return true;
}

/// What all choices depend on.
std::string device_text(const DeviceInfo& info) {
  return fmt::format("{}, {}, cuBLASLt {}, driver {}", info.name, info.sm(), info.cublas_lt,
                     version_text(info.driver));
}

/// The library is not asked what it makes of bytes that it has not written.
std::string checksum(const nlohmann::json& products) {
  const std::string text = products.dump();
  return fmt::format("{:016x}", checksum64(std::as_bytes(std::span(text.data(), text.size()))));
}

std::string file_name(std::string device) {
  for (char& c : device)
    if (std::isalnum(static_cast<unsigned char>(c)) == 0 && c != '.' && c != '_') c = '-';
  return "algorithms-" + device + ".json";
}

}  // namespace

Algorithms::Algorithms(const DeviceInfo& info, const std::string& folder) : device_(device_text(info)) {
  if (folder.empty()) return;
  path_ = (std::filesystem::path(folder) / file_name(device_)).string();
  if (Status status = read(); !status.ok() && status.code() != Code::kNotFound) {
    known_.clear();
    reason_ = status.message();
    changed_ = true;
  }
}

std::optional<Algorithm> Algorithms::find(const std::string& shape) const {
  std::lock_guard lock(mutex_);
  auto at = known_.find(shape);
  return at == known_.end() ? std::nullopt : std::optional(at->second);
}

void Algorithms::put(const std::string& shape, const Algorithm& algorithm) {
  std::lock_guard lock(mutex_);
  known_[shape] = algorithm;
  changed_ = true;
}

size_t Algorithms::size() const {
  std::lock_guard lock(mutex_);
  return known_.size();
}

std::string Algorithms::reason() const {
  std::lock_guard lock(mutex_);
  return reason_;
}

void Algorithms::save() {
  std::lock_guard lock(mutex_);
  if (path_.empty() || !changed_) return;
  if (Status status = write(); !status.ok())
    reason_ = status.message();
  else
    changed_ = false;
}

Status Algorithms::read() {
  DS_ASSIGN(nlohmann::json json, read_json_file(path_));
  DS_ASSIGN(JsonObject file, JsonObject::make(json, path_));
  DS_ASSIGN(std::string format, file.string("format"));
  DS_ASSIGN(int64_t version, file.integer("version", 0, INT32_MAX));
  DS_ASSIGN(std::string device, file.string("device"));
  if (format != kFormat || version != kVersion || device != device_)
    return error(Code::kMismatch, "'{}' is '{}' version {} of '{}', expected '{}' version {} of '{}'", path_,
                 format, version, device, kFormat, kVersion, device_);
  DS_ASSIGN(JsonObject products, file.object("products"));
  DS_ASSIGN(std::string sum, file.string("checksum"));
  if (sum != checksum(products.json()))
    return error(Code::kCorrupt, "{}: found '{}', expected '{}'; the file is damaged", file.at("checksum"),
                 sum, checksum(products.json()));
  for (const auto& [shape, value] : products.json().items()) {
    DS_ASSIGN(JsonObject product, JsonObject::make(value, products.at(shape)));
    Algorithm algorithm;
    DS_ASSIGN(std::string bytes, product.string("algorithm"));
    DS_ASSIGN(algorithm.ns, product.integer("ns", 0, INT64_MAX));
    if (!from_hex(bytes, algorithm.algo))
      return error(Code::kCorrupt, "{}: expected {} hexadecimal digits, found '{}'", product.at("algorithm"),
                   2 * kBytes, bytes);
    known_[shape] = algorithm;
  }
  return ok_status();
}

Status Algorithms::write() const {
  nlohmann::json products = nlohmann::json::object();
  for (const auto& [shape, algorithm] : known_)
    products[shape] = {{"algorithm", to_hex(algorithm.algo)}, {"ns", algorithm.ns}};
  const nlohmann::json file = {{"format", kFormat},
                               {"version", kVersion},
                               {"device", device_},
                               {"checksum", checksum(products)},
                               {"products", products}};
  std::error_code failed;
  std::filesystem::create_directories(std::filesystem::path(path_).parent_path(), failed);
  if (failed) return error(Code::kIo, "cannot create the folder of '{}': {}", path_, failed.message());
  return write_file_atomically(path_, file.dump(1) + "\n");
}

}  // namespace ds::cuda
