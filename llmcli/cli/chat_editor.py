"""A chat's input on a terminal: an editor of one or more lines, with the keys and the history that shells have.

prompt_toolkit does it: it knows wide and combining characters, resizing, pasting and terminals. It sleeps while nobody types.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.data_structures import Size
from prompt_toolkit.history import History as Base
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output.color_depth import ColorDepth
from prompt_toolkit.output.vt100 import Vt100_Output

from llmcli import places
from llmcli.cli.chat_lines import MORE, PROMPT
from llmcli.cli.console import Console
from llmcli.errors import DiskError
from llmcli.history import History


class Editor:
    """commands: names that Tab completes at the beginning of a message. history: kept in a file over sessions."""

    keys = """Keys: Enter sends; Alt-Enter, Ctrl-J or a backslash before Enter begins a new line; pasted lines wait for Enter.
Tab completes a command. Up, Down, Ctrl-R: earlier messages. Ctrl-X Ctrl-E: $EDITOR.
Ctrl-C stops an answer, clears a line. Ctrl-D leaves."""

    def __init__(self, console: Console, commands: Iterable[str], history: bool) -> None:
        output = _output()
        colors = None if console.colored(sys.stdout) else ColorDepth.DEPTH_1_BIT
        self._console = console
        self._warned = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=lambda width, line, wrapped: " " * len(MORE) if wrapped else MORE,
            history=_Kept(History(places.history()), console) if history else InMemoryHistory(),
            key_bindings=_keys([f"/{name}" for name in commands]),
            reserve_space_for_menu=0,
            enable_open_in_editor=True,
            enable_suspend=True,
            color_depth=colors,
            output=output,
        )
        self._question: PromptSession[str] = PromptSession(output=output, color_depth=colors)
        for session in (self._session, self._question):
            session.app.terminal_size_polling_interval = None  # the terminal says when it is resized

    def read(self, default: str = "") -> str | None:
        """The next message, perhaps `default` edited; None when the user leaves: Ctrl-D, or Ctrl-C twice on an empty line."""
        while True:
            try:
                text = self._session.prompt(default=default)
                self._warned = False
                return text
            except EOFError:
                return None
            except KeyboardInterrupt:
                if self._session.default_buffer.text:
                    self._warned = False
                elif self._warned:
                    return None
                else:
                    self._warned = True
                    self._console.say("Ctrl-C again or Ctrl-D leaves")
                default = ""
            except BaseException:  # a signal, which may come before the editor itself would clear up
                self._session.app.renderer.reset()
                raise

    def ask(self, question: str) -> bool:
        try:
            return self._question.prompt(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


def _output() -> Vt100_Output:
    """Standard output, without asking the terminal where its cursor is: some never answer, and nothing here needs it."""
    import shutil

    def size() -> Size:
        columns, rows = shutil.get_terminal_size()
        return Size(rows=rows, columns=columns)

    return Vt100_Output(sys.stdout, size, enable_bell=False, enable_cpr=False)


def _keys(commands: Sequence[str]) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.char_before_cursor == "\\" and buffer.document.is_cursor_at_the_end:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab")
    def _complete(event: KeyPressEvent) -> None:
        text = event.current_buffer.text
        meant = [command for command in commands if command.startswith(text)] if text.startswith("/") else []
        event.current_buffer.insert_text(os.path.commonprefix(meant)[len(text) :])

    return keys


class _Kept(Base):
    """The history of history.py. Where its file cannot be used, a note says so once and it lasts as long as the chat."""

    def __init__(self, file: History, console: Console) -> None:
        super().__init__()
        self._file: History | None = file
        self._console = console

    def load_history_strings(self) -> Iterable[str]:
        try:
            return reversed(self._file.read()) if self._file else ()
        except (OSError, DiskError) as error:
            self._give_up(error)
            return ()

    def store_string(self, string: str) -> None:
        try:
            if self._file:
                self._file.add(string)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._file = None
        self._console.note(f"what you type is not kept for the next chat: {error}")
