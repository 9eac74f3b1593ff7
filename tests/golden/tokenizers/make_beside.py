#!/usr/bin/env python3
"""Makes beside.json: what transformers (5.23, PreTrainedTokenizerFast.from_pretrained, which is what AutoTokenizer gives for a folder that names no
other class) reads from the files beside a tokenizer.json: tokenizer_config.json, added_tokens.json, special_tokens_map.json.

    make_beside.py              writes beside.json beside this script

beside.json    [{"name": s, "base": folder here whose tokenizer.json stands in the folder, "files": {name: json}, "vocab_size": n,
                 "added": {content: [id, special]},      the added tokens
                 "cases": [{"text": s, "ids": [..], "skip": s}, ..]}, ..]      ids with add_special_tokens, their decode without special tokens

Classes of transformers with a tokenizer of their own (LlamaTokenizer and others) build it anew from vocabulary and merges in version 5, and drop
what tokenizer.json alone says of added tokens; version 4's LlamaTokenizerFast read tokenizer.json as PreTrainedTokenizerFast does.
"""
import json
import os
import shutil
import tempfile

from transformers import PreTrainedTokenizerFast

HERE = os.path.dirname(os.path.abspath(__file__))
TEXTS = ["<|im_start|>user\nHello <|im_end|>", "a <s> b</s> c", "  <pad>  x", "x<LEFT>  y", "the swords <tool> </tool>", "a  <|im_start|>  b <RIGHT>  c", "word naïve nai\u0308ve foo bar", "é<mask>é", "<extra> <image>"]


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} | flags


def cases():
    llama = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    decoder = {"0": token("<unk>"), "1": token("<s>"), "2": token("</s>")}
    yield "decoder", "llama2", {"tokenizer_config.json": llama | {"added_tokens_decoder": decoder | {"768": token("<|im_start|>"), "769": token("<|im_end|>")}}}
    yield "decoder-out-of-order", "llama2", {"tokenizer_config.json": llama | {"added_tokens_decoder": decoder | {"769": token("<|im_end|>"), "768": token("<|im_start|>"), "1000": token("<tool>", special=False, rstrip=True)}}}
    yield "decoder-flags", "llama2", {"tokenizer_config.json": llama | {"added_tokens_decoder": decoder | {"2": token("</s>", special=False, rstrip=True), "760": token("<LEFT>", rstrip=True, special=False), "763": token("word", single_word=False, special=False), "768": {"content": "<|im_start|>", "lstrip": True}}}}
    yield "decoder-wins-over-map", "llama2", {"tokenizer_config.json": llama | {"added_tokens_decoder": decoder | {"768": token("<|im_start|>")}}, "added_tokens.json": {"<|im_end|>": 768}, "special_tokens_map.json": {"pad_token": token("<pad>", lstrip=True)}}
    yield "added-tokens", "llama2", {"added_tokens.json": {"<|im_end|>": 769, "<|im_start|>": 768, "<tool>": 770}}
    yield "added-tokens-special", "llama2", {"added_tokens.json": {"<|im_end|>": 769, "<|im_start|>": 768, "<pad>": 770}, "special_tokens_map.json": {"eos_token": "<|im_end|>", "pad_token": token("<pad>", lstrip=True, rstrip=True), "bos_token": token("<s>", rstrip=True)}}
    yield "added-tokens-other-flags", "llama2", {"added_tokens.json": {"<LEFT>": 5, "</s>": 2, "word": 763}}
    yield "named-only", "llama2", {"tokenizer_config.json": llama | {"pad_token": "<pad>", "mask_token": "<mask>", "sep_token": None}}
    yield "named-of-vocabulary", "llama2", {"tokenizer_config.json": llama | {"pad_token": "▁the"}}
    yield "named-with-flags", "llama2", {"tokenizer_config.json": llama | {"pad_token": {"__type": "AddedToken", "content": "<pad>", "lstrip": True, "normalized": True, "rstrip": True, "single_word": False}, "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False}}}
    yield "additional", "llama2", {"tokenizer_config.json": llama | {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<LEFT>"]}}
    yield "extra-list", "llama2", {"tokenizer_config.json": llama | {"extra_special_tokens": ["<extra>", "word"]}}
    yield "extra-named", "llama2", {"tokenizer_config.json": llama | {"extra_special_tokens": {"image_token": "<image>"}, "tool_token": "<tool>"}}
    yield "map-strings", "llama2", {"tokenizer_config.json": llama, "special_tokens_map.json": {"bos_token": "<s>", "pad_token": "<pad>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}}
    yield "map-flags", "llama2", {"special_tokens_map.json": {"bos_token": token("<s>", rstrip=True), "pad_token": token("<pad>", rstrip=True), "mask_token": {"content": "<mask>", "lstrip": True}}}
    yield "map-additional-flags", "llama2", {"special_tokens_map.json": {"additional_special_tokens": [token("<extra>", lstrip=True), token("<image>", rstrip=True)]}}
    yield "map-extra-flags", "llama2", {"special_tokens_map.json": {"extra_special_tokens": [token("<extra>", lstrip=True), "<image>"]}}
    yield "named-in-tokenizer", "llama2", {"tokenizer_config.json": llama | {"eos_token": "<LEFT>", "extra_special_tokens": ["word"]}}
    yield "map-and-decoder-named", "qwen2", {"tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"557": token("<|endoftext|>")}}}
    yield "qwen-added", "qwen2", {"added_tokens.json": {"<tool>": 9000, "</tool>": 9001}, "special_tokens_map.json": {"eos_token": "<|im_end|>"}}
    yield "mistral-decoder", "mistral", {"tokenizer_config.json": llama | {"added_tokens_decoder": decoder | {"3": token("[INST]"), "900": token("<tool>", normalized=True, special=False), "901": token("<|im_start|>", normalized=True)}}}


def main():
    out = []
    for name, base, files in cases():
        folder = tempfile.mkdtemp()
        shutil.copy(os.path.join(HERE, base, "tokenizer.json"), folder)
        for path, value in files.items():
            with open(os.path.join(folder, path), "w", encoding="utf-8") as f:
                json.dump(value, f, ensure_ascii=False)
        try:
            tok = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as e:
            print(name, "REFUSED", type(e), e)
            continue
        entry = {"name": name, "base": base, "files": files, "vocab_size": len(tok), "added": {}, "cases": []}
        backend = tok.backend_tokenizer
        before = json.loads(open(os.path.join(folder, "tokenizer.json"), encoding="utf-8").read())["added_tokens"]
        for i, t in sorted(tok.added_tokens_decoder.items()):
            if dict(id=i, content=t.content, single_word=t.single_word, lstrip=t.lstrip, rstrip=t.rstrip, normalized=t.normalized, special=t.special) not in before:
                entry["added"][t.content] = i
        for text in TEXTS:
            ids = tok(text).input_ids
            entry["cases"].append({"text": text, "ids": ids, "skip": backend.decode(ids, skip_special_tokens=True)})
        out.append(entry)
        shutil.rmtree(folder)
        print(name, entry["added"])
    with open(os.path.join(HERE, "beside.json"), "w", encoding="utf-8") as f:
        f.write("[\n" + ",\n".join(json.dumps(e, ensure_ascii=False, separators=(",", ":")) for e in out) + "\n]\n")
    print(os.path.getsize(os.path.join(HERE, "beside.json")))


if __name__ == "__main__":
    main()
