#include "runtime/store/live_entry.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <tuple>

#include "runtime/store/entry_header_internal.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr size_t kPartFront = 24;
/// Small enough that a reader can use it soon, large enough to be read at the link's rate.
constexpr int64_t kPartBytes = int64_t{1} << 20;

std::string random_run() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

/// What stands behind a part's head, and that a head of this entry, number and content has only.
std::string seal(const std::string* signing, const std::string& header_seal, uint64_t record,
                 std::string_view head) {
  std::string sealed = header_seal;
  sealed.append(reinterpret_cast<const char*>(&record), sizeof record);
  sealed += head;
  if (signing != nullptr) {
    Hmac mac(Hmac(*signing).hex("droidspeak live part"));
    mac.update(sealed);
    const auto value = mac.value();
    return {reinterpret_cast<const char*>(value.data()), value.size()};
  }
  const uint64_t sum = checksum64(std::as_bytes(std::span(sealed.data(), sealed.size())));
  return {reinterpret_cast<const char*>(&sum), sizeof sum};
}

}  // namespace

Result<std::unique_ptr<LiveEntryWriter>> LiveEntryWriter::begin(Store& store, const EntryIdentity& identity,
                                                                const ModelIdentity& sender,
                                                                const Shape& shape,
                                                                std::vector<LiveTensor> tensors) {
  std::unique_ptr<LiveEntryWriter> writer(new LiveEntryWriter());
  EntryHeader& h = writer->header_;
  h.identity = identity;
  h.sender = sender;
  h.shape = shape;
  h.is_signed = store.signing() != nullptr;
  for (LiveTensor& t : tensors)
    h.tensors.push_back({.kind = t.kind, .layer = t.layer, .map = std::move(t.map)});
  std::sort(h.tensors.begin(), h.tensors.end(), laid_out_before);
  DS_TRY(check_published(h));
  for (EntryTensor& t : h.tensors) t.bytes = identity.tokens * h.row_bytes(t.kind);
  writer->rows_.assign(h.tensors.size(), 0);
  writer->signing_ = store.signing();
  const std::string header = header_bytes(h, writer->signing_.get(), random_run());
  writer->header_seal_ = sha256_hex(header);
  DS_ASSIGN(writer->log_, store.begin_live(identity.key(), header, identity.names));
  writer->records_ = 1;
  return writer;
}

const EntryTensor* LiveEntryWriter::find(const LiveTensor& tensor, size_t& index) const {
  const EntryTensor* found = header_.find(tensor.kind, tensor.layer, tensor.map);
  if (found != nullptr) index = static_cast<size_t>(found - header_.tensors.data());
  return found;
}

int64_t LiveEntryWriter::rows(const LiveTensor& tensor) const {
  size_t index = 0;
  return find(tensor, index) == nullptr ? 0 : rows_[index];
}

Status LiveEntryWriter::add(const LiveTensor& tensor, std::span<const std::byte> rows) {
  size_t index = 0;
  const EntryTensor* of = find(tensor, index);
  if (of == nullptr)
    return error(Code::kInvalidArgument, "a live entry was begun without {}",
                 tensor_name(tensor.kind, tensor.layer, tensor.map));
  const int64_t row = header_.row_bytes(of->kind), tokens = header_.identity.tokens;
  const auto bytes = static_cast<int64_t>(rows.size());
  const int64_t end = rows_[index] + bytes / row;
  if (bytes % row != 0 || end > tokens || (end % kChecksumRows != 0 && end != tokens))
    return error(
        Code::kInvalidArgument,
        "a live entry: {} bytes of {} behind {} rows of {}; expected whole rows of {}, a multiple of "
        "{} of them or all that are left",
        bytes, tensor_name(of->kind, of->layer, of->map), rows_[index], tokens, row, kChecksumRows);
  BlockChecksum checksum(signing_.get());
  const int64_t step = std::max<int64_t>(1, kPartBytes / row / kChecksumRows) * kChecksumRows;
  while (rows_[index] < end) {
    const int64_t first = rows_[index], count = std::min(step, end - first);
    const auto part = rows.first(static_cast<size_t>(count * row));
    rows = rows.subspan(part.size());
    std::string head;
    const auto put = [&](auto v) { head.append(reinterpret_cast<const char*>(&v), sizeof v); };
    put(static_cast<uint32_t>(index)), put(uint32_t{0}), put(first), put(count);
    const auto block = static_cast<size_t>(kChecksumRows * row);
    for (size_t at = 0; at < part.size(); at += block) {
      checksum.reset();
      checksum.update(part.subspan(at, std::min(block, part.size() - at)));
      put(checksum.value());
    }
    head += seal(signing_.get(), header_seal_, records_, head);
    DS_TRY(log_->append(head, part));
    ++records_;
    rows_[index] += count;
  }
  return ok_status();
}

Result<std::shared_ptr<LiveEntry>> LiveEntry::open(Store& store, const ObjectRef& found,
                                                   const std::string& name, const Shape& shape) {
  DS_TRY(check_shape(shape, "following an entry: shape"));
  const std::string where = fmt::format("live entry '{}' in '{}'", found.key, store.url());
  auto log = store.follow(found);
  if (!log.ok()) return log.status().with_context(where);
  std::shared_ptr<LiveEntry> live(new LiveEntry(std::move(*log)));
  const auto begin = [&]() -> Status {
    std::vector<LiveRecord> records;
    bool ended = false;
    while (records.empty()) {
      DS_ASSIGN(LiveObject::News news, live->log_->wait({}));
      records = std::move(news.records);
      ended = news.ended;
      if (records.empty() && ended) return error(Code::kCorrupt, "it ends before its header");
    }
    std::string& header = records.front().head;
    live->header_seal_ = sha256_hex(header);
    live->signing_ = store.signing();
    const auto size = static_cast<int64_t>(header.size());
    DS_ASSIGN(live->header_, read_header(
                                 std::move(header), size, [](std::string&, int64_t) { return ok_status(); },
                                 live->signing_.get(), Signature::kOfStore,
                                 [&](EntryHeader& h) { return check_named(h, found, name, shape); }, true));
    live->tensors_.resize(live->header_.tensors.size());
    live->records_ = 1;
    for (size_t i = 1; i < records.size(); ++i) DS_TRY(live->take(records[i]));
    if (ended) live->end(ok_status());
    return ok_status();
  };
  if (Status s = begin(); !s.ok()) return s.with_context(where);
  if (!live->over_) {
    try {
      live->follower_ = std::thread([l = live.get()] { l->follow(); });
    } catch (const std::system_error& e) {
      return error(Code::kExhausted, "starting a thread that follows {}: {}", where, e.what());
    }
  }
  return live;
}

LiveEntry::~LiveEntry() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  log_->stop();
  if (follower_.joinable()) follower_.join();
}

void LiveEntry::follow() {
  const auto stopped = [this]() -> Status {
    std::lock_guard lock(mutex_);
    return stopping_ ? error(Code::kExhausted, "it is not followed any more") : ok_status();
  };
  int64_t heard = now_ns();
  for (bool over = false; !over;) {
    auto news = log_->wait(stopped);
    Status status = news.status();
    if (news.ok()) {
      for (const LiveRecord& record : news->records)
        if (status.ok()) status = take(record);
      if (!news->records.empty()) heard = now_ns();
      if (status.ok() && now_ns() - heard > kLiveSilenceS * 1'000'000'000)
        status = error(Code::kExhausted, "its writer has said nothing for {} s", kLiveSilenceS);
    }
    over = !status.ok() || news->ended;
    {
      std::lock_guard lock(mutex_);
      if (over) end(std::move(status));
      changed_.notify_all();
    }
    std::lock_guard lock(telling_);
    if (tell_) tell_();
  }
}

void LiveEntry::end(Status status) {
  failure_ = status.ok() ? error(Code::kCorrupt, "it has ended without all of its parts") : std::move(status);
  over_ = true;
}

Status LiveEntry::take(const LiveRecord& record) {
  const auto number = static_cast<uint64_t>(records_++);
  const auto bad = [&](std::string_view what) {
    return error(Code::kCorrupt, "its record {} is no part of it: {}", number, what);
  };
  const size_t sealed = signing_ != nullptr ? size_t{Hmac::kBytes} : sizeof(uint64_t);
  const std::string_view head = record.head;
  if (head.size() < kPartFront + sealed) return bad("it is too short");
  const std::string_view said = head.substr(0, head.size() - sealed);
  const std::string right = seal(signing_.get(), header_seal_, number, said);
  const auto raw = [](std::string_view text) {
    return std::span(reinterpret_cast<const unsigned char*>(text.data()), text.size());
  };
  if (!same_secret(raw(head.substr(said.size())), raw(right)))
    return bad(signing_ != nullptr ? "it is not signed by the store's key" : "its checksum is wrong");
  uint32_t index = 0;
  Part part{.record = static_cast<int64_t>(number)};
  std::memcpy(&index, said.data(), sizeof index);
  std::memcpy(&part.first, said.data() + 8, sizeof part.first);
  std::memcpy(&part.rows, said.data() + 16, sizeof part.rows);
  std::lock_guard lock(mutex_);
  if (index >= tensors_.size()) return bad(fmt::format("it is of tensor {} of {}", index, tensors_.size()));
  Tensor& tensor = tensors_[index];
  const EntryTensor& of = header_.tensors[index];
  const int64_t tokens = header_.identity.tokens;
  if (part.first != tensor.rows || part.rows < 1 || part.rows > tokens - part.first ||
      ((part.first + part.rows) % kChecksumRows != 0 && part.first + part.rows != tokens))
    return bad(fmt::format("it is {} rows from row {} on of {}, which has {} of {} so far", part.rows,
                           part.first, tensor_name(of.kind, of.layer, of.map), tensor.rows, tokens));
  const int64_t blocks = checksum_blocks(part.rows);
  if (record.bytes != part.rows * header_.row_bytes(of.kind) ||
      said.size() != kPartFront + 8 * static_cast<size_t>(blocks))
    return bad(fmt::format("it has {} bytes and {} of checksums", record.bytes, said.size() - kPartFront));
  // As parts bring them: what a header says of all of them together costs nobody anything.
  const auto at = static_cast<size_t>(part.first / kChecksumRows);
  tensor.checksums.resize(at + static_cast<size_t>(blocks));
  std::memcpy(tensor.checksums.data() + at, said.data() + kPartFront, 8 * static_cast<size_t>(blocks));
  tensor.rows += part.rows;
  tensor.parts.push_back(part);
  return ok_status();
}

bool LiveEntry::ready(size_t tensor, int64_t rows) const {
  std::lock_guard lock(mutex_);
  return over_ || tensors_[tensor].rows >= rows;
}

void LiveEntry::when_more(std::function<void()> tell) {
  std::lock_guard lock(telling_);
  tell_ = std::move(tell);
}

uint64_t LiveEntry::checksum(size_t tensor, int64_t block) const {
  std::lock_guard lock(mutex_);
  return tensors_[tensor].checksums[static_cast<size_t>(block)];
}

Status LiveEntry::read(size_t tensor, int64_t offset, std::span<std::byte> out,
                       const StoreObject::Arrived& arrived, const std::function<Status()>& go_on) {
  const EntryTensor& of = header_.tensors[tensor];
  const int64_t row = header_.row_bytes(of.kind);
  while (!out.empty()) {
    Part part;
    {
      std::unique_lock lock(mutex_);
      const Tensor& t = tensors_[tensor];
      while (t.rows * row <= offset) {
        if (over_)
          return failure_.with_context(
              fmt::format("waiting for row {} of {}", offset / row, tensor_name(of.kind, of.layer, of.map)));
        changed_.wait_for(lock, std::chrono::milliseconds(50));
        lock.unlock();
        if (go_on) DS_TRY(go_on());
        lock.lock();
      }
      part = *std::prev(std::upper_bound(t.parts.begin(), t.parts.end(), offset / row,
                                         [](int64_t at, const Part& p) { return at < p.first; }));
    }
    const int64_t begin = part.first * row, left = begin + part.rows * row - offset;
    const auto some = out.first(std::min(out.size(), static_cast<size_t>(left)));
    DS_ASSIGN(auto object, log_->payload(part.record));
    DS_TRY(object->read_by_parts(offset - begin, some, arrived));
    offset += static_cast<int64_t>(some.size());
    out = out.subspan(some.size());
  }
  return ok_status();
}

}  // namespace ds
