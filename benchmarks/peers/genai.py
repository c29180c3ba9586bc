"""OpenVINO GenAI, for compare.py. MODEL: a GGUF file.

It is called as its users do: a prompt's time is the time to its first token, a token's the mean of those that follow, both as it reports
them. Its KV cache has its default type. Greedy, so that sampling costs next to nothing.
"""

from __future__ import annotations

import numpy as np
import openvino as ov
import openvino_genai as genai
import serve


class Engine:
    version = str(genai.__version__)

    def __init__(self, model: str, threads: int, context: int) -> None:
        self.pipeline = genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=threads)

    def prompt(self, tokens: int) -> float:
        return self._metrics(tokens, 1).get_ttft().mean / 1000

    def decode(self, tokens: int, depth: int) -> float:
        return self._metrics(depth or 1, tokens + 1).get_tpot().mean / 1000 * tokens

    def first(self, ids: list[int]) -> int:
        return int(self._generate(ids, 1).tokens[0][0])

    def _metrics(self, prompt: int, tokens: int) -> genai.PerfMetrics:
        return self._generate(serve.ids(prompt), tokens).perf_metrics

    def _generate(self, ids: list[int], tokens: int) -> genai.EncodedResults:
        settings = genai.GenerationConfig()
        settings.max_new_tokens, settings.do_sample, settings.ignore_eos = tokens, False, True
        data = np.array([ids], np.int64)
        return self.pipeline.generate(genai.TokenizedInputs(ov.Tensor(data), ov.Tensor(np.ones_like(data))), settings)


if __name__ == "__main__":
    serve.main(Engine)
