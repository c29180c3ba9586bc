"""docs/weighted-die.md: its commands run, and they still print what it shows."""

from __future__ import annotations

import contextlib
import html
import math
import re
import shlex
from pathlib import Path

import pytest

from terminal import on_terminal
from test_commands import answer
from test_look import llm

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = (ROOT / "docs" / "weighted-die.md").read_text("utf-8")
SESSIONS = [
    (command, output)
    for block in re.findall(r"^<!-- session: [^\n]* -->\n```console\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    for command, output in re.findall(r"^\$ (.+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
OTHERS = re.findall(r"^(llm .+)$", TUTORIAL, re.MULTILINE) + re.findall(r"`(llm [a-z]+ [^`]*)`", TUTORIAL)


def number(word: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(word.rstrip("%,").replace(",", ""))
    return None


def same(shown: str, recorded: str) -> None:
    """Words are equal, and numbers within what CPUs of other kinds may make of them. Bars and lines' ends are left out."""
    for line, want in zip(shown.strip().splitlines(), recorded.strip().splitlines(), strict=True):
        words, wanted = ([word for word in text.split() if not re.fullmatch("[█▏▎▍▌▋▊▉]+", word)] for text in (line, want))
        assert len(words) == len(wanted), (line, want)
        for word, right in zip(words, wanted, strict=True):
            a, b = number(word), number(right)
            whole = a is not None and "." not in word + right
            near = a is not None and b is not None and math.isclose(a, b, rel_tol=0.03, abs_tol=1.01 if whole else 0.02)
            assert word == right or near, f"{word} is not {right}: {want}\nrun tools/record_session.py"


def test_the_tutorial_goes_all_the_way() -> None:
    assert [shlex.split(command)[1] for command, _ in SESSIONS] == [
        *("tokenize", "tokenize", "next", "next", "lens", "attend", "attend", "next"),
        *("run", "run", "run", "run", "run", "score"),
    ]
    assert len(OTHERS) == 5 and all(output.strip() for _, output in SESSIONS)


@pytest.mark.parametrize(("command", "output"), SESSIONS, ids=[command for command, _ in SESSIONS])
def test_a_command_prints_what_the_tutorial_shows(command: str, output: str, tmp_path: Path) -> None:
    settings = {"LLMCLI_HOME": str(tmp_path), "COLUMNS": "80", "LINES": "24", "NO_COLOR": "1", "TERM": "dumb"}
    code, shown = on_terminal(["-m", "llmcli", *shlex.split(command)[1:]], settings)
    text = shown.decode().replace("\r\n", "\n")
    assert code == 0
    if "--temp 2 " in command:  # as the tutorial says: no two kinds of CPU need draw the same words
        prompt = shlex.split(command)[2]
        assert text.startswith(prompt) and output.startswith(prompt) and len(text) > len(prompt) + 20
    else:
        same(text, output)


@pytest.mark.parametrize("command", OTHERS)
def test_other_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer(llm(*shlex.split(command)[1:]))
    assert [file.name for file in tmp_path.iterdir()] == re.findall(r"--html (\S+)", command)


def test_the_example_is_worth_being_one() -> None:
    """What the text says of the numbers, from the numbers."""
    by_command = dict(SESSIONS)
    lens = by_command['llm lens "Tom had a red ball. He lost his" -k 1'].splitlines()[1:8]
    rows = [line.split() for line in lens]
    assert [row[1] for row in rows] == ["␣his", "␣own", "␣own", "␣mom", "␣mom", "␣favorite", "␣ball"]
    divergence, rise = ([number(row[at]) or 0.0 for row in rows] for at in (-3, -2))
    assert divergence == sorted(divergence, reverse=True) and rise == sorted(rise) and rows[0][-1] == "528"
    best, second = (line.split() for line in by_command['llm next "Tom had a red ball. He lost his" -k 5'].splitlines()[1:3])
    assert f"{float(best[5]) - float(second[5]):.3f}" == "1.381" and f"{math.exp(1.381):.1f}" == "4.0"
    assert [best[1], second[1]] == ["␣ball", "␣red"] and 6 < 2 ** float("2.692") < 7
    head = answer(llm("attend", "Tom had a red ball. He lost his", "--layer", "5", "--head", "1"))
    last = [int(word) for word in head.splitlines()[10].split()[2:]]
    assert last.index(max(last)) == 4  # "red"
    favourite = answer(llm("score", "Tom had a red ball. He lost his ball.", "--table")).splitlines()[9]
    assert "␣lost" in favourite and "␣liked" in favourite


@pytest.mark.parametrize("name", ["attend", "score"])
def test_pictures_show_what_the_commands_print(name: str) -> None:
    """tools/record_pictures.py makes them. Digits are left out: they may differ as they may above."""
    svg = (ROOT / "docs" / "images" / f"{name}.svg").read_text("utf-8")
    rows: dict[float, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(r'<text [^>]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>(.*?)</text>', svg):
        rows.setdefault(float(y), []).append((float(x), html.unescape(text).replace("\xa0", " ")))
    lines = ["".join(text for _, text in sorted(row)) for _, row in sorted(rows.items())]
    command = next(line for line in lines if line.startswith("$ llm "))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", answer(llm(*shlex.split(command)[2:], "--color", "always")))
    kept, found = (re.sub(r"[\s\d.]", "", text) for text in (shown, "".join(lines[lines.index(command) + 1 :])))
    assert kept == found, "run tools/record_pictures.py"
    assert "url(" not in svg.replace("url(#", "") and "http" not in re.sub(r'xmlns="[^"]*"|<!--.*?-->', "", svg)
