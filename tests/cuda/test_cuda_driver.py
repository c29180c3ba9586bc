"""What is asked of the driver, with a stub of its library: memory, copies, launches, recorded steps, errors."""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import importlib.util
import io
import re
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from devices import SPECS, made
from stub_driver import ILLEGAL, Library

from llmcli.backends.backend import Batch
from llmcli.backends.cuda import device, driver, graph, objects
from llmcli.backends.cuda import run as cuda_run
from llmcli.backends.cuda.device import Gpu
from llmcli.backends.cuda.kernels import select
from llmcli.backends.cuda.kernels.platform import SIMULATED
from llmcli.backends.cuda.kernels.step import HEADER
from llmcli.backends.cuda.launch import Launch
from llmcli.backends.cuda.memory import STAGE, Memory
from llmcli.errors import DeviceError, OutOfMemory
from llmcli.kv import KVCache

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator has no driver")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    found = Library()
    stub = SimpleNamespace(function=lambda name: getattr(found, name), text=lambda code: f"error {code}")
    monkeypatch.setattr(device, "driver", lambda: stub)
    monkeypatch.setattr(device, "gpus", lambda: [Gpu(number, "Stub", (9, 0), 1 << 30) for number in range(2)])
    monkeypatch.setattr(driver, "gpus", driver._Gpus())
    monkeypatch.setattr(objects, "load", lambda keys, capability, **say: dict.fromkeys(keys, b"\x7fELF\x00\x00\x00\x00"))
    yield found
    gc.collect()


def test_memory_is_copied_shared_and_freed(library: Library) -> None:
    memory, rng = Memory(1), np.random.default_rng(1)
    sent = rng.integers(0, 255, 2 * STAGE + 1000).astype(np.uint8)
    with memory.errors():
        there = memory.upload([sent[:7], sent[7:]], sent.size, np.uint8)
        memory.uploaded()
        back = memory.pinned(sent.size // 4, np.float32)
        there.view(np.float32).copy_to_host(back, memory.stream)
        np.testing.assert_array_equal(back.view(np.uint8), sent)
        part, other = there[100:200], memory.constant(np.arange(50, dtype=np.int16))
        part.copy_to_device(other.view(np.uint8), memory.stream)
        found = np.empty(50, np.int16)
        there[100:200].copy_to_host(found.view(np.uint8), memory.stream)
        np.testing.assert_array_equal(found, np.arange(50))
        with pytest.raises(AssertionError):
            part.copy_to_device(sent[:99], memory.stream)
    assert library.pushed == 0
    del there
    gc.collect()
    assert len(library.memory) == 3, "a part keeps the whole"
    del part, other, back
    gc.collect()
    assert not library.memory and library.pushed == 0


def test_a_view_of_pinned_memory_keeps_it(library: Library) -> None:
    with Memory(0).errors():
        view = Memory(0).pinned(64, np.int32)[8:16]
    gc.collect()
    view[:] = 3
    assert len(library.memory) == 1 and view.sum() == 24


def launch(memory: Memory) -> Launch:
    step, x = memory.array(4, np.int32), memory.array(64, np.float32)
    return Launch(select.select, (3, 2), 128, (step, x, 5, 32, x, -1, 32, 1 << 40))


def start(launch: Launch, memory: Memory) -> None:
    launch.kernel[launch.grid, launch.block, memory.stream](*launch.args)


def test_launches(library: Library) -> None:
    memory = Memory(0)
    with memory.errors():
        one = launch(memory)
        library.parameters = 3 * 7 + 5
        memory.prepare([one, one], None)
        assert library.images == [b"\x7fELF\0\0\0\0"] and not library.launches
        start(one, memory)
        start(one, memory)
    assert library.calls.count("cuModuleLoadData") == 1 and len(library.launches) == 2
    _, grid, block, shared, stream, words = library.launches[0]
    assert (grid, block, shared, stream) == ((3, 2, 1), (128, 1, 1), 0, memory.stream.handle)
    step, x = one.args[:2]
    array = [0, 0, 64, 4, x.pointer, 64, 4]
    expected = [0, 0, 4, 4, step.pointer, 4, 4, *array, 5, 32, *array, -1, 32, 1 << 40]
    assert list(struct.unpack("<26q", words)) == expected


@pytest.mark.skipif(importlib.util.find_spec("numba_cuda") is None, reason="compares with numba-cuda: pip install 'llmcli[cuda]'")
def test_arguments_are_packed_as_numba_does() -> None:
    from numba import types
    from numba.cuda.args import ArgHint
    from numba.cuda.dispatcher import _Kernel

    class There(ArgHint):  # type: ignore[misc]
        """What Numba asks of an array on the device."""

        def to_device(self, retr: Any, stream: Any = 0) -> Any:
            layout = SimpleNamespace(strides_in_bytes=None, is_contiguous_c=True, is_contiguous_f=True)
            own = self.value
            return SimpleNamespace(size=own.size, dtype=own.dtype, ptr=own.pointer, shape=(own.size,), _layout=layout)

    arrays = [driver.Array(0x7F0000001000 + i, 10 + i, kind, None) for i, kind in enumerate((np.uint8, np.float32, np.int64))]
    kinds: list[Any] = [types.uint8[::1], types.float32[::1], types.int64[::1], types.int64, types.float64]
    values = [*arrays, -5, 0.1]
    found: list[Any] = []
    for kind, value in zip(kinds, values, strict=True):
        _Kernel._prepare_args(
            SimpleNamespace(extensions=[]), kind, There(value) if isinstance(value, driver.Array) else value, 0, [], found
        )
    words = b"".join(bytes(x) if isinstance(x, ctypes._SimpleCData) else struct.pack("<q", x) for x in found)
    assert words == bytes(driver.packed(values))
    assert driver.signature(values) == "u1 f4 i8 int float"


def test_functions_are_declared_as_nvidia_does() -> None:
    """How many parameters, and how wide each is: an int where 64 bits are read would do no harm here, and much there."""
    try:
        bindings = importlib.metadata.distribution("cuda-bindings")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("compares with cuda-bindings: pip install 'llmcli[cuda]'")
    text = Path(str(bindings.locate_file("cuda/bindings/cydriver.pxd"))).read_text()
    widths = {"int": 4, "unsigned int": 4, "CUdevice": 4, "CUstreamCaptureMode": 4, "size_t": 8, "unsigned long long": 8, "CUdeviceptr": 8}
    for name, parameters in driver.FUNCTIONS.items():
        plain = name.removesuffix("_v2").replace("InstantiateWithFlags", "Instantiate")
        declared = re.search(rf"cdef CUresult {plain}\((.*)\) except", text)
        assert declared, name
        types = [word.rpartition(" ")[0].strip() for word in declared[1].split(",")]
        handles = {"CUcontext", "CUstream", "CUevent", "CUmodule", "CUfunction", "CUgraph", "CUgraphExec"}
        expected = [8 if kind.endswith("*") or kind in handles else widths[kind] for kind in types]
        assert [ctypes.sizeof(kind) for kind in parameters] == expected, (name, types)


def test_what_a_kernel_cannot_take_is_refused() -> None:
    for number in (True, np.int64(1), np.float64(1)):
        with pytest.raises(AssertionError, match="numbers are Python's"):
            driver.signature([number])


def test_threads_have_their_own_gpu(library: Library) -> None:
    first, second, seen = Memory(0), Memory(1), []

    def other() -> None:
        with second.errors():
            seen.append(driver.current().number)

    with first.errors():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        with second.errors():
            seen.append(driver.current().number)
        seen.append(driver.current().number)
    assert seen == [1, 1, 0] and library.pushed == 0


def test_errors(library: Library) -> None:
    memory = Memory(0)
    library.fails = {"cuMemAlloc_v2": 2}
    with pytest.raises(OutOfMemory, match="GPU 0 is out of memory: cuMemAlloc_v2: error 2"), memory.errors():
        memory.array(5, np.int32)
    library.fails = {"cuStreamSynchronize": 719}
    with pytest.raises(DeviceError, match="GPU 0 failed: cuStreamSynchronize: error 719"), memory.errors():
        memory.stream.synchronize()
    library.fails = {"cuDevicePrimaryCtxRetain": 2}
    with pytest.raises(OutOfMemory):
        Memory(1)
    assert library.pushed == 0


def test_a_clock(library: Library) -> None:
    memory = Memory(0)
    with memory.errors():
        before, after = driver.Event(), driver.Event()
        before.record(memory.stream)
        after.record(memory.stream)
        after.synchronize()
        assert before.elapsed_time(after) == 1.5


def test_work_is_recorded_once_and_started_often(library: Library) -> None:
    memory, done = Memory(0), list[str]()
    with memory.errors():
        library.calls.clear()
        replay = graph.capture(memory.stream, lambda: done.append("work"))
        assert replay is not None and done == ["work"]
        replay()
        replay()
    recording = ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy"]
    assert library.calls[:-1] == [*recording, "cuGraphLaunch", "cuGraphLaunch"] and done == ["work"]
    del replay
    gc.collect()
    assert "cuGraphExecDestroy" in library.calls


@pytest.mark.parametrize("name", ["cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags"])
def test_what_cannot_be_recorded(library: Library, name: str) -> None:
    memory = Memory(0)
    library.fails = {name: ILLEGAL}
    with memory.errors():
        assert graph.capture(memory.stream, lambda: None) is None
    assert "cuGraphLaunch" not in library.calls


def test_a_launch_that_fails_while_it_is_recorded(library: Library) -> None:
    memory = Memory(0)
    library.fails = {"cuLaunchKernel": ILLEGAL}
    with memory.errors():
        one = launch(memory)
        assert graph.capture(memory.stream, lambda: start(one, memory)) is None
    assert library.calls[-2:] != ["cuGraphLaunch"] and "cuStreamEndCapture" in library.calls


def test_memory_can_be_asked_for_from_anywhere(library: Library) -> None:
    """Its calls need a current GPU, and see to that themselves."""
    memory = Memory(1)
    for array in (memory.array(3, np.int32), memory.upload([np.arange(3, dtype=np.int32)], 3, np.int32), memory.constant(np.zeros(3))):
        assert array.size == 3
    memory.uploaded()
    assert memory.pinned(3, np.float32).tolist() == [0, 0, 0] and library.pushed == 0
    with pytest.raises(driver.Failure, match="201"):
        driver.Stream.synchronize(memory.stream)


@pytest.mark.parametrize("stage", ["peaks", "kernels", "models"])
def test_stages_of_the_benchmark_ask_nothing_that_a_driver_refuses(library: Library, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from gpu_stages.stage import Stage

    out = io.StringIO()
    importlib.import_module(f"gpu_stages.{stage}").run(Stage(out, 100.0, True))
    assert out.getvalue() and bool(library.launches) == (stage != "peaks")


def test_a_lost_device(library: Library) -> None:
    memory = Memory(0)
    with memory.errors():
        replay = graph.capture(memory.stream, lambda: None)
    assert replay is not None
    library.fails = {"cuGraphLaunch": 719}
    with pytest.raises(DeviceError, match="GPU 0 failed: cuGraphLaunch: error 719"), memory.errors():
        replay()


@pytest.mark.parametrize("name", SPECS)
def test_a_model_is_driven(library: Library, name: str) -> None:
    """All that a runner asks of the driver, but the kernels' work: what they would write stays zero."""
    model = made(SPECS[name], "int4", "f16")
    cache = KVCache(model.cache.layers, 3, "f16")
    runner = cuda_run.load(model.plan, model.weights, cache, most_tokens=4)
    assert runner.compile_seconds == 0
    text, other = cache.sequence(), cache.sequence()
    result = runner.run(Batch.of(text, np.arange(6, dtype=np.int32), "all"))
    assert result.logits.shape == (6, model.plan.vocab) and not library.calls.count("cuGraphLaunch")
    for token in range(4):
        library.launches.clear()
        library.calls.clear()
        assert runner.run(Batch.of(text, np.array([token], np.int32))).logits.shape == (1, model.plan.vocab)
        launches = len(runner._lowering.launches(1, 1))
        assert len(library.launches) == launches and library.calls.count("cuLaunchKernel") == (0 if token > 1 else launches)
        assert library.calls.count("cuGraphLaunch") == (token > 0)
        step = ctypes.c_int32.from_address(runner._buffers.step.pointer + 4 * HEADER)
        assert step.value == token, "a recorded step copies what there is to copy when it is started"
    assert runner.recorded == 1
    runner.run(Batch.of(other, np.array([1], np.int32)))
    fork = text.fork()
    fork.truncate(3)
    runner.run(Batch.of(fork, np.array([1], np.int32)))  # in a block that is copied for it
    assert "cuMemcpyDtoDAsync_v2" in library.calls
    runner.run(Batch.of(fork, np.array([1, 2], np.int32), "all"))
    for layer in range(len(cache.layers)):
        numbers = np.random.default_rng(layer).integers(0, 255, runner.store.read(layer, 0).size).astype(np.uint8)
        runner.store.write(layer, 0, numbers)
        runner.store.write(layer, 1, once := runner.store.read(layer, 0))
        np.testing.assert_array_equal(runner.store.read(layer, 1), once)
    runner.close()
    del cache, runner, text, other, fork
    gc.collect()
    assert not library.memory and library.pushed == 0
