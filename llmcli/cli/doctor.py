"""`llm doctor`: what this machine and installation are like, and what to do about what is wrong."""

from __future__ import annotations

import dataclasses
import shutil
import sys
import textwrap
from dataclasses import dataclass

import llmcli
from llmcli.cli.console import Console, is_terminal, open_answer
from llmcli.cli.options import Common, Json
from llmcli.cli.render import SCHEMA, to_line
from llmcli.errors import PartialFailure
from llmcli.text import escape

ABOUT = """
Checks processor and kernels, threads, memory, folders, models, versions, variables, the terminal, and whether another program is called
llm. A row is ok, a note (llm run works, but something is unusual or slower than it could be) or a problem (llm run cannot
work); what can be done about it stands below it.

It loads no weights, compiles nothing, writes nothing and uses no network. Tokens and passwords are never shown, so the report can
be sent to others; paths are. The exit code is 0, and 10 where there is a problem.
"""

EXAMPLE = """
llm doctor
llm doctor --json > report.json               # for a bug report
llm doctor -q && llm run "Once upon a time"
"""

COLORS = {"ok": 32, "note": 33, "problem": 31}
INDENT = 19


@dataclass(frozen=True, kw_only=True)
class Options(Json, Common):
    pass


def execute(options: Options, console: Console) -> int:
    from llmcli.doctor.checks import examine

    rows = examine()
    problems = sum(row.state == "problem" for row in rows)
    with open_answer() as answer:
        if options.json:
            record = {
                "schema": SCHEMA,
                "llm": llmcli.__version__,
                "works": not problems,
                "checks": [dataclasses.asdict(row) for row in rows],
            }
            answer.write(to_line(record))
        else:
            columns = shutil.get_terminal_size().columns if is_terminal(sys.stdout) else 0
            for row in rows:
                state = f"{row.state:<9}"
                head = f"\x1b[{COLORS[row.state]}m{state}\x1b[0m" if console.colored(sys.stdout) else state
                answer.write_styled(f"{head}{row.name:<{INDENT - 9}}{_wrapped(row.text, columns)}\n")
                if row.fix:
                    answer.write_styled(f"{'':{INDENT}}-> {_wrapped(row.fix, columns, INDENT + 3)}\n")
    if problems:
        raise PartialFailure(f"{problems} problem{'' if problems == 1 else 's'}", "llm run cannot work", "What to do stands below each row")
    return 0


def _wrapped(text: str, columns: int, indent: int = INDENT) -> str:
    """A text in lines of a terminal (columns 0: in one), the first of which is begun already; what a terminal would obey is shown."""
    safe = escape.name(text)
    if columns < indent + 20:
        return safe
    lines = textwrap.wrap(safe, columns - indent, break_long_words=False, break_on_hyphens=False)
    return f"\n{'':{indent}}".join(lines)
