"""A conversation with a model, without a terminal: messages in, steps out, and only what is new is computed.

Each turn's prompt is the whole conversation as the model's template writes it; of a base model, which has none, the texts
themselves, a line a turn, so that it continues them. `past.py` computes what is new in it, and `text/transcript.py` keeps the
tokens of what is not. An answer is the one that a fresh engine gives for the same tokens, bit for bit.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

from llmcli.engine import Engine
from llmcli.errors import UsageError
from llmcli.generate import Step, generate
from llmcli.past import Past
from llmcli.sampling.settings import Settings
from llmcli.text.template import encode_marked
from llmcli.text.thinking import Prompt, Think
from llmcli.text.transcript import Transcript

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}; of an answer with thoughts, they are its "reasoning_content"."""


class Chat:
    """messages: perhaps one of the system, then turns: a question of the user and its answer. raw: continue the text though the
    model has a template. It takes a text's room in the engine's cache; close it. Raises UsageError for other messages."""

    def __init__(self, engine: Engine, messages: Sequence[Message] = (), raw: bool = False, think: Think = "auto") -> None:
        self.engine = engine
        self.template = None if raw else engine.template
        self.messages: list[Message] = list(messages)
        check(self.messages)
        self.think = think
        self.prompt = Prompt([])
        """The last prompt: how its answer's thoughts are told from the answer."""
        self.prompt_tokens = 0
        """Tokens of the last prompt."""
        self.computed = 0
        """How many of them had to be computed."""
        self.used: int | None = 0
        """Tokens of the context that the conversation takes; None where the next answer will tell."""
        self._past = Past(engine)
        self._transcript = Transcript(engine.tokenizer)

    @property
    def system(self) -> str | None:
        """The system's message. A base model does not read it."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self.messages[: int(self.system is not None)] = [] if text is None else [{"role": "system", "content": text}]
        self.used = None

    @property
    def turns(self) -> int:
        return len(self.messages) // 2

    def answer(self, text: str, settings: Settings, probs: int = 0) -> Generator[Step, None, None]:
        """Asks `text` and yields the answer's steps. When it is closed early the answer ends there; when there was no step yet, or
        an error before one, the question is taken back. Raises as `generate` does, TemplateError, InputError."""
        yield from self._turn([*self.messages, {"role": "user", "content": text}], settings, probs)

    def regenerate(self, settings: Settings, probs: int = 0) -> Generator[Step, None, None]:
        """Asks the last question again (there has to be one); its first answer stays until there is a second. Raises as `answer`."""
        yield from self._turn(self.messages[:-1], settings, probs)

    def _turn(self, messages: list[Message], settings: Settings, probs: int) -> Generator[Step, None, None]:
        self.prompt = self._read(messages)
        ids = self.prompt.ids
        steps: list[Step] = []
        try:
            for step in generate(self.engine, ids, settings, probs, past=self._past, shown=self.prompt.shown):
                if not steps:
                    self.prompt_tokens, self.computed = len(ids), self._past.computed
                steps.append(step)
                yield step
        finally:
            if steps:
                text = "".join(step.text for step in steps)
                self.messages = [*messages, self._answered(text)]
                self.used = len(self._past.ids)
                self._transcript.add(text, [step.id for step in steps if step.id is not None and step.finish != "eos"], self.prompt.shown)

    def undo(self) -> str:
        """Forgets the last turn; returns its question. Raises UsageError when there is none."""
        if not self.turns:
            raise UsageError("there is nothing to undo", todo="")
        question = self.messages[-2]["content"]
        del self.messages[-2:]
        self.used = None
        return question

    def forget(self, turns: int) -> None:
        """Forgets so many of the oldest turns. The system's message stays."""
        start = int(self.system is not None)
        del self.messages[start : start + 2 * turns]
        self.used = None

    def too_many(self, text: str | None = None) -> int:
        """How many of the oldest turns have to go for an answer to `text` (None: to the last question) to have room: 0 while an
        eighth of the context is left for it, else until a quarter is."""
        start, kept = int(self.system is not None), [*self.messages]
        kept = kept[:-1] if text is None else [*kept, {"role": "user", "content": text}]
        free, gone, last = self.engine.context // 8, 0, (len(kept) - start) // 2
        while gone < last and self.engine.context - self._count(kept) < free:
            del kept[start : start + 2]
            free = self.engine.context // 4
            gone += 1
        return gone

    def _answered(self, text: str) -> Message:
        """The message of an answer, its thoughts beside it: most templates leave them out of later prompts."""
        splitter = self.prompt.splitter()
        pieces = splitter.feed(text) + splitter.finish()
        parts = {part: "".join(piece.text for piece in pieces if piece.part == part) for part in ("answer", "thought")}
        thoughts = {"reasoning_content": parts["thought"]} if parts["thought"] else {}
        return {"role": "assistant", "content": parts["answer"], **thoughts}

    def _count(self, messages: list[Message]) -> int:
        if self.template is None:
            return len(self.engine.tokenizer.encode(_continued(messages)))
        return len(self.engine.prompt(messages, self.think).ids)

    def _read(self, messages: list[Message]) -> Prompt:
        """The prompt, the tokens of what has been written before as they were."""
        tokenizer = self.engine.tokenizer
        if self.template is None:
            return Prompt(self._transcript.encode(_continued(messages), lambda part, first: tokenizer.encode(part, bos=first)))

        def encode(text: str, mark: str) -> list[int]:
            return self._transcript.encode(text, lambda part, _: encode_marked(tokenizer, part, mark))

        return self.engine.prompt(messages, self.think, encode)

    def close(self) -> None:
        self._past.close()


def _continued(messages: Sequence[Message]) -> str:
    """The text that a base model continues: a line a turn."""
    texts = [message["content"] for message in messages if message["role"] != "system"]
    return "\n".join("".join(texts[at : at + 2]) for at in range(0, len(texts), 2))


def check(messages: Sequence[Message]) -> None:
    """Raises UsageError unless these are whole turns, perhaps behind a message of the system."""
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise UsageError("this is no conversation", "after the system, user and assistant have to take turns", "Correct it")
