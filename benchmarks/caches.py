"""What the KV cache's type costs: KL divergence of quantized weights' next-token distributions with each cache, in nats.

    python benchmarks/caches.py NAME text.txt [--quant int8 --quant int4] [--window 1024] [--tokens 4096]

The text's first tokens are read in windows that do not overlap. Each distribution is compared with the float model's (NAME:none, with an
f32 cache), and with that of the same weights with an f32 cache: so far any other rounding carries activations in int8. Intervals are 95%,
with blocks of 256 neighbouring tokens as one observation, as in `llm diff`.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmcli import engine
from llmcli.compare import divergences
from llmcli.intervals import Series
from llmcli.kv import DTYPES
from llmcli.past import Past
from llmcli.scoring import predictions


def logits(past: Past, ids: list[int]) -> npt.NDArray[np.float32]:
    """[T - 1, V] of a window of T tokens; copies, as each step overwrites the last one's."""
    return np.concatenate([result.logits.copy() for _, result in predictions(past, ids, 1)])


def shown(series: Series) -> str:
    return f"{series.mean:.6f} (± {series.half:.6f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("text", type=Path)
    parser.add_argument("--quant", action="append", help="int8 and int4 unless given")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    with ExitStack() as stack:

        def opened(quant: str, kv: str) -> Past:
            model = stack.enter_context(engine.opened(f"{options.name}:{quant}", context=options.window, kv=kv))
            return stack.enter_context(Past(model))

        exact = opened("none", "f32")
        models = {(quant, kv): opened(quant, kv) for quant in options.quant or ("int8", "int4") for kv in DTYPES}
        sums = {key: (Series(), Series()) for key in models}
        ids = exact.engine.tokenizer.encode(options.text.read_text("utf-8"))[: options.tokens]
        for start in range(0, len(ids) - 1, options.window):
            part = ids[start : start + options.window]
            right, plain = logits(exact, part), dict[str, npt.NDArray[np.float32]]()
            for (quant, kv), past in models.items():
                found = logits(past, part)
                for series, other in zip(sums[quant, kv], (right, plain.setdefault(quant, found)), strict=True):  # f32 is the first cache
                    series.add(divergences(other, found).tolist())
    print(f"{options.name}: {len(ids):,} tokens in windows of {options.window}")
    for (quant, kv), (first, second) in sums.items():
        print(f"{quant + ', ' + kv:<14}{shown(first):>24}{shown(second):>24}", flush=True)


if __name__ == "__main__":
    main()
