"""`llm docs [TOPIC]`: the documentation, which comes with the package: on a terminal a page, elsewhere the Markdown itself."""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

import llmcli
from llmcli.cli import pager
from llmcli.cli.app import COMMANDS
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import Common, option
from llmcli.cli.table import table
from llmcli.errors import NotFound

ABOUT = """
Shows a document, or what the documents say of a command. Without a topic: the list of topics. The documents are part of the package,
so this works without a network. On a terminal they are laid out and paged (PAGER, else less); into a pipe goes the Markdown itself.
"""

EXAMPLE = """
llm docs                                      # what is there?
llm docs commands
llm docs run                                  # a command's section
llm docs json | grep -A9 "## Token record"
"""


@dataclass(frozen=True, kw_only=True)
class Options(Common):
    topic: Annotated[
        str | None, typer.Argument(metavar="TOPIC", help="a document or a command; none: list them", rich_help_panel="The document")
    ] = None
    no_pager: Annotated[bool, option("--no-pager", section="The document", help="all at once, also on a terminal")] = False


def execute(options: Options, console: Console) -> int:
    with open_answer() as answer:
        if options.topic is None:
            answer.write(table(list(topics().items())))
            console.note("llm docs TOPIC shows one; llm docs COMMAND what is said of a command")
        elif not is_terminal(sys.stdout):
            answer.write(read(options.topic))
        else:
            shown = pager.layout(read(options.topic), console.colored(sys.stdout))
            if options.no_pager or not pager.page(shown):
                answer.write_styled(shown)
    return 0


def folder() -> Path:
    """Where the documents are: the wheel puts them into the package; in a checkout they are beside it."""
    package = Path(llmcli.__file__).parent
    return shipped if (shipped := package / "docs").is_dir() else package.parent / "docs"


def topics() -> dict[str, str]:
    """Document -> its heading."""
    return {path.stem: path.read_text("utf-8").partition("\n")[0].lstrip("# ") for path in sorted(folder().glob("*.md"))}


def read(topic: str) -> str:
    """A document, what docs/commands.md says of a command, or both where they share the name. Raises NotFound with near matches."""
    document = (folder() / f"{topic}.md").read_text("utf-8") if topic in topics() else ""
    found = [text for text in (document, section(topic) if topic in COMMANDS else "") if text]
    if found:
        return "\n".join(found)
    near = difflib.get_close_matches(topic, [*topics(), *COMMANDS], n=3)
    guess = f"Did you mean {' or '.join(near)}? " if near else ""
    raise NotFound(f"no document about {topic!r}", todo=f"{guess}llm docs lists them")


def section(command: str) -> str:
    """What docs/commands.md says of a command; '' where it says nothing."""
    text = (folder() / "commands.md").read_text("utf-8")
    found = re.search(rf"^## llm {command}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[0].rstrip() + "\n" if found else ""
