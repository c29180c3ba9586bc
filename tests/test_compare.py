"""Two models on one text: divergences against a slow twin, the same in any window, and models that cannot be compared."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmcli import acquire
from llmcli import compare as comparing
from llmcli import engine as engines
from llmcli.compare import Differences, compare
from llmcli.engine import Engine
from llmcli.errors import InputError, TokenizerMismatch, UsageError
from llmcli.past import Past
from llmcli.scoring import score
from random_model import CONFIG, write_folder
from test_look import STORY, answer, llm, records, refused


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a random model in float32 and in int4."""
    folder = tmp_path_factory.mktemp("compare")
    source = write_folder(folder / "source")
    one, other = (acquire.import_model(source, q, "random", path=folder / f"random-{q}.safetensors") for q in ("none", "int4"))
    return str(one), str(other)


@pytest.fixture(scope="module")
def both(models: tuple[str, str]) -> Iterator[tuple[Engine, Engine]]:
    with engines.opened(models[0], context=300) as a, engines.opened(models[1], context=280) as b:
        yield a, b


def ids(count: int, seed: int = 0) -> list[int]:
    return [int(number) for number in np.random.default_rng(seed).integers(0, 4096, count)]


def slow_divergence(p: list[float], q: list[float]) -> float:
    """The definition, number by number."""
    a, b = (math.log(math.fsum(math.exp(x - max(row)) for x in row)) + max(row) for row in (p, q))
    return math.fsum(math.exp(x - a) * ((x - a) - (y - b)) for x, y in zip(p, q, strict=True))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(2, 300), st.floats(0, 60), st.integers(0, 2**32 - 1))
def test_divergences_are_the_definition(rows: int, vocab: int, spread: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = (rng.normal(0, spread, (rows, vocab)) + rng.normal(0, 1000, (rows, 1))).astype(np.float32)
    q = p + rng.normal(0, 0.1, (rows, vocab)).astype(np.float32)
    found = comparing.divergences(p, q)
    assert (found >= 0).all() and (comparing.divergences(p, p) == 0).all()
    for row in (0, rows - 1):
        assert found[row] == pytest.approx(slow_divergence(p[row].tolist(), q[row].tolist()), rel=1e-6, abs=1e-12)


def test_each_place_is_what_both_models_say_alone(both: tuple[Engine, Engine]) -> None:
    a, b = both
    text = ids(60)
    found = list(compare(a, b, text, top=2))
    assert [token.a for token in found[1:]] == list(score(a, text, 2))[1:] and [token.b for token in found[1:]] == list(score(b, text, 2))[
        1:
    ]
    assert math.isnan(found[0].kl) and not found[0].same_top and found[0].a.rank == 0
    with Past(a) as left, Past(b) as right:
        for position in (1, 7, 59):
            p, q = left.read(text[:position]), right.read(text[:position])
            assert found[position].kl == pytest.approx(slow_divergence(p.logits.tolist(), q.logits.tolist()), rel=1e-6)
            assert found[position].same_top == (p.logits.argmax() == q.logits.argmax())
    assert 0 < max(token.kl for token in found[1:]) < 2


def test_a_model_does_not_differ_from_itself(both: tuple[Engine, Engine], models: tuple[str, str]) -> None:
    with engines.opened(models[0], context=300, threads=1) as again:
        found = list(compare(both[0], again, ids(400)))[1:]
    assert all(token.kl == 0.0 and token.same_top and token.a == token.b for token in found)


def test_windows_are_those_of_scores(both: tuple[Engine, Engine]) -> None:
    a, b = both
    text = ids(90)
    whole = {token.a.position: token for token in compare(a, b, text)}
    for window, stride in ((20, 20), (20, 7), (90, 1)):
        found = list(compare(a, b, text, window=window, stride=stride))
        assert [token.a for token in found if token.a.rank] == [
            token for token in score(a, text, window=window, stride=stride) if token.rank
        ]
        assert [token.a.position for token in found] == list(range(90))
    assert [repr(token) for token in found] == [repr(token) for token in whole.values()]
    assert len(list(compare(a, b, ids(300), stride=280))) == 300  # in windows of the smaller context, 280


def test_memory_does_not_grow_with_the_text(both: tuple[Engine, Engine]) -> None:
    def peak(count: int) -> int:
        text, differences = ids(count), Differences()
        tracemalloc.start()
        for token in compare(*both, text):
            differences.add(token, 1, "")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(300)
    assert peak(3000) - peak(1500) < 1500 * 16 + 50_000


def test_sums(both: tuple[Engine, Engine]) -> None:
    differences, found = Differences(most=3), list(compare(*both, ids(40)))
    for token in found:
        differences.add(token, 2, f"before {token.a.position}")
    values = sorted(token.kl for token in found[1:])
    assert differences.kl.mean == pytest.approx(np.mean(values)) and differences.kl.count == 39
    assert [differences.quantile(share) for share in (0, 0.5, 1)] == pytest.approx([values[0], np.median(values), values[-1]])
    assert [token.kl for token, _ in differences.worst] == values[:-4:-1]
    assert all(before == f"before {token.a.position}" for token, before in differences.worst)
    assert differences.same.mean == np.mean([token.same_top for token in found[1:]])
    assert differences.a.perplexity != differences.b.perplexity
    assert differences.a.bytes == 78 and math.isnan(Differences().quantile(0.5)) and not Differences().worst


def test_what_cannot_be_compared(both: tuple[Engine, Engine], tmp_path: Path) -> None:
    a, b = both
    with pytest.raises(InputError):
        list(compare(a, b, []))
    with pytest.raises(InputError, match="4,095"):
        list(compare(a, b, [1, 5000]))
    with pytest.raises(UsageError, match="280"):
        list(compare(a, b, [1, 2], window=281))
    smaller = write_folder(tmp_path / "smaller", CONFIG | {"vocab_size": 4104})
    other = write_folder(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text("utf-8"))
    vocab = tokenizer["model"]["vocab"]
    names = {number: name for name, number in vocab.items()}
    vocab[names[300]], vocab[names[301]] = 301, 300
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    for folder, why in ((smaller, "4,096 and 4,104 tokens"), (other, "token 300 is ")):
        path = acquire.import_model(folder, "int8", folder.name, path=tmp_path / f"{folder.name}-int8.safetensors")
        with engines.opened(str(path), context=300) as different, pytest.raises(TokenizerMismatch, match=why):
            list(compare(a, different, [1, 2]))
    with pytest.raises(TokenizerMismatch, match="from token 2 on"):
        comparing.check_ids(a, b, [1, 2, 3], [1, 2])


# llm diff


def test_diff_as_json(models: tuple[str, str]) -> None:
    a, b = models
    tokens, summary = records(llm("diff", "-m", a, "-m", b, STORY, "--json", "-k", "2", "--worst", "2"))
    assert summary["models"] == ["random:none", "random:int4"] and summary["schema"] == 1
    assert (summary["tokens"], summary["compared_tokens"]) == (len(tokens), len(tokens) - 1)
    assert set(tokens[0]) == {"position", "id", "text", "bytes", "kl", "same_top", "a", "b"}
    assert tokens[0]["kl"] is None and tokens[0]["same_top"] is None and tokens[0]["a"]["logprob"] is None
    for name, path in (("a", a), ("b", b)):
        scored, totals = records(llm("score", "-m", path, STORY, "--json", "-k", "2"))
        for token, alone in zip(tokens[1:], scored[1:], strict=True):
            assert {key: token[name][key] for key in ("logprob", "rank", "entropy_bits")}.items() <= alone.items()
            assert [t["id"] for t in token[name]["top"]] == [t["id"] for t in alone["top"]]
        assert totals["perplexity"] == summary["perplexity"]["ab".index(name)]
    worst = max(tokens[1:], key=lambda token: token["kl"])
    assert (
        summary["worst"][0].items() >= worst.items() and len(summary["worst"]) == 2 and STORY.startswith(summary["worst"][0]["before"][:5])
    )
    assert summary["kl"] == pytest.approx(math.fsum(t["kl"] for t in tokens[1:]) / (len(tokens) - 1))
    assert summary["kl_largest"] == worst["kl"] and summary["kl_interval"] == [None, None] and summary["same_top_interval"] == [None, None]


def test_diff_as_tables(models: tuple[str, str], tmp_path: Path) -> None:
    a, b = models
    shown = answer(llm("diff", "-m", a, "-m", b, STORY, "--worst", "3")).splitlines()
    assert shown[0].startswith("Most different") and shown[1].split()[:3] == ["position", "token", "KL"] and len(shown) == 11
    assert "of random:int4 from random:none" in shown[6] and "too short for intervals" in shown[8]
    rows = answer(llm("diff", "-m", a, "-m", b, STORY, "--table", "--worst", "0")).splitlines()
    count = int(answer(llm("tokenize", STORY, "--count", "-m", a)))
    assert len(rows) == count + 1 + 5
    text = tmp_path / "text"
    text.write_text(STORY * 300)
    done = llm("diff", "-m", a, "-m", b, "-f", str(text), "--window", "200", "--limit", "2500", "--json", "-o", str(tmp_path / "out"))
    summary = json.loads((tmp_path / "out").read_text().splitlines()[-1])
    assert answer(done) == "" and "100%  comparing" in done.stderr
    assert (summary["tokens"], summary["window"], summary["stride"]) == (2500, 200, 100)
    assert summary["kl_interval"][0] < summary["kl"] < summary["kl_interval"][1]
    assert summary["same_top_interval"][0] < summary["same_top"] < summary["same_top_interval"][1]
    hostile = answer(llm("diff", "-m", a, "-m", b, "a\x1b[31mb \u202ec"))
    assert "\x1b" not in hostile and "\u202e" not in hostile
    assert "nothing is compared" in answer(llm("diff", "-m", a, "-m", b, ""))


def test_diff_refuses(models: tuple[str, str], data_dir: Path, tmp_path: Path) -> None:
    assert "Give it twice" in refused(llm("diff", "-m", models[0], "x"), 2)
    assert "3 times" in refused(llm("diff", *("-m", models[0]) * 3, "x"), 2)
    refused(llm("diff", "-m", models[0], "-m", models[1], "x", "--json", "--table"), 2)
    other = str(acquire.import_model(data_dir / "models" / "stories260k", "int8", "tiny", path=tmp_path / "tiny-int8.safetensors"))
    assert "share a tokenizer" in refused(llm("diff", "-m", "demo", "-m", other, "x"), 2)
