"""Every error a user can meet, with its exit code and its next step.

    LlmError                     70  the root: raise one of its branches
    ├── InternalError            70  a fault of ours
    ├── UsageError                2  a flag or argument that cannot be meant
    │   ├── MissingExtra          2  an optional package is not installed
    │   └── TokenizerMismatch     2  two models that do not share a tokenizer
    ├── ModelFileError            3  weights, config or tokenizer that cannot be used
    │   ├── CorruptFile           3  truncated, overlapping, not the format it claims
    │   ├── UnsupportedModel      3  an architecture or a config field that we do not run
    │   └── TemplateError         3  a chat template that fails or misbehaves
    ├── NotFound                  4  no such model, file or revision
    │   └── AccessDenied          4  gated, private, or no permission
    ├── NetworkError              5  the hub did not answer, or not properly
    ├── HashMismatch              6  bytes differ from what was promised
    ├── ResourceError             7  something ran out or cannot be had
    │   ├── OutOfMemory           7
    │   ├── DiskError             7  full, read-only, failing
    │   ├── InUse                 7  another process is at work on it
    │   └── DeviceError           7  no GPU, no driver, a driver that is too old
    ├── InputError                8  text that is not valid
    │   └── ContextOverflow       8  text that is too long
    ├── NumericalError            9  NaN or infinity where a number belongs
    ├── PartialFailure           10  finished, but some rows failed
    └── Stopped                 130  SIGINT (143 for SIGTERM, 141 for a closed pipe)

Anything may raise these; only `cli/app.py` turns them into a line and an exit code. The line reads
`llm: error: what: why. what to do next`.
"""

from __future__ import annotations

from collections.abc import Sequence


class LlmError(Exception):
    """what: the thing that failed. why: the reason. todo: the next step (a sentence), or the class's own."""

    code = 70
    todo = "This is a fault of llm: run it again with --debug and report what it prints"

    def __init__(self, what: str, why: str = "", todo: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        if todo is not None:
            self.todo = todo

    def __str__(self) -> str:
        """One line, without control characters (the escape filter is applied where it is printed)."""
        line = f"{self.what}: {self.why}" if self.why else self.what
        return f"{line.rstrip('.')}. {self.todo}" if self.todo else line


class InternalError(LlmError):
    pass


class UsageError(LlmError):
    code = 2
    todo = "See llm --help"


class MissingExtra(UsageError):
    pass


class TokenizerMismatch(UsageError):
    todo = "Compare models that share a tokenizer"


class ModelFileError(LlmError):
    code = 3
    todo = "Get the model again, or use another one"


class CorruptFile(ModelFileError):
    pass


class UnsupportedModel(ModelFileError):
    pass


class TemplateError(ModelFileError):
    todo = "Use --raw to send the text without a template"


class NotFound(LlmError):
    code = 4
    todo = "llm list shows the models that are here"


class AccessDenied(NotFound):
    todo = "Check the permissions"


class NetworkError(LlmError):
    code = 5
    todo = "Check the connection and try again"


class HashMismatch(LlmError):
    code = 6
    todo = "Get the file again"


class ResourceError(LlmError):
    code = 7
    todo = ""


class OutOfMemory(ResourceError):
    """instead: a table of what would fit, its heading first; () where nothing is known to."""

    todo = "Close other programs, or use a smaller model or context (-c)"

    def __init__(self, what: str, why: str = "", todo: str | None = None, instead: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(what, why, todo)
        self.instead = instead


class DiskError(ResourceError):
    todo = "Free some space or choose another place with LLMCLI_HOME"


class InUse(ResourceError):
    todo = "Wait longer (--timeout), or end that process"


class DeviceError(ResourceError):
    todo = "Use --device cpu"


class InputError(LlmError):
    code = 8
    todo = ""


class ContextOverflow(InputError):
    todo = "Shorten the text or raise -c"


class NumericalError(LlmError):
    code = 9
    todo = "The weights are damaged or overflow: try another quantization, or get the model again"


class PartialFailure(LlmError):
    code = 10
    todo = ""


class Stopped(LlmError):
    code = 130
    todo = ""


EXIT_CODES: dict[int, str] = {
    0: "ok",
    2: "usage, missing extra, tokenizers that differ",
    3: "bad or unsupported model file",
    4: "not found, gated, no access",
    5: "network",
    6: "hash mismatch",
    7: "not enough memory, disk or GPU",
    8: "input too long or invalid",
    9: "numerical fault",
    10: "finished with failed rows",
    70: "internal error",
    130: "interrupted (SIGINT)",
    141: "closed pipe",
    143: "terminated (SIGTERM)",
}
