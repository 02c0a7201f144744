"""What failing.py makes fail a call of: one operation on secret memory each, in a process of its own.

`attempt` carries it out before, so that caches are filled, then with a call that fails, and then once more. What it
prints is what is wrong, one line each.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import failing

import secretfs
import secretfs_emulator
import secretfs_kernel
from secretfs import Secret, SecretArea, area, heap, interface, kinds, libc, mapping, pages, registry, slab, window
from secretfs.cells import CellHeap
from secretfs.errors import ClosedError, SecretFSError

PAGE = libc.PAGE_SIZE
SIZE = 7 * PAGE
NEEDLE = b"needle-0123456789-of-a-secret"
BACKENDS = {"kernel": secretfs_kernel.Backend, "emulator": secretfs_emulator.Backend}

_refusals: list[str] = []

Operation = Callable[[Any], Iterator[None]]
"""A generator: what is prepared; then, after its `yield`, what may fail; and in the end what is given back."""


def descriptors() -> set[int]:
    """What is open."""
    return {int(name) for name in os.listdir("/proc/self/fd")} - {_listing()}


def _listing() -> int:
    fd = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    os.close(fd)
    return fd


def state() -> dict[str, Any]:
    """What must be as before: descriptors, locked bytes, mappings that are ours by their flags, registries."""
    gc.collect()
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
        text = file.read()
    found = []
    for part in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", text, flags=re.MULTILINE)[1:]:
        head, flags = part.splitlines()[0].split(None, 5), part.partition("VmFlags:")[2].split()
        name = head[5] if len(head) > 5 else ""
        if {"lo", "dd", "dc"} & set(flags) and "pf" not in flags and not name.startswith("["):
            first, _, last = head[0].partition("-")
            found.append((int(last, 16) - int(first, 16), head[1], name))
    return {
        "descriptors": descriptors(),
        "locked": libc.locked_bytes(),
        "mappings": sorted(found),
        "registries": [len(known.all()) for known in (area._areas, slab._slabs, mapping._regions)],
        "slabs": sum(len(kind.heap.slabs) for kind in kinds.all_kinds()),
        "cells": sum(_taken(kind.heap) for kind in kinds.all_kinds()),
    }


def _taken(of: CellHeap) -> int:
    """How many cells of a heap are in use."""
    whole = [each for each in of.slabs.values() if not each.slot]
    cut = [each for each in of.slabs.values() if each.slot]
    return sum(each.cells - len(each.free) for each in cut) + len(whole) - len(of._pool)


def attempt(name: str, backend: str) -> int:
    """Do it three times; say what is wrong."""
    operation: Operation = globals()[f"op_{name}"]
    chosen = BACKENDS[backend]()
    registry.named(backend)
    for _ in range(2):
        _complete(operation, chosen)
    before = state()
    first = _complete(operation, chosen, fails=True)
    if first is not None:
        _judge(first)
        traceback.clear_frames(first.__traceback__)
    del first
    if not interface._left:  # or the next region tries again
        _compare(before, "after it failed", loosely=True)
    second = _complete(operation, chosen)
    if second is not None:
        print(f"fails afterwards: {second!r}")
        traceback.clear_frames(second.__traceback__)
    del second
    _compare(before, "after the next one")
    return 0


def _complete(operation: Operation, backend: Any, *, fails: bool = False) -> BaseException | None:
    steps = operation(backend)
    next(steps)
    if fails:
        failing.begin()
    try:
        for _ in steps:
            break
    except BaseException as error:
        return error
    finally:
        if fails:
            failing.end()
        for _ in steps:
            print("an operation has two steps")
    return None


def _judge(error: BaseException) -> None:
    if not isinstance(error, (SecretFSError, OSError, MemoryError)):
        print(f"raises {type(error).__name__}: {error}")
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    shown = [*map(repr, chain), *traceback.format_exception(error), *(str(vars(each)) for each in chain)]
    if any(needle in text for text in shown for needle in (NEEDLE.decode(), NEEDLE.hex(), NEEDLE[:8].decode())):
        print("the secret is in the exception")
    print(f"raised {type(error).__name__}")


def _compare(before: dict[str, Any], when: str, *, loosely: bool = False) -> None:
    """`loosely`: less is fine, and pages that could not be closed are closed with the next window."""
    now = state()
    for name, value in before.items():
        if now[name] != value and not (loosely and _less(now[name], value)):
            print(f"{when}: {name} are {now[name]} and were {value}")


def _less(now: Any, before: Any) -> bool:
    if isinstance(now, list) and now and isinstance(now[0], tuple):
        return not Counter((each[0], each[2]) for each in now) - Counter((each[0], each[2]) for each in before)
    if isinstance(now, list):
        return all(map(_less, now, before))
    return bool(now <= before)


@contextlib.contextmanager
def closing(thing: Any) -> Iterator[Any]:
    """Close it at the end; what fails the first time must not the second time."""
    try:
        yield thing
    finally:
        failing.end()
        thing.close()


def check(thing: SecretArea | Secret, expected: bytes) -> None:
    """It holds that."""
    failing.end()
    if isinstance(thing, SecretArea):
        buffer = bytearray(len(expected))
        thing.read_into(buffer)
    else:
        with thing.reveal() as view:
            buffer = bytearray(view)
    if bytes(buffer) != expected:
        print(f"holds something else: {len(buffer)} bytes")


def op_chosen(backend: Any) -> Iterator[None]:
    """A backend that is looked at for the first time."""
    if not _refusals:
        registry._verdicts.clear()
    yield
    try:
        registry.choose(backend.name)
    except BaseException:
        _refusals.append(backend.name)  # and the next time is not the first
        raise


# Areas


def op_area(backend: Any) -> Iterator[None]:
    """An area."""
    yield
    with closing(SecretArea(SIZE, backend=backend)) as made:
        made.write(NEEDLE)
        check(made, NEEDLE)


def op_area_uncached(backend: Any) -> Iterator[None]:
    """An area whose cache lines are flushed."""
    yield
    with closing(SecretArea(SIZE, backend=backend, mode="uncached")) as made:
        made.write(NEEDLE)
        check(made, NEEDLE)


def op_area_closed(backend: Any) -> Iterator[None]:
    """The end of an area."""
    made = SecretArea(SIZE, backend=backend)
    made.write(NEEDLE)
    yield
    with closing(made):
        made.close()


def op_area_dropped(backend: Any) -> Iterator[None]:
    """The end of an area that nothing refers to."""
    made = SecretArea(SIZE, backend=backend)
    made.write(NEEDLE)
    yield
    del made


def op_area_resized(backend: Any) -> Iterator[None]:
    """An area that moves."""
    with closing(SecretArea(SIZE, backend=backend)) as made:
        made.write(NEEDLE)
        yield
        try:
            made.resize(3 * SIZE)
        finally:
            check(made, NEEDLE)
            if made.size not in (SIZE, 3 * SIZE):
                print(f"has {made.size} bytes")


def op_area_shared(backend: Any) -> Iterator[None]:
    """An area with a descriptor."""
    yield
    with closing(SecretArea.share(SIZE, backend=backend)) as made:
        made.write(NEEDLE)
        check(made, NEEDLE)


def op_area_shared_closed(backend: Any) -> Iterator[None]:
    """The end of such an area; whoever has its descriptor finds zeros."""
    with closing(SecretArea.share(SIZE, backend=backend)) as made:
        made.write(NEEDLE)
        other = SecretArea.attach(made.fileno(), backend=backend)
        yield
        try:
            made.close()
        finally:
            check(other, bytes(len(NEEDLE)))
            other.close()


def op_area_attached(backend: Any) -> Iterator[None]:
    """Such an area once more."""
    with closing(SecretArea.share(SIZE, backend=backend)) as made:
        made.write(NEEDLE)
        yield
        with closing(SecretArea.attach(made.fileno(), backend=backend)) as other:
            check(other, NEEDLE)
            other.write(NEEDLE[::-1])
        check(made, NEEDLE[::-1])


def op_mapping(backend: Any) -> Iterator[None]:
    """secretfs.mmap()."""
    yield
    view = secretfs.mmap(SIZE - 100, backend=backend)
    view[: len(NEEDLE)] = NEEDLE
    del view


def op_window(backend: Any) -> Iterator[None]:
    """A window for plaintext."""
    yield
    with closing(window.Window(SIZE)) as made, made.lend(len(NEEDLE)) as lent:
        lent[:] = NEEDLE


# Heaps


def op_heap(backend: Any) -> Iterator[None]:
    """A slot of a heap, in a slab of its own."""
    made = heap.Heap(backend)
    yield
    try:
        block = made.allocate(100)
        block.area.write(NEEDLE, block.offset)
        made.free(block)
    finally:
        failing.end()
        made.close()


def op_pages(backend: Any) -> Iterator[None]:
    """Pages of a pool, which gives them back."""
    pool = pages.PagePool(backend)
    yield
    try:
        runs = [pool.allocate(64), pool.allocate(64)]
        for run in runs:
            run.area.write(NEEDLE, run.offset)
        for run in runs:
            pool.trim(run, 0)
    finally:
        failing.end()
        pool.close()


# Secrets


def _made(make: Callable[[], Secret], expected: bytes | None = None) -> None:
    with closing(make()) as made:
        if expected is not None:
            check(made, expected)


def _first(make: Callable[..., Secret], length: int, **kind: Any) -> Iterator[None]:
    """The first of its kind: if it cannot be made, its heap has nothing."""
    kinds.release_kinds()
    yield
    try:
        try:
            made = make(length, **kind)
        except BaseException:
            if any(known.heap.slabs for known in kinds.all_kinds()):
                print("a slab is left of a secret that was not made")
            raise
        with closing(made):
            check(made, bytes(length))
    finally:
        failing.end()
        with contextlib.suppress(BufferError):
            kinds.release_kinds()


def op_secret(backend: Any) -> Iterator[None]:
    """A small secret, in a slab of its own."""
    yield from _first(Secret, 32, backend=backend, at_rest=False)


def op_secret_large(backend: Any) -> Iterator[None]:
    """One in pages of its own."""
    yield from _first(Secret, 5000, backend=backend, at_rest=False)


def op_secret_uncached(backend: Any) -> Iterator[None]:
    """One whose cache lines are flushed."""
    yield from _first(Secret, 32, backend=backend, at_rest=False, mode="uncached", alone=True)


def op_secret_at_rest(backend: Any) -> Iterator[None]:
    """One that is enciphered while nobody looks."""
    yield from _first(Secret, 32, backend=backend, at_rest=True)


def op_secret_at_rest_from_bytes(backend: Any) -> Iterator[None]:
    """The same, with something in it."""
    data = bytearray(NEEDLE)
    yield
    _made(lambda: Secret.from_bytes(data, backend=backend, at_rest=True), NEEDLE)


def op_secret_closed(backend: Any) -> Iterator[None]:
    """The end of one; a second try must do it."""
    secret = Secret.from_bytes(bytearray(NEEDLE), backend=backend, at_rest=False)
    yield
    with closing(secret):
        secret.close()


def op_secret_alone_closed(backend: Any) -> Iterator[None]:
    """The end of one that is too large to be kept for others."""
    secret = Secret(1 << 17, backend=backend, at_rest=False)
    yield
    with closing(secret):
        secret.close()


def op_secret_random(backend: Any) -> Iterator[None]:
    """Random bytes."""
    yield
    _made(lambda: Secret.random(100, backend=backend, at_rest=False))


def op_secret_from_bytes(backend: Any) -> Iterator[None]:
    """A copy, whose source is wiped in any case."""
    data = bytearray(NEEDLE)
    yield
    try:
        _made(lambda: Secret.from_bytes(data, backend=backend, alone=True, at_rest=False), NEEDLE)
    finally:
        if any(data):
            print("the source is not wiped")


def op_secret_from_hex(backend: Any) -> Iterator[None]:
    """Digits."""
    data = bytearray(NEEDLE.hex().encode())
    yield
    try:
        _made(lambda: Secret.from_hex(data, backend=backend, alone=True, at_rest=False), NEEDLE)
    finally:
        if any(data):
            print("the source is not wiped")


def op_secret_read(backend: Any) -> Iterator[None]:
    """What a file holds."""
    fd = os.memfd_create("source")
    os.write(fd, NEEDLE)
    path = f"/proc/self/fd/{fd}"
    yield
    try:
        _made(lambda: Secret.read(path, backend=backend, at_rest=False), NEEDLE)
    finally:
        os.close(fd)


def op_secret_read_pipe(backend: Any) -> Iterator[None]:
    """What comes through a pipe, which is longer than was thought."""
    reader, writer = os.pipe()
    os.write(writer, NEEDLE * 100 + b"\n")
    os.close(writer)
    yield
    try:
        _made(lambda: Secret.read(reader, strip_newline=True, backend=backend, at_rest=False), NEEDLE * 100)
    finally:
        os.close(reader)


def op_secret_parts(backend: Any) -> Iterator[None]:
    """Slices, put together again."""
    with closing(Secret.from_bytes(bytearray(NEEDLE), backend=backend, at_rest=False)) as whole:
        yield
        first, second = whole.split(5)
        with closing(Secret.concat(first, second, backend=backend, at_rest=False)) as again:
            check(again, NEEDLE)
        first.close()
        second.close()
        check(whole, NEEDLE)


def op_secret_revealed(backend: Any) -> Iterator[None]:
    """A window; afterwards the secret is out of reach."""
    with closing(Secret.from_bytes(bytearray(NEEDLE), backend=backend, at_rest=False)) as secret:
        yield
        try:
            with secret.reveal(write=True) as view:
                view[:] = NEEDLE
        finally:
            check(secret, NEEDLE)
            if secret._cell is not None and secret._cell.slab._region._access:
                print("the pages are open")


def op_secret_revealed_at_rest(backend: Any) -> Iterator[None]:
    """The same of one that is enciphered."""
    with closing(Secret.from_bytes(bytearray(NEEDLE), backend=backend, at_rest=True)) as secret:
        yield
        try:
            with secret.reveal(write=True) as view:
                view[:] = NEEDLE
        finally:
            check(secret, NEEDLE)


def op_secret_inherited(backend: Any) -> Iterator[None]:
    """A fork that gives a child its copy."""
    reader, writer = os.pipe()
    with closing(Secret.from_bytes(bytearray(NEEDLE), backend=backend, inherit=True, at_rest=False)) as secret:
        yield
        try:
            pid = os.fork()
            if pid == 0:
                failing.end()
                os.close(writer)
                os.read(reader, 1)  # until its parent has tried again what has failed
                os._exit(_holds_something_else(secret))
            failing.end()
            SecretArea(PAGE, backend=backend).close()
            os.close(writer)
            if os.waitpid(pid, 0)[1] != 0:
                print("the child has something else")
        except OSError:
            os.close(writer)
            raise
        finally:
            os.close(reader)
            check(secret, NEEDLE)
            if secretfs.turns.lock._is_owned():
                print("the lock is still held")


def _holds_something_else(secret: Secret) -> bool:
    """In a child, which may not have it."""
    try:
        with secret.reveal() as view:
            return view != NEEDLE
    except ClosedError:
        return False
