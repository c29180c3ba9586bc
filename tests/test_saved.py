"""Files of a chat: the saved conversation, and the history of what was typed. Both may hold anything when they are read."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from llmcli import saved
from llmcli.cli import chat_settings
from llmcli.cli.chat import Options
from llmcli.errors import InputError, LlmError, NotFound, UsageError
from llmcli.history import KEPT, LARGEST, History

TURN = [{"role": "user", "content": "Grüße\n"}, {"role": "assistant", "content": "你好 \u202e"}]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_conversation_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    path.write_text("older")
    conversation = saved.Saved("demo:int8", [{"role": "system", "content": "s"}, *TURN], {"temperature": 0.5})
    saved.write(path, conversation)
    assert saved.read(path) == conversation
    assert mode(path) == 0o600 and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", InputError),
        ("[]", InputError),
        ("{}", InputError),
        ("[" * 100_000, InputError),
        ('{"schema": 2, "messages": []}', UsageError),
        ('{"schema": 1, "messages": 5}', InputError),
        ('{"schema": 1, "messages": [5]}', InputError),
        ('{"schema": 1, "messages": [{"role": "user", "content": null}]}', InputError),
        ('{"schema": 1, "messages": [{"role": "user", "content": "alone"}]}', UsageError),
        ('{"schema": 1, "messages": [], "settings": 5}', InputError),
        ("\0", InputError),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, text: str, kind: type[LlmError]) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(kind):
        saved.read(path)
    with pytest.raises(NotFound):
        saved.read(tmp_path)


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        ("temp 0.5", "temperature", 0.5),
        ("--temperature 1", "temperature", 1.0),
        ("n 5", "max_tokens", 5),
        ("max-tokens 5", "max_tokens", 5),
        ("top-k 0", "top_k", 0),
        ("stop a b", "stop", ["a", "b"]),
        ("logit-bias 4=-inf 5=1", "logit_bias", [(4, float("-inf")), (5, 1.0)]),
        ("seed 7", "seed", 7),
        ("probs 3", "probs", 3),
        ("probs default", "probs", 0),
    ],
)
def test_a_setting_is_its_flag_and_survives_a_file(words: str, field: str, value: Any, tmp_path: Path) -> None:
    name, *values = words.split()
    options = chat_settings.change(Options(), name, values)
    assert getattr(options, field) == value
    saved.write(tmp_path / "x", saved.Saved("", [], chat_settings.chosen(options)))
    json.loads((tmp_path / "x").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert chat_settings.restored(Options(), saved.read(tmp_path / "x").settings) == options


@pytest.mark.parametrize("words", ["temp 101", "temp", "temp 1 2", "system x", "model x", "logit-bias 4", "foo 1", "seed -1"])
def test_settings_have_the_ranges_of_their_flags(words: str) -> None:
    name, *values = words.split()
    with pytest.raises(UsageError):
        chat_settings.change(Options(), name, values)


@pytest.mark.parametrize("settings", [{"temperature": 1e9}, {"temperature": None}, {"model": "x"}, {"top_k": [1, 2]}, {"seed": {}}])
def test_settings_of_a_file_are_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        chat_settings.restored(Options(), settings)


def test_history_is_kept_and_private(tmp_path: Path) -> None:
    path = tmp_path / "chat" / "history.jsonl"
    texts = ["one", "two\nlines", "你好", "\ud800"]
    assert History(path).read() == []
    for text in texts:
        History(path).add(text)
    assert History(path).read() == texts
    assert mode(path) == 0o600 and mode(path.parent) == 0o700
    path.chmod(0o644)
    History(path).add("x" * LARGEST)
    assert History(path).read() == texts, "what was pasted is not typed"
    History(path).add("five")
    assert mode(path) == 0o600


def test_history_survives_what_is_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'"a"\n\xff\xfe\n5\n' + b"[" * 5000 + b'\n"b"\n"cut of')
    assert History(path).read() == ["a", "b"]


def test_history_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(f'"{number}"\n' for number in range(2 * KEPT + 1)))
    assert History(path).read() == [str(number) for number in range(KEPT + 1, 2 * KEPT + 1)]
    assert len(path.read_text().splitlines()) == KEPT and mode(path) == 0o600
