"""Which versions the native parts are used with, and how calls of a loaded library are redirected."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import types
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from shims import compile_library

from secretfs import libc, native
from secretfs.native import ShimUnavailable, got, shim_state, untried_libfuse

ELF_H = Path("/usr/include/elf.h")
MADE_UP = 4242


# Versions


@pytest.mark.parametrize("version", ["3.4.0", "3.4.9", "3.5.0", "3.5.1"])
def test_tried_pyfuse3(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """With the releases of pyfuse3 that it was tried with the shim is used."""
    monkeypatch.setattr(native, "version", lambda _: version)
    assert shim_state() is True


@pytest.mark.parametrize("version", ["3.3.0", "3.6.0", "3.40.0", "4.0.0", "2.5", ""])
def test_other_pyfuse3(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """With any other it is not, and the reason names it and those that would do."""
    monkeypatch.setattr(native, "version", lambda _: version)
    assert shim_state() == f"not tried with pyfuse3 {version}, only with 3.4.x, 3.5.x"


def test_no_pyfuse3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyfuse3 that is the reason."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(native, "version", missing)
    assert shim_state() == "pyfuse3 is not installed"


@pytest.mark.parametrize("number", [314, 316, 317, 318])
def test_tried_libfuse(number: int) -> None:
    """Each minor release of libfuse from 3.14 to 3.18 will do."""
    assert untried_libfuse(types.SimpleNamespace(fuse_version=lambda: number)) == ""  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "name"), [(310, "3.10"), (313, "3.13"), (319, "3.19"), (400, "4.0"), (29, "0.29")])
def test_other_libfuse(number: int, name: str) -> None:
    """Any other is named as the reason."""
    library = types.SimpleNamespace(fuse_version=lambda: number)
    assert untried_libfuse(library) == f"not tried with libfuse {name}"  # type: ignore[arg-type]


def test_installed_libfuse_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libfuse that the shim is linked with is what counts."""
    monkeypatch.setattr(native, "LIBFUSE", range(0))
    assert re.fullmatch(r"not tried with libfuse 3\.\d+", str(shim_state()))


def test_two_libfuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A shim for one libfuse is not used with a pyfuse3 for another: a session of one means nothing to the other."""
    other = tmp_path / "__init__.so"
    other.write_bytes(b"\x7fELF\0libfuse3.so.99\0libc.so.6\0")
    monkeypatch.setattr(native, "_compiled_pyfuse3", lambda: str(other))
    assert re.fullmatch(r"built for libfuse3\.so\.\d, but pyfuse3 for libfuse3\.so\.99", str(shim_state()))


def test_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where it was not built the reason says what to do, and a file that is no library is told from that."""
    monkeypatch.setattr(native, "SHIM", str(tmp_path / "shim.so"))
    assert str(shim_state()).startswith("not built: apt-get install gcc ")
    (tmp_path / "shim.so").write_bytes(b"libfuse3.so.3")
    monkeypatch.setattr(native, "_libfuse_names", lambda path: ["libfuse3.so.3"])
    assert str(shim_state()).startswith("not loadable: ")


def test_a_pyfuse3_that_waits_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pyfuse3 lacks the function that is replaced nothing is replaced, and the caller is told."""
    pyfuse3 = pytest.importorskip("pyfuse3")
    from secretfs import loop

    class Served:
        def replied(self) -> None:
            raise AssertionError

        rest = pause = replied

    monkeypatch.delattr(pyfuse3, "_wait_fuse_readable")
    assert loop.install(0, 0, None, Served()) is False
    assert not hasattr(pyfuse3, "_wait_fuse_readable")


# Redirecting calls

LINKED = {
    "lazily": ("-Wl,-z,lazy", "-Wl,-z,norelro"),
    "at once": ("-Wl,-z,now", "-Wl,-z,relro"),  # the table is read-only
    "without a PLT": ("-fno-plt", "-Wl,-z,now", "-Wl,-z,relro"),
}
SOURCE = """
#include <unistd.h>
int ask(void), ask_parent(void);
int ask(void) { return getpid() + 1; }
int ask_parent(void) { return getppid(); }
"""


@pytest.fixture(scope="module", params=LINKED)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that calls two functions of another, linked in each way there is."""
    folder = tmp_path_factory.mktemp("got")
    (folder / "ask.c").write_text(SOURCE, encoding="ascii")
    return compile_library(folder / "ask.so", "-O1", *LINKED[request.param], folder / "ask.c")


@pytest.fixture
def library(path: Path, tmp_path: Path) -> ctypes.CDLL:
    """A copy of it, loaded: what is redirected stays so."""
    copy = tmp_path / "ask.so"
    copy.write_bytes(path.read_bytes())
    return ctypes.CDLL(str(copy))


@pytest.fixture
def made_up() -> int:
    """The address of a function that returns 4242."""
    callback = ctypes.PYFUNCTYPE(ctypes.c_int)(lambda: MADE_UP)
    _kept.append(callback)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address
    return address


_kept: list[object] = []


def rights(library: ctypes.CDLL) -> list[str]:
    """The protection of each of its mappings, in order."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        return [line.split()[1] for line in lines if line.rstrip().endswith(library._name)]


def test_calls_are_redirected(library: ctypes.CDLL, made_up: int) -> None:
    """Just the calls of that function, from just that library, go elsewhere; memory that was read-only is so again."""
    assert library.ask() == os.getpid() + 1
    before = rights(library)
    got.replace(library, {"getpid": made_up})
    assert library.ask() == MADE_UP + 1
    assert library.ask_parent() == os.getppid()
    assert ctypes.CDLL(None).getpid() == os.getpid()
    assert rights(library) == before


def test_all_or_nothing(library: ctypes.CDLL, made_up: int) -> None:
    """Where one of the functions is not called through the table, none is redirected."""
    with pytest.raises(ShimUnavailable, match="'getsid' through its call table"):
        got.replace(library, {"getpid": made_up, "getsid": made_up})
    assert library.ask() == os.getpid() + 1


def test_a_sealed_table(library: ctypes.CDLL, made_up: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that cannot be made writable is left alone."""
    monkeypatch.setattr(got, "_is_writable", lambda _: False)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "mseal(2)")

    monkeypatch.setattr(libc, "mprotect", refuse)
    with pytest.raises(ShimUnavailable, match="sealed"):
        got.replace(library, {"getpid": made_up})
    assert library.ask() == os.getpid() + 1


@pytest.mark.parametrize("machine", ["riscv64", "s390x", "i686", ""])
def test_another_machine(
    library: ctypes.CDLL, made_up: int, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:  # fmt: skip
    """On a machine whose relocations are not known nothing is touched."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ShimUnavailable, match=f"not known on '{machine}'"):
        got.replace(library, {"getpid": made_up})
    assert library.ask() == os.getpid() + 1


@pytest.mark.parametrize(("machine", "prefix"), [("x86_64", "R_X86_64"), ("aarch64", "R_AARCH64")])
def test_relocation_numbers(machine: str, prefix: str) -> None:
    """They are those of <elf.h>."""
    text = ELF_H.read_text(encoding="utf-8", errors="replace")
    numbers = dict(re.findall(rf"^#define\s+{prefix}_(GLOB_DAT|JUMP_SLOT)\s+(\d+)", text, re.MULTILINE))
    assert got.RELOCATIONS[machine] == (int(numbers["GLOB_DAT"]), int(numbers["JUMP_SLOT"]))
