"""Makes the recorded session of README.md anew: runs its commands on a terminal of 80 columns and puts what they show below each.

The lines in the README that begin with "$ " are the commands; all between them is replaced. `--check` only says whether it differs.
Run it with the `llm` of the environment first in PATH.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
SESSION = re.compile(r"(<!-- session: [^\n]* -->\n```console\n)(.*?)(```\n)", re.DOTALL)
SETTINGS = {"TERM": "dumb", "COLUMNS": "80", "LINES": "24", "LANG": "C.UTF-8", "NO_COLOR": "1"}


def shown(command: str) -> str:
    """What a terminal shows of a command, which must end with 0."""
    master, slave = pty.openpty()
    process = subprocess.Popen(["bash", "-c", command], stdin=slave, stdout=slave, stderr=slave, env=os.environ | SETTINGS)
    os.close(slave)
    data = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # the last writer has gone
            break
        if not part:
            break
        data += part
    os.close(master)
    if process.wait():
        sys.exit(f"{command!r} ended with {process.returncode}:\n{data.decode()}")
    return "".join(f"{line.rstrip()}\n" for line in data.decode().replace("\r\n", "\n").splitlines())


def main() -> None:
    text = README.read_text("utf-8")
    found = SESSION.search(text)
    if found is None:
        sys.exit("README.md has no session")
    commands = re.findall(r"^\$ (.+)$", found[2], re.MULTILINE)
    subprocess.run(["llm", "warmup", "-q"], check=True)  # a note on compiling would be no part of the session
    session = "\n".join(f"$ {command}\n{shown(command)}" for command in commands)
    new = text[: found.start(2)] + session + text[found.end(2) :]
    if "--check" in sys.argv[1:]:
        sys.exit("the session of README.md has changed: run tools/record_session.py" if new != text else 0)
    README.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
