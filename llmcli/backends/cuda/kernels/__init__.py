"""The GPU's kernels. COMPILING: whether this process compiles them, set before one is imported; others know them by name (named.py)."""

COMPILING = False
