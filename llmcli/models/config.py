"""A typed, strict reader of config.json: every field is checked, and nothing is passed over in silence.

An architecture file reads the fields that it honours. What it left unread, and what is not known to be harmless,
may change a model's numbers: `finish` refuses it by name. Files written by transformers 4 and 5 are both read.
Nothing in the file is ever run (`auto_map` names code; it is ignored).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from llmcli.errors import CorruptFile, UnsupportedModel

T = TypeVar("T")

OVERRIDE = "Use another model, or --allow-config FIELD where that field is known to change nothing"
"""What to do about a field that we do not know."""

MOST_BYTES = 1 << 24
"""A larger config.json is not one."""

HARMLESS = frozenset(
    """
    architectures model_type auto_map name_or_path _name_or_path transformers_version dtype torch_dtype use_bfloat16
    unsloth_version unsloth_fixed is_llama_config transformers.js_config

    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id decoder_start_token_id prefix
    begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id bad_words_ids tokenizer_class
    max_length min_length max_sequence_length do_sample early_stopping num_beams num_beam_groups diversity_penalty
    temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences
    encoder_no_repeat_ngram_size output_scores return_dict_in_generate remove_invalid_values
    exponential_decay_length_penalty task_specific_params tokenizer_name

    init_device init_config init_std verbose inference_runner max_batch_size pad_key_length pre_allocate_kv_cache
    validate_runner_input attn_impl slow_but_exact attention_softmax_in_fp32 scale_attention_softmax_in_fp32
    bias_dropout_fusion masked_softmax_fusion offset_alibi skip_bias_add skip_bias_add_qkv

    use_cache cache_implementation output_attentions output_hidden_states output_router_logits return_dict torchscript
    chunk_size_feed_forward attn_implementation _attn_implementation _attn_implementation_autoset pretraining_tp
    gradient_checkpointing is_decoder tie_encoder_decoder cross_attention_hidden_size n_ctx

    dropout activation_dropout layerdrop embed_dropout resid_dropout residual_dropout embedding_dropout emb_pdrop
    embedding_fraction initializer_range initializer_factor attention_dropout attention_probs_dropout_prob hidden_dropout
    hidden_dropout_prob classifier_dropout resid_pdrop embd_pdrop attn_pdrop router_aux_loss_coef router_jitter_noise
    pruned_heads finetuning_task problem_type id2label label2id num_labels _num_labels tf_legacy_loss summary_type
    summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    """.split()
)
"""Fields that do not change a token's logits: names and versions, special ids and sampling (read elsewhere), caching
and training."""


ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "sigmoid": "sigmoid",
}
"""config.json's names of activations -> ours (ops.ACTIVATIONS)."""


def parse(data: bytes) -> dict[str, Any]:
    """config.json's bytes as a dictionary. Raises CorruptFile where it is not one JSON object of plain numbers."""
    if len(data) > MOST_BYTES:
        raise CorruptFile("config.json", f"it has {len(data):,} bytes, too many for a configuration")
    try:
        config = json.loads(data.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CorruptFile("config.json", "it is not UTF-8 text") from error
    except RecursionError as error:
        raise CorruptFile("config.json", "it is nested too deeply") from error
    except ValueError as error:
        raise CorruptFile("config.json", f"it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise CorruptFile("config.json", f"it holds {_show(config)}, not an object")
    return config


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


class Config:
    """One JSON object of a config.json. Each reading method takes a field's names (aliases: the first one present
    counts), treats null as absent, and raises CorruptFile for a missing field without default or an impossible value."""

    def __init__(self, data: Mapping[str, Any], path: str = "") -> None:
        self._data = dict(data)
        self._path = path
        self._read: set[str] = set()
        self._sections: dict[str, Config] = {}

    def defaults(self, **values: Any) -> None:
        """Sets fields that are missing (not those that are null), as a family's own defaults do."""
        self._data = {**values, **self._data}

    def count(self, *names: str, most: int, least: int = 1, default: int | None = None) -> int:
        """A whole number least <= n <= most. The default is not checked."""
        value = self._value(names, default)
        if self.has(*names) and not (type(value) is int and least <= value <= most):
            raise self._wrong(names, value, f"a whole number from {least:,} to {most:,}")
        return int(value)

    def number(self, *names: str, low: float, high: float, default: float | None = None) -> float:
        """A number low <= x <= high. The default is not checked."""
        value = self._value(names, default)
        if self.has(*names) and not (type(value) in (int, float) and low <= value <= high):
            raise self._wrong(names, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, *names: str, default: bool) -> bool:
        value = self._value(names, default)
        if type(value) is not bool:
            raise self._wrong(names, value, "true or false")
        return value

    def word(self, *names: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """What `choices` says for the field's word. Raises UnsupportedModel for a word that it does not have."""
        return self._choose(names, self._value(names, default), choices)

    def words(self, *names: str, choices: Mapping[str, T], count: int) -> tuple[T, ...] | None:
        """What `choices` says for each of a list of `count` words; None where the field is absent."""
        value = self._value(names, ())
        if value == ():
            return None
        if not (isinstance(value, list) and len(value) == count):
            raise self._wrong(names, value, f"a list of {count:,} words")
        return tuple(self._choose(names, word, choices) for word in value)

    def runs(self, *names: str, choices: Mapping[str, T], count: int) -> tuple[T, ...] | None:
        """The same for words that come as pairs [words, times]: [[["global", "local"], 2]] are four."""
        value = self._value(names, ())
        if value == ():
            return None
        pairs = value if isinstance(value, list) and len(value) <= count else [None]
        found: list[T] = []
        for pair in pairs:
            words, times = pair if isinstance(pair, list) and len(pair) == 2 else (None, None)
            if not (isinstance(words, list) and type(times) is int and len(words) * max(times, 1) <= count - len(found)):
                raise self._wrong(names, value, f"a list of [words, times], {count:,} words in all")
            found += [self._choose(names, word, choices) for word in words] * times
        if len(found) != count:
            raise self._wrong(names, value, f"a list of [words, times], {count:,} words in all")
        return tuple(found)

    def numbers(self, *names: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of `count` numbers from low to high."""
        value = self._value(names, None)
        if not (isinstance(value, list) and len(value) == count and all(type(x) in (int, float) and low <= x <= high for x in value)):
            raise self._wrong(names, value, f"a list of {count:,} numbers from {low:g} to {high:g}")
        return tuple(float(x) for x in value)

    def indices(self, *names: str, below: int) -> frozenset[int]:
        """A list of whole numbers from 0 to below - 1; none where the field is absent."""
        value = self._value(names, [])
        if not (isinstance(value, list) and all(type(x) is int and 0 <= x < below for x in value)):
            raise self._wrong(names, value, f"a list of whole numbers below {below:,}")
        return frozenset(value)

    def skip(self, *names: str) -> None:
        """Fields whose meaning shows elsewhere."""
        self._read.update(names)

    def expect(self, name: str, value: Any) -> None:
        """Raises UnsupportedModel where the field is present with another value: we run only this one."""
        found = self._value((name,), value)
        if found != value or type(found) is not type(value):
            raise UnsupportedModel("config.json", f"{self._path}{name} is {_show(found)}, and llm runs only {_show(value)}")

    def section(self, *names: str) -> Config:
        """The object under the first of these names that is present and not empty; an empty one where none is."""
        value: Any = next((v for v in (self._value((name,), {}) for name in names) if v != {}), {})
        if not isinstance(value, dict):
            raise self._wrong(names, value, "an object")
        return self._sections.setdefault(names[0], Config(value, f"{self._path}{names[0]}."))

    def has(self, *names: str) -> bool:
        """Whether one of the fields is there and not null."""
        return any(self._data.get(name) is not None for name in names)

    def unread(self) -> list[str]:
        """Fields with a value that nobody has read and that are not known to be harmless, with their paths."""
        own = [n for n, v in self._data.items() if v is not None and n not in self._read and n not in HARMLESS]
        return [f"{self._path}{n}" for n in own] + [n for section in self._sections.values() for n in section.unread()]

    def finish(self, allow: Collection[str] = ()) -> None:
        """Raises UnsupportedModel naming the unread fields, but for those in `allow`."""
        if self.has("quantization_config") and "quantization_config" not in {*allow, *self._read}:
            why = "the weights are already quantized, in a way that llm does not read"
            raise UnsupportedModel("config.json has quantization_config", why, "Use the original model")
        names = [name for name in self.unread() if name not in allow]
        if names:
            shown = ", ".join(_show(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")
            raise UnsupportedModel("config.json", f"llm does not know what {shown} would change", OVERRIDE)

    def _value(self, names: tuple[str, ...], default: Any) -> Any:
        """The field's value, else the default; without one (None) the field must be there."""
        self._read.update(names)
        value = next((self._data[name] for name in names if self._data.get(name) is not None), default)
        if value is None:
            raise CorruptFile("config.json", f"{self._path}{names[0]} is missing")
        return value

    def _choose(self, names: tuple[str, ...], word: Any, choices: Mapping[str, T]) -> T:
        if not isinstance(word, str):
            raise self._wrong(names, word, "a word")
        if word not in choices:
            raise UnsupportedModel("config.json", f"{self._path}{names[0]} is {_show(word)}, and llm knows {', '.join(choices)}")
        return choices[word]

    def _wrong(self, names: tuple[str, ...], value: Any, wanted: str) -> CorruptFile:
        name = next((name for name in names if self._data.get(name) is not None), names[0])
        return CorruptFile("config.json", f"{self._path}{name} is {_show(value)}, not {wanted}")


def head_size(hidden: int, heads: int) -> int:
    """The width of a head where the heads share the hidden size. Raises CorruptFile where they cannot."""
    if hidden % heads:
        raise CorruptFile("config.json", f"{heads:,} heads do not divide a hidden size of {hidden:,}")
    return hidden // heads


def _show(value: Any) -> str:
    """A value of the file in at most some 40 characters."""
    if isinstance(value, (dict, list)):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value):,}"
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
