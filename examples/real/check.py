#!/usr/bin/env python3
"""Lets models answer test questions through transformers, greedily, and writes what they say where `ds-profile score` reads it.

    check.py --base DIR -o DIR --data test/records.jsonl [--agent agents/records] [--items 60]
"""
import argparse
import json
import os
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
p.add_argument("--base", required=True)
p.add_argument("--agent", help="a PEFT adapter or a model's folder; default: the base")
p.add_argument("--data", required=True, nargs="+")
p.add_argument("--prompts", required=True)
p.add_argument("-o", "--output", required=True, help="folder: NAME/TASK.jsonl with `pred`, and TASK.data.jsonl beside it")
p.add_argument("--items", type=int, default=60, help="of each file: the first question of so many contexts")
a = p.parse_args()

tokenizer = AutoTokenizer.from_pretrained(a.base)
adapter = a.agent and os.path.exists(os.path.join(a.agent, "adapter_config.json"))
model = AutoModelForCausalLM.from_pretrained(a.base if adapter or not a.agent else a.agent, dtype=torch.bfloat16)
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, a.agent).merge_and_unload()
prompts = json.load(open(a.prompts))["tasks"]
folder = os.path.join(a.output, os.path.basename(os.path.normpath(a.agent or "base")))
os.makedirs(folder, exist_ok=True)
for path in a.data:
    rows, seen = [], set()
    for row in map(json.loads, open(path, encoding="utf-8")):
        if row["context"] not in seen and len(rows) < a.items:
            seen.add(row["context"])
            rows.append(row)
    start, said = time.time(), []
    for row in rows:
        task = prompts[row["dataset"]]
        text = task["prompt"].format(context=row["context"], input=row["input"])
        ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            out = model.generate(**ids, do_sample=False, max_new_tokens=task["max_new_tokens"], pad_token_id=2)
        said.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
    name = os.path.join(folder, rows[0]["dataset"])
    with open(name + ".jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"pred": s, "answers": r["answers"], "all_classes": None, "length": r["length"]}, ensure_ascii=False) + "\n" for s, r in zip(said, rows))
    with open(name + ".data.jsonl", "w", encoding="utf-8") as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    print(f"{name}: {len(rows)} answers, {time.time() - start:.0f} s", flush=True)
    for r, s in list(zip(rows, said))[:5]:
        print("   ", repr(r["input"][-100:]), "|", repr(r["answers"][0]), "|", repr(s), flush=True)
