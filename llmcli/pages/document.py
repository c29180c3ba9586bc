"""What every page with a script begins with: its style and script inside it, and a policy that allows these two and nothing else."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from pathlib import Path
from typing import Any

from llmcli.text import escape


def part(name: str) -> str:
    """A stylesheet or a script of this folder."""
    return Path(__file__).with_name(name).read_text("utf-8")


def opening(title: str, style: str, script: str) -> str:
    """Up to the body's first element. title: hostile text, shown as it is."""
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<meta name="referrer" content="no-referrer">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{heading(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
    )


def heading(title: str) -> str:
    """A title as HTML, what a terminal would obey shown."""
    return html.escape(escape.name(title))


def data(kind: str, value: Any, ascii: bool = False) -> str:
    """A block of JSON that no text in it can end or turn into markup. ascii: all other characters as escapes, those that turn the
    direction of what stands beside them too."""
    text = json.dumps(value, ensure_ascii=ascii, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" class="{kind}">{text}</script>'


def _hash(code: str) -> str:
    """As a content security policy names code that may run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
