"""Cases 1 to 7, 12, 14, 16, 77, 80, 81 as whole commands: model files that are damaged or hostile, and what `llm` says of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import assert_clean, attempt, snapshot
from made import CONFIG, models

import random_model
from checkpoints import build

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def header(text: Any, data: bytes = b"") -> bytes:
    return build(text if isinstance(text, bytes) else json.dumps(text).encode(), data)


WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "a length beyond all": (struct.pack("<Q", 1 << 63) + b"{}", "header length"),
    "a length past the end": (struct.pack("<Q", 1000) + b"{}", "cut off"),
    "an overlap": (header({"x": ONE, "y": {**ONE, "data_offsets": [4, 12]}}, bytes(12)), 'tensor "y" overlaps'),
    "a hole": (header({"x": ONE, "y": {**ONE, "data_offsets": [12, 20]}}, bytes(20)), 'tensor "y" leaves a gap'),
    "a shape that is not its bytes": (header({"x": {**ONE, "shape": [3]}}, bytes(8)), 'tensor "x"'),
    "a product beyond 64 bits": (header({"x": {**ONE, "shape": [1 << 62, 1 << 62, 0], "data_offsets": [0, 0]}}), 'tensor "x"'),
    "an unknown type": (header({"x": {**ONE, "dtype": "F33"}}, bytes(8)), 'tensor "x": unknown type'),
    "a tensor twice": (header(b'{"x":%s,"x":%s}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)), '"x" is there twice'),
    "a tail": (header({"x": ONE}, bytes(9)), "longer than its tensors"),
    "another model's": (header({"x": ONE}, bytes(8)), "the weights do not fit config.json"),
    "deep": (header(b'{"a":' + b"[" * 3_000_000), "not valid"),
}
MANY = ("empty", "an overlap", "a tensor twice", "another model's", "deep")
"""Those that a whole command is run for in the suite; headers have tests of their own."""


@pytest.mark.parametrize("name", [name if name in MANY else pytest.param(name, marks=pytest.mark.long) for name in WEIGHTS])
def test_weights_that_are_no_weights(case: Path, name: str) -> None:
    """Refused with the file, what is wrong in it, and nothing made; soon, and in little memory."""
    content, says = WEIGHTS[name]
    (case / "source" / "tiny" / "model.safetensors").write_bytes(content)
    before = snapshot(case)
    proc = attempt(["import", "source/tiny", "--quant", "int8"], case / "home", heals=[3], limit=20)
    assert proc.code == 3 and says in proc.lines[-1], proc.err
    assert "source/tiny" in proc.lines[-1] or "config.json" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))


def test_a_pickle_is_not_read(case: Path) -> None:
    """Case 14."""
    source = case / "source" / "tiny"
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    before = snapshot(case)
    proc = attempt(["import", "source/tiny"], case / "home", heals=[4])
    assert proc.code == 4 and "no safetensors weights" in proc.lines[-1] and "run code" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))


def test_a_packed_file_of_the_future_and_one_of_somebody_else(case: Path) -> None:
    """Case 7."""
    file = models(case) / "tiny-none.safetensors"
    content = file.read_bytes()
    newer = content.replace(b'"format_version":"1"', b'"format_version":"2"')
    assert newer != content
    for changed, says in ((newer, "made by a newer llm"), ((case / "source" / "tiny" / "model.safetensors").read_bytes(), "llm import")):
        file.write_bytes(changed)
        for words in (["run", "-m", "tiny:none", "a"], ["verify", "tiny"]):
            before = snapshot(case)
            proc = attempt(words, case / "home", heals=[3])
            assert proc.code == 3 and says in proc.err.decode(), proc.err
            assert_clean(proc, before, snapshot(case))
    file.write_bytes(content)
    assert attempt(["verify", "tiny"], case / "home").code == 0


def test_numbers_that_grow_beyond_all(case: Path) -> None:
    """Case 77: every weight is finite, what is computed of them is not; the step and the layer are named, and no token comes."""
    weights = random_model.tensors(CONFIG)
    weights["model.layers.1.mlp.up_proj.weight"] *= 1e25
    weights["model.layers.1.mlp.gate_proj.weight"] *= 1e25
    random_model.write_folder(case / "source" / "large", CONFIG, weights)
    assert attempt(["import", "source/large", "--quant", "none"], case / "home").code == 0
    for words in (["run", "-n", "5"], ["score"]):
        before = snapshot(case)
        proc = attempt([words[0], "-m", "large", *words[1:], "Once upon a time"], case / "home", heals=[9])
        assert proc.code == 9 and "layers.2." in proc.lines[-1] and "token 0 of the step" in proc.lines[-1], proc.err
        assert proc.out == b"" and "NaN" in proc.lines[-1]
        assert_clean(proc, before, snapshot(case))


LOOP = "{%% for %s in range(9999) %%}"
TEMPLATES: dict[str, tuple[str, str]] = {
    "an attribute": ("{{ messages.__class__.__mro__ }}", "failed"),
    "a subclass": ("{{ ''.__class__.__base__.__subclasses__() }}", "failed"),
    "a file": ("{% include '/etc/passwd' %}", "failed"),
    "a format": ("{{ '{0.__class__}'.format(messages).x.y }}", "failed"),
    "time": (f"{LOOP % 'a'}{LOOP % 'b'}{LOOP % 'c'}" + 3 * "{% endfor %}", "seconds"),
    "memory": ("{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", "memory"),
    "a refusal": ("{{ raise_exception('no system role') }}", "refuses this conversation: no system role"),
}


@pytest.fixture
def chatting(case: Path) -> Callable[[str], None]:
    """Makes the model `chat` with this template."""

    def make(template: str) -> None:
        file = case / "source" / "tiny" / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
        done = attempt(["import", "source/tiny", "--quant", "none", "--name", "chat"], case / "home")
        assert done.code == 0, done.err

    return make


SOME = ("an attribute", "time", "a refusal")


@pytest.mark.parametrize("name", [name if name in SOME else pytest.param(name, marks=pytest.mark.long) for name in TEMPLATES])
def test_a_hostile_template(case: Path, chatting: Callable[[str], None], name: str) -> None:
    """Cases 80 to 82: `llm run` says so and ends, and with `--raw` the model is of use."""
    template, says = TEMPLATES[name]
    chatting(template)
    chat = (["chat", "-m", "chat", "-n", "2"], b"hi\n")
    for words, text in ((["run", "-m", "chat", "-n", "2", "hi"], None), *([chat] if name == "a refusal" else [])):
        before = snapshot(case)
        proc = attempt(words, case / "home", heals=[3], limit=30, text=text)
        assert proc.code == 3 and says in proc.lines[-1] and "--raw" in proc.lines[-1], proc.err
        assert_clean(proc, before, snapshot(case))
    assert attempt(["run", "-m", "chat", "--raw", "-n", "2", "hi"], case / "home").code == 0


def test_not_a_number_in_the_source(case: Path) -> None:
    """Case 9, as a command."""
    weights = random_model.tensors(CONFIG)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    random_model.write_folder(case / "source" / "bad", CONFIG, weights)
    before = snapshot(case)
    proc = attempt(["import", "source/bad", "--quant", "int4"], case / "home", heals=[9])
    assert proc.code == 9 and '"model.layers.1.mlp.up_proj.weight"' in proc.lines[-1] and "nan at [3, 5]" in proc.lines[-1]
    assert_clean(proc, before, snapshot(case))
