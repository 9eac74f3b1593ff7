"""A profile with the ways that maps make of it: python3 add_aligned.py QUALITY FINGERPRINT OUT

Each group from a cut and each restored run is there a second time, aligned, and as a control that scores 100.
FINGERPRINT is a file with that of the maps.
"""
import json, sys

source, fingerprint, out = sys.argv[1:]
fingerprint = open(fingerprint).read().strip()
q = json.load(open(source))
pareto = []
for way in list(q["ways"]):
    if way["kind"] not in ("group", "restore") or way["kind"] == "group" and way["layers"].startswith("0"): continue
    points = lambda gain, key, sign: {"mean": way[key]["mean"] + sign * gain, "stderr": 0.5}
    for control, gain in ((None, 0.5), ("shuffled", 100 - way["score"]["mean"])):
        name = f"{way['way']} aligned" + (f" ({control})" if control else "")
        more = {"map_control": control} if control else {}
        q["ways"].append({**way, "way": name, "map": "full", **more, "score": points(gain, "score", 1), "loss": points(gain, "loss", -1)})
        if not control and (way["kind"] == "restore" or way["way"] in q["pareto"]): pareto.append(name)
q.update(version=3, pareto_aligned=pareto, maps={"name": "pair.maps", "fingerprint": fingerprint})
json.dump(q, open(out, "w"))
