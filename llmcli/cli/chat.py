"""`llm chat`: a conversation. With somebody at a terminal there is an editor; from a pipe, a line is a message."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from llmcli.cli import keyboard
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Answering, Common, Model, option
from llmcli.errors import UsageError

ABOUT = """
A conversation. On a terminal there is an editor with history; /help lists commands, Ctrl-C stops an answer, Ctrl-D leaves. From a
pipe, a line is a message. A base model continues what is written.
"""

EXAMPLE = """
llm chat --temp 0.5
llm chat -m NAME -s "Answer in one line." --markdown
llm chat --load talk.json
"""

CHAT = "The chat"


@dataclass(frozen=True, kw_only=True)
class Options(Answering, Model, Common):
    load_file: Annotated[Path | None, option("--load", section=CHAT, metavar="FILE", help="go on with a saved conversation")] = None
    no_history: Annotated[bool, option("--no-history", section=CHAT, help="do not keep what is typed for the next chat")] = False
    markdown: Annotated[bool, option("--markdown", section=OUTPUT, help="draw the answers' Markdown")] = False


SHARED = tuple(field.name for base in (Answering, Model, Common) for field in dataclasses.fields(base))
"""Options that `llm run` hands on."""


def execute(options: Options, console: Console) -> int:
    if sys.stdin is None:
        raise UsageError("there is nobody to chat with", "standard input is closed", 'Ask one question: llm run "Why is the sky blue?"')
    with open_answer() as answer:
        from llmcli.cli.chat_commands import COMMANDS, load
        from llmcli.cli.chat_lines import Lines
        from llmcli.cli.chat_session import Reader, Session

        interactive = is_terminal(sys.stdin)
        reader: Reader = Lines(console, interactive)
        if interactive and is_terminal(sys.stdout) and os.environ.get("TERM", "dumb") != "dumb":
            from llmcli.cli.chat_editor import Editor

            reader = Editor(console, COMMANDS, not options.no_history)
            keys: contextlib.AbstractContextManager[None] = keyboard.silent()
        else:
            keys = contextlib.nullcontext()
        with keys, Session(options, console, answer, reader, interactive) as session:
            options.check_system(session.chat.engine)
            if interactive:
                session.greet()
            if options.load_file is not None:
                load(session, str(options.load_file))
            session.run()
    return 0
