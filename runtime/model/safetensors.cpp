#include "runtime/model/safetensors.h"

#include <algorithm>
#include <bit>
#include <set>

#include "support/json.h"
#include "support/units.h"

namespace ds {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are little-endian, mapped as they are");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeader = 100'000'000;  // the format's own limit
constexpr size_t kMaxRank = 16;

/// Bits of one element, 0: unknown.
int64_t element_bits(std::string_view dtype) {
  static const std::map<std::string_view, int64_t> kBits{
      {"BOOL", 8},    {"U8", 8},      {"I8", 8},          {"F8_E5M2", 8},    {"F8_E4M3", 8}, {"F8_E8M0", 8},
      {"I16", 16},    {"U16", 16},    {"F16", 16},        {"BF16", 16},      {"I32", 32},    {"U32", 32},
      {"F32", 32},    {"I64", 64},    {"U64", 64},        {"F64", 64},       {"C64", 64},    {"F4", 4},
      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
  auto it = kBits.find(dtype);
  return it == kBits.end() ? 0 : it->second;
}

// A size or an offset: a whole number that fits int64_t.
bool is_size(const json& v) {
  return v.is_number_integer() && !(v.is_number_unsigned() && v.get<uint64_t>() > INT64_MAX) &&
         v.get<int64_t>() >= 0;
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

Result<SafetensorsEntry> read_entry(const std::string& where, const json& value,
                                    std::span<const std::byte> data) {
  DS_ASSIGN(JsonObject object, JsonObject::make(value, where));
  SafetensorsEntry entry;
  DS_ASSIGN(entry.dtype, object.string("dtype"));
  const int64_t bits = element_bits(entry.dtype);
  if (bits == 0) return error(Code::kCorrupt, "{}: unknown element type '{}'", where, entry.dtype);

  DS_ASSIGN(const json* shape, object.array("shape"));
  if (shape->size() > kMaxRank) {
    return error(Code::kCorrupt, "{}: 'shape' has {} dimensions, expected at most {}", where, shape->size(),
                 kMaxRank);
  }
  int64_t elements = 1;
  for (const json& n : *shape) {
    if (!is_size(n)) return error(Code::kCorrupt, "{}: 'shape' is {}, expected sizes", where, shown(*shape));
    entry.shape.push_back(n.get<int64_t>());
    if (__builtin_mul_overflow(elements, entry.shape.back(), &elements)) {
      return error(Code::kCorrupt, "{}: 'shape' is {}: the number of elements overflows", where,
                   shown(*shape));
    }
  }
  int64_t size_bits = 0;
  if (__builtin_mul_overflow(elements, bits, &size_bits) || size_bits % 8 != 0) {
    return error(Code::kCorrupt, "{}: {} elements of {} are not a whole number of bytes that fits 64 bits",
                 where, elements, entry.dtype);
  }

  DS_ASSIGN(const json* offsets, object.array("data_offsets"));
  if (offsets->size() != 2 || !is_size((*offsets)[0]) || !is_size((*offsets)[1])) {
    return error(Code::kCorrupt, "{}: 'data_offsets' is {}, expected [begin, end]", where, shown(*offsets));
  }
  const auto begin = (*offsets)[0].get<int64_t>(), end = (*offsets)[1].get<int64_t>();
  if (begin > end || static_cast<uint64_t>(end) > data.size()) {
    return error(Code::kCorrupt,
                 "{}: 'data_offsets' is [{}, {}], expected a range within the {} bytes of data{}", where,
                 begin, end, data.size(), begin > end ? "" : "; the file is cut short or damaged");
  }
  if (end - begin != size_bits / 8) {
    return error(Code::kCorrupt, "{}: 'data_offsets' [{}, {}] hold {} bytes, expected {} for shape {} of {}",
                 where, begin, end, end - begin, size_bits / 8, shown(*shape), entry.dtype);
  }
  entry.data = data.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  return entry;
}

}  // namespace

Result<SafetensorsFile> SafetensorsFile::open(const std::string& path) {
  SafetensorsFile result;
  DS_ASSIGN(result.file_, MappedFile::open(path));
  const std::span<const std::byte> bytes = result.file_.bytes();
  if (bytes.size() < kLengthBytes) {
    return error(Code::kCorrupt,
                 "'{}' has {} bytes, expected a safetensors file (at least {}); copy it again", path,
                 bytes.size(), kLengthBytes);
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeader || header_bytes > bytes.size() - kLengthBytes) {
    return error(
        Code::kCorrupt,
        "'{}' states a header of {} bytes, expected at most {}: not a safetensors file, or cut short", path,
        header_bytes, std::min<uint64_t>(kMaxHeader, bytes.size() - kLengthBytes));
  }
  std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes);
  DS_ASSIGN(json header, parse_json(text, path + " (header)"));
  DS_TRY(JsonObject::make(header, path + " (header)"));

  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      if (!value.is_object()) continue;
      for (const auto& [key, text_value] : value.items())
        if (text_value.is_string()) result.metadata_.emplace(key, text_value.get<std::string>());
      continue;
    }
    DS_ASSIGN(SafetensorsEntry entry, read_entry(fmt::format("{}: tensor '{}'", path, name), value, data));
    result.entries_.emplace(name, std::move(entry));
  }

  // The format wants every byte of the data in exactly one tensor: anything else is damage or a smuggled
  // payload.
  std::vector<const std::pair<const std::string, SafetensorsEntry>*> order;
  for (const auto& named : result.entries_) order.push_back(&named);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const auto &x = a->second.data, &y = b->second.data;
    return std::pair(x.data(), x.size()) < std::pair(y.data(), y.size());
  });
  int64_t at = 0;
  for (const auto* named : order) {
    int64_t begin = named->second.data.data() - data.data();
    if (begin != at) {
      return error(Code::kCorrupt, "{}: tensor '{}' begins at {}, expected {}: {}", path, named->first, begin,
                   at, begin < at ? "it overlaps another" : "bytes that belong to no tensor lie before it");
    }
    at += static_cast<int64_t>(named->second.data.size());
  }
  if (static_cast<uint64_t>(at) != data.size()) {
    return error(Code::kCorrupt, "'{}' has {} bytes of data, but its tensors end at {}", path, data.size(),
                 at);
  }
  return result;
}

std::string_view safetensors_dtype(DType dtype) {
  return dtype == DType::kF32 ? "F32" : dtype == DType::kBF16 ? "BF16" : "F16";
}

Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata) {
  json header = json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  int64_t at = 0;
  for (const NamedTensor& t : tensors) {
    int64_t bytes = dtype_size(t.dtype);
    for (int64_t n : t.shape) {
      if (n < 0 || __builtin_mul_overflow(bytes, n, &bytes)) {
        return error(Code::kInvalidArgument, "writing '{}': tensor '{}' has an impossible shape", path,
                     t.name);
      }
    }
    if (static_cast<uint64_t>(bytes) != t.data.size()) {
      return error(Code::kInvalidArgument,
                   "writing '{}': tensor '{}' has {} bytes, expected {} for its shape", path, t.name,
                   t.data.size(), bytes);
    }
    if (t.name == "__metadata__" || header.contains(t.name)) {
      return error(Code::kInvalidArgument, "writing '{}': the name '{}' is taken", path, t.name);
    }
    header[t.name] = {
        {"dtype", safetensors_dtype(t.dtype)}, {"shape", t.shape}, {"data_offsets", {at, at + bytes}}};
    at += bytes;
  }
  std::string text = header.dump(-1, ' ', false, json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // aligns the data
  const uint64_t length = text.size();
  return write_file_atomically(path, [&](int fd) -> Status {
    DS_TRY(write_fully(fd, std::as_bytes(std::span(&length, 1)), path));
    DS_TRY(write_fully(fd, std::as_bytes(std::span(text.data(), text.size())), path));
    for (const NamedTensor& t : tensors) DS_TRY(write_fully(fd, t.data, path));
    return ok_status();
  });
}

}  // namespace ds
