"""Pages in a real browser, Chromium without a window: pointer, keyboard, light and dark, hostile text, no request to anywhere.

Skipped with a message where the package playwright or the program chromium is missing.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmcli.pages.page import BLOCK, SURPRISE, Choice, Name, Page
from test_look import HOSTILE, STORY, answer, llm
from test_page import ATTACK

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TOKENS = "main span:not(.plain)"
LONG = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    tools = pytest.importorskip("playwright.sync_api", reason="pages are tested in a browser by the package playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("pages are tested in a browser: there is no chromium")
    with tools.sync_playwright() as started:
        found = started.chromium.launch(executable_path=program, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture
def view(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file, and in the end asserts that nothing was said on the console and nothing else was asked for."""
    said: list[str] = []
    asked: list[str] = []
    tabs: list[Any] = []

    def opened(path: Path, **options: Any) -> Any:
        tab = browser.new_page(**{"viewport": {"width": 800, "height": 500}, **options})
        tabs.append(tab)
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield opened
    urls = [tab.url for tab in tabs]
    for tab in tabs:
        tab.close()
    assert said == [] and asked == urls


def card(tab: Any) -> str:
    return str(tab.locator("aside").inner_text()) if tab.locator("aside").is_visible() else ""


def test_the_pointer_shows_alternatives(view: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    answer(llm("score", STORY, "--html", str(file)))
    tab = view(file)
    assert card(tab) == "" and tab.locator("main").inner_text() == "<|endoftext|>" + STORY
    tab.locator(TOKENS).nth(9).hover()
    shown, record = card(tab), json.loads(answer(llm("score", STORY, "--json")).splitlines()[9])
    assert shown.startswith("\u2423dog") and f"{record['surprise_bits']:.2f} bits" in shown
    assert "\u2423girl" in shown and f"{100 * math.exp(record['top'][0]['logprob']):.2f}%" in shown
    assert tab.locator("aside tr").count() == 5 and "dog" in tab.locator("main .now").inner_text()
    widths = [tab.locator("aside td div").nth(i).bounding_box()["width"] for i in range(3)]
    assert widths[0] > 2 * widths[1] > 0
    tab.locator(TOKENS).nth(2).hover()
    assert card(tab).startswith("\u2423upon") and tab.locator("aside .taken").inner_text().startswith("\u2423upon")
    tab.mouse.move(400, 495)
    assert card(tab) == "" and tab.locator(".now").count() == 0


def test_the_keyboard_goes_through_the_text(view: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    answer(llm("score", "\n\n".join([STORY] * 8), "--html", str(file)))
    tab = view(file, viewport={"width": 500, "height": 400})

    def at() -> int:
        return int(tab.evaluate(f"[...document.querySelectorAll('{TOKENS}')].indexOf(document.activeElement)"))

    def press(*keys: str) -> int:
        for key in keys:
            tab.keyboard.press(key)
        return at()

    assert press("Tab") == 0 and card(tab).startswith("<|endoftext|>")
    assert press("ArrowLeft") == 0 and press("ArrowRight", "ArrowRight") == 2 and card(tab).startswith("\u2423upon")
    down = press("ArrowDown")
    boxes = [tab.locator(TOKENS).nth(i).bounding_box() for i in (2, down)]
    assert down > 4 and boxes[1]["y"] > boxes[0]["y"] and press("ArrowUp") < 5
    last = tab.locator(TOKENS).count() - 1
    assert press("End") == last and press("ArrowRight") == last and press("ArrowDown") == last
    box = tab.locator("main .now").bounding_box()
    assert 0 <= box["y"] and box["y"] + box["height"] <= 400  # scrolled to
    assert press("Home", "n") == 9 and press("n") > 9 and press("p") == 9 and card(tab).startswith("\u2423dog")
    edges = tab.locator("aside").bounding_box()
    assert edges["x"] >= 0 and edges["x"] + edges["width"] <= 500 and edges["y"] >= 0
    assert press("Escape") == 9 and card(tab) == "" and press("ArrowRight") == 10 and card(tab)
    assert press("Shift+Tab") == -1 and card(tab) == "" and press("Tab") == 10  # in and out again, at the same place


def test_hostile_text_stays_text(view: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    attack = ATTACK.encode("utf-8", "replace").decode().replace("\0", "")
    pieces = [*HOSTILE, attack, "\u202e", "\u05e9\u05dc\u05d5\u05dd", "\r", *attack]
    parts: list[str] = []
    page = Page(parts.append, attack, SURPRISE, [attack, "\u202efact"], [attack])
    for number, piece in enumerate(pieces):
        page.token(Name(number, piece), piece, 5.0, [piece, piece], [[Choice(Name(number, piece), 0.5, piece)]])
    page.end(attack, [attack])
    file.write_text("".join(parts), "utf-8")
    tab = view(file)
    assert tab.evaluate("document.scripts.length") == 4 and tab.evaluate("document.images.length") == 0
    assert tab.locator(TOKENS).count() == len(pieces) and attack.split("\u2028")[0] in tab.locator("main").text_content()
    for number in range(0, len(pieces), 7):
        tab.locator(TOKENS).nth(number).dispatch_event("mouseover")
        assert tab.locator("aside dd").first.text_content() == pieces[number]
    direction = tab.evaluate("getComputedStyle(document.querySelector('main')).unicodeBidi")
    assert direction == "plaintext" and tab.evaluate("getComputedStyle(document.querySelector('aside bdi')).unicodeBidi") == "isolate"


def test_the_policy_is_in_force(browser: Any, tmp_path: Path) -> None:
    """What the page did not bring itself does not run and is not fetched."""
    file = tmp_path / "page.html"
    answer(llm("score", STORY, "--html", str(file)))
    tab, fetched = browser.new_page(), []
    tab.goto(file.as_uri())
    tab.on("requestfinished", lambda request: fetched.append(request.url))
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    tab.evaluate("document.body.append(Object.assign(document.createElement('img'), {src: 'other.png'}))")
    tab.evaluate("document.body.append(Object.assign(document.createElement('p'), {id: 'late'}))")
    tab.locator("#late").wait_for(state="attached")
    assert tab.evaluate("window.ran === undefined") and fetched == []
    assert tab.evaluate("fetch('other.json').then(() => 'fetched', () => 'refused')") == "refused" and fetched == []
    tab.close()


def test_light_and_dark(view: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    answer(llm("run", "Once upon a time", "-n", "20", "--seed", "1", "--html", str(file)))

    def luminance(color: str) -> float:
        channels = [int(part) / 255 for part in color[4:-1].split(",")]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for scheme in ("light", "dark"):
        tab = view(file, color_scheme=scheme)
        ink = luminance(tab.evaluate("getComputedStyle(document.body).color"))
        grounds = tab.evaluate("[...document.querySelectorAll('.legend span')].map((x) => getComputedStyle(x).backgroundColor)")
        assert len(grounds) == 9 and len(set(grounds)) == 9
        for ground in [luminance(color) for color in grounds[1:]]:  # contrast as WCAG 2 measures it, 4.5 is its AA
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5


def test_a_long_page_opens_quickly(view: Callable[..., Any], tmp_path: Path) -> None:
    """benchmarks/page_opening.py measures it; here only that nobody waits."""
    file = tmp_path / "page.html"
    with file.open("w", encoding="utf-8") as out:
        page = Page(out.write, "long", SURPRISE, ["fact"], ["list"])
        for number in range(LONG):
            name = Name(number % 4096, f"w{number % 4096}")
            page.token(name, f"w{number} ", number % 15, [str(number)], [[Choice(name, 0.5, "")] * 5])
        page.end("", ["total"])
    start = time.monotonic()
    tab = view(file)
    tab.keyboard.press("Tab")
    tab.keyboard.press("End")
    assert tab.locator("aside dd").text_content() == str(LONG - 1)
    assert time.monotonic() - start < 10
    assert tab.locator("script.numbers").count() == -(-LONG // BLOCK)
