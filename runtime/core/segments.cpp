#include "runtime/core/segments.h"

#include <algorithm>

#include "plans/traits.h"

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

}  // namespace

Result<Segments> Segments::open(Store& store, const Request& request, const Plan& plan,
                                const Variant& variant, DType dtype) {
  const auto n = static_cast<int64_t>(request.context.size());
  const Segment one{.tokens = request.entry.empty() ? request.context : request.entry, .rows = n};
  const std::span<const Segment> segments = request.segments.empty() ? std::span(&one, 1) : request.segments;
  DS_TRY(check_covered(segments, variant, n));
  Segments opened;
  const std::vector<Source> sources = sources_of(plan);
  ChainHash chain;  // of the context, which what prefixes go on from is a part of
  int64_t chained = 0;
  for (const Segment& s : segments) {
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

int64_t Segments::bytes_read() const {
  int64_t bytes = 0;
  for (const Part& part : parts_) bytes += part.entry.bytes_read();
  return bytes;
}

}  // namespace ds
