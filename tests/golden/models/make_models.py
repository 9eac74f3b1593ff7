"""Makes the models of this folder and, by transformers in float32, the logits that they must give.

    python make_models.py [OUT [MODEL ...]]        OUT: this folder; MODEL: all

Needs torch, transformers 5 and safetensors (made with torch 2.15.0, transformers 5.23.0). Running it again gives
the same checkpoints to the byte and the same logits up to rounding. README.md says how the folder is laid out.
"""
import json, os, shutil, sys, tempfile
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import logging as hf_logging
hf_logging.set_verbosity_error(); hf_logging.disable_progress_bar()
torch.set_num_threads(1)

CLASSES = dict(llama=LlamaConfig, mistral=MistralConfig, qwen2=Qwen2Config, qwen3=Qwen3Config)

# keys: the style of config.json (transformers 4 or 5); drop: keys taken out of it, to be derived by the reader;
# shards: number of safetensors files of the receiver; sender: whether there is one, or what its shape and family have of their own.
MODELS = {
    # Grouped queries 4:1, a head_dim that is no multiple of 8 and not d/heads.
    "llama": dict(family="llama", seed=11, dtype="bfloat16", keys=5, sender=True, eos=[1, 2], shape=dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=5, num_attention_heads=8, num_key_value_heads=2,
        head_dim=12, vocab_size=200, max_position_embeddings=2048, rms_norm_eps=1e-5)),
    # Llama 2: one key head per query head, none of the newer keys; f32 files.
    "llama2": dict(family="llama", seed=12, dtype="float32", keys=4, drop=["num_key_value_heads", "head_dim"],
        sender=False, eos=2, shape=dict(
        hidden_size=32, intermediate_size=40, num_hidden_layers=4, num_attention_heads=4, vocab_size=160,
        max_position_embeddings=1024, rms_norm_eps=1e-6)),
    # Llama 3.2: tied embeddings, frequencies rescaled for a window much shorter than the contexts here.
    "llama3": dict(family="llama", seed=13, dtype="bfloat16", keys=4, drop=["head_dim"], sender=False, eos=1, shape=dict(
        hidden_size=48, intermediate_size=64, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=256, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters=dict(rope_type="llama3", rope_theta=5000.0, factor=8.0, low_freq_factor=1.0,
                             high_freq_factor=4.0, original_max_position_embeddings=64))),
    # Sharded files, q and o that are not square.
    "mistral": dict(family="mistral", seed=14, dtype="bfloat16", keys=5, shards=3, sender=False, eos=2, shape=dict(
        hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=222, max_position_embeddings=4096, rms_norm_eps=1e-5, sliding_window=None,
        rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    # Biases on q, k and v; 7 query heads per key head; untied.
    "qwen2": dict(family="qwen2", seed=15, dtype="bfloat16", keys=4, drop=["head_dim", "layer_types"], sender=True, eos=[3],
        shape=dict(hidden_size=56, intermediate_size=48, num_hidden_layers=4, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=168, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    # Norms over each head of q and k, a head_dim of its own, f16 files.
    "qwen3": dict(family="qwen3", seed=16, dtype="float16", keys=5, sender=True, eos=1, shape=dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=6, num_key_value_heads=2,
        head_dim=10, vocab_size=180, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    # YaRN, stretched to four times of much fewer positions than the contexts here have, cos and sin scaled.
    "yarn": dict(family="llama", seed=17, dtype="bfloat16", keys=4, drop=["head_dim"], sender=True, eos=2, shape=dict(
        hidden_size=32, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=60, max_position_embeddings=256, rms_norm_eps=1e-6,
        rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64,
                             beta_fast=8.0, mscale=1.5, mscale_all_dim=0.5))),
    # Biases on every product.
    "biases": dict(family="llama", seed=18, dtype="bfloat16", keys=5, sender=True, eos=1, shape=dict(
        hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=60, max_position_embeddings=512, rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True)),
    # Biases on attention's products beside norms over q and k.
    "qwen3bias": dict(family="qwen3", seed=19, dtype="float32", keys=5, sender=False, eos=1, shape=dict(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=50, max_position_embeddings=512, rms_norm_eps=1e-6, attention_bias=True)),
    # A fine-tune with tokens of its own, and the base it shares all else with under another family's name.
    "grown": dict(family="llama", seed=20, dtype="bfloat16", keys=4, eos=1, sender=dict(family="mistral", vocab_size=52), shape=dict(
        hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1,
        vocab_size=60, max_position_embeddings=512, rms_norm_eps=1e-5)),
}
FULL = [(0, 1), (0, 5), (1, 1), (2, 3), (37, 1), (64, 64), (130, 7)]  # context, suffix
REUSE = [(37, 1), (130, 7)]


def make(spec, seed, dtype):
    cfg = CLASSES[spec["family"]](bos_token_id=0, eos_token_id=spec["eos"], **spec["shape"])
    g = torch.Generator().manual_seed(seed)
    m = AutoModelForCausalLM.from_config(cfg).float()
    with torch.no_grad():  # wider than the default start, in which attention hardly matters; norms and biases get a spread
        for n, p in m.named_parameters():
            r = torch.randn(p.shape, generator=g)
            p.copy_(r / p.shape[1] ** 0.5 * 1.2 if p.dim() == 2 else 1 + 0.2 * r if "norm" in n else 0.5 * r)
    return m.to(dtype)


def keys_of_4(config):
    """A config.json of transformers 5 as transformers 4 wrote it."""
    c = dict(config)
    c["torch_dtype"] = c.pop("dtype")
    rope = dict(c.pop("rope_parameters"))
    c["rope_theta"] = rope.pop("rope_theta")
    if rope["rope_type"] == "yarn": rope["type"] = rope.pop("rope_type")  # as it is written by hand
    c["rope_scaling"] = None if rope.get("rope_type") == "default" else rope
    c["transformers_version"] = "4.46.0"
    return c


def write_json(path, value):
    with open(path, "w") as f: f.write(json.dumps(value, indent=1) + "\n")


def save(model, spec, folder, shards=1):
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        config = json.load(open(f"{tmp}/config.json")); tensors = load_file(f"{tmp}/model.safetensors")
    config["transformers_version"] = "5.23.0"
    old = keys_of_4(config)
    for k in spec.get("drop", []): old.pop(k, None)
    shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
    write_json(f"{folder}/config.json", old if spec["keys"] == 4 else config)
    write_json(f"{folder}/generation_config.json", dict(bos_token_id=0, eos_token_id=spec["eos"]))
    names = sorted(tensors)
    if shards == 1: save_file({n: tensors[n] for n in names}, f"{folder}/model.safetensors", {"format": "pt"})
    else:
        map_ = {}
        for i in range(shards):
            file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = {n: tensors[n] for n in names[i::shards]}
            save_file(part, f"{folder}/{file}", {"format": "pt"}); map_ |= {n: file for n in part}
        write_json(f"{folder}/model.safetensors.index.json", dict(
            metadata=dict(total_size=sum(t.numel() * t.element_size() for t in tensors.values())),
            weight_map=dict(sorted(map_.items()))))
    return config, old


def load(folder): return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


class Recorder:
    """Stands in for a cache in one layer's call: keeps what the layer computed."""
    def __init__(self, kept): self.kept = kept
    def update(self, k, v, layer, *a, **kw): self.kept[layer] = (k, v); return k, v
    def get_seq_length(self, *a): return 0


@torch.no_grad()
def full(R, context, suffix): return R(torch.tensor([context + suffix])).logits[0, -1]


@torch.no_grad()
def reuse(R, S, context, suffix, group):
    """S's keys and values for the context, but layers group[0] to group[1] (both included) computed by R from S's hidden states
    (from R's embeddings where the group starts at layer 0); the suffix goes through every layer of R. An empty group reuses all."""
    c = torch.tensor([context]); n = len(context)
    s = S(c, use_cache=True, output_hidden_states=True)
    kept = {l: (s.past_key_values.layers[l].keys, s.past_key_values.layers[l].values) for l in range(R.config.num_hidden_layers)}
    if group:
        first, last = group
        x = R.model.embed_tokens(c) if first == 0 else s.hidden_states[first]
        positions = torch.arange(n)[None]
        mask = torch.full((n, n), float("-inf")).triu(1)[None, None]
        for l in range(first, last + 1):
            y = R.model.layers[l](x, attention_mask=mask, position_ids=positions, past_key_values=Recorder(kept),
                                  position_embeddings=R.model.rotary_emb(x, positions), use_cache=True)
            x = y[0] if isinstance(y, tuple) else y
    mix = DynamicCache(config=R.config)
    for l in range(R.config.num_hidden_layers): mix.update(*kept[l], l)
    return R(torch.tensor([suffix]), past_key_values=mix, use_cache=True).logits[0, -1]


def rope_cases():
    """Angular frequencies of shapes that people use."""
    llama3 = dict(rope_type="llama3", rope_theta=500000.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    shapes = [(64, llama3 | dict(factor=32.0)), (128, llama3 | dict(factor=8.0)), (128, dict(rope_type="default", rope_theta=1e6)),
              (96, dict(rope_type="linear", rope_theta=10000.0, factor=4.0)),
              (128, dict(rope_type="yarn", rope_theta=1e6, factor=4.0, original_max_position_embeddings=32768)),
              (64, dict(rope_type="yarn", rope_theta=10000.0, factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
                        mscale=1.0, mscale_all_dim=0.707)),
              (64, dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, original_max_position_embeddings=4096, truncate=False)),
              (80, dict(rope_type="yarn", rope_theta=5e5, factor=8.0, original_max_position_embeddings=8192, attention_factor=0.75))]
    for head_dim, rope in shapes:
        cfg = LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, num_hidden_layers=1, intermediate_size=8, vocab_size=8,
                          max_position_embeddings=131072, rope_parameters=dict(rope))
        e = LlamaRotaryEmbedding(cfg)
        yield dict(head_dim=head_dim, rope_parameters=rope, inverse_frequencies=e.inv_freq.tolist(), attention_scaling=e.attention_scaling)


def main(out, wanted):
    here = os.path.join(out, "")
    with open(here + "rope.json", "w") as f: f.write("[\n" + ",\n".join(json.dumps(c) for c in rope_cases()) + "\n]\n")
    for name, spec in MODELS.items():
        if wanted and name not in wanted: continue
        folder = here + name
        layers, vocab = spec["shape"]["num_hidden_layers"], spec["shape"]["vocab_size"]
        dtype = getattr(torch, spec["dtype"])
        shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
        receiver = make(spec, spec["seed"], dtype)
        new, old = save(receiver, spec, f"{folder}/receiver", spec.get("shards", 1))
        write_json(f"{folder}/config-v4.json", old); write_json(f"{folder}/config-v5.json", new)
        R, S = load(f"{folder}/receiver"), None
        assert all(torch.equal(a.float(), b) for a, b in zip(receiver.parameters(), R.parameters()))
        if spec["sender"]:
            own = dict(spec["sender"]) if isinstance(spec["sender"], dict) else {}
            other = spec | dict(family=own.pop("family", spec["family"]), shape=spec["shape"] | own)
            if other["family"] == "mistral": other["shape"] |= dict(sliding_window=None, head_dim=spec["shape"]["hidden_size"] // spec["shape"]["num_attention_heads"])
            vocab = min(vocab, other["shape"]["vocab_size"])
            save(make(other, spec["seed"] + 100, dtype), other, f"{folder}/sender")
            S = load(f"{folder}/sender")

        g = torch.Generator().manual_seed(spec["seed"] + 200)
        tokens = torch.randint(0, vocab, (max(n + m for n, m in FULL),), generator=g).tolist()
        cases, tensors = [], {"rope.inverse_frequencies": R.model.rotary_emb.inv_freq.float().clone()}
        def add(kind, n, m, recompute, logits):
            tensor = f"{kind}.{n}+{m}" + (f".{recompute}" if kind == "reuse" else "")
            cases.append(dict(mode=kind, context=n, suffix=m, recompute=recompute, tensor=tensor)); tensors[tensor] = logits.contiguous()
        for n, m in FULL: add("full-prefill", n, m, f"0-{layers - 1}", full(R, tokens[:n], tokens[n:n + m]))
        if S is not None:
            last, mid = layers - 1, layers // 2
            groups = [None, (0, last), (0, 0), (0, 1), (1, last), (last - 1, last), (last, last), (mid, mid), (1, mid)]
            for n, m in REUSE:
                context, suffix = tokens[:n], tokens[n:n + m]
                for group in groups:
                    logits = reuse(R, S, context, suffix, group)
                    same = reuse(R, R, context, suffix, group)  # the law that S = R gives the full prefill
                    assert (same - full(R, context, suffix)).abs().max() < 2e-5, (name, n, m, group)
                    add("reuse", n, m, "none" if group is None else f"{group[0]}-{group[1]}", logits)
                whole, none = tensors[f"reuse.{n}+{m}.0-{last}"], tensors[f"reuse.{n}+{m}.none"]
                assert (whole - full(R, context, suffix)).abs().max() < 2e-5 and (none - whole).abs().max() > 0.1
        save_file(dict(sorted(tensors.items())), f"{folder}/expected.safetensors")
        with open(f"{folder}/cases.json", "w") as f:
            f.write('{\n "tokens": ' + json.dumps(tokens) + ',\n "cases": [\n  ' + ",\n  ".join(json.dumps(c) for c in cases) + "\n ]\n}\n")
        for d, _, fs in os.walk(folder):
            for f in fs: os.chmod(os.path.join(d, f), 0o644)
        size = sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(folder) for f in fs)
        print(f"{name}: {len(cases)} cases, {size // 1024} KiB")


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__)), sys.argv[2:])
