"""A past computes each token once, and its answers are those of a fresh start, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from llmcli import engine as engines
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError
from llmcli.generate import Settings, generate
from llmcli.past import Past, common


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engines.opened("demo", context=500, texts=3) as engine:
        yield engine


def fresh(engine: Engine, ids: list[int]) -> np.ndarray:
    with Past(engine) as past:
        return past.read(ids).logits


def test_only_new_tokens_are_computed(demo: Engine) -> None:
    ids = np.random.default_rng(1).integers(0, demo.plan.vocab, 400).tolist()
    with Past(demo) as past:
        past.read(ids[:300])
        for wanted, computed in ((ids[:340], 40), (ids[:340], 1), (ids[:200], 1), (ids[:100] + ids[:50], 50), (ids[1:5], 4)):
            assert np.array_equal(past.read(wanted).logits, fresh(demo, wanted))
            assert past.computed == computed
            assert past.ids == wanted


def test_a_fork_leaves_the_original_as_it_is(demo: Engine) -> None:
    ids = np.random.default_rng(2).integers(0, demo.plan.vocab, 280).tolist()
    with Past(demo) as past:
        past.read(ids)
        with past.fork() as other:
            other.append([5, 6, 7])
            assert past.ids == ids
            assert np.array_equal(past.append([9]).logits, fresh(demo, [*ids, 9]))
            assert np.array_equal(other.append([8]).logits, fresh(demo, [*ids, 5, 6, 7, 8]))


def test_an_answer_behind_a_past_is_the_answer_from_scratch(demo: Engine) -> None:
    ids = demo.tokenizer.encode("Once upon a time there was a dog.")
    settings = Settings(temperature=0.9, seed=3, max_tokens=20)
    first = list(generate(demo, ids, settings))
    with Past(demo) as past:
        assert list(generate(demo, ids, settings, past=past)) == first
        assert past.ids == ids + [step.id for step in first[:-1]]
        assert list(generate(demo, ids, settings, past=past)) == first


def test_errors_leave_the_past_whole(demo: Engine) -> None:
    with Past(demo) as past:
        past.read([1, 2, 3])
        with pytest.raises(InputError):
            past.read([])
        with pytest.raises(ContextOverflow):
            past.read([1] * 501)
        with pytest.raises(InputError):
            past.append([demo.plan.vocab])
        assert past.ids == [1, 2, 3]
        assert np.array_equal(past.append([4]).logits, fresh(demo, [1, 2, 3, 4]))


def test_common_beginning() -> None:
    assert [common(a, b) for a, b in (([], []), ([1], []), ([1, 2], [1, 3]), ([1, 2], [1, 2, 3]))] == [0, 0, 1, 2]
