"""Do the figures of ds-bench quality agree with each other? python3 check_quality_bench.py FILE"""
import json, statistics, sys

out = json.load(open(sys.argv[1]))
for key in ("version", "date", "command", "cpu", "kernel", "backend"): assert isinstance(out[key], str), key
assert "quality" in out["command"].split()
aligned = any("aligned" in w["way"] for w in out["rates"][0]["ways"])
assert {i["role"] for i in out["inputs"]} == {"sender", "receiver", "quality", "machine"} | ({"maps"} if aligned else set())
assert out["align_side"] == ("receiver" if aligned else None)
for rate in out["rates"]:
    ways = {w["way"] + (", " + w["policy"] if w["way"].startswith("recompute") else ""): w for w in rate["ways"]}
    assert len(ways) == len(rate["ways"])
    for w in ways.values():
        assert len(w["ttft_all_ns"]) == out["repeats"] and min(w["ttft_all_ns"]) > 0
        assert w["ttft_least_ns"] == min(w["ttft_all_ns"]) and w["ttft_most_ns"] == max(w["ttft_all_ns"])
        assert w["ttft_ns"] == statistics.median_high(w["ttft_all_ns"])
        assert (w["bytes_moved"] == 0) == (w["way"] == "full prefill"), w["way"]
        assert w["predicted_ns"] > 0 and 0 < w["compute_ns"] <= w["ttft_most_ns"]
    # Nothing beats what is on the front; whatever is not on it is beaten.
    front = [ways[name] for name in rate["front"]]
    assert [w["ttft_ns"] for w in front] == sorted(w["ttft_ns"] for w in front)
    beats = lambda a, b: a is not b and a["ttft_ns"] <= b["ttft_ns"] and a["score"]["mean"] >= b["score"]["mean"]
    for w in ways.values():
        assert any(beats(f, w) for f in front) != any(f is w for f in front), w["way"]
    # The fastest within a point of loss, and the same time for token selection.
    close = [w for w in ways.values() if w["loss"]["mean"] <= 1]
    assert ways[rate["fastest_within_1_point"]]["ttft_ns"] == min(w["ttft_ns"] for w in close)
    plain = [w for w in close if "aligned" not in w["way"]]
    assert ways[rate["fastest_within_1_point_without_maps"]]["ttft_ns"] == min(w["ttft_ns"] for w in plain)
    for c in rate["select_at_equal_ttft"]:
        limit = 1.03 * ways[c["select"]]["ttft_ns"]
        quick = [w["loss"]["mean"] for w in ways.values() if w["policy"] not in ("select", "restore") and w["ttft_ns"] <= limit]
        assert (c["other"] is None) == (not quick)
        if quick: assert ways[c["other"]]["loss"]["mean"] == min(quick) and ways[c["other"]]["ttft_ns"] <= limit
    # Maps are applied to what is sent: as many bytes as without.
    for name, w in ways.items():
        twin = ways.get(name.replace(" aligned", ""), w)
        if w["policy"] != "balanced": assert w["bytes_moved"] == twin["bytes_moved"], name
    # Token selection needs all caches of the sender but those of layer 0.
    moved = lambda name: ways[name]["bytes_moved"]
    kept = (out["layers"] - 1) / out["layers"]
    assert all(w["bytes_moved"] == moved("full reuse") * kept for w in ways.values() if w["policy"] == "select")
print(f"{len(out['rates'])} rates, {len(ways)} ways each: ok")
