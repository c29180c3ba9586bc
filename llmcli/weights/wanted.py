"""What `llm pull` is asked for: an alias or org/repo[@revision], with or without :int4, as a repository and a name."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from llmcli.errors import NotFound, UsageError
from llmcli.weights import store
from llmcli.weights.aliases import aliases
from llmcli.weights.safetensors import shown

DEFAULT = "int8"
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")


@dataclass(frozen=True)
class Wanted:
    """repository: org/repo; revision: a branch, tag or commit, '' for the hub's default; name, quantization: the model's here."""

    repository: str
    revision: str
    name: str
    quantization: str

    @property
    def revision_is_commit(self) -> bool:
        return bool(_COMMIT.fullmatch(self.revision))


def read(reference: str, quantization: str | None = None, name: str | None = None) -> Wanted:
    """What a reference means. Raises NotFound with near matches, UsageError."""
    base, suffix = store.split(reference)
    if suffix and quantization and suffix != quantization:
        raise UsageError(f"{shown(reference)} and --quant {quantization}", "they ask for different quantizations", "Leave one off")
    base, at, revision = base.partition("@")
    alias = aliases().get(base)
    if alias is not None and not alias.repository:
        raise UsageError(f"{base} comes with llm", "there is nothing to get", f"llm run -m {base}")
    repository = alias.repository if alias else base
    if not store.REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        near = difflib.get_close_matches(base, [n for n, a in aliases().items() if a.repository], n=3, cutoff=0.5)
        guess = f"Did you mean {' or '.join(near)}? " if near else ""
        raise NotFound(f"no alias {shown(base)}", todo=f"{guess}Give an alias of models.toml or a repository as org/repo")
    if at and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise UsageError(f"{shown(revision)} cannot be a revision", "it is a branch, tag or commit", "Give org/repo@REVISION")
    chosen = quantization or suffix or (alias.quantization if alias else DEFAULT)
    return Wanted(repository, revision, store.checked_name(name or base), chosen)
