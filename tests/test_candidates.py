"""Several answers to one prompt: each is the one that its seed gives alone; ranked by what is said; less work than one by one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli import acquire
from llmcli import engine as engines
from llmcli.cli.app import main
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, OutOfMemory, UsageError
from llmcli.generate import Settings, generate
from llmcli.past import Past
from llmcli.past import step as step_together
from llmcli.responses import best, rank_by
from llmcli.text.thinking import Prompt
from random_model import packed_file, write_folder

TEXT = "Once upon a time"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engines.opened("demo", texts=9) as engine:
        yield engine


def prompt(engine: Engine, text: str = TEXT) -> Prompt:
    return Prompt(engine.tokenizer.encode(text))


@pytest.mark.parametrize("kv", ["f16", "f32"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_an_answer_is_that_of_its_seed_alone(quantization: str, kv: str, tmp_path: Path) -> None:
    """Bit for bit: tokens, texts, probabilities and alternatives; behind a prompt of more than a block, to the end of the context."""
    path = str(packed_file(tmp_path, quantization))
    with engines.opened(path, context=320, kv=kv, texts=8) as engine:
        ids = [3 + 7 * i % 4000 for i in range(300)]
        settings = Settings(temperature=1.5, top_k=0, repeat_penalty=1.3, seed=2**64 - 3, max_tokens=60)
        found = best(engine, Prompt(ids), settings, 7, probs=2)
        assert sorted(one.seed for one in found) == [0, 1, 2, 3, 2**64 - 3, 2**64 - 2, 2**64 - 1]
        for one in found:
            assert list(one.steps) == list(generate(engine, ids, settings.changed({"seed": one.seed}), 2))
        assert len({one.text for one in found}) > 1


def test_answers_of_different_lengths(demo: Engine) -> None:
    """Some end early, at a stop string or the end of text: the others go on undisturbed."""
    settings = Settings(temperature=1.2, seed=5, max_tokens=120, stop=(" girl", " dog"))
    found = best(demo, prompt(demo), settings, 8)
    assert len({len(one.steps) for one in found}) > 2 and {"stop", "length"} <= {one.finish for one in found}
    for one in found:
        assert list(one.steps) == list(generate(demo, prompt(demo).ids, settings.changed({"seed": one.seed})))


def test_the_room_is_given_back(demo: Engine) -> None:
    free = len(demo.cache._free)
    best(demo, prompt(demo), Settings(max_tokens=20), 8)
    with pytest.raises(ContextOverflow):
        best(demo, Prompt([5] * 600), Settings(max_tokens=20), 8)
    with pytest.raises(OutOfMemory):
        best(demo, Prompt([5] * 500), Settings(temperature=1.0, max_tokens=20), 64)
    assert len(demo.cache._free) == free


def test_a_step_that_fails_leaves_all_pasts_as_they_were(demo: Engine) -> None:
    with Past(demo) as one, Past(demo) as other:
        one.read([1, 2, 3])
        other.read([4, 5])
        with pytest.raises(llmcli.errors.InputError):
            step_together([one, other], [6, demo.plan.vocab])
        assert (one.ids, other.ids) == ([1, 2, 3], [4, 5])
        together = step_together([one, other], [6, 7])
        with Past(demo) as alone:
            assert (alone.read([1, 2, 3, 6]).logits == together[0].logits).all()
            assert (alone.read([4, 5, 7]).logits == together[1].logits).all()


def test_ranking(demo: Engine) -> None:
    settings = Settings(temperature=1.3, seed=1, max_tokens=60, stop=(".",))
    for rank in ("likelihood", "normalised"):
        found = best(demo, prompt(demo), settings, 6, rank=rank)
        scores = [one.score(rank) for one in found]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1  # type: ignore[type-var]
    one = found[0]
    assert one.logprob == math.fsum(step.logprob for step in one.steps) and one.logprob_per_token == one.logprob / len(one.steps)


def test_the_models_own_judgement(demo: Engine) -> None:
    """The probability of Yes against No behind the answer's own tokens, without its end and its stop string."""
    settings = Settings(temperature=1.3, seed=1, max_tokens=30, stop=(".",))
    found = best(demo, prompt(demo), settings, 6, criterion="It is about a dog.")
    scores = [one.criterion_prob for one in found]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)  # type: ignore[type-var, operator]
    stopped = next(one for one in found if one.finish == "stop")
    ids = [step.id for step in stopped.steps][:-1]
    assert demo.tokenizer.decode(ids, prompt(demo).ids) == stopped.text
    question = "\n\nQuestion: Does this text meet the criterion: It is about a dog.\nAnswer:"
    with Past(demo) as past:
        total = []
        for word in (" Yes", " No"):
            own = demo.tokenizer.encode(question + word, bos=False)
            before = [*prompt(demo).ids, *(i for i in ids if i is not None)]
            total.append(0.0)
            for at in range(len(demo.tokenizer.encode(question, bos=False)), len(own)):
                total[-1] += past.read([*before, *own[:at]]).logprob(own[at])
    wanted = math.exp(total[0]) / (math.exp(total[0]) + math.exp(total[1]))
    assert stopped.criterion_prob == pytest.approx(wanted, rel=1e-9)


def test_an_answer_without_room_for_the_question_comes_last(demo: Engine) -> None:
    ids = (prompt(demo).ids * 200)[:505]
    found = best(demo, Prompt(ids), Settings(max_tokens=7, temperature=1.0), 2, criterion="It is short.")
    assert [one.criterion_prob for one in found] == [None, None] and found[0].seed < found[1].seed


@pytest.mark.parametrize(
    ("rank", "criterion"), [("self", None), ("likelihood", "short"), ("normalised", "short"), (None, " "), ("longest", None)]
)
def test_rankings_that_cannot_be_meant(rank: Any, criterion: str | None) -> None:
    with pytest.raises(UsageError):
        rank_by(rank, criterion)
    assert (rank_by(None, None), rank_by(None, "short"), rank_by("self", "short")) == ("normalised", "self", "self")


def test_a_conversation_is_judged_as_one(tmp_path: Path) -> None:
    """A chat model is asked in its own template, behind its answer."""
    folder = write_folder(tmp_path / "chat")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    path = acquire.import_model(folder, "int8", "chat", path=tmp_path / "chat.safetensors")
    with llmcli.load(str(path), context=200, texts=4) as model:
        asked: list[list[Any]] = []
        engine = model._engine
        original = engine.prompt
        engine.prompt = lambda messages, *more: asked.append(list(messages)) or original(messages, *more)  # type: ignore[method-assign, func-returns-value]
        talk = [{"role": "user", "content": "hi"}]
        found = model.candidates(talk, 3, criterion="It is kind.", max_tokens=5, seed=4)
        assert [one["role"] for one in asked[-1]] == ["user", "assistant", "user"]
        assert {messages[1]["content"] for messages in asked[1:]} == {one.text for one in found}
        assert "It is kind." in asked[-1][2]["content"]
        for one in found:
            assert one.text == "".join(step.text for step in model.chat(talk, max_tokens=5, seed=one.seed))


def llm(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "llmcli", "run", *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_the_command() -> None:
    words = [TEXT, "--candidates", "3", "-n", "25", "--seed", "7", "--temp", "1.2"]
    found = json.loads(llm(*words, "--json", "--probs", "1"))
    assert found["rank_by"] == "normalised" and [one["rank"] for one in found["candidates"]] == [1, 2, 3]
    assert sorted(one["seed"] for one in found["candidates"]) == [7, 8, 9]
    scores = [one["score"] for one in found["candidates"]]
    assert scores == sorted(scores, reverse=True) == [one["logprob_per_token"] for one in found["candidates"]]
    alone = json.loads(llm(TEXT, "-n", "25", "--temp", "1.2", "--json", "--probs", "1", "--seed", str(found["settings"]["seed"])))
    for name in alone:
        assert name == "stats" or found[name] == alone[name], name
    assert llm(*words) == found["text"] + "\n"
    every = llm(*words, "--all")
    assert all(one["text"] in every and f"seed {one['seed']}" in every for one in found["candidates"])
    assert every.index(found["text"]) < every.index(found["candidates"][1]["text"])


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--rank", "self"], "Add --candidates"),
        (["--criterion", "kind"], "Add --candidates"),
        (["--all"], "Add --candidates"),
        (["--candidates", "2", "--jsonl"], "--json"),
        (["--candidates", "2", "--rank", "self"], "--criterion"),
        (["--candidates", "2", "--rank", "likelihood", "--criterion", "kind"], "no effect"),
        (["--candidates", "0"], "from 1 to 64"),
        (["--candidates", "65"], "from 1 to 64"),
    ],
)
def test_words_that_cannot_be_meant(words: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "x", "--no-stdin", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and hint in captured.err and captured.err.count("\n") == 1


def test_the_python_interface() -> None:
    with llmcli.load("demo", texts=5) as model:
        found = model.candidates(TEXT, 4, max_tokens=20, seed=3, rank="likelihood")
        assert [one.logprob for one in found] == sorted((one.logprob for one in found), reverse=True)
        for one in found:
            assert list(one.steps) == list(model.generate(TEXT, max_tokens=20, seed=one.seed))
        for wrong in ({"count": 0}, {"count": 65}, {"count": 2, "rank": "self"}):
            with pytest.raises(UsageError):
                model.candidates(TEXT, **wrong)  # type: ignore[arg-type]
        assert model.candidates(TEXT, 2, max_tokens=0)[0].text == ""
    with llmcli.load("demo") as model, pytest.raises(OutOfMemory):
        model.candidates([5] * 300, 16, seed=1)


def test_the_weights_are_read_once_for_all_answers(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many steps as the longest answer has tokens, and one for the prompt."""
    steps: list[int] = []
    run = demo.run
    monkeypatch.setattr(demo, "run", lambda batch: steps.append(len(batch.tokens)) or run(batch))  # type: ignore[func-returns-value]
    found = best(demo, prompt(demo), Settings(max_tokens=30, seed=1), 8)
    lengths = [len(one.steps) for one in found]
    assert len(steps) == max(lengths) and steps[0] == len(prompt(demo).ids)
    assert sum(steps[1:]) == sum(lengths) - 8
