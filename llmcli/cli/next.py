"""`llm next [TEXT]`: how likely each next token is, and what sampling would make of it."""

from __future__ import annotations

import argparse
import contextlib
import sys
from argparse import Namespace

from llmcli.cli import bars, options, stdin
from llmcli.cli.console import Console, open_answer
from llmcli.cli.render import SCHEMA, candidate_record, to_line
from llmcli.errors import UsageError

FIELDS = ("rank", "id", "text", "bytes", "logit", "logprob", "prob", "final_prob", "removed_by")


def configure(parser: argparse.ArgumentParser) -> None:
    options.add_text(parser, "TEXT", "the text whose next token is asked for")
    group = parser.add_argument_group("the distribution")
    group.add_argument("-k", metavar="K", type=options.count(1, 10**7), default=10, help="how many tokens, likeliest first (10)")
    group.add_argument("--json", action="store_true", help="a JSON object")
    group.add_argument("--special", action="store_true", help="control tokens written in the text are control tokens")
    group.add_argument("--chat", action="store_true", help="apply the model's chat template: what would the answer begin with?")
    options.add_output(group)
    options.add_sampling(parser)
    options.add_model(parser)


def execute(arguments: Namespace, console: Console) -> int:
    text = stdin.gather(arguments, console)
    engine = options.load(arguments, console)
    with contextlib.closing(engine):
        from llmcli.generate import next_tokens, settings_for

        tokenizer = engine.tokenizer
        if not arguments.chat:
            ids = tokenizer.encode(text, special=arguments.special)
        elif engine.template is None:
            raise UsageError("--chat", f"{engine.name} has no chat template", "Leave --chat out")
        else:
            from llmcli.text.template import encode_chat

            ids = encode_chat(tokenizer, engine.template, [{"role": "user", "content": text}])
        settings = settings_for(engine, options.sampling(arguments, engine))
        found = next_tokens(engine, ids, settings, min(arguments.k, engine.plan.vocab))
        with open_answer(arguments.output) as answer:
            if arguments.json:
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
            answer.write_styled(bars.table(found.candidates, arguments.output is None and console.colored(sys.stdout)))
            answer.write(f"entropy {found.entropy_bits:.3f} bits, {engine.name}, {len(ids):,} tokens of text\n")
    return 0
