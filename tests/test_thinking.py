"""Thoughts told from answers: in any stream, for any style, and on the way to a person or a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenizers_made
from llmcli.errors import TemplateError
from llmcli.text.thinking import STYLES, Piece, Prompt, Splitter, Style, find_style, prompt
from llmcli.text.tokenizer import Stream, Tokenizer
from terminal import FAKE, environment, on_terminal

THINK = STYLES[-1]
HARMONY = STYLES[0]
HI = [{"role": "user", "content": "hi"}]


def tokenizer(*names: str, special: bool = True) -> Tokenizer:
    """A byte-level one with these tokens beside its own."""
    data = json.loads(tokenizers_made.byte_level())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    first = 1 + max(token["id"] for token in data["added_tokens"])
    data["added_tokens"] += [{"id": first + i, "content": name, **flags} for i, name in enumerate(names)]
    return Tokenizer(json.dumps(data).encode())


def split(text: str, style: Style | None, inside: bool = False, cuts: tuple[int, ...] = ()) -> list[Piece]:
    """All pieces of a text that comes in these parts, neighbours joined."""
    splitter = Splitter(style, inside)
    ends = [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    pieces = [piece for start, end in zip([0, *ends], ends, strict=False) for piece in splitter.feed(text[start:end])]
    joined: list[Piece] = []
    for part, piece in [*pieces, *splitter.finish()]:
        if joined and joined[-1].part == part:
            piece = joined.pop().text + piece
        joined.append(Piece(part, piece))
    return joined


def parts(pieces: list[Piece]) -> dict[str, str]:
    return {part: "".join(text for p, text in pieces if p == part) for part in ("thought", "answer")}


@pytest.mark.parametrize(
    ("style", "inside", "text", "thought", "answer"),
    [
        (THINK, False, "<think>\nHm.\n\nWell.\n</think>\n\nYes.\n", "Hm.\n\nWell.", "Yes.\n"),
        (THINK, True, "Hm.</think>Yes.", "Hm.", "Yes."),
        (THINK, True, "\n Hm. \n</think>\n\n", "Hm.", ""),
        (THINK, False, "\n<think>\n\n</think>\n\nYes.", "", "Yes."),
        (THINK, False, "The tag <think> opens, </think> closes.", "", "The tag <think> opens, </think> closes."),
        (THINK, False, "<think>a</think>b <think>c</think>", "a", "b <think>c</think>"),
        (THINK, False, "<think>never ends", "never ends", ""),
        (THINK, False, "  <thin", "", "  <thin"),
        (THINK, False, "\n\n x", "", "\n\n x"),
        (THINK, True, "a </thinkx> b < c", "a </thinkx> b < c", ""),
        (THINK, False, "</think>\nYes.", "", "Yes."),
        (None, False, "<think>a</think>b", "", "<think>a</think>b"),
        (
            HARMONY,
            False,
            "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>analysis<|message|> B.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Yes.",
            "A.B.",
            "Yes.",
        ),
        (HARMONY, False, "<|channel|>final<|message|>Yes.", "", "Yes."),
        (
            HARMONY,
            False,
            "<|channel|>commentary<|message|>First.<|end|><|start|>assistant<|channel|>analysis<|message|>A."
            "<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            "A.",
            "First.Yes.",
        ),
        (STYLES[1], False, " to=self<|message|>A<|eom|><|start|>assistant to=user<|message|>Yes.", "A", "Yes."),
        (STYLES[2], True, "Step 1.\n[BEGIN FINAL RESPONSE]\nYes.\n[END FINAL RESPONSE]", "Step 1.", "Yes.\n"),
        (STYLES[3], False, "<|channel>thought\nA\n<channel|>Yes.", "A", "Yes."),
    ],
)
def test_what_is_a_thought(style: Style | None, inside: bool, text: str, thought: str, answer: str) -> None:
    pieces = split(text, style, inside)
    assert parts(pieces) == {"thought": thought, "answer": answer}
    assert "".join(piece.text for piece in pieces) == text


MARKERS = sorted({marker for style in STYLES for marker in style.markers})
TEXTS = st.lists(st.one_of(st.sampled_from([*MARKERS, *(m[:-1] for m in MARKERS), "\n", " ", "<", "a"]), st.text(max_size=3))).map("".join)


@given(style=st.sampled_from([*STYLES, None]), inside=st.booleans(), text=TEXTS, cuts=st.lists(st.integers(0, 500), max_size=20))
def test_the_cut_of_a_stream_changes_nothing(style: Style | None, inside: bool, text: str, cuts: list[int]) -> None:
    """No character is lost, doubled or moved to another part, in one piece, in any pieces, and a character at a time."""
    inside = inside and style is not None
    whole = split(text, style, inside)
    assert "".join(piece.text for piece in whole) == text
    assert split(text, style, inside, tuple(cuts)) == whole
    assert split(text, style, inside, tuple(range(len(text)))) == whole


@given(style=st.sampled_from(STYLES), thought=st.text("ab<\n "), answer=st.text("ab<\n "))
def test_a_usual_stream_comes_apart_into_what_was_put_together(style: Style, thought: str, answer: str) -> None:
    opening = style.opens[0] if style.opens else ""
    found = parts(split(f"{opening}{thought}{style.closes[0]}{answer}", style, inside=not opening))
    assert found == {"thought": thought.strip(), "answer": answer.lstrip()}


@pytest.mark.parametrize("style", STYLES)
def test_text_is_not_kept_back_longer_than_needed(style: Style) -> None:
    splitter = Splitter(style, inside=True)
    assert splitter.feed("A thought.") == [Piece("thought", "A thought.")]
    assert splitter.feed(style.closes[0] + "An answer")[-1] == Piece("answer", "An answer")
    assert splitter.feed(" of several words") == [Piece("answer", " of several words")]


@pytest.mark.parametrize("style", STYLES)
def test_markers_of_a_style_are_told_apart(style: Style) -> None:
    """None is a part of another: which one is meant never depends on what follows."""
    assert not [(a, b) for a in style.markers for b in style.markers if a != b and a in b]


def test_the_style_is_the_templates_then_the_tokenizers() -> None:
    assert find_style("{{ '<think>' }}", []) is THINK
    assert find_style("x", ["<s>", "<think>", "</think>"]) is THINK
    assert find_style("{{ '<|channel|>analysis<|message|>' }}", ["<think>"]) is HARMONY
    assert find_style("x", ["<s>"]) is None


SWITCH = "{{ messages[-1].content }}|{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"


@pytest.mark.parametrize(
    ("template", "think", "expected", "inside"),
    [
        (SWITCH, "auto", "hi|", False),
        (SWITCH, "show", "hi|", False),
        (SWITCH, "off", "hi|<think>\n\n</think>\n\n", False),
        ("{{ messages[-1].content }}|<think>{{ '\n' }}", "auto", "hi|<think>\n", True),
        ("{{ messages[-1].content }}|<think>\n", "off", "hi|<think>\n\n</think>\n\n", False),
        ("{{ messages[-1].content }}{# <think> #}|", "off", "hi|<think>\n\n</think>\n\n", False),
        ("{{ messages[-1].content }}{# [THINK] #}|", "off", "hi|[THINK][/THINK]", False),
        ("{{ messages[-1].content }}|<|START_THINKING|>", "off", "hi|<|START_THINKING|><|END_THINKING|>", False),
        ("{{ messages[-1].content }}{# to=self<|message|> #}|", "off", "hi| to=user<|message|>", False),
        ("{{ messages[-1].content }}|[BEGIN FINAL RESPONSE]{{ '' if x else '?' }}|", "auto", "hi|[BEGIN FINAL RESPONSE]?|", True),
        (
            "{{ messages[-1].content }}|{{ '<seed:think></seed:think>' if thinking_budget == 0 }}",
            "off",
            "hi|<seed:think></seed:think>",
            False,
        ),
    ],
)
def test_prompts(template: str, think: Any, expected: str, inside: bool) -> None:
    made = tokenizer()
    found = prompt(made, template, HI, think)
    assert made.decode(found.ids) == expected and found.inside is inside
    assert found.splitter().thinking is inside


def test_a_prompt_of_a_model_that_does_not_think() -> None:
    made = Tokenizer(tokenizers_made.sentencepiece())
    found = prompt(made, "{{ messages[0].content }}", HI, "off")
    assert found == Prompt(made.encode("hi", bos=False))
    with pytest.raises(TemplateError):
        prompt(made, "{{ raise_exception('no') }}", HI, "off")


def test_markers_that_are_control_tokens_reach_the_splitter() -> None:
    made = tokenizer("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")
    found = prompt(made, "<|start|>assistant{# <|channel|>analysis<|message|> #}", HI)
    text = "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"
    stream = Stream(made, found.ids, found.shown)
    shown = "".join(map(stream.feed, made.encode(text, special=True)))
    assert shown == text.removesuffix("<|return|>")
    assert parts(split(shown, found.style)) == {"thought": "A", "answer": "Yes."}
    assert made.decode(made.encode(text, special=True)) == "analysisAassistantfinalYes."


def test_a_tag_that_somebody_typed_opens_no_thoughts() -> None:
    made = tokenizer("</think>")
    found = prompt(made, "{{ messages[0].content }}", [{"role": "user", "content": "<think>"}])
    assert found.style is THINK and not found.inside


def test_off_on_real_templates(data_dir: Path) -> None:
    """With 'off' none of them leaves the model in the middle of its thoughts, and where a template closes them itself, nothing is added."""
    made, seen = tokenizer(), 0
    for path in sorted((data_dir / "templates").glob("*.jinja")):
        template = path.read_text("utf-8")
        try:
            found = prompt(made, template, HI, "off", bos_token="<s>", eos_token="</s>")
        except TemplateError:
            continue
        assert not found.inside, path.name
        seen += found.style is not None
        assert made.decode(found.ids).count("</think>") <= 1 + template.count("`</think>`"), path.name
    assert seen >= 30


def fake(texts: list[str], template: str, *words: str) -> subprocess.CompletedProcess[bytes]:
    spoken = environment({"FAKE_TEXTS": json.dumps(texts), "FAKE_TEMPLATE": template})
    words = ("run", "hi", "--no-stdin", *words)
    return subprocess.run([sys.executable, FAKE, *words], env=spoken, capture_output=True, timeout=60)


TEXT = ["<thi", "nk>", "\nHm", ".", "\n</th", "ink>\n\n", "Yes", "."]


def test_a_pipe_gets_the_answer_alone_unless_thoughts_are_asked_for(tmp_path: Path) -> None:
    for more in ((), ("--no-stream",)):
        assert fake(TEXT, "<think></think>", *more).stdout == b"Yes.\n"
        assert fake(TEXT, "<think></think>", "--think", "show", *more).stdout == b"<think>\nHm.\n</think>\n\nYes.\n"
    file = tmp_path / "answer"
    assert fake(TEXT, "<think></think>", "-o", str(file)).returncode == 0 and file.read_text() == "Yes.\n"
    assert fake(["Hm.</think>Yes."], "<think>").stdout == b"Yes.\n"
    assert fake(["Yes."], "plain").stdout == b"Yes.\n"


def test_the_choice_reaches_the_prompt() -> None:
    for think in ("auto", "off", "show"):
        assert fake(["x"], "plain", "--think", think, "--json").returncode == 0
        spoken = environment({"FAKE_TEXTS": '"prompt"', "FAKE_TEMPLATE": "plain"})
        done = subprocess.run(
            [sys.executable, FAKE, "run", "hi", "--no-stdin", "--think", think], env=spoken, capture_output=True, timeout=60
        )
        assert done.stdout == f"'hi|{think}'\n".encode()
    assert fake(["x"], "plain", "--think", "maybe").returncode == 2


def test_thoughts_without_an_answer() -> None:
    done = fake(["Hm.", " So"], "<think>")
    assert done.stdout == b"" and b"ends in the model's thoughts" in done.stderr
    assert fake(["Hm.", " So"], "<think>", "--think", "show").stdout == b"<think>\nHm. So\n"


def test_json_has_every_token_with_its_part() -> None:
    found = json.loads(fake(TEXT, "<think></think>", "--json").stdout)
    assert (found["text"], found["thoughts"]) == ("Yes.", "Hm.")
    assert [token["text"] for token in found["tokens"]] == TEXT
    assert [token["part"] for token in found["tokens"]] == ["answer", *["thought"] * 5, "answer", "answer"]
    lines = [json.loads(line) for line in fake(TEXT, "<think></think>", "--jsonl").stdout.splitlines()]
    assert [line["part"] for line in lines[:-1]] == [token["part"] for token in found["tokens"]]
    assert lines[-1]["text"] == "Yes."


def test_thoughts_on_a_terminal() -> None:
    spoken = {"FAKE_TEXTS": json.dumps(TEXT), "FAKE_TEMPLATE": "<think></think>"}
    words = [FAKE, "run", "hi"]
    code, shown = on_terminal(words, spoken)
    assert code == 0 and shown == b"\x1b[2mHm.\x1b[0m\r\n\r\nYes.\r\n"
    assert on_terminal(words, {**spoken, "NO_COLOR": "1"})[1] == b"<think>\r\nHm.\r\n</think>\r\n\r\nYes.\r\n"
    endless = {"FAKE_TEXTS": '["a\\u001b "]', "FAKE_TEMPLATE": "<think>", "FAKE_REPEAT": "1000", "FAKE_DELAY": "0.05"}
    code, shown = on_terminal(words, endless, interrupt_at=b"a\\x1b a")
    assert code == 130 and b"\x1b[0m" in shown
