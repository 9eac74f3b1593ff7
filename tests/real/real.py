"""The real fleet's scripts (examples/real), on small samples and on what this machine has: questions are answered by their contexts, texts of one
split are in no other, and each adapter that is kept loads in ds-run, on a model of its base's shape. usage: real.py BUILD_DIR"""
import json, os, pathlib, random, shutil, struct, subprocess, sys, tempfile

root = pathlib.Path(__file__).resolve().parent.parent.parent
real = root / "examples" / "real"
sys.path.insert(0, str(real))
sys.dont_write_bytecode = True
import tasks

failures = []


def check(right, what):
    if not right:
        failures.append(what)
        print(f"FAILED: {what}")


def equal(found, expected, what):
    check(found == expected, f"{what}: found {found!r}, expected {expected!r}")


AVAILABLE = """Package: gimp
Source: gimp (2.10.34-1)
Version: 2:2.10.34-1+deb12u10
Installed-Size: 19882
Maintainer: A Person <person@example.org>
Depends: libgimp2.0 (>= 2.10.34), libgimp2.0 (<= 2.10.34-z), gimp-data | gimp-data-small, python3:any
Description: GNU Image Manipulation Program
Section: graphics

Package: no-size
Version: 1
Description: lacks a size
Section: misc

Package: ed
Version: 1.19-1
Installed-Size: 120
Description: classic UNIX line editor
Section: editors
"""


def samples():
    packages = tasks.read_packages(AVAILABLE)
    equal([p["name"] for p in packages], ["ed", "gimp"], "records, by name, complete ones only")
    equal(tasks.record(packages[1]), "Package: gimp\nSection: graphics\nVersion: 2.10.34\nInstalled-Size: 19882\n"
          "Depends: libgimp2.0, gimp-data, python3\nDescription: GNU Image Manipulation Program", "a record")
    equal(packages[1]["source"], "gimp", "its source")
    asked = dict(tasks.ask_records(packages))
    equal(asked["Which package has the installed size 120?"], "ed", "a question by size")
    equal(asked["What does the package gimp depend on?"], "libgimp2.0, gimp-data, python3", "a question for dependencies")
    twice = tasks.ask_records([packages[0], dict(packages[1], size="120")])
    check("Which package has the installed size 120?" not in dict(twice), "no question about a size that two packages have")
    text = 'class A:\n    def f(self):\n        """Return nothing at all.\n\n        More."""\n        x = 1\n        return x\n'
    equal(tasks.functions_of(text), [("A.f", "def f(self):\n    x = 1\n    return x", "Return nothing at all.")], "a function without its docstring")
    equal(tasks.in_docstring(text), {2, 3, 4}, "the lines of a docstring")
    paragraph = "C<wrap()> is a very simple formatter B<of> paragraphs, see L<fill|/fill>; E<lt>1E<gt>."
    pod = f"package X;\n\n=head1 NAME\n\n{paragraph}\n\n    code\n\n=head1 AUTHOR\n\n{paragraph}\n\n=cut\n\n{paragraph}\n"
    equal(tasks.read_pod(pod), [("NAME", ["wrap() is a very simple formatter of paragraphs, see /fill; <1>."])], "a pod")


def texts(context):
    return " ".join(context.split())


def machine():
    """Every task, made of what this machine has; tokens are counted as 3.7 characters."""
    count = lambda text: round(len(text) / 3.7)
    for maker in (tasks.Records, tasks.Code, tasks.Prose):
        try:
            made = {split: maker(split) for split in ("fit", "test")}  # "fit" as another split: it is small
        except (OSError, subprocess.CalledProcessError, SystemExit) as error:
            print(f"skipped: {maker.__name__}: {error}")
            continue
        for task in maker.tasks:
            contexts = {}
            for split, m in made.items():
                rows = tasks.items(m, task, random.Random(f"1-{task}"), 4, 2, 400, 1000, count)
                equal(rows, tasks.items(m, task, random.Random(f"1-{task}"), 4, 2, 400, 1000, count), f"{task}: the same seed, the same questions")
                equal((len(rows), len({r["context"] for r in rows})), (8, 4), f"{task}: questions and contexts")
                contexts[split] = {r["context"] for r in rows}
                for r in rows:
                    equal(sorted(r), sorted(["input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"]), f"{task}: fields")
                    check(400 <= count(r["context"]) <= 1000, f"{task}: a context of {count(r['context'])} tokens")
                    equal(r["length"], len(r["context"].split()), f"{task}: length")
                    answer = r["answers"][0]
                    check(answer and answer == answer.strip() and "\n" not in answer, f"{task}: answer {answer!r}")
                    if task in ("records", "heading", "quote"):
                        check(texts(answer) in texts(r["context"]), f"{task}: answer {answer!r} is not in its context")
                    if task == "docstring":
                        check(answer not in r["context"], f"docstring: {answer!r} stands in its context")
                    check("Maintainer" not in r["context"] or task != "records", "a maintainer in a record")
            check(not contexts["fit"] & contexts["test"], f"{task}: contexts of one split in another")
        if maker is tasks.Records:
            sources = {split: {p["source"] for p in m.packages} for split, m in made.items()}
            check(not sources["fit"] & sources["test"], "source packages of one split in another")
        if maker is tasks.Prose:
            check(not {str(d) for d in made["fit"].documents} & {str(d) for d in made["test"].documents}, "documents of one split in another")


def write_model(folder, layers, width, kv_width, ff):
    """Zeros in the base's shape (a file with holes) and a vocabulary of 64."""
    shapes = {"model.embed_tokens.weight": (64, width), "model.norm.weight": (width,)}
    for l in range(layers):
        n = f"model.layers.{l}."
        shapes |= {n + "input_layernorm.weight": (width,), n + "post_attention_layernorm.weight": (width,), n + "self_attn.q_proj.weight": (width, width),
                   n + "self_attn.k_proj.weight": (kv_width, width), n + "self_attn.v_proj.weight": (kv_width, width), n + "self_attn.o_proj.weight": (width, width),
                   n + "mlp.gate_proj.weight": (ff, width), n + "mlp.up_proj.weight": (ff, width), n + "mlp.down_proj.weight": (width, ff)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)
    (folder / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": width, "intermediate_size": ff, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": kv_width // 64, "head_dim": 64, "vocab_size": 64, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 1e5, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"}))
    vocabulary = {f"t{i}": i for i in range(64)}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": []}}))


def adapters(build):
    kept = sorted(p for p in (real / "agents").glob("*") if p.is_dir())
    check(kept, f"{real / 'agents'} holds adapters")
    with tempfile.TemporaryDirectory() as work:
        for name, ff in (("base", 1536), ("other", 1024)):
            (pathlib.Path(work) / name).mkdir()
            write_model(pathlib.Path(work) / name, 30, 576, 192, ff)
        load = lambda adapter, base: subprocess.run(
            [build / "bin" / "ds-run", "--receiver", adapter, "--base", f"{work}/{base}", "--prompt-ids", f"{work}/ids.json", "--max-new-tokens", "1", "--weight-cache", "off",
             "--backend", "cpu"], capture_output=True, text=True)
        (pathlib.Path(work) / "ids.json").write_text("[3, 4, 5]")
        for adapter in kept:
            config = json.loads((adapter / "adapter_config.json").read_text())
            file = adapter / "adapter_model.safetensors"
            check(file.stat().st_size < 6 << 20, f"{file} has {file.stat().st_size} bytes")
            with open(file, "rb") as f:
                header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            header.pop("__metadata__", None)
            equal({t["dtype"] for t in header.values()}, {"BF16"}, f"{adapter.name}: types")
            equal(len(header), 30 * 2 * len(config["target_modules"]), f"{adapter.name}: factors")
            equal({t["shape"][0] for n, t in header.items() if ".lora_A." in n}, {config["r"]}, f"{adapter.name}: rank")
            done = load(adapter, "base")
            check(done.returncode == 0, f"ds-run with {adapter.name}: status {done.returncode}: {done.stderr}")
        done = load(kept[0], "other")
        check(done.returncode != 0 and "mlp" in done.stderr, f"ds-run with {kept[0].name} on another shape: status {done.returncode}: {done.stderr}")


samples()
machine()
adapters(pathlib.Path(sys.argv[1]))
sys.exit(1 if failures else 0)
