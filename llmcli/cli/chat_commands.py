"""What can be done in a chat besides talking: a table, a function a row. To add one: a function and a row."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from llmcli import places, saved
from llmcli.chat import Chat
from llmcli.cli import chat_settings
from llmcli.errors import UsageError

if TYPE_CHECKING:
    from llmcli.cli.chat_session import Session


class Command(NamedTuple):
    run: Callable[[Session, str], str | None]
    """Takes what stands behind the name; returns the text to offer for editing."""
    argument: str
    help: str


def obey(session: Session, text: str) -> str:
    """Runs the command in text. Raises UsageError for one that there is not, and what it raises."""
    name, _, rest = text[1:].partition(" ")
    command = COMMANDS.get(name.strip())
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        meant = f"Did you mean /{near[0]}? " if near else ""
        raise UsageError(f"there is no command /{name.strip()}", "", f"{meant}/help lists them; a text that begins with / is written //")
    rest = rest.strip()
    if rest and not command.argument:
        raise UsageError(f"/{name}", "it takes nothing behind it", "")
    if not rest and command.argument[:1].isalpha():
        raise UsageError(f"/{name}", f"it needs its {command.argument}", "")
    return command.run(session, rest) or ""


def show_help(session: Session, rest: str) -> None:
    width = max(len(f"/{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        session.console.say(f"{f'/{name} {command.argument}':<{width}}  {command.help}")
    session.console.say(session.reader.keys)


def system(session: Session, rest: str) -> None:
    chat = session.chat
    if not rest:
        session.console.say(chat.system or "there is no system text")
        return
    dataclasses.replace(session.options, system=rest).check_system(chat.engine)
    chat.system = None if rest == "none" else rest


def set_(session: Session, rest: str) -> None:
    if not rest:
        session.console.say(_listed(session))
        return
    try:
        name, *words = shlex.split(rest)
    except ValueError as error:
        raise UsageError("/set", str(error), "Close the quotation marks") from error
    if not words:
        raise UsageError(f"/set {name}", "it needs a value", f"/set {name} default takes it back")
    options = chat_settings.change(session.options, name, words)
    session.settings_of(options)
    session.options = options


def _listed(session: Session) -> str:
    values = {**vars(session.settings), "probs": session.options.probs}
    chosen = chat_settings.chosen(session.options)
    lines = []
    for setting in chat_settings.SETTINGS:
        value = values[setting.field]
        origin = "" if setting.field in chosen else "  (default)"
        lines.append(f"{setting.names[0]:<20}{'-' if value in (None, (), {}) else value}{origin}")
    return "\n".join(lines)


def save(session: Session, rest: str) -> None:
    path = places.expanded(rest)
    conversation = saved.Saved(session.chat.engine.name, session.chat.messages, chat_settings.chosen(session.options))
    saved.write(path, conversation)
    session.console.note(f"saved {path}")


def load(session: Session, rest: str) -> None:
    conversation = saved.read(places.expanded(rest))
    options = chat_settings.restored(session.options, conversation.settings)
    session.settings_of(options)
    chat = Chat(session.chat.engine, conversation.messages, session.options.raw, session.options.think)
    session.chat.close()
    session.chat, session.options, session.stats = chat, options, None
    model = conversation.model
    other = f", written with {model}" if model and model != chat.engine.name else ""
    session.console.note(f"{chat.turns} turn{'' if chat.turns == 1 else 's'}{other}")


def regenerate(session: Session, rest: str) -> None:
    session.regenerate()


def undo(session: Session, rest: str) -> str:
    question = session.chat.undo()
    session.console.note("the last turn is forgotten")
    return question


def drop(session: Session, rest: str) -> None:
    if not session.chat.turns:
        raise UsageError("there is nothing to drop", todo="")
    session.chat.forget(1)
    session.console.note(f"the oldest turn is forgotten, {session.chat.turns} are left")


def stats(session: Session, rest: str) -> None:
    session.console.say(session.statistics())


def probs(session: Session, rest: str) -> None:
    session.options = chat_settings.change(session.options, "probs", [rest])


def model(session: Session, rest: str) -> None:
    session.switch(rest)


COMMANDS = {
    "help": Command(show_help, "", "this list"),
    "system": Command(system, "[TEXT]", "instructions for the model; none: without; nothing: show them"),
    "set": Command(set_, "[NAME VALUE]", "change a setting, by its flag's name: /set temp 0.5; nothing: list them"),
    "probs": Command(probs, "K", "the K likeliest tokens at each place, below each answer; 0: not"),
    "regenerate": Command(regenerate, "", "another answer to the last question"),
    "undo": Command(undo, "", "forget the last turn, and edit its question"),
    "drop": Command(drop, "", "forget the oldest turn"),
    "save": Command(save, "FILE", "write the conversation to a file"),
    "load": Command(load, "FILE", "go on with a conversation from a file"),
    "model": Command(model, "NAME", "go on with another model"),
    "stats": Command(stats, "", "times of the last answer, and how full the context is"),
}
