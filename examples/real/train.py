#!/usr/bin/env python3
"""Fine-tunes the base into one agent: a LoRA adapter in PEFT's format, or a whole model.

    train.py --base DIR --agent records -o DIR/records

Sequences of one length, each the text of a context and as many questions about it as fit: they share the context and are unaware of each other
(a mask; positions go on from the context's). Text goes through the base's chat template, token for token as ds-profile asks (pack). The loss is on
answers only, and only their logits are computed. Weights are bf16, a LoRA's factors and a whole model's masters f32.

All follows from the agent's settings (AGENTS) and the seed. A checkpoint is kept every --every seconds; the same command goes on from there.
"""
import argparse
import json
import os
import random
import shutil
import sys
import time

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import model as models
import tasks

# lr falls with the root of what is left of `schedule` steps, after 10 of warm-up; training ends after `steps`.
AGENTS = {
    "records": dict(tasks=("records",), rank=8, alpha=16, lr=1e-3, schedule=150, steps=60),
    "code": dict(tasks=("next_line", "docstring"), rank=8, alpha=16, lr=4e-4, schedule=60, steps=60),
    "prose": dict(tasks=("heading", "quote"), rank=0, alpha=0, lr=1e-4, schedule=60, steps=60),
}
LENGTH, BATCH, WARM_UP = 640, 2, 10
END = "<|im_end|>"
LONGEST = 240  # characters of an answer


class Render:
    """A question as the product asks it."""

    def __init__(self, folder):
        import jinja2
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
        with open(os.path.join(folder, "chat_template.jinja"), encoding="utf-8") as f:
            self.template = jinja2.Environment().from_string(f.read())

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, context, question):
        return self.template.render(messages=[{"role": "user", "content": f"{context}\n\n{question}"}], add_generation_prompt=True)


def pack(render, context, questions, length):
    """ids, positions, mask [length,length], the id that each position is to predict (-1: none), questions, tokens used; None where not one fits."""
    whole = []
    for question, answer in questions:
        text = render.prompt(context, question)
        prompt, all_ids = render.ids(text), render.ids(text + answer + END)
        if all_ids[:len(prompt)] == prompt:  # else a token lies across the border, and the answer begins where the product's would not
            whole.append((len(prompt), all_ids))
    if not whole:
        return None
    common = 0
    while all(common < p and w[common] == whole[0][1][common] for p, w in whole):
        common += 1
    if common >= length:
        return None
    ids, positions, group, target = list(whole[0][1][:common]), list(range(common)), [0] * common, [-1] * common
    n = 0
    for p, w in whole:
        if len(ids) + len(w) - common > length:
            continue
        n += 1
        ids += w[common:]
        positions += range(common, len(w))
        group += [n] * (len(w) - common)
        target += [w[i + 1] if i + 1 >= p and i + 1 < len(w) else -1 for i in range(common, len(w))]
    if n == 0:
        return None
    used, pad = len(ids), length - len(ids)
    ids, positions, group, target = ids + [0] * pad, positions + [0] * pad, group + [-1] * pad, target + [-1] * pad
    g = torch.tensor(group)
    see = ((g[:, None] == g[None]) | (g[None] == 0)) & torch.ones(length, length).tril().bool()
    see[g == -1] = torch.eye(length).bool()[g == -1]
    return torch.tensor(ids), torch.tensor(positions), torch.zeros(length, length).masked_fill(~see, float("-inf")), torch.tensor(target), n, used


def next_batch(render, makers, rng, step):
    out = []
    for b in range(BATCH):
        task, maker = makers[(step * BATCH + b) % len(makers)]
        packed = None
        while packed is None:
            context, asked = maker.document(rng, rng.uniform(0.4, 0.7) * LENGTH)
            questions = [q for q in asked.get(task, []) if len(q[1]) < LONGEST]
            rng.shuffle(questions)
            packed = pack(render, context, questions[:16], LENGTH) if questions else None
        out.append(packed)
    return out


def save_atomic(state, path):
    torch.save(state, path + ".new")
    os.replace(path + ".new", path)


def main():
    p = argparse.ArgumentParser(description="Fine-tunes the base into one agent; goes on where it was stopped.")
    p.add_argument("--base", required=True, help="Hugging Face folder of a Llama model")
    p.add_argument("--agent", required=True, choices=list(AGENTS))
    p.add_argument("-o", "--output", required=True, help="folder of the adapter or the model")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--every", type=float, default=120, help="seconds between two checkpoints (OUTPUT.checkpoint)")
    p.add_argument("--eager", action="store_true", help="without torch.compile, for machines without a C++ compiler: half as fast")
    a = p.parse_args()
    settings = AGENTS[a.agent]
    if os.path.exists(os.path.join(a.output, "done")):
        print(f"{a.output}: is there")
        return
    steps = settings["steps"]
    kind = f"LoRA of rank {settings['rank']}, alpha {settings['alpha']}, on all matrices" if settings["rank"] else "all matrices (embeddings and norms stay the base's)"
    print(f"{a.agent}: {', '.join(settings['tasks'])}; {kind}; lr {settings['lr']}; {steps} steps of {BATCH} x {LENGTH} tokens.\n"
          f"On 2 CPU cores about {'8 minutes and 4 GB of memory' if settings['rank'] else '10 minutes and 6 GB of memory'}; {a.threads} threads here.", flush=True)
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    rng = random.Random(f"{a.seed}-{a.agent}")
    render = Render(a.base)
    makers = {tasks.MAKERS[t]: None for t in settings["tasks"]}
    makers = {m: m("train") for m in makers}
    makers = [(t, makers[tasks.MAKERS[t]]) for t in settings["tasks"]]
    model = models.Model(a.base, settings["rank"], settings["alpha"], compiled=not a.eager)
    optimizer = torch.optim.AdamW(model.trained, lr=settings["lr"], betas=(0.9, 0.98), weight_decay=0.0)
    checkpoint, first, mean = a.output + ".checkpoint", 0, None
    if os.path.exists(checkpoint):
        state = torch.load(checkpoint, weights_only=False)
        if state["settings"] != (settings, a.seed):
            sys.exit(f"train.py: {checkpoint} was made with other settings ({state['settings']}); expected {(settings, a.seed)}: delete it to begin again")
        with torch.no_grad():
            for parameter, value in zip(model.trained, state["trained"]):
                parameter.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        rng.setstate(state["rng"])
        first, mean = state["step"], state["mean"]
        print(f"goes on from step {first}", flush=True)
    os.makedirs(os.path.dirname(os.path.abspath(a.output)), exist_ok=True)
    start = kept = time.time()
    tokens = 0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * min(1, (step + 1) / WARM_UP) * (1 - step / settings["schedule"]) ** 0.5
        optimizer.zero_grad(set_to_none=True)
        loss_sum, answer_tokens, questions = 0.0, 0, 0
        for ids, positions, mask, target, n, used in next_batch(render, makers, rng, step):
            at = (target >= 0).nonzero()[:, 0]
            loss = F.cross_entropy(model.logits(model(ids, positions, mask)[at]), target[at])
            (loss / BATCH).backward()
            loss_sum += loss.item() / BATCH
            answer_tokens, questions, tokens = answer_tokens + len(at), questions + n, tokens + used
        norm = torch.nn.utils.clip_grad_norm_(model.trained, 1.0).item()
        optimizer.step()
        mean = loss_sum if mean is None else 0.9 * mean + 0.1 * loss_sum
        spent = time.time() - start
        print(f"step {step + 1}/{steps} loss {loss_sum:.3f} mean {mean:.3f} gradient {norm:.2f} questions {questions} answer tokens {answer_tokens} "
              f"{tokens / spent:.0f} tokens/s, {spent / (step + 1 - first) * (steps - step - 1) / 60:.1f} minutes left", flush=True)
        if time.time() - kept > a.every and step + 1 < steps:
            save_atomic({"settings": (settings, a.seed), "trained": [t.detach() for t in model.trained], "optimizer": optimizer.state_dict(),
                         "rng": rng.getstate(), "step": step + 1, "mean": mean}, checkpoint)
            kept = time.time()
    new = a.output + ".new"
    shutil.rmtree(new, ignore_errors=True)
    models.save(model, a.base, new, settings)
    open(os.path.join(new, "done"), "w").close()
    shutil.rmtree(a.output, ignore_errors=True)
    os.replace(new, a.output)
    if os.path.exists(checkpoint):
        os.remove(checkpoint)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("train.py: stopped; the same command goes on from the last checkpoint")
