"""The Python interface: a model as an object. `docs/python.md` shows it at work; the command line says the same with the same names.

    with llmcli.load("smollm2:int4") as model:
        for step in model.generate("Once upon a time", max_tokens=50):
            print(step.text, end="")

Everything here is checked, locked and closed in order; what computes is `generate.py`, `scoring.py` and `choices.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack, cast

from llmcli import engine as engines
from llmcli import scoring
from llmcli.choices import Choice, choose, joined
from llmcli.errors import UsageError
from llmcli.generate import NextTokens, Settings, Step, generate, next_tokens, settings_for
from llmcli.past import Past, check_known
from llmcli.responses import MOST, Rank, Response, best, rank_by
from llmcli.text.template import Message
from llmcli.text.thinking import Prompt
from llmcli.text.tokenizer import Stream

__all__ = ["Model", "Options", "Score", "ScoredToken", "Token", "load"]

Text = str | Sequence[int]
"""A text, or the ids of its tokens."""

KV = ("auto", "f32", "f16", "int16", "int8")
"""Types of the KV cache."""


class Options(TypedDict, total=False):
    """How a token is drawn. What is left out or None comes from the model's generation_config.json, else from `sampling/settings.py`."""

    temperature: float | None
    """0 to 100; 0 always takes the likeliest token (0.8)."""
    top_k: int | None
    """Keeps the so many likeliest tokens; 0: all (40)."""
    top_p: float | None
    """0 to 1: keeps the likeliest tokens that make up this probability (0.95)."""
    min_p: float | None
    """0 to 1: keeps tokens at least so many times as likely as the likeliest (0.05)."""
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: dict[int, float] | None
    """Token id -> what is added to its logit; -inf bans it."""


@dataclass(frozen=True)
class Token:
    """A piece of a text."""

    id: int
    text: str
    """Its bytes as UTF-8; broken characters are U+FFFD."""
    bytes: bytes


@dataclass(frozen=True)
class ScoredToken(Token):
    """A token of a text that is given. The first one follows nothing: its numbers are NaN and its rank 0."""

    position: int
    logprob: float
    """Natural logarithm of its probability after all tokens before it."""
    rank: int
    """1: the likeliest."""
    entropy_bits: float
    """Of the distribution that it was chosen from."""
    top: list[tuple[Token, float]] = field(default_factory=list)
    """The likeliest tokens at this place, with their logprobs."""

    @property
    def bits(self) -> float:
        """The surprise: -log2 of its probability."""
        return scoring.bits(self.logprob)


@dataclass(frozen=True)
class Score:
    """How likely a text is."""

    tokens: list[ScoredToken]
    logprob: float
    """Sum over all tokens but the first; natural logarithm."""
    perplexity: float
    """NaN for a text of one token."""
    bits_per_byte: float


def load(
    model: str | None = None,
    *,
    context: int | None = None,
    threads: int | None = None,
    kv: str = "auto",
    device: str = "auto",
    gpu_layers: int | str = "auto",
    texts: int = 1,
    verify: bool = True,
) -> Model:
    """A model in memory.

    model: a name of `llm list` with ':int4', ':int8' or ':none' where there are several, or a path; None: the default model.
    context: tokens of a text and its continuation (the model's, at most 4,096). threads: None for the usable physical cores.
    kv: one of KV, the type of the KV cache. device: 'auto', 'cpu', 'cuda' or 'reference'. gpu_layers: how many layers may be
    on GPUs, a number, 'auto' or 'all'. texts: how many texts of a full context may be in work at once. verify: compare the weights'
    checksums.

    Raises NotFound, ModelFileError, HashMismatch, OutOfMemory, UsageError, DeviceError.
    """
    for name, value, low, high in (("threads", threads, 1, 1024), ("texts", texts, 1, 2**16)):
        if value is not None and not low <= value <= high:
            raise UsageError(name, f"{value!r} is not a whole number from {low:,} to {high:,}", "Change it")
    if kv not in KV:
        raise UsageError("kv", f"{kv!r} is none of {', '.join(KV)}", "Change it")
    if gpu_layers not in ("auto", "all") and (not isinstance(gpu_layers, int) or gpu_layers < 0):
        raise UsageError("gpu_layers", f"{gpu_layers!r} is neither 'auto', 'all' nor a number of layers", "Change it")
    options: dict[str, Any] = {"backend": device, "gpu_layers": gpu_layers, "kv": kv, "texts": texts, "verify": verify}
    return Model(engines.load(model, context=context, threads=threads, **options))


class Model:
    """A loaded model. Close it, or use it in a `with`.

    Threads may share it: they take turns, token by token of a continuation and call by call of the rest. Models compute independently of
    each other. What a call has computed is kept for the next one, which computes only what is new; that changes no result.
    """

    def __init__(self, engine: engines.Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # a forgotten generator may be collected, and ends, in the middle of another one's step
        self._closed = False
        self._spare: Past | None = None

    @property
    def name(self) -> str:
        """With its quantization: 'demo:int8'."""
        return self._engine.name

    @property
    def context(self) -> int:
        """Tokens that a text and its continuation may have."""
        return self._engine.context

    @property
    def vocabulary(self) -> int:
        """How many tokens the model chooses from: V."""
        return self._engine.plan.vocab

    def generate(
        self,
        prompt: Text,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        probs: int = 0,
        special: bool = False,
        **options: Unpack[Options],
    ) -> Iterator[Step]:
        """Continues a text as it is, without a template, token by token: steps with `.id`, `.text`, `.logprob`, `.rank`, `.top`.

        max_tokens None: to the end of the text or of the context. stop: texts to end before. seed: 0 to 2**64 - 1, the same seed gives the
        same text; None: a new one. probs: how many of the likeliest tokens a step lists in `.top`. special: control tokens written in the
        prompt are control tokens. The texts of all steps together are the continuation.

        Raises UsageError and InputError at once for values out of range and unknown tokens; the first step InputError for a text without
        tokens, ContextOverflow, NumericalError.
        """
        return self._generate(self._ids(prompt, special), max_tokens, stop, seed, probs, options)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        probs: int = 0,
        **options: Unpack[Options],
    ) -> Iterator[Step]:
        """The answer to a conversation, in the model's own chat template: as `generate`.

        messages: [{"role": "user", "content": text}, ...], roles as the template knows them, mostly system, user and assistant. Only the
        tokens that are new since the last call are computed.

        Raises UsageError for a model without template, TemplateError where the template fails, and as `generate` does.
        """
        return self._generate(self._chat_ids(messages), max_tokens, stop, seed, probs, options)

    def candidates(
        self,
        prompt: Text | Sequence[Message],
        count: int,
        *,
        rank: Rank | None = None,
        criterion: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        seed: int | None = None,
        probs: int = 0,
        **options: Unpack[Options],
    ) -> list[Response]:
        """`count` answers (1 to 64), sampled together, the best first: `.text`, `.steps`, `.logprob`, `.logprob_per_token`, `.seed`.
        It takes far less time than one after the other, and room in the cache: load with texts=count + 1.

        prompt: a text to continue, its tokens, or a conversation to answer. rank: 'likelihood' (of all an answer's tokens), 'normalised'
        (per token) or 'self': by `.criterion_prob`, the model's own probability that the answer meets the `criterion`. None: 'self'
        where there is one, else 'normalised'. The answer with `.seed` S is that of `generate` or `chat` with seed=S; seeds begin at `seed`.

        Raises OutOfMemory where there is no room, and as `generate` and `chat` do.
        """
        rank_by(rank, criterion)
        if _count("count", count, 1) > MOST:
            raise UsageError("count", f"{count:,} answers, and at most {MOST} are sampled together", "Change it")
        settings = self._settings(max_tokens, stop, seed, options)
        messages = None if isinstance(prompt, str) else [item for item in prompt if isinstance(item, Mapping)] or None
        with self._turn(), self._past() as past:
            asked = Prompt(self._ids(cast(Text, prompt), False) if messages is None else self._chat_ids(messages))
            return best(
                self._engine,
                asked,
                settings,
                count,
                rank=rank,
                criterion=criterion,
                messages=messages,
                probs=_count("probs", probs, 0),
                past=past,
            )

    def next_token(self, text: Text, *, count: int = 10, special: bool = False, **options: Unpack[Options]) -> NextTokens:
        """The distribution of the token after a text: `.candidates`, the `count` likeliest, and `.entropy_bits`. A candidate has its
        `.prob`, and `.final_prob`, what the options would make of it. Raises as `generate` does."""
        settings = settings_for(self._open, dict(options))
        most = min(_count("count", count, 1), self.vocabulary)
        with self._turn(), self._past() as past:
            return next_tokens(self._engine, self._ids(text, special), settings, most, past=past)

    def score(self, text: Text, *, top: int = 0, special: bool = False, window: int | None = None, stride: int | None = None) -> Score:
        """How likely each token of a text is. top: how many of the likeliest tokens are listed for each.

        A text that is longer than the context is read in windows of `window` tokens (the context), `stride` (half of that) apart.
        Raises InputError, UsageError, NumericalError.
        """
        with self._turn():
            ids = self._ids(text, special)
            size, step = scoring.windows(self._engine, window, stride)
            totals, stream, tokens = scoring.Totals(), Stream(self._engine.tokenizer), []
            with self._past() as past:
                for one in scoring.score(self._engine, ids, _count("top", top, 0), size, step, past):
                    totals.add(one, len(stream.feed_bytes(one.id)[0]))
                    tokens.append(self._scored(one))
        return Score(tokens, totals.logprob, totals.perplexity, totals.bits_per_byte)

    def choose(self, text: str, choices: Sequence[str], *, join: str | None = None, special: bool = False) -> list[Choice]:
        """How likely each of several whole answers is after a text, in the order given: `.prob`, which sum to 1, `.logprob`,
        `.prob_per_token`, `.ids`. join: between text and answer; None: a space where neither has one. Raises as `next_token` does."""
        tokenizer = self._open.tokenizer
        with self._turn():
            wholes = [(answer, tokenizer.encode(text + joined(text, answer, join), special=special)) for answer in choices]
            with self._past() as past:
                return choose(self._engine, tokenizer.encode(text, special=special), wholes, past)

    def tokenize(self, text: str, *, special: bool = False) -> list[Token]:
        """The tokens of a text, beginning-of-text included where the tokenizer puts it. Raises InputError."""
        return [self._token(number) for number in self._ids(text, special)]

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of tokens; control tokens have none."""
        with self._turn():
            return self._engine.tokenizer.decode(ids)

    def close(self) -> None:
        """Gives memory and threads back; steps that are in work elsewhere are waited for. Closing twice is no error."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._spare = None
                self._engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<llmcli.Model {self.name}, context {self.context:,}{', closed' if self._closed else ''}>"

    def _generate(
        self, ids: list[int], max_tokens: int | None, stop: Sequence[str], seed: int | None, probs: int, options: Options
    ) -> Iterator[Step]:
        return self._steps(ids, self._settings(max_tokens, stop, seed, options), _count("probs", probs, 0))

    def _settings(self, max_tokens: int | None, stop: Sequence[str], seed: int | None, options: Options) -> Settings:
        more = {"max_tokens": max_tokens, "stop": stop if isinstance(stop, str) else tuple(stop)}
        return settings_for(self._open, {**options, **more, "seed": int.from_bytes(os.urandom(4)) if seed is None else seed})

    def _steps(self, ids: list[int], settings: Settings, probs: int) -> Iterator[Step]:
        """The steps, each made in a turn of its own."""
        with contextlib.ExitStack() as stack:
            with self._turn():
                past = stack.enter_context(self._past())
            steps = generate(self._engine, ids, settings, probs, past)
            while True:
                with self._turn():
                    step = next(steps, None)
                if step is None:
                    return
                if step.finish is not None:
                    stack.close()  # whoever takes the last step need not ask for another one
                yield step

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One thread at a time. Raises UsageError when the model is closed."""
        with self._lock:
            _ = self._open
            yield

    @contextlib.contextmanager
    def _past(self) -> Iterator[Past]:
        """What an earlier call has computed, or where another one is using that, a past of its own."""
        with self._lock:
            past, self._spare = self._spare or Past(self._engine), None
        try:
            yield past
        finally:
            with self._lock:
                if self._spare is None and not self._closed:
                    self._spare = past
                else:
                    past.close()

    @property
    def _open(self) -> engines.Engine:
        if self._closed:
            raise UsageError(f"the model {self.name} is closed", todo="Load it again")
        return self._engine

    def _ids(self, text: Text, special: bool) -> list[int]:
        with self._turn():
            if isinstance(text, str):
                return self._engine.tokenizer.encode(text, special=special)
            ids = [int(number) for number in text]
            check_known(self._engine, ids)
            return ids

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        with self._turn():
            if self._engine.template is None:
                raise UsageError("chat", f"{self.name} has no chat template", "Use generate, or a chat model")
            return self._engine.prompt(messages).ids

    def _token(self, number: int) -> Token:
        data = self._engine.tokenizer.token_bytes(number)
        return Token(number, data.decode("utf-8", "replace"), data)

    def _scored(self, one: scoring.Scored) -> ScoredToken:
        token = self._token(one.id)
        top = [(self._token(number), value) for number, value in one.top]
        return ScoredToken(token.id, token.text, token.bytes, one.position, one.logprob, one.rank, one.entropy_bits, top)


def _count(name: str, value: Any, least: int) -> int:
    if type(value) is not int or value < least:
        raise UsageError(name, f"{value!r} is not a whole number from {least}", "Change it")
    return value
