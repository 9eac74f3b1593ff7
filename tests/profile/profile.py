"""ds-profile on the trained pair: the same profile however the run was stopped or shared, and nothing lost to bad input."""
import json, pathlib, resource, shutil, signal, subprocess, sys, tempfile, time

root = pathlib.Path(__file__).resolve().parent.parent.parent
binaries = pathlib.Path(sys.argv[1]).resolve() / "bin"
pair = root / "examples" / "pair"
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-profile-test-"))
failures = []


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


def command(*args): return [str(a) for a in (binaries / "ds-profile", *args)]


def profile(*args, expect=0, **kw):
    done = subprocess.run(command(*args), capture_output=True, text=True, stdin=subprocess.DEVNULL, **kw)
    check(done.returncode == expect, f"ds-profile {' '.join(map(str, args))}: exit {done.returncode}, expected {expect}: {done.stderr[-600:]}")
    return done


def says(done, *texts):
    for text in texts: check(text in done.stderr, f"expected '{text}' in: {done.stderr[-600:]}")


# The smaller half of the documents of two tasks: contexts of 200 tokens.
def items(task, count):
    out, contexts = [], set()
    for line in (pair / "data" / f"{task}.jsonl").read_text().splitlines():
        item = json.loads(line)
        if item["length"] < 300: contexts.add(item["context"])
        if item["context"] in contexts and len(contexts) <= count: out.append(line)
    return "\n".join(out) + "\n"


data = [work / "qa.jsonl", work / "code.jsonl"]
data[0].write_text(items("notes_qa", 8))
data[1].write_text(items("module_code", 4))
models = ["--sender", pair / "sender", "--receiver", pair / "receiver"]
prompts = ["--prompts", pair / "data" / "prompts.json"]
fit_data = work / "fit.jsonl"
fit_data.write_text("".join("".join((pair / "fit" / f"{kind}.jsonl").read_text().splitlines(keepends=True)[:6]) for kind in ("notes", "code")))
job = [*models, "--data", *data, *prompts, "--fit-data", fit_data, "--maps-out", work / "whole.maps.safetensors", "--scattered", 1]

whole = work / "whole.json"
done = profile(*job, "-o", whole)
says(done, "contexts", "layer-runs", "if every way ran by itself")
says(done, "about ", " of them to fit maps, at most ", " where all answers are as long as they may be (measured in ", " per token and layer)")
check(done.stderr.index("about ") < done.stderr.index("fitting maps on"), "the time is said before anything runs")
check("full prefill" in done.stdout and "full reuse" in done.stdout, "a table on stdout")
check("\r" not in done.stderr, "no progress bar in a pipe")
quality = json.loads(whole.read_text())
check(quality["contexts"] == 12 and {t["name"] for t in quality["tasks"]} == {"notes_qa", "module_code"}, "12 contexts of two tasks")
check(sum(w["kind"] == "group" and "map" not in w for w in quality["ways"]) == 77, "all contiguous groups")
check(sum(w["kind"] == "group" and "map" in w and "map_control" not in w for w in quality["ways"]) == 66, "and those from a cut with maps")
check(quality["receiver_score"] > 90 > quality["full_reuse_score"], "full reuse hurts")
by_name = {w["way"]: w for w in quality["ways"]}
check(by_name["full prefill"]["loss"]["mean"] == 0, "the full prefill loses nothing")
check(by_name["full prefill"]["divergence"]["mean"] == 0, "nor does it diverge from itself")
for text in ("task ", "notes_qa", "module_code", "no context"): check(text in done.stdout, f"'{text}' in {done.stdout}")
check(by_name["no context"]["score"]["mean"] < 50 and by_name["no context"]["divergence"]["mean"] > by_name["full reuse"]["divergence"]["mean"], "without the context it guesses")
check("scattered 0-1,10-11" in by_name and "scattered 0-1,10-11 aligned" in by_name, "first and last layers are scored, too")
check("warning: in " not in done.stderr, "prompts end well")

# A budget is kept, and stays what it was when the run goes on.
fast = [*models, "--data", *data, *prompts, "--no-align", "-o", work / "fast.json"]
first = profile(*fast, "--budget", "2h", "--dry-run", "--json")
cost = json.loads(first.stdout)
check(0 < cost["seconds"] <= 7200 and cost["contexts"] == 12 and cost["granularity"] == 1 and cost["given_up"] == "", f"a cost within the budget: {first.stdout}")
check([g["granularity"] for g in cost["granularities"]] == [1, 2, 3] and cost["granularities"][0]["ways"] > cost["granularities"][2]["ways"], "what other granularities take")
check(not (work / "fast.json.run").exists(), "a dry run leaves nothing")
says(profile(*fast, "--budget", "2h"), "--budget 2h: all of it fits")
kept = json.loads((work / "fast.json.run" / "run.json").read_text())
(work / "fast.json.run" / "context-000003.jsonl").unlink()
before = (work / "fast.json").read_bytes()
says(profile(*fast, "--budget", "1s"), "holds a run; it goes on as it was begun")
check((work / "fast.json").read_bytes() == before and json.loads((work / "fast.json.run" / "run.json").read_text()) == kept, "a run goes on as it was begun")

# Aligned cuts: maps beside the profile, which names them; they help, shuffled ones do not.
maps = work / "whole.maps.safetensors"
check(quality["maps"]["name"] == maps.name, "the profile names its maps")
size = int.from_bytes(maps.read_bytes()[:8], "little")
header = json.loads(maps.read_bytes()[8:8 + size])
check(header["__metadata__"]["fingerprint"] == quality["maps"]["fingerprint"], "by their fingerprint")
check(header["layers.7.full.weight"]["shape"] == [128, 128], "in a safetensors file")
for way in ("recompute 7-10", "restore 4-11"):
    plain, aligned, shuffled = (by_name[way + end]["divergence"]["mean"] for end in ("", " aligned", " aligned (shuffled)"))
    check(aligned < 0.6 * plain and aligned < 0.6 * shuffled, f"{way}: aligned {aligned}, plain {plain}, shuffled {shuffled}")
check(any("aligned" in name for name in quality["pareto_aligned"]) and not any("aligned" in name for name in quality["pareto"]), "two Pareto lists")
fitted = work / "fitted.safetensors"
done = profile("fit", *models, "--data", fit_data, *prompts, "-o", fitted, "--json")
says(done, "about ", "(measured in ", " per token and layer)", " of memory beside the models")
statistics = json.loads(done.stdout)
check(statistics["fingerprint"] == quality["maps"]["fingerprint"], "the same maps when they are fitted by themselves")
check([(m["layer"], m["form"]) for m in statistics["maps"] + statistics["plain"]] == [(l, "full") for l in range(1, 12)], "of the form asked for")
check(len(statistics["maps"]) > 8 and all(m["error"] < m["plain_error"] - m["gain_stderr"] for m in statistics["maps"]), "maps come nearer than plain cuts")
check(all(m["massive_tokens"] == 0 and m["ordinary_error"] == m["error"] for m in statistics["maps"]), "no token is massive")
given = work / "given.json"
some = [*models, "--data", *data, *prompts, "--maps", fitted, "--only", "7-10", "4-11", "--scattered", 0, "-o", given]
done = profile(*some)
says(done, "no control with shuffled maps: '", "fitted.shuffled.safetensors' is not there; `ds-profile fit --shuffled` writes it")
check(not any("shuffled" in w["way"] for w in json.loads(given.read_text())["ways"]), "no control without its file")
for w in json.loads(given.read_text())["ways"]: check(w["way"] not in by_name or w["score"] == by_name[w["way"]]["score"], f"{w['way']} with maps that were given")
done = profile("fit", *models, "--data", fit_data, *prompts, "-o", fitted, "--shuffled")
check("layer  form" in done.stdout and "11 of 11 maps are kept" in done.stdout, f"a table of the layers: {done.stdout}")
check("warning" not in done.stderr, f"no ridge at a limit: {done.stderr}")
(given).unlink(); shutil.rmtree(work / "given.json.run")
says(profile(*some), "control: shuffled maps '")
check(any(w["way"] == "recompute 7-10 aligned (shuffled)" for w in json.loads(given.read_text())["ways"]), "the control of maps that were given")
for w in json.loads(given.read_text())["ways"]: check(w["way"] not in by_name or w["score"] == by_name[w["way"]]["score"], f"{w['way']} with maps that were given")
statistics = json.loads(profile("fit", "--sender", pair / "receiver", "--receiver", pair / "receiver", "--data", fit_data, *prompts, "-o", work / "same.safetensors", "--json").stdout)
check(statistics["maps"] == [] and [m["layer"] for m in statistics["plain"]] == list(range(1, 12)), "one model needs no maps")
check(all(m["plain_error"] == 0 for m in statistics["plain"]), "nor has it an error without")


# Stopped at any moment, twice, and gone on with: the same bytes.
killed = work / "killed.json"
for wait in (1.6, 3.0):
    run = subprocess.Popen(command(*job, "-o", killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(wait)
    run.kill(); run.wait()
kept = len(list((work / "killed.json.run").glob("context-*.jsonl"))) if (work / "killed.json.run").exists() else 0
done = profile(*job, "-o", killed)
if kept: says(done, f"going on from", f"{kept} of 12 contexts are there; about ", " to go")
check(killed.read_bytes() == whole.read_bytes(), f"killed after {kept} contexts, the profile is the same")
run = subprocess.Popen(command(*job, "-o", work / "stopped.json"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
while not list((work / "stopped.json.run").glob("context-*.jsonl")) and run.poll() is None: time.sleep(0.02)
run.send_signal(signal.SIGINT)
text = run.communicate()[1]
if run.returncode != 0: check("the same command goes on from there" in text, f"an interrupt says what is kept: {text[-300:]}")
profile(*job, "-o", work / "stopped.json")
check((work / "stopped.json").read_bytes() == whole.read_bytes(), "interrupted, the profile is the same")

# Shared by three processes.
shared = [subprocess.Popen(command(*job, "--threads", 1, "--state", work / "shared", "-o", work / f"shared{i}.json"),
                           stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for i in range(3)]
for i, run in enumerate(shared):
    text = run.communicate()[1]
    check(run.returncode == 0, f"process {i} of a shared run: {text[-300:]}")
    check((work / f"shared{i}.json").read_bytes() == whole.read_bytes(), f"process {i} of a shared run wrote the same profile")
check(not list((work / "shared").glob("*.lock")), "no lock is left")

# Two runs merged are the run of both.
for i, path in enumerate(data):
    profile(*models, "--data", path, *prompts, "--fit-data", fit_data, "--scattered", 1, "-o", work / f"part{i}.json")
profile("merge", work / "part0.json.run", work / "part1.json.run", "-o", work / "merged.json")
merged = json.loads((work / "merged.json").read_text())
for w in merged["ways"]: check(w["score"] == by_name[w["way"]]["score"], f"merged score of {w['way']}")
check((work / "merged.maps.safetensors").read_bytes() == maps.read_bytes(), "a merged profile has its maps, too")
profile(*models, "--data", data[0], *prompts, "--fit-data", pair / "fit" / "code.jsonl", "--scattered", 1, "-o", work / "other.json", "--only", "7-10")
profile(*models, "--data", data[1], *prompts, "--fit-data", fit_data, "--scattered", 1, "-o", work / "another.json", "--only", "7-10")
says(profile("merge", work / "other.json.run", work / "another.json.run", "-o", work / "no.json", expect=5), "their maps differ", "--maps")
profile("merge", work / "part0.json.run", work / "part0.json.run", "-o", work / "twice.json")
check(json.loads((work / "twice.json").read_text())["items"] == json.loads((work / "part0.json").read_text())["items"], "the same run twice counts once")

# Racing: fewer answers; what it keeps is as without.
done = profile(*job, "--race", 0.95, "--race-round", 5, "-o", work / "race.json")
says(done, "the risk that a best one is dropped is at most 5 %")
raced = json.loads((work / "race.json").read_text())
for w in raced["ways"]:
    if w["items"] == by_name[w["way"]]["items"]: check(w["score"] == by_name[w["way"]]["score"], f"raced score of {w['way']}")
check(raced["cost"]["answers"] <= quality["cost"]["answers"], "racing does not cost more")

# A damaged file is made again, another run is refused, a missing context is not passed over.
record = sorted((work / "killed.json.run").glob("context-*.jsonl"))[3]
record.write_bytes(record.read_bytes()[: record.stat().st_size // 2])
says(profile("merge", work / "killed.json.run", "-o", work / "no.json", expect=4), record.name)
done = profile(*job, "-o", killed)
says(done, "computing it again", record.name)
check(killed.read_bytes() == whole.read_bytes(), "with a damaged record made again, the profile is the same")
says(profile(*job, "--seed", 2, "-o", killed, expect=5), "holds another run; it differs in seed (1 there, 2 here)", "--state")
check(killed.read_bytes() == whole.read_bytes(), "a refused run leaves the profile as it was")
record.unlink()
says(profile("merge", work / "killed.json.run", "-o", work / "no.json", expect=7), "has 11 of 12 contexts")
(work / "killed.json.run" / "run.json").write_text('{"schema": "droidsp')
says(profile(*job, "-o", killed, expect=4), "run.json")

# A full disk: what was done is kept.
limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)) or signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
done = subprocess.run(command(*job, "-o", work / "full.json"), capture_output=True, text=True, preexec_fn=limit)
check(done.returncode != 0 and "cannot write" in done.stderr and "the same command goes on from there" in done.stderr, f"a full disk: {done.returncode} {done.stderr[-400:]}")
check(not list((work / "full.json.run").glob("*.tmp*")) and not (work / "full.json").exists(), "nothing half-written")
profile(*job, "-o", work / "full.json")
check((work / "full.json").read_bytes() == whole.read_bytes(), "after a full disk, the profile is the same")

# Bad input, before anything is computed.
bad = work / "bad.jsonl"
def refused(content, *texts, expect=2, args=()):
    bad.write_text(content)
    says(profile(*models, "--data", bad, *args, "-o", work / "bad.json", expect=expect), *texts)
    check(not (work / "bad.json").exists(), "a refused run writes nothing")
item = lambda **kw: json.dumps({"context": "Notes: x.", "input": "?", "answers": ["a"], "dataset": "t", "metric": "qa_f1", **kw}) + "\n"
bad.write_text("")
says(profile(*models, "--data", bad, "-o", work / "bad.json", expect=4), "bad.jsonl", "is empty")
refused(item(answers=[]), "bad.jsonl:1")
refused(item() + item(metric="bleu"), "bad.jsonl:2", "bleu", "qa_f1")
refused(item(context="a red lamp " * 3000), "bad.jsonl:1", "do not fit the models' 2048 positions", "--truncate")
refused(item(input=""), "bad.jsonl:1", args=())
done = profile("--sender", root / "tests" / "golden" / "models" / "llama" / "sender", "--receiver", pair / "receiver", "--data", data[0], "--prompts",
               pair / "data" / "prompts.json", "-o", work / "bad.json", expect=5)
says(done, "cannot share caches", "hidden_size")
says(profile("--receiver", pair / "receiver", "--data", data[0], "-o", work / "bad.json", expect=2), "--sender is missing")
says(profile(*job, "--granularity", 13, "-o", work / "bad.json", expect=2), "--granularity 13", "1 to 12")
says(profile(*job, "--select", "15", "-o", work / "bad.json", expect=2), "bad share '15'", "with the sign")
says(profile(*job, "--race", 2, "-o", work / "bad.json", expect=2), "--race")
# By default a quarter of the contexts is for the fit, and the maps say what they were fitted on.
done = profile(*models, "--data", *data, *prompts, "--no-controls", "--only", "7-10", "-o", work / "shared_data.json")
says(done, "fitting maps on 3 contexts")
check(json.loads((work / "shared_data.json").read_text())["contexts"] == 9, "contexts of the fit are not scored")
own = (work / "shared_data.maps.safetensors").read_bytes()
own = json.loads(own[8:8 + int.from_bytes(own[:8], "little")])["__metadata__"]
check([d["name"] for d in json.loads(own["data"])] == ["qa.jsonl", "code.jsonl"], f"what maps were fitted on: {own['data']}")

# Maps that cannot be had.
one = work / "one.jsonl"
one.write_text("".join((pair / "data" / "notes_qa.jsonl").read_text().splitlines(keepends=True)[:1]))
base = [*models, "--data", data[0], *prompts, "--no-controls", "-o", work / "bad.json"]
says(profile(*models, "--data", one, *prompts, "-o", work / "bad.json", expect=7), "1 of 1 contexts are set aside to fit maps on", "--fit-data", "--no-align")
says(profile(*base, "--fit-data", data[0], expect=2), "8 contexts of --fit-data are scored as well", "fitted on 0 contexts; expected at least 2")
short = work / "short.jsonl"
short.write_text("".join(json.dumps({"context": f"Notes: {n} keeps the lamp.", "input": "-", "answers": ["-"], "dataset": "notes_qa"}) + "\n" for n in ("Anna", "Ben")))
shutil.rmtree(work / "bad.json.run")
says(profile(*base, "--fit-data", short, expect=7), "layer 1:", "hidden states of width 128 need at least 256")
check(not (work / "bad.json").exists(), "nothing is written")
shutil.rmtree(work / "bad.json.run")
done = profile(*base, "--fit-data", short, "--align-fallback", "plain", "--only", "7-10")
says(done, "plain cut: layer 7: ")
plain = json.loads((work / "bad.json").read_text())
check(all("map" not in w for w in plain["ways"]) and any(w["way"] == "recompute 7-10" for w in plain["ways"]), "plain cuts instead")
(work / "bad.json").unlink(); shutil.rmtree(work / "bad.json.run")
says(profile("--sender", pair / "mild", *models[2:], "--data", data[0], *prompts, "--maps", fitted, "-o", work / "bad.json", expect=5), "fitted for sender 'sender'", "another pair")
broken = work / "broken.safetensors"
broken.write_bytes(fitted.read_bytes()[:-40])
says(profile(*base, "--maps", broken, expect=4), "broken.safetensors")
broken.write_bytes(fitted.read_bytes()[:-4] + b"\0\0\xc0\x7f")
says(profile(*base, "--maps", broken, expect=4), "layers.11.full.bias", "finite")
says(profile(*base, "--maps", fitted, "--fit-data", short, expect=2), "expected one of --maps, --fit-data, --fit-share and --no-align, found 2")
says(profile(*base, "--fit-share", "100%", expect=2), "nothing would be left to score")
says(profile(*base, "--align", "cubic", "--fit-data", fit_data, expect=2), "--align: unknown form 'cubic'; expected one of diagonal, low-rank, full")
says(profile("fit", *models, "--data", fit_data, *prompts, "--rank", 129, "-o", broken, expect=2), "rank 129; expected 1 to 128")
poisoned = work / "poisoned"
shutil.copytree(pair / "sender", poisoned)
weights = bytearray((poisoned / "model.safetensors").read_bytes())
size = int.from_bytes(weights[:8], "little")
at = 8 + size + json.loads(weights[8:8 + size])["model.layers.5.mlp.down_proj.weight"]["data_offsets"][0]
weights[at:at + 2] = b"\xc0\x7f"
(poisoned / "model.safetensors").write_bytes(weights)
says(profile("fit", "--sender", poisoned, *models[2:], "--data", fit_data, *prompts, "-o", work / "no.safetensors", expect=4),
     "model.layers.5.mlp.down_proj.weight", "finite weights")
check(not (work / "no.safetensors").exists() and not (work / "bad.json").exists(), "nothing is written")

done = profile(*job, "--dry-run", "-o", work / "dry.json")
check(not (work / "dry.json").exists() and not (work / "dry.json.run").exists(), "a dry run leaves nothing")

shutil.rmtree(work)
print(f"{len(failures)} failures")
sys.exit(1 if failures else 0)
