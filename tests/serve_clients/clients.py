"""openai, agentic-bench, cache-pressure and locust against ds-serve with the trained pair."""
import asyncio, csv, json, pathlib, shutil, subprocess, sys, tempfile, unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "serve"))
from server import PATIENCE, Server, pair

import forced_model, openai

build = pathlib.Path(sys.argv[1]).resolve()
work = pathlib.Path(tempfile.mkdtemp(prefix="ds-serve-clients-"))
CONTEXT = (pair / "data" / "demo_context.txt").read_text()
QUESTION = (pair / "data" / "demo_question.txt").read_text()
ANSWER = (pair / "data" / "demo_answer.txt").read_text().strip()


def setUpModule():
    global server
    (work / "chat.jinja").write_text("<s>{% for m in messages %}{{ m.content }}{% endfor %}")
    forced_model.make(work / "forced", forced_model.CALLS)
    models = [{"name": "receiver", "folder": str(pair / "receiver"), "chat_template": str(work / "chat.jinja")}, {"name": "calls", "folder": str(work / "forced"), "tool_parser": "hermes"}]
    server = Server(build / "bin", work, "clients", {"models": models})


def tearDownModule():
    assert server.stop() == 0, server.logged()
    shutil.rmtree(work, ignore_errors=True)


def command(name, *args):
    done = subprocess.run([build / "serve_clients" / "bin" / name, *map(str, args)], capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=work, timeout=4 * PATIENCE)
    return done.returncode, done.stdout + done.stderr


class OpenAi(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def tearDown(self): self.client.close()

    def test_answers(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["receiver", "calls"])
        whole = self.client.completions.create(model="receiver", prompt=CONTEXT + QUESTION, max_tokens=8, temperature=0)
        self.assertEqual((whole.choices[0].text.strip(), whole.choices[0].finish_reason), (ANSWER, "stop"))
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
        ids = server.post("/tokenize", {"model": "receiver", "prompt": CONTEXT + QUESTION})[2]["tokens"]
        by_ids = self.client.completions.create(model="receiver", prompt=ids, max_tokens=8, temperature=0, extra_body={"reuse": "exact", "return_token_ids": True})
        self.assertEqual(by_ids.choices[0].text, whole.choices[0].text)
        self.assertGreater(by_ids.usage.prompt_tokens_details.cached_tokens, 0)
        self.assertEqual(by_ids.droidspeak["cache"], "unused")
        chat = self.client.chat.completions.create(model="receiver", messages=[{"role": "user", "content": CONTEXT + QUESTION}], max_completion_tokens=8, temperature=0)
        self.assertEqual(chat.choices[0].message.content, whole.choices[0].text)

    def test_streams(self):
        asked = dict(model="receiver", messages=[{"role": "user", "content": CONTEXT}], max_completion_tokens=24, temperature=0, extra_body={"ignore_eos": True})
        whole = self.client.chat.completions.create(**asked)
        chunks = list(self.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].delta.content or "" for c in chunks if c.choices), whole.choices[0].message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)

    def test_tools(self):
        asked = dict(model="calls", messages=[{"role": "user", "content": "How is it?"}], tools=forced_model.TOOLS, temperature=0, max_tokens=20)
        whole = self.client.chat.completions.create(**asked).choices[0]
        self.assertEqual((whole.finish_reason, [(c.function.name, json.loads(c.function.arguments)) for c in whole.message.tool_calls]), ("tool_calls", [("weather", {"city": "Zurich"}), ("time", {})]))
        with self.client.chat.completions.stream(**asked) as stream: last = stream.get_final_completion().choices[0]
        self.assertEqual((last.finish_reason, last.message.content, [c.function.name for c in last.message.tool_calls]), ("tool_calls", "I look. ", ["weather", "time"]))

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as e: self.client.completions.create(model="nobody", prompt="x")
        self.assertEqual(e.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as e: self.client.completions.create(model="receiver", prompt="x", max_tokens=5000)
        self.assertEqual(e.exception.code, "context_length_exceeded")

    def test_cancellation(self):
        cancelled = server.engine()["cancelled"]
        stream = self.client.completions.create(model="receiver", prompt=CONTEXT, max_tokens=1500, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        self.assertTrue(server.wait_for(lambda: server.engine()["running"] == 0))
        self.assertEqual(server.engine()["cancelled"], cancelled + 1)

    def test_many_at_once(self):
        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
                one = lambda i: client.completions.create(model="receiver", prompt=CONTEXT + QUESTION, max_tokens=8, temperature=0, extra_body={"cache_salt": str(i % 4)})
                return await asyncio.gather(*(one(i) for i in range(64)))

        self.assertEqual({a.choices[0].text.strip() for a in asyncio.run(all_of_them())}, {ANSWER})


class LoadGenerators(unittest.TestCase):
    def test_agentic_bench(self):
        code, said = command("abench", "run", "--base-url", server.url, "--model", "receiver", "--dataset-name", "random", "--turns", 3, "--input-increment", 100, "--output-len", 16,
                             "--num-sessions", 8, "--max-concurrency", 8, "--gap-policy", "zero", "--system-prompt-len", 0, "--disable-tqdm", "--output-file", work / "abench.jsonl")
        self.assertEqual(code, 0, said)
        self.assertRegex(said, r"turn completion rate +100\.0 %")
        self.assertEqual(json.loads((work / "abench.jsonl").read_text().splitlines()[-1])["metrics"]["total_turns"], 24)

    def test_cache_pressure(self):
        code, said = command("cache-pressure", "--base-url", server.url + "/v1", "--model", "receiver", "--kv-size", 4000, "--context-tokens", 600, "--num-contexts", 3, "--output", work / "pressure.json")
        self.assertEqual(code, 0, said)
        self.assertEqual(said.count("verify   ctx#"), 3, said)
        self.assertIn("err=–", said)

    def test_locust(self):
        (work / "locustfile.py").write_text("from locust import HttpUser, task\nclass User(HttpUser):\n    @task\n    def ask(self):\n"
                                            "        self.client.post('/v1/completions', json={'model': 'receiver', 'prompt': 'Hello box ' * 20, 'max_tokens': 4, 'temperature': 0})\n")
        code, said = command("locust", "-f", "locustfile.py", "--headless", "-u", 64, "-r", 64, "-t", "5s", "-H", server.url, "--only-summary", "--csv", "load")
        self.assertEqual(code, 0, said)
        with open(work / "load_stats.csv") as f: total = list(csv.DictReader(f))[-1]
        self.assertGreater(int(total["Request Count"]), 64)
        self.assertEqual(int(total["Failure Count"]), 0)


if __name__ == "__main__":
    program = unittest.main(argv=sys.argv[:1] + sys.argv[2:], exit=False, verbosity=2)
    sys.exit(0 if program.result.wasSuccessful() else 1)
