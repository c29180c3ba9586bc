"""`llm next [TEXT]`: how likely each next token is, or each of several answers, and what sampling would make of it."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from llmcli.cli import bars, stdin
from llmcli.cli.compare import choice_table, comparison
from llmcli.cli.console import Answer, Console, is_terminal, open_answer
from llmcli.cli.options import OUTPUT, Common, Model, Output, Sampling, count, option
from llmcli.cli.render import SCHEMA, candidate_record, to_line
from llmcli.cli.tokens import Tokens
from llmcli.errors import UsageError
from llmcli.text import escape
from llmcli.text.input import read_text

if TYPE_CHECKING:
    from llmcli.choices import Choice
    from llmcli.engine import Engine
    from llmcli.generate import NextTokens
    from llmcli.text.tokenizer import Tokenizer

FIELDS = ("rank", "id", "text", "bytes", "logit", "logprob", "prob", "final_prob", "removed_by")


WHAT = "The distribution"
ANSWERS = "Whole answers instead of tokens"

ABOUT = """
Shows the likeliest next tokens of a text with their probability before and after sampling's filters, the filter that removed a
token, and the entropy of the distribution. The text is taken as it is, also for a chat model; --chat applies the template.

Nothing is drawn: llm run does that.
"""

EXAMPLE = """
llm next "The cat sat on the" -k 5
llm next "The cat sat on the" -k 20 --top-p 0.9 --json
llm next -m NAME --chat "Is the sky blue? Yes or no."
llm next "Is ice cold? Answer:" --choices "Yes,No"
cat essay.txt | llm next                      # what would come next?
"""


@dataclass(frozen=True, kw_only=True)
class Options(Tokens, Sampling, Output, Model, Common):
    k: Annotated[int, option("-k", section=WHAT, metavar="K", parser=count(1, 10**7), help="how many tokens, likeliest first (10)")] = 10
    token: Annotated[
        list[str] | None, option("--token", section=WHAT, metavar="T", help="also this token, however unlikely (repeatable)")
    ] = None
    compare: Annotated[
        list[str] | None, option("--compare", section=WHAT, metavar="TEXT", help="the same after another text (repeatable)")
    ] = None
    choices: Annotated[str | None, option("--choices", section=ANSWERS, metavar="A,B", help="how likely each of these answers is")] = None
    choices_file: Annotated[
        str | None, option("--choices-file", section=ANSWERS, metavar="FILE", help="the same, of a file with an answer a line")
    ] = None
    join: Annotated[
        str | None, option("--join", section=ANSWERS, metavar="TEXT", help="between text and answer (a space where neither has one)")
    ] = None
    json: Annotated[bool, option("--json", section=OUTPUT, help="a JSON object; with --compare one a line")] = False


def execute(options: Options, console: Console) -> int:
    answers = _answers(options)
    texts = [stdin.gather(options, console), *(options.compare or ())]
    engine = options.load(console, chat=options.chat)
    with contextlib.closing(engine):
        encode = options.encoder(engine.name, engine.tokenizer, engine.template if options.chat else None)
        prompts = [encode(text) for text in texts]
        with open_answer(options.output) as answer:
            if answers is None:
                _tokens(options, console, engine, texts, prompts, answer)
            else:
                _choices(options, console, engine, texts, prompts, answers, answer)
    return 0


def _answers(options: Options) -> list[str] | None:
    """What --choices and --choices-file list. Raises UsageError."""
    if options.choices is None and options.choices_file is None:
        if options.join is not None:
            raise UsageError("--join", "there are no choices to join to the text", "Add --choices")
        return None
    if options.token:
        raise UsageError("--token and --choices exclude each other", todo="A token is a choice as well")
    found = [] if options.choices is None else [part for part in options.choices.split(",") if part]
    if options.choices_file is not None:
        with open(options.choices_file, "rb") as file:
            found += [line for line in read_text(file, options.choices_file).splitlines() if line]
    if not found:
        raise UsageError("no choices", todo='Give some, such as --choices "Yes,No"')
    return found


def _tokens(options: Options, console: Console, engine: Engine, texts: Sequence[str], prompts: Sequence[list[int]], answer: Answer) -> None:
    from llmcli.generate import next_tokens, settings_for

    settings = settings_for(engine, options.overrides())
    also = [number for word in options.token or () for number in _named(engine.tokenizer, word)]
    most = min(options.k, engine.plan.vocab)
    found = [next_tokens(engine, ids, settings, most, also) for ids in prompts]
    if options.json:
        for ids, one in zip(prompts, found, strict=True):
            answer.write(
                to_line(
                    _record(engine, ids)
                    | {
                        "candidates": [candidate_record(candidate, FIELDS) for candidate in one.candidates],
                        "entropy_bits": one.entropy_bits,
                    }
                )
            )
    elif len(prompts) == 1:
        # The table's own escape filter has shown what a terminal would obey; the rest are our colours.
        answer.write_styled(bars.table(found[0].candidates, _colored(options, console), _columns(options)))
        answer.write(_entropy(found[0], len(prompts[0]), engine))
    else:
        seen = list(dict.fromkeys(candidate.id for one in found for candidate in one.candidates))
        whole = [next_tokens(engine, ids, settings, 0, seen).candidates for ids in prompts]
        rows = [(bars.visible(cells[0].text, cells[0].bytes), [cell.prob for cell in cells]) for cells in zip(*whole, strict=True)]
        answer.write_styled(comparison("token", texts, rows, _columns(options)))
        for number, (one, ids) in enumerate(zip(found, prompts, strict=True), 1):
            answer.write(f"{number}: {_entropy(one, len(ids), engine)}")


def _choices(
    options: Options,
    console: Console,
    engine: Engine,
    texts: Sequence[str],
    prompts: Sequence[list[int]],
    answers: Sequence[str],
    answer: Answer,
) -> None:
    from llmcli.choices import choose, joined

    found: list[list[Choice]] = []
    for text, ids in zip(texts, prompts, strict=True):
        wholes = []
        for word in answers:
            if options.chat:  # behind the template the answer is a text of its own
                wholes.append((word, ids + engine.tokenizer.encode((options.join or "") + word, bos=False)))
            else:
                wholes.append((word, engine.tokenizer.encode(text + joined(text, word, options.join), special=options.special)))
        found.append(choose(engine, ids, wholes))
    if options.json:
        for ids, choices in zip(prompts, found, strict=True):
            answer.write(to_line(_record(engine, ids) | {"choices": choices}))
    elif len(prompts) == 1:
        answer.write_styled(choice_table(found[0], _colored(options, console), _columns(options)))
        answer.write(f"{_count(len(answers), 'choice')}, {engine.name}, {_count(len(prompts[0]))} of text\n")
    else:
        rows = [(escape.name(cells[0].text), [cell.prob for cell in cells]) for cells in zip(*found, strict=True)]
        answer.write_styled(comparison("choice", texts, rows, _columns(options)))


def _named(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens that are this text. Raises UsageError where it is none."""
    found = tokenizer.named(word)
    if not found:
        pieces = " ".join(repr(tokenizer.token_text(number)) for number in tokenizer.encode(word, bos=False))
        raise UsageError(f"{word!r} is no token of the model", f"it takes {pieces}", "Try it with a space before it, or use --choices")
    return found


def _record(engine: Engine, ids: Sequence[int]) -> dict[str, Any]:
    tokens = [{"id": number, "text": engine.tokenizer.token_text(number)} for number in ids]
    return {"schema": SCHEMA, "model": engine.name, "tokens": tokens}


def _entropy(found: NextTokens, tokens: int, engine: Engine) -> str:
    return f"entropy {found.entropy_bits:.3f} bits, {engine.name}, {_count(tokens)} of text\n"


def _count(number: int, thing: str = "token") -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _colored(options: Options, console: Console) -> bool:
    return options.output is None and console.colored(sys.stdout)


def _columns(options: Options) -> int:
    """Of the terminal; 0 where the answer goes elsewhere."""
    return shutil.get_terminal_size().columns if options.output is None and is_terminal(sys.stdout) else 0
