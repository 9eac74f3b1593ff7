#include "plans/verify/variant_internal.h"

namespace ds {

Status VariantVerifier::coverage() const {
  std::vector<int32_t> kv(mode_.size(), -1), e(mode_.size(), -1), computed(mode_.size(), -1);
  std::vector<int32_t> aligned(mode_.size(), -1);
  std::vector<int32_t> up(static_cast<size_t>(layers_), -1);
  int32_t embed = -1, head = -1, select = -1;
  auto once = [&](int32_t& slot, int32_t i, int rule, std::string_view what) -> Status {
    if (slot >= 0)
      return fail_op(i, rule, "does again what op {} has done ({}); expected it once", slot, what);
    slot = i;
    return ok_status();
  };
  for (int32_t i = 0; i < ops(); ++i) {
    const Op& o = op(i);
    switch (o.kind) {
      case OpKind::kTransfer:
        for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
          if (o.payload == Payload::kKv) {
            DS_TRY(once(kv[cell(o.layer, c)], i, 15, "KV of this layer and chunk"));
            continue;
          }
          if (!sends_e_[cell(o.layer, c)]) {
            return fail_op(i, 15,
                           "sends E of layer {}, chunk {}, where no tile has a cut or is restored; expected "
                           "E at cuts and for restored layers only",
                           o.layer, c);
          }
          DS_TRY(once(e[cell(o.layer, c)], i, 15, "E of this layer and chunk"));
        }
        break;
      case OpKind::kEmbed:
        if (o.rows != Rows::kChunk) DS_TRY(once(embed, i, 17, "the suffix's embeddings"));
        break;
      case OpKind::kRecompute:
      case OpKind::kPrefill: {
        bool whole = o.kind == OpKind::kPrefill || o.rows == Rows::kSelected;
        for (int32_t c = whole ? 0 : o.chunk; c < (whole ? 1 : o.chunk_end()); ++c) {
          if (!mode(o.layer, c).computes) {
            return fail_op(i, 15,
                           "recomputes layer {}, chunk {}, whose tile says {}; expected a recompute tile",
                           o.layer, c, mode(o.layer, c).name);
          }
          if (selected(o.layer, c) != (o.rows == Rows::kSelected)) {
            return fail_op(i, 15, "recomputes {} of layer {}, whose tile says {}; expected {}",
                           o.rows == Rows::kSelected ? "selected tokens" : "every token", o.layer,
                           mode(o.layer, c).name,
                           o.rows == Rows::kSelected ? "a select tile" : "selected rows");
          }
          DS_TRY(once(computed[cell(o.layer, c)], i, 15, "recompute this layer and chunk"));
        }
        if (o.kind == OpKind::kRecompute) break;
        DS_TRY(once(up[static_cast<size_t>(o.layer)], i, 17, "this layer of the suffix"));
        break;
      }
      case OpKind::kSuffix:
        DS_TRY(once(up[static_cast<size_t>(o.layer)], i, 17, "this layer of the suffix"));
        break;
      case OpKind::kHead:
        DS_TRY(once(head, i, 17, "the head"));
        break;
      case OpKind::kSelect:
        if (!selected(o.layer, o.chunk) || o.layer != 1) {
          return fail_op(i, 15, "chooses tokens at layer {}; expected a select tile, and layer 1", o.layer);
        }
        DS_TRY(once(select, i, 15, "choose tokens"));
        break;
      case OpKind::kAlign:
        for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
          if (!v_.aligns() || !sends_e_[cell(o.layer, c)]) {
            return fail_op(
                i, 20,
                "maps hidden states of layer {}, chunk {}, {}; expected align ops where the "
                "receiver maps what it is sent",
                o.layer, c,
                v_.aligns() ? "which nobody sends" : "but its variant has no maps for the receiver");
          }
          DS_TRY(once(aligned[cell(o.layer, c)], i, 20, "map this layer and chunk"));
        }
        break;
    }
  }
  for (int32_t l = 0; l < layers_; ++l) {
    for (int32_t c = 0; c < chunks_; ++c) {
      size_t at = cell(l, c);
      const ModeTraits& m = mode(l, c);
      if (m.sends_kv && kv[at] < 0) {
        return fail(15,
                    "{} layer {}, chunk {}, but no op transfers its KV; expected one 'transfer kv' for it",
                    m.sends, l, c);
      }
      if (m.computes && computed[at] < 0) {
        return fail(15, "{} layer {}, chunk {}, but no op does; expected one 'recompute' or 'prefill' for it",
                    m.does, l, c);
      }
      if (sends_e_[at] && e[at] < 0) {
        return fail(15, "{} layer {}, chunk {}, but no op sends its E; expected one 'transfer e' for it",
                    m.sends, l, c);
      }
      if (sends_e_[at] && v_.aligns() && aligned[at] < 0) {
        return fail(20,
                    "is sent E of layer {}, chunk {}, but no op maps it; expected one 'align' for it: its "
                    "cuts are aligned by the receiver",
                    l, c);
      }
    }
    if (up[static_cast<size_t>(l)] < 0) {
      return fail(
          17, "never takes the suffix through layer {}; expected one 'suffix' or 'prefill' op for each layer",
          l);
    }
    if (l > 0 && up[static_cast<size_t>(l)] < up[static_cast<size_t>(l) - 1]) {
      return fail_op(up[static_cast<size_t>(l)], 17,
                     "takes the suffix through layer {} before {} does so for layer {}; "
                     "expected ascending layers",
                     l, op_name(up[static_cast<size_t>(l) - 1]), l - 1);
    }
  }
  if (selects_ && select < 0)
    return fail(15, "has a select tile, but no op chooses its tokens; expected one 'select' at layer 1");
  if (embed < 0)
    return fail(17, "never embeds the suffix; expected one 'embed' op with rows 'suffix' or 'all'");
  if (head < 0) return fail(17, "has no head; expected one 'head' as its last op");
  if (head != ops() - 1) {
    return fail_op(head, 17,
                   "is not the last of {} ops; expected the head at the end: nothing after it can matter",
                   ops());
  }
  return ok_status();
}

}  // namespace ds
