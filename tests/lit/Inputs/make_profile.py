"""A small profile of the pair that a file of MLIR names, by config and weights: make_profile.py IN.mlir > OUT.json."""
import hashlib
import json
import re
import sys

text = open(sys.argv[1]).read()


def model(role):
    found = re.search(role + r' <name = "([^"]*)", fingerprint = "\w*", config = "(\w*)", weights = "(\w*)"', text)
    name, config, weights = found.groups()
    return {"name": name, "fingerprint": hashlib.sha256(f"config {config}\nweights {weights}\ntokenizer \n".encode()).hexdigest()}


def way(name, kind, layers, loss):
    out = {"way": name, "kind": kind, "items": 40, "contexts": 40, "score": {"mean": 90 - loss, "stderr": 0.1},
           "loss": {"mean": loss, "stderr": 0.1}, "divergence": {"mean": loss / 100, "stderr": 0.001}}
    return out | ({"layers": layers} if layers else {})


json.dump({"schema": "droidspeak.quality", "version": 5, "pair": {"sender": model("sender"), "receiver": model("receiver")},
           "layers": 12, "metric": "qa_f1", "dtype": "f32", "granularity": 1, "seed": 1, "items": 40, "contexts": 40,
           "receiver_score": 90, "full_reuse_score": 50,
           "ways": [way("full prefill", "full prefill", "", 0), way("full reuse", "full reuse", "", 40),
                    way("recompute 7-10", "group", "7-10", 2), way("no context", "no context", "", 80)]}, sys.stdout)
