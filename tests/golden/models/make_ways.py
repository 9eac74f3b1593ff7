"""Makes ways.json of every model here that has a sender: the answers, divergences, entropies and margins that
transformers, in float32, gives over the caches that a profile compares. The models themselves are make_models.py's.

    python make_ways.py [OUT [MODEL ...]]        OUT: this folder; MODEL: all
"""
import json, os, sys
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from transformers import DynamicCache
from make_models import MODELS, load

CONTEXT, NEW = 90, 6


class Keep:
    """Stands in for a cache in one layer's call: keeps what the layer computed."""
    def __init__(self, keys): self.keys = keys
    def update(self, k, v, layer, *a, **kw): self.keys[layer] = (k, v); return k, v
    def get_seq_length(self, *a): return 0


def run_layers(R, x, first, last, n):
    """What layers first..last compute from x: {layer: (k, v)}."""
    keys, pos = {}, torch.arange(n)[None]
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    for l in range(first, last + 1):
        y = R.model.layers[l](x, attention_mask=mask, position_ids=pos, past_key_values=Keep(keys), position_embeddings=R.model.rotary_emb(x, pos), use_cache=True)
        x = y[0] if isinstance(y, tuple) else y
    return keys


def select(R, S_keys, context, share):
    """CacheBlend: layer 0 for all tokens; the share whose K of layer 1 deviates most goes on through all layers."""
    n, L = len(context), R.config.num_hidden_layers
    c = torch.tensor([context]); pos = torch.arange(n)[None]
    mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
    x = R.model.embed_tokens(c); keys = dict(S_keys)
    y = R.model.layers[0](x, attention_mask=mask, position_ids=pos, past_key_values=Keep(keys), position_embeddings=R.model.rotary_emb(x, pos), use_cache=True)
    x = y[0] if isinstance(y, tuple) else y
    own = run_layers(R, x, 1, 1, n)[1][0]
    deviation = (own - S_keys[1][0]).pow(2).sum((0, 1, 3))
    count = -int(-share * n // 1)
    chosen = sorted(sorted(range(n), key=lambda t: (-deviation[t].item(), t))[:count])
    x, at = x[:, chosen], torch.tensor([chosen])
    mask = torch.where(torch.arange(n)[None] > at[0][:, None], float("-inf"), 0.0)[None, None]
    class Mix:
        def update(self, k, v, l, *a, **kw):
            K, V = (t.clone() for t in S_keys[l]); K[:, :, chosen], V[:, :, chosen] = k, v
            keys[l] = (K, V); return K, V
        def get_seq_length(self, *a): return 0
    for l in range(1, L):
        y = R.model.layers[l](x, attention_mask=mask, position_ids=at, past_key_values=Mix(), position_embeddings=R.model.rotary_emb(x, at), use_cache=True)
        x = y[0] if isinstance(y, tuple) else y
    return keys, chosen


def aligned(x, layer, form):
    """A map by formula, which tests/unit/engine_test.cpp makes as well: y = x + W x + b."""
    d = x.shape[-1]
    o, i = torch.arange(d, dtype=torch.float64)[:, None], torch.arange(d, dtype=torch.float64)[None]
    scale, bias = 0.2 * torch.sin(o[:, 0] + layer), 0.05 * torch.cos(3 * o[:, 0] + layer)
    W = torch.diag(scale.float())
    if form == "full": W = (0.3 * torch.sin(o * d + i + layer) / d ** 0.5).float()
    if form == "low-rank":
        k = torch.arange(3, dtype=torch.float64)
        W = W + (0.5 * torch.sin(o * 3 + k + layer)).float() @ (torch.cos(k[:, None] * d + i + layer) / d ** 0.5).float()
    return x + x @ W.T + bias.float()


def logits(M, keys, tokens):
    cache = DynamicCache(config=M.config)
    for l in range(M.config.num_hidden_layers): cache.update(*(t.clone() for t in keys[l]), l)
    return M(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0]


@torch.no_grad()
def caches(R, S, context):
    n, L = len(context), R.config.num_hidden_layers
    c = torch.tensor([context])
    s = S(c, use_cache=True, output_hidden_states=True)
    S_keys = {l: (s.past_key_values.layers[l].keys, s.past_key_values.layers[l].values) for l in range(L)}
    E = [R.model.embed_tokens(c)] + [s.hidden_states[l] for l in range(1, L)]
    group = lambda a, b: {l: kv for l, kv in run_layers(R, E[a], a, b, n).items()}
    own, top = group(0, L - 1), L - 1
    yield dict(kind="full prefill"), R, own
    yield dict(kind="full reuse"), R, S_keys
    for a, b in ((1, 2), (0, 1), (2, top), (1, 1)): yield dict(kind="group", layers=f"{a}-{b}"), R, {**S_keys, **group(a, b)}
    yield dict(kind="scattered", layers=f"1,{top}"), R, {**S_keys, **group(1, 1), **group(top, top)}
    yield dict(kind="reuse only", layers="2"), R, {**own, 2: S_keys[2]}
    for a in (0, 1): yield dict(kind="restore", layers=f"{a}-{top}"), R, {**S_keys, **{l: group(l, l)[l] for l in range(a, L)}}
    for form, (a, b) in (("full", (1, 2)), ("low-rank", (1, 2)), ("diagonal", (2, top)), ("full", (2, top))):
        yield dict(kind="group", layers=f"{a}-{b}", map=form), R, {**S_keys, **run_layers(R, aligned(E[a], a, form), a, b, n)}
    yield dict(kind="scattered", layers=f"1,{top}", map="full"), R, {**S_keys, **run_layers(R, aligned(E[1], 1, "full"), 1, 1, n), **run_layers(R, aligned(E[top], top, "full"), top, top, n)}
    for form in ("full", "low-rank"):
        yield dict(kind="restore", layers=f"0-{top}", map=form), R, {l: run_layers(R, aligned(E[l], l, form) if l else E[l], l, l, n)[l] for l in range(L)}
    for share in (0.1, 0.4): yield dict(kind="select", share=share), R, select(R, S_keys, context, share)[0]
    yield dict(kind="sender alone"), S, S_keys


@torch.no_grad()
def main(out, wanted):
    for name, spec in MODELS.items():
        if not spec["sender"] or wanted and name not in wanted: continue
        folder = os.path.join(out, name)
        R, S = load(f"{folder}/receiver"), load(f"{folder}/sender")
        g = torch.Generator().manual_seed(spec["seed"] + 400)
        shared = min(R.config.vocab_size, S.config.vocab_size)
        draw = lambda n: torch.randint(0, shared, (n,), generator=g).tolist()
        context = draw(CONTEXT)
        ways = list(caches(R, S, context))
        # The second question's reference begins as the full prefill answers, so that some ways follow it for a while.
        suffixes = [draw(4), draw(7), draw(1)]
        if shared < R.config.vocab_size: suffixes[0][1] = suffixes[1][0] = shared + 1  # the sender by itself reads the others
        def greedy(M, keys, suffix):
            tokens = []
            while len(tokens) < NEW: tokens.append(int(logits(M, keys, suffix + tokens)[-1].argmax()))
            return tokens
        references = [draw(3), greedy(R, ways[0][2], suffixes[1])[:4] + draw(1), []]
        questions = [dict(suffix=s, reference=r, max_new_tokens=NEW) for s, r in zip(suffixes, references)]
        cases = []
        for way, M, keys in ways:
            answers = []
            for q in questions:
                if way["kind"] == "sender alone": q = dict(q, suffix=[t for t in q["suffix"] if t < shared], reference=[t for t in q["reference"] if t < shared])
                m = len(q["suffix"])
                log_p = [logits(X, K, q["suffix"] + q["reference"])[m - 1:].log_softmax(-1).double() for X, K in ((R, ways[0][2]), (M, keys))]
                rows = max(len(q["reference"]), 1)
                kl = None if way["kind"] == "sender alone" else (log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1)[:rows].mean().item()
                p = log_p[1][0].exp(); top = p.topk(2).values
                answers.append(dict(tokens=greedy(M, keys, q["suffix"]), divergence=kl,
                                    entropy=-(p * log_p[1][0]).sum().item(), margin=(top[0] - top[1]).item()))
            cases.append(dict(way=way, answers=answers))
        # Ways that could be taken for each other would test nothing.
        seen = [tuple(a["entropy"] for a in c["answers"]) for c in cases]
        assert len({tuple(round(e, 4) for e in s) for s in seen}) == len(seen), name
        with open(f"{folder}/ways.json", "w") as f:
            f.write(f'{{\n "context": {json.dumps(context)},\n "questions": {json.dumps(questions)},\n "cases": [\n  '
                    + ",\n  ".join(json.dumps(c) for c in cases) + "\n ]\n}\n")
        print(f"{name}: {len(cases)} ways")


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)), sys.argv[2:])
