"""A model with a chat template: where the template is found, what its prompt is, and which tokens end its answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcli import acquire, library
from llmcli import engine as engines
from llmcli.errors import TemplateError, UsageError
from llmcli.generate import Settings, generate
from llmcli.text.template import turn_end
from llmcli.text.tokenizer import Tokenizer
from random_model import CONFIG, write_folder

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
NAMES = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|channel|>", "<|message|>"]
HI = [{"role": "user", "content": "hi"}]


def folder(path: Path, template: str | None = CHATML, **files: Any) -> Path:
    """A random model whose tokenizer has NAMES as its last control tokens, with these files as JSON; a None leaves one out."""
    source = write_folder(path, CONFIG | {"vocab_size": 4096 + len(NAMES), "eos_token_id": 0})
    data = json.loads((source / "tokenizer.json").read_text())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    data["added_tokens"] += [{"id": 4096 + i, "content": name, **flags} for i, name in enumerate(NAMES)]
    (source / "tokenizer.json").write_text(json.dumps(data))
    if template is not None:
        (source / "chat_template.jinja").write_text(template)
    for name, contents in files.items():
        (source / f"{name}.json").write_text(json.dumps(contents))
    return source


def loaded(path: Path, **options: Any) -> engines.Engine:
    made = acquire.import_model(folder(path / "source", **options), "none", "random", path=path / "random-none.safetensors")
    return engines.load(str(made), backend="reference", chat=True)


def ids(engine: engines.Engine, *names: str) -> set[int | None]:
    return {engine.tokenizer.encode(name, special=True, bos=False)[0] for name in names}


def test_the_end_of_a_turn_ends_an_answer(tmp_path: Path) -> None:
    """Also where the configuration names the end of a document only."""
    engine = loaded(tmp_path, generation_config={"eos_token_id": 0})
    assert engine.end_ids == {0}
    found = engine.prompt(HI)
    assert engine.tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", special=True, bos=False) == found.ids
    assert engine.end_ids == {0} | ids(engine, "<|im_end|>")
    (turn,) = ids(engine, "<|im_end|>")
    assert turn is not None
    steps = list(generate(engine, found.ids, Settings(logit_bias={turn: 1e4}, max_tokens=9)))
    assert [(step.id, step.text, step.finish) for step in steps] == [(turn, "", "eos")]
    engine.close()


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [0, 7]}, {0, 7}),
        ({"eos_token_id": 7}, {0, 7, 4097}),
        ({}, {0, 4097}),
        ({"eos_token_id": None}, {0, 4097}),
        ({"eos_token_id": [True, "x", 7]}, {0, 7}),
    ],
)
def test_a_list_in_the_configuration_is_the_whole_answer(tmp_path: Path, generation: dict[str, Any], expected: set[int]) -> None:
    engine = loaded(tmp_path, generation_config=generation)
    engine.prompt(HI)
    assert engine.end_ids == expected
    engine.close()


def test_the_end_of_thoughts_ends_no_answer(tmp_path: Path) -> None:
    """A template that writes one token behind thoughts and answers alike: it cannot be the end."""
    engine = loaded(tmp_path, template="{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{# <|channel|>analysis<|message|> #}")
    engine.prompt(HI)
    assert engine.end_ids == {0}
    engine.close()


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}  \n<|end|>{% endfor %}", "<|end|>"),
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "</s>"),
        ("{% for m in messages %}USER: {{ m.content }}\n{% endfor %}", None),
        ("{{ messages[0].content }}", None),
        ("{{ raise_exception('one turn only') if messages | length > 1 }}", None),
    ],
)
def test_what_a_template_writes_behind_an_answer(template: str, expected: str | None) -> None:
    from test_thinking import tokenizer

    made = tokenizer(*NAMES)
    made = Tokenizer(made._library.to_str().encode(), {"eos_token": "</s>"})
    found = turn_end(made, template)
    assert (None if found is None else made.token_text(found)) == expected


LIST = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}, 7, {"name": 7, "template": "x"}]


@pytest.mark.parametrize(
    ("template", "config", "legacy", "expected"),
    [
        ("J", "C", "L", "J"),
        (None, "C", "L", "C"),
        (None, None, "L", "L"),
        (None, None, None, None),
        (None, LIST, "L", "D"),
        (None, {"default": "D", "rag": "R"}, None, "D"),
        (None, [], None, None),
    ],
)
def test_where_a_template_is_found(tmp_path: Path, template: str | None, config: Any, legacy: Any, expected: str | None) -> None:
    engine = loaded(tmp_path, template=template, tokenizer_config={"chat_template": config}, chat_template={"chat_template": legacy})
    assert engine.template == expected
    if expected is None:
        with pytest.raises(UsageError, match="no chat template"):
            engine.prompt(HI)
    engine.close()


def test_several_templates_without_a_default(tmp_path: Path) -> None:
    """As `transformers` does: refused where one is needed, by name; the model loads."""
    engine = loaded(tmp_path, template=None, tokenizer_config={"chat_template": LIST[:1]})
    with pytest.raises(TemplateError, match="several.*tool_use.*--raw"):
        engine.prompt(HI)
    assert library.describe(str(tmp_path / "random-none.safetensors"))["template"] is True
    engine.close()


def test_named_tokens_reach_the_template(tmp_path: Path) -> None:
    """Those that the configuration has; others are undefined, as in `transformers`."""
    config = {"bos_token": {"content": "<s>"}, "pad_token": "<pad>", "image_token": "<image>", "eos_token": None, "add_bos_token": True}
    template = "{{ bos_token }}{{ pad_token }}{{ image_token }}{{ eos_token is defined }}{{ add_bos_token is defined }}"
    engine = loaded(tmp_path, template=template, tokenizer_config=config)
    assert engine.tokenizer.decode(engine.prompt(HI).ids) == "<s><pad><image>FalseFalse"
    engine.close()
