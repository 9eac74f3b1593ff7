"""Writes a tokenizer.json again as a trainer does: padding, truncation, merges in the other notation, other bytes."""
import json
import sys

data = json.load(open(sys.argv[1], encoding="utf-8"))
data["padding"] = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None, "pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"}
data["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m.split(" ") for m in data["model"]["merges"]]
with open(sys.argv[1], "w", encoding="utf-8") as f:
    json.dump(data, f, indent=1, sort_keys=True)
