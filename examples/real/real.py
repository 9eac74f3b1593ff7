#!/usr/bin/env python3
"""A real fleet, from its weights to answers: SmolLM2-135M-Instruct and fine-tunes of it (README.md).

    real.py                                  base -> records, on 24 test contexts
    real.py --receiver code --sender records --tasks next_line docstring
    real.py --train                          trains the agents instead of taking the adapters that are kept here
    real.py --base DIR                       another model's folder; its agents are trained

What a step has made is kept in --work and not made again; stopped, the same command goes on. Steps: environment, base, data, agents,
profile, machine, plans, publish, answer.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TASKS = {"records": ["records"], "code": ["next_line", "docstring"], "prose": ["heading", "quote"]}


def step(text):
    print(f"\n== {text}", flush=True)


def run(*command, output=None):
    command = [str(c) for c in command]
    try:
        if output is None:
            subprocess.run(command, check=True)
        else:
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
            with open(output + ".new", "w", encoding="utf-8") as f:
                f.write(text)
            os.replace(output + ".new", output)
    except FileNotFoundError:
        sys.exit(f"real.py: {command[0]} is not there: ./dev build")
    except subprocess.CalledProcessError as error:
        sys.exit(f"real.py: ended with status {error.returncode}: {' '.join(command)}\nWhat was made before is kept; the same command goes on from there.")


class Real:
    def __init__(self, a):
        self.a, self.work = a, os.path.abspath(a.work)
        self.base = os.path.abspath(a.base) if a.base else os.path.join(self.work, "base")
        self.data = os.path.join(self.work, "data")
        self.python, self.trained = a.python, bool(a.train or a.base)
        self.agents_at = os.path.join(self.work, "trained" if self.trained else "agents")
        self.pair = os.path.join(self.work, f"{a.sender}-to-{a.receiver}{'-trained' if self.trained else ''}",
                                 f"{'-'.join(a.tasks)}-{a.contexts}-contexts-{a.granularity}-layers")

    def tool(self, name):
        return os.path.join(self.a.bin, name)

    def at(self, *names):
        return os.path.join(self.pair, *names)

    def model(self, name):
        return self.base if name == "base" else os.path.join(self.agents_at, name)

    def to_train(self):
        """Agents that are neither made nor kept here."""
        return [n for n in sorted({self.a.sender, self.a.receiver} - {"base"})
                if not os.path.exists(self.model(n)) and (self.trained or not os.path.isdir(os.path.join(HERE, "agents", n)))]

    def say(self):
        train = self.to_train()
        print(f"In {self.work}, on 2 CPU cores:\n"
              f"  environment  {'--python' if self.python else '150 MB, a minute'}{'; for training 6 GB, some minutes' if train and not self.python else ''}\n"
              f"  base         {'--base' if self.a.base else '93 MB fetched, 273 MB kept, a minute'}\n"
              f"  data         8 MB, a minute\n"
              f"  agents       {'trained: ' + ', '.join(train) + ', 8 to 10 minutes and 4 to 6 GB of memory each' if train else '5 MB each, from adapters that are kept here'}\n"
              f"  profile      {self.a.contexts} contexts a task: ds-profile says how long before it begins\n"
              f"  answer       2 minutes\n", flush=True)

    def environment(self):
        if self.python:
            return
        folder = os.path.join(self.work, "env")
        self.python = os.path.join(folder, "bin", "python")
        wanted = ["requirements.txt"] + (["requirements-train.txt"] if self.to_train() else [])
        for name in wanted:
            mark = os.path.join(folder, name)
            with open(os.path.join(HERE, name)) as f:
                text = f.read()
            if os.path.exists(mark) and open(mark).read() == text:
                continue
            step(f"a Python environment ({name})")
            if not os.path.exists(self.python):
                run(sys.executable, "-m", "venv", folder)
            run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", os.path.join(HERE, name))
            with open(mark, "w") as f:
                f.write(text)

    def fetch(self):
        if not os.path.exists(os.path.join(self.base, "config.json")):
            if self.a.base:
                sys.exit(f"real.py: --base {self.a.base}: no config.json there; expected a Hugging Face folder")
            step("the base model")
            run(self.python, os.path.join(HERE, "fetch.py"), "-o", self.base)

    def make_data(self):
        if not os.path.exists(os.path.join(self.data, "prompts.json")):
            step("questions, from this machine's package records, Python and Perl")
            run(self.python, os.path.join(HERE, "tasks.py"), "--base", self.base, "-o", self.data)

    def agents(self):
        train = self.to_train()
        for name in sorted({self.a.sender, self.a.receiver} - {"base"}):
            if name in train:
                step(f"training {name}")
                run(self.python, os.path.join(HERE, "train.py"), "--base", self.base, "--agent", name, "-o", self.model(name))
            elif not os.path.exists(self.model(name)):
                shutil.copytree(os.path.join(HERE, "agents", name), self.model(name) + ".new")
                os.replace(self.model(name) + ".new", self.model(name))

    def base_of(self, *names):
        """--base, for the tools: where one of the models is an adapter."""
        return ("--base", self.base) if any(os.path.exists(os.path.join(self.model(n), "adapter_config.json")) for n in names) else ()

    def models(self):
        a = self.a
        return "--sender", self.model(a.sender), "--receiver", self.model(a.receiver), *self.base_of(a.sender, a.receiver)

    def first_contexts(self, kind, task):
        """A file with the questions about the first --contexts contexts."""
        path, seen = self.at(f"{kind}-{task}.jsonl"), []
        with open(os.path.join(self.data, kind, task + ".jsonl"), encoding="utf-8") as f:
            lines = f.readlines()
        kept = []
        for line in lines:
            context = json.loads(line)["context"]
            if context not in seen:
                seen.append(context)
            if len(seen) > self.a.contexts:
                break
            kept.append(line)
        with open(path, "w", encoding="utf-8") as f:
            f.writelines(kept)
        return path

    def profile(self):
        os.makedirs(self.pair, exist_ok=True)
        if os.path.exists(self.at("quality.json")):
            return
        step(f"how well {self.a.receiver} answers over the cache of {self.a.sender} (ds-profile)")
        run(self.tool("ds-profile"), *self.models(), "--data", *(self.first_contexts("test", t) for t in self.a.tasks), "--prompts", os.path.join(self.data, "prompts.json"),
            "--fit-data", *(self.first_contexts("fit", t) for t in self.a.tasks), "--granularity", self.a.granularity, "--scattered", 1,
            "--select", "15%", "--maps-out", self.at("maps.safetensors"), "-o", self.at("quality.json"))
        run(self.tool("ds-profile"), "report", self.at("quality.json"), "-o", self.at("quality.html"))

    def compile(self, tokens, suffix):
        """plan.dsplan and full-reuse.dsplan, for that many tokens; what the plan does."""
        compiler = (self.tool("ds-compile"), *self.models(), "--machine", self.at("machine.json"), "--context-lengths", tokens, "--suffix-length", suffix,
                    "--link-rates", self.a.link_rate)
        run(*compiler, "--quality", self.at("quality.json"), "--slo-loss", self.a.slo_loss, "--maps", self.at("maps.safetensors"), "-o", self.at("plan.dsplan"))
        run(*compiler, "--policy", "full-reuse", "-o", self.at("full-reuse.dsplan"))
        run(self.tool("ds-plan"), "dump", "--format", "json", self.at("plan.dsplan"), output=self.at("plan.json"))
        with open(self.at("plan.json"), encoding="utf-8") as f:
            return json.load(f)["variants"][0]["way"]

    def pick(self, way):
        """A question that the receiver answers right by itself and, where there is one, wrong over the reused cache and right over the plan's."""
        runs, best = self.at("quality.json.run"), None
        with open(self.at("quality.json"), encoding="utf-8") as f:
            names = [w["way"] for w in json.load(f)["ways"]]
        items = {}
        for task in self.a.tasks:
            with open(self.at(f"test-{task}.jsonl"), encoding="utf-8") as f:
                items |= {(task, row["input"]): row for row in map(json.loads, f)}
        for name in sorted(n for n in os.listdir(runs) if n.startswith("context-") and n.endswith(".jsonl")):
            with open(os.path.join(runs, name), encoding="utf-8") as f:
                records = json.loads(f.read().splitlines()[1])["items"]
            for record in records:
                row = items.get((record["task"], record["question"]))
                if row and record["exact"][names.index("full prefill")]:
                    key = (-record["exact"][names.index(way)] if way in names else 0, record["score"][names.index("full reuse")], -row["length"])
                    if best is None or key < best[0]:
                        best = (key, row)
        if best is None:
            sys.exit(f"real.py: {self.a.receiver} answers none of these questions exactly: more --contexts, or other --tasks")
        return best[1]

    def answer(self):
        receiver = ("--receiver", self.model(self.a.receiver), *self.base_of(self.a.receiver))
        if not os.path.exists(self.at("machine.json")):
            step("this machine (ds-calibrate)")
            run(self.tool("ds-calibrate"), "--model", *receiver[1:], "--context-lengths", "256,1024", "-o", self.at("machine.json"))
        step(f"plans: at most {self.a.slo_loss:g} points of loss (ds-compile)")
        row = self.pick(self.compile(700, 24))
        with open(self.at("context.txt"), "w", encoding="utf-8") as f:
            f.write(row["context"])
        run(self.tool("ds-run"), *receiver, "--context", self.at("context.txt"), "--prompt", "\n\n" + row["input"], "--render", "--json", output=self.at("rendered.json"))
        with open(self.at("rendered.json"), encoding="utf-8") as f:
            rendered = json.load(f)
        text = rendered["text"].encode()
        question = text[rendered["context_bytes"]:].decode()
        with open(self.at("context.txt"), "wb") as f:
            f.write(text[:rendered["context_bytes"]])
        way = self.compile(rendered["context_tokens"], len(rendered["token_ids"]) - rendered["context_tokens"])
        print(f"the plan: {way}", flush=True)
        maps = ("--maps", self.at("maps.safetensors")) if way.endswith(" aligned") else ()
        step(f"the cache of {self.a.sender}, published (ds-publish)")
        shutil.rmtree(self.at("store"), ignore_errors=True)
        store = "file:" + self.at("store")
        run(self.tool("ds-publish"), "--model", self.model(self.a.sender), *self.base_of(self.a.sender), "--template", "none", "--context", self.at("context.txt"),
            "--store", store, "--plan", self.at("plan.dsplan"), "--plan", self.at("full-reuse.dsplan"), *maps)
        step(f"answers over a link of {self.a.link_rate} (ds-bench ttft): {row['input']!r} -> {row['answers'][0]!r}")
        run(self.tool("ds-bench"), "ttft", *receiver, "--store", store, "--context", self.at("context.txt"), "--prompt", question, "--answer", row["answers"][0],
            "--link-rate", self.a.link_rate, "--max-new-tokens", 32, "--json", self.at("ttft.json"), "--plan", "full reuse=" + self.at("full-reuse.dsplan"),
            "--plan", "plan=" + self.at("plan.dsplan"), *maps)
        print(f"the profile as a page: {self.at('quality.html')}")


def main():
    p = argparse.ArgumentParser(description="A real fleet, from its weights to answers.", epilog="\n".join(__doc__.split("\n")[2:]),
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--sender", default="base", choices=["base", *TASKS])
    p.add_argument("--receiver", default="records", choices=["base", *TASKS])
    p.add_argument("--tasks", nargs="+", choices=sum(TASKS.values(), []), help="default: the receiver's")
    p.add_argument("--contexts", type=int, default=24, help="contexts a task in the profile (2 questions each; %(default)s; 120 are there), and for the fit of maps (60)")
    p.add_argument("--granularity", type=int, default=5, help="of the profile: edges of groups are multiples of so many layers (%(default)s)")
    p.add_argument("--slo-loss", type=float, default=5, help="points that a plan may lose (%(default)s)")
    p.add_argument("--link-rate", default="400MB/s", help="between store and receiver (%(default)s)")
    p.add_argument("--base", metavar="DIR", help="a Llama model's folder instead of SmolLM2-135M-Instruct; agents are trained")
    p.add_argument("--train", action="store_true", help="train the agents instead of taking the adapters in agents/")
    p.add_argument("--work", metavar="DIR", default=os.path.join(ROOT, "build", "real"))
    p.add_argument("--bin", metavar="DIR", default=os.path.join(ROOT, "build", "release", "bin"), help="the tools")
    p.add_argument("--python", help="a Python that has requirements.txt's packages (for training also requirements-train.txt's); default: one is made in --work")
    a = p.parse_args()
    a.tasks = a.tasks or TASKS.get(a.receiver) or p.error("--receiver base has no tasks of its own: give --tasks")
    if a.sender == a.receiver:
        p.error(f"--sender and --receiver are both {a.sender}: expected two different models")
    real = Real(a)
    os.makedirs(real.agents_at, exist_ok=True)
    real.say()
    for part in (real.environment, real.fetch, real.make_data, real.agents, real.profile, real.answer):
        part()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("real.py: stopped; what was made is kept, and the same command goes on from there")
