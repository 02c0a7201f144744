"""secretfs.area: bounds, views, resizing, forks and endings of SecretArea."""

from __future__ import annotations

import copy
import ctypes
import errno
import gc
import os
import pickle
import subprocess
import sys

import pytest
from mounts import needs_secretmem

from secretfs import SecretArea, libc
from secretfs.errors import BoundsError, ClosedError, LimitError
from secretfs.interface import Access, Shareable
from secretfs.testing import FakeBackend, in_child
from secretfs.testing.memory import address_of, can_read

PAGE = libc.PAGE_SIZE
SECRET = b"planted-secret-0123456789"


@pytest.fixture
def area(backend):
    """An area of two pages on each backend."""
    with SecretArea(2 * PAGE, backend=backend) as area:
        yield area


def read(area: SecretArea, length: int, offset: int = 0) -> bytes:
    """Bytes of an area."""
    buffer = bytearray(length)
    assert area.read_into(buffer, offset) == length
    return bytes(buffer)


def test_size_is_whole_pages(backend) -> None:
    """One byte takes a page, and so on."""
    for size, expected in ((1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)):
        with SecretArea(size, backend=backend) as area:
            assert (area.size, len(area)) == (expected, expected)


@pytest.mark.parametrize("size", [0, -1])
def test_size_must_be_positive(fake, size) -> None:
    """There is no area of nothing, neither made nor resized to."""
    with pytest.raises(ValueError, match=str(size)):
        SecretArea(size, backend=fake)
    with SecretArea(1, backend=fake) as area, pytest.raises(ValueError, match=str(size)):
        area.resize(size)


def test_bytes_come_back(area) -> None:
    """What is written at an offset is read from there, and the rest is zeros."""
    assert area.write(SECRET, offset=PAGE - 5) == len(SECRET)
    assert read(area, len(SECRET) + 2, PAGE - 6) == b"\0" + SECRET + b"\0"
    assert area.equals(SECRET, PAGE - 5)
    assert not area.equals(SECRET, PAGE - 4)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_can_be_written(area, kind) -> None:
    """bytes, bytearray and memoryview are taken."""
    area.write(kind(SECRET))
    assert read(area, len(SECRET)) == SECRET


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (2 * PAGE, 1), (2 * PAGE - 1, 2), (0, 2 * PAGE + 1), (1 << 70, 1)]
)
def test_range_must_lie_inside(area, offset, length) -> None:
    """A range that is not inside is BoundsError for each operation, and nothing changes."""
    area.write(SECRET)
    with pytest.raises(BoundsError):
        area.write(b"y" * length, offset)
    with pytest.raises(BoundsError):
        area.read_into(bytearray(length), offset)
    with pytest.raises(BoundsError):
        area.wipe(offset, length)
    with pytest.raises(BoundsError):
        area.equals(b"y" * length, offset)
    with pytest.raises(BoundsError):
        area.copy_within(offset, area, 0, length)
    with pytest.raises(BoundsError):
        area.copy_within(0, area, offset, length)
    assert read(area, len(SECRET)) == SECRET


def test_negative_length_is_refused(area) -> None:
    """wipe() with a negative length is BoundsError and wipes nothing."""
    area.write(SECRET)
    with pytest.raises(BoundsError):
        area.wipe(10, -5)
    assert read(area, len(SECRET)) == SECRET


def test_empty_ranges_are_fine(area) -> None:
    """Nothing at the very end is inside."""
    assert area.write(b"", 2 * PAGE) == 0
    assert area.read_into(bytearray(), 2 * PAGE) == 0


def test_copy_within_copies(area, backend) -> None:
    """copy_within() moves bytes from one area to another."""
    area.write(SECRET, 7)
    with SecretArea(PAGE, backend=backend) as other:
        area.copy_within(7, other, 100, len(SECRET))
        assert read(other, len(SECRET) + 1, 100) == SECRET + b"\0"


def test_wipe_zeroes(area) -> None:
    """wipe() without a range zeroes all, with one just that."""
    area.write(b"x" * 2 * PAGE)
    area.wipe(10, 20)
    assert read(area, 40) == b"x" * 10 + bytes(20) + b"x" * 10
    area.wipe()
    assert read(area, 2 * PAGE) == bytes(2 * PAGE)


@pytest.mark.parametrize("size", [1, PAGE, 5 * PAGE])
def test_resize_keeps_what_fits(area, size) -> None:
    """After resize() the bytes that fit are there, the rest is zeros."""
    area.write(b"x" * 2 * PAGE)
    area.resize(size)
    kept = min(2 * PAGE, area.size)
    assert area.size == -(-size // PAGE) * PAGE
    assert read(area, area.size) == b"x" * kept + bytes(area.size - kept)


def test_resize_wipes_the_old_memory(backend) -> None:
    """The memory that resize() leaves is zeros, as a view that survived it shows; the area has moved all the same."""
    area = SecretArea(PAGE, backend=backend)
    area.write(SECRET)
    view = area.view()
    with pytest.raises(BufferError):
        area.resize(3 * PAGE)
    assert not any(view)
    assert (area.size, read(area, len(SECRET))) == (3 * PAGE, SECRET)
    view.release()
    area.close()


def test_resize_of_a_shared_area(backend) -> None:
    """After resize() fileno() is the descriptor of the new region, not of the one that was left."""
    if not isinstance(backend, Shareable):
        pytest.skip("fake is not shareable")
    with SecretArea(PAGE, backend=backend, shared=True) as area:
        area.write(SECRET)
        area.resize(3 * PAGE)
        assert os.fstat(area.fileno()).st_size == 3 * PAGE
        with SecretArea.attach(area.fileno()) as other:
            assert (other.size, read(other, len(SECRET))) == (3 * PAGE, SECRET)


def test_resize_without_room_changes_nothing(fake) -> None:
    """Where both regions do not fit at once, the area is as it was."""
    fake.limit = 3 * PAGE
    with SecretArea(2 * PAGE, backend=fake) as area:
        area.write(SECRET)
        with pytest.raises(LimitError):
            area.resize(4 * PAGE)
        assert (area.size, read(area, len(SECRET)), fake.used) == (2 * PAGE, SECRET, 2 * PAGE)


def test_failed_construction_leaves_nothing(fake) -> None:
    """An area that cannot be had takes nothing, and its remains raise nothing."""
    fake.limit = PAGE
    with pytest.raises(LimitError):
        SecretArea(2 * PAGE, backend=fake)
    assert fake.used == 0
    half_built = SecretArea.__new__(SecretArea)
    half_built.close()
    del half_built


def test_view_is_the_memory(area) -> None:
    """view() is all bytes, writable."""
    with area.view() as view:
        view[3] = 33
        assert len(view) == area.size
    assert read(area, 4) == b"\0\0\0!"


def test_close_with_a_view_wipes_and_complains(backend) -> None:
    """close() with a view in use raises BufferError, and the view shows zeros."""
    area = SecretArea(PAGE, backend=backend)
    area.write(SECRET)
    view = area.view()[:64]
    with pytest.raises(BufferError):
        area.close()
    assert bytes(view) == bytes(64)
    assert area.closed


@pytest.mark.parametrize(
    "use",
    [
        lambda area: area.write(b""),
        lambda area: area.read_into(bytearray()),
        lambda area: area.equals(b""),
        lambda area: area.view(),
        lambda area: area.wipe(),
        lambda area: area.resize(1),
        lambda area: area.copy_within(0, area, 0, 0),
    ],
)
def test_closed_area_is_dead(fake, use) -> None:
    """After close(), which may come twice, every use is ClosedError."""
    area = SecretArea(1, backend=fake)
    area.close()
    area.close()
    with pytest.raises(ClosedError):
        use(area)


def test_dropped_area_is_given_back(fake) -> None:
    """An area that nobody refers to gives its memory back, also from a garbage cycle with its own view."""
    area = SecretArea(PAGE, backend=fake)
    del area
    assert fake.used == 0
    cycle: list[object] = [SecretArea(PAGE, backend=fake)]
    cycle += [cycle, cycle[0].view()]
    del cycle
    gc.collect()
    assert fake.used == 0


def test_garbage_cycle_on_real_memory(emulator) -> None:
    """A region that goes together with its own view is unmapped, without a complaint from __del__."""
    region = emulator.map(PAGE)
    view = region.view()
    address = address_of(view)
    cycle: list[object] = [region, view]
    cycle.append(cycle)
    del region, view, cycle
    gc.collect()
    assert not can_read(address)


def test_repr_has_sizes_and_no_bytes(area) -> None:
    """repr() shows size and backend, never a byte, and says when it is closed."""
    area.write(SECRET)
    assert repr(area) == f"<SecretArea {2 * PAGE} bytes, {area.backend}>"
    assert SECRET.decode() not in f"{area} {area!r} {vars(area)}"
    area.close()
    assert repr(area).endswith(", closed>")


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_area_cannot_be_copied(fake, copier) -> None:
    """Copying and pickling are refused: they would make bytes elsewhere."""
    with SecretArea(1, backend=fake) as area, pytest.raises(TypeError):
        copier(area)


def test_child_has_a_dead_area(area) -> None:
    """In a forked child use is ClosedError, close() does nothing, and the parent's bytes stay."""
    area.write(SECRET)

    def use() -> list[str]:
        seen = []
        for attempt in (lambda: area.write(b"x"), area.view, lambda: area.resize(1), area.wipe):
            try:
                attempt()
            except ClosedError as error:
                seen.append(str(error))
        area.close()
        return seen

    assert len(in_child(use)) == 4
    assert read(area, len(SECRET)) == SECRET


def test_shared_area_says_what_it_costs(backend) -> None:
    """guarantees of a shared area lack what a descriptor takes."""
    with SecretArea(1, backend=backend, shared=True) as area:
        assert not area.guarantees.no_descriptor
        assert not area.guarantees.unforkable


def test_child_closes_an_inherited_descriptor_once(emulator) -> None:
    """A shared area that a child has mapped for itself takes no descriptor with it that the child opened since."""
    area = SecretArea.share(1, backend=emulator)
    area.write(SECRET)
    view = area.view()
    inherited = area.fileno()

    def child() -> bool:
        assert area.equals(SECRET)
        assert os.open(os.devnull, os.O_RDONLY) == inherited  # it was closed
        view.release()
        os.fstat(inherited)
        return True

    assert in_child(child)
    view.release()
    area.close()


def test_exit_wipes_every_area() -> None:
    """At interpreter exit an area that is still referred to is wiped, seen by a thread of another exit handler."""
    code = """if True:
        import atexit, sys
        def last():
            print(bytes(view[:6]) == bytes(6), area.closed)
        atexit.register(last)  # runs after what is registered later
        from secretfs import SecretArea
        area = SecretArea(1, backend="emulator")
        view = area.view()
        area.write(b"secret")
        print(bytes(view[:6]) == b"secret", area.closed)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.split(), result.stderr) == (["True", "False", "True", "True"], "")


def test_child_exit_wipes_nothing_of_its_parents(tmp_path) -> None:
    """A forked child that exits through the exit handlers leaves its parent's shared bytes alone."""
    code = """if True:
        import os, sys
        from secretfs import SecretArea
        area = SecretArea(1, backend="emulator", shared=True)
        area.write(b"secret")
        if os.fork() == 0:
            sys.exit(0)
        os.wait()
        print(area.equals(b"secret"))
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("True", "")


def test_fake_regions_follow_protection(fake) -> None:
    """A fake's views under READ are read-only and under NONE refused, as nearly as ordinary memory can."""
    region = fake.map(PAGE)
    region.protect(Access.READ)
    assert region.view().readonly
    region.protect(Access.NONE)
    with pytest.raises(ClosedError):
        region.view()
    region.close()


def test_fake_counts_to_the_byte() -> None:
    """The fake's limit holds to the byte, and what is closed can be had again."""
    fake = FakeBackend(limit=3 * PAGE)
    regions = [fake.map(PAGE) for _ in range(3)]
    with pytest.raises(LimitError):
        fake.map(PAGE)
    regions.pop().close()
    assert fake.used == 2 * PAGE
    fake.map(PAGE).close()


@needs_secretmem
def test_pages_beyond_the_limit_are_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not every page can be had (newer kernels say so at the first touch, with SIGBUS), that is a LimitError."""

    def fails(view: memoryview) -> None:
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
        libc.munmap(address + len(view) - libc.PAGE_SIZE, libc.PAGE_SIZE)
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))

    def child() -> str:
        SecretArea(1, backend="kernel").close()  # the backend has been probed
        monkeypatch.setattr(libc, "fault_in", fails)
        with pytest.raises(LimitError) as caught:
            SecretArea(16384, backend="kernel")
        return str(caught.value)

    assert "16384 bytes" in in_child(child)
