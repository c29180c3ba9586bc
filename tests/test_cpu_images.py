"""From an object file to an image, and from there into memory; what LLVM said of this CPU, kept."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import llvmlite.binding as llvm
import pytest

from llmcli.backends.cpu import build, host, images, kept, objects, target
from llmcli.backends.cpu.kernels import link
from llmcli.cli.stats import Stats
from llmcli.errors import ResourceError
from llmcli.sampling.settings import Settings

PROGRAM = """
@table = internal constant [4 x double] [double 1.5, double 2.5, double 3.5, double 4.5]
declare i32 @sched_yield()
declare i8* @memcpy(i8*, i8*, i64)
define double @llm_sum(i64 %n, i8* %to, i8* %from) uwtable {
  %a = call i32 @sched_yield()
  %b = call i8* @memcpy(i8* %to, i8* %from, i64 8)
  %p = getelementptr [4 x double], [4 x double]* @table, i64 0, i64 %n
  %x = load double, double* %p
  %y = fadd double %x, 0x400921FB54442D18
  ret double %y
}
"""
"""llm_sum(n, to, from): table[n] + pi, with a call of two functions."""
PI = struct.pack("<Q", 0x400921FB54442D18)


def compiled_program(program: str, triple: str, cpu: str = "", relocation: str = "pic", model: str = "small") -> bytes:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(program)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=2, reloc=relocation, codemodel=model, jit=True)
    return bytes(machine.emit_object(module))


def test_an_image_runs_where_it_is_placed() -> None:
    image = link.image(compiled_program(PROGRAM, llvm.get_process_triple()), "llm_sum")
    addresses = images.placed([image, image])
    assert len(set(addresses)) == 2
    for address in addresses:
        function = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)(address)
        source, copy = ctypes.c_int64(-12345), ctypes.c_int64(0)
        assert function(3, ctypes.addressof(copy), ctypes.addressof(source)) == 4.5 + struct.unpack("<d", PI)[0]
        assert copy.value == source.value


def test_placed_code_cannot_be_written() -> None:
    images.placed([link.image(compiled_program(PROGRAM, llvm.get_process_triple()), "llm_sum")])
    base = ctypes.addressof(ctypes.c_char.from_buffer(images._placed[-1]))
    (line,) = [x for x in Path("/proc/self/maps").read_text().splitlines() if int(x.partition("-")[0], 16) <= base < _end(x)]
    assert line.split()[1] == "r-xp"


def _end(line: str) -> int:
    return int(line.split()[0].partition("-")[2], 16)


def test_a_system_that_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidding:
        def mprotect(self, *_: object) -> int:
            ctypes.set_errno(13)
            return -1

    image = link.image(compiled_program(PROGRAM, llvm.get_process_triple()), "llm_sum")
    images._functions()
    monkeypatch.setattr(images, "_library", lambda: Forbidding())
    with pytest.raises(ResourceError, match="compiled kernels cannot run: the system forbids it \\(Permission denied\\)"):
        images.placed([image])


def test_an_image_for_arm() -> None:
    """What the code means is computed from its instructions, as the CPU would."""
    image = link.image(compiled_program(PROGRAM, "aarch64-unknown-linux-gnu", "neoverse-n1"), "llm_sum")
    assert int.from_bytes(image[:8], "little") >= images.HEAD
    words = [struct.unpack_from("<I", image, at)[0] for at in range(0, len(image) - 3, 4)]
    meant, called = set(), set()
    for index, word in enumerate(words):
        if word & 0x9F000000 == 0x90000000:  # adrp
            pages = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
            following = next(x for x in words[index + 1 :] if x >> 5 & 31 == word & 31)  # the first that uses its register
            low, scale = following >> 10 & 0xFFF, 3 if following & 0xFFC00000 == 0xFD400000 else 0  # ldr d, or add
            meant.add((4 * index // 4096 + pages) * 4096 + (low << scale))
        if word & 0xFC000000 == 0x94000000:  # bl
            jump = index + _signed(word & 0x3FFFFFF, 26)
            load, branch = words[jump : jump + 2]
            assert load & 0xFF00001F == 0x58000010 and branch == 0xD61F0200
            called.add(4 * (jump + _signed(load >> 5 & 0x7FFFF, 19)))
    assert {image[at : at + 8] for at in meant} == {PI, struct.pack("<d", 1.5)}
    assert called == {8 + 8 * images.FUNCTIONS.index(name) for name in ("sched_yield", "memcpy")}


def _signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> width - 1 else value


def test_what_is_not_linked() -> None:
    triple = "x86_64-unknown-linux-gnu"
    with pytest.raises(RuntimeError, match="llm_sum calls cosine"):
        link.image(compiled_program(PROGRAM.replace("sched_yield", "cosine"), triple), "llm_sum")
    with pytest.raises(RuntimeError, match="llm_sum has memory of its own"):
        link.image(compiled_program(PROGRAM.replace("internal constant", "internal global"), triple), "llm_sum")
    with pytest.raises(RuntimeError, match="relocation 1 of machine 62 is not known"):
        link.image(compiled_program(PROGRAM, triple, relocation="static", model="large"), "llm_sum")
    with pytest.raises(RuntimeError, match="llm_sum is not a 64-bit ELF object"):
        link.image(b"\xcf\xfa\xed\xfe" + bytes(100), "llm_sum")


ASK = "import sys; from llmcli.backends.cpu import host, objects, target; print(target.name(), objects.maker(), 'llvmlite' in sys.modules)"


def asked(folder: Path, more: str = "") -> list[str]:
    own = {**os.environ, "LLMCLI_KERNELS": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", f"{ASK}{more}"], env=own, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()


@pytest.mark.skipif(not host.current(), reason="the system does not describe its CPU")
def test_llvm_is_asked_once(tmp_path: Path) -> None:
    folder, keep = tmp_path / "kernels", "; objects._folder(print)"
    name, maker, loaded = asked(folder)
    assert loaded == "True" and not folder.exists(), "who only asks writes nothing"
    assert asked(folder, keep) == [name, maker, "True"]
    assert (folder / host.current()).is_file()
    assert asked(folder) == [name, maker, "False"]
    (folder / host.current()).write_bytes(b"generic\n")
    assert asked(folder, keep) == [name, maker, "True"] and asked(folder) == [name, maker, "False"]
    folder.chmod(0o777)
    assert asked(folder) == [name, maker, "True"], "others could have written it"


def test_another_cpu_is_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description = tmp_path / "cpuinfo"
    monkeypatch.setattr(host, "DESCRIPTION", description)
    assert host.current() == ""
    names = []
    for text in ("flags : a b\ncpu MHz : 1\n", "flags : a b\ncpu MHz : 2\n\nflags : b\n", "flags : a b c\n", "Features : fp asimd\n"):
        description.write_text(text)
        names.append(host.current())
    assert names[0] == names[1] and len(set(names)) == 3
    description.write_text("nothing that is known: 1\n")
    assert host.current() == ""


def test_compiling_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(symbols: dict[objects.Key, str]) -> Iterator[tuple[objects.Key, bytes]]:
        for key, symbol in symbols.items():
            time.sleep(0.05)
            yield key, link.image(compiled_for_this(symbol), symbol)

    def compiled_for_this(symbol: str) -> bytes:
        return compiled_program(PROGRAM.replace("llm_sum", symbol), llvm.get_process_triple())

    monkeypatch.setenv("LLMCLI_KERNELS", str(tmp_path))
    monkeypatch.setattr(build, "compiled", compiled)
    before = objects.compile_seconds()
    first = objects.load([("made.up", ())], notify=lambda line: None)
    took = objects.compile_seconds() - before
    assert took >= 0.05
    assert objects.load([("made.up", ())]) == first and objects.compile_seconds() - before == took
    engine = SimpleNamespace(name="tiny:int8", memory_bytes=0, load_seconds=0.25, compile_seconds=7.91)
    assert "load        0.250 s\ncompile     7.9 s, once on this machine\n" in Stats(engine, 1).lines(Settings())  # type: ignore[arg-type]
    engine.compile_seconds = 0.0
    assert "compile" not in Stats(engine, 1).lines(Settings())  # type: ignore[arg-type]


def test_what_is_kept_is_told_from_what_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert kept.read(path, "x") is None
    kept.write(path, "x", b"contents")
    assert kept.read(path, "x") == b"contents" and [x.name for x in tmp_path.iterdir()] == ["file"]
    with pytest.raises(kept.Damaged):
        kept.read(path, "y")
    assert not path.exists()


def test_the_machine_is_this_one() -> None:
    assert target.architecture() == llvm.get_process_triple().split("-")[0]
