"""A Llama model for training on a CPU: layers compiled, attention written out, logits only where they are asked for."""
import json
import math
import os
import shutil

import torch
import torch.nn as nn
import torch.nn.functional as F

MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def rms_norm(x, weight, eps):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def linear(x, w, a, b, scale):
    y = F.linear(x, w.to(x.dtype))
    return y if a is None else y + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype)) * scale


def layer(x, weights, norms, lora_a, lora_b, scale, cos, sin, mask, heads, kv_heads, eps):
    """x [T,D]; mask f32 [T,T], 0 or -inf. A function of its weights, so that one compilation serves all layers."""
    T, D = x.shape
    A = lambda i: (weights[i], lora_a[i] if lora_a else None, lora_b[i] if lora_b else None, scale)
    g = heads // kv_heads
    h = rms_norm(x, norms[0], eps)
    q = rotate(linear(h, *A(0)).view(T, heads, -1).transpose(0, 1), cos, sin)
    k = rotate(linear(h, *A(1)).view(T, kv_heads, -1).transpose(0, 1), cos, sin)
    v = linear(h, *A(2)).view(T, kv_heads, -1).transpose(0, 1)
    d = q.shape[-1]
    s = torch.matmul(q.reshape(kv_heads, g * T, d), k.transpose(-1, -2)).view(kv_heads, g, T, T)
    p = (s.float() * d ** -0.5 + mask).softmax(-1).to(x.dtype)
    y = torch.matmul(p.view(kv_heads, g * T, T), v).view(heads, T, d)
    x = x + linear(y.transpose(0, 1).reshape(T, heads * d), *A(3))
    h = rms_norm(x, norms[1], eps)
    return x + linear(F.silu(linear(h, *A(4))) * linear(h, *A(5)), *A(6))


class Model(nn.Module):
    """rank > 0: bf16 weights with f32 LoRA factors (A as PEFT begins it, B zero); rank 0: f32 masters of all matrices. `trained`: what is trained."""

    def __init__(self, folder, rank, alpha, compiled=True):
        super().__init__()
        from safetensors.torch import load_file
        with open(os.path.join(folder, "config.json")) as f:
            c = json.load(f)
        if c["model_type"] != "llama" or c.get("attention_bias") or c.get("mlp_bias") or not c.get("tie_word_embeddings"):
            raise SystemExit(f"train.py: {folder}: expected a Llama model without biases and with tied embeddings, found {c['model_type']}")
        w = load_file(os.path.join(folder, "model.safetensors"))
        self.heads, self.kv_heads, self.eps, self.layers = c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"], c["num_hidden_layers"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.theta = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
        bf16 = lambda name: w[name].to(torch.bfloat16)
        self.embed, self.norm = bf16("model.embed_tokens.weight"), bf16("model.norm.weight")
        self.norms = [[bf16(f"model.layers.{l}.{m}.weight") for m in ("input_layernorm", "post_attention_layernorm")] for l in range(self.layers)]
        self.weights = [[bf16(f"model.layers.{l}.{m}.weight") for m in MATRICES] for l in range(self.layers)]
        self.scale, self.a, self.b = (alpha / rank if rank else 0.0), None, None
        if rank:
            self.a = [[nn.Parameter((torch.rand(rank, m.shape[1]) * 2 - 1) / math.sqrt(m.shape[1])) for m in ms] for ms in self.weights]
            self.b = [[nn.Parameter(torch.zeros(m.shape[0], rank)) for m in ms] for ms in self.weights]
            self.trained = [p for ms in self.a + self.b for p in ms]
        else:
            self.weights = [[nn.Parameter(m.float()) for m in ms] for ms in self.weights]
            self.trained = [p for ms in self.weights for p in ms]
        self.run_layer = torch.compile(layer) if compiled else layer

    def forward(self, ids, positions, mask):
        """Hidden states behind the last norm [T,D]."""
        with torch.no_grad():
            angles = positions.float()[:, None] / self.theta ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim)
            angles = torch.cat((angles, angles), -1)
            cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        x = F.embedding(ids, self.embed)
        for l in range(self.layers):
            x = self.run_layer(x, self.weights[l], self.norms[l], self.a[l] if self.a else None, self.b[l] if self.b else None, self.scale, cos, sin,
                               mask, self.heads, self.kv_heads, self.eps)
        return rms_norm(x, self.norm, self.eps)

    def logits(self, h):
        return F.linear(h, self.embed).float()


def save(model, base, folder, settings):
    """A PEFT adapter, or the base's folder with other matrices; bf16."""
    from safetensors.torch import load_file, save_file
    os.makedirs(folder)
    bf16 = lambda t: t.detach().to(torch.bfloat16).contiguous()
    if model.a:
        out = {}
        for l in range(model.layers):
            for i, m in enumerate(MATRICES):
                out[f"base_model.model.model.layers.{l}.{m}.lora_A.weight"] = bf16(model.a[l][i])
                out[f"base_model.model.model.layers.{l}.{m}.lora_B.weight"] = bf16(model.b[l][i])
        save_file(out, os.path.join(folder, "adapter_model.safetensors"), metadata={"format": "pt"})
        with open(os.path.join(folder, "adapter_config.json"), "w") as f:
            f.write(json.dumps({
                "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "bias": "none", "fan_in_fan_out": False, "inference_mode": True,
                "lora_alpha": settings["alpha"], "lora_dropout": 0.0, "peft_type": "LORA", "r": settings["rank"],
                "target_modules": [m.split(".")[1] for m in MATRICES], "task_type": "CAUSAL_LM"}, indent=1) + "\n")
        return
    out = load_file(os.path.join(base, "model.safetensors"))
    for l in range(model.layers):
        for i, m in enumerate(MATRICES):
            out[f"model.layers.{l}.{m}.weight"] = bf16(model.weights[l][i])
    for f in os.listdir(base):
        if f != "model.safetensors" and not f.endswith(".index.json") and os.path.isfile(os.path.join(base, f)):
            shutil.copyfile(os.path.join(base, f), os.path.join(folder, f))
    save_file(out, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
