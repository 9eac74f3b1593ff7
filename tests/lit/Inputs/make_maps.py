"""A file of maps for a pair, by the recipe of runtime/model/maps.h:

    python3 make_maps.py REUSE.mlir OUT LAYER:FORM[:RANK]... [--pair other] [--values zero] [--fault nan|newer|fingerprint|short]

REUSE.mlir is what `ds-compile --emit reuse` prints for the pair: its fingerprints and shape are taken from there.
"""
import hashlib, json, re, struct, sys

source, out, *rest = sys.argv[1:]
options, wanted = {}, []
while rest:
    word = rest.pop(0)
    if word.startswith("--"): options[word] = rest.pop(0)
    else: wanted.append(word.split(":"))
text = open(source).read()
sender, receiver = (re.search(rf'{role} <name = "[^"]*", fingerprint = "(\w+)"', text)[1] for role in ("sender", "receiver"))
layers, d = (int(re.search(rf"{key} = (\d+)", text)[1]) for key in ("layers", "d_model"))
if options.get("--pair") == "other": sender = hashlib.sha256(b"another").hexdigest()
fault = options.get("--fault")

tensors, statistics = {}, []
order = ["none", "diagonal", "low-rank", "full"]
for layer, form, *rank in sorted(wanted, key=lambda w: (int(w[0]), order.index(w[1]))):
    r = int(rank[0]) if rank else 0
    shapes = {"full": {"weight": [d, d]}, "low-rank": {"up": [d, r], "down": [r, d], "scale": [d]}, "diagonal": {"scale": [d]}}[form]
    for part, shape in {**shapes, "bias": [d]}.items():
        count = 1
        for n in shape: count *= n
        values = [0.001 * ((7 * i + len(part)) % 11 - 5) for i in range(count)] if options.get("--values") != "zero" else [0.0] * count
        if fault == "nan": values[3], fault = float("nan"), None
        tensors[f"layers.{layer}.{form}.{part}"] = (shape, struct.pack(f"<{count}f", *values))
    statistics.append({"layer": int(layer), "form": form, "rank": r, "tokens": 100, "contexts": 10, "held_out_tokens": 20,
                       "held_out_contexts": 2, "ridge": 0.1, "error": 0.2, "plain_error": 0.5})
identity = f"droidspeak.maps 1\n{sender}\n{receiver}\n{layers} {d} f32\n"
for name, (shape, data) in tensors.items(): identity += f"{name} {hashlib.sha256(data).hexdigest()}\n"
fingerprint = hashlib.sha256(identity.encode()).hexdigest()
header, at = {}, 0
header["__metadata__"] = {
    "format": "droidspeak.maps", "version": "9" if fault == "newer" else "1",
    "fingerprint": "0" * 64 if fault == "fingerprint" else fingerprint,
    "pair": json.dumps({"sender": {"name": "sender", "fingerprint": sender}, "receiver": {"name": "receiver", "fingerprint": receiver}}),
    "shape": json.dumps({"layers": layers, "d_model": d, "dtype": "f32"}), "data": "[]", "statistics": json.dumps(statistics)}
for name, (shape, data) in tensors.items():
    header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
    at += len(data)
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
bytes_ = struct.pack("<Q", len(head)) + head + b"".join(data for _, data in tensors.values())
open(out, "wb").write(bytes_[: len(bytes_) // 2] if fault == "short" else bytes_)
print(fingerprint)
