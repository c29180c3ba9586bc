"""Generation on the embedded demo model: what a user is promised of its texts and probabilities."""

from __future__ import annotations

import functools
import gc
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmcli import acquire, interrupt, library
from llmcli import engine as engines
from llmcli.backends.backend import Batch
from llmcli.engine import Engine
from llmcli.errors import ContextOverflow, InputError, InternalError, NotFound, Stopped, UsageError
from llmcli.generate import Settings, generate, next_tokens
from random_model import CONFIG, packed_file, tensors, write_folder

GREEDY = Settings(temperature=0.0, max_tokens=40)


@pytest.fixture(scope="module")
def demo() -> Iterator[Engine]:
    with engines.opened("demo") as engine:
        yield engine


def ids_of(engine: Engine, text: str = "Once upon a time") -> list[int]:
    return engine.tokenizer.encode(text)


def written(engine: Engine, settings: Settings, text: str = "Once upon a time") -> str:
    return "".join(step.text for step in generate(engine, ids_of(engine, text), settings))


def logits(engine: Engine, ids: np.ndarray, cuts: list[int]) -> np.ndarray:
    """[T, V] logits of a text read in pieces of these sizes."""
    sequence = engine.cache.sequence()
    parts = np.split(ids, np.cumsum(cuts)[:-1])
    found = [engine.run(Batch.of(sequence, part, "all")).logits.copy() for part in parts]
    sequence.close()
    return np.concatenate(found)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_one_order_of_arithmetic(threads: int, quantization: str, tmp_path: Path) -> None:
    """The same bits for 1, 2, 7, 8 and 512 tokens at once, on 1, 2 and 3 threads."""
    ids = np.random.default_rng(5).integers(0, 4096, 512).astype(np.int32)
    path = str(packed_file(tmp_path, quantization))
    with engines.opened(path, threads=1) as single:
        whole = logits(single, ids, [512])
    with engines.opened(path, threads=threads) as engine:
        for size in (1, 2, 7, 8, 512):
            count = min(512, 40 * size)
            pieces = [size] * (count // size)
            np.testing.assert_array_equal(logits(engine, ids[: sum(pieces)], pieces), whole[: sum(pieces)])


def test_same_seed_same_text(demo: Engine) -> None:
    settings = Settings(seed=11, max_tokens=60)
    first = written(demo, settings)
    assert first == written(demo, settings) and len(first) > 20
    assert first != written(demo, Settings(seed=12, max_tokens=60))
    with engines.opened("demo", threads=1) as single:
        assert written(single, settings) == first


def test_greedy_tokens_have_rank_one_and_agree_with_next(demo: Engine) -> None:
    ids = ids_of(demo)
    for step in generate(demo, ids, GREEDY, probs=5):
        assert step.rank == 1 and step.id is not None
        found = next_tokens(demo, ids, GREEDY, 5)
        assert [c.id for c in found.candidates] == [c.id for c in step.top]
        assert [c.logprob for c in found.candidates] == [c.logprob for c in step.top]  # bit for bit, cache or not
        assert step.top[0].logprob == step.logprob
        ids = [*ids, step.id]


def test_probabilities_sum_to_one(demo: Engine) -> None:
    everything = next_tokens(demo, ids_of(demo), Settings(), demo.plan.vocab)
    assert sum(c.prob for c in everything.candidates) == pytest.approx(1, abs=1e-5)
    assert sum(c.final_prob for c in everything.candidates) == pytest.approx(1, abs=1e-9)
    entropy = -sum(c.prob * c.logprob for c in everything.candidates) / math.log(2)
    assert everything.entropy_bits == pytest.approx(entropy, abs=1e-3)
    assert [c.rank for c in everything.candidates] == list(range(1, demo.plan.vocab + 1))


def test_the_bytes_of_the_tokens_are_the_text(demo: Engine) -> None:
    steps = list(generate(demo, ids_of(demo), Settings(seed=3, max_tokens=80)))
    data = b"".join(step.bytes for step in steps if step.finish != "eos")
    assert data.decode() == "".join(step.text for step in steps)


def test_stop_strings_end_the_text_before_them(demo: Engine) -> None:
    text = written(demo, GREEDY)
    stop = text[10:14]
    steps = list(generate(demo, ids_of(demo), Settings(temperature=0, max_tokens=40, stop=(stop,))))
    assert "".join(step.text for step in steps) == text[: text.index(stop)]
    assert steps[-1].finish == "stop"


def test_lengths(demo: Engine) -> None:
    assert list(generate(demo, ids_of(demo), Settings(max_tokens=0))) == []
    steps = list(generate(demo, ids_of(demo), Settings(max_tokens=7, logit_bias=dict.fromkeys(demo.end_ids, -math.inf))))
    assert [step.finish for step in steps] == [None] * 6 + ["length"]


@pytest.mark.parametrize("size", [31, 32, 33])
def test_the_context_is_a_limit(size: int) -> None:
    """A prompt that fills the context still gets one token; one more is an error with both counts."""
    with engines.opened("demo", context=32) as engine:
        ids = (ids_of(engine) * 10)[:size]
        settings = Settings(temperature=0, logit_bias=dict.fromkeys(engine.end_ids, -math.inf))
        if size > 32:
            with pytest.raises(ContextOverflow, match=r"33 tokens, the context has room for 32"):
                list(generate(engine, ids, settings))
        else:
            steps = list(generate(engine, ids, settings))
            assert len(steps) == 33 - size and steps[-1].finish == "length"


def test_an_empty_prompt_is_an_error_without_a_first_token(demo: Engine) -> None:
    with pytest.raises(InputError, match="empty"):
        next(generate(demo, [], GREEDY))


def test_a_bias_changes_what_is_drawn(demo: Engine) -> None:
    token = ids_of(demo, " dragon")[-1]
    steps = list(generate(demo, ids_of(demo), Settings(max_tokens=3, logit_bias={token: 1e4})))
    assert [step.id for step in steps] == [token] * 3


def test_stop_from_another_thread(demo: Engine) -> None:
    ids = np.zeros(512, np.int32)
    for delay in (0.0, 0.005, 0.02):
        sequence = demo.cache.sequence()
        timer = threading.Timer(delay, demo.stop)
        timer.start()
        start = time.perf_counter()
        try:
            demo.run(Batch.of(sequence, ids, "all"))
        except Stopped:
            pass
        assert time.perf_counter() - start < 5
        timer.join()
        sequence.close()
    assert written(demo, GREEDY)  # and the model still works


def test_references() -> None:
    with pytest.raises(NotFound, match=r"Did you mean demo\?"):
        engines.load("dmeo")
    with pytest.raises(UsageError, match="a context of 1,000,000 tokens"):
        engines.load("demo", context=1_000_000)
    with pytest.raises(UsageError, match="a context of 0 tokens"):
        engines.load("demo", backend="reference", context=0)
    facts = library.describe("demo")
    assert facts["parameters"] > 5_000_000 and facts["quantization"] == "int8"


def test_a_token_that_the_model_does_not_know_is_an_error(tmp_path: Path) -> None:
    """The tokenizer has 4096 tokens, the model 300: what lies behind its embedding is nobody's memory."""
    config = {**CONFIG, "vocab_size": 300}
    source = write_folder(tmp_path / "source", config, tensors(config))
    path = acquire.import_model(source, "int8", "small", path=tmp_path / "small-int8.safetensors")
    with engines.opened(str(path), threads=1) as engine:
        for ids in ([5, 300], [2**31 - 1], [-1]):
            with pytest.raises(InputError, match=f"the model does not know token {ids[-1]}: it knows those from 0 to 299"):
                list(generate(engine, ids, GREEDY))
        assert engine.cache.sequence().length == 0 and list(generate(engine, [5, 299], Settings(max_tokens=2)))


def test_a_failed_step_leaves_its_sequence_as_it_was(demo: Engine) -> None:
    """Two sequences in one step: one of 200 tokens, one that is new."""
    first, second = demo.cache.sequence(), demo.cache.sequence()
    ids = np.arange(200, dtype=np.int32)
    demo.run(Batch.of(first, ids))
    want = demo.run(Batch.of(first, ids[:1])).logits.copy()
    first.truncate(200)
    for bad in (-1, demo.spec.vocab):
        one, two = Batch.of(first, ids[:2]), Batch.of(second, np.array([1, bad], np.int32))
        positions = np.stack([one.positions, two.positions], 1).ravel()  # the sequences take turns
        both = np.stack([one.tokens, two.tokens], 1).ravel()
        with pytest.raises(InputError):
            demo.run(Batch(both, positions, (first, second), np.array([0, 1, 0, 1], np.int32), np.array([3], np.int32)))
        assert (first.length, second.length) == (200, 0)
    np.testing.assert_array_equal(demo.run(Batch.of(first, ids[:1])).logits, want)
    first.close()


@pytest.mark.parametrize("rows", [[0, 0], [1, 0], [2], [-1, 0]])
def test_output_rows_ascend(demo: Engine, rows: list[int]) -> None:
    sequence = demo.cache.sequence()
    batch = Batch.of(sequence, np.array([3, 4], np.int32))
    batch.outputs = np.array(rows, np.int32)
    with pytest.raises(InternalError, match="output rows"):
        demo.run(batch)
    assert sequence.length == 0


def test_texts_that_are_made_in_turns_end_in_any_order(demo: Engine) -> None:
    """Each holds the process's signals while it is open (interrupt.py)."""
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    for first, last in ((0, 1), (1, 0)):
        texts = [generate(demo, ids_of(demo), GREEDY) for _ in range(2)]
        steps = [next(text) for text in texts]
        texts[first].close()
        steps.append(next(texts[last]))
        texts[last].close()
        assert steps[0].id == steps[1].id != steps[2].id
        left = signal.set_wakeup_fd(before)
        assert left == before


def test_a_signal_stops_nothing_that_begins_after_it() -> None:
    """However late the thread is that passes it on."""
    stopped: list[int] = []
    for number in range(100):
        os.write(interrupt._pipe()[1], bytes([signal.SIGINT]))  # as Python does for a signal
        with interrupt.stopping(functools.partial(stopped.append, number)):
            time.sleep(0.001)
    assert stopped == []


def test_an_interrupt_anywhere_leaves_nothing_behind(demo: Engine) -> None:
    """Ctrl-C at 40 moments of a prompt and its answer: blocks, threads and descriptors are as before, and so is the text."""

    def left() -> tuple[int, int, int]:
        return len(demo.cache._free), threading.active_count(), len(list(Path("/dev/fd").iterdir()))

    prompt, start = ids_of(demo) * 40, time.perf_counter()
    want = [step.id for step in generate(demo, prompt, GREEDY)]
    seconds, before = time.perf_counter() - start, left()
    gc.disable()  # hypothesis listens to it, and what is raised in a listener goes nowhere
    try:
        for moment in range(40):
            timer = threading.Timer(seconds * moment / 40, os.kill, (os.getpid(), signal.SIGINT))
            try:
                with pytest.raises(KeyboardInterrupt):
                    timer.start()
                    list(generate(demo, prompt, GREEDY))
                    time.sleep(60)
            finally:
                timer.cancel()
                timer.join()
    finally:
        gc.enable()
    assert left() == before
    assert [step.id for step in generate(demo, prompt, GREEDY)] == want
