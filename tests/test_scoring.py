"""Scores of given texts and answers: the bits of generation, the numbers of transformers, memory that does not grow."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from arch_models import ARCHS
from llmcli import acquire, places, scoring
from llmcli import engine as engines
from llmcli.choices import choose, joined
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError, UsageError
from llmcli.generate import Settings, generate
from llmcli.past import Past
from llmcli.scoring import Scored, Totals, score
from llmcli.weights import packed

GOLDEN = json.loads((ARCHS.parent / "perplexity.json").read_text())
TEXT = "Once upon a time there was a little dog. He liked to eat zebras, \u00e9clairs and \U0001f600."


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engines.opened("demo", context=300) as engine:
        yield engine


def random_ids(count: int, seed: int = 0) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(0, 4096, count)]


def totals(tokens: Iterator[Scored]) -> Totals:
    found = Totals()
    for token in tokens:
        found.add(token, 1)
    return found


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("variant", sorted(GOLDEN))
def test_perplexity_is_that_of_transformers(variant: str, backend: str, tmp_path: Path) -> None:
    """To 4 digits, unquantized, within a context and in windows over several (tools/make_golden_perplexity.py)."""
    shutil.copytree(ARCHS / variant, tmp_path / variant)
    with packed.open(next(places.demo().glob("*.safetensors"))) as file:
        (tmp_path / variant / "tokenizer.json").write_bytes(file.file("tokenizer.json"))
    path = acquire.import_model(tmp_path / variant, "none", variant, path=tmp_path / "model-none.safetensors")
    known = GOLDEN[variant]
    with engines.opened(str(path), backend=backend) as engine:
        whole = totals(score(engine, known["ids"][: engine.context]))
        assert whole.perplexity == pytest.approx(known["whole"], rel=1e-5)
        windows = totals(score(engine, known["ids"]))
        assert windows.perplexity == pytest.approx(known["windows"], rel=1e-5)
        assert (windows.tokens, windows.scored) == (len(known["ids"]), len(known["ids"]) - 1)


def test_a_score_is_what_each_step_says(demo: Engine) -> None:
    """Bit for bit: probability, rank, entropy and the likeliest tokens, for likely and unlikely texts."""
    for ids in (demo.tokenizer.encode(TEXT), random_ids(60)):
        scored = list(score(demo, ids, top=300))
        assert (scored[0].id, scored[0].rank) == (ids[0], 0) and math.isnan(scored[0].logprob)
        with Past(demo) as past:
            for position, (before, token) in enumerate(zip(ids, ids[1:], strict=False), 1):
                found = past.append([before])
                top = tuple((number, found.logprob(number)) for number in found.best(300).tolist())
                assert scored[position] == Scored(position, token, found.logprob(token), found.rank(token), found.entropy_bits, top)
    assert max(token.rank for token in scored) > 256, "ranks beyond the sorted logits have been compared"


def test_a_score_is_what_generation_said(demo: Engine) -> None:
    prompt = demo.tokenizer.encode("The cat")
    for settings in (Settings(temperature=0, max_tokens=40), Settings(temperature=1.5, top_p=1, top_k=0, min_p=0, max_tokens=40, seed=4)):
        steps = list(generate(demo, prompt, settings, probs=3))
        scored = list(score(demo, [*prompt, *(step.id for step in steps if step.id is not None)], top=3))[len(prompt) :]
        assert [(token.position, token.id, token.logprob, token.rank) for token in scored] == [
            (step.position, step.id, step.logprob, step.rank) for step in steps
        ]
        assert [token.top for token in scored] == [tuple((c.id, c.logprob) for c in step.top) for step in steps]
        assert settings.temperature or {token.rank for token in scored} == {1}


def test_nothing_changes_a_score(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, how many rows are computed at once, and what was computed before."""
    ids = random_ids(290)
    whole = list(score(demo, ids, top=2))[1:]
    with engines.opened("demo", context=300, threads=1) as single:
        assert list(score(single, ids, top=2))[1:] == whole
    with Past(demo) as past:
        past.read(ids[:100])
        assert list(score(demo, ids, top=2, past=past))[1:] == whole
        assert list(score(demo, ids[:200], top=2, past=past))[1:] == whole[:199]
    monkeypatch.setattr(scoring, "LOGITS", 4 * 4096 * 13)
    assert list(score(demo, ids, top=2))[1:] == whole


def test_windows(demo: Engine) -> None:
    """Every token is scored once, from the window that it says."""
    ids = random_ids(700)
    scored = list(score(demo, ids, window=100, stride=30))
    assert [token.position for token in scored] == list(range(700)) and [token.id for token in scored] == ids
    assert scored[1:100] == list(score(demo, ids[:100]))[1:]
    second = list(score(demo, ids[30:130]))[70:]
    assert scored[100:130] == [dataclasses.replace(token, position=30 + token.position) for token in second]
    apart = list(score(demo, ids, window=100, stride=100))
    assert [token.position for token in apart if not token.rank] == list(range(0, 700, 100))
    assert [token.logprob for token in apart[101:200]] == [token.logprob for token in list(score(demo, ids[100:200]))[1:]]
    assert [len(list(score(demo, ids[:count], window=100, stride=100))) for count in (1, 100, 101, 102)] == [1, 100, 101, 102]
    for window, stride in ((1, None), (301, None), (100, 101), (100, 0), (0, 1)):
        with pytest.raises(UsageError):
            scoring.windows(demo, window, stride)
    assert scoring.windows(demo) == (300, 150)


def test_probabilities_sum_to_one(demo: Engine) -> None:
    for token in list(score(demo, demo.tokenizer.encode("Once upon a time"), top=4096))[1:]:
        assert len(token.top) == 4096
        assert math.fsum(math.exp(value) for _, value in token.top) == pytest.approx(1, abs=1e-6)


def test_memory_does_not_grow_with_the_text(demo: Engine) -> None:
    def peak(count: int) -> int:
        ids = random_ids(count)
        tracemalloc.start()
        for _ in score(demo, ids, top=5):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(400)
    assert peak(6000) < peak(1000) + 200_000


def test_texts_that_cannot_be_scored(demo: Engine) -> None:
    with pytest.raises(InputError, match="empty"):
        list(score(demo, []))
    for ids in ([1, 2, 4096], [4096, 1, 2], [1, -1, 2]):
        with pytest.raises(InputError, match="does not know token"):
            list(score(demo, ids))
    alone = totals(score(demo, [5]))
    assert (alone.tokens, alone.scored) == (1, 0) and math.isnan(alone.perplexity) and math.isnan(alone.bits_per_byte)


def test_choices_are_the_products_of_their_tokens(demo: Engine) -> None:
    text, answers = "The cat sat on the", ["mat", "big tree", "table and ate all the fish"]
    ids = demo.tokenizer.encode(text)
    wholes = [(answer, demo.tokenizer.encode(text + joined(text, answer))) for answer in answers]
    found = choose(demo, ids, wholes)
    assert [choice.text for choice in found] == answers
    assert sum(choice.prob for choice in found) == pytest.approx(1)
    for choice, (_, whole) in zip(found, wholes, strict=True):
        assert ids + list(choice.ids) == whole
        steps = [token.logprob for token in score(demo, whole)][len(ids) :]
        assert choice.logprob == math.fsum(steps)
        assert choice.prob_per_token == math.exp(math.fsum(steps) / len(steps))
    assert choose(demo, ids, wholes[::-1]) == found[::-1]


def test_a_choice_that_cuts_the_text_in_another_way(demo: Engine) -> None:
    """What follows can change the tokens at the text's end: then these are the choice's too."""
    text, answer = "Once up", "on"
    ids, whole = demo.tokenizer.encode(text), demo.tokenizer.encode(text + answer)
    assert whole[: len(ids)] != ids
    (found,) = choose(demo, ids, [(answer, whole)])
    assert found.ids == (whole[-1],) and found.logprob == list(score(demo, whole))[-1].logprob


def test_choices_that_cannot_be(demo: Engine) -> None:
    with pytest.raises(UsageError, match="no token of its own"):
        choose(demo, [1, 2], [("", [1, 2])])
    with pytest.raises(UsageError, match="no choices"):
        choose(demo, [1, 2], [])
    with pytest.raises(InputError, match="nothing before"):
        choose(demo, [], [("x", [1, 2])])
    with pytest.raises(ContextOverflow):
        choose(demo, [1] * 290, [("x", [1] * 301)])


def test_joined() -> None:
    for (text, answer, join), whole in {
        ("a", "b", None): " b",
        ("a ", "b", None): "b",
        ("a\n", "b", None): "b",
        ("a", " b", None): " b",
        ("", "b", None): "b",
        ("a", "b", ""): "b",
        ("a ", " b", "-"): "- b",
    }.items():
        assert joined(text, answer, join) == whole
