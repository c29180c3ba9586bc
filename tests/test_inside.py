"""`llm attend` and `llm lens` on the demo model: the same numbers as elsewhere, in tables that fit, on pages that open."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcli import attention, engine, lens
from llmcli.cli import bars, heat, shares
from llmcli.engine import Engine
from llmcli.errors import InputError, UsageError
from llmcli.pages.attention import Page
from llmcli.past import Past
from terminal import on_terminal
from test_commands import answer, refused
from test_look import HOSTILE, llm

TEXT = "Tom had a red ball. He lost his"
ATTACK = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)> & \u2028 \u202e \x1b[2J"


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engine.opened("demo", taps=("attention", "lens")) as found:
        yield found


def whole(demo: Engine, ids: list[int], layer: int, head: int) -> np.ndarray:
    """[T, T] weights of one head."""
    found = np.zeros((len(ids), len(ids)), np.float32)
    with Past(demo) as past:
        for part in attention.attention(past, ids, [layer]):
            if part.head == head:
                found[part.first : part.first + len(part.weights), : part.weights.shape[1]] = part.weights
        assert past.ids == ids
    return found


# Attention


def test_weights_are_shares_of_the_past(demo: Engine) -> None:
    ids = demo.tokenizer.encode(TEXT)
    for layer in range(6):
        for head in range(4):
            found = whole(demo, ids, layer, head)
            np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
            assert not np.triu(found, 1).any() and (found[np.tril_indices(len(ids))] > 0).all() and found[0, 0] == 1


def test_a_long_text_is_looked_at_step_by_step(demo: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = (demo.tokenizer.encode(TEXT) * 40)[:300]
    once = whole(demo, ids, 3, 2)
    monkeypatch.setattr(attention, "MOST_TOKENS", 7)
    np.testing.assert_allclose(whole(demo, ids, 3, 2), once, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(whole(demo, ids[:50], 3, 2), once[:50, :50], rtol=1e-5, atol=1e-7)


def test_attention_as_json() -> None:
    heads = [json.loads(answer(llm("attend", TEXT, "--layer", "2", "--head", str(head), "--json"))) for head in range(4)]
    mean = json.loads(answer(llm("attend", TEXT, "--layer", "2", "--json")))
    assert [one["head"] for one in (*heads, mean)] == [0, 1, 2, 3, None] and mean["layer"] == 2 and mean["schema"] == 1
    assert "".join(token["text"] for token in mean["tokens"][1:]) == TEXT
    for i, row in enumerate(mean["weights"]):
        assert len(row) == i + 1 and math.fsum(row) == pytest.approx(1, abs=1e-5)
        assert row == pytest.approx([sum(one["weights"][i][j] for one in heads) / 4 for j in range(i + 1)], abs=1e-6)
    last = json.loads(answer(llm("attend", TEXT, "--json")))
    assert last["layer"] == 5
    assert json.loads(answer(llm("attend", TEXT, "--json", "--device", "reference")))["weights"][9] == pytest.approx(
        last["weights"][9], abs=0.02
    )


def test_attention_as_a_table() -> None:
    lines = answer(llm("attend", TEXT, "--layer", "2", "--head", "1")).splitlines()
    assert lines[0].split() == [str(i) for i in range(10)] and lines[-1] == "layer 2 of 6, head 1 of 4, demo:int8, 10 tokens of text"
    weights = json.loads(answer(llm("attend", TEXT, "--layer", "2", "--head", "1", "--json")))["weights"]
    assert lines[6].split() == ["5", "␣ball", *(f"{100 * share:.0f}" for share in weights[5])]
    shown = answer(llm("attend", TEXT, "--layer", "2", "--head", "1", "--color", "always"))
    assert f"{heat.HEAT[4]}  94{bars.PLAIN}" in shown and all(color in shown.splitlines()[-2] for color in heat.HEAT)


def test_there_are_so_many_layers_and_heads(demo: Engine) -> None:
    assert "from 0 to 5" in refused(llm("attend", TEXT, "--layer", "6"), 2)
    assert "from 0 to 3" in refused(llm("attend", TEXT, "--head", "4"), 2)
    refused(llm("attend", TEXT, "--layer", "-1"), 2)
    with Past(demo) as past:
        for layer in (-1, 6):
            with pytest.raises(UsageError):
                next(attention.attention(past, [1], [layer]))
        for words in (attention.attention(past, [], [0]), lens.lens(past, [])):
            with pytest.raises(InputError):
                next(words)
    refused(llm("lens", " word" * 600), 8)


@pytest.mark.parametrize("colored", [True, False])
@pytest.mark.parametrize("columns", [200, 120, 80, 60, 40])
def test_a_grid_fits_a_terminal(columns: int, colored: bool) -> None:
    for count in (1, 2, 12, 30, 60, 150):
        weights = [[1 / (i + 1)] * (i + 1) for i in range(count)]
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shares.grid(["\u4e2d\u6587 token"] * count, weights, colored, columns)).splitlines()
        assert max(map(bars.width, lines[:-1])) <= columns and len(lines) >= 3
        if "before" in lines[0]:  # the last tokens alone: what they spread over the others is summed up
            first = count - (len(lines) - 2)
            assert f" {100 * first / count:.0f} " in lines[-2]
        else:
            assert len(lines) == count + 2


@pytest.mark.parametrize("share", [0.0, 0.019, 0.02, 0.1, 0.2499, 0.25, 0.5, 1.0])
def test_colours_of_shares_begin_where_the_legend_says(share: float) -> None:
    assert shares.color(share) == heat.HEAT[sum(share >= least for least in (0.02, 0.1, 0.25, 0.5))]
    assert shares.legend(False) == "shares in %: · <2 ░ 2-10 ▒ 10-25 ▓ 25-50 █ >50\n"


@pytest.mark.parametrize("words", [("attend",), ("lens",), ("lens", "--all")])
def test_any_text_is_safe_on_a_terminal(words: tuple[str, ...], tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(HOSTILE.encode())
    shown = re.sub(r"\x1b\[[0-9;]*m", "", answer(llm(*words, "-f", str(file), "--color", "always")))
    assert not set(shown) & {"\x1b", "\x07", "\r", "\u202e", "\u202c"}


def test_on_a_real_terminal(tmp_path: Path) -> None:
    settings = {"LLMCLI_HOME": str(tmp_path), "COLUMNS": "60", "LINES": "24"}
    for words in (["attend", TEXT], ["lens", TEXT], ["lens", TEXT, "--all"]):
        code, shown = on_terminal(["-m", "llmcli", *words], settings)
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
        assert code == 0 and b"\x1b[38;5;16" in shown or words == ["lens", TEXT]
        assert all(bars.width(line.rstrip()) <= 60 for line in lines[:-1]), lines


# The page


def page_data(page: str) -> tuple[dict[str, Any], list[list[np.ndarray]]]:
    """Its terms, and the shares of each layer's heads."""
    blocks = re.findall(r'<script type="application/json" class="(\w+)">(.*?)</script>', page)
    layers = [
        [np.array([share for (share,) in struct.iter_unpack("<H", base64.b64decode(text))]) / 65535 for text in json.loads(data)]
        for kind, data in blocks
        if kind == "layer"
    ]
    return json.loads(blocks[0][1]), layers


def test_a_page_has_all_weights(demo: Engine, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    shown = answer(llm("attend", TEXT, "--html", str(file), "--layer", "1", "--head", "3"))
    assert shown == "layer 1 of 6, head 3 of 4, demo:int8, 10 tokens of text\n"
    terms, layers = page_data(file.read_text())
    assert (terms["layer"], terms["head"], terms["names"][4]) == (1, 3, "␣red") and [len(heads) for heads in layers] == [4] * 6
    ids = demo.tokenizer.encode(TEXT)
    for layer, head in ((0, 0), (5, 3), (2, 1)):
        want = whole(demo, ids, layer, head)[np.tril_indices(len(ids))]
        np.testing.assert_allclose(layers[layer][head], want, rtol=0, atol=1e-5)
    both = llm("attend", TEXT, "--html", str(file), "--json")
    assert answer(both) == answer(llm("attend", TEXT, "--json"))


def test_a_page_holds_any_text_and_asks_for_nothing() -> None:
    page = Page([ATTACK, "b"], [1])
    page.add(0, 0, [[1.0], [0.25, 0.75]])
    parts: list[str] = []
    page.write(parts.append, ATTACK, 0, None)
    made = "".join(parts)
    terms, layers = page_data(made)
    assert terms["names"] == [ATTACK, "b"] and layers[0][0].round(3).tolist() == [1.0, 0.25, 0.75]
    assert made.count("<script") == made.count("</script>") == 3 and "<img" not in made and "\x1b" not in made and "\u202e" not in made
    assert "default-src 'none'" in made and not re.search(
        r"(?:src|href)=[\"']?(?!x )|https?:|url\(|@import|fetch\(", made.replace("src=x", "")
    )
    with pytest.raises(InputError, match="shorter"):
        Page(["x"] * 4096, [32] * 32)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    answer(llm("attend", TEXT, "--html", str(file)))
    words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom"]
    done = subprocess.run(
        [*words, "--enable-logging=stderr", "--virtual-time-budget=2000", file.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "CONSOLE" not in done.stderr, done.stderr
    weights = json.loads(answer(llm("attend", TEXT, "--json")))["weights"][-1]
    body = done.stdout.partition("<main>")[2].partition("</main>")[0]
    titles = re.findall(r'<span[^>]* class="s\d( now)?" title="([\d.]+)%"', body)
    assert [float(title) for _, title in titles] == pytest.approx([100 * share for share in weights], abs=0.06)
    assert titles[-1][0] and "␣his</b> (position 9) looks at <b>␣ball</b> 48" in done.stdout


# The lens


def test_the_last_view_is_the_models_own(demo: Engine) -> None:
    ids = demo.tokenizer.encode(TEXT)
    with Past(demo) as past:
        [(position, views)] = list(lens.lens(past, ids, 5))
    assert position == len(ids) - 1 and [view.layer for view in views] == [None, 0, 1, 2, 3, 4, 5]
    own = json.loads(answer(llm("next", TEXT, "-k", "5", "--json")))["candidates"]
    assert [number for number, _ in views[-1].top] == [candidate["id"] for candidate in own]
    assert [value for _, value in views[-1].top] == pytest.approx([candidate["logprob"] for candidate in own], abs=1e-6)
    assert (views[-1].kl, views[-1].final_rank, views[-1].final_logprob) == (0, 1, views[-1].top[0][1])
    assert all(view.kl > 0 for view in views[:-1])


def test_divergence_and_rank_by_definition(demo: Engine) -> None:
    ids = demo.tokenizer.encode(TEXT)
    with Past(demo) as past:
        result = past.compute(ids)
        rows = {name: array[-1].astype(np.float64) for name, array in result.taps.items() if name.startswith("lens.")}
        rows["lens.5"] = result.logits[-1].astype(np.float64)
    with Past(demo) as past:
        [(_, views)] = list(lens.lens(past, ids, 4))
    p = np.exp(rows["lens.5"]) / np.exp(rows["lens.5"]).sum()
    for view in views:
        logits = rows[f"lens.{'embedding' if view.layer is None else view.layer}"]
        q = np.exp(logits - logits.max())
        q /= q.sum()
        assert view.kl == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6, abs=1e-9)
        assert view.final_rank == 1 + (q > q[p.argmax()]).sum() and math.exp(view.final_logprob) == pytest.approx(q[p.argmax()])
        assert [number for number, _ in view.top] == np.argsort(-q, kind="stable")[:4].tolist()


def test_every_place_is_as_if_the_text_ended_there(demo: Engine) -> None:
    """Bit for bit, also where the rows of one step end."""
    ids = demo.tokenizer.encode(TEXT + " " + TEXT)
    with Past(demo) as past:
        everywhere = list(lens.lens(past, ids, 2, first=0))
        assert [position for position, _ in everywhere] == list(range(len(ids)))
        for position, views in everywhere:
            assert list(lens.lens(past, ids[: position + 1], 2)) == [(position, views)]


def test_the_lens_as_json_and_tables() -> None:
    one = json.loads(answer(llm("lens", TEXT, "-k", "2", "--json")))
    every = [json.loads(line) for line in answer(llm("lens", TEXT, "-k", "2", "--all", "--json")).splitlines()]
    assert every[-1] == one and [record["position"] for record in every] == list(range(10)) == [len(r["tokens"]) - 1 for r in every]
    lines = answer(llm("lens", TEXT)).splitlines()
    assert lines[0].split() == ["layer", "token", "probability", "KL", "␣ball", "rank", "then"] and len(lines) == 9
    for line, view in zip(lines[1:], one["layers"], strict=False):
        words = line.split()
        best = view["top"][0]
        assert words[0] == ("embedding" if view["layer"] is None else str(view["layer"]))
        assert words[1] == best["text"].replace(" ", "␣") and f"{100 * math.exp(best['logprob']):.2f}%" in words
        assert f"{view['kl']:.3f}" in words and str(view["final_rank"]) in words
    table = answer(llm("lens", TEXT, "--all")).splitlines()
    assert table[0].split() == ["token", "embedding", "0", "1", "2", "3", "4", "5"]
    assert [line.split()[-1] for line in table[1:-1]] == [r["layers"][-1]["top"][0]["text"].replace(" ", "␣") for r in every]
