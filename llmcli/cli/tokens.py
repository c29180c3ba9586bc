"""The tokens that a command works on: of a text as it is, of a conversation's template, or token ids as they are written.

What looks at probabilities takes text as it is, also for a chat model; `llm run`, which applies the template, has its own rules.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from llmcli.cli.options import TEXT, Text, option
from llmcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from llmcli.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Tokens(Text):
    special: Annotated[bool, option("--special", section=TEXT, help="control tokens written in the text are control tokens")] = False
    chat: Annotated[bool, option("--chat", section=TEXT, help="apply the chat template, as for a question of a user")] = False

    def encoder(self, name: str, tokenizer: Tokenizer, template: str | None) -> Callable[[str], list[int]]:
        """What makes tokens of a text; name: of the model. Raises UsageError for --chat without a template."""
        if not self.chat:
            return lambda text: tokenizer.encode(text, special=self.special)
        if template is None:
            raise UsageError("--chat", f"{name} has no chat template", "Leave --chat out")
        from llmcli.text.template import encode_chat

        return lambda text: encode_chat(tokenizer, template, [{"role": "user", "content": text}])


def read_ids(text: str) -> list[int]:
    """Token ids written as numbers between spaces or commas, as a JSON list, or as what `llm run --json` or `--jsonl` says (the
    prompt's and the answer's). Raises InputError."""
    text = text.strip()
    if not text.startswith("{"):
        return [_id(word) for word in re.split(r"[\s,]+", text.removeprefix("[").removesuffix("]")) if word]
    try:
        records = [json.loads(line) for line in text.splitlines() if line.strip()]
        summary = records[-1]
        tokens = summary["tokens"] if "tokens" in summary else records[:-1]
        return [_id(number) for number in [*summary["prompt_ids"], *(token["id"] for token in tokens)]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError("the token ids cannot be read", "the text is JSON, but not of llm run --json or --jsonl") from error


def _id(word: Any) -> int:
    number = int(word) if isinstance(word, str) and re.fullmatch(r"[0-9]{1,9}", word) else word
    if type(number) is not int or not 0 <= number < 2**31:
        raise InputError("the token ids cannot be read", f"{str(word)[:40]!r} is no id", "Write numbers between spaces")
    return number
