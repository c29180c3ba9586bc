"""Attention weights as a page: a text and a map of its tokens, with pickers of layer and head.

One file without network or framework: attention.css and attention.js go into it whole, and its policy allows these two and nothing
else. The tokens' names are hostile, so they enter as JSON that cannot end its element, which attention.js shows as text. A share is a
whole number of 65,535ths; those of one head, row by row as far as each reaches, are one string in base64, read when it is looked at.
"""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable, Sequence

from llmcli.errors import InputError
from llmcli.pages import document

ONE = 65535
MOST = 64 << 20
"""Bytes of shares in a page: what a browser still opens at once."""


class Page:
    """Collects shares and writes the page. names: of the text's tokens, with spaces and control characters shown; heads: how many
    each layer has. Raises InputError where the page would be too large."""

    def __init__(self, names: Sequence[str], heads: Sequence[int]) -> None:
        size = sum(heads) * len(names) * (len(names) + 1)
        if size > MOST:
            most = int((MOST / sum(heads)) ** 0.5)
            raise InputError(f"a page of {len(names):,} tokens", f"there is room for {most:,} of this model", "Give it a shorter text")
        self._names = list(names)
        self._shares = [[array("H") for _ in range(count)] for count in heads]

    def add(self, layer: int, head: int, rows: Sequence[Sequence[float]]) -> None:
        """The next tokens' rows: how each spreads over the tokens up to itself, shares from 0 to 1."""
        for row in rows:
            self._shares[layer][head].extend(min(ONE, round(ONE * share)) for share in row)

    def write(self, write: Callable[[str], None], title: str, layer: int, head: int | None) -> None:
        """The whole page, which shows this layer and head first; None: the mean of the heads."""
        style, script = document.part("attention.css"), document.part("attention.js")
        write(
            f"{document.opening(title, style, script)}<header><h1>{document.heading(title)}</h1>\n"
            f'<p><label>Layer <select class="layer"></select></label> <label>Head <select class="head"></select></label></p>\n'
            f"<p>Point at a token, or go through the text with Tab and the arrow keys: the colours show where it looks. "
            f"Rows of the map are tokens that look, columns are tokens that are looked at.</p></header>\n"
            f'<main></main>\n<p class="shown" role="status"></p>\n<canvas role="img"></canvas>\n<footer class="legend"></footer>\n'
        )
        write(document.data("terms", {"names": self._names, "layer": layer, "head": head, "one": ONE}, ascii=True) + "\n")
        for heads in self._shares:
            write(document.data("layer", [_base64(shares) for shares in heads]) + "\n")
        write(f"<script>{script}</script>\n</body>\n</html>\n")


def _base64(shares: array[int]) -> str:
    """Little-endian on every machine."""
    return base64.b64encode(b"".join(share.to_bytes(2, "little") for share in shares)).decode()
