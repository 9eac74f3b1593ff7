"""sweep.json (what train.py measured) -> quality.json (what ds-compile reads).

    python make_quality.py PLAN.json       PLAN.json: ds-plan dump PLAN --format json, of any plan for this pair

The plan is where the two models' fingerprints come from. Scores become points, 0 to 100.
"""
import json, pathlib, sys

here = pathlib.Path(__file__).resolve().parent
sweep = json.loads((here / "sweep.json").read_text())
plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
points = lambda x: round(100 * x, 2)
model = lambda role: {"name": plan[role]["name"], "fingerprint": plan[role]["fingerprint"]}
quality = {
    "schema": "droidspeak.quality", "version": 1,
    "pair": {"sender": model("sender"), "receiver": model("receiver")},
    "layers": sweep["layers"], "metric": sweep["metric"], "items": sweep["n_items"],
    "receiver_score": points(sweep["receiver_alone"]), "full_reuse_score": points(sweep["full_reuse"]),
    "groups": [{"first": g["first"], "last": g["last"], "score": points(g["score"]), "stderr": points(g["stderr"])}
               for g in sweep["groups"]],
}
text = json.dumps(quality, indent=1).replace('{\n   "first"', '{"first"').replace('\n   "', ' "').replace("\n  }", "}")
(here / "quality.json").write_text(text + "\n")
