"""Makes the pictures of docs/weighted-die.md anew: what commands show on a terminal with colours, as SVG, and a page in a browser, as PNG.

Run it with the `llm` of the environment first in PATH; the page needs Chromium. `tests/test_tutorial.py` compares the SVGs' text.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
PICTURES = {
    "attend": 'llm attend "Tom had a red ball. He lost his" --layer 5 --head 3',
    "score": 'llm score "Tom had a red ball. He lost his ball."',
}
PAGE = 'llm attend "Tom had a red ball. He lost his" --layer 5 --head 3 --html page.html'
SIZE = (860, 560)


def terminal(name: str, command: str) -> None:
    """An SVG of the command and what it prints. It uses the reader's own fonts: none is fetched."""
    settings = {"COLUMNS": "80", "LINES": "24"}
    shown = subprocess.run(
        [*shlex.split(command), "--color", "always"], capture_output=True, text=True, check=True, env=os.environ | settings
    )
    text = Text.from_ansi(f"$ {command}\n{shown.stdout}")
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=82, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(text, soft_wrap=True)
    plain = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    svg = console.export_svg(title="llm", code_format=plain, unique_id=name)
    (IMAGES / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n", "utf-8")


def browser(name: str, command: str) -> None:
    """A PNG of the page that the command writes."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(shlex.split(command), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        words = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        target = f"--screenshot={IMAGES / name}.png"
        page = (Path(folder) / "page.html").as_uri()
        subprocess.run([*words, "--window-size={},{}".format(*SIZE), target, page], check=True, stderr=subprocess.DEVNULL, timeout=60)


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    subprocess.run(["llm", "warmup", "-q"], check=True)
    for name, command in PICTURES.items():
        terminal(name, command)
    browser("attention", PAGE)


if __name__ == "__main__":
    main()
