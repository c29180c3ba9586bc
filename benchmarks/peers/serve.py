"""What the engines' programs have in common: they load a model and then measure what standard input asks for, a line of JSON each.

    python ENGINE.py MODEL --threads N --context N          {"kind": "decode", "tokens": 128, "depth": 0} -> {"seconds": 1.5}
    python ENGINE.py MODEL --threads N --context N --once   loads, computes the first token behind five others, ends

An engine is a class with a version, __init__(model, threads, context), prompt(tokens), decode(tokens, depth) -> seconds, and first(ids).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from typing import Any

IDS = range(100, 30_000)
"""Token ids that every model here knows and that none treats as special."""


def ids(count: int) -> list[int]:
    """Random tokens, others each time: an engine that keeps what it has computed must not find them again."""
    return random.choices(IDS, k=count)


def main(engine: Any) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--once", action="store_true")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print themselves is no answer
    loaded = engine(options.model, options.threads, options.context)
    if options.once:
        print(loaded.first(ids(5)), file=answers, flush=True)
        return
    print(json.dumps({"version": loaded.version}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = loaded.prompt(asked["tokens"]) if asked["kind"] == "prompt" else loaded.decode(asked["tokens"], asked["depth"])
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)
