"""Recording a step, with a stub of cuda-bindings: what is called, and that whatever cannot be recorded is done call by call."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmcli.backends.cuda import graph
from llmcli.errors import DeviceError


class Driver(ModuleType):
    """Records calls. fails: functions that return an error."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)

    def __init__(self, *fails: str) -> None:
        super().__init__("driver")
        self.calls: list[str] = []
        self.fails = set(fails)

    def CUstream(self, handle: int) -> int:
        return handle

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append(name)
            code = 900 if name in self.fails else 0
            made = {"cuStreamEndCapture": "graph", "cuGraphInstantiate": "executable"}.get(name)
            return (code,) if made is None else (code, None if code else made)

        return call


@pytest.fixture
def driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver(*getattr(request, "param", ()))
    package = ModuleType("cuda")
    bindings = ModuleType("cuda.bindings")
    bindings.driver = found  # type: ignore[attr-defined]
    for name, module in (("cuda", package), ("cuda.bindings", bindings), ("cuda.bindings.driver", found)):
        monkeypatch.setitem(sys.modules, name, module)
    return found


def test_work_is_recorded_once_and_started_often(driver: Driver) -> None:
    done: list[str] = []
    replay = graph.capture(7, lambda: done.append("work"))
    assert replay is not None and done == ["work"]
    replay()
    replay()
    recording = ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "cuGraphDestroy"]
    assert driver.calls == [*recording, "cuGraphLaunch", "cuGraphLaunch"] and done == ["work"]
    del replay
    gc.collect()
    assert driver.calls[-1] == "cuGraphExecDestroy"


@pytest.mark.parametrize("driver", [("cuStreamBeginCapture",), ("cuStreamEndCapture",), ("cuGraphInstantiate",)], indirect=True)
def test_what_cannot_be_recorded(driver: Driver) -> None:
    assert graph.capture(7, lambda: None) is None
    assert "cuGraphLaunch" not in driver.calls


def test_work_that_fails_while_it_is_recorded(driver: Driver) -> None:
    def work() -> None:
        raise RuntimeError("this call cannot be recorded")

    assert graph.capture(7, work) is None
    assert driver.calls == ["cuStreamBeginCapture", "cuStreamEndCapture"], "the stream is left usable"


@pytest.mark.parametrize("driver", [("cuGraphLaunch",)], indirect=True)
def test_a_lost_device(driver: Driver) -> None:
    replay = graph.capture(7, lambda: None)
    assert replay is not None
    with pytest.raises(DeviceError, match="the GPU failed: cuGraphLaunch: error 900"):
        replay()
