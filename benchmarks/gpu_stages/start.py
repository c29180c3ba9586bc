"""A process from its start to a model's first token, as somebody has it who asks for the first time today: on the CPU and on the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from gpu_stages.stage import DEMO, Stage

NEEDED = 5.0


def run(stage: Stage) -> None:
    models = [["--shape", "tiny"]] if stage.dry else [["--file", str(DEMO)], ["--shape", "135M"]]
    for model in models:
        for device in ("cuda:0",) if stage.dry else ("cpu", "cuda:0"):
            for attempt in ("first",) if stage.dry else ("first", "second"):
                if not stage.fits(f"{model[1]} on {device}", 0.0 if stage.dry else NEEDED):
                    return
                name = "demo" if model[0] == "--file" else model[1]
                stage.say("start", model=name, device=device, attempt=attempt, **once([*model, "--device", device], stage.left))


def once(arguments: list[str], limit: float) -> dict[str, float]:
    """One process. Seconds since it was started."""
    began = time.time()
    command = [sys.executable, "-m", "gpu_stages.first_token", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(limit, 1), check=True)
    said = json.loads(done.stdout)
    return {name: at - began for name, at in said["at"].items()} | said["bytes"]
