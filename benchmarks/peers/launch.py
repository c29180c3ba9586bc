"""Runs a command and says, as JSON, how long it took and how much memory it had at most: `python launch.py COMMAND ...`.

A process of its own, because the system counts the memory of whoever starts a process as the new one's until that has begun.
"""

from __future__ import annotations

import json
import os
import sys
import time

start = time.perf_counter()
silent = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=silent)
_, status, used = os.wait4(process, 0)
print(json.dumps({"seconds": time.perf_counter() - start, "bytes": used.ru_maxrss * 1024, "status": status}))
