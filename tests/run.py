#!/usr/bin/env python3
"""Runs every test of a build and ends with one plain line: "N passed, N failed". What
needs a device or a right that is not there is counted as skipped, on the line before.

usage: tests/run.py BUILD_DIR [--only NAME]...     NAME: a GoogleTest program, "lit", or a script's folder under tests/
"""
import json, os, pathlib, re, subprocess, sys, tempfile, time

root = pathlib.Path(__file__).resolve().parent.parent
# Threads that spin while they wait take the core from each other on a busy machine; tests need no microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def googletest(program, totals, arguments=(), **more):
    """One program; its own report is the count, and a crash is a failure whatever the report says."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        done = subprocess.run([program, f"--gtest_output=json:{report}", *arguments], env=os.environ | more, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, text=True, errors="replace")
        passed = failed = skipped = 0
        if report.exists():
            for suite in json.loads(report.read_text())["testsuites"]:
                for case in suite["testsuite"]:
                    if "failures" in case: failed += 1
                    elif case.get("result") == "SKIPPED": skipped += 1
                    else: passed += 1
        if done.returncode != 0 and failed == 0 or passed + failed + skipped == 0: failed += 1
        if failed: print(done.stdout[-8000:])
        totals.append((passed, failed, skipped))


# Programs that also run on the device that is simulated on the CPU, and which of their tests: one model or type of a kind each,
# since it is some hundred times slower.
SIMULATED = {
    "landing_test": "*",
    "oracle_test": "*",
    "executor_test": "Misses*:*Laws.*/llama_f32:*Laws.*/qwen3_bf16",
    "aligned_test": "*AlignedOracle*/1",
    "tilings_test": "*Tilings*/0:TilingLaws.*Restored",
    "engine_test": "*EngineOracle*/0",
}


def lit(build, totals):
    done = subprocess.run(["cmake", "--build", build, "--target", "check-lit"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True, errors="replace")
    count = lambda word: sum(int(n) for n in re.findall(rf"^\s*{word}\s*:\s*(\d+)", done.stdout, re.M))
    passed, failed, skipped = count("Passed"), count("Failed") + count("Unresolved"), count("Unsupported")
    if done.returncode != 0 and failed == 0 or passed == 0: failed += 1
    if failed: print(done.stdout[-12000:])
    totals.append((passed, failed, skipped))


def script(path, build, totals):
    """tests/*/run.sh: exit 0 passed, 77 skipped (with its reason on stdout), anything else failed."""
    done = subprocess.run(["bash", path, build], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          text=True, errors="replace")
    if done.returncode not in (0,): print(done.stdout[-8000:])
    totals.append((int(done.returncode == 0), int(done.returncode not in (0, 77)), int(done.returncode == 77)))


def main():
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"): sys.exit(__doc__)
    build = pathlib.Path(sys.argv[1]).resolve()
    only = [sys.argv[i + 1] for i, a in enumerate(sys.argv[:-1]) if a == "--only"]
    programs = sorted(p for p in (build / "tests").iterdir() if p.is_file() and os.access(p, os.X_OK) and p.suffix != ".so")
    jobs = [(p.name, lambda t, p=p: googletest(str(p), t)) for p in programs]
    module = build / "tests" / "droidspeak_cuda_simulated.so"
    if module.exists():
        device = {"DROIDSPEAK_TEST_BACKEND": "cuda", "DROIDSPEAK_CUDA_MODULE": str(module)}
        jobs += [(f"{p.name[:-5]}_simulated", lambda t, p=p: googletest(str(p), t, [f"--gtest_filter={SIMULATED[p.name]}"], **device))
                 for p in programs if p.name in SIMULATED]
    jobs += [(s.parent.name, lambda t, s=s: script(str(s), str(build), t)) for s in sorted((root / "tests").glob("*/run.sh"))]
    if (build / "bin" / "ds-opt").exists(): jobs.append(("lit", lambda t: lit(str(build), t)))
    jobs = [j for j in jobs if not only or j[0] in only]
    totals = []
    for name, job in jobs:
        start = time.time()
        job(totals)
        passed, failed, skipped = totals[-1]
        print(f"{'FAIL' if failed else 'ok':4} {name:28} {passed:5} passed {failed:3} failed {skipped:3} skipped  {time.time() - start:6.1f} s", flush=True)
    passed, failed, skipped = (sum(t[i] for t in totals) for i in range(3))
    if skipped: print(f"{skipped} skipped: they need a device, or a right, that is not there")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


main()
