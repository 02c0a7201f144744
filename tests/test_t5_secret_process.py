"""Secrets and areas beyond one object: other processes, the whole process, signals, reports, modes, mappings."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import resource
import signal
from pathlib import Path

import pytest
from mounts import have_secretmem
from programs import BACKENDS, program, works

import secretfs
from secretfs import BackendUnavailable, ClosedError, Guarantees, Secret, SecretArea, cachelines, libc, protection


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Each of them."""
    return str(request.param)


# Other processes


WORKER = """
import multiprocessing
from secretfs import SecretArea

def work_on(area, done):
    ok = area.equals(b"from the parent")
    area.write(b"from the child", 100)
    done.send((ok, area.size, area.backend, area.guarantees.no_descriptor))
    area.close()

def main(method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    with SecretArea.share(8000) as area:
        area.write(b"from the parent")
        process = context.Process(target=work_on, args=(area, theirs))
        process.start()
        theirs.close()
        print(*ours.recv())
        process.join()
        print(process.exitcode, area.equals(b"from the parent"), area.equals(b"from the child", 100))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(backend: str, method: str, tmp_path: Path) -> None:
    """A shared area is an argument of a process, whatever way that is started; its creator alone wipes it."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    text = "sys.path.insert(0, sys.argv[1])\nimport worker\nworker.main(sys.argv[2])"
    said = works(text, str(tmp_path), method, backend=backend)
    assert said.splitlines() == [f"True 8192 {backend} False", "0 True True"]


def test_shared_with_a_forked_child(backend: str) -> None:
    """A child uses a shared area at once, and neither its close nor its end wipes it; an ordinary one it has not."""
    text = """
    area, own = SecretArea.share(4096), SecretArea(4096)
    area.write(b"parent"); own.write(b"own")
    if not (pid := os.fork()):
        assert area.equals(b"parent")
        area.write(b"child!", 10)
        try: own.equals(b"own")
        except ClosedError as error: assert "forked from" in str(error)
        else: os._exit(1)
        own.close(), area.close()
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(area.equals(b"parent"), area.equals(b"child!", 10), own.equals(b"own"))
    """
    assert works(text, backend=backend) == "True True True"


def test_attach_checks_what_it_gets(backend: str) -> None:
    """A file, a pipe, a memfd without seals or of odd size, and another backend's memory are refused by name."""
    fds = [os.memfd_create("plain", os.MFD_ALLOW_SEALING), os.open("/dev/zero", os.O_RDWR), *os.pipe()]
    os.ftruncate(fds[0], 4096)
    fds.append(os.memfd_create("odd", os.MFD_ALLOW_SEALING))
    os.ftruncate(fds[-1], 4097)
    libc.add_seals(fds[-1], libc.SEAL_SHRINK | libc.SEAL_GROW)
    for fd in fds:
        for word in (backend, "auto"):
            with pytest.raises(BackendUnavailable, match=f"descriptor {fd} is"):
                SecretArea.attach(fd, backend=word)
        os.close(fd)
    with pytest.raises(BackendUnavailable):
        SecretArea.attach(fds[0], backend=backend)  # not open any more
    with SecretArea.share(4096, backend=backend) as area:
        other = {"emulator": "kernel", "kernel": "emulator"}[backend]
        with pytest.raises(BackendUnavailable):
            SecretArea.attach(area.fileno(), backend=other)


def test_attach_to_what_cannot_be_written(backend: str) -> None:
    """A memfd that is sealed against writing is refused as such, and not as a lock limit."""
    if backend != "emulator":
        return  # secret memory has no seals
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    libc.add_seals(fd, libc.SEAL_SHRINK | libc.SEAL_GROW | 8)
    with pytest.raises(BackendUnavailable, match=f"descriptor {fd} is"):
        SecretArea.attach(fd)
    os.close(fd)


# The whole process


def test_release_all(backend: str) -> None:
    """Secrets, areas and mappings are gone, none of our memory is mapped, and new secrets can be made."""
    text = """
    secret, area, mapping = Secret.random(9), SecretArea(4096), secretfs.mmap(99)
    rest = Secret.random(9, backend="emulator")
    del mapping
    kept = secretfs.mmap(50)
    kept[:3] = b"abc"
    secretfs.release_all()
    print(bytes(kept[:3]).hex())
    del kept
    maps = open("/proc/self/maps").read()
    print("secretmem" in maps, secretfs.libc.locked_bytes(), secretfs.protection().blocks_hibernation)
    for use in (secret.reveal().__enter__, area.view, rest.reveal().__enter__):
        try: use()
        except ClosedError as error: print(error)
    secret.close(), area.close(), secretfs.release_all()
    print(len(Secret.random(5)))
    """
    lines = works(text, backend=backend).splitlines()
    assert lines == ["000000", "False 0 False", "this secret was released", "this area was closed",
                     "this secret was released", "5"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_wipe_on_signals(backend: str, number: int) -> None:
    """The bytes are gone when the handler that was there before runs; what had none ends by the signal."""
    text = """
    number = int(sys.argv[1])
    area = SecretArea(4096); view = area.view(); view[:3] = b"abc"
    secret = Secret.random(9); window = secret.reveal(); shown = window.__enter__()
    def before(*_): print(bytes(view[:3]).hex(), any(shown), flush=True)
    signal.signal(number, before)
    secretfs.wipe_on_signals(); secretfs.wipe_on_signals(number)
    os.kill(os.getpid(), number)
    signal.signal(number, signal.SIG_IGN)
    secretfs.wipe_on_signals(number)
    os.kill(os.getpid(), number)
    signal.signal(number, signal.SIG_DFL)
    secretfs.wipe_on_signals(number)
    os.kill(os.getpid(), number)
    print("survived")
    """
    done = program(text, str(int(number)), backend=backend)
    assert (done.returncode, done.stdout, done.stderr) == (-number, "000000 False\n", "")


def test_no_handler_is_installed() -> None:
    """The library alone changes no signal."""
    text = """
    before = [signal.getsignal(n) for n in range(1, 32)]
    Secret.random(9).close(), SecretArea(4096).close(), secretfs.release_all()
    print(before == [signal.getsignal(n) for n in range(1, 32)])
    """
    assert works(text) == "True"


# Reports


def test_protection(backend: str) -> None:
    """A report says what is guaranteed, why the rest is not, and what is locked; JSON has all of it; it is frozen."""
    secret, area = Secret(9, backend=backend, at_rest=False), SecretArea.share(4096, backend=backend)
    for subject in (secret, area):
        report = protection(subject)
        told = json.loads(report.to_json())
        assert told["subject"] == repr(subject)
        assert told["guarantees"] == subject.guarantees.as_dict()
        assert set(told["why_not"]) == {name for name, holds in told["guarantees"].items() if not holds}
        assert all(told["why_not"].values())
        assert told["locked"] == libc.locked_bytes()
        assert told["lock_limit"] == libc.lock_limit()
        assert told["dumpable"] == libc.is_dumpable()
        assert told["traced_by"] == int(libc.proc_status("TracerPid"))
        core = resource.getrlimit(resource.RLIMIT_CORE)[0]
        assert told["core_limit"] == (None if core == resource.RLIM_INFINITY else core)
        assert told["blocks_hibernation"] == ("secretmem" in Path("/proc/self/maps").read_text(encoding="utf-8"))
        assert ("nothing" in told["after_kill"]) == subject.guarantees.cleared_by_kernel
        assert "enciphered, and" not in told["after_kill"]
        for name in Guarantees.names():
            assert name in str(report)
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.backend = "better"  # type: ignore[misc]
    assert "at_rest=True" in protection(secret).why_not["enciphered_at_rest"]
    assert "areas are never enciphered" in protection(area).why_not["enciphered_at_rest"]
    area.close()
    with pytest.raises(TypeError, match="not bytes"):
        protection(b"x")


def test_a_child_gives_back_what_it_inherited(backend: str) -> None:
    """A child that wipes all its secrets has no page of them left: no view of its parent's is in the way."""
    text = """
    import os
    secret = Secret(64, inherit=True, at_rest=False)
    if (pid := os.fork()) == 0:
        secret.close()
        secretfs.kinds.release_kinds()  # or BufferError
        print("secretmem" in open("/proc/self/maps").read(), secretfs.libc.locked_bytes(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    """
    assert works(text, backend=backend) == "False 0"


def test_protection_of_what_is_inherited_or_at_rest() -> None:
    """What a child is given is said to be inherited, and of a secret at rest a kill leaves the enciphered bytes."""
    assert "to be inherited" in protection(Secret(9, backend="emulator", inherit=True)).why_not["unforkable"]
    left = protection(Secret(9, backend="emulator", at_rest=True)).after_kill
    assert left.startswith("the bytes, enciphered, and the parts of the key")


def test_protection_of_the_process() -> None:
    """Without a subject it says what would be made; the lock limit and what is left of it are the kernel's."""
    text = """
    import json, resource
    report = json.loads(secretfs.protection().to_json())
    limit, left = report["lock_limit"], report["lock_left"]
    print(report["subject"], left is None if limit is None else left == limit - report["locked"])
    keep = SecretArea(8192)
    print(secretfs.protection().locked - report["locked"] == 8192, report["backend"] == keep.backend)
    """
    assert works(text).splitlines() == ["this process True", "True True"]


# Modes


def test_uncached(backend: str) -> None:
    """Mode "uncached" works, and promises flushed cache lines only where there is a way; no other mode does."""
    secret = Secret.random(100, backend=backend, mode="uncached", at_rest=False)
    area = SecretArea(4096, backend=backend, mode="uncached")
    assert secret.mode == "uncached"
    assert secret.guarantees.cache_flushed is area.guarantees.cache_flushed is cachelines.available()
    with secret.reveal() as view:
        before = bytes(view)
    with secret[10:50].reveal() as view:
        assert view == before[10:50]
    assert secret[3:7].mode == "uncached"
    area.write(b"x", 4095)
    assert area.equals(b"x", 4095)
    secret.close(), area.close()
    assert not Secret(9, backend=backend).guarantees.cache_flushed


def test_uncached_where_it_is_impossible() -> None:
    """Without the native part the guarantee is False, and the report says why."""
    text = """
    import secretfs.cachelines as cachelines
    cachelines.LIBRARY = "/nonexistent"
    secret = Secret.random(9, mode="uncached")
    with secret.reveal(): pass
    print(secret.guarantees.cache_flushed, secretfs.protection(secret).why_not["cache_flushed"])
    """
    assert works(text) == "False this machine or installation has no way to do it"


# Mappings


def test_mmap(backend: str) -> None:
    """Writable, zero, as long as asked, and alive as long as any view of it."""
    view = secretfs.mmap(5000, backend=backend)
    assert (len(view), view.readonly, any(view)) == (5000, False, False)
    view[-3:] = b"end"
    part = view[4990:]
    del view
    gc.collect()
    assert part[-3:] == b"end"
    held = ctypes.c_char.from_buffer(part)
    del part
    assert libc.locked_bytes() > 0
    del held
    with pytest.raises(ValueError, match="positive length"):
        secretfs.mmap(0)


def test_mmap_is_given_back(backend: str) -> None:
    """With the last view of it the pages are unmapped."""
    text = """
    secretfs.mmap(10); before = secretfs.libc.locked_bytes()
    views = [secretfs.mmap(5000)[7:] for _ in range(10)]
    during = secretfs.libc.locked_bytes()
    views.clear()
    print(during - before, secretfs.libc.locked_bytes() - before)
    """
    assert works(text, backend=backend) == "81920 0"


@pytest.mark.parametrize("length", [16, 3000])
def test_pages_outside_windows(backend: str, length: int) -> None:
    """Outside a window the pages of a secret have no rights at all; inside, those that were asked for, nested too."""

    def rights() -> str:
        with open("/proc/self/maps", encoding="ascii") as lines:
            for line in lines:
                start, end = (int(word, 16) for word in line.split()[0].split("-"))
                if start <= address < end:
                    return line.split()[1][:2]
        return ""

    secret = Secret.random(length, backend=backend, alone=True, at_rest=False)
    with secret.pointer() as address:
        assert rights() == "r-"
        with secret.reveal(write=True):
            assert rights() == "rw"
            with secret.reveal():
                assert rights() == "rw"
        assert rights() == "r-"
    assert rights() == "--"
    with pytest.raises(ZeroDivisionError), secret.reveal(write=True):
        raise ZeroDivisionError
    assert rights() == "--"
    secret.close()
    with pytest.raises(ClosedError):
        secret.reveal().__enter__()


def test_the_default_is_the_best_there_is() -> None:
    """Without a word: the kernel's memory where there is some, else the emulator with one warning."""
    text = """
    import warnings
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        print(Secret(9).backend, SecretArea(9).backend, len(said), *(w.category.__name__ for w in said))
    """
    expected = "kernel kernel 0" if have_secretmem() else "emulator emulator 1 ReducedGuaranteesWarning"
    assert works(text) == expected
