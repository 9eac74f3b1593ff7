#include "plans/verify/variant_internal.h"

namespace ds {
namespace {

/// "chunk, suffix or all", of a set of bit()s.
std::string rows_text(uint8_t rows) {
  std::vector<std::string_view> names;
  for (Rows r : {Rows::kChunk, Rows::kSuffix, Rows::kAll, Rows::kSelected})
    if ((rows & bit(r)) != 0) names.push_back(rows_name(r));
  std::string text;
  for (size_t k = 0; k < names.size(); ++k)
    text += fmt::format("{}{}", k == 0 ? "" : k + 1 < names.size() ? ", " : " or ", names[k]);
  return text;
}

}  // namespace

Status VariantVerifier::fields(int32_t i) const {
  const Op& o = op(i);
  std::string where = fmt::format("op {}", i);
  if (!is_known(o.kind))
    return unknown(where, "kind", static_cast<int>(o.kind), static_cast<int>(kOpKinds) - 1);
  if (static_cast<size_t>(o.payload) >= kPayloads)
    return unknown(where, "payload", static_cast<int>(o.payload), static_cast<int>(kPayloads) - 1);
  if (is_transfer(o) != (o.payload != Payload::kNone)) {
    return fail(21, "has op {}, which {}; expected a payload of every transfer, and of nothing else", i,
                is_transfer(o) ? "transfers nothing" : "transfers nothing but has a payload");
  }
  const OpTraits& traits = traits_of(o);
  if (o.rows > Rows::kSelected)
    return unknown(where, "rows", static_cast<int>(o.rows), static_cast<int>(Rows::kSelected));
  if (o.queries > Queries::kLast) {
    return unknown(where, "queries", static_cast<int>(o.queries), static_cast<int>(Queries::kLast));
  }
  if (o.stream < 0 || static_cast<size_t>(o.stream) >= streams_) {
    return fail_op(i, 10, "is on stream {}; expected 0 to {}", o.stream, streams_ - 1);
  }
  StreamKind stream = v_.streams[static_cast<size_t>(o.stream)].kind;
  if (stream != traits.stream) {
    return fail_op(i, 8, "is on stream {}, a {} stream; expected a {} stream", o.stream,
                   stream_kind_name(stream), stream_kind_name(traits.stream));
  }
  if (traits.layered ? o.layer < 0 || o.layer > last_layer_ : o.layer != -1) {
    return fail_op(i, 10, "has layer {}; expected {}", o.layer,
                   traits.layered ? fmt::format("0 to {}", last_layer_) : std::string("-1: it has no layer"));
  }
  uint8_t rows = traits.rows;
  if (!selects_) rows &= static_cast<uint8_t>(~bit(Rows::kSelected));
  if ((rows & bit(o.rows)) == 0)
    return fail_op(i, 16, "works on {} rows; expected {}", rows_name(o.rows), rows_text(rows));
  if (o.rows == Rows::kChunk ? o.chunk < 0 || o.chunk >= chunks_ : o.chunk != -1) {
    return fail_op(i, 10, "has chunk {}; expected {}", o.chunk,
                   o.rows == Rows::kChunk ? fmt::format("0 to {}", chunks_ - 1)
                                          : fmt::format("-1: it works on {} rows", rows_name(o.rows)));
  }
  if (o.last_chunk != -1 && (o.rows != Rows::kChunk || o.last_chunk <= o.chunk || o.last_chunk >= chunks_)) {
    return fail_op(
        i, 10,
        "has last chunk {} behind chunk {}; expected -1 (one chunk), or more than its chunk and at most {}",
        o.last_chunk, o.chunk, chunks_ - 1);
  }
  if (o.rows == Rows::kAll && chunks_ != 1) {
    return fail_op(i, 16, "works on all rows of a context in {} chunks; expected one chunk", chunks_);
  }
  if (o.buffer < 0 || static_cast<size_t>(o.buffer) >= v_.buffers.size()) {
    return fail_op(i, 10, "has buffer {}; expected 0 to {}", o.buffer, v_.buffers.size() - 1);
  }
  const Buffer& buffer = v_.buffers[static_cast<size_t>(o.buffer)];
  const BufferKind kind = traits.buffer;
  if (buffer.kind != kind) {
    return fail_op(i, 10, "has buffer {}, a {} buffer; expected a {} buffer", o.buffer,
                   buffer_kind_name(buffer.kind), buffer_kind_name(kind));
  }
  if (kind == BufferKind::kKv && buffer.layer != o.layer) {
    return fail_op(i, 10, "has buffer {}, the cache of layer {}; expected buffer {}, the cache of layer {}",
                   o.buffer, buffer.layer, kv_buffer_[static_cast<size_t>(o.layer)], o.layer);
  }
  if ((o.rows != Rows::kSuffix && !buffer.with_context) ||
      ((o.rows == Rows::kSuffix || o.rows == Rows::kAll) && !buffer.with_suffix)) {
    return fail_op(i, 10,
                   "works on {} rows of buffer {}, which has {} rows only; expected a buffer that has them",
                   rows_name(o.rows), o.buffer, buffer.with_context ? "context" : "suffix");
  }
  DS_TRY(source(i));
  DS_TRY(queries(i));
  for (size_t w = 0; w < o.waits.size(); ++w) {
    if (o.waits[w] < 0 || o.waits[w] >= i) {
      return fail_op(i, 11,
                     "waits for op {}; expected an op before itself (0 to {}): waits must not form circles",
                     o.waits[w], i - 1);
    }
    if (w > 0 && o.waits[w] <= o.waits[w - 1]) {
      return fail_op(i, 11, "waits for op {} after op {}; expected ascending indices, each once", o.waits[w],
                     o.waits[w - 1]);
    }
  }
  return ok_status();
}

Status VariantVerifier::source(int32_t i) const {
  const Op& o = op(i);
  if (!is_transfer(o)) {
    if (o.source == 0) return ok_status();
    return fail_op(i, 21, "has source {}, but transfers nothing; expected 0", o.source);
  }
  if (o.source < 0 || static_cast<size_t>(o.source) >= sources_.size())
    return fail_op(i, 21, "reads source {}; expected 0 to {}", o.source, sources_.size() - 1);
  const Shape& theirs = sources_[static_cast<size_t>(o.source)].shape;
  for (const ShapeField& field : shape_fields_of(o.payload)) {
    if (theirs.*field.value == shape_.*field.value) continue;
    return fail_op(i, 21,
                   "reads source {}, whose {} is {}, the receiver's {}; expected the same: it decides "
                   "what a row is",
                   o.source, field.name, theirs.*field.value, shape_.*field.value);
  }
  return ok_status();
}

Status VariantVerifier::queries(int32_t i) const {
  const Op& o = op(i);
  Queries expected = Queries::kNone;
  const char* why = "it has no queries";
  const bool last = o.layer == last_layer_;
  const QueriesRule rule = traits_of(o).queries;
  if (rule == QueriesRule::kNone) {
    // As it is said above.
  } else if (o.rows == Rows::kSelected) {
    expected = last ? Queries::kNone : Queries::kAll;
    why = last ? "nobody reads what leaves the last layer" : "the layer above is recomputed from it";
  } else if (rule == QueriesRule::kIfRead) {
    bool on = goes_on(o.layer, o.chunk);
    for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
      if (goes_on(o.layer, c) == on) continue;
      return fail_op(i, 16,
                     "covers chunks {} and {}, of which one goes on to the layer above and one does not; "
                     "expected an op for each",
                     o.chunk, c);
    }
    expected = on ? Queries::kAll : Queries::kNone;
    why = on ? "the layer above is recomputed from it" : "nobody reads what leaves this layer";
  } else if (last) {
    expected = Queries::kLast;
    why = "only the last suffix token goes on to the head";
  } else if (rule == QueriesRule::kSuffix) {
    expected = Queries::kAll;
    why = "every suffix token goes on";
  } else {
    bool on = goes_on(o.layer, 0);
    expected = on ? Queries::kAll : Queries::kSuffix;
    why = on ? "the layer above is recomputed from it" : "only the suffix goes on from this layer";
  }
  if (o.queries != expected) {
    return fail_op(i, 16, "has queries '{}'; expected '{}': {}", queries_name(o.queries),
                   queries_name(expected), why);
  }
  return ok_status();
}

Status VariantVerifier::times() const {
  std::vector<int32_t> previous(streams_, -1);
  int64_t makespan = 0;
  for (int32_t i = 0; i < ops(); ++i) {
    const Op& o = op(i);
    if (o.start_ns < 0 || o.duration_ns < 0 || o.start_ns > INT64_MAX - o.duration_ns) {
      return fail_op(i, 12, "starts at {} ns and takes {} ns; expected 0 or more, and an end below 2^63",
                     o.start_ns, o.duration_ns);
    }
    if (i > 0 && o.start_ns < op(i - 1).start_ns) {
      return fail_op(i, 12, "starts at {} ns, before {} at {} ns; expected ops in the order of their starts",
                     o.start_ns, op_name(i - 1), op(i - 1).start_ns);
    }
    auto after = [&](int32_t before, const char* why) -> Status {
      const Op& b = op(before);
      if (o.start_ns >= b.start_ns + b.duration_ns) return ok_status();
      return fail_op(i, 12, "starts at {} ns, but {} {} and ends at {} ns; expected a start at or after that",
                     o.start_ns, op_name(before), why, b.start_ns + b.duration_ns);
    };
    int32_t& before = previous[static_cast<size_t>(o.stream)];
    if (before >= 0) DS_TRY(after(before, "holds the same stream"));
    for (int32_t w : o.waits) DS_TRY(after(w, "is one of its waits"));
    before = i;
    makespan = std::max(makespan, o.start_ns + o.duration_ns);
  }
  if (v_.makespan_ns != makespan) {
    return fail(12, "states a makespan of {} ns; expected {} ns, the end of its last op", v_.makespan_ns,
                makespan);
  }
  if (v_.lower_bound_ns < 0 || v_.lower_bound_ns > makespan) {
    return fail(12, "states a lower bound of {} ns; expected 0 to its makespan, {} ns", v_.lower_bound_ns,
                makespan);
  }
  if (v_.proven_optimal && v_.lower_bound_ns != makespan) {
    return fail(12,
                "is said to be proven optimal with a lower bound of {} ns; expected it to equal the "
                "makespan, {} ns",
                v_.lower_bound_ns, makespan);
  }
  return ok_status();
}

}  // namespace ds
