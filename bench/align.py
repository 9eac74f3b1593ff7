#!/usr/bin/env python3
"""How far does the aligned cut go? Fits maps on different data, and scores the trained pair with each: how many tokens a fit needs, whether its
documents must be of the kind that is asked about, as long, with words in an order that means something; the forms of maps; the spread over seeds.

    align.py BIN_DIR [--pair DIR] [--sender sender|mild] [--part tokens|seeds|kinds|lengths|forms ...] [-o RESULT.json]

Every row is one `ds-profile fit` and one `ds-profile --maps`, over all held-out questions; layers 7-10 behind a cut, and layers 4-11 restored.
"""
import argparse, datetime, json, pathlib, platform, subprocess, sys, tempfile

p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("bin")
p.add_argument("--pair", default=str(pathlib.Path(__file__).resolve().parent.parent / "examples" / "pair"))
p.add_argument("--sender", default="sender", choices=["sender", "mild"])
p.add_argument("--part", nargs="+", default=["tokens", "seeds", "kinds", "lengths", "forms"])
p.add_argument("-o", default="-")
a = p.parse_args()
bin, pair = pathlib.Path(a.bin).resolve(), pathlib.Path(a.pair).resolve()
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-align-"))
models = ["--sender", pair / a.sender, "--receiver", pair / "receiver"]
prompts = ["--prompts", pair / "data" / "prompts.json"]
GROUP, RESTORE = "recompute 7-10", "restore 4-11"


def run(*args):
    done = subprocess.run([str(x) for x in args], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode: sys.exit(f"{args[0]}: {done.stderr}")
    return done.stdout


def documents(kinds, count, sizes=(8, 16), seed=1):
    """`count` documents of these kinds, in turn."""
    lines = []
    for kind in kinds:
        path = work / f"{kind}.jsonl"
        run(sys.executable, pair / "make_fit_data.py", "--kind", kind, "--documents", -(-count // len(kinds)), "--sizes", *sizes, "--seed", seed, "-o", path)
        lines.append(path.read_text().splitlines())
    mixed = [line for turn in zip(*lines) for line in turn][:count]
    path = work / "fit.jsonl"
    path.write_text("\n".join(mixed) + "\n")
    return path


def held_out(length=None):
    """The questions about documents of one length (all: None), by task."""
    paths = []
    for task in ("notes_qa", "notes_2hop", "notes_sum", "module_code"):
        items = [json.loads(line) for line in (pair / "data" / f"{task}.jsonl").read_text().splitlines()]
        # Of 8, 16 and 40 people or functions; modules are shorter than notes of as many.
        edges = (180, 400) if task == "module_code" else (300, 700)
        items = [i for i in items if length is None or sum(i["length"] >= edge for edge in edges) == length]
        paths.append(work / f"{task}.jsonl")
        paths[-1].write_text("".join(json.dumps(i) + "\n" for i in items))
    return paths


def row(what, data, length=None, forms=("full",), rank=0):
    maps = work / "maps.safetensors"
    fit = json.loads(run(bin / "ds-profile", "fit", *models, "--data", data, *prompts, "--align", *forms, "--rank", rank, "-o", maps, "--json"))
    out = work / "quality.json"
    run("rm", "-rf", f"{out}.run")
    run(bin / "ds-profile", *models, "--data", *held_out(length), *prompts, "--maps", maps, "--only", "7-10", "4-11", "--no-controls", "--align", *forms, "-o", out)
    ways = {w["way"]: w for w in json.loads(out.read_text())["ways"]}
    at = next(m for m in fit["maps"] + fit["plain"] if m["layer"] == 7 and m["form"] == forms[0])
    r = {"what": what, "tokens": at["tokens"], "fit_seconds": round(fit["seconds"], 2), "contexts": at["contexts"], "error_at_7": at["error"], "plain_error_at_7": at["plain_error"],
         "ridge_at_7": at["ridge"], "rank": max((m["rank"] for m in fit["maps"]), default=0), "losses": {}}
    for way in (GROUP, RESTORE):
        for end in ["", *(" aligned" if f == "full" else f" aligned ({f})" for f in forms)]:
            w = ways[way + end]
            r["losses"][way + end] = {**w["loss"], "tasks": [t["mean"] for t in w["tasks"]], "divergence": w["divergence"]["mean"]}
    print(f"{what:<44} {r['tokens']:>7} tokens  error {at['error']:.4f}  " +
          "  ".join(f"{k}: {v['mean']:.2f} ± {v['stderr']:.2f}" for k, v in r["losses"].items()), file=sys.stderr, flush=True)
    return r


result = {"command": "bench/align.py " + " ".join(sys.argv[2:]), "date": str(datetime.date.today()), "machine": platform.processor() or platform.machine(),
          "sender": a.sender, "rows": []}
add = lambda *args, **kw: result["rows"].append(row(*args, **kw))
both = ("notes", "code")
if "tokens" in a.part:
    for count in (4, 6, 10, 18, 36, 72, 144, 360): add(f"{count} documents of both kinds", documents(both, count))
if "seeds" in a.part:
    for seed in (2, 3, 4, 5): add(f"36 documents, seed {seed}", documents(both, 36, seed=seed))
if "kinds" in a.part:
    add("notes only", documents(("notes",), 30))
    add("modules of code only", documents(("code",), 60))
    add("the same words in no order", documents(("words",), 36))
if "lengths" in a.part:
    for name, sizes, count in (("short (3)", (3,), 150), ("of 8", (8,), 72), ("long (40)", (40,), 15)):
        data = documents(both, count, sizes)
        for length, asked in enumerate((8, 16, 40)): add(f"fitted on documents {name}, asked about {asked}", data, length)
if "forms" in a.part:
    data = documents(both, 96)
    add("forms, rank 16", data, forms=("full", "low-rank", "diagonal"))
    for rank in (4, 32, 64): add(f"rank {rank}", data, forms=("low-rank",), rank=rank)
text = json.dumps(result, indent=1) + "\n"
print(text, end="") if a.o == "-" else pathlib.Path(a.o).write_text(text)
