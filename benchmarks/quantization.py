"""What quantization costs: KL divergence of each format's next-token distributions from the float model's.

    python benchmarks/quantization.py MODEL_FOLDER --text stories.txt.xz --text novel.txt.xz [--tokens 10240]

Every text gives the same number of tokens, from its beginning, in windows of the model's context. The embedding and the
head are int8 in all formats, as in our files; `int4_uniform` is the plainest int4 (evenly spaced codes, no search), the
mark for the others. Activations are int8 in groups of 32, so the figures are those of a run, not of weights alone.
"""

from __future__ import annotations

import argparse
import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcli import acquire
from llmcli.backends import backend
from llmcli.backends.backend import Batch
from llmcli.formats import format as formats
from llmcli.formats.format import PackedTensor, aligned
from llmcli.kv import BLOCK, KVCache
from llmcli.models import decoder
from llmcli.models.spec import Spec
from llmcli.weights import packed
from llmcli.weights.writer import FORMATS

Logits = npt.NDArray[np.float32]
CHARACTERS = 200_000
"""Of each text, from its beginning: what training leaves out of the first of the stories."""


def windows(path: Path, folder: Path, size: int, count: int) -> list[npt.NDArray[np.int32]]:
    """`count` windows of `size` tokens of a text."""
    from llmcli.text.tokenizer import Tokenizer

    opened = lzma.open(path, "rt", encoding="utf-8") if path.suffix == ".xz" else path.open(encoding="utf-8")
    with opened as file:
        text = file.read(CHARACTERS)
    ids = Tokenizer((folder / "tokenizer.json").read_bytes()).encode(text.replace("<|endoftext|>", "\n"), bos=False)
    return [np.array(ids[i * size : (i + 1) * size], np.int32) for i in range(count)]


def repacked(weights: dict[str, PackedTensor], plan_kinds: dict[str, str], matrix: str) -> dict[str, PackedTensor]:
    """Float weights in another format: `matrix` for matrices, int8 for embedding and head."""
    result = {}
    for name, tensor in weights.items():
        target = {"matrix": matrix, "experts": matrix, "embedding": "int8", "head": "int8"}.get(plan_kinds[name])
        if target is None:
            result[name] = tensor
            continue
        rows, columns = tensor.shape[-2:]
        data = formats.get(target).pack(formats.get(tensor.format).unpack(tensor.data, rows, columns))
        moved = aligned(len(data))
        moved[:] = data
        result[name] = PackedTensor(target, tensor.shape, moved)
    return result


def distributions(runner: backend.Runner, cache: KVCache, texts: list[npt.NDArray[np.int32]]) -> Iterator[Logits]:
    """Logits [T, V] of every window."""
    for ids in texts:
        sequence = cache.sequence()
        yield runner.run(Batch.of(sequence, ids, "all")).logits.copy()
        sequence.close()


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    values = logits.astype(np.float64)
    values -= values.max(-1, keepdims=True)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def divergences(p: Logits, q: Logits) -> npt.NDArray[np.float64]:
    """KL(p || q) of each row, in nats."""
    a, b = log_softmax(p), log_softmax(q)
    return (np.exp(a) * (a - b)).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--tokens", type=int, default=10_240)
    parser.add_argument("--backend", default="cpu")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        path = acquire.import_model(options.folder, "none", "float", path=Path(work) / "float-none.safetensors")
        with packed.open(path) as file:
            spec = Spec.from_json(file.spec)
            weights = file.load()
    plan = decoder.plan(spec, spec.context)
    kinds = {name: weight.kind for name, weight in plan.weights.items()}
    count = options.tokens // spec.context // len(options.text)
    texts = [window for text in options.text for window in windows(text, options.folder, spec.context, count)]

    def run(chosen: dict[str, PackedTensor], kv: str) -> list[Logits]:
        cache = KVCache(plan.cache, -(-spec.context // BLOCK), kv)
        runner = backend.get(options.backend).load(plan, chosen, cache)
        try:
            return list(distributions(runner, cache, texts))
        finally:
            runner.close()

    exact = run(weights, "f32")
    total = sum(map(len, texts))
    print(f"{options.folder.name}: {total:,} tokens, windows of {spec.context}, KL divergence from float in nats")
    print(f"{'format':<14}{'mean':>10}{'+-95%':>10}{'median':>10}{'99.9%':>10}{'top-1 same':>12}{'of uniform':>12}")
    uniform = 0.0
    for name in ("int8", "int4_uniform", FORMATS["int4"]["matrix"]):
        found = run(repacked(weights, kinds, name), "f16")
        kl = np.concatenate([divergences(p, q) for p, q in zip(exact, found, strict=True)])
        same = np.concatenate([p.argmax(-1) == q.argmax(-1) for p, q in zip(exact, found, strict=True)]).mean()
        interval = 1.96 * kl.std(ddof=1) / np.sqrt(len(kl))
        uniform = kl.mean() if name == "int4_uniform" else uniform
        share = f"{kl.mean() / uniform:12.3f}" if uniform else f"{'':>12}"
        print(f"{name:<14}{kl.mean():10.6f}{interval:10.6f}{np.median(kl):10.6f}{np.quantile(kl, 0.999):10.5f}{same:12.4f}{share}")


if __name__ == "__main__":
    main()
