#!/usr/bin/env python3
"""Asks a model of the pair the held-out questions through transformers (greedy decoding, the context prefilled in full) and prints its
exact match by task. `check.py receiver`, `sender`, `mild`, `base`; --items N takes only the first N of each task."""
import argparse
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))


@torch.no_grad()
def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", choices=["base", "sender", "mild", "receiver"])
    p.add_argument("--items", type=int)
    p.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    args = p.parse_args()
    folder = os.path.join(HERE, args.model)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, args.dtype)).eval()
    tok = AutoTokenizer.from_pretrained(folder)
    with open(os.path.join(HERE, "data", "prompts.json")) as f: prompts = json.load(f)["tasks"]
    for task, how in prompts.items():
        with open(os.path.join(HERE, "data", task + ".jsonl")) as f: items = [json.loads(line) for line in f][:args.items]
        before, after = how["prompt"].split("{context}")
        right = 0
        for item in items:
            ids = tok(before + item["context"]).input_ids + tok(after.replace("{input}", item["input"]), add_special_tokens=False).input_ids
            out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=how["max_new_tokens"],
                                 do_sample=False, pad_token_id=tok.eos_token_id)
            right += tok.decode(out[0, len(ids):], skip_special_tokens=True).strip() in [a.strip() for a in item["answers"]]
        print(f"{args.model}, {task}: exact match {right / len(items):.4f} ({right} of {len(items)})", flush=True)


if __name__ == "__main__":
    main()
