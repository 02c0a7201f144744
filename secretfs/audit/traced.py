"""Attacks by the kernel's own tracing: probes that read memory in the victim's context, where no page is pinned."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import tempfile
from collections.abc import Iterator

from secretfs import libc
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH
from secretfs.audit.subjects import Target
from secretfs.audit.symbols import find
from secretfs.audit.undo import Undo
from secretfs.audit.victim import CALLED

__all__ = ["bpf_probe_read_user", "uprobe"]

_ARGUMENT = {"x86_64": "%di", "aarch64": "%x0"}
_PLACES = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


def uprobe(target: Target) -> bool:
    """Put a probe on a function of the C library, and let the trace show what its argument points to."""
    register = _ARGUMENT.get(calls.MACHINE)
    if register is None:
        raise NotTriedError(f"this attack does not know the registers of {calls.MACHINE}")
    symbol = find(CALLED)
    words = " ".join(f"a{at}=+{at}({register}):x64" for at in range(0, LENGTH, 8))
    with Undo() as undo, _tracefs(undo) as tracing, _event(undo, tracing, f"{symbol.path}:{symbol.offset:#x} {words}"):
        instance = f"{tracing}/instances/{_group()}"
        with _instance(undo, instance):
            _append(f"{instance}/set_event_pid", str(target.pid))
            _append(f"{instance}/events/{_group()}/enable", "1")
            target.ask({"use": 1})
            return _in_trace(target, f"{instance}/trace")


def _group() -> str:
    return f"secretfs_audit_{os.getpid()}"


@contextlib.contextmanager
def _event(undo: Undo, tracing: str, text: str) -> Iterator[None]:
    name = f"{_group()}/needle"
    events = f"{tracing}/uprobe_events"
    with undo.unless_done("write", events, f"-:{name}"):
        _append(events, f"p:{name} {text}")
        try:
            yield
        finally:
            _append(events, f"-:{name}")


@contextlib.contextmanager
def _instance(undo: Undo, path: str) -> Iterator[None]:
    with undo.unless_done("rmdir", path):
        os.mkdir(path)
        try:
            yield
        finally:
            _append(f"{path}/events/{_group()}/enable", "0")
            os.rmdir(path)


@contextlib.contextmanager
def _tracefs(undo: Undo) -> Iterator[str]:
    """Where tracefs is; mounted for the moment where it is not."""
    for place in _PLACES:
        if os.path.exists(f"{place}/uprobe_events"):
            yield place
            return
    if _is_locked_down():
        raise NotTriedError("tracefs is not mounted, and lockdown would leave it empty")
    folder = tempfile.mkdtemp(prefix="secretfs-audit-")
    with undo.unless_done("rmdir", folder), undo.unless_done("umount-system", folder):
        try:
            libc.mount("tracefs", folder, "tracefs", 0, "")
        except OSError as error:
            os.rmdir(folder)
            raise NotTriedError(f"tracefs cannot be mounted: {error.strerror}") from error
        try:
            if not os.path.exists(f"{folder}/uprobe_events"):
                raise NotTriedError("this kernel has no uprobe events")
            yield folder
        finally:
            libc.umount(folder, libc.MNT_DETACH)
            os.rmdir(folder)


def _is_locked_down() -> bool:
    """Whether lockdown=confidentiality is in force, as far as root can tell: Linux 6.12 then crashes when an empty
    tracefs is unmounted.
    """
    try:
        os.close(os.open("/proc/kcore", os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _append(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _in_trace(target: Target, path: str) -> bool:
    with open(path, encoding="ascii", errors="replace") as trace:
        for line in trace:
            if "a0=0x" in line:
                words = [int(word.partition("=")[2], 16) for word in line.split() if word[0] == "a" and "=0x" in word]
                if target.needle.in_buffer(bytearray(struct.pack(f"<{len(words)}Q", *words))):
                    return True
    return False


# BPF. Raw bpf(2): one array map of one element, and a program of a dozen instructions.

_MAP_CREATE, _MAP_LOOKUP, _PROG_LOAD = 0, 1, 5
_ARRAY, _KPROBE = 2, 2
_SET_BPF, _ENABLE = 0x40042408, 0x2400
_HELPER_UPDATE, _HELPER_READ_USER = 2, 112
_FIRST_ARGUMENT = {"x86_64": 112, "aarch64": 0}
"""Where it is in the registers that a probe is given (struct pt_regs)."""


def bpf_probe_read_user(target: Target) -> bool:
    """Attach a BPF program to a function, which copies what its argument points to."""
    if calls.MACHINE not in _FIRST_ARGUMENT:
        raise NotTriedError(f"this attack does not know the registers of {calls.MACHINE}")
    with contextlib.ExitStack() as open_ones:
        try:
            store = _keep(open_ones, calls.bpf(_MAP_CREATE, _attributes("<IIII", _ARRAY, 4, LENGTH, 1)))
            program = _keep(open_ones, _load(store))
            probe = _keep(open_ones, _open_uprobe(target.pid))
            _ioctl(probe, _SET_BPF, program)
            _ioctl(probe, _ENABLE, 0)
        except OSError as error:
            raise NotTriedError(f"no BPF program can be attached here: {error.strerror}") from error
        target.ask({"use": 1})
        return _in_store(target, store)


def _keep(open_ones: contextlib.ExitStack, fd: int) -> int:
    open_ones.callback(os.close, fd)
    return fd


def _attributes(layout: str, *values: int) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack(layout, *values)
    return ctypes.create_string_buffer(packed, 120)


def _load(store: int) -> int:
    """Load the program.

    r3 = argument; zero LENGTH bytes of stack; bpf_probe_read_user(stack, LENGTH, r3); bpf_map_update_elem(store, 0, …)
    """
    argument = _FIRST_ARGUMENT[calls.MACHINE]
    at = -LENGTH - 8
    program = [
        _op(0x79, 3, 1, argument),  # r3 = *(u64 *)(r1 + argument)
        *(_op(0x7A, 10, 0, at + n) for n in range(0, LENGTH, 8)),  # *(u64 *)(r10 + …) = 0
        _op(0xBF, 1, 10),
        _op(0x07, 1, 0, 0, at),  # r1 = r10 + at
        _op(0xB7, 2, 0, 0, LENGTH),  # r2 = LENGTH
        _op(0x85, 0, 0, 0, _HELPER_READ_USER),
        _op(0x62, 10, 0, at - 8, 0),  # the key, 0
        _op(0x18, 1, 1, 0, store),  # r1 = the map
        _op(0, 0, 0),
        _op(0xBF, 2, 10),
        _op(0x07, 2, 0, 0, at - 8),
        _op(0xBF, 3, 10),
        _op(0x07, 3, 0, 0, at),
        _op(0xB7, 4, 0, 0, 0),  # BPF_ANY
        _op(0x85, 0, 0, 0, _HELPER_UPDATE),
        _op(0xB7, 0, 0, 0, 0),
        _op(0x95, 0, 0),  # exit
    ]
    code = ctypes.create_string_buffer(b"".join(program))
    licence = ctypes.create_string_buffer(b"GPL")
    return calls.bpf(
        _PROG_LOAD,
        _attributes("<IIQQ", _KPROBE, len(program), ctypes.addressof(code), ctypes.addressof(licence)),
    )


def _op(code: int, to: int, source: int, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, source << 4 | to, offset, immediate)


def _open_uprobe(pid: int) -> int:
    """A perf event for the function in one process; it goes with its descriptor."""
    with open("/sys/bus/event_source/devices/uprobe/type", encoding="ascii") as file:
        kind = int(file.read())
    symbol = find(CALLED)
    path = ctypes.create_string_buffer(os.fsencode(symbol.path))
    attributes = ctypes.create_string_buffer(128)  # struct perf_event_attr
    struct.pack_into("<II", attributes, 0, kind, 128)
    struct.pack_into("<QQ", attributes, 56, ctypes.addressof(path), symbol.offset)
    return calls.perf_event_open(attributes, pid)


def _ioctl(fd: int, request: int, argument: int) -> None:
    import fcntl

    fcntl.ioctl(fd, request, argument)


def _in_store(target: Target, store: int) -> bool:
    key, value = ctypes.create_string_buffer(4), bytearray(LENGTH)
    exported = (ctypes.c_char * LENGTH).from_buffer(value)
    calls.bpf(_MAP_LOOKUP, _attributes("<IxxxxQQ", store, ctypes.addressof(key), ctypes.addressof(exported)))
    del exported
    return target.needle.in_buffer(value)
