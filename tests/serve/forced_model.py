"""A model whose answer is known: one layer that adds nothing, and a head that follows each token of a chain by the next."""
import json, struct

from server import pair


def make(folder, chain):
    """The trained pair's tokenizer with a token for each text of `chain`; whatever ends with the first one goes on with the others, then with the end."""
    folder.mkdir()
    tokenizer = json.loads((pair / "receiver" / "tokenizer.json").read_text())
    config = json.loads((pair / "receiver" / "config.json").read_text())
    known, width = config["vocab_size"], 64
    assert len(set(chain)) == len(chain) <= width
    tokenizer["added_tokens"] += [{"id": known + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False} for i, text in enumerate(chain)]
    vocab, inner = known + len(chain), 64
    config |= {"vocab_size": vocab, "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "torch_dtype": "float32"}
    one = lambda at: struct.pack(f"<{width}f", *(float(at == i) for i in range(width)))
    nothing = lambda *shape: (shape, bytes(4 * shape[0] * (shape[1] if len(shape) > 1 else 1)))
    ones = ((width,), struct.pack("<f", 1.0) * width)
    follows = {known + i + 1: i for i in range(len(chain) - 1)} | {config["eos_token_id"]: len(chain) - 1}
    layer = "model.layers.0."
    tensors = {"model.embed_tokens.weight": ((vocab, width), b"".join(one(t - known) for t in range(vocab))), "lm_head.weight": ((vocab, width), b"".join(one(follows.get(t)) for t in range(vocab))),
               "model.norm.weight": ones, layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones,
               layer + "self_attn.q_proj.weight": nothing(64, width), layer + "self_attn.k_proj.weight": nothing(32, width), layer + "self_attn.v_proj.weight": nothing(32, width), layer + "self_attn.o_proj.weight": nothing(width, 64),
               layer + "mlp.gate_proj.weight": nothing(inner, width), layer + "mlp.up_proj.weight": nothing(inner, width), layer + "mlp.down_proj.weight": nothing(width, inner)}
    header, at = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, data in tensors.values()))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name in ("generation_config.json", "tokenizer_config.json"): (folder / name).write_text((pair / "receiver" / name).read_text())
    (folder / "chat_template.jinja").write_text("<s>{% for m in messages %}{{ m.content }}{% endfor %}{{ tools | tojson if tools }}" + chain[0])


# An answer with a word, a call, and another call.
CALLS = ["<go>", "I look. ", "<tool_call>", "\n{\"name\": \"weather\", ", "\"arguments\": {\"city\": ", "\"Zurich\"}", "}\n</tool_", "call>", "\n<tool_call>{\"name\": \"ti", "me\"}</tool_call>"]
TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("weather", "time")]
