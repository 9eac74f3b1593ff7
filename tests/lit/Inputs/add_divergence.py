"""Adds divergences to a profile's ways, by name: add_divergence.py PROFILE "WAY=MEAN,STDERR" ... [--loss "WAY=MEAN,STDERR"] > OUT."""
import json
import sys

profile = json.load(open(sys.argv[1]))
profile["version"] = 3
key = "divergence"
for argument in sys.argv[2:]:
    if argument == "--loss":
        key = "loss"
        continue
    name, numbers = argument.split("=")
    mean, error = map(float, numbers.split(","))
    found = [w for w in profile["ways"] if w["way"] == name]
    assert len(found) == 1, name
    found[0][key] = {"mean": mean, "stderr": error}
json.dump(profile, sys.stdout)
