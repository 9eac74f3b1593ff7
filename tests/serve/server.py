"""A ds-serve of a test: its fleet file, its process, and requests to it."""
import http.client, json, pathlib, re, socket, subprocess, time, urllib.parse

root = pathlib.Path(__file__).resolve().parent.parent.parent
pair = root / "examples" / "pair"
PATIENCE = 120  # seconds that a busy machine may take for anything; no test passes because of it


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, binaries, work, name, fleet, *args):
        self.fleet = work / f"{name}.json"
        fleet = {"listen": {"port": 0}, "device": {"threads": 2}} | fleet
        self.fleet.write_text(json.dumps(fleet))
        self.log = work / f"{name}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([binaries / "ds-serve", "--fleet", self.fleet, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        line = self.process.stdout.readline()
        found = re.search(r"at (\S+)$", line)
        if not found: raise RuntimeError(f"ds-serve did not start: {line}{self.logged()}")
        self.url = found.group(1)
        self.address = urllib.parse.urlsplit(self.url)
        self.key = None  # for engine()

    def connect(self):
        return http.client.HTTPConnection(self.address.hostname, self.address.port, timeout=PATIENCE)

    def send(self, method, path, body=None, key=None, headers=None, raw=None):
        """A connection that an answer may be read from."""
        connection = self.connect()
        headers = {"Content-Type": "application/json"} | (headers or {})
        if key: headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, raw if raw is not None else json.dumps(body) if body is not None else None, headers)
        return connection

    def ask(self, method, path, body=None, **more):
        """Status, headers, and what the body says."""
        connection = self.send(method, path, body, **more)
        try:
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, dict(response.getheaders()), json.loads(text) if text.startswith(("{", "[")) else text
        finally:
            connection.close()

    def get(self, path, **more): return self.ask("GET", path, **more)
    def post(self, path, body=None, **more): return self.ask("POST", path, body, **more)

    def stream(self, path, body, **more):
        """The events of a stream, without the last, which says that it was all."""
        connection = self.send("POST", path, body | {"stream": True}, **more)
        try:
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200 and response.getheader("Content-Type") == "text/event-stream", (response.status, text)
            events = [line[len("data: "):] for line in text.split("\n\n") if line]
            assert all(e.startswith("data: ") for e in text.split("\n\n") if e) and events[-1] == "[DONE]", text
            return [json.loads(e) for e in events[:-1]]
        finally:
            connection.close()

    def engine(self): return self.get("/status", key=self.key)[2]["engine"]

    def wait_for(self, what):
        """Until what() is true."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if what(): return True
            time.sleep(0.05)
        return False

    def stop(self):
        if self.process.poll() is None: self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.process.stdout.close()
        return code

    def logged(self): return self.log.read_text()
