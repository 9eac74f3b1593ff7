"""tests/run.py counts programs that hang, crash or say nothing as what they are, and leaves no process behind."""
import os, pathlib, re, shutil, signal, subprocess, sys, tempfile, time

here = pathlib.Path(__file__).resolve().parent
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-runner-"))
failures = []

# What GoogleTest prints and reports, as far as run.py reads it. The tests are "NAME:ENDING".
FAKE = """#!/usr/bin/env python3
import json, os, signal, subprocess, sys, time
report = next(a.split(":", 1)[1] for a in sys.argv if a.startswith("--gtest_output=json:"))
suite = []
def test(name, ending):
    print(f"[ RUN      ] Fake.{name}", flush=True)
    case = {"name": name, "status": "RUN", "result": "SKIPPED" if ending == "SKIPPED" else "COMPLETED"}
    if ending == "FAILED": case["failures"] = [{"failure": "no"}]
    suite.append(case)
    print({"OK": "[       OK ]", "SKIPPED": "[  SKIPPED ]", "FAILED": "[  FAILED  ]"}[ending], f"Fake.{name}" + (", where GetParam() = 1" if ending == "FAILED" else ""), "(0 ms)", flush=True)
def write(): open(report, "w").write(json.dumps({"testsuites": [{"name": "Fake", "testsuite": suite}]}))
"""
GOOD = 'test("A", "OK"); test("B", "OK")\n'
PROGRAMS = {
    # name: (body, passed, failed, skipped, what the output says)
    "good_test": (GOOD + 'test("C", "SKIPPED"); write()', 2, 0, 1, []),
    "failing_test": (GOOD + 'test("C", "FAILED"); write(); sys.exit(1)', 2, 1, 0, ["Fake.C"]),
    "silent_failing_test": (GOOD + 'write(); sys.exit(1)', 2, 1, 0, ["silent_failing_test: exit status 1, after its last test"]),
    "forgiving_test": (GOOD + 'test("C", "FAILED"); write()', 2, 2, 0, []),
    "mute_test": ("", 0, 1, 0, ["mute_test: it reported no tests"]),
    "torn_report_test": (GOOD + 'open(report, "w").write("{"); sys.exit(1)', 2, 1, 0, ["exit status 1"]),
    "sanitized_test": (GOOD + 'write(); print("WARNING: a race"); sys.exit(66)', 2, 1, 0, ["a race", "exit status 66"]),
    "late_crash_test": (GOOD + 'write(); os.kill(os.getpid(), signal.SIGSEGV)', 2, 1, 0, ["ended by SIGSEGV, after its last test"]),
    "crashing_test": (GOOD + 'test("C", "FAILED"); print("[ RUN      ] Fake.Crash", flush=True); os.kill(os.getpid(), signal.SIGABRT)', 2, 2, 0,
                      ["ended by SIGABRT, while Fake.Crash was running"]),
    "hanging_test": (GOOD + 'print("[ RUN      ] Fake.Hang\\nnearly there", flush=True)\n'
                     'child = subprocess.Popen(["sleep", "1000"]); open(sys.argv[0] + ".pid", "w").write(str(child.pid))\n'
                     'signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)', 2, 1, 0,
                     ["nearly there", "killed: it took longer than 2 s", "while Fake.Hang was running"]),
    "late_hanging_test": (GOOD + 'write(); time.sleep(1000)', 2, 1, 0, ["killed: it took longer than 2 s", "after its last test"]),
    "loud_test": (GOOD + 'print("the first words"); print("x" * 100000); test("C", "FAILED"); write(); sys.exit(1)', 2, 1, 0,
                  ["the first words", "characters ...]", "Fake.C"]),
}
# Programs that cannot be started at all, by their first line.
BROKEN = {"broken_test": ("#!/no/such/interpreter", 0, 1, 0, ["broken_test", "exit status 127"])}
SCRIPTS = {
    "good": ("exit 0", 1, 0, 0, []),
    "skipping": ("echo no device; exit 77", 0, 0, 1, ["no device"]),
    "failing": ("echo no good; exit 3", 0, 1, 0, ["no good", "exit status 3"]),
    "hanging": (f"trap 'touch {work}/cleaned' EXIT; echo nearly; sleep 1000", 0, 1, 0, ["nearly", "killed: it took longer than 2 s"]),
}


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


def run(*arguments, **more):
    return subprocess.run([sys.executable, work / "tests" / "run.py", work / "build", *map(str, arguments)], env=os.environ | more, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


(work / "tests").mkdir()
shutil.copy(here.parent / "run.py", work / "tests" / "run.py")  # it looks for scripts beside itself
for name, (body, *_) in PROGRAMS.items(): write(work / "build" / "tests" / name, FAKE + body + "\n")
for name, (text, *_) in BROKEN.items(): write(work / "build" / "tests" / name, text + "\n")
for name, (body, *_) in SCRIPTS.items(): write(work / "tests" / name / "run.sh", body + "\n")

start = time.time()
done = run("--time-limit", 2, "--jobs", 4)
lines = done.stdout.splitlines()
everything = PROGRAMS | BROKEN | SCRIPTS
passed, failed, skipped = (sum(e[i] for e in everything.values()) for i in (1, 2, 3))
check(lines[-1] == f"{passed} passed, {failed} failed", f"the last line is '{lines[-1]}', expected {passed} passed, {failed} failed")
check(lines[-2].startswith(f"{skipped} skipped"), f"the line before is '{lines[-2]}', expected {skipped} skipped")
check(done.returncode == 1, f"exit status {done.returncode} where tests have failed")
check(time.time() - start < 60, "hanging programs are waited for")
# Each program has one line of its own, and before it what it printed.
blocks, text = {}, []
for line in lines[:-2]:
    if found := re.match(r"(FAIL|ok  ) (\S+) +(\d+) passed +(\d+) failed +(\d+) skipped +[\d.]+ s$", line):
        check(found[2] not in blocks, f"{found[2]} is reported once")
        blocks[found[2]] = (found[1].strip(), *map(int, found.groups()[2:]), "\n".join(text))
        text = []
    else:
        text.append(line)
check(set(blocks) == set(everything), f"all programs are reported: {sorted(set(blocks) ^ set(everything))}")
for name, (_, *expected, words) in everything.items():
    verdict, *found, output = blocks.get(name, ("", None, None, None, ""))
    check(found == expected, f"{name}: {found} passed, failed and skipped, expected {expected}; it printed:\n{output}")
    check(verdict == ("FAIL" if expected[1] else "ok"), f"{name} is called '{verdict}'")
    for word in words: check(word in output, f"{name}: '{word}' is not in its output:\n{output}")
    check(words or expected[1] or not output, f"{name} has nothing to say, and says:\n{output}")
check(len(blocks.get("loud_test", [""])[-1]) < 15000, "a long output is shortened")
check(not alive(int((work / "build" / "tests" / "hanging_test.pid").read_text())), "the children of a killed program are killed too")
check((work / "cleaned").exists(), "a script that takes too long removes what it has made")

done = run("--only", "good_test", "--only", "good")
check(done.returncode == 0 and done.stdout.splitlines()[-1] == "3 passed, 0 failed" and len(done.stdout.splitlines()) == 4, f"--only: {done.stdout}")
done = run("--only", "god_test")
check(done.returncode != 0 and "no test is named god_test" in done.stdout, f"--only with a name of none: {done.stdout}")
done = run("--only", "hanging", DROIDSPEAK_TEST_TIME_LIMIT="1")
check("longer than 1 s" in done.stdout, f"DROIDSPEAK_TEST_TIME_LIMIT: {done.stdout}")

done = run("--sanitize", "address")
check(done.returncode != 0 and "is no build of the preset asan" in done.stdout, f"--sanitize on another build: {done.stdout}")

# Stopped from outside, it takes its programs with it.
(work / "build" / "tests" / "hanging_test.pid").unlink()
running = subprocess.Popen([sys.executable, work / "tests" / "run.py", work / "build", "--only", "hanging_test"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = work / "build" / "tests" / "hanging_test.pid"
for _ in range(600):
    if child.exists() and child.read_text(): break
    time.sleep(0.05)
pid = int(child.read_text())
running.send_signal(signal.SIGTERM)
check(running.wait(30) != 0, "an interrupted run is no success")
for _ in range(100):
    if not alive(pid): break
    time.sleep(0.05)
check(not alive(pid), "an interrupted run leaves no program behind")

shutil.rmtree(work)
sys.exit(f"{len(failures)} failed" if failures else 0)
