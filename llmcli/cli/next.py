"""`llm next [TEXT]`: how likely each next token is, and what sampling would make of it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import dataclass
from typing import Annotated

from llmcli.cli import bars, stdin
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, Sampling, Text, count, option
from llmcli.cli.render import SCHEMA, candidate_record, to_line
from llmcli.errors import UsageError

FIELDS = ("rank", "id", "text", "bytes", "logit", "logprob", "prob", "final_prob", "removed_by")


WHAT = "The distribution"

EXAMPLE = 'llm next "The cat sat on the" -k 5'


@dataclass(frozen=True, kw_only=True)
class Options(Text, Sampling, Output, Model, Common):
    k: Annotated[int, option("-k", section=WHAT, metavar="K", parser=count(1, 10**7), help="how many tokens, likeliest first (10)")] = 10
    special: Annotated[bool, option("--special", section=WHAT, help="control tokens written in the text are control tokens")] = False
    chat: Annotated[bool, option("--chat", section=WHAT, help="apply the chat template: what would the answer begin with?")] = False
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object")] = False


def execute(options: Options, console: Console) -> int:
    text = stdin.gather(options, console)
    engine = options.load(console)
    with contextlib.closing(engine):
        from llmcli.generate import next_tokens, settings_for

        tokenizer = engine.tokenizer
        if not options.chat:
            ids = tokenizer.encode(text, special=options.special)
        elif engine.template is None:
            raise UsageError("--chat", f"{engine.name} has no chat template", "Leave --chat out")
        else:
            from llmcli.text.template import encode_chat

            ids = encode_chat(tokenizer, engine.template, [{"role": "user", "content": text}])
        settings = settings_for(engine, options.overrides(engine.plan.vocab))
        found = next_tokens(engine, ids, settings, min(options.k, engine.plan.vocab))
        with open_answer(options.output) as answer:
            if options.json:
                record = {
                    "schema": SCHEMA,
                    "model": engine.name,
                    "tokens": [{"id": number, "text": tokenizer.token_text(number)} for number in ids],
                    "candidates": [candidate_record(candidate, FIELDS) for candidate in found.candidates],
                    "entropy_bits": found.entropy_bits,
                }
                answer.write(to_line(record))
                return 0
            # The table's own escape filter has shown what a terminal would obey; the rest are our colours.
            here = options.output is None
            columns = shutil.get_terminal_size().columns if here and is_terminal(sys.stdout) else 0
            answer.write_styled(bars.table(found.candidates, here and console.colored(sys.stdout), columns))
            tokens = f"{len(ids):,} token{'' if len(ids) == 1 else 's'}"
            answer.write(f"entropy {found.entropy_bits:.3f} bits, {engine.name}, {tokens} of text\n")
    return 0
