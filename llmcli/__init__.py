"""Large language models on your own machine, with the probability of every token. Importing this imports nothing heavy.

`llmcli.load(model)` gives a model; see docs/python.md. Errors are the classes of `llmcli.errors`.
"""

TYPE_CHECKING = False  # typing's own need not be imported for it
if TYPE_CHECKING:
    from typing import Any

    from llmcli.api import Model, load

__all__ = ["Model", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> "Any":
    """The interface is imported when it is first used: commands that need no model do not wait for it."""
    if name in __all__:
        from llmcli import api

        return getattr(api, name)
    raise AttributeError(f"module 'llmcli' has no attribute {name!r}")
