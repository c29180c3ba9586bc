"""Fuzzing of everything that reads what strangers wrote, in a process of its own, which a watchdog can end.

    python tests/faults/fuzz.py TARGET FIRST COUNT PROGRESS     # inputs number FIRST .. FIRST + COUNT - 1; PROGRESS: a file
    python tests/faults/fuzz.py TARGET --atheris [-max_total_time=600]   # guided by coverage, where atheris is installed
An input depends on the target's name and its own number alone. Whatever is no ModelFileError and no HashMismatch is a finding.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import random
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
    if "--atheris" in sys.argv:
        import atheris  # type: ignore[import-not-found]

        # Modules count their branches when they are imported here for the first time, which is below.
        atheris.instrument_imports(include=["llmcli"], enable_loader_override=False).__enter__()

import safetensors.numpy
from mutate import changed

import gguf_files
import random_model
import small_model
import tokenizers_made
from llmcli import acquire, engine
from llmcli.errors import HashMismatch, ModelFileError
from llmcli.models import architectures, config, decoder, metadata
from llmcli.text import gguf as vocabulary
from llmcli.text.tokenizer import Stream, Tokenizer
from llmcli.weights import gguf, packed
from llmcli.weights.safetensors import File

HASH = b'"header_sha256":"'
MEMORY = 6 << 30
"""Bytes of address space: more would be a bomb."""
TEXT = "Hello,  wörld 123 <|user|>\n日本語 \U0001f642 </s>"


@dataclass(frozen=True)
class Target:
    """seeds: good inputs to begin from, made in a folder; run: reads one (`path` has the same bytes as `data`)."""

    seeds: Callable[[Path], list[bytes]]
    run: Callable[[bytes, Path], None]


def _safetensors_seeds(folder: Path) -> list[bytes]:
    safetensors.numpy.save_file(small_model.ARRAYS, folder / "m.safetensors", {"format": "pt", "k": "v"})
    return [(folder / "m.safetensors").read_bytes()]


def _safetensors(data: bytes, path: Path) -> None:
    with File(path) as file:
        for tensor in file.tensors.values():
            file.read(tensor.start, tensor.size)


def _config_seeds(folder: Path) -> list[bytes]:
    tiny = [data for module in architectures.every() for data in module.TINY.values()]
    published = json.loads((Path(__file__).parents[1] / "fixtures" / "configs.json").read_text()).values()
    return [json.dumps(data).encode() for data in [*tiny, *(entry["config"] for entry in published)]]


def _config(data: bytes, path: Path) -> None:
    spec, _ = architectures.describe(config.parse(data))
    decoder.plan(spec, min(spec.context, 64))


def _tokenizer_seeds(folder: Path) -> list[bytes]:
    made = tokenizers_made
    return [made.sentencepiece(), made.byte_level(), made.words(), made.unigram()]


def _tokenizer(data: bytes, path: Path) -> None:
    tokenizer = Tokenizer(data)
    ids = tokenizer.encode(TEXT)
    stream = Stream(tokenizer)
    for number in [*ids[:50], 0, 1, tokenizer.size + 1]:
        stream.feed(number)
    stream.finish()


def _gguf_seeds(folder: Path) -> list[bytes]:
    found = []
    for variant in ("llama", "gpt2", "mixtral"):
        gguf_files.write_gguf(folder / "m.gguf", *gguf_files.fixture(variant))
        found.append((folder / "m.gguf").read_bytes())
    return found


def _gguf(data: bytes, path: Path) -> None:
    with gguf.File(path) as file:
        shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
        factors = {name: file.vector(name) for name in metadata.FACTORS}
        found = metadata.read(file.metadata, shapes, factors)
        spec, _ = architectures.describe(found.config)
        decoder.plan(spec, min(spec.context, 64))
        checkpoint = gguf.Checkpoint(file, found.interleaved)
        for name, tensor in list(checkpoint.tensors.items())[:3]:
            checkpoint.read(name, 0, tensor.size)
        files = vocabulary.files(file.metadata)
    Tokenizer(files["tokenizer.json"]).encode(TEXT)


def _packed_seeds(folder: Path) -> list[bytes]:
    config = {**random_model.CONFIG, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 1}
    random_model.write_folder(folder / "tiny", {**config, "head_dim": 12, "num_hidden_layers": 1})
    made = [acquire.import_model(folder / "tiny", kind, "tiny", path=folder / f"tiny-{kind}.safetensors") for kind in ("int4", "none")]
    return [path.read_bytes() for path in made]


def _packed(data: bytes, path: Path) -> None:
    _hash_again(data, path)
    with packed.open(path) as file:
        engine.read_plan(file, None)
        engine.read_templates(file)
        file.load()
        file.verify()


def _hash_again(data: bytes, path: Path) -> None:
    """A header that was changed as JSON gets its padding and its hash right: else nothing behind that check would be tried."""
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size]
    if len(header) < size or header[-1:] == b" " or header.count(HASH) != 1:
        return
    header = header.ljust(-(-(8 + size) // packed.ALIGNMENT) * packed.ALIGNMENT - 8)
    before, key, after = header.partition(HASH)
    right = hashlib.sha256(before + key + b"0" * 64 + after[64:]).hexdigest().encode()
    path.write_bytes(len(header).to_bytes(8, "little") + before + key + right + after[64:] + data[8 + size :])


TARGETS = {
    "safetensors": Target(_safetensors_seeds, _safetensors),
    "config": Target(_config_seeds, _config),
    "tokenizer": Target(_tokenizer_seeds, _tokenizer),
    "gguf": Target(_gguf_seeds, _gguf),
    "packed": Target(_packed_seeds, _packed),
}


def made(target: str, number: int, seeds: list[bytes]) -> bytes:
    """Input number `number`."""
    rng = random.Random(f"{target} {number}")
    data = changed(rng.choice(seeds), rng)
    return changed(data, rng) if rng.random() < 0.2 else data


def accepted(target: str, data: bytes, path: Path) -> bool:
    """Whether the input was read to the end; False where it was refused as it should be. Anything else is a finding."""
    path.write_bytes(data)
    try:
        TARGETS[target].run(data, path)
        return True
    except (ModelFileError, HashMismatch) as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2000, "the message is no line"
        return False


@contextmanager
def workplace(target: str) -> Iterator[tuple[list[bytes], Path]]:
    """Good inputs, and a place for one; in memory where there is such a place."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        seeds = TARGETS[target].seeds(Path(folder))
        path = Path(folder) / "input"
        assert all(accepted(target, seed, path) for seed in seeds), "the fuzzing would look at the first check alone"
        yield seeds, path


def run(target: str, first: int, count: int, progress: Path) -> None:
    """progress: 8 bytes: the number of the input that is being read. Prints how many were, and how many were accepted."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    good = 0
    with open(progress, "r+b") as file, mmap.mmap(file.fileno(), 8) as word, workplace(target) as (seeds, path):
        for number in range(first, first + count):
            word[:] = number.to_bytes(8, "little")
            try:
                good += accepted(target, made(target, number, seeds), path)
            except BaseException as error:
                print(f"{target} {number}: {type(error).__name__}: {str(error)[:300]}")
                raise
    print(f"{target}: {count} inputs, {good} accepted")


def with_atheris(target: str, arguments: list[str]) -> None:
    import atheris

    with workplace(target) as (seeds, path), tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(seed)
        atheris.Setup([sys.argv[0], corpus, *arguments], lambda data: accepted(target, data, path) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[2] == "--atheris":
        with_atheris(sys.argv[1], sys.argv[3:])
    else:
        run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
