"""Errors of Python and of the system in the terms of `errors.py`."""

from __future__ import annotations

import errno

from llmcli.errors import AccessDenied, DiskError, InternalError, LlmError, NotFound, OutOfMemory

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
_DISK = _FULL | {errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EBADF}
_NAME = {errno.ENAMETOOLONG, errno.ELOOP}
_NO_ROOM = (
    *("failed to map segment from shared object", "cannot map zero-fill pages"),  # the system's loader, of a library
    "can't start new thread",
    "error return without exception set",  # Python, of a call for whose variables there was no room
)


def as_llm_error(error: BaseException) -> LlmError:
    """The error itself where it is ours; else the class that says what to do about it, InternalError if nothing does."""
    if isinstance(error, LlmError):
        return error
    if isinstance(error, MemoryError):
        return OutOfMemory("not enough memory", str(error))
    if _no_room(error):
        return OutOfMemory("not enough memory", "a library, a thread or a call does not fit")
    if isinstance(error, OSError):
        if isinstance(error, FileNotFoundError) and error.filename is None:  # of those that look up a path, getcwd alone has none
            return NotFound("the current folder", "it is not there any more", "Change to another one (cd)")
        what = str(error.filename) if error.filename is not None else "input or output"
        why = error.strerror or str(error)
        if error.errno == errno.ENOMEM:
            return OutOfMemory("not enough memory", why)
        if error.errno in _FULL and error.filename is None:  # other files are named by whoever writes them
            return DiskError("cannot write standard output", why, "Choose another place")
        if error.errno in _DISK:
            return DiskError(what, why)
        if isinstance(error, (FileNotFoundError, NotADirectoryError, IsADirectoryError)) or error.errno in _NAME:
            return NotFound(what, why, "Check the name")
        if isinstance(error, PermissionError):
            return AccessDenied(what, why)
    return InternalError("internal", f"{type(error).__name__}: {error}")


def _no_room(error: BaseException | None) -> bool:
    """Whether a library, a thread or a call of Python's own found no room in memory: there is no number for that, and whoever called may
    say it otherwise."""
    while error is not None:
        if str(error).strip().endswith(_NO_ROOM):
            return True
        error = error.__context__
    return False
