#!/usr/bin/env python3
"""Questions over text that a Debian machine has, in LongBench's fields.

    tasks.py --base DIR -o DIR     test, fit and long questions of every task, and prompts.json

    records    apt-cache dumpavail: records of packages         "Which package has the installed size 670?"   qa_f1
    next_line  Python's standard library: a part of a module    three lines from further down; the next?      code_sim
    docstring  the same: functions without their docstrings     "... the docstring of the function pack."     rouge_l
    heading    the documentation of Perl's modules (pod) and    "Under which heading ...?"                    qa_f1
    quote      of Python's language (pydoc_data.topics)         "Quote the sentence that speaks of ...."      rouge_l

Who maintains a package, and authors' sections, are left out. Training, fit and test texts are told apart by the hash of the source package's,
the module's or the document's name (split_of), so that they stay apart where the versions differ.
"""
import argparse
import ast
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import sysconfig
import textwrap

PROMPTS = {  # task -> metric, most new tokens, most characters of an answer
    "records": ("qa_f1", 40),
    "next_line": ("code_sim", 40),
    "docstring": ("rouge_l", 32),
    "heading": ("qa_f1", 24),
    "quote": ("rouge_l", 64),
}


def split_of(name):
    """Of 20 parts 4 are for tests, 1 for fitting maps, 15 for training."""
    part = int.from_bytes(hashlib.md5(name.encode()).digest()[:4], "big") % 20
    return "test" if part < 4 else "fit" if part == 4 else "train"


# ----------------------------------------------------------------------------------------------------------------------- package records

def read_packages(text):
    """The records of `apt-cache dumpavail`, by name."""
    packages = {}
    for block in text.split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", block, re.M))
        if not all(k in fields for k in ("Package", "Section", "Version", "Installed-Size", "Description")):
            continue
        depends = [re.sub(r"[(:|].*", "", d).strip() for d in fields.get("Depends", "").split(",")]
        packages.setdefault(fields["Package"], {
            "name": fields["Package"], "source": fields.get("Source", fields["Package"]).split()[0], "section": fields["Section"],
            "version": re.sub(r"^\d+:", "", fields["Version"]).split("-")[0], "size": fields["Installed-Size"],
            "depends": list(dict.fromkeys(d for d in depends if d))[:3], "description": fields["Description"].strip()})
    return [packages[n] for n in sorted(packages)]


def record(p):
    lines = [f"Package: {p['name']}", f"Section: {p['section']}", f"Version: {p['version']}", f"Installed-Size: {p['size']}"]
    if p["depends"]:
        lines.append("Depends: " + ", ".join(p["depends"]))
    return "\n".join(lines + [f"Description: {p['description']}"])


def ask_records(chosen):
    once = lambda key, p: sum(q[key] == p[key] for q in chosen) == 1
    needed = [d for p in chosen for d in p["depends"]]
    out = []
    for p in chosen:
        n = p["name"]
        out += [(f"Which section is the package {n} in?", p["section"]),
                (f"What is the description of the package {n}?", p["description"]),
                (f"What is the installed size of the package {n}?", p["size"]),
                (f"Which version has the package {n}?", p["version"])]
        if p["depends"]:
            out.append((f"What does the package {n} depend on?", ", ".join(p["depends"])))
            out += [(f"Which package depends on {d}?", n) for d in p["depends"] if needed.count(d) == 1][-1:]
        if once("description", p):
            out.append((f"Which package has the description \"{p['description']}\"?", n))
        if once("size", p):
            out.append((f"Which package has the installed size {p['size']}?", n))
    return out


class Records:
    tasks = ("records",)

    def __init__(self, split):
        text = subprocess.run(["apt-cache", "dumpavail"], check=True, capture_output=True, encoding="utf-8", errors="replace").stdout
        self.packages = [p for p in read_packages(text) if split_of(p["source"]) == split and len(p["description"]) < 100]
        if len(self.packages) < 100:
            sys.exit(f"tasks.py: apt-cache dumpavail has {len(self.packages)} records for '{split}'; expected thousands: run apt-get update")

    def document(self, rng, tokens):
        """A text of about so many tokens (70 a record), half of it neighbours by name; and {task: [(question, answer)]}."""
        n = max(4, round(tokens / 70))
        i = rng.randrange(len(self.packages) - n // 2)
        chosen = list({p["name"]: p for p in self.packages[i:i + n // 2] + rng.sample(self.packages, n - n // 2)}.values())
        rng.shuffle(chosen)
        return "\n\n".join(record(p) for p in chosen), {"records": ask_records(chosen)}


# ---------------------------------------------------------------------------------------------------------------------- standard library

def read_modules():
    """{module: [source text]} of the running Python's standard library, by top-level module, without tests."""
    root = sysconfig.get_paths()["stdlib"]
    modules = {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if f not in ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"))
        for f in sorted(files):
            if f.endswith(".py"):
                path = os.path.join(folder, f)
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = file.read()
                name = os.path.relpath(path, root).split(os.sep)[0]
                modules.setdefault(name.removesuffix(".py"), []).append((path, text))
    return modules


def functions_of(text):
    """Functions with a docstring: (qualified name, source without the docstring, the docstring's first line)."""
    lines, out = text.split("\n"), []

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, prefix + child.name + ".")
            elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(child)
                if doc and len(child.body) > 1 and child.end_lineno - child.lineno < 60:
                    first = doc.split("\n")[0].strip()
                    s = child.body[0]
                    source = "\n".join(lines[child.lineno - 1:s.lineno - 1] + lines[s.end_lineno:child.end_lineno])
                    out.append((prefix + child.name, textwrap.dedent(source), first))
    visit(ast.parse(text), "")
    return out


def in_docstring(text):
    """Numbers (from 0) of the lines that belong to strings that stand alone."""
    out = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            out.update(range(node.lineno - 1, node.end_lineno))
    return out


class Code:
    tasks = ("next_line", "docstring")

    def __init__(self, split):
        self.files = []  # (lines, numbers of those in docstrings, functions)
        for name, texts in read_modules().items():
            if split_of(name) != split:
                continue
            for path, text in texts:
                try:
                    if len(text) > 3000:
                        self.files.append((text.split("\n"), in_docstring(text), functions_of(text)))
                except SyntaxError:
                    pass
        self.documented = [f for f in self.files if sum(map(good_docstring, f[2])) >= 4]

    def document(self, rng, tokens):
        return (self.window if rng.random() < 0.5 else self.listing)(rng, tokens)

    def window(self, rng, tokens):
        """Lines of a module (3.6 characters a token), and lines from the 40 behind them."""
        lines, strings, _ = rng.choices(self.files, [len(f[0]) for f in self.files])[0]
        starts = [i for i, l in enumerate(lines) if re.match(r"\s*(def|class) ", l)]
        begin = rng.choice(starts) if starts else 0
        end, size = begin, 0
        while end < len(lines) and size < tokens * 3.6:
            size += len(lines[end].strip()) + 2
            end += 1
        later = [i for i in range(end, min(end + 40, len(lines))) if lines[i].strip()]
        questions = []
        for a, b, c, d in zip(later, later[1:], later[2:], later[3:]):
            answer = lines[d].strip()
            if d not in strings and c not in strings and 8 <= len(answer) <= 90 and not re.search("#|`|//", answer):
                shown = textwrap.dedent("\n".join((lines[a], lines[b], lines[c])))
                questions.append((f"Further down in the same module stand these lines:\n{shown}\nWhat is the next line?", answer))
        return textwrap.dedent("\n".join(lines[begin:end])), {"next_line": questions if size >= tokens * 3.6 else []}

    def listing(self, rng, tokens):
        """Functions of a module without their docstrings."""
        functions = rng.choice(self.documented)[2]
        begin, size, chosen = rng.randrange(len(functions)), 0, []
        for f in functions[begin:]:
            if size >= tokens * 3.6:
                break
            chosen.append(f)
            size += sum(len(l.strip()) + 2 for l in f[1].split("\n"))
        names = [f[0] for f in chosen]
        questions = [(f"Write the first line of the docstring of the function {f[0]}.", f[2]) for f in chosen
                     if good_docstring(f) and names.count(f[0]) == 1]
        return "\n\n".join(f"# {f[0]}\n{f[1]}" for f in chosen), {"docstring": questions if size > tokens * 2.5 else []}


def good_docstring(f):
    return 15 <= len(f[2]) <= 90 and len(f[2].split()) >= 3


# ----------------------------------------------------------------------------------------------------------------------------------- prose

LEFT_OUT = re.compile(r"author|copyright|acknowledg|credit|thanks|licen|maintainer|contributor|see also|history|changes|support", re.I)


def read_pod(text):
    """Sections (heading, [paragraph]) of a pod: markup taken out, code and authors left out."""
    sections, heading, inside = [], None, False
    for block in re.split(r"\n\s*\n", text):
        block = block.strip("\n")
        command = re.match(r"=(\w+)\s*(.*)", block, re.S)
        if command:
            inside = command.group(1) not in ("cut", "begin", "for", "encoding")
            if command.group(1).startswith("head"):
                heading = plain(command.group(2))
                sections.append((heading, []))
        elif inside and heading and not block.startswith((" ", "\t")) and not LEFT_OUT.search(heading):
            paragraph = plain(block)
            if len(paragraph) > 60 and "@" not in paragraph:
                sections[-1][1].append(paragraph)
    return [s for s in sections if s[1]]


def plain(text):
    text = re.sub(r"[A-Z]<<+ (.*?) >>+", r"\1", text, flags=re.S)
    for _ in range(3):
        text = re.sub(r"\bL<(?:[^<>|]*\|)?([^<>]*)>", r"\1", text)
        text = re.sub(r"\b[XZ]<[^<>]*>", "", text)
        text = re.sub(r"\b[BCFIS]<([^<>]*)>", r"\1", text)
    text = re.sub(r"E<(\w+)>", lambda m: {"lt": "<", "gt": ">", "sol": "/", "verbar": "|"}.get(m.group(1), ""), text)
    return re.sub(r"\s+", " ", text).strip()


def read_topic(text):
    """Sections of a topic of pydoc: headings are underlined."""
    sections = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        if len(lines) == 2 and re.fullmatch(r"([*=\-])\1+", lines[1].strip()):
            sections.append((lines[0].strip(), []))
        elif sections and not block.startswith((" ", "\t", "*", "-")):
            paragraph = re.sub(r"\s+", " ", block).strip()
            if len(paragraph) > 60:
                sections[-1][1].append(paragraph)
    return [s for s in sections if s[1]]


def read_prose():
    """{name: sections}"""
    documents = {}
    root = subprocess.run(["perl", "-MConfig", "-e", "print $Config{privlib}"], check=True, capture_output=True, text=True).stdout
    for folder, folders, files in os.walk(os.path.realpath(root)):
        folders.sort()
        for f in sorted(files):
            if f.endswith((".pm", ".pod")):
                with open(os.path.join(folder, f), encoding="utf-8", errors="replace") as file:
                    documents[os.path.relpath(os.path.join(folder, f), os.path.realpath(root))] = read_pod(file.read())
    from pydoc_data import topics
    for name, text in topics.topics.items():
        documents["python " + name] = read_topic(text)
    return {n: s for n, s in sorted(documents.items()) if sum(len(p) for _, ps in s for p in ps) > 1500}


def sentences(paragraph):
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", paragraph)]


class Prose:
    tasks = ("heading", "quote")

    def __init__(self, split):
        self.documents = [s for n, s in read_prose().items() if split_of(n) == split]
        self.weights = [sum(len(p) for _, ps in s for p in ps) for s in self.documents]

    def document(self, rng, tokens):
        """Sections in a row from a document (4.3 characters a token), and from another where it ends."""
        chosen, size = [], 0
        while size < tokens * 4.3:
            sections = rng.choices(self.documents, self.weights)[0]
            for heading, paragraphs in sections[rng.randrange(len(sections)):]:
                if size >= tokens * 4.3 or heading in [h for h, _ in chosen]:
                    break
                taken = []
                for p in paragraphs:
                    if size < tokens * 4.3 and len(taken) < 3:
                        taken.append(p)
                        size += len(p) + len(heading) / 2
                chosen.append((heading, taken))
        text = "\n\n".join(f"{h}\n" + "\n".join(ps) for h, ps in chosen)
        words = re.findall(r"[\w'-]+", text)
        said = [(h, s) for h, ps in chosen for p in ps for s in sentences(p) if 40 <= len(s) <= 200 and text.count(s) == 1]
        headings, quotes = [], []
        for h, s in said:
            start = " ".join(s.split()[:8])
            if 3 <= len(h) <= 60 and text.count(start) == 1 and len(chosen) >= 3:
                headings.append((f"Under which heading stands the sentence that begins \"{start}\"?", h))
            rare = [w for w in re.findall(r"[A-Za-z][\w'-]{4,}", s) if words.count(w) == 1 and text.count(w) == 1]
            if len(rare) >= 3:
                two = sorted(rng.sample(range(len(rare)), 2))
                quotes.append((f"Quote the sentence that speaks of {rare[two[0]]} and {rare[two[1]]}.", s))
        return text, {"heading": headings, "quote": quotes}


MAKERS = {t: m for m in (Records, Code, Prose) for t in m.tasks}


# ------------------------------------------------------------------------------------------------------------------------------- questions

def items(maker, task, rng, contexts, per_context, low, high, count_tokens, longest=60):
    """LongBench's fields; contexts of `low` to `high` tokens, evenly spread; answers of at most `longest` tokens."""
    out, seen = [], set()
    while len(seen) < contexts:
        want = rng.uniform(low, high)
        context, asked = maker.document(rng, want)
        questions = [q for q in asked.get(task, []) if count_tokens(q[1]) <= min(longest, PROMPTS[task][1] - 2)]
        n = count_tokens(context)
        if context in seen or not low <= n <= high or len(questions) < per_context:
            continue
        seen.add(context)
        for question, answer in rng.sample(questions, per_context):
            out.append({"input": question, "context": context, "answers": [answer], "length": len(context.split()), "dataset": task,
                        "language": "en", "all_classes": None, "_id": f"{task}-{len(out):04d}"})
    return out


def write(path, rows):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    os.replace(path + ".new", path)


def prompts():
    return {"schema": "droidspeak.prompts", "version": 1,
            "tasks": {t: {"prompt": "{context}\n\n{input}", "max_new_tokens": n, "metric": m, "answer_prefix": "", "chat": True}
                      for t, (m, n) in PROMPTS.items()}}


def main():
    p = argparse.ArgumentParser(description="Questions for tests and for fitting maps.")
    p.add_argument("--base", required=True, help="the base model's folder: its tokenizer counts tokens")
    p.add_argument("-o", "--output", required=True, help="folder")
    p.add_argument("--tasks", nargs="+", default=list(PROMPTS), choices=list(PROMPTS))
    p.add_argument("--contexts", type=int, default=120, help="test contexts a task")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(os.path.join(a.base, "tokenizer.json"))
    count = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
    made = {}
    for task in a.tasks:
        for kind, split, contexts, per, low, high in (("test", "test", a.contexts, 2, 400, 1000), ("long", "test", 24, 2, 2000, 4000),
                                                      ("fit", "fit", 60, 1, 400, 1000)):
            key = (MAKERS[task], split)
            made[key] = made.get(key) or MAKERS[task](split)
            rows = items(made[key], task, random.Random(f"{a.seed}-{kind}-{task}"), contexts, per, low, high, count)
            write(os.path.join(a.output, kind, task + ".jsonl"), rows)
            print(f"{kind}/{task}.jsonl: {len(rows)} questions, {sum(count(c) for c in {r['context'] for r in rows})} tokens of context", flush=True)
    write_json = os.path.join(a.output, "prompts.json")
    with open(write_json + ".new", "w") as f:
        f.write(json.dumps(prompts(), indent=1) + "\n")
    os.replace(write_json + ".new", write_json)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as error:
        sys.exit(f"tasks.py: {error.filename} is not there; expected a Debian machine with apt, Python's standard library and perl-modules")
