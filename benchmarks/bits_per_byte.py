"""Bits per byte of a text under a model: how well it predicts, whatever its tokenizer.

    python benchmarks/bits_per_byte.py MODEL TEXT[.xz] [--characters 200000] [--window N] [--stride N]

The text's first characters are read in windows of the model's context; each window but the first scores only the tokens
beyond the last one's, so that every token sees at least window - stride tokens before it (stride: half a window).
`<|endoftext|>` in the text is the model's own end token. Bits of all tokens but the first, over all bytes of the text.
"""

from __future__ import annotations

import argparse
import lzma
import math
from pathlib import Path

from llmcli import engine
from llmcli.scoring import score


def bits_per_byte(model: engine.Engine, text: str, window: int, stride: int) -> tuple[float, int]:
    """(bits per byte, tokens scored)."""
    ids = model.tokenizer.encode(text, special=True)
    bits = math.fsum(token.bits for token in score(model, ids, window=window, stride=stride) if token.rank)
    return bits / len(text.encode()), len(ids) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--characters", type=int, default=200_000)
    parser.add_argument("--window", type=int)
    parser.add_argument("--stride", type=int)
    options = parser.parse_args()
    opened = lzma.open(options.text, "rt", encoding="utf-8") if options.text.suffix == ".xz" else options.text.open(encoding="utf-8")
    with opened as file:
        text = file.read(options.characters)
    with engine.opened(options.model) as model:
        window = options.window or model.context
        stride = options.stride or window // 2
        found, tokens = bits_per_byte(model, text, window, stride)
    print(f"{model.name}: {found:.4f} bits per byte over {tokens:,} tokens, window {window}, stride {stride}")


if __name__ == "__main__":
    main()
