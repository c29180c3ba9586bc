"""Puts a trained demo model into the package: python tools/pack_demo.py OUT/export

Packs the folder that `train_demo.py` exported as llmcli/demo/demo-int8.safetensors, with a fixed date and source, so
that the same weights give the same bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmcli import acquire, places

MOST_BYTES = 8 * 2**20


def main(folder: Path) -> None:
    path = acquire.import_model(folder, "int8", "demo", path=places.demo() / "demo-int8.safetensors", origin="tools/train_demo.py")
    size = path.stat().st_size
    print(f"{path}: {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"too large for the wheel: at most {MOST_BYTES:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
