"""Train the small demo model that ships with the package.  One file, CPU only, two cores, about two hours.

    python -m venv venv && venv/bin/pip install torch==2.13.0 numpy safetensors tokenizers
    venv/bin/python tools/train_demo.py --data DIR --out DIR --hours 2.08

The time is a budget: the learning rate and the data mix follow the fraction of it that is used up, so
that a slow machine sees fewer tokens and still ends on time.  Run the same command again after an
interruption: it goes on from the last checkpoint (at most five minutes old), and the time used before
counts.  The seed fixes the initial weights and the order of the data; two runs still differ, as how far
each gets depends on the clock.

Data (``--data``: the folder with the ``.txt.xz`` files)
    tinystories_sample
        4.2 MB of TinyStories (Eldan and Li, CDLA-Sharing-1.0).  Its first 200,000 characters are held
        out: neither the tokenizer nor the model nor the selection of other texts sees them.  The second
        half has lost its document marks and has broken quotation marks: both are repaired by rule
        (`read_stories`).
    tinystories_sample2
        NOT used: it is the first half of tinystories_sample over again, the held-out part included.
    african_storybook_ccby
        0.5 MB, 316 stories of the African Storybook (CC-BY; the authors are in
        african_storybook_CREDITS.tsv, which must travel with the model's credits).
    gutenberg_children, gutenberg_boys_fiction
        132 MB of Project Gutenberg books (public domain in the US).  Only the half of their 512-token
        windows that resembles the simple stories most is used (Moore-Lewis selection: bigram
        log-likelihood under the stories less that under the books).
    The simple stories are only 1.14 million tokens, seen many times; their share of the batch rises
    over the run (`SHARE`).  The books are 19 million tokens after the selection.

Held-out score: bits per byte
    The held-out text is split at ``<|endoftext|>``, every document is stripped of outer white space and
    encoded; the stream is ``<|endoftext|> doc <|endoftext|> doc ... <|endoftext|>``.  It is cut into
    windows of 512 inputs that do not overlap (each window's targets are its inputs moved on by one;
    attention never leaves the window and does cross documents, as in training).  The score is the sum
    of -log2 p over all targets, the marks among them, divided by the UTF-8 bytes of the stripped
    documents: marks and stripped white space are NOT counted as bytes (with all the bytes of the file's
    part, marks too, scores would be 0.981 times as high).  Scores on the way use the first
    60,000 characters, the last one all 200,000.  Scoring is in float32. ``seen_ema`` in the log is the
    same score on training text, to see over-fitting.  As which of the weights are kept is decided on
    this text, the final score is a little optimistic.

Model
    Llama architecture as in the Hub's ``LlamaForCausalLM``, 5.18 million parameters: 4,096-token
    byte-level BPE, hidden size 256, 6 layers, 4 heads and 2 key/value heads of size 64, SwiGLU of 640,
    RMSNorm, rotary positions (theta 10,000), context 512, tied embeddings, no biases.

Training
    Muon (Newton-Schulz) for the matrices, AdamW for embedding and norms, bfloat16 matrix products with
    float32 master weights, blocks compiled by inductor (needs g++), cross-entropy in chunks that stay
    in cache, an exponential moving average of the weights that is scored beside them.  The better one
    of the two is exported after every scoring that improves.  Dropout starts only when the distance
    between held-out and seen text has grown (`GAP`).

Output (``--out``)
    ``export/``: config.json, model.safetensors in FLOAT32, tokenizer.json, tokenizer_config.json and
    generation_config.json, replaced file by file, each atomically.  ``metrics.jsonl``; ``samples.txt``;
    ``checkpoint.pt`` and the token cache ``cache/``, which are only needed to go on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import re
import shutil
import time
from pathlib import Path

# Before torch is loaded: a waiting thread sleeps instead of spinning.  That costs nothing on an idle machine,
# and training is three times as fast where something else wants a core (3,100 tokens/s instead of 990).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

START = time.monotonic()
EOT = "<|endoftext|>"
HELD_OUT = 200_000  # characters of tinystories_sample that nothing is trained on
QUICK = 60_000  # of these, scored on the way
BOOKS = ("gutenberg_children", "gutenberg_boys_fiction")
KEEP = 0.5  # of the books' windows: the half nearest to the simple stories
# (fraction of the run, share of simple stories in the batch)
SHARE = ((0.0, 0.20), (0.4, 0.35), (0.75, 0.60), (1.0, 0.80))

VOCAB, DIM, LAYERS, HEADS, KV_HEADS, HEAD, INTER, CONTEXT = 4096, 256, 6, 4, 2, 64, 640, 512
THETA, EPS = 10000.0, 1e-5

WARMUP = 0.015  # of the run
MUON_LR, ADAM_LR, DECAY = 0.02, 3e-3, 0.1
EMA = 0.995
SHORT, SHORT_UNTIL = 256, 0.75  # until then three of four steps run on half windows: a quarter faster
GAP = 0.05  # dropout starts when held-out less seen bits per byte are this far above their minimum
RESERVE = 120.0  # seconds kept back for the last scoring, the export and the samples


# ------------------------------------------------------------------------------------------------ data


def read(folder: Path, name: str) -> str:
    return lzma.decompress((folder / f"{name}.txt.xz").read_bytes()).decode("utf-8")


def split_documents(text: str) -> list[str]:
    return [doc for doc in (part.strip() for part in text.split(EOT)) if doc]


def repair(text: str) -> str:
    """Undo the UTF-8-read-as-cp1252 damage of the quotation marks and dashes."""
    for code in (0x201C, 0x2018, 0x2019, 0x2013, 0x2014, 0x2026):
        text = text.replace(chr(code).encode().decode("cp1252"), chr(code))
    return text.replace("\u00e2\u20ac", "\u201d")  # the closing mark has lost its last byte


def read_stories(folder: Path) -> tuple[str, list[str]]:
    """The held-out text, and the simple stories to train on."""
    text = read(folder, "tinystories_sample")
    held, text = text[:HELD_OUT], text[HELD_OUT:]
    marked, _, tail = text.rpartition(EOT)
    # the first document is the rest of one that began in the held-out part: left out
    docs = split_documents(marked.partition(EOT)[2])
    # after the last mark a paragraph ends with an empty line and a document with a single line feed
    doc = ""
    for part in re.split(r"(?<!\n)\n(?!\n)", repair(tail)):
        doc = f"{doc}\n{part}" if doc else part
        if len(doc) >= 400:
            docs.append(doc.strip())
            doc = ""
    docs += split_documents(read(folder, "african_storybook_ccby"))
    seen = set(split_documents(held))
    return held, [doc for doc in docs if doc not in seen]


def train_tokenizer(stories: list[str], books: list[str]) -> Tokenizer:
    """Byte-level BPE on the simple stories and about as much of the books."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    size = sum(map(len, stories)) // 2
    tokenizer.train_from_iterator([*stories, *(book[: size // len(books)] for book in books)], trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, docs: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All documents, an end mark before each, as one array; and the offsets of the documents in it."""
    eot = tokenizer.token_to_id(EOT)
    parts, starts, at = [], [], 0
    for begin in range(0, len(docs), 256):
        for one in tokenizer.encode_batch(docs[begin : begin + 256]):
            starts.append(at)
            parts.append(np.array([eot, *one.ids], dtype=np.uint16))
            at += len(parts[-1])
    return np.concatenate(parts), np.array([*starts, at], dtype=np.int64)


def select(stories: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The share KEEP of the windows that is most like the stories, in their old order (Moore-Lewis)."""

    def model(ids: np.ndarray) -> np.ndarray:
        ids = ids.astype(np.int64)
        pairs = np.bincount(ids[:-1] * VOCAB + ids[1:], minlength=VOCAB * VOCAB).astype(np.float32).reshape(VOCAB, VOCAB)
        single = pairs.sum(0) + 1
        single /= single.sum()
        pairs = (pairs + 200 * single) / (pairs.sum(1, keepdims=True) + 200)
        return np.log(pairs).reshape(-1)

    ratio = model(stories) - model(windows[:: max(1, len(windows) // 8000)].reshape(-1))
    score = np.concatenate([ratio[w[:, :-1].astype(np.int64) * VOCAB + w[:, 1:]].mean(1) for w in np.array_split(windows, 64)])
    best = np.sort(np.argsort(-score, kind="stable")[: int(len(windows) * KEEP)])
    return windows[best]


def prepare(data: Path, out: Path) -> None:
    """Stages 1 and 2: tokenizer.json, and the token cache (uint16 .npy files)."""
    cache = out / "cache"
    if (cache / "done").exists():
        return
    cache.mkdir(parents=True, exist_ok=True)
    held, stories = read_stories(data)
    texts = [read(data, name) for name in BOOKS]
    tokenizer = train_tokenizer(stories, texts)
    tokenizer.save(str(cache / "tokenizer.json"))
    ids, starts = encode(tokenizer, stories)
    np.save(cache / "stories.npy", ids)
    np.save(cache / "stories_starts.npy", starts)
    for name, text in (("quick", held[:QUICK]), ("held", held)):
        docs = split_documents(text)
        np.save(cache / f"{name}.npy", np.append(encode(tokenizer, docs)[0], ids[0]))
        (cache / f"{name}.bytes").write_text(str(sum(len(doc.encode()) for doc in docs)))
    books, _ = encode(tokenizer, [doc for text in texts for doc in split_documents(text)])
    count = (len(books) - 1) // CONTEXT
    windows = np.lib.stride_tricks.sliding_window_view(books, CONTEXT + 1)[::CONTEXT][:count]
    chosen = select(ids, np.ascontiguousarray(windows))
    np.save(cache / "books.npy", chosen)
    (cache / "done").write_text(f"stories {len(ids)} books {len(books)} chosen {chosen.size}\n")
    print((cache / "done").read_text(), flush=True)


class Stories:
    """Rows of CONTEXT + 1 tokens from the stories, in a new order of documents in every epoch."""

    def __init__(self, cache: Path, seed: int) -> None:
        self.ids = np.load(cache / "stories.npy")
        self.starts = np.load(cache / "stories_starts.npy")
        self.seed, self.loaded = seed, -1

    def row(self, index: int) -> np.ndarray:
        epoch, at = divmod(index, len(self.ids) // CONTEXT - 1)
        if epoch != self.loaded:
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(len(self.starts) - 1)
            stream = np.concatenate([self.ids[self.starts[i] : self.starts[i + 1]] for i in order])
            self.stream, self.loaded = np.roll(stream, epoch * 101), epoch
        return self.stream[at * CONTEXT : (at + 1) * CONTEXT + 1]


class Books:
    """Rows of CONTEXT + 1 tokens from the books, in a new order of windows in every epoch."""

    def __init__(self, cache: Path, seed: int) -> None:
        self.windows = np.load(cache / "books.npy")
        self.seed, self.loaded = seed, -1

    def row(self, index: int) -> np.ndarray:
        epoch, at = divmod(index, len(self.windows))
        if epoch != self.loaded:
            self.order = np.random.default_rng([self.seed, 2, epoch]).permutation(len(self.windows))
            self.loaded = epoch
        return self.windows[self.order[at]]


# ----------------------------------------------------------------------------------------------- model


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, pairs as in the Hub's layout (half a head apart); x is (batch, time, heads, HEAD)."""
    a, b = x.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def block(x, cos, sin, norm1, qkv, out, norm2, gate_up, down, dtype: torch.dtype, drop: float):
    batch, length, _ = x.shape
    h = F.linear(rms_norm(x, norm1).to(dtype), qkv.to(dtype))
    q, k, v = h.view(batch, length, HEADS + 2 * KV_HEADS, HEAD).split((HEADS, KV_HEADS, KV_HEADS), 2)
    q, k = rotate(q, cos, sin).to(dtype), rotate(k, cos, sin).to(dtype)
    k = k.repeat_interleave(HEADS // KV_HEADS, 2)
    v = v.repeat_interleave(HEADS // KV_HEADS, 2)
    a = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    h = F.linear(a.transpose(1, 2).reshape(batch, length, HEADS * HEAD), out.to(dtype))
    x = x + (F.dropout(h, drop) if drop else h)
    gate, up = F.linear(rms_norm(x, norm2).to(dtype), gate_up.to(dtype)).chunk(2, -1)
    h = F.linear((F.silu(gate.float()) * up.float()).to(dtype), down.to(dtype))
    return x + (F.dropout(h, drop) if drop else h)


def softmax_gradient(logits: torch.Tensor, target: torch.Tensor, scale: float):
    """Sum of the negative log-likelihoods, and scale times its gradient by the logits, for a chunk."""
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1, keepdim=True)
    hit = torch.arange(z.shape[-1])[None] == target[:, None]
    loss = (total.log().squeeze(-1) - torch.where(hit, z, 0.0).sum(-1)).sum()
    return loss, ((e / total - hit.float()) * scale).to(logits.dtype)


class ChunkedLoss(torch.autograd.Function):
    """Mean cross-entropy of x @ embedding.T, never holding all the logits; gradients come on the way."""

    gradient = staticmethod(softmax_gradient)
    chunk = 512

    @staticmethod
    def forward(ctx, x, embedding, target):
        total, grad_x = 0.0, torch.empty_like(x)
        weight = embedding.to(x.dtype)
        grad_weight = torch.zeros_like(embedding)
        for at in range(0, len(x), ChunkedLoss.chunk):
            part = slice(at, at + ChunkedLoss.chunk)
            loss, grad = ChunkedLoss.gradient(x[part] @ weight.T, target[part], 1.0 / len(x))
            total = total + loss
            grad_x[part] = grad @ weight
            grad_weight += grad.T @ x[part]
        ctx.save_for_backward(grad_x, grad_weight)
        return total / len(x)

    @staticmethod
    def backward(ctx, scale):
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x * scale.to(grad_x.dtype), grad_weight * scale, None


def new_parameters() -> dict[str, torch.Tensor]:
    """Fused matrices (query+key+value, gate+up); outputs of the residual branches start at zero."""
    wide = (HEADS + 2 * KV_HEADS) * HEAD
    params = {"embedding": torch.randn(VOCAB, DIM) * 0.02, "norm": torch.ones(DIM)}
    for i in range(LAYERS):
        params[f"{i}.norm1"], params[f"{i}.norm2"] = torch.ones(DIM), torch.ones(DIM)
        params[f"{i}.qkv"] = torch.randn(wide, DIM) * 0.5 * DIM**-0.5
        params[f"{i}.out"] = torch.zeros(DIM, HEADS * HEAD)
        params[f"{i}.gate_up"] = torch.randn(2 * INTER, DIM) * 0.5 * DIM**-0.5
        params[f"{i}.down"] = torch.zeros(DIM, INTER)
    return params


class Network:
    """The forward pass over a dictionary of parameters."""

    def __init__(self, compiled: bool = True) -> None:
        frequency = THETA ** -(torch.arange(0, HEAD, 2).float() / HEAD)
        angle = torch.outer(torch.arange(CONTEXT).float(), frequency)[:, None]
        self.cos, self.sin = angle.cos(), angle.sin()
        self.block = torch.compile(block, dynamic=False) if compiled else block
        if compiled:
            ChunkedLoss.gradient = staticmethod(torch.compile(softmax_gradient, dynamic=False))

    def hidden(self, params, ids, dtype=torch.float32, drop=0.0, fast=False):
        x = F.embedding(ids, params["embedding"])
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        run = self.block if fast else block
        for i in range(LAYERS):
            names = ("norm1", "qkv", "out", "norm2", "gate_up", "down")
            x = run(x, cos, sin, *(params[f"{i}.{name}"] for name in names), dtype, drop)
        return rms_norm(x, params["norm"])

    def loss(self, params, ids, target, dtype, drop):
        x = self.hidden(params, ids, dtype, drop, fast=True).to(dtype)
        return ChunkedLoss.apply(x.view(-1, DIM), params["embedding"], target.reshape(-1))

    @torch.no_grad()
    def bits_per_byte(self, params, ids: np.ndarray, size: int) -> float:
        ids = torch.from_numpy(ids.astype(np.int64))
        total = 0.0
        whole = (len(ids) - 1) // CONTEXT * CONTEXT
        inputs, targets = (
            list(ids[:whole].view(-1, CONTEXT).split(8)),
            list(ids[1 : whole + 1].view(-1, CONTEXT).split(8)),
        )
        if whole < len(ids) - 1:
            inputs.append(ids[whole:-1][None])
            targets.append(ids[whole + 1 :][None])
        for x, y in zip(inputs, targets, strict=True):
            logits = self.hidden(params, x).view(-1, DIM) @ params["embedding"].T
            total += F.cross_entropy(logits, y.reshape(-1), reduction="sum").item()
        return total / math.log(2) / size

    @torch.no_grad()
    def sample(self, params, eot: int, count: int, length: int, temperature: float, top: int) -> list[list[int]]:
        ids = torch.full((count, 1), eot)
        for _ in range(length):
            logits = self.hidden(params, ids)[:, -1] @ params["embedding"].T
            values, choice = (logits / temperature).topk(top)
            pick = torch.multinomial(values.softmax(-1), 1)
            ids = torch.cat((ids, choice.gather(1, pick)), 1)
        rows = [row[1:] for row in ids.tolist()]
        return [row[: row.index(eot)] if eot in row else row for row in rows]


# ------------------------------------------------------------------------------------------- optimizer


def orthogonalize(g: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrices; g is (batch, rows, columns)."""
    flat = g.shape[1] > g.shape[2]
    x = (g.mT if flat else g).to(torch.bfloat16)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if flat else x).float()


class Optimizer:
    """Muon for the blocks' matrices (each part of a fused one by itself), AdamW for the rest."""

    def __init__(self, params: dict[str, torch.Tensor]) -> None:
        self.params = params
        self.state = {name: torch.zeros_like(p) for name, p in params.items()}
        self.second = {name: torch.zeros_like(p) for name, p in params.items() if not self.is_matrix(name)}
        self.steps = 0

    @staticmethod
    def is_matrix(name: str) -> bool:
        return name.endswith(("qkv", "out", "gate_up", "down"))

    @torch.no_grad()
    def step(self, scale: float) -> None:
        self.steps += 1
        groups: dict[tuple, list] = {}
        momentum = min(0.95, 0.85 + 0.1 * self.steps / 200)
        norm = math.sqrt(sum(p.grad.square().sum().item() for n, p in self.params.items() if not self.is_matrix(n)))
        for name, p in self.params.items():
            g, m = p.grad, self.state[name]
            if self.is_matrix(name):
                m.lerp_(g, 1 - momentum)
                update = g.lerp(m, momentum)
                sizes = {"qkv": (HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD), "gate_up": (INTER, INTER)}
                kind = name.rpartition(".")[2]
                for part, weight in zip(
                    update.split(sizes.get(kind, p.shape[0])),
                    p.split(sizes.get(kind, p.shape[0])),
                    strict=True,
                ):
                    groups.setdefault(tuple(part.shape), []).append((part, weight))
            else:
                g = g * min(1.0, 1.0 / (norm + 1e-6))
                v = self.second[name]
                m.lerp_(g, 0.1)
                v.lerp_(g.square(), 0.05)
                top = m / (1 - 0.9**self.steps)
                p.sub_(scale * ADAM_LR * top / ((v / (1 - 0.95**self.steps)).sqrt() + 1e-10))
            p.grad = None
        for (rows, columns), pairs in groups.items():
            lr = scale * MUON_LR * max(1.0, rows / columns) ** 0.5
            for (_, weight), u in zip(pairs, orthogonalize(torch.stack([g for g, _ in pairs])), strict=True):
                weight.mul_(1 - scale * MUON_LR * DECAY).sub_(u, alpha=lr)


# ---------------------------------------------------------------------------------------------- export


def write_atomic(path: Path, write) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    os.replace(temporary, path)


def export(params: dict[str, torch.Tensor], cache: Path, folder: Path) -> None:
    """The Hub's layout; weights in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["norm"]}
    for i in range(LAYERS):
        prefix = f"model.layers.{i}."
        q, k, v = params[f"{i}.qkv"].split((HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD))
        gate, up = params[f"{i}.gate_up"].chunk(2)
        named = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": params[f"{i}.out"],
        }
        named |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": params[f"{i}.down"]}
        named |= {"input_layernorm": params[f"{i}.norm1"], "post_attention_layernorm": params[f"{i}.norm2"]}
        tensors |= {f"{prefix}{name}.weight": value for name, value in named.items()}
    tensors = {name: value.detach().float().contiguous().clone() for name, value in tensors.items()}
    eot = Tokenizer.from_file(str(cache / "tokenizer.json")).token_to_id(EOT)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": DIM,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOT,
        "eos_token": EOT,
        "unk_token": None,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
    }
    generation = {
        "bos_token_id": eot,
        "eos_token_id": eot,
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 40,
    }
    for name, value in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        write_atomic(folder / name, lambda path, value=value: path.write_text(json.dumps(value, indent=1) + "\n"))
    write_atomic(folder / "tokenizer.json", lambda path: shutil.copyfile(cache / "tokenizer.json", path))
    write_atomic(folder / "model.safetensors", lambda path: save_file(tensors, path, metadata={"format": "pt"}))


# -------------------------------------------------------------------------------------------- training


def interpolate(points, x: float) -> float:
    return float(np.interp(x, [p[0] for p in points], [p[1] for p in points]))


def train(args: argparse.Namespace) -> None:
    out, cache = args.out, args.out / "cache"
    torch.manual_seed(args.seed)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    params = {name: p.requires_grad_() for name, p in new_parameters().items()}
    average = {name: p.detach().clone() for name, p in params.items()}
    optimizer, network = Optimizer(params), Network(not args.no_compile)
    state = {
        "step": 0,
        "tokens": 0,
        "stories": 0,
        "books": 0,
        "used": 0.0,
        "best": 99.0,
        "gap": 99.0,
        "drop": 0.0,
    }
    best = None
    if (out / "checkpoint.pt").exists():
        saved = torch.load(out / "checkpoint.pt", weights_only=True)
        with torch.no_grad():
            for name, p in params.items():
                p.copy_(saved["params"][name])
        average, best, state = saved["average"], saved["best"], saved["state"]
        optimizer.state, optimizer.second, optimizer.steps = saved["first"], saved["second"], state["step"]
        print(f"going on at step {state['step']}, {state['used'] / 60:.1f} minutes used", flush=True)
    before = state["used"]
    budget = args.hours * 3600 - RESERVE
    stories, books = Stories(cache, args.seed), Books(cache, args.seed)
    held = {name: (np.load(cache / f"{name}.npy"), int((cache / f"{name}.bytes").read_text())) for name in ("quick", "held")}
    seen = stories.ids[: len(held["quick"][0])]  # training text, scored to see over-fitting
    seen_size = len(Tokenizer.from_file(str(cache / "tokenizer.json")).decode(seen.tolist()).encode())
    print(f"{sum(p.numel() for p in params.values())} parameters", flush=True)

    def used() -> float:
        return before + time.monotonic() - START

    def log(**record) -> None:
        print(json.dumps(record), flush=True)
        with open(out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def score(part: str) -> dict[str, float]:
        ids, size = held[part]
        return {
            "raw": network.bits_per_byte(params, ids, size),
            "ema": network.bits_per_byte(average, ids, size),
        }

    def save() -> None:
        state["used"] = used()
        record = {"params": params, "average": average, "best": best, "state": state}
        record |= {"first": optimizer.state, "second": optimizer.second}
        write_atomic(out / "checkpoint.pt", lambda path: torch.save(record, path))

    last_eval, last_log, losses, marks = used(), used(), [], state["tokens"]
    while (fraction := used() / budget) < 1 and state["step"] < args.steps:
        rng = np.random.default_rng([args.seed, 3, state["step"]])
        rows = []
        for pick in rng.random(args.batch // CONTEXT) < interpolate(SHARE, fraction):
            kind, source = ("stories", stories) if pick else ("books", books)
            rows.append(source.row(state[kind]))
            state[kind] += 1
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        length = SHORT if fraction < SHORT_UNTIL and state["step"] % 4 else CONTEXT
        inputs, targets = batch[:, :-1].reshape(-1, length), batch[:, 1:].reshape(-1, length)
        loss = network.loss(params, inputs, targets, dtype, state["drop"])
        loss.backward()
        optimizer.step(min(1.0, fraction / WARMUP) * (1 - fraction))
        state["step"] += 1
        state["tokens"] += args.batch
        with torch.no_grad():
            rate = max(1 - EMA, 1 / (state["step"] + 1))
            torch._foreach_lerp_(list(average.values()), list(params.values()), rate)
        losses.append(loss.item())
        now = used()
        if now - last_log > args.log_every:
            speed = (state["tokens"] - marks) / (now - last_log)
            log(step=state["step"], used=round(now), fraction=round(now / budget, 4), tokens=state["tokens"],
                loss=round(float(np.mean(losses)), 4), tokens_per_second=round(speed),
                epochs=round(state["stories"] * CONTEXT / len(stories.ids), 2))  # fmt: skip
            if not math.isfinite(losses[-1]):
                raise SystemExit("the loss is not finite")
            last_log, losses, marks = now, [], state["tokens"]
        if now - last_eval > args.eval_every:
            result = score("quick")
            kind = min(result, key=result.get)
            over = network.bits_per_byte(average, seen, seen_size)
            if result[kind] < state["best"]:
                state["best"] = result[kind]
                source = params if kind == "raw" else average
                best = {name: p.detach().clone() for name, p in source.items()}
                export(best, cache, out / "export")
            gap = result["ema"] - over
            state["gap"] = min(state["gap"], gap)
            if gap > state["gap"] + GAP:
                state["drop"] = args.drop
            save()
            last_eval = now
            log(step=state["step"], used=round(now), held_raw=round(result["raw"], 4),
                held_ema=round(result["ema"], 4), seen_ema=round(over, 4), drop=state["drop"],
                best=round(state["best"], 4), seconds=round(used() - now, 1))  # fmt: skip
    result = score("held")
    finals = {"raw": params, "ema": average}
    if best is not None:
        result["best"], finals["best"] = network.bits_per_byte(best, *held["held"]), best
    kind = min(result, key=result.get)
    final = {name: p.detach().clone() for name, p in finals[kind].items()}
    export(final, cache, out / "export")
    log(
        final=kind,
        used=round(used()),
        tokens=state["tokens"],
        **{f"full_{k}": round(v, 4) for k, v in result.items()},
    )
    tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    rows = network.sample(final, tokenizer.token_to_id(EOT), 10, 220, 0.8, 40)
    text = "\n\n".join(f"=== sample {i + 1} ===\n{tokenizer.decode(row)}" for i, row in enumerate(rows))
    write_atomic(out / "samples.txt", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    save()
    log(done=True, used=round(used()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model (see the docstring of this file).")
    parser.add_argument("--data", type=Path, required=True, help="folder with the .txt.xz files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the logs and the checkpoint")
    parser.add_argument("--hours", type=float, default=2.08, help="time for everything, from the first start")
    parser.add_argument("--batch", type=int, default=8192, help="tokens in a step, a multiple of 512")
    parser.add_argument("--drop", type=float, default=0.1, help="dropout at the residual branches, once over-fitting shows")
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16", help="type of the matrix products")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--eval-every", type=float, default=300, help="seconds between scorings (and checkpoints)")
    parser.add_argument("--log-every", type=float, default=30, help="seconds between lines of the log")
    parser.add_argument("--steps", type=int, default=1 << 60, help="stop early (for trials)")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile (no g++)")
    parser.add_argument("--prepare-only", action="store_true", help="stop after the token cache")
    args = parser.parse_args()
    os.nice(19)
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    prepare(args.data, args.out)
    if not args.prepare_only:
        train(args)


if __name__ == "__main__":
    main()
