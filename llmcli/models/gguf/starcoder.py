"""GPT-BigCode in GGUF: GPT-2 with one key and value head."""

from llmcli.models.arch import gpt_bigcode
from llmcli.models.gguf import gpt2
from llmcli.models.metadata import Description, Entries, Shapes, typed


def describe(entries: Entries, shapes: Shapes, rope_factors: list[float]) -> Description:
    found = gpt2.describe(entries, shapes, rope_factors)
    single = entries.whole("attention.head_count_kv", 1) == 1
    return Description({**found.config, **typed(gpt_bigcode.TYPES), "multi_query": single}, found.NAMES)
