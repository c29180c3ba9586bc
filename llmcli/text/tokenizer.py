"""Text to tokens and back: a `tokenizer.json`, run by the `tokenizers` library, with three promises of our own.

    encode   text of a user never becomes a control token: `<|im_end|>` typed in is nine plain characters
    bytes    every token has its bytes, also where a token is half a character
    stream   tokens fed one by one give the text that all of them give at once, never half a character

It knows no model and no templates. Decoding is done here, from bytes: the library's own decoder works on whole texts only
and loses which bytes a token had.
"""

from __future__ import annotations

import codecs
import contextlib
import functools
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import tokenizers

from llmcli.errors import CorruptFile, InputError, LlmError
from llmcli.text.decoding import content_bytes, decoder_steps, flatten, strips_start

LARGEST_FILE = 128 * 2**20
"""Bytes of the largest tokenizer.json that is read; the largest in use have some 35 MB."""
LONG = 20_000
"""Characters that take the library a tenth of a second or more."""
LARGEST_GROWTH = 64
"""Characters that a tokenizer may make of one before it looks for tokens."""


class Tokenizer:
    """data: a tokenizer.json. config: the tokenizer_config.json beside it, where there is one.

    Raises CorruptFile for data that is no tokenizer, UnsupportedModel for one that decodes in a way that is unknown here.
    """

    def __init__(self, data: bytes, config: Mapping[str, Any] | None = None) -> None:
        config = config or {}
        self._library = _load(data)
        added = self._library.get_added_tokens_decoder()
        self.control = frozenset(number for number, token in added.items() if token.special)
        """Ids that steer the model and are no text of an answer: beginning, end, turns."""
        self._added = frozenset(added)
        self._markup = _treat_markup_as_special(self._library, added)
        self._steps = decoder_steps(self._library)
        self.strips_start = strips_start(self._steps)
        """Whether the space before a text's first word is the tokenizer's and not the text's."""
        self.roles = {name: text for name in config if name.endswith("_token") and (text := _name(config[name])) is not None}
        """What the configuration calls tokens by a role: bos_token, eos_token, pad_token, and roles of its own."""
        self.bos = self.roles.get("bos_token")
        self.eos = self.roles.get("eos_token")
        self.bos_id = self._id(self.bos)
        self.eos_id = self._id(self.eos)
        self._prefix = self._find_prefix(config.get("add_bos_token"))
        self._bytes = functools.lru_cache(maxsize=None)(self._find_bytes)
        self._worker: threading.Thread | None = None

    def encode(self, text: str, special: bool = False, bos: bool = True) -> list[int]:
        """The tokens of text. special: control tokens written in it are control tokens, not plain text. bos: the beginning of
        text goes first where this tokenizer does so. Raises InputError for text that is not Unicode (lone surrogates), CorruptFile
        where the tokenizer's rules fail."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError("the text is not valid", f"no character at position {error.start:,} (bytes that are no UTF-8)") from error
        if self._worker:  # of a text whose reader was interrupted: two may not use the library
            self._worker.join()
        try:
            self._library.encode_special_tokens = not special
            encoding = self._encoding(text)
        except BaseException as error:
            raise CorruptFile("tokenizer.json", f"its rules fail on this text: {_reason(error)}") from error
        ids: list[int] = encoding.ids
        if not special and not self._markup.keys().isdisjoint(ids):
            ids = self._spelled(text, encoding)
        return [*self._prefix, *ids] if bos else ids

    def _encoding(self, text: str) -> tokenizers.Encoding:
        """What the library makes of the text. A long one takes seconds, in which it would keep Ctrl-C away: another thread waits."""
        if len(text) < LONG:
            return self._library.encode(text, add_special_tokens=False)
        found: list[tokenizers.Encoding | BaseException] = []

        def work() -> None:
            try:
                found.extend(self._library.encode_batch([text], add_special_tokens=False))
            except BaseException as error:
                found.append(error)

        self._worker = threading.Thread(target=work, name="llm-tokenizer", daemon=True)
        self._worker.start()
        self._worker.join()
        self._worker = None
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    def decode(self, ids: Iterable[int], after: Sequence[int] = ()) -> str:
        """The text of tokens that follow the tokens `after`; control tokens have none. Bytes that are no UTF-8 become U+FFFD."""
        stream = Stream(self, after)
        return "".join(map(stream.feed, ids)) + stream.finish()

    def token_bytes(self, number: int) -> bytes:
        """What this token adds to a text, in UTF-8 (perhaps a part of a character); of a control token its name; of an
        unused id nothing."""
        return self._bytes(number)

    def token_text(self, number: int) -> str:
        """The token's bytes as text, for showing it; broken characters are U+FFFD."""
        return self._bytes(number).decode("utf-8", "replace")

    def named(self, text: str) -> list[int]:
        """The ids whose bytes are exactly this text's, or whose name it is; mostly one or none. Looks at the whole vocabulary."""
        data = text.encode()
        return [number for number in range(self.size) if data and self._bytes(number) == data]

    def unused(self, count: int) -> list[int]:
        """The ids below count that are no token."""
        return [number for number in range(count) if self._library.id_to_token(number) is None]

    @functools.cached_property
    def size(self) -> int:
        """One more than the largest id."""
        return max(self._library.get_vocab().values(), default=-1) + 1

    def markup(self) -> list[str]:
        """How all control tokens, and others that are written like markup, are spelled."""
        return list(self._markup.values())

    def _spelled(self, text: str, encoding: tokenizers.Encoding) -> list[int]:
        """The tokens with every control token spelled in plain characters that is written out in text: word and Unigram models
        know its name as a piece of text. (Their token for unknown characters is not written out, and stays.)"""
        ids: list[int] = []
        for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            name = self._markup.get(number)
            if name is None or text[start:end].strip() != name:
                ids.append(number)
                continue
            for character in name:
                ids += [piece for piece in self._library.encode(character, add_special_tokens=False).ids if piece != number]
        return ids

    def _id(self, content: str | None) -> int | None:
        return None if content is None else self._library.token_to_id(content)

    def _find_prefix(self, add_bos: object) -> list[int]:
        """What goes before every text: as the configuration says or, where it is silent, as the file's post-processor does."""
        if add_bos is False:
            return []
        if add_bos is True and self.bos_id is not None:
            return [self.bos_id]
        encoding = self._library.encode("a")
        count = next((i for i, mask in enumerate(encoding.special_tokens_mask) if not mask), 0)
        return encoding.ids[:count]

    def _find_bytes(self, number: int) -> bytes:
        content = self._library.id_to_token(number) if 0 <= number < 2**32 else None
        if content is None:
            return b""
        if number in self._added:
            return content.encode()
        return content_bytes(content, self._steps)


class Stream:
    """Tokens in, complete text out. after: the tokens before the first one, because a text's first space may not count; shown:
    control tokens that come out by their names."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = (), shown: Set[int] = frozenset()) -> None:
        self._tokenizer = tokenizer
        self._silent = tokenizer.control - shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer.strips_start and (not after or after[-1] in tokenizer.control)

    def feed(self, number: int) -> str:
        """The text that is complete now: '' inside a character."""
        return self.feed_bytes(number)[1]

    def feed_bytes(self, number: int) -> tuple[bytes, str]:
        """(the bytes that this token adds to the text, the text that is complete now)."""
        if number in self._silent:
            return b"", ""
        data = self._tokenizer.token_bytes(number)
        if self._at_start and data:
            self._at_start = False
            data = data.removeprefix(b" ")
        return data, self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that never became complete, else ''."""
        return self._decoder.decode(b"", final=True)


def _load(data: bytes) -> tokenizers.Tokenizer:
    if len(data) > LARGEST_FILE:
        raise CorruptFile("tokenizer.json", f"{len(data):,} bytes, more than any tokenizer has ({LARGEST_FILE:,})")
    try:
        with _silent():
            library = tokenizers.Tokenizer.from_buffer(data)
            # Truncation and padding are settings of somebody's training run.
            library.no_truncation()
            library.no_padding()
            _check_growth(library)
            library.encode("a")
    except LlmError:
        raise
    except BaseException as error:
        raise CorruptFile("tokenizer.json", _reason(error)) from error
    return library


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Sends the process's standard error nowhere: the library's panics print there before they become exceptions."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except OSError:  # no more files may be open
        yield
        return
    try:
        saved = os.dup(2)
    except OSError:  # it is closed, or the same
        os.close(nowhere)
        yield
        return
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(nowhere)
        os.close(saved)


def _check_growth(library: tokenizers.Tokenizer) -> None:
    """A few replacing rules in a row can blow a word up to gigabytes. Real ones put one or two characters for one."""
    factor = 1
    for step in flatten(library.normalizer):
        factor *= max(1, len(step.get("content", "")), len(step.get("prepend", "")))
    if factor > LARGEST_GROWTH:
        raise CorruptFile("tokenizer.json", f"its normalizer makes texts {factor:,} times longer")


def _reason(error: BaseException) -> str:
    """Why the library failed, in one line. What is not its failure goes on upwards: a panic of its Rust code arrives as a
    BaseException of a class that cannot be imported."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    if isinstance(error, MemoryError):
        raise error
    return " ".join(str(error).split())[:200]


def _treat_markup_as_special(library: tokenizers.Tokenizer, added: Mapping[int, tokenizers.AddedToken]) -> dict[int, str]:
    """Makes `encode_special_tokens` hold for every added token written like markup: models steer by `<think>` and
    `<tool_call>` too, which their files call ordinary. Runs of spaces and added words stay what they are.

    Returns the names of all control tokens and markup, by id."""
    markup = {}
    for number, token in added.items():
        if token.special or (token.content[:1] in "<[{|" and token.content[-1:] in ">]}|"):
            markup[number] = token.content
            if not token.special:
                token.special = True
                library.add_special_tokens([token])
    return markup


def _name(token: object) -> str | None:
    """A token of tokenizer_config.json: its text, or a record with the text."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
