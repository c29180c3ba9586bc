"""llm eval: questions answered as a slow twin answers them, perplexity as `llm score` says, files of all kinds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llmcli import engine as engines
from llmcli import evaluation
from llmcli.errors import InputError
from llmcli.intervals import wilson
from llmcli.scoring import score
from test_look import STORY, answer, llm, refused

STORIES = [
    {"query": "Lily went to the park. She saw a", "choices": ["big dog.", "tax", "quarterly earnings report."], "gold": 0},
    {"query": "Tom was sad because his toy", "choices": ["of the", "was broken.", "broke"], "gold": 1},
    {"query": "Once upon", "choices": ["zebra", "a time"], "gold": 0},
]
WORDS = [
    {"context": "Once upon a time, there was a little girl named", "continuation": "Lily"},
    {"context": "The dog said,\n", "continuation": "\u00e9clair"},
]


def lines(found: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in found)


def slow(kind: str, record: dict[str, Any]) -> tuple[bool, bool | None, float]:
    """(right, right by character, logprob of the right answer): every answer scored with all its text, from the beginning."""
    text = record["context" if kind == "lambada" else "query"]
    answers = [record["continuation"]] if kind == "lambada" else record["choices"]
    with engines.opened("demo") as engine:
        found = []
        for word in answers:
            whole = text + ("" if text[-1].isspace() else " ") + word
            start = len(engine.tokenizer.encode(text))
            own = list(score(engine, engine.tokenizer.encode(whole)))[start:]
            found.append((math.fsum(token.logprob for token in own), all(token.rank == 1 for token in own)))
    if kind == "lambada":
        return found[0][1], None, found[0][0]
    sums = [total for total, _ in found]
    each = [total / len(word) for total, word in zip(sums, answers, strict=True)]
    gold = record["gold"]
    return max(sums) == sums[gold], max(each) == each[gold], sums[gold]


@pytest.mark.parametrize(("kind", "asked"), [("hellaswag", STORIES), ("lambada", WORDS)])
def test_answers_are_those_of_the_slow_twin(kind: str, asked: list[dict[str, Any]]) -> None:
    with engines.opened("demo") as engine:
        found = list(evaluation.ask(engine, evaluation.questions(kind, lines(asked))))
    assert [(one.right, one.right_normalised, one.logprob) for one in found] == [slow(kind, record) for record in asked]
    assert any(one.right for one in found) and not all(one.right for one in found) and not any(one.cut for one in found)


def test_a_question_is_computed_once() -> None:
    with engines.opened("demo") as engine:
        computed = []
        run = engine.run

        def counted(batch: Any) -> Any:
            computed.append(len(batch.tokens))
            return run(batch)

        engine.run = counted  # type: ignore[method-assign]
        question = {"query": "word " * 100, "choices": ["dog", "cat", "bird"], "gold": 1}
        list(evaluation.ask(engine, evaluation.questions("hellaswag", lines([question]))))
    assert 100 < sum(computed) < 120


def test_a_text_that_does_not_fit_loses_its_beginning() -> None:
    with engines.opened("demo", context=20) as engine:
        record = {"context": "The dog ran. " * 20 + "Once upon a", "continuation": "time"}
        [found] = evaluation.ask(engine, evaluation.questions("lambada", lines([record])))
        assert found.cut and found.right
        record = {"query": "The", "choices": ["dog", "dog " * 20], "gold": 0}
        with pytest.raises(InputError, match="does not fit"):
            list(evaluation.ask(engine, evaluation.questions("hellaswag", lines([record]))))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        *(("lambada", bad) for bad in ("{", "[]", "1", '{"context": "a"}', '{"context": 1, "continuation": "b"}')),
        ("lambada", '{"context": "", "continuation": "b"}'),
        *(("hellaswag", json.dumps(STORIES[0] | {"gold": gold})) for gold in (3, -1, "0", True, None)),
        *(("hellaswag", json.dumps(STORIES[0] | {"choices": choices})) for choices in ([], ["a"], "abc", ["a", ""], [1, 2], None)),
    ],
)
def test_lines_that_are_no_question(kind: str, bad: str) -> None:
    good = lines([STORIES[1]] if kind == "hellaswag" else [WORDS[1]])
    assert len(evaluation.questions(kind, "\n" + good + "\n" + good)) == 2
    with pytest.raises(InputError, match="line 3 is no question"):
        evaluation.questions(kind, good + "\n" + bad + "\n")


def test_eval_of_questions(tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"
    file.write_text(lines(STORIES))
    done = llm("eval", "hellaswag", str(file), "--json")
    found, expected = json.loads(answer(done)), [slow("hellaswag", record) for record in STORIES]
    right, normalised = (sum(bool(one[i]) for one in expected) for i in (0, 1))
    assert (found["schema"], found["model"], found["kind"], found["questions"], found["cut"]) == (1, "demo:int8", "hellaswag", 3, 0)
    assert (found["right"], found["right_normalised"]) == (right, normalised)
    assert found["accuracy"] == right / 3 and found["accuracy_interval"] == list(wilson(right, 3))
    assert found["accuracy_normalised"] == normalised / 3 and found["accuracy_normalised_interval"] == list(wilson(normalised, 3))
    assert "100%  asking" in done.stderr
    shown = answer(llm("eval", "hellaswag", str(file), "--limit", "1")).splitlines()
    assert (
        shown[0].split()[:2] == ["accuracy", "100.00%"]
        and shown[1].startswith("accuracy, per character")
        and shown[2].startswith("1 quest")
    )
    file.write_text(lines(WORDS))
    found = json.loads(answer(llm("eval", "lambada", str(file), "--json")))
    assert found["accuracy"] == 0.5 and found["accuracy_normalised"] is None and found["accuracy_normalised_interval"] is None
    assert found["answer_perplexity"] == pytest.approx(math.exp(-sum(slow("lambada", record)[2] for record in WORDS) / 2))
    assert len(answer(llm("eval", "lambada", str(file))).splitlines()) == 3
    refused(llm("eval", "lambada", str(file), "--window", "100"), 2)
    refused(llm("eval", "hellaswag", str(file)), 8)
    refused(llm("eval", "lambada", str(tmp_path / "missing")), 4)
    refused(llm("eval", "else", str(file)), 2)
    file.write_text("\n")
    assert "no questions" in refused(llm("eval", "lambada", str(file)), 8)


def test_eval_of_a_text(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_text(STORY * 300)
    words = ["--window", "100", "--stride", "60"]
    found = json.loads(answer(llm("eval", "perplexity", str(file), "--json", *words)))
    scored = json.loads(answer(llm("score", "-f", str(file), "--json", *words)).splitlines()[-1])
    same = ("perplexity", "bits_per_byte", "tokens", "scored_tokens", "window", "stride")
    assert {name: found[name] for name in same} == {name: scored[name] for name in same}
    low, high = found["perplexity_interval"]
    assert low < found["perplexity"] < high
    assert "95%" in answer(llm("eval", "perplexity", str(file), *words))
    short = json.loads(answer(llm("eval", "perplexity", str(file), "--json", "--limit", "50")))
    assert short["tokens"] == 50 and short["perplexity_interval"] == [None, None]
    assert "too short" in answer(llm("eval", "perplexity", str(file), "--limit", "50"))
