#!/usr/bin/env python3
"""Prefills and decoding of a Hugging Face folder by transformers, or of a GGUF file by OpenVINO GenAI, when told to.

A line of standard input, "prefill N" or "decode N", is answered by a line of JSON: seconds until the logits of the last of N tokens are
there, or seconds per token for STEPS tokens after N. The first line of output says that the model is loaded. `compare.py --turns` asks.
"""
import argparse, json, os, sys, time

STEPS = 16


class Transformers:
    def __init__(self, o):
        import torch, transformers
        torch.set_num_threads(o.threads)
        self.torch, self.vocab = torch, transformers.AutoConfig.from_pretrained(o.model).vocab_size
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            o.model, dtype={"bf16": torch.bfloat16, "f32": torch.float32}[o.dtype], attn_implementation="sdpa").eval()
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__}, SDPA, {o.dtype}"

    def run(self, ids, cache=None):
        with self.torch.inference_mode():
            return self.model(input_ids=self.torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)

    def prefill(self, ids):
        start = time.perf_counter()
        out = self.run(ids)
        out.logits[0, -1].argmax().item()
        return time.perf_counter() - start, out.past_key_values

    def decode(self, ids, steps):
        state = self.prefill(ids)[1]
        step = lambda token: self.run([token], state).logits[0, -1].argmax().item()
        token = step(17)  # not counted: what the first step allocates
        start = time.perf_counter()
        for _ in range(steps): token = step(token)
        return (time.perf_counter() - start) / steps


class OpenVino:
    def __init__(self, o):
        import numpy, openvino, openvino_genai
        self.numpy, self.openvino, self.genai, self.vocab = numpy, openvino, openvino_genai, o.vocab
        self.pipeline = openvino_genai.LLMPipeline(o.model, "CPU", INFERENCE_NUM_THREADS=o.threads)
        self.about = f"openvino-genai {openvino_genai.__version__}, {os.path.basename(o.model)}"

    def generate(self, ids, steps):
        tensor = lambda a: self.openvino.Tensor(self.numpy.array([a], dtype="int64"))
        start = time.perf_counter()
        result = self.pipeline.generate(self.genai.TokenizedInputs(tensor(ids), tensor([1] * len(ids))),
                                        self.genai.GenerationConfig(max_new_tokens=steps, ignore_eos=True, do_sample=False))
        return time.perf_counter() - start, result.perf_metrics

    def prefill(self, ids): return self.generate(ids, 1)[0], None
    def decode(self, ids, steps): return self.generate(ids, steps + 2)[1].get_tpot().mean / 1000


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("engine", choices=("transformers", "openvino"))
    p.add_argument("--model", required=True, metavar="PATH", help="a Hugging Face folder, or a GGUF file")
    p.add_argument("--dtype", choices=("bf16", "f32"), default="bf16", help="of transformers; a GGUF file has its own")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--vocab", type=int, default=32000, help="tokens that OpenVINO is given are below this (%(default)s)")
    o = p.parse_args()
    engine = {"transformers": Transformers, "openvino": OpenVino}[o.engine](o)
    calls = iter(range(1, 1 << 30))

    def ids(n):  # others each time: OpenVINO GenAI keeps what it has seen
        first = next(calls) * 104729
        return [(first + i * 7919) % (engine.vocab - 1000) + 500 for i in range(n)]

    engine.prefill(ids(64))
    print(json.dumps({"ready": engine.about, "threads": o.threads}), flush=True)
    for line in sys.stdin:
        what, tokens = line.split()[0], int(line.split()[1])
        seconds = engine.decode(ids(tokens), STEPS) if what == "decode" else engine.prefill(ids(tokens))[0]
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


if __name__ == "__main__": main()
