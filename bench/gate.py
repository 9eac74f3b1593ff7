#!/usr/bin/env python3
"""Does the gate let requests like the profile's pass, and catch documents of another kind?

Profiles a pair on some of its notes, then asks through ds-run --gate about the other notes, about modules of code (another kind of document, that
the pair knows) and about prose (that it has never seen), and counts alarms, by the proxies that raised them.

    gate.py BIN_DIR [--pair DIR] [--false-alarms 5%] [--profile 68] [--requests 60] [--aligned] [-o RESULT.json]

With --aligned the plan has an aligned cut, whose maps were fitted on notes alone: modules of code are then what maps hurt.
"""
import argparse, datetime, json, pathlib, subprocess, sys, tempfile

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("bin")
p.add_argument("--pair", default=str(pathlib.Path(__file__).resolve().parent.parent / "examples" / "pair"))
p.add_argument("--false-alarms", default="5%", help="the rate that the thresholds are calibrated to")
p.add_argument("--profile", type=int, default=68, help="documents that the profile is made of; the others are asked about")
p.add_argument("--requests", type=int, default=40, help="of each kind of document")
p.add_argument("--slo-loss", default="3")
p.add_argument("--aligned", action="store_true")
p.add_argument("-o", default="-")
a = p.parse_args()
bin, pair = pathlib.Path(a.bin).resolve(), pathlib.Path(a.pair).resolve()
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-gate-"))


def tool(name, *args):
    done = subprocess.run([bin / name, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: sys.exit(f"{name}: {done.stderr}")
    return done.stdout


read = lambda task: [json.loads(line) for line in (pair / "data" / f"{task}.jsonl").read_text().splitlines()]
notes = [item for task in ("notes_qa", "notes_2hop", "notes_sum") for item in read(task)]
documents = list(dict.fromkeys(item["context"] for item in notes))
known = set(documents[: a.profile])
(work / "known.jsonl").write_text("".join(json.dumps(item) + "\n" for item in notes if item["context"] in known))
models = ["--sender", pair / "sender", "--receiver", pair / "receiver"]
tool("ds-profile", *models, "--data", work / "known.jsonl", "--prompts", pair / "data" / "prompts.json", "--no-controls", "-o", work / "quality.json",
     *(["--fit-data", pair / "fit" / "notes.jsonl"] if a.aligned else ["--no-align"]))
maps = ["--maps", work / "quality.maps.safetensors"] if a.aligned else []
tool("ds-compile", *models, "--quality", work / "quality.json", "--slo-loss", a.slo_loss, "--policy", "droidspeak", "--chunks", 1,
     "--context-lengths", "200,400,1000", "--link-rates", "400MB/s",
     *(maps + ["--align", "full", "--align-side", "receiver"] if a.aligned else []), "-o", work / "plan.dsplan")
frames = {task: how["prompt"].split("{context}")[1] for task, how in json.loads((pair / "data" / "prompts.json").read_text())["tasks"].items()}
fresh = [item for item in notes if item["context"] not in known]
kinds = {"notes that the profile has not seen": fresh[:: max(1, len(fresh) // a.requests)][: a.requests],
         "modules of code": (lambda m: m[:: max(1, len(m) // a.requests)][: a.requests])(read("module_code"))}
# Text of another world: this project's own documents, in pieces, asked the same questions.
prose = "\n".join(f.read_text() for f in [*sorted(pair.parent.parent.glob("*.md")), *sorted(pair.parent.parent.glob("plans/*.md"))])
pieces = [prose[at : at + 900] for at in range(0, len(prose) - 900, 900)][: a.requests]
kinds["prose"] = [{**item, "context": piece, "answers": []} for piece, item in zip(pieces, fresh)]
result = {"command": "bench/gate.py " + " ".join(sys.argv[2:]), "date": str(datetime.date.today()), "false_alarms": a.false_alarms,
          "profile": {"documents": len(known), "questions": sum(item["context"] in known for item in notes)}, "kinds": {}}
for kind, items in kinds.items():
    counts = {"requests": len(items), "alarms": 0, "k_deviation": 0, "entropy": 0, "margin": 0}
    wrong = {"passed": 0, "stopped": 0}
    for i, item in enumerate(items):
        (work / "context.txt").write_text(item["context"])
        tool("ds-publish", "--model", pair / "sender", "--plan", work / "plan.dsplan", "--context", work / "context.txt", "--store", f"file:{work / 'store'}")
        request = ["--receiver", pair / "receiver", "--plan", work / "plan.dsplan", "--store", f"file:{work / 'store'}", "--context", work / "context.txt",
                   "--prompt", frames[item["dataset"]].replace("{input}", item["input"]), "--max-new-tokens", 48, *maps, "--json"]
        gated = json.loads(tool("ds-run", *request, "--gate", work / "quality.json", "--gate-false-alarms", a.false_alarms))
        plain = json.loads(tool("ds-run", *request))["text"]
        alarm = gated["gate"]["status"] == "alarm"
        counts["alarms"] += alarm
        for name in ("k_deviation", "entropy", "margin"): counts[name] += name in gated["gate"].get("alarms", [])
        if plain.strip() not in [x.strip() for x in item["answers"]]: wrong["stopped" if alarm else "passed"] += 1
    counts["wrong_without_gate"] = wrong
    result["kinds"][kind] = counts
    print(f"{kind}: {counts['alarms']} of {len(items)} raise an alarm (k_deviation {counts['k_deviation']}, entropy {counts['entropy']}, margin {counts['margin']}); "
          f"{wrong['stopped']} of {sum(wrong.values())} wrong answers stopped", file=sys.stderr)
text = json.dumps(result, indent=1) + "\n"
sys.stdout.write(text) if a.o == "-" else pathlib.Path(a.o).write_text(text)
