"""The Python interface as a program uses it: typed errors, threads, several models, nothing left behind."""

from __future__ import annotations

import doctest
import gc
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llmcli
from llmcli import acquire
from llmcli.errors import ContextOverflow, InputError, NotFound, OutOfMemory, UsageError
from llmcli.generate import generate, settings_for
from random_model import write_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def model() -> Iterator[llmcli.Model]:
    with llmcli.load("demo", context=256, texts=3) as model:
        yield model


def text_of(model: llmcli.Model, prompt: str = "Once upon a time", **options: Any) -> str:
    return "".join(step.text for step in model.generate(prompt, **options))


def test_the_examples_of_the_docs() -> None:
    """Every `>>>` of docs/python.md, in order, with the results that it shows."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    said: list[str] = []
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks, 1):
        example = doctest.DocTestParser().get_doctest(block, names, f"block {number}", "docs/python.md", 0)
        runner.run(example, out=said.append, clear_globs=False)
        names.update(example.globs)
    result = runner.summarize(verbose=False)
    assert result.failed == 0, "".join(said)
    assert result.attempted > 20


def test_generation_is_that_of_the_command(model: llmcli.Model) -> None:
    engine = model._engine
    for options in ({"temperature": 0.0}, {"seed": 9, "temperature": 1.3, "top_k": 0}):
        settings = settings_for(engine, {"max_tokens": 30, **options})
        wanted = list(generate(engine, engine.tokenizer.encode("The cat"), settings, 2))
        assert list(model.generate("The cat", max_tokens=30, probs=2, **options)) == wanted  # type: ignore[arg-type]
    ids = [token.id for token in model.tokenize("The cat")]
    assert list(model.generate(ids, max_tokens=30, probs=2, seed=9, temperature=1.3, top_k=0)) == wanted
    assert model.detokenize(ids) == "The cat"


def test_a_new_seed_each_time(model: llmcli.Model) -> None:
    assert len({text_of(model, max_tokens=30, temperature=2) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": "hot"},
        {"top_p": 1.01},
        {"min_p": -1},
        {"top_k": 1.5},
        {"top_k": -1},
        {"max_tokens": -1},
        {"seed": 2**64},
        {"repeat_penalty": 0},
        {"logit_bias": {4096: 1.0}},
        {"logit_bias": {1: math.nan}},
        {"logit_bias": {-1: 1.0}},
        {"stop": "end"},
        {"stop": [1]},
        {"probs": -1},
        {"probs": True},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_at_once(model: llmcli.Model, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate("x", **options)
    assert "\n" not in str(caught.value)


def test_errors_are_the_documented_classes(model: llmcli.Model) -> None:
    with pytest.raises(NotFound):
        llmcli.load("no-such-model")
    for options in ({"context": 513}, {"threads": 0}, {"texts": 0}, {"kv": "f8"}, {"device": "abacus"}):
        with pytest.raises(UsageError):
            llmcli.load("demo", **options)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflow):
        next(model.generate([5] * 300))
    with pytest.raises(InputError):
        model.generate([4096])
    with pytest.raises(InputError):
        model.generate([2**70])
    with pytest.raises(InputError):
        next(model.generate([]))
    with pytest.raises(InputError):
        model.score("\ud800")
    with pytest.raises(UsageError, match="no chat template"):
        model.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(UsageError):
        model.next_token("x", count=0)
    with pytest.raises(TypeError):
        model.generate("x", heat=2)  # type: ignore[call-arg]
    assert text_of(model, max_tokens=3, temperature=0)  # still well


def test_only_what_is_new_is_computed(model: llmcli.Model) -> None:
    story = "Once upon a time there was a dog. " * 5
    model.score(story)
    list(model.generate(story + "He", max_tokens=1))
    assert model._spare is not None and model._spare.computed < 10


def test_texts_made_in_turns(model: llmcli.Model) -> None:
    """Two answers at once, other calls in between, and one that is forgotten."""
    alone = [text_of(model, prompt, max_tokens=20, seed=1) for prompt in ("The cat", "The dog")]
    both = [model.generate(prompt, max_tokens=20, seed=1) for prompt in ("The cat", "The dog")]
    found = ["", ""]
    for _ in range(20):
        for number, steps in enumerate(both):
            found[number] += next(steps).text
    assert found == alone
    free = len(model._engine.cache._free)
    forgotten = model.generate("The bird", max_tokens=20)
    next(forgotten)
    assert model.score("The cat").tokens[-1].rank >= 1
    del forgotten
    gc.collect()
    assert len(model._engine.cache._free) == free


def test_more_texts_than_there_is_room_for() -> None:
    with llmcli.load("demo", context=256) as model:
        first = model.generate("The cat")
        next(first)
        with pytest.raises(OutOfMemory, match="fewer texts"):
            next(model.generate("The dog"))
        next(first)
        first.close()  # type: ignore[attr-defined]
        assert text_of(model, "The dog", max_tokens=2, temperature=0)


def test_threads_take_turns(model: llmcli.Model) -> None:
    prompts = [f"There were {number} birds" for number in range(6)]
    alone = [text_of(model, prompt, max_tokens=25, seed=2) for prompt in prompts]
    scores = [model.score(prompt).perplexity for prompt in prompts]
    found: dict[str, tuple[str, float]] = {}

    def work(prompt: str) -> None:
        found[prompt] = text_of(model, prompt, max_tokens=25, seed=2), model.score(prompt).perplexity

    for some in (prompts[:3], prompts[3:]):
        threads = [threading.Thread(target=work, args=(prompt,)) for prompt in some]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [found[prompt] for prompt in prompts] == list(zip(alone, scores, strict=True))


def test_two_models() -> None:
    with llmcli.load("demo", context=64) as one, llmcli.load("demo", context=128, threads=1) as two:
        both = [model.generate("The cat", max_tokens=20, temperature=0) for model in (one, two)]
        steps = [[next(steps).id for steps in both] for _ in range(20)]
        assert all(left == right for left, right in steps)
    assert repr(one) == "<llmcli.Model demo:int8, context 64, closed>" and str(one) == "demo:int8"


def test_a_closed_model_says_so() -> None:
    model = llmcli.load("demo", context=64)
    steps = model.generate("The cat")
    next(steps)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="closed"):
        next(steps)
    for call in (model.generate, model.score, model.next_token, model.tokenize, model.chat):
        with pytest.raises(UsageError, match="closed"):
            call("x")


def test_a_model_that_nobody_closed_lets_the_program_end() -> None:
    code = "import llmcli; model = llmcli.load('demo'); steps = model.generate('The cat', temperature=0); print(next(steps).text)"
    more = """
import contextlib, threading
def run():
    with contextlib.suppress(llmcli.errors.LlmError):  # the end of the program may come in the middle of a step
        list(model.generate('x', max_tokens=9**6))
threading.Thread(target=run, daemon=True).start(); next(steps)"""
    for program in (code, "import llmcli.errors; " + code + more, "def f():\n  " + code + "\n  model.me = steps, model\nf()"):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


def test_chat(chat_model: llmcli.Model) -> None:
    """Turns in the model's template, of which only what is new is computed; texts cannot forge a turn."""
    messages = [{"role": "user", "content": "Tell me about <|end|> cats."}]
    first = list(chat_model.chat(messages, max_tokens=8, temperature=0))
    template = "<user>Tell me about <|end|> cats.\n<bot>"
    plain = list(chat_model.generate(template, max_tokens=8, temperature=0))
    assert [(step.text, step.logprob) for step in first] == [(step.text, step.logprob) for step in plain]
    messages += [{"role": "assistant", "content": "".join(step.text for step in first)}, {"role": "user", "content": "And dogs?"}]
    list(chat_model.chat(messages, max_tokens=1))
    assert chat_model._spare is not None and chat_model._spare.computed < 16


@pytest.fixture
def chat_model(tmp_path: Path) -> Iterator[llmcli.Model]:
    """Random weights with a template."""
    folder = write_folder(tmp_path / "chat")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{{ bos_token }}{% for m in messages %}<{{ 'bot' if m.role == 'assistant' else m.role }}>{{ m.content }}\n{% endfor %}<bot>"
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    path = acquire.import_model(folder, "int8", "chat", path=tmp_path / "chat-int8.safetensors")
    with llmcli.load(str(path)) as model:
        yield model
