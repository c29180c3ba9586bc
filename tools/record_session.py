"""Makes the recorded sessions of the documents anew: runs their commands on a terminal of 80 columns and puts what they show below each.

The lines in a session that begin with "$ " are the commands; all between them is replaced. `--check` only says whether one differs.
Run it with the `llm` of the environment first in PATH.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "weighted-die.md")
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


def recorded(session: re.Match[str]) -> str:
    """The same session as it is now."""
    commands = re.findall(r"^\$ (.+)$", session[2], re.MULTILINE)
    return session[1] + "\n".join(f"$ {command}\n{shown(command)}" for command in commands) + session[3]


def main() -> None:
    subprocess.run(["llm", "warmup", "-q"], check=True)  # a note on compiling would be no part of a session
    changed = []
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        new, count = SESSION.subn(recorded, text)
        if not count:
            sys.exit(f"{path.name} has no session")
        if new != text:
            changed.append(path.name)
            if "--check" not in sys.argv[1:]:
                path.write_text(new, "utf-8")
    if "--check" in sys.argv[1:] and changed:
        sys.exit(f"the sessions of {', '.join(changed)} have changed: run tools/record_session.py")


if __name__ == "__main__":
    main()
