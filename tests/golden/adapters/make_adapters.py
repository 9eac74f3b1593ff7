"""Makes the LoRA adapters of this folder and what PEFT makes of them in float32: merged weights and logits.

    python make_adapters.py [OUT]        OUT: this folder

Needs torch, transformers 5, peft and safetensors (made with torch 2.15.0, transformers 5.23.0, peft 0.21.2). README.md says
how the folder is laid out.
"""
import hashlib, json, os, shutil, sys, tempfile, warnings
os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.simplefilter("ignore")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as hf_logging
hf_logging.set_verbosity_error(); hf_logging.disable_progress_bar()
torch.set_num_threads(1)

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = os.path.join(HERE, "..", "models")

# base: a folder of ../models; vocab: what its embeddings are resized to; dtype: of the adapter's file; names: "default" writes
# the adapter's name into those of the tensors, as a state dict has them; the rest goes to LoraConfig.
ADAPTERS = {
    "patterns": dict(base="llama/receiver", r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "v_proj", "down_proj"],
                     layers_to_transform=[1, 3], layers_pattern="layers",
                     rank_pattern={"layers.1.self_attn.q_proj": 2, "q_proj": 3, r"model\.layers\.\d+\.mlp\.\w+": 1},
                     alpha_pattern={"self_attn.q_proj": 5, "q_proj": 7}),
    "regex": dict(base="llama/receiver", r=2, lora_alpha=3, dtype="bfloat16", target_modules=r".*\.layers\.(0|4)\.self_attn\.[qo]_proj"),
    "all-linear": dict(base="mistral/receiver", r=1, lora_alpha=1, dtype="float16", target_modules="all-linear", exclude_modules=["up_proj", "o_proj"]),
    "defaults": dict(base="qwen3/receiver", r=2, lora_alpha=4, target_modules=None, names="default"),
    "dora": dict(base="llama3/receiver", r=2, lora_alpha=4, use_dora=True, target_modules=["k_proj", "o_proj"]),
    "embeddings": dict(base="llama2/receiver", r=2, lora_alpha=2, target_modules=["embed_tokens", "lm_head", "k_proj"]),
    "tied-head": dict(base="llama3/receiver", r=2, lora_alpha=4, target_modules=["k_proj", "lm_head"]),
    "tied-embeddings": dict(base="llama3/receiver", r=2, lora_alpha=4, target_modules=["k_proj", "embed_tokens"]),
    "resized": dict(base="llama2/receiver", r=2, lora_alpha=2, vocab=164, dtype="bfloat16", target_modules=["v_proj"]),
    "resized-tied": dict(base="llama3/receiver", r=2, lora_alpha=2, vocab=258, dtype="bfloat16", target_modules=["k_proj"]),
    "saved": dict(base="llama2/receiver", r=2, lora_alpha=2, dtype="bfloat16", target_modules=["k_proj", "lm_head"], modules_to_save=["norm", "lm_head"]),
    "bias": dict(base="qwen2/receiver", r=2, lora_alpha=2, bias="all", target_modules=["k_proj"]),
    "lora-bias": dict(base="qwen2/receiver", r=2, lora_alpha=6, lora_bias=True, target_modules=["v_proj"]),
}


def load(spec, untie=False):
    m = AutoModelForCausalLM.from_pretrained(os.path.join(MODELS, spec["base"]), dtype=torch.float32, attn_implementation="eager").eval()
    if "vocab" in spec: m.resize_token_embeddings(spec["vocab"], mean_resizing=False)
    if untie and m.config.tie_word_embeddings:
        m.lm_head.weight = torch.nn.Parameter(m.lm_head.weight.detach().clone()); m.config.tie_word_embeddings = False
    return m


def digest(t): return hashlib.sha256(t.detach().float().contiguous().numpy().tobytes()).hexdigest()


def make(name, spec, seed, out):
    options = {k: v for k, v in spec.items() if k not in ("base", "vocab", "dtype", "names")}
    folder = os.path.join(out, name)
    shutil.rmtree(folder, ignore_errors=True); os.makedirs(folder)
    torch.manual_seed(seed)
    model = get_peft_model(load(spec), LoraConfig(task_type="CAUSAL_LM", **options))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "magnitude" in n: p.mul_(1 + 0.1 * torch.randn(p.shape, generator=g))
            elif "lora_" in n or p.requires_grad or ("vocab" in spec and "embed" in n): p.add_(0.1 * torch.randn(p.shape, generator=g))
    # Embeddings that only stand below an adapter are the base's: not saved. Resized ones are.
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp, save_embedding_layers="vocab" in spec)
        tensors = load_file(f"{tmp}/adapter_model.safetensors"); config = json.load(open(f"{tmp}/adapter_config.json"))
    if name == "resized-tied": del tensors["base_model.model.lm_head.weight"]  # the same again
    dtype = getattr(torch, spec.get("dtype", "float32"))
    tensors = {n: t.to(dtype) for n, t in sorted(tensors.items())}
    config["base_model_name_or_path"] = "../../models/" + spec["base"]
    if spec["target_modules"] is None: config["target_modules"] = None
    for key in ("target_modules", "exclude_modules"):
        if isinstance(config[key], list): config[key].sort()
    with open(f"{folder}/adapter_config.json", "w") as f: f.write(json.dumps(config, indent=1) + "\n")
    save_file(tensors, f"{folder}/adapter_model.safetensors", {"format": "pt"})

    # Read back as anyone would.
    ids = torch.tensor([TOKENS(spec["base"])])
    with torch.no_grad(): logits = PeftModel.from_pretrained(load(spec), folder).eval()(ids).logits[0, -1]
    # Where embeddings are tied and only one of them has LoRA, PEFT's merge changes both, unlike its forward pass; PEFT's own
    # advice is to untie them first.
    merged = PeftModel.from_pretrained(load(spec, untie=name.startswith("tied-")), folder).merge_and_unload()
    with torch.no_grad(): again = merged(ids).logits[0, -1]
    assert (again - logits).abs().max() < 1e-4, (name, (again - logits).abs().max())
    base = load({"base": spec["base"]})
    changed = {n: t for n, t in merged.state_dict().items() if not (n in base.state_dict() and torch.equal(base.state_dict()[n], t))}
    tied = merged.config.tie_word_embeddings
    if tied: changed.pop("lm_head.weight", None)
    with torch.no_grad(): assert (base(ids).logits[0, -1][:9] - logits[:9]).abs().max() > 1e-2, name
    if spec.get("names") == "default":
        renamed = {n.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): t for n, t in tensors.items()}
        save_file(dict(sorted(renamed.items())), f"{folder}/adapter_model.safetensors", {"format": "pt"})
    return dict(name=name, base=spec["base"], exact=not spec.get("use_dora", False), vocab=merged.config.vocab_size, tied=tied,
                sha256={n: digest(t) for n, t in sorted(changed.items())}), logits, changed


def TOKENS(base):
    with open(os.path.join(MODELS, base, "..", "cases.json")) as f: return json.load(f)["tokens"][:37]


def main(out):
    cases, tensors = [], {}
    for i, (name, spec) in enumerate(ADAPTERS.items()):
        case, logits, changed = make(name, spec, 300 + i, out)
        cases.append(case); tensors[f"{name}.logits"] = logits.contiguous()
        if not case["exact"]:
            first = next(iter(sorted(changed)))
            tensors[f"{name}.{first}"] = changed[first].contiguous()
    save_file(dict(sorted(tensors.items())), f"{out}/expected.safetensors")
    with open(f"{out}/cases.json", "w") as f: f.write("[\n " + ",\n ".join(json.dumps(c) for c in cases) + "\n]\n")
    for d, _, fs in os.walk(out):
        for f in fs: os.chmod(os.path.join(d, f), 0o644)


if __name__ == "__main__": main(sys.argv[1] if len(sys.argv) > 1 else HERE)
