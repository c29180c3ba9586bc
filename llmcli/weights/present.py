"""Which models are here, from the names of their files alone: what a shell asks for at every press of Tab.

A model is called NAME-QUANTIZATION.safetensors in the models folder, or among those that come along. Nothing is opened and NumPy is not
imported; `store.py` says of each whether it is whole.
"""

from __future__ import annotations

from llmcli import places

SUFFIX = ".safetensors"
QUANTIZATIONS = ("int4", "int8", "none")


def present() -> dict[str, list[str]]:
    """Name -> quantizations, those that come along first."""
    found: dict[str, list[str]] = {}
    for folder in (places.demo(), places.models()):
        try:
            files = sorted(entry.name for entry in folder.iterdir())
        except OSError:
            continue
        for file in files:
            name, _, quantization = file.removesuffix(SUFFIX).rpartition("-")
            if file.endswith(SUFFIX) and not file.startswith(".") and name and quantization in QUANTIZATIONS:
                found.setdefault(name.replace("--", "/"), []).append(quantization)
    return found
