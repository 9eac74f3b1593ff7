"""Two replicas of ds-serve behind nginx share one Redis: what one publishes the other reuses, and one that is killed under load costs its clients a retry."""
import concurrent.futures, http.client, json, pathlib, shutil, socket, subprocess, sys, tempfile, threading, time, unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
from server import PATIENCE, Server, free_port, pair

binaries = pathlib.Path(sys.argv[1]).resolve() / "bin"
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-serve-replicas-"))
CONTEXT = (pair / "data" / "demo_context.txt").read_text()
QUESTION = (pair / "data" / "demo_question.txt").read_text()


def wait_for_port(port):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError: time.sleep(0.05)
    raise RuntimeError(f"nothing listens at port {port}")


def setUpModule():
    done = subprocess.run([binaries / "ds-compile", "--receiver", pair / "receiver", "--sender", pair / "sender", "--context-lengths", "403", "--link-rates", "400MB/s",
                           "--quality", pair / "quality.json", "--slo-loss", "5", "-o", work / "plan.dsplan"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def tearDownModule(): shutil.rmtree(work, ignore_errors=True)


class Replicas(unittest.TestCase):
    def setUp(self):
        self.redis_port, self.port = free_port(), free_port()
        self.redis = subprocess.Popen(["redis-server", "--bind", "127.0.0.1", "--port", str(self.redis_port), "--save", "", "--dir", work], stdout=subprocess.DEVNULL)
        self.addCleanup(self.end, self.redis)
        wait_for_port(self.redis_port)
        fleet = {"models": [{"name": "sender", "folder": str(pair / "sender"), "publish": True}, {"name": "receiver", "folder": str(pair / "receiver"), "reuse": "approximate"}],
                 "store": {"url": f"redis://127.0.0.1:{self.redis_port}"},
                 "plans": [{"file": str(work / "plan.dsplan"), "profile": str(pair / "quality.json")}], "gate": {"false_alarms": "5%", "window": 16}, "limits": {"patience_ms": 10000}, "device": {"threads": 1}}
        self.replicas = [Server(binaries, work, name, fleet) for name in ("first", "second")]
        for replica in self.replicas: self.addCleanup(self.end, replica.process)
        servers = "".join(f"server 127.0.0.1:{r.address.port} max_fails=1 fail_timeout=60s; " for r in self.replicas)
        (work / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.log;
            events {{ worker_connections 256; }}
            http {{
              access_log off; client_body_temp_path {work}/body; proxy_temp_path {work}/proxy; fastcgi_temp_path {work}/f; uwsgi_temp_path {work}/u; scgi_temp_path {work}/s;
              upstream fleet {{ {servers} }}
              server {{
                listen 127.0.0.1:{self.port};
                location / {{ proxy_pass http://fleet; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_read_timeout {PATIENCE}s;
                              proxy_next_upstream error timeout http_502 http_503 non_idempotent; }}
              }}
            }}""")
        self.nginx = subprocess.Popen(["nginx", "-c", work / "nginx.conf", "-e", work / "nginx.log"])
        self.addCleanup(self.end, self.nginx)
        wait_for_port(self.port)

    @staticmethod
    def end(process):
        if process.poll() is None: process.terminate()
        process.wait(PATIENCE)
        if process.stdout: process.stdout.close()

    def ask(self, body):
        """Through nginx; None: the connection or the replica broke, and the client may try again."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
            if response.status in (502, 503, 504): return None
            self.assertEqual(response.status, 200, text)
            if not body.get("stream"): return json.loads(text)["choices"][0]["text"]
            events = [line[len("data: "):] for line in text.split("\n\n") if line]
            if events[-1] != "[DONE]": return None  # it ended in the middle
            return "".join(c["text"] for e in events[:-1] for c in json.loads(e)["choices"])
        except (http.client.HTTPException, OSError): return None
        finally: connection.close()

    def test_they_share_a_store_and_one_may_die(self):
        first, second = self.replicas
        body = {"model": "receiver", "prompt": CONTEXT + QUESTION, "max_tokens": 8, "temperature": 0}
        status, _, answer = second.post("/v1/completions", body | {"cache_salt": ""})
        self.assertEqual((status, answer["droidspeak"]["cache"], answer["droidspeak"]["reason"]), (200, "miss", "not found"), answer)
        # The sender answers at one replica, which publishes; the receiver at the other reuses it.
        status, _, answer = first.post("/v1/completions", body | {"model": "sender"})
        self.assertEqual(status, 200, answer)
        self.assertTrue(first.wait_for(lambda: first.engine()["published"] == 1), first.engine())
        body["prompt"] = CONTEXT + "\n" + QUESTION  # another question, so that the exact cache is less than the entry
        for replica in (second, first):
            status, _, answer = replica.post("/v1/completions", body | {"n": 1})
            self.assertEqual(status, 200, answer)
        self.assertEqual((answer["droidspeak"]["cache"], answer["droidspeak"]["sender"]), ("hit", "sender"), answer)
        by_plan = answer["choices"][0]["text"]
        whole = first.post("/v1/completions", body | {"reuse": "off"})[2]["choices"][0]["text"]
        self.assertTrue(by_plan and whole)
        # Under load one dies; clients ask again, and every answer is one of the two that are right.
        right, retries, lock, asked = {by_plan, whole}, [0], threading.Lock(), threading.Event()

        def client(i):
            for j in range(8):
                mine = body | {"reuse": "off" if (i + j) % 2 else "auto", "stream": j % 3 == 0}
                while (text := self.ask(mine)) is None:
                    with lock: retries[0] += 1
                    self.assertLess(retries[0], 200)
                    time.sleep(0.05)
                self.assertIn(text, right)
                if i == 0 and j == 1: asked.set()
            return 8

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(client, i) for i in range(16)]
            self.assertTrue(asked.wait(PATIENCE))
            first.process.kill()
            self.assertEqual(sum(c.result() for c in clients), 128)
        self.assertEqual(first.process.wait(PATIENCE), -9)
        self.assertEqual(second.engine()["failed"], 0, second.engine())
        print(f"128 answers, {retries[0]} retries by clients", file=sys.stderr)
        # The store dies as well: a counted miss, with its reason.
        self.end(self.redis)
        status, _, answer = second.post("/v1/completions", body | {"cache_salt": "another tenant"})
        self.assertEqual((status, answer["droidspeak"]["cache"]), (200, "miss"), answer)
        self.assertEqual(answer["choices"][0]["text"], whole)
        self.assertEqual(second.stop(), 0, second.logged())


if __name__ == "__main__": unittest.main(argv=sys.argv[:1], verbosity=2)
