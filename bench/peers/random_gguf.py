#!/usr/bin/env python3
"""Writes a Llama of random bf16 weights as GGUF, of the same sizes as `ds-bench prefill --shape` makes.

usage: random_gguf.py SHAPE FILE     SHAPE: llama-1b, llama-8b, each with :LAYERS, or llama:layers=L,d=D,ff=F,heads=H,kv=K,vocab=V
"""
import array, os, random, re, struct, sys

SHAPES = {
    "llama-1b": dict(layers=16, d=2048, ff=8192, heads=32, kv=8, head=64, vocab=128256, tied=True),
    "llama-8b": dict(layers=32, d=4096, ff=14336, heads=32, kv=8, head=128, vocab=128256, tied=False),
}
F32, BF16, FILE_TYPE_BF16, ALIGNMENT = 0, 30, 32, 32


def sizes(shape):
    """The sizes of a shape's name, or ValueError."""
    if custom := re.fullmatch(r"llama:layers=(\d+),d=(\d+),ff=(\d+),heads=(\d+),kv=(\d+),vocab=(\d+)", shape):
        s = dict(zip(("layers", "d", "ff", "heads", "kv", "vocab"), map(int, custom.groups())))
        if min(s.values()) < 1 or s["d"] % s["heads"] != 0 or s["heads"] % s["kv"] != 0:
            raise ValueError(f"'{shape}': expected numbers above 0, d a multiple of heads and heads of kv")
        return s | {"head": s["d"] // s["heads"], "tied": True}
    base, _, layers = shape.partition(":")
    if base not in SHAPES:
        raise ValueError(f"unknown shape '{shape}'; expected {' or '.join(SHAPES)}, with ':N' for N layers, or "
                         "llama:layers=L,d=D,ff=F,heads=H,kv=K,vocab=V")
    s = dict(SHAPES[base])
    if layers:
        if not layers.isdecimal() or not 1 <= int(layers) <= s["layers"]:
            raise ValueError(f"'{shape}' asks for '{layers}' layers, expected a number from 1 to {s['layers']}")
        s["layers"] = int(layers)
    return s


def tensors(s):
    """(name, dimensions with the innermost first, type) of every tensor."""
    d, ff, q, kv = s["d"], s["ff"], s["heads"] * s["head"], s["kv"] * s["head"]
    out = [("token_embd.weight", [d, s["vocab"]], BF16), ("output_norm.weight", [d], F32)]
    if not s["tied"]: out.append(("output.weight", [d, s["vocab"]], BF16))
    for i in range(s["layers"]):
        out += [(f"blk.{i}.{name}.weight", dims, BF16 if len(dims) == 2 else F32) for name, dims in (
            ("attn_norm", [d]), ("attn_q", [d, q]), ("attn_k", [d, kv]), ("attn_v", [d, kv]), ("attn_output", [q, d]),
            ("ffn_norm", [d]), ("ffn_gate", [d, ff]), ("ffn_up", [d, ff]), ("ffn_down", [ff, d]))]
    return out


def text(s): return struct.pack("<Q", len(s)) + s.encode()


def header(s, infos, count):
    values = {"general.architecture": "llama", "general.name": "random", "general.file_type": FILE_TYPE_BF16,
              "llama.block_count": s["layers"], "llama.context_length": 131072, "llama.embedding_length": s["d"],
              "llama.feed_forward_length": s["ff"], "llama.attention.head_count": s["heads"],
              "llama.attention.head_count_kv": s["kv"], "llama.attention.key_length": s["head"],
              "llama.attention.value_length": s["head"], "llama.rope.dimension_count": s["head"],
              "llama.rope.freq_base": 500000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5,
              "llama.vocab_size": s["vocab"], "tokenizer.ggml.model": "no_vocab"}
    out = b"GGUF" + struct.pack("<IQQ", 3, count, len(values))
    for key, value in values.items():
        kind, packed = ((8, text(value)) if isinstance(value, str) else
                        (6, struct.pack("<f", value)) if isinstance(value, float) else (4, struct.pack("<I", value)))
        out += text(key) + struct.pack("<I", kind) + packed
    return out + infos


def padding(n): return b"\0" * (-n % ALIGNMENT)


def write(shape, path):
    s = sizes(shape)
    infos, lengths, offset = b"", [], 0
    for name, dims, kind in tensors(s):
        length = (4 if kind == F32 else 2) * (dims[0] * dims[1] if len(dims) == 2 else dims[0])
        infos += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        infos += struct.pack("<IQ", kind, offset)
        lengths.append((length, kind))
        offset += length + len(padding(length))
    # Sign and mantissa are random, the exponent puts |w| between 2^-8 and 2^-7. A block of 4 MiB is laid out again and
    # again, from another place for each tensor: far more than a cache tile, and written at the disk's speed.
    rng = random.Random(1)
    block = array.array("H", (rng.getrandbits(1) << 15 | 119 << 7 | rng.getrandbits(7) for _ in range(1 << 21))).tobytes()
    partial = path + ".partial"
    with open(partial, "wb") as f:
        head = header(s, infos, len(lengths))
        f.write(head + padding(len(head)))
        for length, kind in lengths:
            if kind == F32:
                f.write(struct.pack("<f", 1.0) * (length // 4))
            else:
                start = 2 * rng.randrange(len(block) // 2)
                turned = block[start:] + block[:start]
                for at in range(0, length, len(block)): f.write(turned[:length - at])
            f.write(padding(f.tell()))
    os.replace(partial, path)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] in ("-h", "--help"): sys.exit(__doc__)
    try: write(sys.argv[1], sys.argv[2])
    except (ValueError, OSError) as e: sys.exit(f"error: {e}")
