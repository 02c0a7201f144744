"""secretfs.libc: typed calls, and their failures as OSError with the kernel's errno."""

from __future__ import annotations

import errno
import os
import resource

import pytest

from secretfs import libc
from secretfs.testing import in_child
from secretfs.testing.children import become_ordinary_user
from secretfs.testing.memory import address_of, can_read, mapping

PAGE = libc.PAGE_SIZE


@pytest.fixture
def page():
    """The address of two anonymous pages."""
    address = libc.mmap_anonymous(2 * PAGE)
    yield address
    libc.munmap(address, 2 * PAGE)


def code_of(call, *arguments) -> int:
    """The errno with which a call fails."""
    with pytest.raises(OSError, match=r"\w") as caught:
        call(*arguments)
    return caught.value.errno


def test_all_is_sorted_and_exists() -> None:
    """`__all__` is sorted and each name is there."""
    assert libc.__all__ == sorted(libc.__all__)
    assert all(hasattr(libc, name) for name in libc.__all__)


def test_anonymous_memory_comes_and_goes() -> None:
    """mmap_anonymous() maps readable zeros, munmap() takes them away."""
    address = libc.mmap_anonymous(PAGE)
    assert can_read(address, expected=bytes(64))
    libc.munmap(address, PAGE)
    assert not can_read(address)


def test_shared_mapping_is_the_file() -> None:
    """What mmap_shared() maps is the file behind the descriptor, and stays when that is closed."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGE)
    os.pwrite(fd, b"hello", 0)
    address = libc.mmap_shared(fd, PAGE)
    os.close(fd)
    assert can_read(address, expected=b"hello")
    libc.munmap(address, PAGE)


@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        (libc.mmap_shared, (-1, PAGE), errno.EBADF),
        (libc.mmap_anonymous, (0,), errno.EINVAL),
        (libc.mmap_anonymous, (1 << 60,), errno.ENOMEM),
        (libc.munmap, (1, PAGE), errno.EINVAL),
        (libc.mprotect, (1, PAGE, 0), errno.EINVAL),
        (libc.madvise, (0, PAGE, 9999), errno.EINVAL),
        (libc.mlock, (0, PAGE), errno.ENOMEM),
        (libc.file_system_magic, (-1,), errno.EBADF),
        (libc.get_seals, (-1,), errno.EBADF),
        (libc.add_seals, (-1, 0), errno.EBADF),
        (libc.read_own_page, (0,), errno.EFAULT),
        (libc.splice_own_page, (0,), errno.EFAULT),
        (libc.umount, ("/proc/self/no-such-directory", 0), errno.ENOENT),
        (libc.memfd_secret, (1 << 30,), (errno.EINVAL, errno.ENOSYS, errno.EPERM)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_failure_has_the_kernels_errno(call, arguments, expected) -> None:
    """A failing call raises OSError with the errno of the man page."""
    code = code_of(call, *arguments)
    assert code in expected if isinstance(expected, tuple) else code == expected


def test_mount_reports_who_may_not() -> None:
    """mount(2) by an ordinary user is EPERM, or ENOENT where its user could, but the target is missing."""

    def attempt() -> int:
        become_ordinary_user()
        return code_of(libc.mount, "none", "/proc/self/no-such-directory", "tmpfs", 0, "")

    assert in_child(attempt) in (errno.EPERM, errno.ENOENT)


def test_memory_flags_arrive(page: int) -> None:
    """madvise() and mlock() set what the kernel shows in smaps."""
    libc.madvise(page, 2 * PAGE, libc.MADV_DONTFORK)
    libc.madvise(page, 2 * PAGE, libc.MADV_DONTDUMP)
    libc.mlock(page, 2 * PAGE)
    assert mapping(page).flags >= {"dc", "dd", "lo"}


def test_protect_arrives(page: int) -> None:
    """mprotect() with PROT_NONE makes the page unreadable, and PROT_READ readable again."""
    libc.mprotect(page, PAGE, libc.PROT_NONE)
    assert not can_read(page)
    assert can_read(page + PAGE)
    libc.mprotect(page, PAGE, libc.PROT_READ)
    assert can_read(page)


def test_wipe_is_exact() -> None:
    """wipe() zeroes the bytes it was given and no other."""
    data = memoryview(bytearray(b"x" * 32))
    libc.wipe(address_of(data) + 8, 16)
    assert bytes(data) == b"x" * 8 + bytes(16) + b"x" * 8


@pytest.mark.parametrize("pages", [1, 3, 1025])
def test_fault_in_touches_every_page(pages: int) -> None:
    """fault_in() makes every page resident, also more than one readv(2) takes."""
    address = libc.mmap_anonymous(pages * PAGE)
    import ctypes

    view = memoryview((ctypes.c_char * (pages * PAGE)).from_address(address)).cast("B")
    libc.fault_in(view)
    assert mapping(address).resident >= pages * PAGE
    libc.munmap(address, pages * PAGE)


def test_fault_in_reports_what_cannot_be_had() -> None:
    """Beyond the end of a file fault_in() is EFAULT where a touch would be SIGBUS."""
    import ctypes

    fd = os.memfd_create("short")
    os.ftruncate(fd, PAGE)
    address = libc.mmap_shared(fd, 2 * PAGE)
    os.close(fd)
    view = memoryview((ctypes.c_char * (2 * PAGE)).from_address(address)).cast("B")
    assert code_of(libc.fault_in, view) == errno.EFAULT
    libc.munmap(address, 2 * PAGE)


def test_ordinary_memory_can_be_pinned() -> None:
    """Both ways of pinning work on ordinary memory, or a refusal would prove nothing."""
    data = memoryview(bytearray(PAGE))
    libc.read_own_page(address_of(data))
    libc.splice_own_page(address_of(data))


def test_seals_hold() -> None:
    """A memfd sealed against resizing has those seals and keeps its size."""
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, PAGE)
    libc.add_seals(fd, libc.SEAL_SHRINK | libc.SEAL_GROW)
    assert libc.get_seals(fd) & (libc.SEAL_SHRINK | libc.SEAL_GROW) == libc.SEAL_SHRINK | libc.SEAL_GROW
    assert code_of(os.ftruncate, fd, 0) == errno.EPERM
    os.close(fd)


def test_file_system_magic_is_the_file_systems() -> None:
    """/proc has the magic number of proc."""
    fd = os.open("/proc/self", os.O_RDONLY)
    assert libc.file_system_magic(fd) == 0x9FA0
    os.close(fd)


def test_dumpable_can_be_set_and_read() -> None:
    """set_dumpable() changes what is_dumpable() tells, both ways."""

    def switch() -> list[bool]:
        seen = []
        for dumpable in (False, True):
            libc.set_dumpable(dumpable=dumpable)
            seen.append(libc.is_dumpable())
        return seen

    assert in_child(switch) == [False, True]


def test_status_fields() -> None:
    """proc_status() returns a field of this process, and "" for one that there is not."""
    assert libc.proc_status("Pid") == str(os.getpid())
    assert libc.proc_status("NoSuchField") == ""


def test_locked_bytes_are_counted() -> None:
    """locked_bytes() grows by what mlock() takes."""

    def lock() -> int:
        before = libc.locked_bytes()
        libc.mlock(libc.mmap_anonymous(3 * PAGE), 3 * PAGE)
        return libc.locked_bytes() - before

    assert in_child(lock) == 3 * PAGE


def test_lock_limit_is_the_users() -> None:
    """An ordinary user has the soft limit; without one, or with CAP_IPC_LOCK, there is None."""

    def limits() -> list[int | None]:
        _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        privileged = libc.lock_limit() if libc.effective_capability(libc.CAP_IPC_LOCK) else None
        become_ordinary_user()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (5 * PAGE, hard))
        return [privileged, libc.lock_limit()]

    assert in_child(limits) == [None, 5 * PAGE]


def test_at_secure_is_false_here() -> None:
    """A program started as itself has no raised privileges."""
    assert libc.at_secure() is False


def test_memfd_secret_needs_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the call is not wired, ENOSYS comes without asking the kernel for somebody else's number."""
    monkeypatch.setattr(libc.platform, "machine", lambda: "m68k")
    assert code_of(libc.memfd_secret, os.O_CLOEXEC) == errno.ENOSYS


def test_missing_function_is_enosys() -> None:
    """A function that the C library lacks fails when called, not at import."""
    assert code_of(libc._declare("no_such_function_anywhere", None)) == errno.ENOSYS
