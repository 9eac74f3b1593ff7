#!/usr/bin/env python3
"""Full prefills and decoding of droidspeak and of another program in turns, on one machine: llama.cpp (or a fork of it), or what turns.py runs.

Both models stay loaded. One measures while the other is stopped, so that two neighbouring measurements form a pair, and
a machine whose speed drifts does not favour either; who goes first changes from pair to pair. Loading and a
first prefill of each are not counted.
"""
import argparse, atexit, datetime, json, os, pathlib, re, signal, statistics, subprocess, sys, tempfile
import random_gguf


# Of the peer's runs of one prompt the last counts: the first one meets memory that nothing has touched yet, which ours does
# not, and llama-bench's own warm-up may be a single token.
REPEATS = 2
STEPS = 16  # of decoding


def fail(message): sys.exit(f"error: {message}")


def say(message):
    if sys.stderr.isatty(): print(f"\r\033[K{message}", end="", file=sys.stderr, flush=True)


class Program:
    """A benchmark that answers in JSON objects on stdout, one per measurement, and is ended with this script."""

    def __init__(self, name, command):
        self.name, self.errors, self.text = name, tempfile.TemporaryFile(), ""
        try:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        except OSError as e:
            fail(f"{name} cannot be started: {command[0]}: {e.strerror}; build it and give its path")
        atexit.register(self.end)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def answer(self):
        """The next JSON object."""
        while True:
            start = self.text.find("{")
            if start >= 0:
                try:
                    value, end = json.JSONDecoder().raw_decode(self.text, start)
                    self.text = self.text[end:]
                    return value
                except json.JSONDecodeError:
                    pass  # not whole yet
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more: self.stopped_early()
            self.text += more.decode(errors="replace")

    def stopped_early(self):
        code = self.process.wait()
        self.errors.seek(0)
        last = self.errors.read().decode(errors="replace").strip().splitlines()[-5:]
        seen = f"; its output was: {self.text.strip()[:300]}" if self.text.strip() else ""
        fail(f"{self.name} ended (exit status {code}) before its measurements were done{seen}"
             + "".join("\n  " + line for line in last))

    def number(self, answer, key):
        value = answer.get(key)
        if isinstance(value, list) and value: value = value[-1]
        if not isinstance(value, (int, float)) or not value > 0:
            fail(f"{self.name}: an answer without a usable '{key}', expected a number above 0, found {value!r} in "
                 + json.dumps(answer)[:300])
        return value


class Ours(Program):
    def __init__(self, path, shape, lengths, threads, dtype="bf16"):
        super().__init__("ds-bench", [path, "prefill", "--turns", "--backend", "cpu", "--shape", shape, "--threads", str(threads),
                                      "--dtype", dtype, "--lengths", ",".join(map(str, lengths))])
        self.about = self.answer()

    def measure(self, tokens):
        try:
            self.process.stdin.write(f"{tokens}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stopped_early()
        a = self.answer()
        if a.get("tokens") != tokens: fail(f"ds-bench was told to measure {tokens} tokens and answered {json.dumps(a)}")
        return {"tokens_per_second": tokens / self.number(a, "seconds"), "matmul_gflops": self.number(a, "matmul_gflops"),
                "share": self.number(a, "share")}


class Peer(Program):
    """llama-bench runs a list of prompts without asking; stopping its process between two of them makes it wait."""

    def __init__(self, path, model, turns, threads, ub, flags):
        prompts = ",".join(map(str, [16] + turns))  # the first one tells that the model is loaded
        super().__init__("llama-bench", [path, "-m", model, "-p", prompts, "-n", "0", "-r", str(REPEATS), "-t", str(threads),
                                         "-b", str(max(ub, 2048)), "-ub", str(ub), "-o", "json"] + flags)
        self.about = self.answer()
        self.process.send_signal(signal.SIGSTOP)

    def measure(self, tokens):
        self.process.send_signal(signal.SIGCONT)
        a = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        if a.get("n_prompt") != tokens:
            fail(f"llama-bench was to measure {tokens} tokens and answered {json.dumps(a)[:300]}")
        return tokens / self.number(a, "samples_ns") * 1e9


class TurnsPeer(Program):
    """A program that measures when a line tells it to, as turns.py does."""

    def __init__(self, command):
        super().__init__("the peer", command.split())
        self.about = self.answer()

    def ask(self, what, tokens):
        try:
            self.process.stdin.write(f"{what} {tokens}\n".encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            self.stopped_early()
        a = self.answer()
        if a.get("tokens") != tokens: fail(f"the peer was told to measure {tokens} tokens and answered {json.dumps(a)[:300]}")
        return self.number(a, "seconds")

    def measure(self, tokens): return tokens / self.ask("prefill", tokens)
    def decode(self, tokens): return 1 / self.ask("decode", tokens)


class PeerDecoding:
    """llama-bench after so many tokens: a process for each measurement, of which loading does not count."""

    def __init__(self, path, model, threads, flags):
        self.command = [path, "-m", model, "-p", "0", "-n", str(STEPS), "-r", str(REPEATS), "-t", str(threads), "-o", "json"] + flags

    def decode(self, tokens):
        program = Program("llama-bench", self.command + ["-d", str(tokens)])
        a = program.answer()
        program.process.wait()
        if (a.get("n_gen"), a.get("n_depth")) != (STEPS, tokens):
            fail(f"llama-bench was to decode {STEPS} tokens after {tokens} and answered {json.dumps(a)[:300]}")
        return STEPS / program.number(a, "samples_ns") * 1e9


class OurDecoding:
    """ds-bench decode: a process for each measurement, of which loading does not count."""

    def __init__(self, path, shape, threads, dtype):
        self.command = [path, "decode", "--backend", "cpu", "--shape", shape, "--threads", str(threads), "--dtype", dtype, "--batch", "1",
                        "--steps", str(STEPS), "--repeats", "1", "--json", "-"]

    def decode(self, tokens):
        program = Program("ds-bench", self.command + ["--context", str(tokens)])
        a = program.answer()
        program.process.wait()
        return {"tokens_per_second": program.number(a["batches"][0], "tokens_per_second"),
                "matmul_gflops": program.number(a, "matmul_gflops"), "share": program.number(a["batches"][0], "share")}


def pair(ours, peer, tokens, ours_first):
    """One measurement of each, neighbours in time."""
    if ours_first: a, b = ours.measure(tokens), peer.measure(tokens)
    else: b, a = peer.measure(tokens), ours.measure(tokens)
    return {**a, "peer_tokens_per_second": b, "ratio": a["tokens_per_second"] / b}


def pair_decoding(ours, peer, tokens, ours_first):
    if ours_first: a, b = ours.decode(tokens), peer.decode(tokens)
    else: b, a = peer.decode(tokens), ours.decode(tokens)
    return {**a, "peer_tokens_per_second": b, "ratio": a["tokens_per_second"] / b}


def numbers(text, name):
    parts = text.split(",")
    if not all(p.isdecimal() and int(p) > 0 for p in parts): fail(f"{name} is '{text}', expected numbers above 0, as in 512,2048")
    return [int(p) for p in parts]


def split_shapes(text): return re.split(r",(?=llama)", text)


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="""examples:
  compare.py --llama-bench ik_llama.cpp/build/bin/llama-bench --ds-bench build/release/bin/ds-bench
  compare.py --llama-bench llama.cpp/build/bin/llama-bench --ds-bench build/release/bin/ds-bench --peer-flags "-fa 1" \\
             --shapes llama-8b:4 --lengths 512 --rounds 9 --json results.jsonl
  compare.py --ds-bench build/release/bin/ds-bench --turns "python bench/peers/turns.py transformers --model DIR" --decode 1024 \\
             --shapes llama:layers=30,d=576,ff=1536,heads=9,kv=3,vocab=49152 --lengths 1024,2048""")
    p.add_argument("--llama-bench", metavar="FILE", help="the peer's llama-bench")
    p.add_argument("--turns", action="append", metavar="COMMAND", help="instead, a peer that measures when told to (turns.py); may be given "
                   "several times; --shapes is then one shape, that of the peer's model")
    p.add_argument("--decode", metavar="N,...", help="also decoding, after so many tokens, one sequence")
    p.add_argument("--dtype", default="bf16", choices=("bf16", "f32"), help="ours, with --turns (%(default)s)")
    p.add_argument("--ds-bench", required=True, metavar="FILE")
    p.add_argument("--shapes", default="llama-1b,llama-8b:4", help="llama-1b, llama-8b, each with ':N' for N layers, or "
                   "llama:layers=L,d=D,ff=F,heads=H,kv=K,vocab=V (%(default)s)")
    p.add_argument("--lengths", default="512,2048,4096", help="tokens (%(default)s)")
    p.add_argument("--rounds", default=3, type=int, help="pairs per length (%(default)s)")
    p.add_argument("--threads", default=os.cpu_count(), type=int, help="of both (%(default)s)")
    p.add_argument("--peer-flags", default="-fa 1 -rtr 1", help="further flags of llama-bench; those of ik_llama.cpp by default "
                   "('%(default)s'), llama.cpp has no -rtr")
    p.add_argument("--ub", default="512,1024,2048", help="the peer's micro-batches: each is tried in two pairs at the longest length up "
                   "to 2048, and its best, by the ratio, is kept for the shape; one number: no trial (%(default)s)")
    p.add_argument("--models", metavar="DIR", help="keeps the peer's models there; default: a folder that is deleted at the end")
    p.add_argument("--json", metavar="FILE", help="append one line of JSON per shape and length")
    return p.parse_args()


def choose_ub(make_peer, ours, candidates, length):
    """Of those that differ at this length, the one with which the peer comes off best beside ours."""
    candidates = sorted({min(u, length) for u in candidates})
    if len(candidates) == 1: return candidates[0], {}
    ratios = {}
    for ub in candidates:
        peer = make_peer([length] * 2, ub)
        ratios[ub] = statistics.median(pair(ours, peer, length, first)["ratio"] for first in (True, False))
        peer.end()
    return min(ratios, key=ratios.get), ratios


def compare_shape(o, shape, lengths, ubs, folder):
    model = pathlib.Path(folder) / f"{re.sub('[:,=]', '-', shape)}.gguf"
    if not model.exists():
        say(f"writing {model.name}")
        try: random_gguf.write(shape, str(model))
        except OSError as e: fail(f"the peer's model cannot be written: {model}: {e.strerror}")
    flags = o.peer_flags.split()
    make_peer = lambda turns, ub: Peer(o.llama_bench, str(model), turns, o.threads, ub, flags)
    say(f"{shape}: loading")
    ours = Ours(o.ds_bench, shape, lengths, o.threads)
    ours.measure(min(lengths))  # not counted
    ub, tried = choose_ub(make_peer, ours, ubs, max([n for n in lengths if n <= 2048], default=min(lengths)))
    peer = make_peer([n for n in lengths for _ in range(o.rounds)], ub)
    about = {"date": datetime.date.today().isoformat(), "shape": shape, "threads": o.threads, "backend": ours.about["backend"], "cpu": peer.about.get("cpu_info"),
             "peer": f"llama-bench {peer.about.get('build_commit')} {o.peer_flags}"}
    for tokens in lengths:
        pairs = []
        for r in range(o.rounds):
            say(f"{shape}: {tokens} tokens, pair {r + 1} of {o.rounds}")
            pairs.append(pair(ours, peer, tokens, r % 2 == 0))
        say("")
        yield about | {"what": "prefill", "tokens": tokens, "peer_ub": ub, "ub_ratios": tried, "pairs": pairs}
    ours.end()
    peer.end()
    decoding, peer = OurDecoding(o.ds_bench, shape, o.threads, "bf16"), PeerDecoding(o.llama_bench, str(model), o.threads, flags)
    for tokens in o.decode:
        pairs = []
        for r in range(o.rounds):
            say(f"{shape}: decoding after {tokens} tokens, pair {r + 1} of {o.rounds}")
            pairs.append(pair_decoding(decoding, peer, tokens, r % 2 == 0))
        say("")
        yield about | {"what": "decode", "tokens": tokens, "pairs": pairs}


def compare_turns(o, shape, lengths):
    say(f"{shape}: loading")
    ours, decoding = Ours(o.ds_bench, shape, lengths, o.threads, o.dtype), OurDecoding(o.ds_bench, shape, o.threads, o.dtype)
    peers = [TurnsPeer(command) for command in o.turns]
    ours.measure(min(lengths))  # not counted
    for what in ("prefill", "decode"):
        for tokens in lengths if what == "prefill" else o.decode:
            pairs = [[] for _ in peers]
            for r in range(o.rounds):
                say(f"{shape}: {what}, {tokens} tokens, round {r + 1} of {o.rounds}")
                for peer, kept in zip(peers, pairs):
                    measure = pair if what == "prefill" else pair_decoding
                    kept.append(measure(ours if what == "prefill" else decoding, peer, tokens, r % 2 == 0))
            say("")
            for peer, kept in zip(peers, pairs):
                yield {"date": datetime.date.today().isoformat(), "what": what, "shape": shape, "tokens": tokens, "threads": o.threads,
                       "dtype": o.dtype, "backend": ours.about["backend"], "peer": peer.about["ready"], "pairs": kept}
    for program in [ours] + peers: program.end()


def rows(o, lengths):
    if o.turns:
        yield from compare_turns(o, o.shapes, lengths)
        return
    ubs = numbers(o.ub, "--ub")
    with tempfile.TemporaryDirectory() as scratch:
        for shape in split_shapes(o.shapes): yield from compare_shape(o, shape, lengths, ubs, o.models or scratch)


def main():
    o = parse()
    lengths = sorted(numbers(o.lengths, "--lengths"))
    o.decode = numbers(o.decode, "--decode") if o.decode else []
    if o.rounds < 1 or o.threads < 1: fail("--rounds and --threads are 1 or more")
    if bool(o.llama_bench) == bool(o.turns): fail("one of --llama-bench and --turns is needed")
    if not o.turns:
        for shape in split_shapes(o.shapes):
            try: random_gguf.sizes(shape)
            except ValueError as e: fail(e)
    for path in [o.ds_bench] + ([] if o.turns else [o.llama_bench]):
        if not os.access(path, os.X_OK) or os.path.isdir(path): fail(f"no program at {path}; build it and give its path")
    if o.models and not os.path.isdir(o.models): fail(f"--models: {o.models} is not a folder")
    print(f"{'what':12} {'tokens':>7} {'tokens/s':>9} {'peer':>7} {'-ub':>5} {'ratio':>6}  {'min to max':14} {'GFLOP/s':>8} {'share':>6}")
    for row in rows(o, lengths):
        of = lambda key: [p[key] for p in row["pairs"]]
        mid = lambda key: statistics.median(of(key))
        print(f"{row['what']:12} {row['tokens']:7} {mid('tokens_per_second'):9.1f} {mid('peer_tokens_per_second'):7.1f} "
              f"{row.get('peer_ub', '-'):>5} {mid('ratio'):6.2f}  {min(of('ratio')):5.2f} to {max(of('ratio')):5.2f} "
              f"{mid('matmul_gflops'):8.0f} {100 * mid('share'):5.0f}%  {row.get('peer', '')}", flush=True)
        if o.json:
            try:
                with open(o.json, "a") as f: f.write(json.dumps(row) + "\n")
            except OSError as e: fail(f"the results cannot be written: {o.json}: {e.strerror}")


if __name__ == "__main__":
    try: main()
    except KeyboardInterrupt: sys.exit(130)
