#!/usr/bin/env python3
"""Trains the example pair: a base model and fine-tunes of it, `receiver`, `sender` and `mild` (a second sender), that read a document and answer
questions about it (tasks.py), the receiver in one style of question, the senders in another.

    train.py --work DIR            runs every stage that DIR does not already hold, in order, and writes the results beside this script
    train.py --work DIR --stage S  one of: tokenizer base receiver sender mild export

Everything follows from --seed. Checkpoints are kept in DIR every --every steps; a run that was stopped goes on from the last one.
It runs on two CPU cores (bf16 autocast if the CPU has it) or on a GPU (--device cuda). Pinned versions: see requirements.txt.
"""
import argparse
import json
import os
import random
import shutil
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))

# glibc returns large blocks to the system on every free otherwise, which costs a third of the CPU's speed here.
if os.environ.get("MALLOC_MMAP_THRESHOLD_") is None and sys.platform == "linux":
    os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "4294967296"
    os.execv(sys.executable, [sys.executable] + sys.argv)

import torch
import torch.nn as nn
import torch.nn.functional as F

from tasks import COMPLETE, FRAMES, PLAIN, QUESTIONS, RECORD, STYLE_NAMES, TASKS, make_document, make_question, make_questions

LAYERS, DIM, HEADS, KV_HEADS, HEAD_DIM, FF = 12, 128, 4, 2, 32, 256
ROPE_THETA, EPS, MAX_POSITIONS = 10000.0, 1e-5, 2048
BOS, EOS = "<s>", "</s>"  # ids 0 and 1
SIZES = (8, 16, 40)  # people or functions of a document: about 200, 400 and 1,000 tokens

# ------------------------------------------------------------------------------------------------------------------------- the tokenizer

def train_tokenizer(path, seed):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    rng = random.Random(f"{seed}-tokenizer")
    texts = []
    for i in range(4000):
        text, facts = make_document(rng, 8, i % 2)
        texts += [text] + [q + a for q, a, _, _ in make_questions(rng, facts, 12, (PLAIN, RECORD, COMPLETE))]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    tok.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=2048, special_tokens=[BOS, EOS], show_progress=False,
                                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, 0)])
    tok.save(path)
    return tok


def load_tokenizer(path):
    from tokenizers import Tokenizer
    return Tokenizer.from_file(path)


# ----------------------------------------------------------------------------------------------------------------------------- the model

def rms_norm(x, weight):
    x = x.float()
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


class Weight(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(DIM, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(DIM, KV_HEADS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, DIM, bias=False)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_proj = nn.Linear(DIM, FF, bias=False)
        self.up_proj = nn.Linear(DIM, FF, bias=False)
        self.down_proj = nn.Linear(FF, DIM, bias=False)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Weight(DIM), Weight(DIM)
        self.self_attn, self.mlp = Attention(), MLP()

    def forward(self, x, cos, sin, mask):
        """x [B,T,DIM]; mask [B,1,1,T,T], True where a token may look."""
        B, T, _ = x.shape
        at, groups = self.self_attn, HEADS // KV_HEADS
        h = rms_norm(x, self.input_layernorm.weight)
        q = rotate(at.q_proj(h).view(B, T, HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        k = rotate(at.k_proj(h).view(B, T, KV_HEADS, HEAD_DIM).transpose(1, 2), cos, sin)
        v = at.v_proj(h).view(B, T, KV_HEADS, HEAD_DIM).transpose(1, 2)
        # written out: under torch.compile on a CPU the fused kernel's backward pass takes twice as long
        scores = torch.matmul(q.reshape(B, KV_HEADS, groups, T, HEAD_DIM), k.unsqueeze(2).transpose(-1, -2)) * HEAD_DIM ** -0.5
        p = scores.float().masked_fill(~mask, float("-inf")).softmax(-1)
        y = torch.matmul(p.to(v.dtype), v.unsqueeze(2)).reshape(B, HEADS, T, HEAD_DIM)
        x = x + at.o_proj(y.transpose(1, 2).reshape(B, T, HEADS * HEAD_DIM))
        h = rms_norm(x, self.post_attention_layernorm.weight)
        return x + self.mlp.down_proj(F.silu(self.mlp.gate_proj(h)) * self.mlp.up_proj(h))


class Body(nn.Module):
    def __init__(self, vocab):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, DIM)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Weight(DIM)


class Llama(nn.Module):
    """Parameters are named as Hugging Face's LlamaForCausalLM names them."""
    def __init__(self, vocab):
        super().__init__()
        self.model, self.lm_head = Body(vocab), nn.Linear(DIM, vocab, bias=False)
        inverse = 1.0 / ROPE_THETA ** (torch.arange(0, HEAD_DIM, 2).float() / HEAD_DIM)
        angles = torch.arange(MAX_POSITIONS).float()[:, None] * inverse
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin(), persistent=False)

    @torch.no_grad()
    def start(self, generator):
        """Start values decide whether retrieval ever forms: wide embeddings, a small untied head, and layers that begin as the identity."""
        for name, p in self.named_parameters():
            if "norm" in name: p.fill_(1.0)
            elif "embed" in name: p.normal_(0, 1, generator=generator)
            elif "lm_head" in name: p.normal_(0, 0.1 / DIM ** 0.5, generator=generator)
            elif "o_proj" in name or "down_proj" in name: p.zero_()
            else: p.normal_(0, p.shape[1] ** -0.5, generator=generator)

    def embed(self, ids): return self.model.embed_tokens(ids)

    def rope(self, positions): return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)

    def head(self, x): return self.lm_head(rms_norm(x, self.model.norm.weight))

    def forward(self, ids, positions, mask):
        x, (cos, sin) = self.embed(ids), self.rope(positions)
        for layer in self.model.layers: x = layer(x, cos, sin, mask)
        return x


# --------------------------------------------------------------------------------------------------------------------------- the batches

def pack(tok, documents, length=None):
    """documents: a list of (text, questions). Each row is the document, then every question with its answer; a question sees the
    document and itself only, at the positions that follow the document: the same computation as asking it alone."""
    contexts = tok.encode_batch([t for t, _ in documents])
    flat = [q for _, qs in documents for q in qs]
    asks = tok.encode_batch([q[0] for q in flat], add_special_tokens=False)
    answers = tok.encode_batch([q[1] for q in flat], add_special_tokens=False)
    eos = tok.token_to_id(EOS)
    rows, at = [], 0
    for (_, qs), context in zip(documents, contexts):
        ids = list(context.ids); n = len(ids)
        pos, seg, weight, spans = list(range(n)), [0] * n, [1] * n, []  # weight: 0 nothing, 1 text, 2 answer
        for i in range(len(qs)):
            q, a = asks[at + i].ids, answers[at + i].ids + [eos]
            if length and len(ids) + len(q) + len(a) > length: break  # a rare long row loses its last question
            spans.append((len(ids) + len(q), len(a)))
            ids += q + a; pos += range(n, n + len(q) + len(a)); seg += [i + 1] * (len(q) + len(a)); weight += [0] * len(q) + [2] * len(a)
        at += len(qs); rows.append((ids, pos, seg, weight, spans))
    T = length or max(len(r[0]) for r in rows)
    B = len(rows)
    ids, pos, seg, weight = (torch.zeros(B, T, dtype=torch.long) for _ in range(4)); seg.fill_(-1)
    for b, r in enumerate(rows):
        for t, src in zip((ids, pos, seg, weight), r): t[b, :len(src)] = torch.tensor(src)
    return ids, pos, seg, weight, [r[4] for r in rows]


def segment_mask(seg):
    T = seg.shape[1]
    same = (seg[:, :, None] == seg[:, None, :]) | (seg[:, None, :] == 0)
    return (same & torch.ones(T, T, dtype=torch.bool, device=seg.device).tril())[:, None, None]


def copy_batch(rng, vocab, batch, length, device):
    """Random tokens repeated with a period: teaches the layers to look back and copy."""
    ids = torch.zeros(batch, length, dtype=torch.long); weight = torch.zeros(batch, length, dtype=torch.long)
    for b in range(batch):
        period = rng.randint(6, 21)
        word = [rng.randrange(2, vocab) for _ in range(period)]
        ids[b] = torch.tensor((word * (length // period + 1))[:length]); weight[b, period + 1:] = 2
    pos = torch.arange(length).expand(batch, length)
    return ids.to(device), pos.to(device), torch.zeros_like(ids, device=device), weight.to(device)


# --------------------------------------------------------------------------------------------------------------------------- the training

class Trainer:
    def __init__(self, args, model, name, lr, layer_decay=1.0):
        self.args, self.model, self.name, self.lr = args, model, name, lr
        self.params = list(model.parameters())
        # discriminative rates: layer l learns at lr * layer_decay ** (LAYERS - 1 - l), the embeddings below layer 0, norm and head at lr
        height = lambda k: int(k.split(".")[2]) if ".layers." in k else -1 if "embed" in k else LAYERS - 1
        heights = {}
        for k, p in model.named_parameters(): heights.setdefault(height(k), []).append(p)
        self.opt = torch.optim.AdamW([dict(params=ps, scale=layer_decay ** (LAYERS - 1 - h)) for h, ps in heights.items()], lr=lr,
                                     betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.tokens, self.phase, self.phase_step, self.good, self.seconds = 0, 0, 0, 0, 0, 0.0
        self.path = os.path.join(args.work, name + ".ckpt")
        if os.path.exists(self.path):
            s = torch.load(self.path, map_location=args.device, weights_only=True)
            model.load_state_dict(s["model"]); self.opt.load_state_dict(s["opt"])
            self.step, self.tokens, self.phase, self.phase_step, self.good, self.seconds = s["at"]
            self.say(f"resumed at step {self.step}")
        if not args.no_compile:
            for layer in model.model.layers: layer.compile(dynamic=False)
        self.began = time.time()

    def say(self, text):
        line = f"[{self.name}] {text}"
        print(line, flush=True)
        with open(os.path.join(self.args.work, "train.log"), "a") as f: f.write(line + "\n")

    def save(self):
        now = time.time(); self.seconds += now - self.began; self.began = now
        torch.save(dict(model=self.model.state_dict(), opt=self.opt.state_dict(),
                        at=(self.step, self.tokens, self.phase, self.phase_step, self.good, self.seconds)), self.path + ".new")
        os.replace(self.path + ".new", self.path)

    def update(self, batch, lr):
        ids, pos, seg, weight = batch
        mask = segment_mask(seg)
        # the target of position t is t + 1 wherever t + 1 carries a weight
        on_answer, on_text = weight[:, 1:] == 2, weight[:, 1:] == 1
        with torch.autocast(self.args.device, dtype=torch.bfloat16, enabled=not self.args.float32):
            x = self.model(ids, pos, mask)[:, :-1]
            target = ids[:, 1:]
            answer_logits = self.model.head(x[on_answer]).float()
            loss = F.cross_entropy(answer_logits, target[on_answer])
            if on_text.any(): loss = loss + 0.05 * F.cross_entropy(self.model.head(x[on_text]).float(), target[on_text])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for g in self.opt.param_groups: g["lr"] = lr * g["scale"]
        self.opt.step(); self.opt.zero_grad(set_to_none=True)
        self.step += 1; self.phase_step += 1; self.tokens += ids.numel()
        hit = torch.zeros_like(on_answer); hit[on_answer] = answer_logits.argmax(-1) == target[on_answer]
        return loss.item(), norm.item(), hit.cpu(), on_answer.cpu()

    def run_copy(self, phase, low_vocab, steps, target):
        if self.phase != phase: return
        recent = []
        while self.phase_step < steps:
            rng = random.Random(f"{self.args.seed}-{self.name}-{self.step}")
            batch = copy_batch(rng, low_vocab, 32, 49, self.args.device)
            loss, norm, hit, on = self.update(batch, self.lr * min(1, (self.step + 1) / 100))
            recent.append((hit.sum() / on.sum()).item())
            if self.step % 20 == 0:
                mean = sum(recent[-20:]) / len(recent[-20:])
                self.say(f"copying over {low_vocab} tokens, step {self.step}: loss {loss:.3f} accuracy {mean:.3f} "
                         f"{self.tokens / 1e6:.2f} M tokens {self.seconds + time.time() - self.began:.0f} s")
                if mean >= target: break
            if self.step % self.args.every == 0: self.save()
        self.phase, self.phase_step = phase + 1, 0; self.save()

    def run_documents(self, phase, tok, shapes, styles, steps, target=2.0, decay=0):
        """shapes: (people or functions, questions, documents per step), one drawn for each step. Until `target` is met on three reports in
        a row, or `steps` steps; the last `decay` steps bring the rate down to a tenth."""
        if self.phase != phase: return
        seen = {}
        while self.phase_step < steps:
            rng = random.Random(f"{self.args.seed}-{self.name}-{self.step}")
            size, questions, batch = rng.choice(shapes)
            docs = []
            for i in range(batch):
                text, facts = make_document(rng, size, rng.random() < 0.35); docs.append((text, make_questions(rng, facts, questions, styles)))
            ids, pos, seg, weight, spans = pack(tok, docs, length_for(size, questions))
            left = steps - self.phase_step
            lr = self.lr * min(1, (self.step + 1) / 100) * (1 if left > decay else 0.1 + 0.9 * left / decay)
            loss, norm, hit, on = self.update([t.to(self.args.device) for t in (ids, pos, seg, weight)], lr)
            for b, (_, qs) in enumerate(docs):
                for (start, count), (_, _, task, style) in zip(spans[b], qs):
                    seen.setdefault((style, task), []).append(bool(hit[b, start - 1:start - 1 + count].all()))
            if self.step % 20 == 0:
                rate = lambda keep: (lambda v: sum(v) / len(v) if v else float("nan"))([h for k, v in seen.items() if keep(k) for h in v])
                overall = rate(lambda k: True)
                self.say(f"phase {phase}, step {self.step}: loss {loss:.3f} norm {norm:.2f} exact {overall:.3f}  "
                         + " ".join(f"{STYLE_NAMES[s]} {rate(lambda k: k[0] == s):.2f}" for s in sorted(set(styles))) + "  "
                         + " ".join(f"{t} {rate(lambda q: q[1] == t):.2f}" for t in TASKS)
                         + " | plain " + " ".join(f"{t} {rate(lambda q: q == (PLAIN, t)):.2f}" for t in TASKS)
                         + f"  {self.tokens / 1e6:.2f} M tokens {self.seconds + time.time() - self.began:.0f} s")
                seen = {}
                self.good = self.good + 1 if overall >= target else 0
                if self.good >= 3: break
            if self.step % self.args.every == 0: self.save()
        self.phase, self.phase_step, self.good = phase + 1, 0, 0; self.save()


def rounded(model):
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in model.state_dict().items()}


def new_model(args, vocab, parent=None):
    model = Llama(vocab)
    if parent is None: model.start(torch.Generator().manual_seed(args.seed))
    else: model.load_state_dict({k: v.float() for k, v in torch.load(os.path.join(args.work, parent + ".pt"), weights_only=True).items()})
    return model.to(args.device)


def stage_base(args, tok):
    vocab = tok.get_vocab_size()
    t = Trainer(args, new_model(args, vocab), "base", args.base_lr)
    t.run_copy(0, 192, 700, 0.90)
    t.run_copy(1, vocab, 600, 0.985)
    for phase, (shapes, steps, target, decay) in enumerate(args.base_phases, 2):
        t.run_documents(phase, tok, shapes, (PLAIN, PLAIN, PLAIN, RECORD, COMPLETE), steps, target, decay)
    torch.save(rounded(t.model), os.path.join(args.work, "base.pt"))


def length_for(size, questions): return -(-(26 * size + 3 + 18 * questions) // 8) * 8


def stage_tune(args, tok, name, style, lr, steps, decay, layer_decay=1.0):
    t = Trainer(args, new_model(args, tok.get_vocab_size(), "base"), name, lr, layer_decay)
    t.run_documents(0, tok, args.tune_shapes, (style,), steps, decay=decay)
    torch.save(rounded(t.model), os.path.join(args.work, name + ".pt"))


# --------------------------------------------------------------------------------------------------------------------------- the files

def heldout(args):
    """Fresh documents of three sizes, notes and modules in turn, from a generator no training step uses, each with two questions of every task
    that it has, in the receiver's style: (text, [(task, input, answer)])."""
    rng = random.Random(f"{args.seed}-heldout")
    documents = []
    for i in range(args.documents):
        module = i % 2 == 1
        text, facts = make_document(rng, SIZES[i // 2 % len(SIZES)], module)
        questions = []
        for task in TASKS:
            if (task == "module_code") != module: continue
            kinds = list(QUESTIONS[task])
            for fact, kind in zip(rng.sample(facts, 2), rng.sample(kinds, 2) if len(kinds) > 1 else kinds * 2):
                questions.append((task, QUESTIONS[task][kind][0][PLAIN].format(**fact), make_question(fact, task, kind, PLAIN)[1]))
        documents.append((text, questions))
    return documents


def stage_export(args, tok, names=("base", "sender", "mild", "receiver")):
    from safetensors.torch import save_file
    vocab = tok.get_vocab_size()
    for name in names:
        folder = os.path.join(args.out, name)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(args.work, name + ".pt")
        state = torch.load(path, weights_only=True) if os.path.exists(path) else rounded(new_model(args, vocab))
        save_file(state, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        os.chmod(os.path.join(folder, "model.safetensors"), 0o644)
        write = lambda file, data: open(os.path.join(folder, file), "w").write(json.dumps(data, indent=2) + "\n")
        write("config.json", dict(
            architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=vocab, hidden_size=DIM, intermediate_size=FF,
            num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, hidden_act="silu",
            max_position_embeddings=MAX_POSITIONS, rms_norm_eps=EPS, rope_theta=ROPE_THETA, rope_scaling=None, attention_bias=False,
            mlp_bias=False, attention_dropout=0.0, tie_word_embeddings=False, initializer_range=0.02, use_cache=True,
            bos_token_id=0, eos_token_id=1, torch_dtype="bfloat16"))
        write("generation_config.json", dict(bos_token_id=0, eos_token_id=1, do_sample=False, max_new_tokens=8))
        write("tokenizer_config.json", dict(tokenizer_class="PreTrainedTokenizerFast", bos_token=BOS, eos_token=EOS, model_max_length=MAX_POSITIONS,
                                            clean_up_tokenization_spaces=False))
        shutil.copyfile(os.path.join(args.work, "tokenizer.json"), os.path.join(folder, "tokenizer.json"))
    data = os.path.join(args.out, "data")
    os.makedirs(data, exist_ok=True)
    for task in TASKS:
        with open(os.path.join(data, task + ".jsonl"), "w") as f:
            for text, questions in heldout(args):
                for t, ask, answer in questions:
                    if t != task: continue
                    f.write(json.dumps(dict(context=text, input=ask, answers=[answer if t == "module_code" else answer.strip()], dataset=t,
                                            length=len(tok.encode(text).ids))) + "\n")
    prompts = {}
    for task, metric, tokens in zip(TASKS, ("qa_f1", "qa_f1", "rouge_l", "code_sim"), (4, 12, 48, 24)):
        frame = FRAMES[task.split("_")[0]][PLAIN]
        prompts[task] = dict(prompt="{context}" + frame.format("{input}"), max_new_tokens=tokens, metric=metric,
                             answer_prefix="" if task == "module_code" else " ")
    with open(os.path.join(data, "prompts.json"), "w") as f:
        f.write(json.dumps(dict(schema="droidspeak.prompts", version=1, tasks=prompts), indent=1) + "\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", required=True, help="folder for checkpoints and the full log")
    p.add_argument("--out", default=HERE, help="where base/, sender/, mild/, receiver/ and data/ go (default: beside this script)")
    p.add_argument("--stage", choices=["tokenizer", "base", "receiver", "sender", "mild", "export"], help="only this one")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    p.add_argument("--base-lr", type=float, default=2.2e-3)
    p.add_argument("--receiver-lr", type=float, default=1.2e-3)
    p.add_argument("--sender-lr", type=float, default=2e-2)
    p.add_argument("--mild-lr", type=float, default=1e-2, help="of a second sender, nearer to the base")
    p.add_argument("--receiver-steps", type=int, default=500)
    p.add_argument("--sender-steps", type=int, default=300)
    p.add_argument("--receiver-decay", type=int, default=166, help="last steps, over which the rate falls to a tenth")
    p.add_argument("--sender-decay", type=int, default=100)
    p.add_argument("--sender-layer-decay", type=float, default=0.78, help="each layer of the sender learns at this times the rate of the one above it")
    p.add_argument("--tune-batch", type=int, default=8)
    p.add_argument("--documents", type=int, default=204, help="held-out documents, half of them notes, half modules")
    p.add_argument("--float32", action="store_true", help="no bf16 autocast")
    p.add_argument("--no-compile", action="store_true")
    args = p.parse_args()
    # The base's documents: [(people or functions, questions, documents per step)], most steps, exact rate that ends it (three reports in a row), steps of decay
    args.tune_shapes = list(zip(SIZES, (12, 12, 12), (10, 7, 3)))
    args.base_phases = [([(3, 12, 16)], 2400, 0.97, 0), ([(4, 12, 16)], 700, 0.97, 0), ([(8, 12, 10)], 800, 0.97, 0),
                        (args.tune_shapes, 500, 2.0, 150)]
    torch.set_num_threads(args.threads)
    os.makedirs(args.work, exist_ok=True)
    tok_path = os.path.join(args.work, "tokenizer.json")
    if not os.path.exists(tok_path): train_tokenizer(tok_path, args.seed)
    tok = load_tokenizer(tok_path)
    wanted = lambda s: args.stage in (None, s)
    have = lambda n: os.path.exists(os.path.join(args.work, n))
    if wanted("base") and not have("base.pt"): stage_base(args, tok)
    if wanted("receiver") and not have("receiver.pt"): stage_tune(args, tok, "receiver", PLAIN, args.receiver_lr, args.receiver_steps, args.receiver_decay)
    if wanted("sender") and not have("sender.pt"): stage_tune(args, tok, "sender", RECORD, args.sender_lr, args.sender_steps, args.sender_decay, args.sender_layer_decay)
    if wanted("mild") and not have("mild.pt"): stage_tune(args, tok, "mild", RECORD, args.mild_lr, args.sender_steps, args.sender_decay, args.sender_layer_decay)
    if wanted("export"): stage_export(args, tok)


if __name__ == "__main__":
    main()
