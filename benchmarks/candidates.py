"""What several answers to one prompt cost, in times of one answer: `llm run --candidates N`.

python benchmarks/candidates.py smollm2 demo
"""

from __future__ import annotations

import argparse
import time

from llmcli import engine as engines
from llmcli.generate import Settings
from llmcli.responses import best
from llmcli.text.thinking import Prompt

TEXT = "Once upon a time there was a little dog who lived in a house by the sea. "
COUNTS = (1, 2, 4, 8, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("-n", "--tokens", type=int, default=64, help="of an answer (64)")
    parser.add_argument("--repeat", type=int, default=5, help="the best of so many (5)")
    options = parser.parse_args()
    for model in options.models:
        with engines.opened(model, context=512, texts=max(COUNTS) + 1) as engine:
            prompt = Prompt((engine.tokenizer.encode(TEXT) * 20)[:100])
            engine.end_ids = frozenset()  # every answer has all its tokens
            seconds = dict.fromkeys(COUNTS, float("inf"))
            for seed in range(options.repeat):
                for count in COUNTS:
                    start = time.perf_counter()
                    best(engine, prompt, Settings(seed=seed, max_tokens=options.tokens), count)
                    seconds[count] = min(seconds[count], time.perf_counter() - start)
        for count, value in seconds.items():
            rate = count * options.tokens / value
            print(f"{model:<20} {count:>3} answers  {value:7.3f} s  {value / seconds[1]:5.2f} of one  {rate:7,.0f} tokens/s")


if __name__ == "__main__":
    main()
