"""One process of start.py: loads a model, computes a token, then another one, and prints when each was there."""

from __future__ import annotations

import argparse
import json
import time

AT = {}


def there(what: str) -> None:
    AT[what] = time.time()


def main() -> None:
    there("python_s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape")
    parser.add_argument("--file")
    parser.add_argument("--device", required=True)
    asked = parser.parse_args()

    import numpy as np
    from gpu_stages.stage import TINY, quicker_simulator

    from llmcli import engine
    from llmcli.backends.backend import Batch
    from llmcli.kv import BLOCK, KVCache
    from llmcli.models import decoder
    from llmcli.models.shapes import SHAPES
    from llmcli.offload import runner
    from llmcli.offload.place import HOST, Share
    from llmcli.offload.steps import pieces
    from llmcli.weights import packed, randoms

    if asked.file:
        with packed.open(asked.file) as file:
            _, plan = engine.read_plan(file, None)
            weights = file.load(False, None)
    else:
        spec = (SHAPES | TINY)[asked.shape]
        plan = decoder.plan(spec, min(spec.context, engine.DEFAULT_CONTEXT))
        weights = randoms.tensors(plan.weights, "int4")
    there("weights_read_s")
    if asked.shape in TINY:
        quicker_simulator()
    cache = KVCache(plan.cache, -(-plan.context // BLOCK), "f16")
    tokens = engine.MOST_TOKENS if asked.device == HOST else pieces(plan)[0]
    model = runner.load(plan, weights, cache, (Share(asked.device, len(plan.cache), tokens),))
    there("loaded_s")
    text = cache.sequence()
    for name in ("first_token_s", "second_token_s", "third_token_s"):
        model.run(Batch.of(text, np.array([3], np.int32)))
        there(name)
    model.close()
    print(json.dumps({"at": AT, "bytes": {"bytes": sum(len(tensor.data) for tensor in weights.values())}}))


if __name__ == "__main__":
    main()
