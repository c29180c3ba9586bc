"""Distribution, filters and draw against plain formulas over the whole vocabulary."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmcli.backends.reference.select import top
from llmcli.errors import NumericalError
from llmcli.sampling import filters
from llmcli.sampling.distribution import Distribution
from llmcli.sampling.pick import pick, uniform
from llmcli.sampling.settings import Settings, from_generation_config

OFF = Settings(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)


def of_logits(logits: np.ndarray, keep: int = 256) -> Distribution:
    """The distribution of a row of logits [V]."""
    ids, _, logsumexp, entropy = top(logits[None])
    return Distribution(logits, ids[0, :keep], float(logsumexp[0]), float(entropy[0]))


def random_distribution(seed: int, vocab: int = 1000, spread: float = 3.0, keep: int = 256) -> Distribution:
    return of_logits(np.random.default_rng(seed).normal(0, spread, vocab).astype(np.float32), keep)


def plain(logits: np.ndarray, s: Settings, history: list[int]) -> np.ndarray:
    """Final probabilities over the vocabulary, the obvious way."""
    values = logits.astype(np.float64).copy()
    recent = history[-64:]
    for token in set(recent):
        values[token] = values[token] / s.repeat_penalty if values[token] > 0 else values[token] * s.repeat_penalty
        values[token] -= s.presence_penalty + s.frequency_penalty * recent.count(token)
    for token, bias in s.logit_bias.items():
        values[token] += bias
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if s.temperature == 0:
        return np.eye(len(values))[order[0]]
    alive = order[: s.top_k] if s.top_k else order
    weights = {i: math.exp(values[i] - values[order[0]]) for i in alive}
    total, before, kept = sum(weights.values()), 0.0, []
    for i in alive:
        if s.top_p >= 1 or before < s.top_p * total or not kept:
            kept.append(i)
        before += weights[i]
    kept = [i for i in kept if weights[i] >= s.min_p]
    final = np.zeros(len(values))
    for i in kept:
        final[i] = math.exp((values[i] - values[order[0]]) / s.temperature)
    return final / final.sum()


@pytest.mark.parametrize("keep", [256, 1000])
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.0, 0.1, 0.8, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 40, 256, 300, 5000]),
    top_p=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    repeat=st.sampled_from([1.0, 1.3, 0.7]),
    presence=st.sampled_from([0.0, 1.5, -1.0]),
    bias=st.dictionaries(st.integers(0, 999), st.sampled_from([-100.0, 5.0, 30.0]), max_size=3),
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_filters_equal_the_plain_formulas(keep, seed, temperature, top_k, top_p, min_p, repeat, presence, bias) -> None:
    distribution = random_distribution(seed, keep=keep)
    s = Settings(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repeat_penalty=repeat, presence_penalty=presence, logit_bias=bias
    )
    history = np.random.default_rng(seed).integers(0, 1000, 80).tolist()
    filtered = filters.apply(distribution, s, history)
    full = np.zeros(1000)
    full[filtered.ids] = filtered.probs
    np.testing.assert_allclose(full, plain(distribution.logits, s, history), rtol=1e-9, atol=1e-12)
    assert all((p > 0) == (r is None) or p < 1e-300 for p, r in zip(filtered.probs, filtered.removed_by, strict=True))


def test_removed_by_names_the_filter() -> None:
    distribution = of_logits(np.log(np.array([0.5, 0.3, 0.15, 0.04, 0.01], np.float32)))
    s = Settings(temperature=1.0, top_k=4, top_p=0.9, min_p=0.4)
    filtered = filters.apply(distribution, s)
    assert [filtered.of(i)[1] for i in range(5)] == [None, None, "min_p", "top_p", "top_k"]
    assert filtered.of(0)[0] == pytest.approx(0.5 / 0.8)


def test_a_ban_of_everything_is_an_error() -> None:
    distribution = random_distribution(1, vocab=4)
    with pytest.raises(NumericalError, match="no token is left"):
        filters.apply(distribution, Settings(logit_bias=dict.fromkeys(range(4), -math.inf)))


def test_ranks_and_order_break_ties_by_id() -> None:
    distribution = of_logits(np.array([1, 3, 3, 0, 3], np.float32))
    assert distribution.top_ids.tolist() == [1, 2, 4, 0, 3] == distribution.order.tolist()
    assert [distribution.rank(i) for i in range(5)] == [4, 1, 2, 5, 3]


def test_entropy_and_probabilities() -> None:
    distribution = of_logits(np.zeros(1024, np.float32), keep=256)
    assert distribution.entropy_bits == pytest.approx(10.0)
    assert sum(math.exp(distribution.logprob(i)) for i in range(1024)) == pytest.approx(1.0)


def test_draws_follow_the_distribution() -> None:
    filtered = filters.apply(of_logits(np.log(np.array([0.6, 0.3, 0.1], np.float32))), OFF)
    counts = np.bincount([pick(filtered, 7, position) for position in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.6, 0.3, 0.1], atol=0.012)


def test_the_number_depends_on_seed_and_position_alone() -> None:
    drawn = [[uniform(seed, position) for position in range(100)] for seed in (0, 1, 2**63, -5)]
    assert len({x for row in drawn for x in row}) == 400
    assert uniform(3, 17) == uniform(3, 17)
    values = [uniform(11, p) for p in range(50_000)]
    assert 0 <= min(values) and max(values) < 1
    assert np.mean(values) == pytest.approx(0.5, abs=0.005) and np.var(values) == pytest.approx(1 / 12, abs=0.002)
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.02


def test_generation_config() -> None:
    s = from_generation_config({"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "min_p": "x"})
    assert (s.temperature, s.top_k, s.top_p, s.repeat_penalty, s.min_p) == (0.6, 20, 0.9, 1.1, 0.05)
    assert from_generation_config({"do_sample": False, "temperature": 0.6}).temperature == 0.0
    assert s.changed({"temperature": 0.0, "top_k": None}).temperature == 0.0
    wrong = {"temperature": -1, "top_p": 7, "min_p": math.nan, "top_k": True, "repetition_penalty": "1.2"}
    assert from_generation_config(wrong) == Settings()
    assert from_generation_config({"repetition_penalty": 0}).repeat_penalty == 1.0  # logits are divided by it


def test_extreme_temperatures() -> None:
    logits = np.array([1, 3, 2, -np.inf], np.float32)
    assert of_logits(logits).entropy == pytest.approx(of_logits(logits[:3]).entropy)
    hot = np.exp(np.array([3, 2, 1, -np.inf]) / 100)
    for temperature, want in ((1e-310, [1, 0, 0, 0]), (100.0, hot / hot.sum())):
        found = filters.apply(of_logits(logits), Settings(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0))
        np.testing.assert_allclose(found.probs, want)
