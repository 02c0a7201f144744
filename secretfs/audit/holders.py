"""What a victim holds: the same needle in each kind of memory, behind one interface.

A holder is made in the victim's own process. Its constructor allocates and plants; what a kind of memory has no notion
of (an object in front of it, a view) raises NotTriedError.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import subprocess
import warnings
from typing import Any, Protocol

from secretfs import libc, registry
from secretfs.area import SecretArea
from secretfs.audit import calls
from secretfs.audit.model import NotTriedError
from secretfs.audit.needle import LENGTH, Needle
from secretfs.secret import Secret

__all__ = ["HOLDERS", "File", "Holder"]

SIZE = libc.PAGE_SIZE
_PAGES = 16
_NEAR = 2 * SIZE
"""Bytes between two areas side by side: two guard pages."""
_ROW = 8


class Holder(Protocol):
    """Memory with a needle in it."""

    needle: Needle
    address: int
    """0 where nobody tells."""
    claims: dict[str, bool]
    """What is promised of this memory, by the names of Guarantees."""

    def neighbours(self) -> tuple[int, int]:
        """The end of an object that lies, or might lie, in front of a needle, and the start of one behind."""

    def view(self) -> Any:
        """A view of the memory, to be kept after release()."""

    def another(self) -> int:
        """The address of the needle in more memory of the same kind, lower if possible."""

    def release(self) -> None:
        """Give the memory back, as its user would."""


class Ordinary:
    """Ordinary memory, as careless as a program may be: the control of every attack.

    A memfd whose descriptor stays open and survives exec, a piece of the heap, a pipe, a file, a child that is given
    the secret in an argument and in the environment, and a line on stderr.
    """

    def __init__(self, needle: Needle, path: str) -> None:
        self.needle = needle
        self.claims: dict[str, bool] = {}
        self._fd = os.memfd_create("ordinary", 0)  # inherited by programs that are executed
        os.ftruncate(self._fd, SIZE)
        self._mapped = libc.mmap_shared(self._fd, SIZE)
        self.address = self._mapped + SIZE // 4
        heap = ctypes.CDLL(None)
        heap.malloc.restype, heap.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
        self._free, self._piece = heap.free, int(heap.malloc(SIZE // 2))
        self._wall = heap.malloc(SIZE)  # so that free() cannot give the piece back to the kernel
        for address in (self.address, self.heap_address):
            needle.uncover_into(_at(address))
        _write_file(path, needle)
        self._tell()

    @property
    def heap_address(self) -> int:
        """Where the needle is in the heap: past what free(3) writes to the beginning of a piece."""
        return self._piece + SIZE // 4

    def _tell(self) -> None:
        self._pipe = os.pipe()
        calls.write_address(self._pipe[1], self.address, LENGTH)
        calls.write_address(2, self.address, LENGTH)
        text = bytes(_at(self.address)).decode()
        self.child = subprocess.Popen(["cat", "-", text], stdin=subprocess.PIPE, env={**os.environ, "SECRET": text})

    def neighbours(self) -> tuple[int, int]:
        return self.address - LENGTH, self.address + 2 * LENGTH

    def view(self) -> Any:
        return _at(self.heap_address)

    def another(self) -> int:
        room = 1 << 20
        address = libc.mmap_anonymous(room + SIZE)
        libc.munmap(address, room)
        self.needle.uncover_into(_at(address + room))
        return address + room

    def release(self) -> None:
        libc.munmap(self._mapped, SIZE)
        os.close(self._fd)
        self._free(self._piece)
        self.address = self.heap_address


class Area:
    """A SecretArea on one backend, with the needle in each of its pages: what is freed is soon used again."""

    def __init__(self, needle: Needle, backend: str) -> None:
        self.needle = needle
        self._area = self._planted(backend)
        self._others: list[SecretArea] = []
        self.address = self._area.address
        self.claims = self._area.guarantees.as_dict()

    def _planted(self, backend: str) -> SecretArea:
        area = SecretArea(_PAGES * SIZE, backend=backend)
        with area.view() as view:
            for page in range(_PAGES):
                self.needle.uncover_into(view[page * SIZE :])
        return area

    def neighbours(self) -> tuple[int, int]:
        """Of two areas that lie as near to each other as areas do: each is the other's object in front or behind."""
        while True:
            row = sorted((area.address, area.address + area.size) for area in (self._area, *self._others))
            for (_, end), (start, _) in itertools.pairwise(row):
                if start - end <= _NEAR:
                    return end, start
            if len(row) > _ROW:
                raise NotTriedError("no two areas lie side by side")
            self._others.append(self._planted(self._area.backend))

    def view(self) -> Any:
        return self._area.view()

    def another(self) -> int:
        self._others.append(self._planted(self._area.backend))
        return self._others[-1].address

    def release(self) -> None:
        for area in (self._area, *self._others):
            with contextlib.suppress(BufferError):  # a view is in use: wiped all the same
                area.close()


class Emulated(Area):
    """The emulator's memory."""

    def __init__(self, needle: Needle, path: str) -> None:
        super().__init__(needle, "emulator")


class Kernel(Area):
    """The kernel's secret memory."""

    def __init__(self, needle: Needle, path: str) -> None:
        super().__init__(needle, "kernel")


class ClosedSecret:
    """A Secret at rest."""

    def __init__(self, needle: Needle, path: str) -> None:
        self.needle = needle
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", registry.ReducedGuaranteesWarning)
            self._front, self._secret = Secret(LENGTH), Secret(LENGTH)
        with self._secret.reveal(write=True) as view:
            needle.uncover_into(view)
        with self._secret.pointer() as address:
            self.address = address
        self.claims = self._secret.guarantees.as_dict()

    def neighbours(self) -> tuple[int, int]:
        return self.address - LENGTH, self.address + 2 * LENGTH  # in the slab, with canaries between

    def view(self) -> Any:
        kept = None
        with contextlib.suppress(BufferError), self._secret.reveal() as view:  # it says so when a part is kept
            kept = view[:LENGTH]
        return kept

    def another(self) -> int:
        raise NotTriedError("no stack can be put right below it")

    def release(self) -> None:
        with contextlib.suppress(BufferError):
            self._secret.close()


class OpenSecret(ClosedSecret):
    """A Secret in use: its window is open."""

    def __init__(self, needle: Needle, path: str) -> None:
        super().__init__(needle, path)
        self._window = self._secret.reveal()
        self._window.__enter__()

    def release(self) -> None:
        self._window.__exit__(None, None, None)
        super().release()


class Preloaded:
    """An Ed25519 key of OpenSSL's, in a program that was started by `secretfs preload`."""

    def __init__(self, needle: Needle, path: str) -> None:
        self.needle = needle
        self._crypto = _libcrypto()
        page = libc.mmap_anonymous(SIZE)
        needle.uncover_into(_at(page))
        ed25519 = 1087
        self._key = self._crypto.EVP_PKEY_new_raw_private_key(ed25519, None, page, LENGTH)
        libc.wipe(page, LENGTH)
        libc.munmap(page, SIZE)
        if not self._key:
            raise NotTriedError("libcrypto makes no Ed25519 key")
        self.address = self._find()
        self.claims = self._promised()

    def _find(self) -> int:
        """Where OpenSSL keeps it: the one place in this process that has it."""
        from secretfs.audit.spaces import mappings

        for one in mappings(os.getpid()):
            if one.rights.startswith("rw") and one.size <= 1 << 26:
                found = _search(one.start, one.size, self.needle)
                if found:
                    return found
        raise NotTriedError("the key was not found in the memory of its own process")

    @staticmethod
    def _promised() -> dict[str, bool]:
        claims = registry.choose().backend.guarantees.as_dict()
        # A program's copies are not the library's, and a forked child gets a copy of its own.
        return {**claims, "no_residue": False, "unforkable": False}

    def neighbours(self) -> tuple[int, int]:
        raise NotTriedError("what lies beside a key in OpenSSL's heap is chance")

    def view(self) -> Any:
        raise NotTriedError("OpenSSL hands out no view")

    def another(self) -> int:
        raise NotTriedError("no stack can be put right below it")

    def release(self) -> None:
        self._crypto.EVP_PKEY_free(self._key)


class File:
    """A client of a mount: it has written the needle to a file there, and wiped its own copy."""

    def __init__(self, needle: Needle, path: str) -> None:
        self.needle = needle
        self.address = 0
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.write()
        root = os.path.dirname(path)
        self.pid = int(os.getxattr(root, "user.secretfs.pid"))
        self.claims = dict(json.loads(os.getxattr(root, "user.secretfs.status"))["guarantees"])

    def write(self) -> None:
        """Write the needle, once more, to the open file."""
        _write_needle(self._fd, self.needle)

    def neighbours(self) -> tuple[int, int]:
        raise NotTriedError("the daemon runs no code of the audit's")

    def view(self) -> Any:
        raise NotTriedError("the daemon runs no code of the audit's")

    def another(self) -> int:
        raise NotTriedError("the daemon runs no code of the audit's")

    def release(self) -> None:
        os.close(self._fd)
        os.unlink(self._path)


class Emulation:
    """memfd_secret(2) as a program calls it by itself, under `secretfs run --emulate`."""

    def __init__(self, needle: Needle, path: str) -> None:
        self.needle = needle
        fd = libc.memfd_secret(os.O_CLOEXEC)
        os.ftruncate(fd, SIZE)
        self.address = libc.mmap_shared(fd, SIZE)
        os.close(fd)
        needle.uncover_into(_at(self.address))
        self.claims: dict[str, bool] = {}  # it looks like secret memory to the program, and is not

    def neighbours(self) -> tuple[int, int]:
        raise NotTriedError("what lies beside a mapping is chance")

    def view(self) -> Any:
        raise NotTriedError("a raw mapping is an address, without views")

    def another(self) -> int:
        raise NotTriedError("no stack can be put right below it")

    def release(self) -> None:
        libc.wipe(self.address, LENGTH)
        libc.munmap(self.address, SIZE)


def _write_file(path: str, needle: Needle) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_needle(fd, needle)
    finally:
        os.close(fd)


def _write_needle(fd: int, needle: Needle) -> None:
    """Write it to the beginning of a file, from memory that is wiped."""
    page = libc.mmap_anonymous(SIZE)
    try:
        needle.uncover_into(_at(page))
        os.lseek(fd, 0, os.SEEK_SET)
        calls.write_address(fd, page, LENGTH)
    finally:
        libc.wipe(page, LENGTH)
        libc.munmap(page, SIZE)


def _at(address: int) -> memoryview:
    return memoryview((ctypes.c_char * LENGTH).from_address(address)).cast("B")


def _libcrypto() -> Any:
    try:
        library = ctypes.CDLL("libcrypto.so.3")
    except OSError as error:
        raise NotTriedError("there is no libcrypto.so.3") from error
    library.EVP_PKEY_new_raw_private_key.restype = ctypes.c_void_p
    library.EVP_PKEY_new_raw_private_key.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 2, ctypes.c_size_t)
    library.EVP_PKEY_free.argtypes = (ctypes.c_void_p,)
    library.EVP_PKEY_free.restype = None
    return library


def _search(start: int, size: int, needle: Needle) -> int:
    """The address of a needle in this process's own memory, compared masked; 0 if it is not there."""
    table = bytes(value ^ needle.key for value in range(256))
    buffer = bytearray(size)
    exported = (ctypes.c_char * size).from_buffer(buffer)
    reader, writer = os.pipe()
    try:
        calls.write_address(writer, start, 1)  # what cannot be read is EFAULT here
    except OSError:
        return 0
    finally:
        os.close(reader)
        os.close(writer)
    ctypes.memmove(exported, start, size)
    masked = buffer.translate(table)
    ctypes.memset(exported, 0, size)
    at = masked.find(needle.masked)
    masked[:] = bytes(size)  # of a masked needle that lay there it would be the needle
    return start + at if at >= 0 else 0


HOLDERS: dict[str, Any] = {
    "ordinary": Ordinary,
    "emulator": Emulated,
    "kernel": Kernel,
    "secret-open": OpenSecret,
    "secret-closed": ClosedSecret,
    "mount": File,
    "preload": Preloaded,
    "run": Emulation,
}
