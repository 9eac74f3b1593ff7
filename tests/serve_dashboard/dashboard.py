"""docs/grafana-dashboard.json: Grafana's models take all of it, and a Prometheus that reads a ds-serve's metrics has an answer to each of its queries."""
import json, os, pathlib, re, shutil, subprocess, sys, tempfile, unittest, urllib.error, urllib.parse, urllib.request

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
from server import PATIENCE, Server, free_port, pair, root

binaries = pathlib.Path(sys.argv[1]).resolve() / "bin"
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-serve-dashboard-"))
DASHBOARD = json.loads((root / "docs" / "grafana-dashboard.json").read_text())
KEY = "the key that reads metrics"


def tearDownModule(): shutil.rmtree(work, ignore_errors=True)


class Dashboards(unittest.TestCase):
    def test_grafana_takes_all_of_it(self):
        taken = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))

        def compare(mine, theirs, where):
            if isinstance(mine, dict):
                for key in mine: compare(mine[key], theirs.get(key), f"{where}.{key}")
            elif isinstance(mine, list):
                self.assertEqual(len(mine), len(theirs), where)
                for i, one in enumerate(mine): compare(one, theirs[i], f"{where}[{i}]")
            else: self.assertEqual(mine, theirs, where)

        compare(DASHBOARD, taken, "dashboard")
        ids = [p["id"] for p in DASHBOARD["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        cells = set()
        for panel in DASHBOARD["panels"]:
            at = panel["gridPos"]
            self.assertLessEqual(at["x"] + at["w"], 24, panel["title"])
            for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
                self.assertNotIn(cell, cells, f"{panel['title']} lies upon another panel")
                cells.add(cell)

    def test_prometheus_answers_each_query(self):
        plan, store = work / "plan.dsplan", work / "store"
        done = subprocess.run([binaries / "ds-compile", "--receiver", pair / "receiver", "--sender", pair / "sender", "--context-lengths", "403", "--link-rates", "400MB/s",
                               "--quality", pair / "quality.json", "--slo-loss", "5", "-o", plan], capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        os.umask(0o077)
        (work / "key").write_text(KEY)
        server = Server(binaries, work, "fleet", {
            "models": [{"name": "sender", "folder": str(pair / "sender"), "publish": True}, {"name": "receiver", "folder": str(pair / "receiver"), "reuse": "approximate"}],
            "store": {"url": f"file:{store}"}, "plans": [{"file": str(plan), "profile": str(pair / "quality.json")}], "gate": {"false_alarms": "5%", "window": 16},
            "keys": [{"key_file": str(work / "key"), "tenant": "a"}]})
        self.addCleanup(server.stop)
        server.key = KEY
        port = free_port()
        (work / "prometheus.yml").write_text(json.dumps({"global": {"scrape_interval": "200ms"}, "scrape_configs": [{
            "job_name": "ds-serve", "static_configs": [{"targets": [f"127.0.0.1:{server.address.port}"]}], "authorization": {"credentials_file": str(work / "key")}}]}))
        with open(work / "prometheus.log", "w") as log:
            prometheus = subprocess.Popen(["prometheus", f"--config.file={work}/prometheus.yml", f"--storage.tsdb.path={work}/data", f"--web.listen-address=127.0.0.1:{port}"], stdin=subprocess.DEVNULL,
                                          stdout=log, stderr=log)

        def end():
            prometheus.terminate()
            prometheus.wait(PATIENCE)

        self.addCleanup(end)

        def ask(path, **arguments):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(arguments)}", timeout=PATIENCE) as answer: return json.load(answer)["data"]
            except urllib.error.HTTPError as e:
                if e.code != 503: self.fail(f"{arguments}: {e.read().decode()}")
            except urllib.error.URLError: pass
            return None  # it is not there yet

        # What happens while it looks on: a sender's context, published, then answered for by plan, then again.
        context, question = ((pair / "data" / f"demo_{name}.txt").read_text() for name in ("context", "question"))

        def complete(model, prompt, **more):
            return server.post("/v1/completions", {"model": model, "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True} | more, key=KEY)

        self.assertTrue(server.wait_for(lambda: (ask("query", query="up") or {}).get("result")), (work / "prometheus.log").read_text())
        self.assertEqual(complete("sender", context + "\n" + question)[0], 200)
        self.assertTrue(server.wait_for(lambda: server.engine()["published"] == 1))
        self.assertEqual(complete("receiver", context + "\n" + question, reuse="auto")[2]["droidspeak"]["cache"], "hit")
        for _ in range(3): complete("receiver", context + "\n" + question)

        def filled(query): return query.replace("$__rate_interval", "1m").replace("$model", ".*").replace("${model}", ".*")

        asked = [(p["title"], t["expr"]) for p in DASHBOARD["panels"] for t in p.get("targets", [])]
        self.assertGreater(len(asked), 20)
        for title, query in asked:
            query = filled(query)
            self.assertNotRegex(query, r"\$", title)

            def said():
                complete("receiver", context + "\n" + question)
                found = ask("query", query=query)
                return found and any(s["value"][1] != "NaN" for s in found["result"])

            self.assertTrue(server.wait_for(said), f"{title}: nothing but gaps: {query}")
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] != "query": continue
            series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]).groups()
            self.assertTrue(ask(f"label/{label}/values", **{"match[]": series}), variable["name"])


unittest.main(argv=sys.argv[:1], verbosity=1)
