"""The second turn of a long chat: does it start as soon as its new tokens alone would?

    python benchmarks/chat_turns.py MODEL [--tokens 2000] [--runs 5]

A chat whose first turn has about so many tokens is asked a second question. Compared are the seconds from there to the answer's
first token, with the template, the tokenizer and sampling in it, and the seconds that a step takes for exactly the tokens
that are new, behind a past of the same length. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time

from llmcli import engine
from llmcli.chat import Chat
from llmcli.generate import settings_for
from llmcli.past import Past

WORDS = "The quick brown fox jumps over the lazy dog and runs into the old forest. "
QUESTION = "And what happened to the fox after all that, in one short sentence, if you please?"


def first_turn(chat: Chat, tokens: int) -> None:
    settings = settings_for(chat.engine, {"temperature": 0.0, "max_tokens": 30})
    text = WORDS * (tokens // len(chat.engine.tokenizer.encode(WORDS, bos=False)))
    list(chat.answer(text, settings))


def second_turn(chat: Chat) -> float:
    """Seconds to the first token."""
    settings = settings_for(chat.engine, {"temperature": 0.0, "max_tokens": 2})
    start = time.perf_counter()
    steps = chat.answer(QUESTION, settings)
    next(steps)
    seconds = time.perf_counter() - start
    steps.close()
    return seconds


def alone(past: Past, ids: list[int], new: int) -> float:
    """Seconds of a step of the last `new` tokens of ids behind the others, which are there."""
    past.read(ids)
    past.cut(len(ids) - new)
    start = time.perf_counter()
    past.append(ids[len(ids) - new :])
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with engine.opened(options.model, texts=2) as model:
        turns, steps = [], []
        chat, past = Chat(model), Past(model)
        first_turn(chat, options.tokens)
        whole = chat.prompt_tokens
        for _ in range(options.runs + 1):  # the first one warms up
            turns.append(second_turn(chat))
            new, prompt = chat.computed, chat.prompt_tokens
            ids = chat._past.ids[:prompt]
            chat.undo()
            chat._past.cut(prompt - new)
            steps.append(alone(past, ids, new))
    turn, step = statistics.median(turns[1:]), statistics.median(steps[1:])
    print(f"first turn {whole:,} tokens; second prompt {prompt:,} tokens, {new} of them new")
    print(f"second turn {1000 * turn:.1f} ms to the first token, its new tokens alone {1000 * step:.1f} ms: {turn / step:.2f} times")


if __name__ == "__main__":
    main()
