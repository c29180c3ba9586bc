"""Templates of real models, against what `transformers` makes of them (tools/make_template_golden.py)."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from llmcli.errors import TemplateError
from llmcli.text.template import render

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "fixtures" / "templates.json").read_text("utf-8"))


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def source_of(data_dir: Path, name: str) -> str:
    path = data_dir / "templates" / f"{name}.jinja"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    source = path.read_text("utf-8")
    if digest(source) != GOLDEN["templates"][name]["sha256"]:
        pytest.skip(f"{path} is another version than the golden file's")
    return source


@pytest.mark.parametrize("name", sorted(GOLDEN["templates"]))
def test_as_transformers_renders_it(data_dir: Path, name: str) -> None:
    """Every case: the same text to the character, or a refusal in one line."""
    source = source_of(data_dir, name)
    for case, expected in GOLDEN["templates"][name]["cases"].items():
        options = {**GOLDEN["tokens"], **GOLDEN["cases"][case]}
        messages = options.pop("messages")
        try:
            text = render(source, messages, datetime.fromisoformat(GOLDEN["now"]), **options)
        except TemplateError as error:
            assert "sha256" not in expected, f"{case}: {error}"
            assert error.why and "\n" not in str(error)
            if "refuses" in expected:
                assert error.what.endswith("refuses this conversation") and digest(error.why) == expected["refuses"], case
        else:
            assert {"length": len(text), "sha256": digest(text)} == expected, case


def test_most_templates_render(data_dir: Path) -> None:
    """The golden file is no list of refusals."""
    rendered = [name for name, found in GOLDEN["templates"].items() if "sha256" in found["cases"]["one turn"]]
    assert len(rendered) >= 53 and len(GOLDEN["templates"]) == 57
