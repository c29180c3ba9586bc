"""How long a browser takes to open the page of a long text, from the request to the first frame that shows it, and to show a token's card.

    python benchmarks/page_opening.py TEXT[.xz] [--model demo] [--tokens 20000] [--runs 5] [--browser /usr/bin/chromium]

Needs Chromium and the package playwright. The page is that of `llm score --html`, with the text's first tokens.
"""

from __future__ import annotations

import argparse
import lzma
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from llmcli import engine

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FRAME = "() => new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    opened = lzma.open(options.text, "rt", encoding="utf-8") if options.text.suffix == ".xz" else options.text.open(encoding="utf-8")
    with opened as file:
        ids = engine.read_text(options.model)[1].encode(file.read(20 * options.tokens))[: options.tokens]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        command = [sys.executable, "-m", "llmcli", "score", "--ids", "-q", "-m", options.model, "--html", str(page)]
        subprocess.run(command, input=" ".join(map(str, ids)), text=True, check=True, stdout=subprocess.DEVNULL)
        print(f"{len(ids):,} tokens, a page of {page.stat().st_size / 2**20:.1f} MiB")
        opening, card = [], []
        with sync_playwright() as tools:
            for _ in range(options.runs):
                browser = tools.chromium.launch(executable_path=options.browser, args=FLAGS)
                tab = browser.new_page()
                start = time.perf_counter()
                tab.goto(page.as_uri())
                tab.evaluate(FRAME)
                opening.append(time.perf_counter() - start)
                start = time.perf_counter()
                tab.keyboard.press("Tab")
                tab.keyboard.press("End")
                tab.locator("aside h2").wait_for()
                card.append(time.perf_counter() - start)
                browser.close()
    print(f"open: {statistics.median(opening):.2f} s, the last token's card: {statistics.median(card):.2f} s (medians of {options.runs})")


if __name__ == "__main__":
    main()
