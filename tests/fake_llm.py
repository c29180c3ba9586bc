"""The command with a model that says what a test wants: `python tests/fake_llm.py run hi`, with FAKE_TEXTS (a JSON list, one
text a token), FAKE_REPEAT (times that list), FAKE_DELAY (seconds a token) and FAKE_TEMPLATE. What is tested is the way from a
step to the terminal."""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from llmcli.cli.app import main
from llmcli.sampling.settings import Settings
from llmcli.text.thinking import Prompt, find_style


class Tokenizer:
    bos = eos = ""

    def encode(self, text: str, special: bool = False, bos: bool = True) -> list[int]:
        return list(text.encode())

    def token_text(self, number: int) -> str:
        return chr(number)


def load(reference: str | None, **options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name="fake:none",
        tokenizer=Tokenizer(),
        plan=SimpleNamespace(vocab=256),
        template=os.environ.get("FAKE_TEMPLATE"),
        prompt=prompt,
        generation_config={},
        context=100,
        load_seconds=0.0,
        compile_seconds=0.0,
        memory_bytes=0,
        close=lambda: None,
    )


def prompt(messages: list[dict[str, str]], think: str = "auto") -> Prompt:
    """Style and opening of thoughts are those of FAKE_TEMPLATE, which is the end of the prompt too; `think` goes into it."""
    template = os.environ["FAKE_TEMPLATE"]
    words = "".join(message["content"] for message in messages)
    return Prompt(list(f"{words}|{think}".encode()), find_style(template, []), template.endswith("<think>"))


def generate(engine: Any, ids: list[int], settings: Settings, probs: int = 0, **options: Any) -> Iterator[SimpleNamespace]:
    texts = json.loads(os.environ.get("FAKE_TEXTS", '["ok"]'))
    texts = [repr(bytes(ids).decode())] if texts == "prompt" else texts * int(os.environ.get("FAKE_REPEAT", "1"))
    for index, text in enumerate(texts):
        time.sleep(float(os.environ.get("FAKE_DELAY", "0")))
        if text == "raise":
            raise eval(os.environ["FAKE_ERROR"])
        last = index == len(texts) - 1
        yield SimpleNamespace(
            id=index,
            text=text,
            bytes=text.encode(),
            position=len(ids) + index,
            logprob=float("-inf"),
            rank=1,
            top=[],
            finish="eos" if last else None,
        )


def settings_for(engine: Any, overrides: dict[str, Any]) -> Settings:
    return Settings().changed(overrides)


for name, contents in {
    "llmcli.engine": {"load": load},
    "llmcli.generate": {"generate": generate, "settings_for": settings_for},
}.items():
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module

if __name__ == "__main__":
    sys.exit(main())
