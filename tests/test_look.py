"""`llm score`, `llm tokenize` and `llm next` on the demo model: the same numbers everywhere, on any text, in any terminal."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest

import test_commands
from llmcli import acquire, places
from llmcli.cli import heat
from random_model import write_folder
from terminal import on_terminal
from test_commands import Done, answer, refused

STORY = "Once upon a time there was a little dog."
HOSTILE = "a \x1b[31mred\x07\r\nnext\ttab \u202eleft\u202c \u05e9\u05dc\u05d5\u05dd \U0001f600 e\u0301 \u4e2d\u6587.\n"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a model with a template and without sense."""
    folder = write_folder(tmp_path_factory.mktemp("look") / "chat")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[bot]"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(acquire.import_model(folder, "int8", "chat", path=folder.parent / "chat-int8.safetensors"))


def llm(*words: str) -> Done:
    """The command with no models but the one that comes along."""
    return test_commands.llm(Path(os.environ["LLMCLI_HOME"]), *words)


def records(done: Done) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(token records, summary)."""
    lines = [json.loads(line) for line in answer(done).splitlines()]
    assert lines[-1].pop("type") == "summary"
    return lines[:-1], lines[-1]


# llm score


def test_score_says_what_next_says_step_by_step() -> None:
    words = STORY.removesuffix(".").split(" ")
    tokens, summary = records(llm("score", " ".join(words), "--json", "-k", "3"))
    assert len(tokens) == len(words) + 1 and tokens[0]["logprob"] is None and tokens[0]["rank"] is None
    for number in range(1, len(words)):
        found = json.loads(answer(llm("next", " ".join(words[:number]), "--json", "-k", "4096")))
        candidate = next(c for c in found["candidates"] if c["id"] == tokens[number + 1]["id"])
        assert {name: candidate[name] for name in ("rank", "logprob", "bytes")} == {
            name: tokens[number + 1][name] for name in ("rank", "logprob", "bytes")
        }
        assert [other["logprob"] for other in tokens[number + 1]["top"]] == [c["logprob"] for c in found["candidates"][:3]]
        assert tokens[number + 1]["entropy_bits"] == found["entropy_bits"]
    total = math.fsum(token["logprob"] for token in tokens[1:])
    assert summary["logprob"] == pytest.approx(total) and summary["scored_bytes"] == len(" ".join(words))
    assert summary["perplexity"] == pytest.approx(math.exp(-total / len(words)))
    assert summary["bits_per_byte"] == pytest.approx(sum(token["surprise_bits"] for token in tokens[1:]) / len(" ".join(words)))


@pytest.mark.parametrize("form", ["--json", "--jsonl"])
def test_score_reads_what_run_writes(tmp_path: Path, form: str) -> None:
    """Every number of a generated text, again; greedy tokens have rank 1."""
    file = tmp_path / "run.json"
    for more in (("--temp", "0"), ("--temp", "1.4", "--top-p", "1", "--seed", "3")):
        file.write_text(answer(llm("run", "The cat", "-n", "30", form, "--probs", "2", *more)))
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        made = lines[0]["tokens"] if form == "--json" else lines[:-1]
        tokens, _ = records(llm("score", "--ids", "-f", str(file), "--json", "-k", "2"))
        assert [t["id"] for t in tokens[: -len(made)]] == lines[-1]["prompt_ids"]
        for one, again in zip(made, tokens[-len(made) :], strict=True):
            assert {name: one[name] for name in ("position", "id", "text", "bytes", "logprob", "rank")}.items() <= again.items()
            assert [(t["id"], t["logprob"]) for t in one["top"]] == [(t["id"], t["logprob"]) for t in again["top"]]
            assert again["rank"] == 1 or "0" not in more


def test_ids_as_numbers() -> None:
    ids = answer(llm("tokenize", STORY, "--ids"))
    same = [llm("score", form, "--ids", "--json") for form in (ids, ids.replace(" ", ","), f"[{ids.strip().replace(' ', ', ')}]")]
    assert len({answer(done) for done in [*same, llm("score", STORY, "--json")]}) == 1
    for bad in ("1 two", "-1", "1.5", "99999999999", "{}", '{"tokens": [1], "prompt_ids": []}', "{", '{"prompt_ids": [1.5], "tokens": []}'):
        refused(llm("score", "--ids", "--", bad), 8)
    assert "does not know token 4096" in refused(llm("score", "1 4096", "--ids"), 8).replace(",", "")
    refused(llm("score", "1", "--ids", "--chat"), 2)


def test_a_table_of_scores() -> None:
    lines = answer(llm("score", STORY, "-k", "2")).splitlines()
    assert lines[0].split() == ["position", "token", "id", "probability", "bits", "rank", "favourite"]
    assert "\x1b" not in "".join(lines) and len(lines) == 13
    tokens, summary = records(llm("score", STORY, "--json", "-k", "2"))
    probs = [f"{100 * math.exp(value):.2f}%" for value in (tokens[9]["logprob"], *(other["logprob"] for other in tokens[9]["top"]))]
    bits = f"{tokens[9]['surprise_bits']:.2f}"
    assert lines[10].split() == ["9", "␣dog", "801", probs[0], bits, "7", "␣girl", probs[1], "␣boy", probs[2]]
    totals = f"perplexity {summary['perplexity']:.4g}, {summary['bits_per_byte']:.4f} bits per byte"
    assert lines[-1] == f"{totals}, 10 of 11 tokens scored, demo:int8" and totals.startswith("perplexity 2.9")
    assert answer(llm("score", "")).splitlines()[-1] == "1 token, which follows nothing: nothing is scored, demo:int8"


def test_a_coloured_text() -> None:
    """Colours are extra: without them and the control tokens' names the text is there, and every colour is explained."""
    shown = answer(llm("score", STORY, "--color", "always"))
    text, legend, _ = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    assert text == "<|endoftext|>" + STORY
    assert all(color in shown.splitlines()[1] for color in heat.HEAT) and "<1" in legend and ">10" in legend
    assert f"{heat.HEAT[3]} dog\x1b[0m" in shown  # 8 bits
    assert f"{heat.HEAT[1]} there\x1b[0m" in shown


@pytest.mark.parametrize("bits", [0.0, 0.99, 1.0, 2.9, 3.0, 6.0, 9.9, 10.0, 50.0, math.nan])
def test_colours_begin_where_the_legend_says(bits: float) -> None:
    assert heat.surprise(bits) == heat.HEAT[sum(bits >= level for level in (1, 3, 6, 10))]


@pytest.mark.parametrize("command", ["score", "tokenize"])
def test_any_text_is_safe_on_a_terminal(command: str, tmp_path: Path) -> None:
    """Control characters shown, split characters whole, colours ended before each newline, rows one line each."""
    file = tmp_path / "text"
    file.write_bytes(HOSTILE.encode())
    shown = answer(llm(command, "-f", str(file), "--color", "always"))
    assert not set(re.sub(r"\x1b\[[0-9;]*m", "", shown)) & {"\x1b", "\x07", "\r", "\u202e", "\u202c"}
    assert r"\x1b[31mred\x07" in re.sub(r"\x1b\[[0-9;]*m", "", shown) and r"\u202e" in shown
    assert "\u05e9\u05dc\u05d5\u05dd \U0001f600" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    for line in shown.splitlines():
        assert not re.search(r"\x1b\[3[^m]*m(?!.*\x1b\[0m)", line), line
    rows = answer(llm(command, "-f", str(file), "--table")).split("\n")
    count = int(answer(llm("tokenize", "-f", str(file), "--count")))
    assert len(rows) == count + 3 and "\x1b" not in "".join(rows) and "\r" not in "".join(rows)


@pytest.mark.parametrize("columns", [200, 80, 50, 30, 10])
def test_rows_fit_in_a_terminal(columns: int) -> None:
    from llmcli.cli import bars, score, tokenize

    for layout in (score.LAYOUT, tokenize.LAYOUT):
        rows = heat.Rows(layout, columns)
        line = rows.row(["\u4e2d\u6587" * 20] * len(layout))
        least = sum(column.width + 2 for column in layout if not column.need) - 2
        assert max(bars.width(rows.header()), bars.width(line)) - 1 <= max(columns, least)


def test_long_texts_are_read_in_windows(tmp_path: Path) -> None:
    file, out = tmp_path / "text", tmp_path / "scores"
    file.write_text(STORY * 500)
    done = llm("score", "-f", str(file), "--json", "-o", str(out), "-k", "0")
    assert answer(done) == "" and "windows of 512 tokens that overlap by 256" in done.stderr
    assert done.stderr.count("% ") <= 6 and "100%  scoring" in done.stderr
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["position"] for line in lines[:-1]] == list(range(lines[-1]["tokens"])) and "top" not in lines[0]
    assert (lines[-1]["scored_tokens"], lines[-1]["window"], lines[-1]["stride"]) == (lines[-1]["tokens"] - 1, 512, 256)
    short = llm("score", STORY, "--json", "--window", "6", "--stride", "2")
    assert "windows of 6 tokens that overlap by 4" in short.stderr
    assert "1 to 6" in refused(llm("score", STORY, "--window", "6", "--stride", "7"), 2)
    assert "2 to 512" in refused(llm("score", STORY, "--window", "600"), 2)


def test_on_a_real_terminal(tmp_path: Path) -> None:
    code, shown = on_terminal(["-m", "llmcli", "score", STORY], {"LLMCLI_HOME": str(tmp_path)})
    assert code == 0 and heat.HEAT[3].encode() in shown and b"perplexity 2.9" in shown
    code, shown = on_terminal(["-m", "llmcli", "tokenize", STORY], {"LLMCLI_HOME": str(tmp_path), "NO_COLOR": "1"})
    assert code == 0 and b"\x1b" not in shown and b"position" in shown


# llm tokenize


def test_tokens_of_a_text() -> None:
    found = json.loads(answer(llm("tokenize", "The \u00e9t\u00e9 \U0001f600", "--json")))
    assert (found["schema"], found["model"], found["count"]) == (1, "demo:int8", len(found["tokens"]))
    assert b"".join(bytes.fromhex(token["bytes"]) for token in found["tokens"][1:]).decode() == "The \u00e9t\u00e9 \U0001f600"
    ids = [token["id"] for token in found["tokens"]]
    assert answer(llm("tokenize", "The \u00e9t\u00e9 \U0001f600", "--ids")) == " ".join(map(str, ids)) + "\n"
    assert answer(llm("tokenize", "--decode", " ".join(map(str, ids)))) == "The \u00e9t\u00e9 \U0001f600\n"
    assert answer(llm("tokenize", "The \u00e9t\u00e9 \U0001f600", "--count")) == f"{len(ids)}\n"
    assert answer(llm("tokenize", "The cat")).splitlines()[-1] == "3 tokens of 7 bytes of text, 2.33 bytes a token, demo:int8"
    refused(llm("tokenize", "x", "--json", "--count"), 2)
    refused(llm("tokenize", "x", "--decode"), 8)


def test_tokenize_with_markup_and_template(chat: str) -> None:
    plain, special = (answer(llm("tokenize", "a<|endoftext|>", "--ids", *more)).split() for more in ((), ("--special",)))
    assert special[-1] == "0" and plain[1:].count("0") == 0
    assert answer(llm("tokenize", "hi", "--chat", "-m", chat, "--ids")) == answer(
        llm("tokenize", "<|endoftext|>[user]hi[bot]", "--special", "-m", chat, "--ids")
    ).removeprefix("0 ")
    assert "no chat template" in refused(llm("tokenize", "hi", "--chat"), 2)


def test_tokenize_reads_no_weights(tmp_path: Path) -> None:
    """Damaged ones do not hinder it."""
    damaged = tmp_path / "demo-int8.safetensors"
    data = bytearray(next(places.demo().glob("*.safetensors")).read_bytes())
    data[-5000] ^= 1
    damaged.write_bytes(data)
    assert answer(llm("tokenize", STORY, "-m", str(damaged), "--ids")) == answer(llm("tokenize", STORY, "--ids"))
    refused(llm("score", STORY, "-m", str(damaged)), 6)


# llm next


def test_choices_as_json(tmp_path: Path) -> None:
    found = json.loads(answer(llm("next", "The cat sat on the", "--choices", "floor,big tree, moon", "--json")))
    assert set(found) == {"schema", "model", "tokens", "choices"}
    assert [choice["text"] for choice in found["choices"]] == ["floor", "big tree", " moon"]
    assert [len(choice["ids"]) for choice in found["choices"]] == [1, 2, 1]
    assert sum(choice["prob"] for choice in found["choices"]) == pytest.approx(1)
    for choice in found["choices"]:
        scored, _ = records(llm("score", "The cat sat on the " + choice["text"].strip(), "--json"))
        own = [token["logprob"] for token in scored[-len(choice["ids"]) :]]
        assert choice["logprob"] == math.fsum(own) and choice["prob_per_token"] == pytest.approx(math.exp(math.fsum(own) / len(own)))
    file = tmp_path / "choices"
    file.write_text("floor\n\nbig tree\n moon\n")
    same = json.loads(answer(llm("next", "The cat sat on the", "--choices-file", str(file), "--json")))
    assert same == found
    other = json.loads(answer(llm("next", "The cat sat on the", "--choices", "floor", "--join", " nice ", "--json")))
    assert len(other["choices"][0]["ids"]) == 2


def test_choices_as_a_table(chat: str) -> None:
    lines = answer(llm("next", "The cat sat on the", "--choices", "moon,floor")).splitlines()
    assert [line.split()[0] for line in lines] == ["choice", "floor", "moon", "2"]
    assert answer(llm("next", "Is it?", "--choices", "Yes,No", "--chat", "-m", chat)).count("%") == 4
    for words in (("--choices", ","), ("--choices", "a", "--token", "b"), ("--join", "x")):
        refused(llm("next", "The cat", *words), 2)
    refused(llm("next", "The cat", "--choices-file", "/nonexistent"), 4)
    assert r"\x1b[2J" in answer(llm("next", "The cat", "--choices", "a\x1b[2J,b"))


def test_a_named_token() -> None:
    found = json.loads(answer(llm("next", "The cat", "-k", "2", "--token", " the", "--token", " was", "--json")))
    assert [candidate["text"] for candidate in found["candidates"]] == [" was", " and", " the"]
    everything = json.loads(answer(llm("next", "The cat", "-k", "4096", "--json")))["candidates"]
    named = found["candidates"][-1]
    assert everything[named["rank"] - 1] == named and named["rank"] > 100
    row = answer(llm("next", "The cat", "-k", "2", "--token", " the")).splitlines()[3].split()
    assert row[0] == str(named["rank"])
    assert " ' z' 'eb' 'ra'" in refused(llm("next", "The cat", "--token", " zebra"), 2)
    assert json.loads(answer(llm("next", "The cat", "-k", "1", "--token", "<|endoftext|>", "--json")))["candidates"][-1]["id"] == 0


def test_several_texts() -> None:
    texts = ["The cat sat on the", "The dog ran to the"]
    words = ["next", texts[0], "--compare", texts[1], "-k", "4"]
    lines = answer(llm(*words)).splitlines()
    assert lines[:2] == [f"1: {texts[0]}", f"2: {texts[1]}"]
    alone = [json.loads(answer(llm("next", text, "-k", "4096", "--json"))) for text in texts]
    assert [json.loads(line) for line in answer(llm(*words[:-1], "4096", "--json")).splitlines()] == alone
    probs = [{candidate["text"].replace(" ", "␣"): candidate["prob"] for candidate in one["candidates"]} for one in alone]
    for line in lines[3:-2]:
        name, *cells = line.split()
        assert cells == [f"{100 * one[name]:.2f}%" for one in probs]
    both = answer(llm("next", texts[0], "--compare", texts[1], "--choices", "floor,park")).splitlines()
    assert len(both) == 5 and both[2].split() == ["choice", "1", "2"]
