"""Models that think before they answer: their prompts, and their thoughts told from their answers.

A style is how a model marks thoughts; it is recognised by the markers in its template or tokenizer, never by the model's name.
    prompt      tokens of a conversation, with the switch that the template has, or the block of thoughts closed for it
    Splitter    a stream of text in, pieces out: every character in one piece, wherever the stream is cut
To add a style, add a row to STYLES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llmcli.text.template import Message, encode_marked, render_marked
from llmcli.text.tokenizer import Tokenizer

Think = Literal["auto", "off", "show"]
Encode = Callable[[str, str], list[int]]
Part = Literal["thought", "answer", "marker"]
"""A marker is markup of the model's format, with the empty lines around it: neither a thought nor an answer."""


class Piece(NamedTuple):
    part: Part
    text: str


@dataclass(frozen=True)
class Style:
    opens: tuple[str, ...]
    """What begins thoughts; empty: a text begins with them."""
    closes: tuple[str, ...]
    """What ends thoughts, or shows that there are none."""
    skip: str
    """What the model reads after an opening prompt when it is to answer at once."""
    dropped: tuple[str, ...] = ()
    """Other markup, in thoughts and answers."""
    again: bool = False
    """Whether thoughts may also begin behind a piece of the answer."""

    @property
    def markers(self) -> tuple[str, ...]:
        return (*self.opens, *self.closes, *self.dropped)

    def known_to(self, text: str) -> bool:
        """Whether a template, or a list of tokens, has this style."""
        return any(marker in text for marker in (self.opens or self.closes))


def _pair(opening: str, closing: str, gap: str = "\n\n") -> Style:
    """gap: what stands between the two in an empty block, and behind it."""
    return Style((opening,), (closing,), f"{opening}{gap}{closing}{gap}")


STYLES = (
    Style(
        ("<|channel|>analysis<|message|>",),
        ("<|channel|>final<|message|>",),
        "<|channel|>final<|message|>",
        ("<|end|>", "<|start|>assistant", "<|channel|>commentary<|message|>"),
        again=True,
    ),
    Style(("to=self<|message|>",), ("to=user<|message|>",), " to=user<|message|>", ("<|eom|>", "<|start|>assistant"), again=True),
    Style((), ("[BEGIN FINAL RESPONSE]",), "[BEGIN FINAL RESPONSE]\n", ("[END FINAL RESPONSE]",)),
    _pair("<|channel>thought", "<channel|>", "\n"),
    _pair("<|START_THINKING|>", "<|END_THINKING|>", ""),
    _pair("<|inner_prefix|>", "<|inner_suffix|>", ""),
    _pair("<seed:think>", "</seed:think>"),
    _pair("[THINK]", "[/THINK]", ""),
    _pair("<think>", "</think>"),
)
"""The first one that a model knows is its own."""

_ON = {"enable_thinking": True, "thinking": True}
_OFF = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
"""What templates call their switches. One that has another name for it, or none, ignores them."""


@dataclass(frozen=True)
class Prompt:
    """A conversation as a model reads it, ready for its answer."""

    ids: list[int]
    style: Style | None = None
    """None: a model that does not think, as far as its template and its tokens tell."""
    inside: bool = False
    """Whether the prompt itself opens the thoughts."""
    shown: frozenset[int] = frozenset()
    """Control tokens of the style, whose names `generate` has to show."""

    def splitter(self) -> Splitter:
        return Splitter(self.style, self.inside)


def prompt(
    tokenizer: Tokenizer, template: str, messages: Sequence[Message], think: Think = "auto", encode: Encode | None = None, **variables: Any
) -> Prompt:
    """The tokens of a conversation. think: 'off' has the model answer at once; the others are the same here. encode: makes tokens of
    the marked text, for who knows some of them already.

    Raises TemplateError, InputError.
    """
    text, mark = render_marked(tokenizer, template, messages, **variables)
    style = find_style(template, tokenizer.markup())
    if think == "off":
        off, _ = render_marked(tokenizer, template, messages, **{**variables, **_OFF})
        on, _ = render_marked(tokenizer, template, messages, **{**variables, **_ON})
        switched, text = off != on, off
        if style is not None and (_opened(style, text) or not switched):
            opening = next((opening for opening in style.opens if text.rstrip().endswith(opening)), "")
            text = (text.rstrip().removesuffix(opening) if opening else text) + style.skip
    ids = encode(text, mark) if encode else encode_marked(tokenizer, text, mark)
    if style is None:
        return Prompt(ids)
    names = ((number, tokenizer.token_text(number)) for number in tokenizer.control)
    shown = frozenset(number for number, name in names if name and any(name in marker for marker in style.markers))
    return Prompt(ids, style, _opened(style, text), shown)


def find_style(template: str, markup: Iterable[str]) -> Style | None:
    """The style of a model with this template and these tokens."""
    known = "\n".join(markup)
    return next((style for style in STYLES if style.known_to(template)), next((style for style in STYLES if style.known_to(known)), None))


def _opened(style: Style, text: str) -> bool:
    """Whether a prompt ends inside thoughts."""
    end = text.rstrip()
    return end.endswith(style.opens) if style.opens else not end.endswith(style.closes)


class Splitter:
    """Tells thoughts from answers in a stream of text. What it gives back are all characters that it got, each once, in order; the
    pieces depend on the characters alone, not on how they were cut (but that a piece may come in several parts).

    Thoughts begin at the beginning of the text (or behind any message, where the style says so): an answer may well be about
    `<think>`. Spaces and newlines around a marker are of the marker.
    """

    def __init__(self, style: Style | None = None, inside: bool = False) -> None:
        self._style = style
        self._state: Literal["start", "thought", "answer"] = "thought" if inside else "start" if style is not None else "answer"
        self._held = ""
        self._after_marker = inside

    @property
    def thinking(self) -> bool:
        """Whether the text so far ends inside thoughts."""
        return self._state == "thought"

    @property
    def part(self) -> Literal["thought", "answer"]:
        """Of which of the two what comes next is."""
        return "thought" if self.thinking else "answer"

    def feed(self, text: str) -> list[Piece]:
        """What is decided now."""
        self._held += text
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return _joined(pieces)

    def finish(self) -> list[Piece]:
        """What was held back for a marker that never became whole."""
        rest, self._held = self._held, ""
        return _joined([Piece(self.part, rest)])

    def _step(self, pieces: list[Piece]) -> bool:
        """Decides about the beginning of what is held. False when there is nothing more to decide."""
        if self._after_marker:
            self._take(pieces, "marker", _spaces(self._held))
            self._after_marker = not self._held
        if not self._held:
            return False
        spaces = _spaces(self._held) if self._state == "start" else 0
        markers = self._markers()
        ends = [(at + len(marker), at, marker) for marker in markers if (at := self._held.find(marker)) >= 0]
        found = min(ends, default=None)
        if self._state == "start" and (found is None or found[1] > spaces):
            body = self._held[spaces:]
            if any(marker.startswith(body) for marker in markers):
                return False  # also where it is all spaces
            self._state = "answer"
            return True
        if found is None:
            self._take(pieces, self.part, self._decided(markers))
            return False
        end, at, marker = found
        before = at if self._state == "answer" else len(self._held[:at].rstrip())
        self._take(pieces, self.part, before)
        self._take(pieces, "marker", end - before)
        self._enter(marker)
        return True

    def _enter(self, marker: str) -> None:
        assert self._style is not None
        was = self._state
        if marker in self._style.opens:
            self._state = "thought"
        elif marker in self._style.closes:
            self._state = "answer"
        self._after_marker = was != "answer" or self._state == "thought"

    def _markers(self) -> tuple[str, ...]:
        """What counts as a marker here."""
        style = self._style
        if style is None:
            return ()
        if self._state == "start" or style.again:
            return style.markers
        return (*style.closes, *style.dropped) if self._state == "thought" else style.dropped

    def _decided(self, markers: tuple[str, ...]) -> int:
        """How many of the held characters cannot be of a marker, or of the spaces before one."""
        held, longest = self._held, max(map(len, markers), default=1) - 1
        lengths = range(min(longest, len(held)), 0, -1)
        begun = next((length for length in lengths if any(marker.startswith(held[-length:]) for marker in markers)), 0)
        free = held[: len(held) - begun]
        return len(free) if self._state == "answer" else len(free.rstrip())

    def _take(self, pieces: list[Piece], part: Part, count: int) -> None:
        if count:
            pieces.append(Piece(part, self._held[:count]))
            self._held = self._held[count:]


def _spaces(text: str) -> int:
    return len(text) - len(text.lstrip())


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of the same part as one, without empty ones."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].part == piece.part:
            joined[-1] = Piece(piece.part, joined[-1].text + piece.text)
        elif piece.text:
            joined.append(piece)
    return joined
