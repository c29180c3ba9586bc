"""All checks in their order, each by itself: one that fails says so and stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llmcli.doctor import around, files, machine
from llmcli.doctor.rows import Row
from llmcli.errors import LlmError

CHECKS: dict[str, Callable[[], Iterator[Row]]] = {
    "packages": around.packages,
    "command": around.command,
    "system": machine.system,
    "cpu": machine.cpu,
    "threads": machine.threads,
    "memory": machine.room,
    "gpu": machine.gpu,
    "settings": files.texts,
    "models": files.models,
    "kernels": files.kernels,
    "folders": files.folders,
    "disk": files.space,
    "variables": around.variables,
    "network": around.network,
    "terminal": around.terminal,
}


def examine() -> list[Row]:
    """The rows of all checks. Raises nothing: it is for machines where things fail."""
    rows: list[Row] = []
    for name, check in CHECKS.items():
        try:
            rows += check()
        except LlmError as error:
            rows.append(Row(name, "problem", f"{error.what}: {error.why}" if error.why else error.what, error.todo))
        except ImportError as error:
            rows.append(
                Row(name, "problem", f"a package cannot be imported: {error}", "Install llmcli again, in an environment of its own")
            )
        except Exception as error:
            rows.append(Row(name, "note", f"this check failed: {type(error).__name__}: {error}", "Please report it"))
    return rows
