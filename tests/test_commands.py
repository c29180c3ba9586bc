"""The commands on a real model: imported, listed, run, looked into, damaged, removed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from llmcli.cli.app import main
from llmcli.text.tokenizer import Tokenizer
from terminal import on_terminal

PROMPT = "Once upon a time"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A home with one model, `tiny`, unquantized and in int8."""
    path = tmp_path_factory.mktemp("commands")
    for quant in ("none", "int8"):
        done = llm(path, "import", str(data_dir / "models" / "stories260k"), "--quant", quant, "--name", "tiny")
        assert Path(answer(done).strip()).name == f"tiny-{quant}.safetensors"
    return path


def llm(home: Path, *words: str) -> Done:
    """The command, in this process: a new one for each of some fifty calls would take most of the time."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {"LLMCLI_HOME": str(home)}))
        stack.enter_context(mock.patch.object(sys, "stdin", stack.enter_context(open(os.devnull, encoding="utf-8"))))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        code = main(words)
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def answer(done: Done) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(done: Done, code: int) -> str:
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("llm: error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    return lines[0]


def test_the_greedy_text_of_the_original(home: Path, data_dir: Path) -> None:
    """expected.json has the 48 likeliest tokens after <s>, computed by others."""
    folder = data_dir / "models" / "stories260k"
    expected = json.loads((folder / "expected.json").read_text())
    tokenizer = Tokenizer((folder / "tokenizer.json").read_bytes(), json.loads((folder / "tokenizer_config.json").read_text()))
    for quant in ("none", "int8"):
        found = json.loads(answer(llm(home, "run", "", "-m", f"tiny:{quant}", "--temp", "0", "-n", "48", "--json")))
        assert [token["id"] for token in found["tokens"]] == expected["greedy_ids"]
        assert found["text"] == tokenizer.decode(expected["greedy_ids"]) and found["finish"] == "length"


def test_a_continuation_keeps_its_first_space(home: Path) -> None:
    assert answer(llm(home, "run", PROMPT, "-m", "tiny", "--temp", "0", "-n", "3")).startswith((",", " "))
    assert answer(llm(home, "run", "Once upon", "-m", "tiny", "--temp", "0", "-n", "1")) == " a\n"


def test_the_same_seed_gives_the_same_text_however_it_is_shown(home: Path) -> None:
    words = ["run", PROMPT, "-m", "tiny:int8", "--seed", "5", "-n", "60", "--temp", "1.2"]
    text = answer(llm(home, *words))
    assert answer(llm(home, *words, "--no-stream")) == text
    assert answer(llm(home, *words, "-t", "1")) == text
    assert json.loads(answer(llm(home, *words, "--json")))["text"] + "\n" == text
    lines = [json.loads(line) for line in answer(llm(home, *words, "--jsonl")).splitlines()]
    assert lines[-1]["text"] + "\n" == text and lines[-1]["generated_tokens"] == len(lines) - 1
    assert answer(llm(home, *words[:-4], "--temp", "1.2", "-n", "60", "--seed", "6")) != text


def test_a_stop_string(home: Path) -> None:
    whole = answer(llm(home, "run", PROMPT, "-m", "tiny", "--temp", "0", "-n", "60"))
    for stop in ("girl", "little gi", ". "):
        assert answer(llm(home, "run", PROMPT, "-m", "tiny", "--temp", "0", "-n", "60", "--stop", stop)) == whole.split(stop)[0] + "\n"


def test_probabilities_of_each_token(home: Path) -> None:
    done = llm(home, "run", PROMPT, "-m", "tiny", "-n", "3", "--seed", "1", "--json", "--probs", "4")
    for token in json.loads(answer(done))["tokens"]:
        assert set(token) == {"position", "id", "text", "bytes", "part", "logprob", "rank", "top"}
        assert [set(other) for other in token["top"]] == [{"id", "text", "bytes", "logprob", "final_prob", "removed_by"}] * 4
        assert token["top"][token["rank"] - 1]["logprob"] == token["logprob"] if token["rank"] <= 4 else True
    lines = llm(home, "run", PROMPT, "-m", "tiny", "-n", "3", "--probs", "2").stderr.splitlines()
    assert len(lines) == 3 and all("|" in line for line in lines)


def test_next(home: Path) -> None:
    found = json.loads(answer(llm(home, "next", PROMPT, "-m", "tiny", "-k", "512", "--json", "--top-k", "3")))
    assert set(found) == {"schema", "model", "tokens", "candidates", "entropy_bits"}
    assert (found["model"], found["schema"]) == ("tiny:int8", 1)
    assert [token["text"] for token in found["tokens"]][0] == "<s>" and len(found["candidates"]) == 512
    assert sum(candidate["prob"] for candidate in found["candidates"]) == pytest.approx(1)
    assert sum(candidate["final_prob"] for candidate in found["candidates"]) == pytest.approx(1)
    assert [candidate["rank"] for candidate in found["candidates"]] == list(range(1, 513))
    assert {candidate["removed_by"] for candidate in found["candidates"][3:]} == {"top_k"}
    table = answer(llm(home, "next", PROMPT, "-m", "tiny", "-k", "3")).splitlines()
    assert len(table) == 5 and table[-1].startswith("entropy ") and "\x1b" not in "".join(table)
    assert "--chat: tiny:int8 has no chat template" in refused(llm(home, "next", "x", "-m", "tiny", "--chat"), 2)


def test_control_tokens_in_a_text(home: Path) -> None:
    def tokens(*more: str) -> list[dict[str, Any]]:
        return list(json.loads(answer(llm(home, "next", "a</s>", "-m", "tiny", "--json", *more)))["tokens"])

    assert 2 not in [token["id"] for token in tokens()]
    assert tokens("--special")[-1] == {"id": 2, "text": "</s>"}


def test_a_text_that_is_too_long(home: Path) -> None:
    message = refused(llm(home, "run", "word " * 50, "-m", "tiny", "-c", "20"), 8)
    assert "20" in message and "-c" in message
    assert "512" in refused(llm(home, "run", "x", "-m", "tiny", "-c", "100000"), 2)
    done = llm(home, "run", "Once", "-m", "tiny", "-c", "20", "--temp", "0", "--json")
    assert json.loads(answer(done))["finish"] == "length" and "context of 20 tokens is full" in done.stderr


def test_names_that_are_nearly_right(home: Path) -> None:
    assert "Did you mean tiny" in refused(llm(home, "run", "x", "-m", "tinny"), 4)
    assert "tiny:int4" in refused(llm(home, "run", "x", "-m", "tiny:int4"), 4)
    assert "the model has no token 512" in refused(llm(home, "run", "x", "-m", "tiny", "--logit-bias", "512=1"), 2)


def test_a_banned_token_does_not_come(home: Path) -> None:
    words = ["run", PROMPT, "-m", "tiny", "--temp", "0", "-n", "5", "--json"]
    first = json.loads(answer(llm(home, *words)))["tokens"][0]["id"]
    assert first not in [token["id"] for token in json.loads(answer(llm(home, *words, "--logit-bias", f"{first}=-inf")))["tokens"]]


def test_list_and_show(home: Path) -> None:
    listed = answer(llm(home, "list"))
    assert "tiny:int8" in listed and "tiny:none" in listed
    models = {(m["name"], m["quantization"]): m for m in json.loads(answer(llm(home, "list", "--json")))["models"]}
    assert models["tiny", "none"]["size"] == Path(models["tiny", "none"]["path"]).stat().st_size
    assert re_find(answer(llm(home, "show", "tiny:none")), "parameters") == "260,032"
    assert json.loads(answer(llm(home, "show", "tiny:none", "--json")))["parameters"] == 260032


def re_find(text: str, label: str) -> str:
    return next(line.removeprefix(label).strip() for line in text.splitlines() if line.startswith(label))


def test_rm(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    assert answer(llm(tmp_path, "rm", "tiny:none")).count("removed") == 1
    assert "tiny:none" not in answer(llm(tmp_path, "list"))
    assert answer(llm(tmp_path, "rm", "tiny")).count("tiny-int8") == 1
    assert "tiny" in refused(llm(tmp_path, "rm", "tiny"), 4)


def test_bad_folders(home: Path, data_dir: Path, tmp_path: Path) -> None:
    assert "no file or folder" in refused(llm(home, "import", str(tmp_path / "missing")), 4)
    source = data_dir / "models" / "stories260k"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(source / name, tmp_path / name)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1000])
    refused(llm(home, "import", str(tmp_path), "--name", "cut"), 3)
    (tmp_path / "model.safetensors").write_bytes(weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba", "architectures": ["MambaForCausalLM"]}))
    assert "LlamaForCausalLM" in refused(llm(home, "import", str(tmp_path), "--name", "cut"), 3)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("nothing")
    assert "tokenizer_config.json" in refused(llm(home, "import", str(tmp_path), "--name", "cut"), 3)
    assert "cut" not in answer(llm(home, "list"))


def test_damaged_weights_are_noticed(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "data", tmp_path / "data")
    path = tmp_path / "data" / "models" / "tiny-int8.safetensors"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 1
    path.write_bytes(data)
    refused(llm(tmp_path, "run", "x", "-m", "tiny:int8", "-n", "1"), 6)
    assert answer(llm(tmp_path, "run", "x", "-m", "tiny:int8", "-n", "1", "--no-verify"))
    path.write_bytes(data[:-5000])
    refused(llm(tmp_path, "run", "x", "-m", "tiny:int8", "-n", "1"), 3)


def test_progress_on_a_terminal_leaves_one_line(home: Path, data_dir: Path) -> None:
    words = ["-m", "llmcli", "import", str(data_dir / "models" / "stories260k"), "--name", "again"]
    code, shown = on_terminal(words, {"LLMCLI_HOME": str(home)}, seconds=60)
    assert code == 0 and b"again-int8.safetensors" in shown
    plain = llm(home, "import", str(data_dir / "models" / "stories260k"), "--name", "again")
    assert "\x1b" not in plain.stderr and plain.stderr.count("%") <= 5


def test_ctrl_c_while_the_model_computes(home: Path) -> None:
    words = ["-m", "llmcli", "run", PROMPT, "-m", "tiny", "--temp", "2", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "100000"]
    start = time.monotonic()
    code, shown = on_terminal([*words, "--device", "reference"], {"LLMCLI_HOME": str(home)}, PROMPT.encode(), signal.SIGINT)
    assert code == 130 and b"Traceback" not in shown and time.monotonic() - start < 60
