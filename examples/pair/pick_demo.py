#!/usr/bin/env python3
"""Picks the demo's question from a profile's run: one hop, about 16 people, where full reuse answers wrong, and the full prefill and the
smallest group within five points right.

    pick_demo.py QUALITY.json        its run folder, QUALITY.json.run, must still be there
"""
import json, pathlib, sys

here = pathlib.Path(__file__).resolve().parent
quality = json.loads(pathlib.Path(sys.argv[1]).read_text())
names = [w["way"] for w in quality["ways"]]
within = [w for w in quality["ways"] if w["way"] in quality["pareto"] and w["loss"]["mean"] <= 5]
group = min(within, key=lambda w: w["recomputed_layers"])["way"]
items = [json.loads(line) for line in (here / "data" / "notes_qa.jsonl").read_text().splitlines()]
asked = {item["input"]: item for item in items if 350 < item["length"] < 450}
for path in sorted(pathlib.Path(sys.argv[1] + ".run").glob("context-*.jsonl")):
    for record in json.loads(path.read_text().splitlines()[1])["items"]:
        right = {n: record["exact"][names.index(n)] for n in ("full prefill", group)}
        reused = record["score"][names.index("full reuse")]  # 0: no word of the answer in it
        item = asked.get(record["question"])
        if record["task"] != "notes_qa" or item is None or item["answers"] != record["references"]: continue
        if all(right.values()) and reused == 0:
            prompt = f"\nQuestion: {item['input']}:"
            for file, text in (("context", item["context"]), ("question", prompt), ("answer", item["answers"][0])):
                (here / "data" / f"demo_{file}.txt").write_text(text)
            print(f"{prompt.strip()} {item['answers'][0]} ({group})")
            sys.exit()
sys.exit("no such question")
