"""Makes tilings.json and tilings.safetensors of every model here that has a sender: what transformers, in float32,
computes for tilings of the layer x token plane in several chunks; and select.json and select.safetensors, the same for
a share of the tokens recomputed. The models themselves are make_models.py's.

    python make_tilings.py [OUT]        OUT: this folder
"""
import json, math, os, sys
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from safetensors.torch import save_file
from transformers import DynamicCache
from make_models import MODELS, full, load

CONTEXT, SUFFIX, CHUNKS = 200, 5, 3
SHARES = [0.1, 0.3, 1.0]


def begin(chunk):
    """The first token of a chunk: multiples of 64, as plans/plan.h says."""
    return CONTEXT if chunk >= CHUNKS else CONTEXT * chunk // CHUNKS // 64 * 64


class Mix:
    """Stands in for a cache in one layer's call: the sender's rows, but where the receiver computes its own."""
    def __init__(self, k, v, rows): self.k, self.v, self.rows = k.clone(), v.clone(), rows
    def update(self, k, v, layer, *a, **kw):
        self.k[:, :, self.rows], self.v[:, :, self.rows] = k, v
        return self.k, self.v
    def get_seq_length(self, *a): return 0


@torch.no_grad()
def answer(R, S, context, suffix, tiles, align=lambda layer, x: x):
    """Cell by cell: `x` holds, for each token, the hidden states that enter the layer, where somebody computes it.
    `align`: what becomes of S's that enter a layer before R goes on from them."""
    c = torch.tensor([context]); n = len(context)
    s = S(c, use_cache=True, output_hidden_states=True)
    embedded = R.model.embed_tokens(c)
    sent = [embedded] + [align(l, s.hidden_states[l]) for l in range(1, R.config.num_hidden_layers)]
    x, known = torch.zeros_like(embedded), torch.full((n,), -1)
    mix = DynamicCache(config=R.config)
    for l in range(R.config.num_hidden_layers):
        rows = []
        for t in tiles:
            if t["mode"] == "load" or not t["layers"][0] <= l <= t["layers"][1]: continue
            span = list(range(begin(t["chunks"][0]), begin(t["chunks"][1] + 1)))
            rows += span
            if t["mode"] == "restore":  # what leaves the layer is nobody's
                x[:, span], known[span] = sent[l][:, span], l
                continue
            if l > t["layers"][0]: continue
            if t["cut"]: x[:, span], known[span] = sent[l][:, span], l
            elif l == 0: x[:, span], known[span] = embedded[:, span], 0
        rows.sort()
        k, v = s.past_key_values.layers[l].keys, s.past_key_values.layers[l].values
        if rows:
            assert (known[rows] == l).all(), "a tile that stands on nothing"
            positions = torch.tensor([rows])
            mask = torch.where(torch.arange(n)[None] > positions[0][:, None], float("-inf"), 0.0)[None, None]
            cache = Mix(k, v, rows)
            y = R.model.layers[l](x[:, rows], attention_mask=mask, position_ids=positions, past_key_values=cache,
                                  position_embeddings=R.model.rotary_emb(x, positions), use_cache=True)
            x[:, rows], known[rows] = (y[0] if isinstance(y, tuple) else y), l + 1
            for t in tiles:
                if t["mode"] == "restore" and t["layers"][0] <= l <= t["layers"][1]:
                    known[begin(t["chunks"][0]):begin(t["chunks"][1] + 1)] = -1
            k, v = cache.k, cache.v
        mix.update(k, v, l)
    return R(torch.tensor([suffix]), past_key_values=mix, use_cache=True).logits[0, -1]


@torch.no_grad()
def select(R, S, context, suffix, share):
    """Layer 0 by R; at layer 1 the share of the tokens whose K deviates most from S's goes on through R's layers, each
    over S's rows of the tokens that do not. The logits, and those tokens."""
    c = torch.tensor([context]); n = len(context)
    s = S(c, use_cache=True).past_key_values

    def layer(l, x, rows):
        positions = torch.tensor([rows])
        mask = torch.where(torch.arange(n)[None] > positions[0][:, None], float("-inf"), 0.0)[None, None]
        cache = Mix(s.layers[l].keys, s.layers[l].values, rows)
        y = R.model.layers[l](x, attention_mask=mask, position_ids=positions, past_key_values=cache,
                              position_embeddings=R.model.rotary_emb(x, positions), use_cache=True)
        return (y[0] if isinstance(y, tuple) else y), cache

    every = list(range(n))
    mix = DynamicCache(config=R.config)
    x, cache = layer(0, R.model.embed_tokens(c), every)
    mix.update(cache.k, cache.v, 0)
    own = layer(1, x, every)[1].k
    deviation = ((own - s.layers[1].keys) ** 2).sum(dim=(0, 1, 3))
    count = math.ceil(share * n - 1e-6)
    order = torch.sort(deviation, descending=True, stable=True)
    if count < n and order.values[0] > 1e-6:  # no matter how it is rounded; S = R leaves rounding only
        assert order.values[count - 1] / order.values[count] > 1 + 1e-4, "too close a choice"
    rows = sorted(order.indices[:count].tolist())
    x = x[:, rows]
    for l in range(1, R.config.num_hidden_layers):
        x, cache = layer(l, x, rows)
        mix.update(cache.k, cache.v, l)
    return R(torch.tensor([suffix]), past_key_values=mix, use_cache=True).logits[0, -1], rows


def tile(mode, first, last, first_chunk, last_chunk, cut=False):
    return dict(mode=mode, layers=[first, last], chunks=[first_chunk, last_chunk], cut=cut)


def tilings(layers):
    """From the bottom up, in the order of their first layers."""
    top = layers - 1
    yield "a band on a cut", [tile("load", 0, 0, 0, 2), tile("recompute", 1, 2, 0, 2, True), tile("load", 3, top, 0, 2)]
    yield "a band whose first chunk comes from the embeddings", [
        tile("recompute", 0, top, 0, 0), tile("load", 0, 0, 1, 2), tile("recompute", 1, 2, 1, 2, True), tile("load", 3, top, 1, 2)]
    yield "a band whose first chunk goes on to the top", [
        tile("load", 0, 0, 0, 2), tile("recompute", 1, 2, 0, 2, True), tile("recompute", 3, top, 0, 0), tile("load", 3, top, 1, 2)]
    yield "stairs on both sides", [
        tile("recompute", 0, top, 0, 0), tile("load", 0, 0, 1, 2), tile("recompute", 1, 2, 1, 2, True),
        tile("recompute", 3, top, 1, 1), tile("load", 3, top, 2, 2)]
    yield "a split along the tokens", [tile("recompute", 0, top, 0, 1), tile("load", 0, top, 2, 2)]
    yield "the last chunk alone, from a cut", [
        tile("load", 0, 0, 0, 2), tile("load", 1, top, 0, 1), tile("recompute", 1, top, 2, 2, True)]
    yield "two cuts, one over the other", [
        tile("load", 0, 0, 0, 2), tile("recompute", 1, 1, 0, 2, True), tile("load", 2, 2, 0, 2), tile("recompute", 3, top, 0, 2, True)]
    yield "everything restored", [tile("restore", 0, top, 0, 2)]
    yield "restored up to the top", [tile("load", 0, 0, 0, 2), tile("restore", 1, top, 0, 2)]
    yield "a restored layer between loads", [
        tile("load", 0, 1, 0, 2), tile("restore", 2, 2, 0, 2), tile("load", 3, top, 0, 2)]
    yield "restored, recomputed and loaded side by side", [
        tile("recompute", 0, top, 0, 0), tile("restore", 0, top, 1, 1), tile("load", 0, 1, 2, 2), tile("restore", 2, top, 2, 2)]
    yield "a band on a cut over restored layers", [
        tile("restore", 0, 1, 0, 2), tile("recompute", 2, top, 0, 2, True)]
    yield "nothing but loads, in pieces", [tile("load", 0, 1, 0, 0), tile("load", 0, 1, 1, 2), tile("load", 2, top, 0, 2)]


def main(out):
    for name, spec in MODELS.items():
        if not spec["sender"]: continue
        folder = os.path.join(out, name)
        R, S = load(f"{folder}/receiver"), load(f"{folder}/sender")
        g = torch.Generator().manual_seed(spec["seed"] + 300)
        tokens = torch.randint(0, spec["shape"]["vocab_size"], (CONTEXT + SUFFIX,), generator=g).tolist()
        context, suffix = tokens[:CONTEXT], tokens[CONTEXT:]
        whole = full(R, context, suffix)
        cases, tensors, seen = [], {}, []
        for what, tiles in tilings(R.config.num_hidden_layers):
            same = answer(R, R, context, suffix, tiles)  # the law that S = R gives the full prefill
            assert (same - whole).abs().max() < 2e-5, (name, what)
            logits = answer(R, S, context, suffix, tiles)
            assert all((logits - other).abs().max() > 1e-2 for other in seen), f"{name}: '{what}' could be another one"
            seen.append(logits)
            tensors[f"tiling.{len(cases)}"] = logits.contiguous()
            cases.append(dict(what=what, tensor=f"tiling.{len(cases)}", tiles=tiles))
        save_file(tensors, f"{folder}/tilings.safetensors")
        os.chmod(f"{folder}/tilings.safetensors", 0o644)
        with open(f"{folder}/tilings.json", "w") as f:
            f.write(f'{{\n "tokens": {json.dumps(tokens)},\n "context": {CONTEXT}, "suffix": {SUFFIX}, "chunks": {CHUNKS},\n "cases": [\n  '
                    + ",\n  ".join(json.dumps(c) for c in cases) + "\n ]\n}\n")
        tokens = torch.randint(0, spec["shape"]["vocab_size"], (CONTEXT + SUFFIX,), generator=g).tolist()
        context, suffix = tokens[:CONTEXT], tokens[CONTEXT:]
        whole = full(R, context, suffix)
        selections, tensors = [], {}
        for share in SHARES:
            same, _ = select(R, R, context, suffix, share)
            assert (same - whole).abs().max() < 2e-5, (name, share)
            logits, rows = select(R, S, context, suffix, share)
            assert share < 1 or (logits - whole).abs().max() < 2e-5, name
            assert all((logits - other).abs().max() > 1e-2 for other in seen), f"{name}: {share} could be another one"
            seen.append(logits)
            tensors[f"select.{len(selections)}"] = logits.contiguous()
            selections.append(dict(share=share, tensor=f"select.{len(selections)}", rows=rows))
        save_file(tensors, f"{folder}/select.safetensors")
        os.chmod(f"{folder}/select.safetensors", 0o644)
        with open(f"{folder}/select.json", "w") as f:
            f.write(f'{{\n "tokens": {json.dumps(tokens)},\n "context": {CONTEXT}, "suffix": {SUFFIX},\n "cases": [\n  '
                    + ",\n  ".join(json.dumps(c) for c in selections) + "\n ]\n}\n")
        print(f"{name}: {len(cases)} tilings, {len(selections)} selections")


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
