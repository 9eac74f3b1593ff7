#!/usr/bin/env python3
"""Tests and measures droidspeak on the GPU of this machine; writes one JSON file.

  ./run.py -o results.json                        everything, half an hour
  ./run.py --steps tests,calibrate,prefill        only these
  ./run.py --quick                                small shapes and few repeats: whether all of it runs

Every step has a time limit and a part of its own in the JSON; one that fails is noted there and the next one runs. The file
is written after every step, so that nothing is lost when the machine is taken away. Compare ratios, not times, where others
use the GPU too.
"""
import argparse, datetime, glob, json, os, pathlib, platform, re, shutil, statistics, subprocess, sys, tempfile, time

here = pathlib.Path(__file__).resolve().parent
STEPS = ["device", "tests", "sanitizer", "kernels", "calibrate", "decode", "prefill", "overlap", "plans", "pair"]


def say(text): print(text, file=sys.stderr, flush=True)


def cuda_libraries():
    """Folders with cuBLASLt and cuDNN: the loader's own, or those of Python's packages."""
    found = []
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
    if "libcublasLt.so" in known and "libcudnn.so" in known: return found
    for root in [p for p in sys.path if p.endswith("-packages")] + ["/usr/local/cuda/lib64", "/usr/local/cuda/lib"]:
        for library in glob.glob(f"{root}/nvidia/*/lib/lib*.so.*") + glob.glob(f"{root}/lib*.so.*"):
            name = os.path.basename(library)
            if re.match(r"lib(cublasLt|cudnn|nvrtc)\.so", name): found.append(os.path.dirname(library))
    return sorted(set(found))


class Bench:
    def __init__(self, o):
        self.o = o
        binaries = pathlib.Path(o.bin).resolve() if o.bin else here / "bin"
        self.bin = binaries
        self.programs = binaries.parent / "tests"
        self.environment = dict(os.environ)
        folders = [str(here / "lib")] * (here / "lib").is_dir() + cuda_libraries()
        old = os.environ.get("LD_LIBRARY_PATH")
        if folders: self.environment["LD_LIBRARY_PATH"] = ":".join(folders + ([old] if old else []))
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="ds-gpu-"))
        self.environment["DROIDSPEAK_CACHE"] = str(self.scratch / "cache")
        self.results = {"started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                        "command": " ".join(sys.argv), "steps": {}}
        revision = here / "REVISION"
        if revision.exists(): self.results["revision"] = revision.read_text().strip()
        quick = o.quick
        self.big = "llama:layers=4,d=512,ff=1024,heads=8,kv=2,vocab=4000" if quick else "llama-8b"
        self.shapes = [self.big] if quick else ["llama-8b", "llama-1b"]
        self.lengths = [256, 1024] if quick else [2048, 8192, 32768]
        self.repeats = 2 if quick else 7

    # ---- running

    def run(self, command, limit, **more):
        say("  $ " + " ".join(map(str, command)))
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace", timeout=limit,
                              env=self.environment, **more)
        return done

    def json_of(self, command, limit):
        """What a tool writes with --json FILE."""
        out = self.scratch / "figures.json"
        out.unlink(missing_ok=True)
        done = self.run(command + ["--json", out], limit)
        if done.returncode != 0:
            raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()[-800:]}")
        say("\n".join("    " + line for line in done.stderr.strip().splitlines()[-40:]))
        return json.loads(out.read_text())

    def on(self): return ["--backend", self.o.backend, "--device", str(self.o.device)]

    def step(self, name):
        say(f"{name} ...")
        start = time.time()
        try:
            result = getattr(self, name)()
        except subprocess.TimeoutExpired as e:
            result = {"failed": f"not done after {e.timeout:.0f} s: {' '.join(e.cmd)[:300]}"}
        except Exception as e:  # whatever it was, the other steps count
            result = {"failed": f"{type(e).__name__}: {e}"}
        if "failed" in result: say("  FAILED: " + result["failed"])
        self.results["steps"][name] = {"seconds": round(time.time() - start, 1), **result}
        partial = self.o.output + ".partial"
        pathlib.Path(partial).write_text(json.dumps(self.results, indent=1) + "\n")
        os.replace(partial, self.o.output)

    # ---- steps

    def device(self):
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,pcie.link.gen.max,pcie.link.width.max"
        found = {"host": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        if shutil.which("nvidia-smi"):
            done = self.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], 60)
            found["nvidia_smi"] = [dict(zip(query.split(","), map(str.strip, line.split(",")))) for line in done.stdout.strip().splitlines()]
        return found

    def tests(self):
        """Conformance, kernels and attention on the device."""
        out = {}
        for test in sorted(self.programs.glob("*cuda*_test")):
            if "simulated" in test.name: continue
            report = self.scratch / "gtest.json"
            report.unlink(missing_ok=True)
            done = self.run([test, "--gtest_brief=1", f"--gtest_output=json:{report}"], 400)
            counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
            for suite in json.loads(report.read_text())["testsuites"] if report.exists() else []:
                for case in suite["testsuite"]:
                    kind = "failed" if "failures" in case else "skipped" if case.get("result") == "SKIPPED" else "passed"
                    counts[kind] += 1
                    if kind == "failed": failures.append({"test": f"{suite['name']}.{case['name']}", "why": case["failures"][0]["failure"][:600]})
            if not report.exists(): failures.append({"test": test.name, "why": f"exit status {done.returncode}: " + done.stdout[-800:] + done.stderr[-800:]})
            out[test.name] = {**counts, "failures": failures}
            say(f"    {test.name}: {counts}")
        return {"programs": out} if out else {"failed": f"no test programs in {self.programs}"}

    def sanitizer(self):
        if not shutil.which("compute-sanitizer"): return {"skipped": "compute-sanitizer is not on PATH"}
        out = {}
        for tool in ["memcheck", "racecheck"]:
            for name in ["cuda_kernels_test", "cuda_attention_test"]:
                test = self.programs / name
                if not test.exists(): continue
                done = self.run(["compute-sanitizer", "--tool", tool, "--error-exitcode", "97", test, "--gtest_brief=1"], 300)
                summary = [line for line in (done.stdout + done.stderr).splitlines() if "SUMMARY" in line]
                out[f"{tool} {name}"] = {"exit": done.returncode, "summary": summary[-1:], "first": done.stdout[:1500] if done.returncode == 97 else ""}
                say(f"    {tool} {name}: exit {done.returncode} {summary[-1:]}")
        return {"runs": out}

    def kernels(self):
        rows = "1,16,256" if self.o.quick else "1,16,64,1024,8192"
        context = "256" if self.o.quick else "8192"
        return {shape: self.json_of([self.bin / "ds-bench", "kernels", "--shape", shape, "--rows", rows, "--context", context,
                                     "--repeats", str(self.repeats)] + self.on(), 300) for shape in self.shapes}

    def calibrate(self):
        """The cost table that ds-compile reads; bring it back for make-plans."""
        lengths = "64,256" if self.o.quick else "1024,2048,8192,32768"
        done = self.run([self.bin / "ds-calibrate", "--shape", self.big, "--context-lengths", lengths, "--suffix-length", "64",
                         "--budget-s", "8" if self.o.quick else "60", "--store", self.store(), "-o", "-"] + self.on(), 300)
        if done.returncode != 0: raise RuntimeError(f"exit status {done.returncode}: {done.stderr.strip()[-800:]}")
        return {"machine": json.loads(done.stdout)}

    def decode(self):
        return {shape: self.json_of([self.bin / "ds-bench", "decode", "--shape", shape, "--batch", "1,8", "--context",
                                     "256" if self.o.quick else "8192", "--steps", "16", "--repeats", str(self.repeats)] + self.on(), 300)
                for shape in self.shapes}

    def prefill(self):
        """In turns with torch where it is there: neighbouring measurements form a pair, and who goes first changes."""
        return {shape: self.prefill_of(shape) for shape in self.shapes}

    def prefill_of(self, shape):
        lengths = ",".join(map(str, self.lengths))
        ours = Turns([self.bin / "ds-bench", "prefill", "--turns", "--shape", shape, "--lengths", lengths] + self.on(), self.environment)
        theirs = None
        out = {"ours": ours.about}
        if not self.o.no_torch and shape in ("llama-8b", "llama-1b"):
            theirs = Turns([sys.executable, here / "torch_prefill.py", "--shape", shape, "--device", f"cuda:{self.o.device}",
                            "--compile", self.o.compile, "--repeats", "1"], dict(os.environ))
            out["theirs"] = theirs.about
        rows = []
        for tokens in self.lengths:
            ours.measure(tokens)
            if theirs: theirs.measure(tokens)
            pairs = []
            for i in range(self.repeats):
                first, second = (ours, theirs) if i % 2 == 0 else (theirs, ours)
                answers = {id(p): p.measure(tokens) for p in (first, second) if p}
                pairs.append({"ours": answers[id(ours)], "theirs": answers[id(theirs)]["seconds"] if theirs else None})
            a = [p["ours"]["seconds"] for p in pairs]
            row = {"tokens": tokens, "seconds": statistics.median(a), "seconds_all": a,
                   "share_of_matmul": statistics.median(p["ours"]["share"] for p in pairs),
                   "matmul_gflops": statistics.median(p["ours"]["matmul_gflops"] for p in pairs)}
            if theirs:
                b = [p["theirs"] for p in pairs]
                row |= {"torch_seconds": statistics.median(b), "torch_seconds_all": b,
                        "torch_over_ours": statistics.median(y / x for x, y in zip(a, b))}
            rows.append(row)
            say(f"    {shape} {tokens}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float)))
        ours.end()
        if theirs: theirs.end()
        return {**out, "lengths": rows}

    def overlap(self):
        """What copies cost the products beside them."""
        out = {}
        for rate in ["4Gb/s", "100Gb/s", "60GB/s"]:
            out[rate] = self.json_of([self.bin / "ds-bench", "overlap", "--shape", self.big if self.o.quick else "llama-8b:8", "--rate", rate, "--tokens",
                                      "256" if self.o.quick else "8192", "--store", self.store(), "--repeats", str(self.repeats)] + self.on(), 200)
        return out

    def plans(self):
        folder = pathlib.Path(self.o.plans) if self.o.plans else here / "plans"
        if not folder.is_dir():
            return {"skipped": "no plans: make them from this run's calibrate.machine with ds-bench make-plans, and run again with --plans"}
        return self.json_of([self.bin / "ds-bench", "plans", "--shape", self.big, "--plans", folder, "--store", self.store(), "--repeats", str(self.repeats)] + self.on(), 580)

    def pair(self):
        """The trained pair on a few documents: every way's score, on the device and on the CPU."""
        pair = here / "pair" if (here / "pair").is_dir() else here.parents[1] / "examples" / "pair"
        data = []
        for name in ["notes_qa", "module_code"]:
            lines = (pair / "data" / f"{name}.jsonl").read_text().splitlines()[: 2 if self.o.quick else 8]
            data.append(self.scratch / f"{name}.jsonl")
            data[-1].write_text("\n".join(lines) + "\n")
        scores = {}
        for backend in [self.o.backend, "cpu"]:
            out = self.scratch / f"quality-{backend}.json"
            done = self.run([self.bin / "ds-profile", "--sender", pair / "sender", "--receiver", pair / "receiver", "--data", *data, "--prompts",
                             pair / "data" / "prompts.json", "--maps", pair / "maps.safetensors", "--no-controls", "-o", out,
                             "--backend", backend, "--device", str(self.o.device)], 250)
            if done.returncode != 0: raise RuntimeError(f"{backend}: {done.stderr.strip()[-800:]}")
            scores[backend] = {w["way"]: w["score"]["mean"] if isinstance(w["score"], dict) else w["score"] for w in json.loads(out.read_text())["ways"]}
        a, b = scores[self.o.backend], scores["cpu"]
        apart = sorted(((abs(a[w] - b[w]), w) for w in b), reverse=True)
        return {"ways": len(b), "equal": sum(d == 0 for d, _ in apart), "furthest_apart": [{"way": w, "points": d} for d, w in apart[:5]],
                "scores": {w: [a[w], b[w]] for w in b}}

    # Memory, where there is such a folder: the links measured are faster than disks.
    def store(self): return "file:" + str(pathlib.Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else self.scratch) / f"ds-gpu-{os.getpid()}")


class Turns:
    """A program that stays loaded and measures when told to."""

    def __init__(self, command, environment):
        say("  $ " + " ".join(map(str, command)))
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, env=environment)
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"{self.process.args[0]} ended: {self.errors.read().decode(errors='replace').strip()[-800:]}")
        return json.loads(line)

    def measure(self, tokens):
        self.process.stdin.write(f"{tokens}\n".encode())
        self.process.stdin.flush()
        return self.answer()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("-o", "--output", default="results.json", help="JSON file (default: results.json)")
    p.add_argument("--steps", default=",".join(STEPS), help="which, in this order: " + ",".join(STEPS))
    p.add_argument("--quick", action="store_true", help="small shapes, few repeats")
    p.add_argument("--plans", help="folder of ds-bench make-plans (default: plans/ beside this script)")
    p.add_argument("--device", type=int, default=0)
    p.add_argument("--backend", default="cuda", help="another one to try the script itself")
    p.add_argument("--bin", help="folder of the programs (default: bin/ beside this script)")
    p.add_argument("--no-torch", action="store_true", help="no torch beside the prefills")
    p.add_argument("--compile", default="max-autotune-no-cudagraphs", help="mode of torch.compile")
    o = p.parse_args()
    steps = o.steps.split(",")
    unknown = [s for s in steps if s not in STEPS]
    if unknown: sys.exit(f"error: no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    bench = Bench(o)
    if not (bench.bin / "ds-bench").exists(): sys.exit(f"error: no ds-bench in '{bench.bin}'; unpack the whole bundle, or name the folder with --bin")
    try:
        for name in steps: bench.step(name)
    finally:
        shutil.rmtree(bench.scratch, ignore_errors=True)
    failed = [n for n, s in bench.results["steps"].items() if "failed" in s]
    say(f"wrote {o.output}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(1 if failed else 0)


main()
