"""The compiler process: `python -m llmcli.backends.cpu.compile`, started by build.py.

Reads lines of JSON [name, parameters, symbol]; answers each with a line that says how many bytes of its image
follow, 0 when the kernel does not compile (then standard error says why). Ends with its input.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, and it ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may get into the answers
    for line in sys.stdin:
        name, params, symbol = json.loads(line)
        try:
            code = _image(name, params, symbol)
        except Exception:
            traceback.print_exc()
            code = b""
        answers.write(b"%d\n" % len(code) + code)
        answers.flush()


def _image(name: str, params: list[int | str], symbol: str) -> bytes:
    from llmcli.backends.cpu.kernels import emit

    module, short = name.split(".")
    factory = importlib.import_module(f"llmcli.backends.cpu.kernels.{module}").KERNELS[short]
    return emit.image(factory(*params), symbol)


if __name__ == "__main__":
    main()
