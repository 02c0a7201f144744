"""Secret: a few bytes that nobody sees by accident, for Python authors.

It alone says what can be done with a secret: how it comes to be, when its bytes can be read, and all the ways in which
Python would like to show or copy it and must not. Where the bytes lie is `cells.py`'s and `slab.py`'s.

The bytes can be read inside `with secret.reveal() as view:` and nowhere else. A view that is kept makes leaving that
block raise BufferError, and keeps the memory mapped, and the secret's slab open, until it is gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, NoReturn

from secretfs import inheritance, libc, secretio, turns
from secretfs.errors import BoundsError, ClosedError
from secretfs.interface import Backend, Guarantees, Region
from secretfs.kinds import kind_of
from secretfs.reveal import Reveal, shut
from secretfs.slab import CANARY, Cell, map_region

__all__ = ["Secret"]


class Secret:
    """`length` bytes of secret memory, all zero at first; wiped when closed, collected, or at interpreter exit.

    Example:
        >>> from secretfs import Secret
        >>> with Secret.random(32, backend="emulator") as key:
        ...     with key.reveal() as view:
        ...         n = len(view)
        ...     key
        <Secret 32 bytes, emulator>

    Threads may share one. A forked child has none of its parent's: every use raises ClosedError, a ValueError.
    """

    __slots__ = ("__weakref__", "_cell", "_inherit", "_kind", "_length")
    _cell: Cell | None

    def __init__(
        self,
        length: int,
        *,
        backend: str | Backend | None = None,
        alone: bool = False,
        mode: str = "exclusive",
        at_rest: bool | None = None,
        inherit: bool = False,
    ) -> None:
        """Make one of zeros.

        Args:
            length: bytes, at least one. Up to 2048 bytes it shares a slab of 16 KiB with others of its size class.
            backend: a backend word ("auto", "kernel", "emulator", a name), or a backend; None asks SECRETFS_BACKEND.
            alone: give it pages of its own: revealing it opens no neighbour, nor the reverse.
            mode: "exclusive", or "uncached": its cache lines are flushed when a window closes. No kernel offers memory
                that is not cached; `guarantees.cache_flushed` tells whether this machine can at least do that.
            at_rest: keep it enciphered while it is not revealed (needs libsodium); None: on the emulator, if possible.
                A signal handler that interrupts the enciphering of any gets SecretFSError when it reveals one.
            inherit: let forked children (os.fork, multiprocessing) have a copy of their own, made at the fork; it is
                alone. Each fork then costs as much as making such a secret.

        Raises:
            BoundsError: `length` is not positive.
            UsageError: there is no such mode.
            BackendUnavailable: no backend works under that word, or libsodium is missing.
            LimitError: RLIMIT_MEMLOCK or a memory cgroup does not allow it; nothing is left behind.
        """
        self._kind = kind = kind_of(backend, mode, at_rest)
        self._cell = kind.heap.allocate(length, alone=alone or inherit)
        self._length = length
        self._inherit = inherit
        if inherit:
            inheritance.add(self)

    # How one comes to be

    @classmethod
    def random(cls, length: int, **kind: Any) -> Secret:
        """`length` random bytes, which the kernel writes straight into secret memory (getrandom(2))."""
        secret = cls(length, **kind)
        with secret.pointer(write=True) as address:
            libc.fill_random(address, length)
        return secret

    @classmethod
    def from_bytes(cls, data: Any, *, wipe: bool = True, **kind: Any) -> Secret:
        """A copy of `data`, a bytearray or another writable buffer, which is wiped.

        Immutable bytes cannot be wiped, so their copy stays in ordinary memory until Python happens to use it again:
        they are refused, unless `wipe=False` says that this is known.

        Raises:
            TypeError: `data` is read-only, or no buffer.
            BoundsError: it is empty.
        """
        with secretio.source(data, wipe=wipe) as view:
            secret = cls(len(view), **kind)
            with secret.reveal(write=True) as target:
                target[:] = view
        return secret

    @classmethod
    def from_hex(cls, text: Any, *, wipe: bool = True, **kind: Any) -> Secret:
        """What hexadecimal digits stand for (white space between bytes is skipped); `text` as for from_bytes().

        The digits are decoded straight into secret memory, one by one and not in constant time.

        Raises:
            ValueError: there is something else than digits, or half a byte; it does not say what.
        """
        return cls._decoded(text, secretio.hex_length, secretio.decode_hex, wipe=wipe, kind=kind)

    @classmethod
    def from_base64(cls, text: Any, *, wipe: bool = True, **kind: Any) -> Secret:
        """What base64 stands for, with the alphabet of RFC 4648 §4 or §5; white space is skipped, `=` may be missing.

        Raises:
            ValueError: as for from_hex().
        """
        return cls._decoded(text, secretio.base64_length, secretio.decode_base64, wipe=wipe, kind=kind)

    @classmethod
    def _decoded(cls, text: Any, measure: Any, decode: Any, *, wipe: bool, kind: dict[str, Any]) -> Secret:
        with secretio.source(text, wipe=wipe) as view:
            secret = cls(measure(view), **kind)
            with secret.reveal(write=True) as target:
                complaint = decode(view, target)
        if complaint:  # raised here: a traceback with the decoder in it would hold a digit
            secret.close()
            raise ValueError(complaint)
        return secret

    @classmethod
    def read(cls, file: Any, *, strip_newline: bool = False, **kind: Any) -> Secret:
        """All that a file holds.

        Args:
            file: a path, or a descriptor that is read to its end (a pipe, a socket, standard input).
            strip_newline: leave out one newline at the end.
            **kind: as for Secret().

        The kernel copies straight into secret memory. Where it will not (a file in a secretfs mount: EFAULT), the bytes
        pass through a locked window that is wiped.

        Raises:
            OSError: it cannot be read.
            ValueError: it is empty.
        """

        def make(length: int) -> Secret:
            return cls(length, **kind)

        with secretio.opened(file) as fd:
            secret = secretio.read_all(make, fd)
        return secretio.without_newline(secret, make) if strip_newline else secret

    @classmethod
    def prompt(cls, message: str = "Passphrase: ", **kind: Any) -> Secret:
        """What a person types on the terminal, not shown, without the newline. It never becomes a str.

        The terminal's driver in the kernel holds a line until it is read; at most 4095 bytes (termios(3)).

        Raises:
            OSError: there is no terminal; `Secret.read(0)` reads standard input.
            ValueError: nothing was typed.
        """

        def make(length: int) -> Secret:
            return cls(length, **kind)

        return secretio.without_newline(secretio.ask(message, make), make)

    @classmethod
    async def read_async(cls, file: Any, **options: Any) -> Secret:
        """read() in a worker thread of trio's, for what is large or slow."""
        return await secretio.in_thread(lambda: cls.read(file, **options))

    @classmethod
    async def prompt_async(cls, message: str = "Passphrase: ", **kind: Any) -> Secret:
        """prompt() in a worker thread of trio's. It cannot be cancelled: the thread waits for a line."""
        return await secretio.in_thread(lambda: cls.prompt(message, **kind))

    @classmethod
    def concat(cls, *parts: Secret, **kind: Any) -> Secret:
        """All parts in a row."""
        whole = cls(sum(map(len, parts)), **kind)
        with whole.reveal(write=True) as target:
            at = 0
            for part in parts:
                with part.reveal() as view:
                    target[at : at + len(view)] = view
                    at += len(view)
        return whole

    # Using it

    def reveal(self, *, write: bool = False) -> Reveal:
        """A window: a context manager that gives a memoryview of the bytes, valid only inside its block.

        Read-only, unless `write`. Windows may be nested and in several threads. The view can be handed to hashlib,
        hmac.digest, cryptography, socket.send and whatever else takes a buffer; what those copy for themselves is
        theirs (docs/python.md lists it).

        Raises:
            ClosedError: on entering, after close() or in a forked child.
            BufferError: on leaving, if a slice, a memoryview or a foreign export of it is still in use. The memory
                stays mapped and open until that is gone.
        """
        return Reveal(self, write)

    @contextmanager
    def pointer(self, *, write: bool = False) -> Iterator[int]:
        """Like reveal(), but gives the address, for C code through ctypes or cffi. It means nothing after the block."""
        cell = self.open_window(write)
        try:
            yield cell.address
        finally:
            shut(cell, write)

    def open_window(self, write: bool) -> Cell:
        """For reveal() and pointer(): open a window, and say where.

        Raises:
            ClosedError: after close(), or in a forked child.
        """
        try:
            with turns.lock:
                cell = self._cell
                if cell is None:
                    raise ClosedError("this secret was closed")
                cell.open(write)
        finally:
            if turns.late:
                turns.catch_up()
        return cell

    def compare(self, other: Secret) -> bool:
        """Whether both hold the same bytes, in a time that depends on their lengths only (hmac.compare_digest)."""
        if not isinstance(other, Secret):
            raise TypeError("a Secret can only be compared with a Secret: make one with Secret.from_bytes()")
        import hmac  # at first use: it brings OpenSSL along

        with self.reveal() as mine, other.reveal() as theirs:
            return hmac.compare_digest(mine, theirs)

    def write_to(self, file: Any) -> int:
        """Write all bytes to a descriptor, or an object with fileno(), with no copy in Python; returns how many.

        Where the kernel will not take them from secret memory (a file opened with O_DIRECT or in a secretfs mount:
        EFAULT), they pass through a locked window that is wiped.
        """
        fd = file if isinstance(file, int) else file.fileno()
        with self.reveal() as view:
            return secretio.write_all(fd, view)

    def split(self, *at: int) -> tuple[Secret, ...]:
        """New secrets: the pieces between these positions. `key.split(32)` are the first 32 bytes and the others."""
        ends = [*at, self._length]
        starts = [0, *at]
        if starts != sorted(starts) or ends[-2:] != sorted(ends[-2:]):
            raise BoundsError(f"{self._length} bytes cannot be split at {', '.join(map(str, at))}")
        return tuple(self[start:end] for start, end in zip(starts, ends, strict=True))

    def __getitem__(self, part: slice) -> Secret:
        """A new secret with the bytes of a slice. A single byte would be an int, which Python keeps: TypeError."""
        if not isinstance(part, slice):
            raise TypeError("a Secret has no items; slice it, or reveal() it")
        start, stop, step = part.indices(self._length)
        if step != 1 or stop <= start:
            raise BoundsError("a slice of a Secret has step 1 and at least one byte")
        piece = self._like(stop - start)
        with self.reveal() as view, piece.reveal(write=True) as target:
            target[:] = view[start:stop]
        return piece

    def _like(self, length: int) -> Secret:
        kind = self._kind
        return type(self)(length, backend=kind.backend, mode=kind.mode, at_rest=kind.at_rest)

    # Its end

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._cell is None

    def close(self) -> None:
        """Wipe it and give its place back. Twice is fine; in a forked child it does nothing.

        Raises:
            BufferError: it is revealed; it is wiped already, and its place is given back with the last view of it.
        """
        revealed = False
        try:
            with turns.lock:
                cell = self._cell
                if cell is not None:
                    try:
                        revealed = self._kind.heap.free(cell)
                    except OSError:  # its pages could not be opened, or closed: it may be tried again
                        raise
                    except BaseException:
                        self._cell = None
                        raise
                    self._cell = None
        finally:
            if turns.late:
                turns.catch_up()
        if revealed:
            raise BufferError("a closed secret is still revealed; it is wiped, and goes with the last view")

    def __enter__(self) -> Secret:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        cell = getattr(self, "_cell", None)  # None also where __init__ failed
        if cell is not None:
            self._cell = None  # also where somebody calls this by name
            turns.later(self._kind.heap.free, cell)

    # What may be known of it

    @property
    def guarantees(self) -> Guarantees:
        """What holds for its memory."""
        held = self._kind.guarantees
        return replace(held, unforkable=False) if self._inherit else held

    @property
    def backend(self) -> str:
        """The name of its backend."""
        return self._kind.backend.name

    @property
    def mode(self) -> str:
        """ "exclusive" or "uncached"."""
        return self._kind.mode

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        if not hasattr(self, "_cell"):  # in the traceback of an __init__ that failed
            return "<Secret that was not made>"
        state = ", closed" if self.closed else ""
        return f"<Secret {self._length} bytes, {self.backend}{state}>"

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return repr(self)

    # What must not be

    def __eq__(self, other: object) -> bool:
        return self.compare(other)  # type: ignore[arg-type]  # TypeError for anything else

    def __hash__(self) -> int:
        raise TypeError("a Secret has no hash: it would tell something of the bytes")

    def __bool__(self) -> bool:
        raise TypeError("a Secret is neither true nor false; ask for len() or compare()")

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret cannot be iterated: each byte would become an int; reveal() it")

    def __contains__(self, part: object) -> NoReturn:
        raise TypeError("a Secret cannot be searched; reveal() it")

    def __bytes__(self) -> NoReturn:
        raise TypeError("a Secret does not become bytes, which cannot be wiped; reveal() it")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied")

    def copy_for_child(self) -> Region:
        """A region with these bytes at its end, which a forked child may adopt()."""
        region = map_region(self._kind.backend, self._length + CANARY)
        with self.reveal() as view, region.view() as target:
            target[-self._length :] = view
        return region

    def adopt(self, region: Region) -> None:
        """In a forked child: continue with what copy_for_child() has made."""
        kind = self._kind
        self._kind = kind_of(kind.backend, kind.mode, kind.at_rest)
        self._cell = self._kind.heap.adopt(region, self._length)
        with self.pointer():
            pass  # at whose end it is enciphered, if it is to be at rest
