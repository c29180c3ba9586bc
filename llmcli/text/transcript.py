"""A conversation's text with its tokens, which grows turn by turn: what has tokens keeps them.

The tokens that a model wrote need not be those that a tokenizer makes of their text: it may write a word in two pieces. A
conversation that is encoded anew for each turn would then differ from what was computed, in the middle, and all behind it would
be computed again. So the text is kept in pieces, each with its tokens, the answers' as they were written. A new text has the
tokens of all pieces that it begins with, and only the rest is encoded. Where a template writes an earlier answer differently (it
leaves out thoughts, or trims), the text differs there, and is encoded from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Set

from llmcli.text.tokenizer import Stream, Tokenizer


class Transcript:
    """The text so far, as pieces with their tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces: list[tuple[str, list[int]]] = []

    def encode(self, text: str, encode: Callable[[str, bool], list[int]]) -> list[int]:
        """The tokens of text, which becomes the text so far. encode: makes the tokens of a text; its second argument says whether
        that is the beginning."""
        ids: list[int] = []
        kept = end = 0
        for piece, tokens in self._pieces:
            if not text.startswith(piece, end):
                break
            ids += tokens
            end += len(piece)
            kept += 1
        rest = text[end:]
        if kept and rest and not self._may_begin_with(rest):
            kept, rest, ids = 0, text, []
        del self._pieces[kept:]
        if rest:
            tokens = encode(rest, not kept)
            self._pieces.append((rest, tokens))
            ids += tokens
        return ids

    def add(self, text: str, ids: list[int], shown: Set[int] = frozenset()) -> None:
        """The answer that was written behind the text so far. Where its tokens are not its text (it was cut at a stop string, or
        inside a character) they are not kept. shown: control tokens that have text."""
        before = [number for _, tokens in self._pieces for number in tokens]
        stream = Stream(self._tokenizer, before, shown)
        if text and "".join(map(stream.feed, ids)) + stream.finish() == text:
            self._pieces.append((text, ids))

    def _may_begin_with(self, text: str) -> bool:
        """Whether a piece may begin so: some tokenizers put a space before any text, but none before a control token."""
        return not self._tokenizer.strips_start or text.startswith(tuple(self._tokenizer.markup()))
