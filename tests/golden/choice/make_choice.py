#!/usr/bin/env python3
"""Writes choice.json: what transformers' logits processors make of logits (top_k, min_p, top_p, temperature, repetition, bias, least length), in vLLM's order,
and the formula of OpenAI's documentation for frequency and presence; and which tokens follow, the most probable first. The expectation of
runtime/core/logit_rules.h and runtime/backends/choice.h. Made with transformers 5.23.0, torch 2.15.0. usage: make_choice.py > choice.json"""
import json, random
import torch
from transformers import (MinNewTokensLengthLogitsProcessor, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, SequenceBiasLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper,
                          TopPLogitsWarper)

rng = random.Random(23)
VOCAB = 48


def case(number):
    pick = lambda *values: rng.choice(values)
    logits = [round(rng.gauss(0, 2.5), 3) for _ in range(VOCAB)]
    equal = number % 4 == 3
    if equal: logits = [round(x) for x in logits]
    c = {"logits": logits, "prompt": [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 12))], "answer": [rng.randrange(VOCAB // 3) for _ in range(rng.randrange(20))],
         "bias": sorted({rng.randrange(VOCAB): pick(-100, -2.5, 1.25, 6, 100) for _ in range(pick(0, 0, 1, 3))}.items()), "repetition": pick(1, 1, 1.3, 0.7), "frequency": pick(0, 0, 0.4, -0.5),
         "presence": pick(0, 0, 1.5, -1), "min_tokens": pick(0, 0, 25), "stops": rng.sample(range(VOCAB), 3), "temperature": pick(0.4, 1, 1.7), "top_k": pick(0, 0, 1, 5, 30, 100),
         "min_p": pick(0, 0, 0.02, 0.3, 1), "top_p": 1 if equal else pick(1, 0.9, 0.5, 0.1)}  # which of equal ones top_p keeps is nobody's word
    ids = torch.tensor([c["prompt"] + c["answer"]])
    scores = torch.tensor([logits], dtype=torch.float32)
    if c["min_tokens"]: scores = MinNewTokensLengthLogitsProcessor(len(c["prompt"]), c["min_tokens"], c["stops"])(ids, scores)
    if c["bias"]: scores = SequenceBiasLogitsProcessor([[[token], float(by)] for token, by in c["bias"]])(ids, scores)
    if c["repetition"] != 1: scores = RepetitionPenaltyLogitsProcessor(c["repetition"])(ids, scores)
    count = torch.bincount(torch.tensor(c["answer"], dtype=torch.long), minlength=VOCAB)
    scores = scores - count * c["frequency"] - (count > 0) * c["presence"]
    c["ruled"] = [None if x == -float("inf") else x for x in scores[0].tolist()]
    scores = TemperatureLogitsWarper(float(c["temperature"]))(ids, scores)
    if c["min_p"]: scores = MinPLogitsWarper(float(c["min_p"]))(ids, scores)
    if c["top_k"]: scores = TopKLogitsWarper(c["top_k"])(ids, scores)
    if c["top_p"] < 1: scores = TopPLogitsWarper(c["top_p"])(ids, scores)
    p = torch.softmax(scores[0].double(), -1).tolist()
    kept = sorted((t for t in range(VOCAB) if p[t] > 0), key=lambda t: (-p[t], t))
    c["kept"] = [[t, p[t]] for t in kept]
    return c


print("[" + ",\n ".join(json.dumps(case(i)) for i in range(160)) + "]")
