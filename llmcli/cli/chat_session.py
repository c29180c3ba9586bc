"""A chat as somebody at a terminal sees it: what is typed becomes a command or an answer, and every answer can be stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Protocol

from llmcli.chat import Chat
from llmcli.cli import bars, keyboard
from llmcli.cli.chat_render import Markdown
from llmcli.cli.console import Answer, Console
from llmcli.cli.render import TextWriter
from llmcli.cli.run import show_thoughts
from llmcli.cli.stats import Stats
from llmcli.errors import ContextOverflow, LlmError, Stopped, UsageError
from llmcli.generate import Settings, Step, settings_for

if TYPE_CHECKING:
    from llmcli.cli.chat import Options


class Reader(Protocol):
    """Where messages come from."""

    keys: str
    """What /help says about them."""

    def read(self, default: str = "") -> str | None:
        """The next message, None at the end."""

    def ask(self, question: str) -> bool:
        """Whether the answer to a question is yes."""


class Session:
    """interactive: somebody is there, so errors are said and the chat goes on; a script ends with the first one."""

    def __init__(self, options: Options, console: Console, answer: Answer, reader: Reader, interactive: bool) -> None:
        seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
        self.options: Options = dataclasses.replace(options, seed=seed)
        self.console = console
        self.reader = reader
        self.interactive = interactive
        self.stats: Stats | None = None
        self._answer = answer
        self.chat = Chat(options.load(console, chat=not options.raw), (), options.raw, options.think)
        if options.system is not None:
            self.chat.system = options.system

    @property
    def settings(self) -> Settings:
        return self.settings_of(self.options)

    def settings_of(self, options: Options) -> Settings:
        """Raises UsageError for those that the model cannot have."""
        return settings_for(self.chat.engine, options.overrides())

    def greet(self) -> None:
        engine = self.chat.engine
        kind = "no chat template: it continues what you write" if self.chat.template is None else f"context {engine.context:,} tokens"
        self.console.note(f"{engine.name}, {kind}. /help lists commands, Ctrl-D leaves")

    def run(self) -> None:
        """Until there is nothing more to read."""
        text: str | None = ""
        while True:
            try:
                text = self.reader.read(text or "")
                if text is None:
                    return
                text = self.take(text)
            except LlmError as error:
                if not self.interactive:
                    raise
                self.console.error(error)
            except KeyboardInterrupt:  # pressed between an answer and a prompt, or while a model is loaded
                if not self.interactive:
                    raise
                self.console.end_line()
                text = ""

    def take(self, text: str) -> str:
        """Does what was typed; returns the text to offer next."""
        from llmcli.cli import chat_commands

        if not text.strip():
            return ""
        if text.startswith("/") and not text.startswith("//"):
            return chat_commands.obey(self, text)
        text = text.removeprefix("/") if text.startswith("//") else text
        if not self._make_room(text):
            return text
        return "" if self._show(self.chat.answer(text, self.settings, self.options.probs)) else text

    def regenerate(self) -> None:
        """Answers the last question again, with the next seed, since the same one gives the same answer."""
        if not self.chat.turns:
            raise UsageError("there is no answer yet", todo="Ask something first")
        if not self._make_room(None):
            return
        assert self.options.seed is not None
        self.options = dataclasses.replace(self.options, seed=(self.options.seed + 1) % 2**64)
        if self.settings.temperature == 0:
            self.console.note("at temperature 0 the answer is always the same")
        self._show(self.chat.regenerate(self.settings, self.options.probs))

    def switch(self, name: str) -> None:
        """Goes on with another model. Where it cannot be loaded, this one stays."""
        options = dataclasses.replace(self.options, model=name)
        chat = Chat(options.load(self.console, chat=not options.raw), self.chat.messages, options.raw, options.think)
        self.close()
        self.options, self.chat, self.stats = options, chat, None
        self.greet()
        if chat.template is None and chat.system is not None:
            self.console.note("it has no chat template, so the system text has no effect")

    def _make_room(self, text: str | None) -> bool:
        """Whether there is room for an answer; asks before it drops anything."""
        turns = self.chat.too_many(text)
        if not turns:
            return True
        full = f"the context of {self.chat.engine.context:,} tokens is full"
        many = "the oldest turn" if turns == 1 else f"the oldest {turns} turns"
        if not self.interactive:
            raise ContextOverflow(full, f"{many} would have to go", "Use a larger context (-c), or /drop turns")
        if not self.reader.ask(f"{full}. Drop {many}?"):
            self.console.note("nothing was dropped, and nothing sent")
            return False
        self.chat.forget(turns)
        return True

    def _show(self, steps: Generator[Step, None, None]) -> bool:
        """Writes an answer; returns whether there was any."""
        stats, listed, stopped = Stats(self.chat.engine, 0), [], False
        writer: Markdown | TextWriter = TextWriter(self._answer, True, show_thoughts(self.options, self._answer, self.console))
        if self.options.markdown:
            writer = Markdown(self._answer, self.console.colored(sys.stdout))
        splitter = None
        try:
            with contextlib.closing(steps), self._stoppable() as stop:
                for step in steps:
                    splitter = splitter or self.chat.prompt.splitter()
                    part, pieces = splitter.part, splitter.feed(step.text) + (splitter.finish() if step.finish else [])
                    stats.count(step, pieces)
                    writer.step(step, pieces, part)
                    if self.options.probs and step.id is not None:
                        listed.append(step)
                    if stop.asked:
                        break
                stopped = stop.asked
        except (KeyboardInterrupt, Stopped):
            if not self.interactive:
                raise
            stopped = True
        finally:
            writer.stop()
            self._answer.finish()
        stats.prompt = self.chat.computed
        stats.finish = "stopped" if stopped else stats.finish
        self.stats = stats if stats.generated else self.stats
        self._comment(stats, listed, stopped)
        if splitter is not None and splitter.thinking and not stopped:
            self.console.note("that was no answer yet but the model's thoughts (/set n gives it more room, --think off no thoughts)")
        return stats.generated > 0

    def _stoppable(self) -> contextlib.AbstractContextManager[keyboard.Stop]:
        return keyboard.answering() if self.interactive else contextlib.nullcontext(keyboard.Stop())

    def _comment(self, stats: Stats, listed: list[Step], stopped: bool) -> None:
        """What there is to say below an answer."""
        for step in listed:
            self.console.say(bars.alternatives(step))
        if stopped:
            self.console.note("stopped" if stats.generated else "stopped before the first word; nothing was sent")
        elif stats.finish == "length" and stats.generated != self.options.max_tokens:
            full = f"the answer ends here because the context of {self.chat.engine.context:,} tokens is full"
            self.console.note(f"{full}: /drop forgets the oldest turn, /regenerate tries again")
        if self.options.stats and stats.generated:
            self.console.say(self.statistics())
        if self.interactive:
            self.console.note("")

    def statistics(self) -> str:
        """Lines about the last answer and the context."""
        chat = self.chat
        used = "" if chat.used is None else f"{chat.used:,} of "
        lines = f"context     {used}{chat.engine.context:,} tokens, {chat.turns} turn{'' if chat.turns == 1 else 's'}"
        if self.stats is None:
            return lines
        kept = f"kept        {chat.prompt_tokens - chat.computed:,} of the prompt's {chat.prompt_tokens:,} tokens were computed before"
        return f"{self.stats.lines(self.settings)}\n{lines}\n{kept}"

    def close(self) -> None:
        self.chat.close()
        self.chat.engine.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
