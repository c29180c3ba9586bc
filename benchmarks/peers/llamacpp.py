"""llama.cpp by way of the llama-cpp-python package, for compare.py. MODEL: a GGUF file.

Its own functions are called as its llama-bench does: a prompt in batches of 2,048 (micro-batches of 512), tokens one by one, no sampling.
"""

from __future__ import annotations

import ctypes
import time

import llama_cpp as llama
import serve

BATCH, MICRO = 2048, 512


class Engine:
    version = str(llama.__version__)

    def __init__(self, model: str, threads: int, context: int) -> None:
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(model.encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = context, BATCH, MICRO
        settings.n_threads = settings.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, settings)
        self.memory = llama.llama_get_memory(self.context)
        self.vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))

    def prompt(self, tokens: int) -> float:
        self._clear()
        ids = serve.ids(tokens)
        start = time.perf_counter()
        self._compute(ids)
        return time.perf_counter() - start

    def decode(self, tokens: int, depth: int) -> float:
        self._clear()
        self._compute(serve.ids(depth or 1))
        ids = serve.ids(tokens)
        start = time.perf_counter()
        for number in ids:
            self._compute([number])
        return time.perf_counter() - start

    def first(self, ids: list[int]) -> int:
        self._compute(ids)
        logits = llama.llama_get_logits_ith(self.context, -1)
        return max(range(self.vocab), key=lambda number: logits[number])

    def _clear(self) -> None:
        llama.llama_memory_clear(self.memory, False)

    def _compute(self, ids: list[int]) -> None:
        for at in range(0, len(ids), BATCH):
            part = ids[at : at + BATCH]
            array = (llama.llama_token * len(part))(*part)
            if llama.llama_decode(
                self.context, llama.llama_batch_get_one(ctypes.cast(array, ctypes.POINTER(llama.llama_token)), len(part))
            ):
                raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(self.context)


if __name__ == "__main__":
    serve.main(Engine)
