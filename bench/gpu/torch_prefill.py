#!/usr/bin/env python3
"""Full prefills of transformers' Llama in torch: what droidspeak's are held against.

bf16, random weights, attention by torch's SDPA (cuDNN's kernel where torch has it), torch.compile, logits for the last
token only. Reads a number of tokens per line of standard input and answers each with a line of JSON, as
`ds-bench prefill --turns` does.
"""
import argparse, json, statistics, sys, time

SHAPES = {  # of transformers' LlamaConfig
    "llama-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
                     head_dim=64, vocab_size=128256, tie_word_embeddings=True),
    "llama-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
                     head_dim=128, vocab_size=128256, tie_word_embeddings=False),
}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="llama-8b")
    p.add_argument("--layers", type=int, help="fewer than the shape has")
    p.add_argument("--compile", default="max-autotune-no-cudagraphs", help="mode of torch.compile, or 'none'")
    p.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu (slow: to try the script)")
    p.add_argument("--repeats", type=int, default=3, help="prefills per turn; the median counts")
    o = p.parse_args()
    import torch, transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel

    config = transformers.LlamaConfig(**SHAPES[o.shape], max_position_embeddings=131072, rope_theta=500000.0, attn_implementation="sdpa")
    if o.layers: config.num_hidden_layers = o.layers
    torch.manual_seed(1)
    with torch.device(o.device):
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.LlamaForCausalLM(config).eval()
    compiled = model if o.compile == "none" else torch.compile(model, mode=o.compile, dynamic=False)
    synchronize = torch.cuda.synchronize if o.device.startswith("cuda") else lambda: None
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]

    def prefill(ids):
        synchronize()
        start = time.perf_counter()
        with torch.inference_mode(), sdpa_kernel(backends, set_priority=True):
            # The caches are what a prefill is for, so they are kept.
            out = compiled(input_ids=ids, use_cache=True, logits_to_keep=1)
            out.logits[0, -1].argmax().item()
        return time.perf_counter() - start

    print(json.dumps({"ready": o.shape, "torch": torch.__version__, "transformers": transformers.__version__, "compile": o.compile,
                      "cudnn": torch.backends.cudnn.version() if o.device.startswith("cuda") else None, "sdpa": "cuDNN, flash, math in this order"}), flush=True)
    warm = set()
    for line in sys.stdin:
        tokens = int(line)
        ids = torch.randint(0, config.vocab_size, (1, tokens), device=o.device)
        if tokens not in warm:
            for _ in range(3): prefill(ids)
            warm.add(tokens)
        seconds = [prefill(ids) for _ in range(o.repeats)]
        print(json.dumps({"tokens": tokens, "seconds": statistics.median(seconds), "seconds_all": seconds}), flush=True)


main()
