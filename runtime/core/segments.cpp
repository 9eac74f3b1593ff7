#include "runtime/core/segments.h"

#include <algorithm>

#include "plans/traits.h"
#include "runtime/core/chain.h"

namespace ds {
namespace {

/// Whether the segments have every row that a transfer of the variant reads.
Status check_covered(std::span<const Segment> segments, const Variant& variant, int64_t n) {
  for (const Op& op : variant.ops) {
    if (!is_transfer(op)) continue;
    const OpRows rows = op_rows(op, variant.chunks, n, 0, variant.select_share);
    int64_t at = rows.first;
    for (const Segment& s : segments)
      if (s.source == op.source && s.first_here <= at && at < s.first_here + s.rows)
        at = s.first_here + s.rows;
    if (at >= rows.first + rows.rows) continue;
    return error(Code::kNotFound,
                 "{} of variant '{}' reads tokens {} to {} of the context, but no segment of source {} has "
                 "token {}; publish an entry that has it, and name it in the request",
                 op_label(op, variant.chunks), variant.name, rows.first, rows.first + rows.rows - 1,
                 op.source, at);
  }
  return ok_status();
}

/// Whether an entry has what the variant's transfers read of source 0.
Status has_tensors(const EntryReader& entry, const Variant& variant, std::string_view map) {
  for (const Op& op : variant.ops)
    if (is_transfer(op) && op.source == 0)
      DS_TRY(entry.has(op.payload, op.layer, op.payload == Payload::kE ? map : std::string_view()));
  return ok_status();
}

}  // namespace

Result<Segments> Segments::open(Store& store, const Request& request, const Plan& plan,
                                const Variant& variant, std::string_view map, DType dtype) {
  const auto n = static_cast<int64_t>(request.context.size());
  const std::vector<Source> sources = sources_of(plan);
  Segments opened;
  if (request.segments.empty()) {
    const Source& source = sources.front();
    DS_ASSIGN(Chain chain,
              find_chain(store, request.entry.empty() ? request.context : request.entry,
                         {source.model.fingerprint, source.shape, request.salt, dtype,
                          [&](const EntryReader& entry) { return has_tensors(entry, variant, map); },
                          request.follow}));
    if (chain.links.empty()) return chain.why;
    for (ChainLink& link : chain.links) {
      if (link.begin >= n) break;
      opened.tokens_ = std::min(link.end, n);
      const int64_t there = link.first_row();
      link.entry.end_at(there + opened.tokens_ - link.begin);
      opened.parts_.push_back({0, link.begin, opened.tokens_, there, std::move(link.entry)});
    }
    if (opened.tokens_ < n) opened.shorter_ = chain.why;
    const Segment whole{.rows = n};
    if (opened.tokens_ == n) DS_TRY(check_covered({&whole, 1}, variant, n));
    return opened;
  }
  DS_TRY(check_covered(request.segments, variant, n));
  opened.tokens_ = n;
  ChainHash chain;  // of the context, which what prefixes go on from is a part of
  int64_t chained = 0;
  for (const Segment& s : request.segments) {
    const Source& source = sources[static_cast<size_t>(s.source)];
    const auto from = static_cast<size_t>(s.from);
    const bool prefix = source.rule == SourceRule::kPrefix;
    if (prefix && s.from < chained) chain = {};
    if (prefix) chained = s.from;
    const EntryIdentity identity{
        source.model.fingerprint,
        hash_tokens(s.tokens.subspan(from)),
        request.salt,
        static_cast<int64_t>(s.tokens.size()) - s.from,
        dtype,
        s.from,
        prefix ? chain.up_to(request.context, s.from) : chain_hash(s.tokens.first(from))};
    DS_ASSIGN(EntryReader entry, EntryReader::open(store, identity, source.shape));
    entry.end_at(s.first_there + s.rows);
    opened.parts_.push_back({s.source, s.first_here, s.first_here + s.rows, s.first_there, std::move(entry)});
  }
  return opened;
}

Result<const Variant*> Segments::variant(const Plan& plan, const Variant& chosen, int64_t n, int64_t rate,
                                         int64_t waiting) const {
  if (tokens_ == n && !live()) return &chosen;
  const Variant* found = select_variant(plan, tokens_, rate, waiting, live());
  if (found == nullptr || std::none_of(found->ops.begin(), found->ops.end(), is_transfer))
    return live() ? error(Code::kNotFound,
                          "the sender is still computing {} of the context's {} tokens, and the plan takes "
                          "nothing of it: they are as soon computed here",
                          tokens_, n)
                  : error(Code::kNotFound,
                          "the sender has published {} of the context's {} tokens, and the plan reuses "
                          "nothing of so "
                          "few ({}); publish the rest",
                          tokens_, n, shorter_.message());
  const Segment whole{.rows = tokens_};
  DS_TRY(check_covered({&whole, 1}, *found, tokens_));
  return found;
}

Status Segments::read(Landing& landing, int32_t source, const LandingRows& rows, std::byte* to,
                      const std::function<Status()>& go_on) {
  for (Part& part : parts_) {
    if (part.source != source) continue;
    const int64_t begin = std::max(rows.first, part.begin), end = std::min(rows.first + rows.rows, part.end);
    if (begin >= end) continue;
    LandingRows there = rows;
    there.first = part.there + begin - part.begin;
    there.rows = end - begin;
    const int64_t row_bytes = part.entry.header().row_bytes(rows.kind);
    DS_TRY(landing.read(part.entry, there, to + (begin - rows.first) * row_bytes, go_on));
  }
  return ok_status();
}

bool Segments::live() const {
  return std::any_of(parts_.begin(), parts_.end(), [](const Part& p) { return p.entry.live(); });
}

bool Segments::ready(int32_t source, const LandingRows& rows) const {
  return std::all_of(parts_.begin(), parts_.end(), [&](const Part& part) {
    const int64_t end = std::min(rows.first + rows.rows, part.end);
    return part.source != source || std::max(rows.first, part.begin) >= end ||
           part.entry.ready(rows.kind, rows.layer, part.there + end - part.begin, rows.map);
  });
}

void Segments::when_more(const std::function<void()>& tell) {
  for (Part& part : parts_) part.entry.when_more(tell);
}

int64_t Segments::bytes_read() const {
  int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.entry.bytes_read();
  return bytes;
}

}  // namespace ds
