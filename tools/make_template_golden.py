"""What `transformers` renders of chat templates, for tests/test_template_golden.py: hashes, because the templates are others' work.

    python tools/make_template_golden.py FOLDER > tests/fixtures/templates.json

FOLDER has templates as NAME.jinja. Needs transformers; the version that made the file is in it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import transformers
from transformers.utils import chat_template_utils

NOW = "2024-03-09T08:07:06"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = {"role": "user", "content": "Name three  rivers.\n"}
TURNS = [
    {"role": "system", "content": 'Answer in French; é < è & "ü".'},
    USER,
    {"role": "assistant", "content": " La Seine, la Loire, le Rhône."},
    {"role": "user", "content": "And <b>lakes</b>? 湖 🙂"},
]
THOUGHTS = [
    USER,
    {"role": "assistant", "content": "Paris.", "reasoning_content": "They ask about cities."},
    {"role": "user", "content": "Why?"},
]
CASES: dict[str, dict[str, Any]] = {
    "one turn": {"messages": [USER]},
    "system and turns": {"messages": TURNS},
    "a whole conversation": {"messages": TURNS[:3], "add_generation_prompt": False},
    "thoughts of an earlier answer": {"messages": THOUGHTS},
    "thinking": {"messages": [USER], "enable_thinking": True, "thinking": True},
    "no thinking": {"messages": [USER], "enable_thinking": False, "thinking": False},
}


class Clock(datetime.datetime):
    """Stands still."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromisoformat(NOW)


def main(folder: Path) -> None:
    chat_template_utils.datetime = Clock
    templates = {}
    for path in sorted(folder.glob("*.jinja")):
        source = path.read_text("utf-8")
        templates[path.stem] = {"sha256": digest(source), "cases": {name: outcome(source, case) for name, case in CASES.items()}}
    made_by = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    print(json.dumps({"made_by": made_by, "now": NOW, "tokens": TOKENS, "cases": CASES, "templates": templates}, indent=1))


def outcome(source: str, case: dict[str, Any]) -> dict[str, Any]:
    """Length and hash of the text; where the template refuses, the hash of its words; where it fails, only that."""
    options = {"add_generation_prompt": True, **TOKENS, **case}
    messages = options.pop("messages")
    try:
        text = chat_template_utils.render_jinja_template([messages], chat_template=source, **options)[0][0]
    except jinja2.TemplateError as error:
        if type(error) is jinja2.TemplateError:  # raise_exception's
            return {"refuses": digest(" ".join(str(error).split()))}
        return {"fails": type(error).__name__}
    except Exception as error:
        return {"fails": type(error).__name__}
    return {"length": len(text), "sha256": digest(text)}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
