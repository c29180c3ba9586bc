"""The command's process: what `llm` starts, and `python -m llmcli` where another program is called llm.

Python's import of a module can itself fail, where there is no memory or a file cannot be read. Such a failure ends in one line and an exit
code too, so nothing is imported here but what Python has when it starts, and the line is made of what is at hand.
"""

import os
import sys

MEMORY, INTERNAL, INTERRUPTED = 7, 70, 130
"""Exit codes of errors.py."""


def command() -> None:
    """Runs the command line and ends the process."""
    try:
        _keep_streams_apart()
        from llmcli.cli import app

        app.command()
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    except Exception as error:
        line, code = _last_words(error)
        try:
            os.write(2, f"llm: error: {line}\n".encode())
        finally:
            os._exit(code)


def _keep_streams_apart() -> None:
    """Where standard input, output or error is closed, the next file to be opened would be taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one


def _last_words(error: BaseException) -> tuple[str, int]:
    """What to say of an error that not even the handler of errors has survived, and the exit code."""
    if _no_memory(error):
        return "not enough memory: Python cannot load its own parts. Close other programs, or raise the limit (ulimit -v)", MEMORY
    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    visible = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in said)
    return f"cannot start: {visible}. Check the installation: python -m pip check", INTERNAL


def _no_memory(error: BaseException | None) -> bool:
    """Whether it comes of too little memory, whatever Python has made of that on the way."""
    while error is not None:
        # 12: ENOMEM. The texts: of a library's pages, and of a call for whose variables there was no room.
        if isinstance(error, MemoryError) or getattr(error, "errno", 0) == 12:
            return True
        if "failed to map segment" in str(error) or "error return without exception set" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    # `python -m` looks for modules in the current folder first: what lies there is not ours to run.
    if not sys.flags.safe_path and sys.path[0] != os.path.dirname(os.path.dirname(__file__)):
        del sys.path[0]
    command()
