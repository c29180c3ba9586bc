"""ALiBi: instead of positions, each head is less attentive to keys the further back they are (Press et al., arXiv 2108.12409)."""

from __future__ import annotations


def slopes(heads: int, most: float = 8.0) -> tuple[float, ...]:
    """One slope a head: what a query's logit loses for each position to the key. 2^(-most i / n) for i = 1 .. n, where n
    heads are a power of two; other counts take those of the power below and then every second one of the power above."""
    below = 1 << (heads.bit_length() - 1)
    plain = [2.0 ** (-most * i / below) for i in range(1, below + 1)]
    between = [2.0 ** (-most * i / (2 * below)) for i in range(1, 2 * below, 2)]
    return tuple((plain + between)[:heads])
