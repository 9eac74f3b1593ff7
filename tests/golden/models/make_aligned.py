"""Makes aligned.json and aligned.safetensors of every model here that has a sender: what transformers, in float32,
computes where the sender's hidden states go through maps before the receiver goes on from them. The models themselves
are make_models.py's; the contexts, suffixes and chunks are make_tilings.py's.

    python make_aligned.py [OUT]        OUT: this folder

The maps are not stored: numbers() says what is in them, and tests/unit/aligned_test.cpp makes them again.
"""
import json, os, sys
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from safetensors.torch import save_file
from make_models import MODELS, full, load
from make_tilings import CONTEXT, SUFFIX, CHUNKS, answer, tile

RANK = 5
FORMS = {"full": ["weight", "bias"], "low-rank": ["up", "down", "scale", "bias"], "diagonal": ["scale", "bias"]}
SPREAD = {"weight": 0.25, "up": 0.5, "down": 0.5, "scale": 0.5, "bias": 0.25}


def numbers(layer, part, shape):
    """Numbers from -SPREAD / 2 to SPREAD / 2, exact in float64 and then rounded once."""
    seed = 100 * layer + list(SPREAD).index(part)
    i = np.arange(np.prod(shape), dtype=np.uint64)
    mixed = ((i + 1 + 7919 * seed) * 2654435761 % 2**32 * 40503 // 7) % 2**16
    return torch.from_numpy(((mixed / 2.0**16 - 0.5) * SPREAD[part]).astype(np.float32).reshape(shape))


def aligner(form, zero=False):
    def align(layer, x):
        d = x.shape[-1]
        shapes = {"weight": (d, d), "up": (d, RANK), "down": (RANK, d), "scale": (d,), "bias": (d,)}
        m = {part: numbers(layer, part, shapes[part]) * (0 if zero else 1) for part in FORMS[form]}
        y = x + m["bias"]
        if form == "full": return y + x @ m["weight"].T
        y = y + m["scale"] * x
        return y + x @ m["down"].T @ m["up"].T if form == "low-rank" else y
    return align


def tilings(layers):
    top = layers - 1
    yield "a band on a cut", [tile("load", 0, 0, 0, 2), tile("recompute", 1, 2, 0, 2, True), tile("load", 3, top, 0, 2)]
    yield "from a cut to the top", [tile("load", 0, 1, 0, 2), tile("recompute", 2, top, 0, 2, True)]
    yield "restored layers", [tile("load", 0, 0, 0, 2), tile("restore", 1, 2, 0, 2), tile("load", 3, top, 0, 2)]
    yield "restored up to the top", [tile("load", 0, 1, 0, 2), tile("restore", 2, top, 0, 2)]


def main(out):
    for name, spec in MODELS.items():
        if not spec["sender"]: continue
        folder = os.path.join(out, name)
        R, S = load(f"{folder}/receiver"), load(f"{folder}/sender")
        with open(f"{folder}/tilings.json") as f: tokens = json.load(f)["tokens"]
        context, suffix = tokens[:CONTEXT], tokens[CONTEXT:]
        whole = full(R, context, suffix)
        cases, tensors, seen = [], {}, []
        for what, tiles in tilings(R.config.num_hidden_layers):
            plain = answer(R, S, context, suffix, tiles)
            seen.append(plain)
            for form in FORMS:
                same = answer(R, R, context, suffix, tiles, aligner(form, zero=True))  # S = R, maps that add nothing
                assert (same - whole).abs().max() < 2e-5, (name, what, form)
                assert torch.equal(answer(R, S, context, suffix, tiles, aligner(form, zero=True)), plain), (name, what, form)
                logits = answer(R, S, context, suffix, tiles, aligner(form))
                assert all((logits - other).abs().max() > 1e-2 for other in seen), f"{name}: '{what}', {form} could be another one"
                seen.append(logits)
                tensors[f"aligned.{len(cases)}"] = logits.contiguous()
                cases.append(dict(what=what, form=form, tensor=f"aligned.{len(cases)}", tiles=tiles))
        save_file(tensors, f"{folder}/aligned.safetensors")
        os.chmod(f"{folder}/aligned.safetensors", 0o644)
        with open(f"{folder}/aligned.json", "w") as f:
            f.write(f'{{\n "tokens": {json.dumps(tokens)},\n "context": {CONTEXT}, "suffix": {SUFFIX}, "chunks": {CHUNKS}, "rank": {RANK},\n "cases": [\n  '
                    + ",\n  ".join(json.dumps(c) for c in cases) + "\n ]\n}\n")
        print(f"{name}: {len(cases)} aligned tilings")


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)))
