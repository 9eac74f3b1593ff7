#!/usr/bin/env python3
"""Runs every test of a build and ends with one plain line: "N passed, N failed". What
needs a device or a right that is not there is counted as skipped, on the line before."""
import argparse, collections, dataclasses, json, os, pathlib, re, signal, subprocess, sys, tempfile, threading, time
from typing import Callable

root = pathlib.Path(__file__).resolve().parent.parent

# Programs that also run on the device that is simulated on the CPU, and which of their tests: one model or type of a kind each,
# since it is some hundred times slower.
SIMULATED = {
    "landing_test": "*",
    "kv_arena_test": "*ASequenceGrows*",
    "requests_test": "*BesideOthers*:*AConversationGoesOn*:*AStoreThatHangsHoldsNoEngine*",
    "oracle_test": "*",
    "executor_test": "Misses*:*Laws.*/llama_f32:*Laws.*/qwen3_bf16",
    "aligned_test": "*AlignedOracle*/1",
    "tilings_test": "*Tilings*/0:TilingLaws.*Restored",
    "engine_test": "*EngineOracle*/0",
    "faults_test": "*OneRequest*/flipped:*AnEngine*/torn:*AnEngine*/hangs",
}

# What that device is like for them, where it is not as in its README: steps of memory so small that a tiny model's caches grow by them.
SIMULATED_DEVICES = {"requests_test": "granule=16KiB"}

# What runs under the sanitizers (presets asan and tsan), as GoogleTest filters: what reads bytes of others, what hands memory from
# thread to thread, and requests from the store to the first token. GoogleTest and oneDNN are not instrumented: what they do with
# memory is not seen, only what is done to their arguments.
SANITIZERS = {
    "address": {
        "preset": "asan",
        # No detect_stack_use_after_return: its frames are not aligned for the 64-byte vectors of AVX-512 kernels, which then fault.
        "environment": {"ASAN_OPTIONS": "allocator_may_return_null=1", "UBSAN_OPTIONS": "print_stacktrace=1"},
        "programs": {
            "support_test": "*", "plans_test": "*", "plan_file_test": "*", "plan_rules_test": "*", "plan_fuzz_test": "*", "config_test": "*", "checkpoint_test": "*", "tokenizer_test": "*", "store_test": "-*Killed*", "redis_store_test": "-*Killed*",
            "landing_test": "*", "executor_test": "*", "kv_arena_test": "*", "requests_test": "-*Soak*", "repair_test": "*", "faults_test": "*", "gate_test": "*", "weight_cache_test": "*", "aligned_test": "*", "trace_test": "*", "dataset_test": "*",
            "metrics_test": "*", "aggregate_test": "*", "serve_test": "*",
        },
        "quick": ["plans_test", "plan_file_test", "plan_rules_test", "plan_fuzz_test", "config_test", "checkpoint_test", "tokenizer_test", "store_test"],
    },
    "thread": {
        "preset": "tsan",
        # libgomp is not instrumented, and its barriers look like races: one OpenMP thread. Seen are the threads that we start
        # (streams, landings, stores, loading, weight caches), not races between the iterations of one parallel loop.
        "environment": {"TSAN_OPTIONS": f"suppressions={root}/tests/thread_sanitizer.supp:second_deadlock_stack=1", "OMP_THREAD_LIMIT": "1"},
        "programs": {"landing_test": "*", "store_test": "-*Killed*", "redis_store_test": "-*Killed*", "executor_test": "*", "requests_test": "-*Soak*", "gate_test": "*", "weight_cache_test": "*", "checkpoint_test": "*"},
        "quick": ["landing_test", "store_test"],
    },
}

Outcome = collections.namedtuple("Outcome", "passed failed skipped output")


@dataclasses.dataclass
class Job:
    name: str
    run: Callable[[], Outcome]
    alone: bool = False  # it has several processes of its own, or measures


class Limits:
    """How long one program may take, and who is running."""

    def __init__(self, seconds):
        self.seconds, self.running, self.lock, self.stopped = seconds, set(), threading.Lock(), False

    def execute(self, command, env):
        """The exit status (None: killed, since it took too long), and all that was printed. When it returns, nothing that
        the command has started is left, unless it made a session of its own."""
        with tempfile.TemporaryFile() as output:
            with self.lock:
                if self.stopped: return 1, ""
                # A group of its own can be killed with all its children. A file, since a child that is left holds a pipe open.
                try:
                    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
                except OSError as error:
                    return 127, f"{error}\n"
                self.running.add(process)
            try:
                code = process.wait(self.seconds)
            except subprocess.TimeoutExpired:
                code = None
                self.signal(process, signal.SIGTERM)  # scripts remove what they have made
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    pass
            self.signal(process, signal.SIGKILL)
            process.wait()
            with self.lock: self.running.discard(process)
            output.seek(0)
            return code, output.read().decode(errors="replace")

    @staticmethod
    def signal(process, number):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):  # nobody is left
            pass

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.running: self.signal(process, signal.SIGKILL)

    def ending(self, code):
        if code is None: return f"killed: it took longer than {self.seconds:g} s (--time-limit)"
        if code < 0:
            return f"ended by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"
        return f"exit status {code}"


def shortened(text, first=4000, last=8000):
    """What failed first, and how it ended."""
    if len(text) <= first + last: return text
    return f"{text[:first]}\n[... {len(text) - first - last} characters ...]\n{text[-last:]}"


def googletest(program, limits, arguments=(), **more):
    """One program. Its own report is the count; one that was killed or crashed before it wrote any is counted by what it
    printed, and the test that was running is a failure. An ending that the report does not explain is one too."""
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        code, output = limits.execute([program, f"--gtest_output=json:{report}", *arguments], os.environ | more)
        cases = collections.Counter()
        explained = False
        try:
            for suite in json.loads(report.read_text())["testsuites"]:
                for case in suite["testsuite"]:
                    if case.get("status") == "NOTRUN": continue
                    cases["failed" if "failures" in case else "skipped" if case.get("result") == "SKIPPED" else "passed"] += 1
            # 1 is what GoogleTest gives for failures.
            explained = code == (1 if cases["failed"] else 0)
            running = []
        except (OSError, ValueError, KeyError, TypeError):
            cases.clear()
            started = re.findall(r"^\[ +(RUN|OK|FAILED|SKIPPED) +\] ([^\s,]+)", output, re.M)
            ended = {name: what for what, name in started if what != "RUN"}
            cases.update({"OK": "passed", "FAILED": "failed", "SKIPPED": "skipped"}[how] for how in ended.values())
            running = [name for what, name in started if what == "RUN" and name not in ended]
        notes = []
        if not explained or sum(cases.values()) == 0:
            cases["failed"] += 1
            note = limits.ending(code) if code != 0 else "it reported no tests"
            if running: note += f", while {running[-1]} was running"
            elif code is None or report.exists(): note += ", after its last test"
            notes.append(f"{program}: {note}\n")
        return Outcome(cases["passed"], cases["failed"], cases["skipped"], shortened(output) + "".join(notes) if cases["failed"] else "")


def lit(build, limits):
    """lit limits its tests itself (tests/lit/lit.cfg.py); the limit of the whole is for lit."""
    code, output = limits.execute(["cmake", "--build", build, "--target", "check-lit"], os.environ)
    count = lambda word: sum(int(n) for n in re.findall(rf"^\s*{word}\s*:\s*(\d+)", output, re.M))
    passed, skipped = count("Passed"), count("Unsupported")
    failed = count("Failed") + count("Unresolved") + count("Timed Out")
    if code != 0 and failed == 0 or passed == 0: failed += 1
    return Outcome(passed, failed, skipped, shortened(output) + f"lit: {limits.ending(code)}\n" if failed else "")


def script(path, build, limits):
    """tests/*/run.sh: exit 0 passed, 77 skipped (with its reason on stdout), anything else failed."""
    code, output = limits.execute(["bash", path, build], os.environ)
    note = f"{path}: {limits.ending(code)}\n" if code not in (0, 77) else ""
    return Outcome(int(code == 0), int(code not in (0, 77)), int(code == 77), shortened(output) + note if code != 0 else "")


def sanitized_jobs(build, kind, names, limits):
    what = SANITIZERS[kind]
    programs = {name: str(build / "tests" / name) for name in names}
    return [Job(f"{name[:-5]}_{kind}", lambda n=name: googletest(programs[n], limits, [f"--gtest_filter={what['programs'][n]}"], **what["environment"]))
            for name in names]


def find_jobs(build, limits):
    programs = sorted(p for p in (build / "tests").iterdir() if p.is_file() and os.access(p, os.X_OK) and p.suffix != ".so")
    jobs = [Job(p.name, lambda p=p: googletest(str(p), limits)) for p in programs]
    module = build / "tests" / "droidspeak_cuda_simulated.so"
    if module.exists():
        device = {"DROIDSPEAK_TEST_BACKEND": "cuda", "DROIDSPEAK_CUDA_MODULE": str(module)}
        kind = lambda p: {"DROIDSPEAK_SIMULATED_CUDA": SIMULATED_DEVICES[p.name]} if p.name in SIMULATED_DEVICES else {}
        jobs += [Job(f"{p.name[:-5]}_simulated", lambda p=p: googletest(str(p), limits, [f"--gtest_filter={SIMULATED[p.name]}"], **device, **kind(p)))
                 for p in programs if p.name in SIMULATED]
    jobs += [Job(s.parent.name, lambda s=s: script(str(s), str(build), limits), alone=True) for s in sorted((root / "tests").glob("*/run.sh"))]
    if (build / "bin" / "ds-opt").exists(): jobs.append(Job("lit", lambda: lit(str(build), limits), alone=True))
    return jobs


def run_jobs(jobs, side_by_side, report):
    """Those that share the machine first, the longest (by their names) before the others; then one after another."""
    shared = [j for j in jobs if not j.alone]
    shared.sort(key=lambda j: (not j.name.startswith("conformance"), "simulated" not in j.name))
    for group, width in ((shared, side_by_side), ([j for j in jobs if j.alone], 1)):
        waiting, lock = collections.deque(group), threading.Lock()

        def work():
            while True:
                with lock:
                    if not waiting: return
                    job = waiting.popleft()
                start = time.time()
                outcome = job.run()
                with lock: report(job, outcome, time.time() - start)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(width, len(group)))]
        for thread in threads: thread.start()
        for thread in threads: thread.join()


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("build", type=pathlib.Path, metavar="BUILD_DIR")
    parser.add_argument("--only", action="append", metavar="NAME", help='a GoogleTest program, "lit", or a script\'s folder under tests/; again for more')
    parser.add_argument("--sanitize", choices=[*SANITIZERS, "quick"],
                        help="address, thread: only what is stated for it in this file, from BUILD_DIR; quick: beside all tests of BUILD_DIR a part of both, "
                             "from the builds asan and tsan beside it")
    parser.add_argument("--programs", action="store_true", help="print what has to be built for --sanitize KIND (for quick: asan/PROGRAM, tsan/PROGRAM), and end")
    parser.add_argument("--jobs", type=int, metavar="N", help="GoogleTest programs side by side (default: half of the cores, at least 2 if there are 2)",
                        default=max(min(2, len(os.sched_getaffinity(0))), len(os.sched_getaffinity(0)) // 2))
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", default=float(os.environ.get("DROIDSPEAK_TEST_TIME_LIMIT", 600)),
                        help="for each program; one that takes longer is killed and has failed (default: DROIDSPEAK_TEST_TIME_LIMIT, or 600)")
    options = parser.parse_args()
    if options.programs:
        if options.sanitize in SANITIZERS: print(*SANITIZERS[options.sanitize]["programs"])
        if options.sanitize == "quick": print(*(f"{what['preset']}/{name}" for what in SANITIZERS.values() for name in what["quick"]))
        return
    # Threads that spin while they wait take the core from each other on a busy machine; tests need no microseconds.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ["DROIDSPEAK_TEST_TIME_LIMIT"] = f"{options.time_limit:g}"
    limits = Limits(options.time_limit)
    build = options.build.resolve()
    for kind, what in SANITIZERS.items():
        folder = build if options.sanitize == kind else build.parent / what["preset"] if options.sanitize == "quick" else None
        cache = folder / "CMakeCache.txt" if folder else None
        if cache and not (cache.exists() and re.search(rf"^DS_SANITIZE:\w+=.*{kind}", cache.read_text(), re.M)):
            sys.exit(f"tests/run.py: {folder} is no build of the preset {what['preset']}; ./dev test --sanitize {options.sanitize} makes it")
    if options.sanitize in SANITIZERS:
        jobs = sanitized_jobs(build, options.sanitize, SANITIZERS[options.sanitize]["programs"], limits)
    else:
        jobs = find_jobs(build, limits)
        if options.sanitize == "quick":
            for kind, what in SANITIZERS.items(): jobs += sanitized_jobs(build.parent / what["preset"], kind, what["quick"], limits)
    if unknown := set(options.only or ()) - {j.name for j in jobs}: sys.exit(f"tests/run.py: no test is named {', '.join(sorted(unknown))}")
    totals = []

    def report(job, outcome, seconds):
        totals.append(outcome)
        if outcome.output: print(outcome.output.rstrip("\n"))
        print(f"{'FAIL' if outcome.failed else 'ok':4} {job.name:32} {outcome.passed:5} passed {outcome.failed:3} failed {outcome.skipped:3} skipped  {seconds:6.1f} s", flush=True)

    signal.signal(signal.SIGTERM, interrupted)
    try:
        run_jobs([j for j in jobs if not options.only or j.name in options.only], options.jobs, report)
    except KeyboardInterrupt:
        limits.stop()
        sys.exit("tests/run.py: interrupted")
    passed, failed, skipped = (sum(getattr(t, what) for t in totals) for what in ("passed", "failed", "skipped"))
    if skipped: print(f"{skipped} skipped: they need a device, or a right, that is not there")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


main()
