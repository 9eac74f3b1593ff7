"""ds-serve with the trained pair, by the standard library's HTTP client: answers, streams, errors, cancellation, 64 clients, drift, draining."""
import concurrent.futures, gzip, hashlib, http.server, json, math, os, pathlib, re, shutil, subprocess, sys, tempfile, threading, unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import forced_model
from server import PATIENCE, Server, pair, root

binaries = pathlib.Path(sys.argv[1]).resolve() / "bin"
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-serve-test-"))
CONTEXT = (pair / "data" / "demo_context.txt").read_text()
QUESTION = (pair / "data" / "demo_question.txt").read_text()
LONG = {"max_tokens": 1500, "ignore_eos": True, "temperature": 0}  # takes long enough to be looked at


def tool(name, *args, expect=0):
    done = subprocess.run([binaries / name, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == expect, f"{name}: exit {done.returncode}, expected {expect}: {done.stderr[-800:]}"
    return done


def model(name, **more): return {"name": name, "folder": str(pair / name), "chat_template": str(work / "chat.jinja")} | more


def setUpModule():
    (work / "chat.jinja").write_text("{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }}{% endfor %}")
    tool("ds-compile", "--receiver", pair / "receiver", "--sender", pair / "sender", "--context-lengths", 403, "--link-rates", "400MB/s",
         "--quality", pair / "quality.json", "--slo-loss", 5, "-o", work / "plan.dsplan")
    tool("ds-publish", "--model", pair / "sender", "--plan", work / "plan.dsplan", "--context", pair / "data" / "demo_context.txt", "--store", f"file:{work}/store")


def fleet(**more):
    return {"models": [model("sender", publish=True, publish_live=True), model("receiver", reuse="approximate")], "store": {"url": f"file:{work}/store"},
            "plans": [{"file": str(work / "plan.dsplan"), "profile": str(pair / "quality.json")}], "gate": {"false_alarms": "5%", "window": 16},
            "limits": {"patience_ms": 30000}} | more


def prompt(**more): return {"model": "receiver", "prompt": CONTEXT + QUESTION, "max_tokens": 8, "temperature": 0} | more


class Served(unittest.TestCase):
    """Tests that share a server."""

    @classmethod
    def setUpClass(cls): cls.server = Server(binaries, work, cls.__name__, fleet())

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"exit {code}: {cls.server.logged()}"

    def ok(self, path, body, **more):
        status, _, answer = self.server.post(path, body, **more)
        self.assertEqual(status, 200, answer)
        return answer

    def completion(self, **more): return self.ok("/v1/completions", prompt(**more))


class Reused(Served):
    def test_what_was_reused_is_said(self):
        by_run = json.loads(tool("ds-run", "--receiver", pair / "receiver", "--plan", work / "plan.dsplan", "--store", f"file:{work}/store", "--context", pair / "data" / "demo_context.txt",
                                 "--prompt", QUESTION, "--max-new-tokens", 8, "--json").stdout)
        first = self.completion()
        self.assertEqual(first["choices"][0]["text"], by_run["text"])
        said = first["droidspeak"]
        self.assertEqual((said["sender"], said["cache"], said["why"], said["gate"]["status"]), ("sender", "hit", None, "passed"), said)
        self.assertTrue(said["way"].startswith("recompute ") and said["bytes"] > 0 and 0 < said["promised_loss"] <= 5, said)
        self.assertTrue(said["predicted_ttft_ms"] > 0 and said["ttft_ms"] > 0, said)
        self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 384, "of 403 tokens the whole blocks")
        self.assertEqual(first["usage"]["prompt_tokens"], 418)
        again = self.completion()
        self.assertEqual((again["droidspeak"]["cache"], again["droidspeak"]["bytes"], again["droidspeak"]["sender"]), ("unused", 0, "sender"), "what came by a plan is known for it later, too")
        self.assertEqual(again["choices"], first["choices"])
        self.assertEqual(said["shorter"], None, "all of its whole blocks")
        other = self.completion(cache_salt="another tenant")
        self.assertEqual((other["droidspeak"]["cache"], other["droidspeak"]["reason"], other["droidspeak"]["sender"]), ("miss", "not found", None))
        for reuse in ("exact", "off"):
            said = self.completion(reuse=reuse)["droidspeak"]
            self.assertEqual((said["way"], said["cache"]), ("full prefill", "unused"), said)
            self.assertIn(f"reuse: {reuse}", said["why"])
        self.assertEqual(self.completion(slo_loss=0, cache_salt="strict")["droidspeak"]["sender"], None)
        self.assertIn("objective", self.completion(slo_ttft_ms=1e6, cache_salt="patient")["droidspeak"]["why"])
        self.assertIn("exact reuse only", self.completion(model="sender", cache_salt="strict")["droidspeak"]["why"])

    def test_published_contexts_are_reused(self):
        context = CONTEXT.replace("bridge", "tower")
        count = self.ok("/tokenize", {"model": "sender", "prompt": context})["count"]
        blocks = count // 64 * 64
        ids = self.ok("/tokenize", {"model": "sender", "prompt": context})["tokens"][:blocks] + [5]
        published = self.server.engine()["published"]
        self.completion(model="sender", prompt=ids, cache_salt="published")
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["published"] == published + 1), "the sender publishes what it has read")
        said = self.completion(prompt=ids + [6, 7], cache_salt="published")["droidspeak"]
        self.assertEqual((said["cache"], said["sender"]), ("hit", "sender"), said)
        self.assertEqual(self.completion(prompt=ids + [6, 7], cache_salt="not it")["droidspeak"]["cache"], "miss")

    def test_salts_of_any_bytes(self):
        body = {"model": "receiver", "prompt": [5 + i % 90 for i in range(128)], "max_tokens": 1, "temperature": 0, "reuse": "exact"}
        cached = lambda salt: self.ok("/v1/completions", body | {"cache_salt": salt})["usage"]["prompt_tokens_details"]["cached_tokens"]
        salts = [*map(chr, range(128)), "\u00ff", "\U0001f600", "x\0", "x\n", "\nx", "s" * 64, "s" * 65, "s" * (1 << 20), "s" * (1 << 20) + "\0", "../../etc"]
        for salt in salts: self.assertEqual(cached(salt), 0, f"{salt[:9]!r} is nobody else's")
        for salt in salts[::9]: self.assertGreater(cached(salt), 0, f"{salt[:9]!r} is its own")
        for raw in (b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x00", b"\n", b"\\ud800", b"\\x00"):
            status, _, answer = self.server.post("/v1/completions", raw=b'{"model": "receiver", "prompt": "a", "cache_salt": "' + raw + b'"}')
            self.assertEqual((status, "error" in answer), (400, True), raw)
        self.assertGreater(cached(""), -1, "it still answers")

    def test_what_is_lost_is_repaired(self):
        ids = [0] + [50 + i * i % 900 for i in range(255)]
        before, published = set((work / "store").rglob("*")), self.server.engine()["published"]
        self.completion(model="sender", prompt=ids + [5], cache_salt="torn")
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["published"] == published + 1), "the sender publishes what it has read")
        entry = max((f for f in set((work / "store").rglob("*")) - before if f.is_file()), key=lambda f: f.stat().st_size)
        data = bytearray(entry.read_bytes())
        data[-64] ^= 1  # of the last layer's K and V
        entry.chmod(0o600)
        entry.write_bytes(data)
        repairs, misses = (self.server.engine()[k] for k in ("entry_repairs", "entry_misses"))
        said = self.completion(prompt=ids + [5, 6], cache_salt="torn")["droidspeak"]
        self.assertEqual((said["cache"], said["reason"], said["sender"], said["why"]), ("repaired", "corrupt", "sender", None), said)
        self.assertTrue(0 < said["repaired"]["lost"] < said["repaired"]["of"], said)
        self.assertEqual((self.server.engine()["entry_repairs"], self.server.engine()["entry_misses"]), (repairs + 1, misses))
        counted = [line for line in self.server.get("/metrics")[2].splitlines() if line.startswith("droidspeak_entry_lookups_total{") and 'reason="corrupt"' in line and 'result="repaired"' in line]
        self.assertEqual([line.split()[-1] for line in counted], ["1"], counted)

    def test_a_conversation_that_grows(self):
        ids = [0] + [100 + i * i % 900 for i in range(127)]
        longer = ids + [7 + i % 90 for i in range(128)]
        published = self.server.engine()["published"]
        for i, tokens in enumerate((ids, longer)):
            self.completion(model="sender", prompt=tokens + [5], cache_salt="grows")
            self.assertTrue(self.server.wait_for(lambda: self.server.engine()["published"] == published + i + 1), "what is new becomes an entry of its own")
        answer = self.completion(prompt=longer + [5, 6] * 50, cache_salt="grows")
        self.assertEqual((answer["droidspeak"]["cache"], answer["usage"]["prompt_tokens_details"]["cached_tokens"], answer["droidspeak"]["shorter"]), ("hit", 256, "not found"), answer)


class Answers(Served):
    def test_models(self):
        status, _, models = self.server.get("/v1/models")
        self.assertEqual(status, 200)
        self.assertEqual([m["id"] for m in models["data"]], ["sender", "receiver"])
        for m in models["data"]: self.assertEqual((m["object"], m["owned_by"], m["max_model_len"]), ("model", "droidspeak", 2048))
        self.assertEqual(self.server.get("/v1/models/sender")[2], models["data"][0])
        self.assertEqual(self.server.get("/health")[0], 200)

    def test_prompts_of_all_kinds(self):
        text, ids = "Hello box", self.ok("/tokenize", {"model": "receiver", "prompt": "Hello box"})["tokens"]
        self.assertEqual(self.ok("/detokenize", {"model": "receiver", "tokens": ids})["prompt"], "<s>Hello box")
        one = self.completion(prompt=text)["choices"][0]["text"]
        self.assertEqual(self.completion(prompt=ids)["choices"][0]["text"], one)
        self.assertEqual([c["text"] for c in self.completion(prompt=[text, text])["choices"]], [one, one])
        both = self.completion(prompt=[ids, ids], return_token_ids=True)
        self.assertEqual([c["text"] for c in both["choices"]], [one, one])
        self.assertEqual([c["index"] for c in both["choices"]], [0, 1])
        self.assertEqual(both["choices"][1]["prompt_token_ids"], ids)
        self.assertEqual(self.ok("/detokenize", {"model": "receiver", "tokens": both["choices"][0]["token_ids"]})["prompt"], one)
        self.assertEqual(both["usage"]["prompt_tokens"], 2 * len(ids))
        self.assertTrue(all("droidspeak" in c for c in both["choices"]) and "droidspeak" not in both)

    def test_streams(self):
        whole = self.completion(max_tokens=24, ignore_eos=True, reuse="off")
        events = self.server.stream("/v1/completions", prompt(max_tokens=24, ignore_eos=True, reuse="off", stream_options={"include_usage": True}))
        self.assertEqual("".join(e["choices"][0]["text"] for e in events[:-1]), whole["choices"][0]["text"])
        self.assertEqual(events[-1]["choices"], [])
        self.assertEqual(events[-1]["usage"], whole["usage"])
        self.assertEqual({e["id"] for e in events}, {events[0]["id"]})
        self.assertEqual([e["choices"][0]["finish_reason"] for e in events[:-1]], [None] * (len(events) - 2) + ["length"])
        self.assertEqual(events[-2]["droidspeak"]["way"], "full prefill")
        self.assertNotIn("usage", self.server.stream("/v1/completions", prompt())[-1])

    def test_chats(self):
        body = {"model": "receiver", "messages": [{"role": "user", "content": "<s>" + CONTEXT + QUESTION}], "max_completion_tokens": 8, "temperature": 0, "reuse": "off"}
        whole = self.ok("/v1/chat/completions", body)
        self.assertEqual(whole["object"], "chat.completion")
        self.assertEqual(whole["choices"][0]["message"], {"role": "assistant", "content": self.completion(reuse="off")["choices"][0]["text"]})
        events = self.server.stream("/v1/chat/completions", body)
        self.assertEqual(events[0]["choices"][0]["delta"], {"role": "assistant", "content": ""})
        self.assertEqual("".join(e["choices"][0]["delta"].get("content", "") for e in events), whole["choices"][0]["message"]["content"])
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "stop")
        parts = [{"type": "text", "text": t} for t in ("Hello", "box")]
        ids = [self.ok("/tokenize", {"model": "receiver", "messages": [{"role": "user", "content": c}]})["tokens"] for c in (parts, "Hello\nbox")]
        self.assertEqual(ids[0], ids[1], "a template that does not know parts gets them as one text")
        for wrong, code in (({"role": "tool", "content": "x"}, "chat_template_error"), ({"role": "user", "content": [{"type": "image_url"}]}, None)):
            status, _, answer = self.server.post("/v1/chat/completions", body | {"messages": [wrong]})
            self.assertEqual((status, answer["error"]["param"], answer["error"]["code"]), (400, "messages", code), answer)
        self.assertIn("no tools here", self.server.post("/v1/chat/completions", body | {"messages": [{"role": "tool", "content": "x"}]})[2]["error"]["message"])

    def test_stop_texts(self):
        code = {"prompt": "\ndef mark(angle, data,", "max_tokens": 24, "ignore_eos": True, "reuse": "off"}
        text = self.completion(**code)["choices"][0]["text"]
        stop = text[9:14]  # lies across tokens
        self.assertEqual(len(stop), 5, text)
        expected = text[:text.index(stop)]
        stopped = self.completion(**code, stop=["never said", stop])["choices"][0]
        self.assertEqual((stopped["text"], stopped["finish_reason"], stopped["stop_reason"]), (expected, "stop", stop))
        events = self.server.stream("/v1/completions", prompt(**code, stop=stop))
        self.assertEqual("".join(e["choices"][0]["text"] for e in events), expected)
        self.assertEqual(events[-1]["choices"][0]["finish_reason"], "stop")
        ids = self.completion(**code, return_token_ids=True)["choices"][0]["token_ids"]
        by_id = self.completion(**code, return_token_ids=True, stop_token_ids=[ids[3]])["choices"][0]
        self.assertEqual((by_id["token_ids"], by_id["stop_reason"]), (ids[:ids.index(ids[3])], ids[3]))
        short = self.completion(reuse="off")["usage"]["completion_tokens"]
        self.assertLess(short, 6)
        self.assertGreaterEqual(self.completion(reuse="off", min_tokens=6)["usage"]["completion_tokens"], 6)
        end = json.loads((pair / "receiver" / "config.json").read_text())["eos_token_id"]
        went_on = lambda **more: self.completion(reuse="off", ignore_eos=True, max_tokens=8, return_token_ids=True, **more)["choices"][0]["token_ids"]
        self.assertEqual(went_on()[short], end)
        self.assertNotIn(end, went_on(min_tokens=6)[:6])

    def test_choices_and_seeds(self):
        hot = {"prompt": "\ndef mark(angle, data,", "temperature": 1.5, "ignore_eos": True, "reuse": "off"}
        two = [c["text"] for c in self.completion(n=2, seed=7, **hot)["choices"]]
        self.assertEqual(two, [self.completion(seed=s, **hot)["choices"][0]["text"] for s in (7, 8)])
        self.assertNotEqual(two[0], two[1])
        events = self.server.stream("/v1/completions", prompt(n=2, seed=7, **hot))
        self.assertEqual(["".join(e["choices"][0]["text"] for e in events if e["choices"][0]["index"] == i) for i in (0, 1)], two)

    def test_rules(self):
        code = {"prompt": "\ndef mark(angle, data,", "max_tokens": 12, "ignore_eos": True, "reuse": "off", "return_token_ids": True}
        ids = lambda **more: self.completion(**code, **more)["choices"][0]["token_ids"]
        free = ids()
        self.assertEqual(ids(logit_bias={"77": 100}), [77] * 12)
        self.assertNotIn(free[0], ids(logit_bias={str(free[0]): -100}))
        self.assertEqual(ids(temperature=2, seed=1, top_k=1), free)
        self.assertEqual(ids(temperature=2, seed=1, min_p=1), free)
        self.assertNotEqual(ids(temperature=2, seed=1), free)
        once = ids(logit_bias={"77": 20}, presence_penalty=2, frequency_penalty=2)
        self.assertTrue(0 < once.count(77) < 12, once)
        self.assertLess(ids(logit_bias={"77": 20}, repetition_penalty=100).count(77), 3)

    def test_logprobs(self):
        said = self.completion(logprobs=3, ignore_eos=True, reuse="off")["choices"][0]["logprobs"]
        self.assertEqual({len(said[k]) for k in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}, {8})
        for token, value, top in zip(said["tokens"], said["token_logprobs"], said["top_logprobs"]):
            self.assertEqual(max(top, key=top.get), token, "the greedy choice is the likeliest")
            self.assertEqual(top[token], value)
            self.assertLessEqual(sum(math.exp(x) for x in top.values()), 1 + 1e-6)
        chat = self.ok("/v1/chat/completions", {"model": "receiver", "messages": [{"role": "user", "content": "<s>" + CONTEXT + QUESTION}], "max_tokens": 2, "temperature": 0, "logprobs": True, "top_logprobs": 2, "reuse": "off"})
        first = chat["choices"][0]["logprobs"]["content"][0]
        self.assertEqual((first["token"], first["logprob"], len(first["top_logprobs"])), (said["tokens"][0], said["token_logprobs"][0], 2))
        self.assertIsNone(self.completion(logprobs=None)["choices"][0]["logprobs"])

    def test_errors(self):
        for body, param in ((prompt(temperature=-1), "temperature"), (prompt(n=9), "n"), (prompt(prompt=None), "prompt"), (prompt(prompt=[["x"]]), "prompt"), (prompt(stop=""), "stop"),
                            (prompt(max_tokens=0), "max_tokens"), (prompt(presence_penalty=3), "presence_penalty"), (prompt(logit_bias={"99999": 1}), "logit_bias"), (prompt(reuse="some"), "reuse"), (prompt(prompt=[1 << 20]), "prompt"),
                            (prompt(response_format={"type": "json_object"}), "response_format"), (prompt(logprobs=1000), "logprobs"), (prompt(prompt=[]), "prompt"), (prompt(prompt=""), None)):
            status, _, answer = self.server.post("/v1/completions", body)
            if param is None: self.assertEqual(status, 200, "BOS alone can be answered")
            else: self.assertEqual((status, answer["error"]["type"], answer["error"]["param"]), (400, "invalid_request_error", param), answer)
        self.assertEqual(self.server.post("/v1/completions", prompt(max_tokens=4096))[2]["error"]["code"], "context_length_exceeded")
        for raw in ("", "{", "[]", "\xff", '"text"'):
            status, _, answer = self.server.post("/v1/completions", raw=raw.encode("latin-1"))
            self.assertEqual((status, answer["error"]["type"]), (400, "invalid_request_error"), raw)
        status, _, answer = self.server.post("/v1/completions", prompt(model="nobody"))
        self.assertEqual((status, answer["error"]["code"], answer["error"]["param"]), (404, "model_not_found", "model"))
        self.assertEqual(self.server.post("/v1/embeddings", {})[0], 404)
        self.assertEqual(self.server.get("/v1/completions")[0], 404)
        status, _, answer = self.server.post("/v1/completions", raw=b"x" * (9 << 20))
        self.assertEqual((status, answer["error"]["code"]), (413, "request_too_large"))
        chunks = lambda count: (b"x" * (1 << 16) for _ in range(count))
        connection = self.server.connect()
        try:
            connection.request("POST", "/v1/completions", chunks(256), {"Content-Type": "application/json"}, encode_chunked=True)
            self.assertEqual(connection.getresponse().status, 413, "a length that is not announced is limited, too")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the server has closed before all was sent
        finally:
            connection.close()
        packed = gzip.compress(b" " * (64 << 20))
        self.assertLess(len(packed), 1 << 20)
        self.assertEqual(self.server.post("/v1/completions", raw=packed, headers={"Content-Encoding": "gzip"})[0], 413)
        self.assertEqual(self.server.post("/v1/completions", raw=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"})[0], 415)
        self.assertEqual(self.server.post("/v1/completions", raw=gzip.compress(json.dumps(prompt()).encode()), headers={"Content-Encoding": "gzip"})[0], 200)
        self.completion(unknown_field={"a": 1}, user="someone", presence_penalty=0, top_k=-1, logit_bias={}, response_format={"type": "text"})

    def test_request_ids(self):
        self.assertEqual(self.server.post("/v1/completions", prompt(), headers={"X-Request-Id": "abc-1"})[1]["X-Request-Id"], "abc-1")
        ids = {self.server.get("/health", headers=h)[1]["X-Request-Id"] for h in ({}, {}, {"X-Request-Id": "no good\tid"})}
        self.assertEqual(len(ids), 3)
        self.assertNotIn("no good\tid", ids)

    def test_one_connection_serves_many(self):
        connection = self.server.connect()
        for _ in range(8):
            connection.request("POST", "/v1/completions", json.dumps(prompt()), {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            response.read()
        connection.close()

    def test_broken_connections_cancel(self):
        for stream in (True, False):
            before = self.server.engine()
            connection = self.server.send("POST", "/v1/completions", prompt(stream=stream, **LONG))
            self.assertTrue(self.server.wait_for(lambda: self.server.engine()["decoding"] > 0))
            if stream: connection.getresponse().read(64)
            connection.close()
            if stream: connection.sock = None
            self.assertTrue(self.server.wait_for(lambda: self.server.engine()["running"] == 0))
            after = self.server.engine()
            self.assertEqual((after["cancelled"], after["finished"]), (before["cancelled"] + 1, before["finished"]), f"stream: {stream}")

    def test_slow_readers_hold_nobody(self):
        slow = self.server.send("POST", "/v1/completions", prompt(stream=True, **LONG))
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["decoding"] > 0))
        for _ in range(4): self.completion()
        finished = self.server.engine()["finished"]
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["running"] == 0), "it ends without being read")
        self.assertEqual(self.server.engine()["finished"], finished + (1 if self.server.engine()["finished"] > finished else 0))
        text = slow.getresponse().read().decode()
        self.assertTrue(text.endswith("data: [DONE]\n\n"))
        slow.close()

    def test_clients_at_once(self):
        items, seen = [], set()
        for line in (pair / "data" / "notes_qa.jsonl").read_text().splitlines():
            item = json.loads(line)
            if item["context"] not in seen and len(items) < 8:
                seen.add(item["context"])
                items.append(item["context"] + f"\nQuestion: {item['input']}:")
        expected = [json.loads(tool("ds-run", "--receiver", pair / "receiver", "--prompt", p, "--max-new-tokens", 8, "--json").stdout)["text"] for p in items]
        self.assertGreater(len(set(expected)), 2)

        def client(i):
            body = prompt(prompt=items[i % 8], reuse=("off", "exact")[i % 2], cache_salt=str(i // 16))
            if i % 3: return self.completion(**body)["choices"][0]["text"]
            return "".join(e["choices"][0]["text"] for e in self.server.stream("/v1/completions", body))

        with concurrent.futures.ThreadPoolExecutor(64) as pool: answers = list(pool.map(client, range(64)))
        self.assertEqual(answers, [expected[i % 8] for i in range(64)])

    def test_metrics(self):
        self.completion()
        status, headers, text = self.server.get("/metrics")
        self.assertEqual(status, 200)
        self.assertTrue(headers["Content-Type"].startswith("text/plain"))
        self.assertNotIn("vllm:", text)
        value = lambda name: float(re.search(rf"^droidspeak_{re.escape(name)} (\S+)$", text, re.M).group(1))
        engine = self.server.engine()
        self.assertEqual(value("link_bytes_total"), engine["link_bytes"])
        self.assertGreaterEqual(value('requests_total{model="receiver",outcome="ok"}'), 1)
        self.assertEqual(value('arena_bytes{what="limit"}'), 1 << 30)
        names = {m for m in re.findall(r"^# TYPE (\S+)", text, re.M)}
        self.assertTrue(all(n.startswith("droidspeak_") for n in names))
        dashboard = json.loads((root / "docs" / "grafana-dashboard.json").read_text())
        asked = re.findall(r"droidspeak_\w+", json.dumps([t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]))
        self.assertGreater(len(set(asked)), 15)
        for name in asked: self.assertIn(re.sub("_(bucket|sum|count)$", "", name) if name not in names else name, names, "the dashboard asks for what there is")

    def test_page(self):
        status, headers, text = self.server.get("/")
        self.assertEqual((status, headers["Content-Type"].split(";")[0]), (200, "text/html"))
        self.assertNotRegex(text, r'(src|href)="', "one file")
        self.completion()
        state = self.server.get("/status")[2]
        self.assertEqual([m["name"] for m in state["models"]], ["sender", "receiver"])
        self.assertEqual(state["recent"][0]["model"], "receiver")
        self.assertNotIn("bridge", json.dumps(state["recent"]), "no answer's text")


    def test_page_in_a_browser(self):
        browser = shutil.which("chromium")
        if browser is None: self.skipTest("no chromium")
        self.completion()
        for width in (390, 1280):
            page = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work}/chromium", f"--window-size={width},1000", "--virtual-time-budget=5000", "--dump-dom", self.server.url + "/"],
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE).stdout.split("<script>")[0]
            self.assertRegex(page, r'<p id="state"[^>]*>up for')
            self.assertRegex(page, r"<td[^>]*>sender \u2192 receiver</td>")
            self.assertRegex(page, r'<table id="recent">.*<td[^>]*>receiver</td>')


class Description(Served):
    """GET /openapi.json says what the sources do."""

    def setUp(self):
        self.said = json.loads((root / "serve" / "openapi.json").read_text())
        self.schemas = self.said["components"]["schemas"]

    def fields(self, schema):
        """Those of an object, by name, with what it is put together from."""
        if "$ref" in schema: return self.fields(self.schemas[schema["$ref"].rsplit("/", 1)[1]])
        return {k: v for part in schema.get("allOf", []) + schema.get("anyOf", []) for k, v in self.fields(part).items()} | schema.get("properties", {})

    def test_file(self):
        status, headers, served = self.server.get("/openapi.json")
        self.assertEqual((status, headers["Content-Type"], served), (200, "application/json", self.said))
        self.assertIn(f"project(droidspeak VERSION {self.said['info']['version']} ", (root / "CMakeLists.txt").read_text())
        asked = set(re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(self.said)))
        self.assertEqual(asked, {f"{kind}/{name}" for kind, of in self.said["components"].items() if kind != "securitySchemes" for name in of}, "all that is named is there, and used")
        connection = self.server.send("HEAD", "/openapi.json")
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()

    def test_paths(self):
        source = (root / "serve" / "api.cpp").read_text()
        route = re.search(r"HttpReply Api::route\(.*?\n}\n", source, re.S).group()
        served = {(method, path) for method, path in re.findall(r'(get|post) && call\.path == "([^"]+)"', route)}
        served |= {(method, path + "{model}") for method, path in re.findall(r'(get|post) && call\.path\.starts_with\("([^"]+)"', route)}
        self.assertGreater(len(served), 9)
        self.assertEqual({(method, path) for path, of in self.said["paths"].items() for method in of}, served)
        counted = re.findall(r'"(/[^"]*)"', re.search(r"kPaths\[\] = \{(.*?)\};", source, re.S).group(1))
        self.assertEqual({path for _, path in served if "{" not in path}, set(counted), "the metrics count each of them")
        for method, path in served:
            status, _, answer = self.server.ask(method.upper(), path.replace("{model}", "receiver"), {} if method == "post" else None)
            self.assertEqual(status, 400 if method == "post" else 200, f"{path}: {answer}")

    def test_fields(self):
        source = (root / "serve" / "openai_request.cpp").read_text()
        read = set(re.findall(r'\bf\.(?:has|at|integer|number|boolean|text)\("(\w+)"', source))
        for names in re.findall(r"for \(const char\* key : \{(.*?)\}\)", source, re.S): read |= set(re.findall(r'"(\w+)"', names))
        self.assertGreater(len(read), 45)
        completion, chat = (self.fields(self.schemas[n]) for n in ("CompletionRequest", "ChatRequest"))
        self.assertEqual(set(completion) | set(chat), read)
        self.assertEqual(set(completion["stream_options"]["properties"]), set(re.findall(r'\bo\.boolean\("(\w+)"', source)))
        read = set(re.findall(r'\bf\.(?:has|at|integer|number|boolean|text)\("(\w+)"', (root / "serve" / "api.cpp").read_text()))
        self.assertLessEqual(read, set(self.fields(self.schemas["TokenizeRequest"])) | set(self.fields(self.schemas["DetokenizeRequest"])))

    def test_bounds(self):
        chat = {"model": "receiver", "messages": [{"role": "user", "content": "<s>Hello"}], "max_tokens": 2, "temperature": 0}
        tried = 0
        for path, schema, body in (("/v1/completions", "CompletionRequest", prompt(prompt="Hello", max_tokens=2)), ("/v1/chat/completions", "ChatRequest", chat)):
            for name, field in self.fields(self.schemas[schema]).items():
                step = 1 if "integer" in field.get("type", ()) else 1e-3
                least, most = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
                if most is None: continue
                for value, right in ((least, "minimum" in field), (least - step, False), (most, True), (most + step, False), ("x", False)):
                    together = {"logprobs": True} if name == "top_logprobs" else {"n": value} if name == "best_of" and right else {}
                    status, _, answer = self.server.post(path, body | together | {name: value})
                    self.assertEqual(status == 400 and answer["error"]["param"] == name, not right, f"{path}: {name}: {value}: {answer}")
                    tried += 1
        self.assertGreater(tried, 80)

    def test_numbers_that_are_whole(self):
        answer = self.completion(max_tokens=3.0, n=1.0, seed=1e3, ignore_eos=True, prompt=[0.0, 5, 6.0], return_token_ids=True)
        self.assertEqual((answer["usage"]["completion_tokens"], answer["choices"][0]["prompt_token_ids"]), (3, [0, 5, 6]))
        for value in (3.5, 1e300, -1.0, "3", True): self.assertEqual(self.server.post("/v1/completions", prompt(max_tokens=value))[2]["error"]["param"], "max_tokens")

    def test_conversations(self):
        chat = {"model": "receiver", "messages": [{"role": "user", "content": "<s>Hello"}], "max_tokens": 2}
        for field, value in (("tools", {}), ("tools", ["x"]), ("documents", "x"), ("chat_template_kwargs", []), ("add_generation_prompt", "x"), ("messages", [{"role": "user", "content": 5}]), ("messages", ["x"]),
                             ("messages", [{"content": "x"}])):
            for path in ("/v1/chat/completions", "/tokenize"):
                status, _, answer = self.server.post(path, chat | {field: value})
                self.assertEqual((status, answer["error"]["param"]), (400, field), answer)


class Tenants(unittest.TestCase):
    """Keys, a short queue, and the end."""

    def setUp(self):
        for name, text in (("red.key", "key-of-red\n"), ("red.salt", "salt of red\n")):
            (work / name).write_text(text)
            os.chmod(work / name, 0o600)
        keys = [{"tenant": "red", "key_file": str(work / "red.key"), "salt_file": str(work / "red.salt")},
                {"tenant": "blue", "key_sha256": hashlib.sha256(b"key-of-blue").hexdigest(), "requests": 1}]
        self.server = Server(binaries, work, "tenants", fleet(keys=keys, limits={"batch": 1, "queue": 1}), "--log-requests")
        self.server.key = "key-of-red"

    def tearDown(self): self.server.stop()

    def test_keys(self):
        for key in (None, "key-of-green", ""):
            status, headers, answer = self.server.post("/v1/completions", prompt(), key=key)
            self.assertEqual((status, answer["error"]["code"]), (401, "invalid_api_key"))
        for path in ("/v1/models", "/v1/models/receiver", "/metrics", "/status"):
            self.assertEqual([self.server.get(path, key=key)[0] for key in (None, "key-of-green", "key-of-red")], [401, 401, 200], path)
        for path in ("/health", "/", "/openapi.json"): self.assertEqual(self.server.get(path)[0], 200)
        for key in ("key-of-red", "key-of-blue"):
            status, _, answer = self.server.post("/v1/completions", prompt(), key=key)
            self.assertEqual(status, 200)
            self.assertEqual((answer["droidspeak"]["cache"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]), ("miss", 0), "no tenant has what nobody's or another's is")
        self.server.stop()
        logged = self.server.logged()
        self.assertIn('"tenant":"red"', logged)
        for secret in ("key-of-red", "key-of-blue", "salt of red", "bridge"): self.assertNotIn(secret, logged)

    def test_nobody_can_tell_what_another_tenant_has(self):
        contexts = [[(7 * i + s) % 90 + 5 for i in range(256)] for s in range(3)]
        self.assertEqual(self.server.post("/v1/completions", {"model": "sender", "prompt": contexts[0] + [5], "max_tokens": 1}, key="key-of-red")[0], 200)
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["published"] == 1), "it is red's entry now")

        def counts():
            text = self.server.get("/metrics", key="key-of-red")[2]
            return {name: float(value) for name, value in re.findall(r"^(ds_\S+|droidspeak_\S+) (\S+)$", text, re.M) if not re.search("seconds|ratio|bytes_per|steps", name)}

        def ask(tokens, key):
            before = counts()
            status, _, answer = self.server.post("/v1/completions", {"model": "receiver", "prompt": tokens + [6, 7], "max_tokens": 1, "temperature": 0}, key=key)
            self.assertEqual(status, 200, answer)
            said = {k: v for k, v in answer["droidspeak"].items() if not k.endswith("_ms")}
            after = counts()
            return said, answer["usage"], {k: after[k] - before.get(k, 0) for k in after if after[k] != before.get(k, 0)}

        ask(contexts[1], "key-of-blue")  # whatever a first one changes
        has, has_not = ask(contexts[0], "key-of-blue"), ask(contexts[2], "key-of-blue")
        self.assertEqual(has, has_not)
        self.assertEqual(has[0]["cache"], "miss")
        self.assertTrue(has[2], "something is counted")
        self.assertEqual(ask(contexts[0], "key-of-red")[0]["cache"], "hit")

    def test_open_metrics(self):
        self.server.stop()
        keys = [{"tenant": "blue", "key_sha256": hashlib.sha256(b"key-of-blue").hexdigest()}]
        self.server = Server(binaries, work, "open", fleet(keys=keys, open_metrics=True))
        for path, status in (("/metrics", 200), ("/status", 200), ("/v1/models", 401)): self.assertEqual(self.server.get(path)[0], status, path)

    def test_page_asks_for_the_key(self):
        browser = shutil.which("chromium")
        if browser is None: self.skipTest("no chromium")
        typed = None

        class Typing(http.server.BaseHTTPRequestHandler):
            """The server, with somebody at its page who types a key."""

            def do_GET(handler):
                given = handler.headers.get("Authorization", "").removeprefix("Bearer ")
                status, headers, text = self.server.get(handler.path, key=given)
                if handler.path == "/" and typed:
                    text += f"<script>const typing = setInterval(() => {{ if ($('ask').hidden) return; clearInterval(typing); $('key').value = '{typed}'; $('ask').requestSubmit(); }}, 50);</script>"
                handler.send_response(status)
                handler.send_header("Content-Type", headers["Content-Type"])
                handler.end_headers()
                handler.wfile.write((text if isinstance(text, str) else json.dumps(text)).encode())

            def log_message(self, *_): pass

        between = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Typing)
        threading.Thread(target=between.serve_forever, daemon=True).start()
        self.addCleanup(between.server_close)
        self.addCleanup(between.shutdown)
        for typed, state, form in ((None, "this server asks for an API key", ""), ("key-of-green", "the API key is none of this server's", ""), ("key-of-red", "up for", ' hidden=""')):
            page = subprocess.run([browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={work}/chromium", "--virtual-time-budget=5000", "--dump-dom", f"http://127.0.0.1:{between.server_port}/"],
                                  capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=PATIENCE).stdout.split("<script>")[0]
            self.assertRegex(page, rf'<p id="state"[^>]*>{state}')
            self.assertIn(f'<form id="ask"{form}>', page)
            self.assertNotIn(str(typed), page)

    def test_full_queue(self):
        body = prompt(stream=True, **LONG)
        first = self.server.send("POST", "/v1/completions", body, key="key-of-red")
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["running"] == 1))
        second = self.server.send("POST", "/v1/completions", body, key="key-of-blue")
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["waiting"] == 1))
        for key in ("key-of-red", "key-of-blue"):
            status, headers, answer = self.server.post("/v1/completions", prompt(), key=key)
            self.assertEqual((status, answer["error"]["type"]), (429, "rate_limit_error"), answer)
            self.assertGreaterEqual(int(headers["Retry-After"]), 1)
        for connection in (first, second): connection.close()
        self.assertTrue(self.server.wait_for(lambda: self.server.engine()["running"] + self.server.engine()["waiting"] == 0))
        self.assertEqual(self.server.post("/v1/completions", prompt(), key="key-of-blue")[0], 200)

    def test_draining(self):
        running = self.server.send("POST", "/v1/completions", prompt(stream=True, stream_options={"include_usage": True}, **LONG), key="key-of-red")
        response = running.getresponse()
        begun = response.read(64)
        self.server.process.terminate()
        self.assertTrue(self.server.wait_for(lambda: self.server.get("/health")[0] == 503))
        status, headers, answer = self.server.post("/v1/completions", prompt(), key="key-of-red")
        self.assertEqual((status, headers["Retry-After"]), (503, "1"), answer)
        text = (begun + response.read()).decode()
        self.assertTrue(text.endswith("data: [DONE]\n\n"))
        self.assertEqual(json.loads(text.split("data: ")[-2])["usage"]["completion_tokens"], LONG["max_tokens"])
        running.close()
        self.assertEqual(self.server.process.wait(PATIENCE), 0)


class Tools(unittest.TestCase):
    """Calls of tools in answers that are known."""

    @classmethod
    def setUpClass(cls):
        forced_model.make(work / "forced", forced_model.CALLS)
        models = [{"name": name, "folder": str(work / "forced")} | more for name, more in (("calls", {"tool_parser": "hermes"}), ("texts", {}))]
        cls.server = Server(binaries, work, "tools", {"models": models})

    @classmethod
    def tearDownClass(cls): assert cls.server.stop() == 0, cls.server.logged()

    def chat(self, **more): return {"model": "calls", "messages": [{"role": "user", "content": "How is it?"}], "tools": forced_model.TOOLS, "temperature": 0, "max_tokens": 20} | more

    def answer(self, **more):
        status, _, answer = self.server.post("/v1/chat/completions", self.chat(**more))
        self.assertEqual(status, 200, answer)
        return answer["choices"][0]

    def test_calls(self):
        answer = self.answer()
        message = answer["message"]
        self.assertEqual((message["content"], answer["finish_reason"]), ("I look. ", "tool_calls"))
        self.assertEqual([(c["type"], c["function"]) for c in message["tool_calls"]],
                         [("function", {"name": "weather", "arguments": '{"city":"Zurich"}'}), ("function", {"name": "time", "arguments": "{}"})])
        self.assertEqual(len({c["id"] for c in message["tool_calls"]}), 2)
        # What was called goes back as clients send it.
        again = self.chat(messages=[{"role": "user", "content": "How is it?"}, message | {"content": None}, {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "rain"}])
        self.assertEqual(self.server.post("/v1/chat/completions", again)[0], 200)

    def test_streams(self):
        whole = self.answer()["message"]
        for more in ({}, {"logprobs": True}, {"return_token_ids": True}):
            chunks = [e["choices"][0] for e in self.server.stream("/v1/chat/completions", self.chat(**more))]
            self.assertEqual("".join(c["delta"].get("content") or "" for c in chunks), whole["content"])
            calls = [call for c in chunks for call in c["delta"].get("tool_calls", [])]
            self.assertEqual([c["index"] for c in calls], [0, 1])
            self.assertEqual([c["function"] for c in calls], [c["function"] for c in whole["tool_calls"]])
            self.assertEqual([c["finish_reason"] for c in chunks], [None] * (len(chunks) - 1) + ["tool_calls"])

    def test_what_is_no_call(self):
        text = "".join(forced_model.CALLS[1:])
        for more in ({"model": "texts"}, {"tools": []}, {"tool_choice": "none"}):
            answer = self.answer(**more)
            self.assertEqual((answer["message"], answer["finish_reason"]), ({"role": "assistant", "content": text}, "stop"), more)
        cut = self.answer(max_tokens=5)
        self.assertEqual((cut["message"], cut["finish_reason"]), ({"role": "assistant", "content": "".join(forced_model.CALLS[1:6])}, "length"), "a call that was cut off is none")
        both = self.answer(max_tokens=8)
        self.assertEqual((len(both["message"]["tool_calls"]), both["finish_reason"]), (1, "length"))


class Drift(unittest.TestCase):
    def test_falls_back_to_exact(self):
        server = Server(binaries, work, "drift", fleet(gate={"false_alarms": "5%", "window": 16, "on_drift": "exact"}))
        try:
            random = lambda seed: [0] + [(seed * 7919 + i * i * 31) % 1200 + 100 for i in range(127)]
            for i in range(16): self.assertEqual(server.post("/v1/completions", prompt(model="sender", prompt=random(i) + [5], max_tokens=1))[0], 200)
            self.assertTrue(server.wait_for(lambda: server.engine()["published"] == 16))
            for i in range(16): self.assertEqual(server.post("/v1/completions", prompt(prompt=random(i) + [5, 6]))[0], 200)
            self.assertEqual(server.engine()["gate_checks"], 16)
            state = server.get("/status")[2]
            self.assertTrue(state["plans"][0]["drifted"], state["plans"])
            self.assertTrue(next(m for m in state["models"] if m["name"] == "receiver")["drifted"])
            self.assertIn('droidspeak_drift{receiver="receiver",sender="sender"} 1', server.get("/metrics")[2].replace('sender="sender",receiver="receiver"', 'receiver="receiver",sender="sender"'))
            said = server.post("/v1/completions", prompt())[2]["droidspeak"]
            self.assertEqual(said["sender"], None)
            self.assertIn("drift", said["why"])
        finally:
            self.assertEqual(server.stop(), 0)
        self.assertIn("drifted", server.logged())


class Registered(unittest.TestCase):
    """A sender that publishes for receivers elsewhere, whose plans it finds in the store."""

    def test_plans_of_the_store(self):
        folder = work / "registered"
        store = f"file:{folder}"
        only = {"models": [model("sender", publish=True)], "store": {"url": store, "registered": "1s"}}
        file = work / "registered.json"
        file.write_text(json.dumps(only))
        server = Server(binaries, work, "registered", only)
        try:
            known = lambda: server.get("/status")[2]["registered_plans"]
            ids = server.post("/tokenize", {"prompt": CONTEXT})[2]["tokens"]
            ids = ids[:len(ids) // 64 * 64] + [5]
            ask = lambda: self.assertEqual(server.post("/v1/completions", {"prompt": ids, "max_tokens": 1, "temperature": 0})[0], 200)
            reuse = lambda: json.loads(tool("ds-run", "--receiver", pair / "receiver", "--plan", work / "plan.dsplan", "--store", store, "--context-ids", work / "context.json",
                                            "--prompt-ids", work / "question.json", "--max-new-tokens", 1, "--json").stdout)
            (work / "context.json").write_text(json.dumps(ids[:-1]))
            (work / "question.json").write_text("[5]")
            self.assertEqual(known(), [])
            ask()
            self.assertEqual(server.engine()["publications_open"] + server.engine()["published"], 0, "nobody wants it")
            key = re.search(r"plan-[0-9a-f]{64}", tool("ds-store", "register", store, work / "plan.dsplan").stdout).group()
            self.assertTrue(server.wait_for(lambda: known() == [{"key": key, "sender": "sender", "receiver": "receiver", "models": ["sender"], "problem": None}]), known())
            ask()
            self.assertTrue(server.wait_for(lambda: server.engine()["published"] == 1), "the same context, once it is wanted")
            self.assertEqual(reuse()["cache"]["status"], "hit", "with the cuts of that plan")
            # What is broken is named once, and passed over.
            other = "plan-" + "0" * 64
            (folder / other).write_text("no plan")
            self.assertTrue(server.wait_for(lambda: len(known()) == 2), known())
            self.assertIn("expected", known()[0]["problem"])
            self.assertEqual(known()[1]["models"], ["sender"])
            said = tool("ds-serve", "--fleet", file, "--check")
            self.assertIn(f"registered {key[:17]}: sender -> receiver, published for by sender", said.stdout)
            self.assertIn(f"registered plan '{other}'", said.stderr)
            tool("ds-store", "rm", store, key)
            self.assertTrue(server.wait_for(lambda: [p["key"] for p in known()] == [other]), known())
        finally:
            self.assertEqual(server.stop(), 0)
        self.assertEqual(server.logged().count(f"registered plan '{other}'"), 1, server.logged())


class Files(unittest.TestCase):
    def serve(self, fleet, *args, expect):
        file = work / "broken.json"
        file.write_text(json.dumps(fleet))
        return tool("ds-serve", "--fleet", file, *args, expect=expect)

    def test_broken_fleets(self):
        says = lambda done, *texts: [self.assertIn(t, done.stderr) for t in texts]
        says(self.serve(fleet(modles=[]), "--check", expect=2), "modles", "unknown key")
        says(self.serve(fleet(models=[model("sender"), model("sender")]), "--check", expect=2), "two models are named 'sender'")
        says(self.serve(fleet(store={"url": "s3://x"}), "--check", expect=2), "broken.json: store: url: ", "unknown scheme 's3'")
        says(self.serve(fleet(store={"url": "redis://127.0.0.1:1", "registered": "1min"}), "--check", expect=0), "registered in 'redis://127.0.0.1:1' cannot be looked for now: ", "Connection refused")
        says(self.serve(fleet(models=[model("sender")]), "--check", expect=5), "plan.dsplan", "no model of the fleet")
        broken = fleet(models=fleet()["models"] + [model("gone")])
        says(self.serve(broken, expect=3), "model 'gone'")
        self.assertIn("model receiver", self.serve(broken, "--check", "--partial", expect=0).stdout)
        server = Server(binaries, work, "partial", broken, "--partial")
        try:
            self.assertEqual(server.post("/v1/completions", prompt())[0], 200)
            self.assertEqual(server.post("/v1/completions", prompt(model="gone"))[0], 404)
            self.assertIn("gone", server.get("/status")[2]["left_out"][0])
            says(self.serve(fleet(), "--port", str(server.address.port), expect=8), "cannot bind 127.0.0.1:", "Address already in use")
        finally:
            server.stop()

    def test_init(self):
        tool("ds-serve", "init", "--model", f"a={pair / 'sender'}", "--model", pair / "receiver", "--plan", work / "plan.dsplan", "--profile", pair / "quality.json",
             "--store", f"file:{work}/store", "--approximate", "--publish", "--registered", "-o", work / "made.json")
        made = json.loads((work / "made.json").read_text())
        self.assertEqual(made["store"]["registered"], "60s")
        self.assertIn("allow a higher rate", tool("ds-serve", "--fleet", work / "made.json", "--check", expect=7).stderr, "a gate's rate needs its samples")
        (work / "made.json").write_text(json.dumps(made | {"gate": {"false_alarms": "5%"}}))
        out = tool("ds-serve", "--fleet", work / "made.json", "--check").stdout
        for text in ("model a:", "model receiver:", "approximate reuse, 1 plan", "sender -> receiver, 1 variant, a gate"): self.assertIn(text, out)
        self.assertIn("no plan's pair", tool("ds-serve", "init", "--model", pair / "sender", "--profile", pair / "quality.json", expect=5).stderr)

    def test_tls(self):
        if shutil.which("openssl") is None: self.skipTest("no openssl to make a certificate with")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", work / "key.pem", "-out", work / "cert.pem"],
                       check=True, capture_output=True)
        import ssl, urllib.request
        listen = {"port": 0, "tls": {"certificate": str(work / "cert.pem"), "private_key": str(work / "key.pem")}}
        server = Server(binaries, work, "tls", {"listen": listen, "models": [model("receiver")]})
        try:
            self.assertTrue(server.url.startswith("https://"))
            with urllib.request.urlopen(server.url + "/v1/models", context=ssl.create_default_context(cafile=work / "cert.pem"), timeout=PATIENCE) as r:
                self.assertEqual(json.load(r)["data"][0]["id"], "receiver")
        finally:
            self.assertEqual(server.stop(), 0)
        listen["tls"]["private_key"] = str(work / "cert.pem")
        self.assertIn("private key", self.serve({"listen": listen, "models": [model("receiver")]}, expect=2).stderr)


if __name__ == "__main__":
    program = unittest.main(argv=sys.argv[:1] + sys.argv[2:], exit=False, verbosity=2)
    shutil.rmtree(work, ignore_errors=True)
    sys.exit(0 if program.result.wasSuccessful() else 1)
