"""The compiler process with PTX as its answers: `python -m tests.cuda.assembling`."""

from __future__ import annotations

from typing import Any

from llmcli.backends.cuda import compile


def answer(reference: Any, signature: str, capability: tuple[int, int]) -> bytes:
    return compile.ptx(reference, signature, capability)[0].encode()


if __name__ == "__main__":
    compile.main(answer)
