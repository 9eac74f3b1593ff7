"""Requests that schemathesis writes from GET /openapi.json, right ones and wrong ones, to ds-serve with the trained pair: every answer is one
that the description has. DROIDSPEAK_FUZZ_CALLS: how many (400; 10000 take ten minutes of two cores); DROIDSPEAK_FUZZ_SEED: which (0)."""
import collections, json, os, pathlib, shutil, subprocess, sys, tempfile, unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
from server import PATIENCE, Server, pair

import hypothesis, jsonschema_rs, requests, schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as described

CALLS = int(os.environ.get("DROIDSPEAK_FUZZ_CALLS", 400))
SEED = int(os.environ.get("DROIDSPEAK_FUZZ_SEED", 0))
SHARES = {"/v1/completions": 0.3, "/v1/chat/completions": 0.25, "/tokenize": 0.15, "/detokenize": 0.1}  # of the calls
BYTES_SHARE = 0.1  # of bodies that are no JSON, methods and paths; what is left is shared by the other paths
# Of a request that is as described: it is too long, a token is none of the model's, fields do not go together, or a template does not take it.
MAY_BE_REFUSED = {"model", "prompt", "messages", "best_of", "top_logprobs", "logit_bias"}
CHECKS = [described.status_code_conformance, described.content_type_conformance, described.response_headers_conformance, described.response_schema_conformance, described.negative_data_rejection]
VOCABULARY = json.loads((pair / "receiver" / "config.json").read_text())["vocab_size"]
CONTEXT = (pair / "data" / "demo_context.txt").read_text()

build = pathlib.Path(sys.argv[1]).resolve()
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-serve-openapi-"))
statuses, said = collections.Counter(), collections.Counter()


def tool(name, *args):
    done = subprocess.run([build / "bin" / name, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{name}: exit {done.returncode}: {done.stderr[-800:]}"


def closed(schema):
    """The description with answers that have no fields but those that it names."""
    def close(node):
        if isinstance(node, list): return [close(x) for x in node]
        if not isinstance(node, dict): return node
        node = {k: close(v) for k, v in node.items()}
        return node | ({"additionalProperties": False} if isinstance(node.get("properties"), dict) and node.get("type") == "object" else {})
    asked = ("Request", "Message", "NotDone")
    schemas = schema["components"]["schemas"]
    for path in schema["paths"].values():  # events are looked at by check_events()
        for operation in path.values(): operation["responses"]["200"]["content"].get("text/event-stream", {}).pop("schema", None)
    return schema | {"components": schema["components"] | {"schemas": {n: s if any(a in n for a in asked) else close(s) for n, s in schemas.items()}}}


def setUpModule():
    global server, api, description
    (work / "chat.jinja").write_text("<s>{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}")
    tool("ds-compile", "--receiver", pair / "receiver", "--sender", pair / "sender", "--context-lengths", 403, "--link-rates", "400MB/s", "--quality", pair / "quality.json", "--slo-loss", 5, "-o", work / "plan.dsplan")
    tool("ds-publish", "--model", pair / "sender", "--plan", work / "plan.dsplan", "--context", pair / "data" / "demo_context.txt", "--store", f"file:{work}/store")
    models = [{"name": n, "folder": str(pair / n), "chat_template": str(work / "chat.jinja")} for n in ("sender", "receiver")]
    models[0]["publish"], models[1]["reuse"] = True, "approximate"
    # Answers are short: what is looked at is how requests are read.
    server = Server(build / "bin", work, "fuzz", {"models": models, "plans": [{"file": str(work / "plan.dsplan"), "profile": str(pair / "quality.json")}], "store": {"url": f"file:{work}/store"},
                                                  "gate": {"false_alarms": "5%"}, "limits": {"new_tokens": 8, "tokens": 1024}})
    description = closed(server.get("/openapi.json")[2])
    api = schemathesis.openapi.from_dict(description)


def tearDownModule():
    code = server.stop()
    print(f"seed {SEED}, {sum(statuses.values())} calls: " + ", ".join(f"{n} x {s}" for s, n in sorted(statuses.items())))
    for (path, what), n in said.most_common(60 if CALLS > 1000 else 0): print(f"  {n:6} {path} {what}")
    assert code == 0, f"exit {code}: {server.logged()[-4000:]}"
    shutil.rmtree(work, ignore_errors=True)


def nearer(draw, body, right):
    """What passes the first looks more often than a request of random names and numbers does."""
    if not isinstance(body, dict): return body
    sometimes = lambda: draw(strategies.integers(0, 7)) < 7
    body = dict(body)
    if isinstance(body.get("model", ""), str) and sometimes(): body["model"] = draw(strategies.sampled_from(("sender", "receiver")))
    if not right: return body
    for key in ("max_tokens", "max_completion_tokens"):
        if body.get(key) is not None and sometimes(): body[key] = body[key] % 8 + 1
    if "best_of" in body and sometimes(): body["best_of"] = body.get("n") or 1
    if "messages" in body and body.get("top_logprobs") and sometimes(): body["logprobs"] = True
    if isinstance(body.get("prompt"), str) and not sometimes(): body["prompt"] = CONTEXT + body["prompt"]
    known = lambda x: [known(y) for y in x] if isinstance(x, list) else x if isinstance(x, str) else x % VOCABULARY
    for key in ("prompt", "tokens", "stop_token_ids"):
        if isinstance(body.get(key), list) and sometimes(): body[key] = known(body[key])
    if isinstance(body.get("logit_bias"), dict) and sometimes(): body["logit_bias"] = {str(int(k) % VOCABULARY): v for k, v in body["logit_bias"].items()}
    return body


class Described(unittest.TestCase):
    def check_events(self, operation, text):
        """Events of a stream, which the description names beside its media type."""
        media = description["paths"][operation.path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        validator = jsonschema_rs.Draft202012Validator({"anyOf": media["x-events"], "components": description["components"]})
        self.assertTrue(text.endswith("data: [DONE]\n\n"), text[-200:])
        for event in text.split("\n\n")[:-2]:
            self.assertTrue(event.startswith("data: "), event)
            found = json.loads(event[len("data: "):])
            self.assertNotIn("error", found)
            validator.validate(found)

    def fuzz(self, operation, mode, calls):
        session = requests.Session()

        @hypothesis.seed(SEED)
        @hypothesis.settings(max_examples=calls, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=False)
        @hypothesis.given(operation.as_strategy(generation_mode=mode), strategies.data())
        def call(case, data):
            if operation.method == "post": case.body = nearer(data.draw, case.body, mode is GenerationMode.POSITIVE)
            if case.path_parameters and data.draw(strategies.booleans()): case.path_parameters["model"] = data.draw(strategies.sampled_from(("sender", "receiver")))
            response = case.call(base_url=server.url, session=session, timeout=PATIENCE)
            statuses[response.status_code] += 1
            said[operation.path, f"{mode.value} {response.status_code} " + (str(response.json()["error"]["param"]) if response.status_code == 400 else "")] += 1
            self.assertLess(response.status_code, 500, response.text)
            if mode is GenerationMode.POSITIVE and response.status_code == 400: self.assertIn(response.json()["error"]["param"], MAY_BE_REFUSED, response.text)
            case.validate_response(response, checks=CHECKS)
            if response.headers.get("Content-Type", "")[:17] == "text/event-stream": self.check_events(operation, response.text)

        call()

    def test_bytes(self):
        """What is no request of the description at all: what is refused is refused in the one form."""
        right = json.dumps({"model": "receiver", "prompt": "Hello box", "messages": [{"role": "user", "content": "Hello"}], "tokens": [1, 2], "max_tokens": 2}).encode()
        spliced = strategies.builds(lambda at, cut, put: right[:at] + put + right[at + cut:], strategies.integers(0, len(right)), strategies.integers(0, 8), strategies.binary(max_size=8))
        nested = strategies.builds(lambda opening, depth: right[:-1] + b', "a": ' + opening * depth, strategies.sampled_from((b"[", b'{"a":')), strategies.integers(1, 100_000))
        path = strategies.sampled_from(list(SHARES)) | strategies.sampled_from(list(description["paths"])) | strategies.text("/v1models.%?#\u00e9:-_ ", max_size=40).map(lambda t: "/" + t)
        error = jsonschema_rs.Draft202012Validator({"$ref": "#/components/schemas/Error", "components": description["components"]})
        session = requests.Session()

        @hypothesis.seed(SEED)
        @hypothesis.settings(max_examples=max(1, round(CALLS * BYTES_SHARE)), deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck), print_blob=False)
        @hypothesis.given(strategies.sampled_from(["POST"] * 6 + ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]), path, spliced | nested | strategies.binary(max_size=200),
                          strategies.sampled_from(("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "multipart/form-data", "x", "")))
        def call(method, path, body, kind):
            response = session.request(method, server.url + path, data=body if method not in ("GET", "HEAD") else None, headers={"Content-Type": kind}, timeout=PATIENCE)
            statuses[response.status_code] += 1
            said["bytes", str(response.status_code)] += 1
            self.assertIn(response.status_code, (200, 400, 404, 413, 414, 415), response.text)
            if response.status_code != 200 and method != "HEAD": error.validate(response.json())

        call()
        self.assertEqual(server.get("/health")[0], 200, server.logged()[-4000:])

    def test_answers_are_described(self):
        operations = [result.ok() for result in api.get_all_operations()]
        self.assertEqual({o.path for o in operations}, set(description["paths"]))
        rest = (1 - BYTES_SHARE - sum(SHARES.values())) / (len(operations) - len(SHARES))
        for operation in operations:
            # Without a body everything is right.
            modes = list(GenerationMode) if operation.method == "post" else [GenerationMode.POSITIVE]
            for mode in modes:
                with self.subTest(path=operation.path, mode=mode.value):
                    self.fuzz(operation, mode, max(1, round(CALLS * SHARES.get(operation.path, rest) / len(modes))))
        self.assertIsNone(server.process.poll(), server.logged()[-4000:])
        self.assertTrue(server.wait_for(lambda: server.engine()["running"] + server.engine()["waiting"] == 0), "all that was asked for has ended")


if __name__ == "__main__":
    program = unittest.main(argv=sys.argv[:1] + sys.argv[2:], exit=False, verbosity=2)
    sys.exit(0 if program.result.wasSuccessful() else 1)
