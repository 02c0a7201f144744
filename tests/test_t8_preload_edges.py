"""The preload library where programs do what is rare: odd sizes and pointers, forks in bad moments, no descriptors."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from box import command as box
from mounts import PATIENCE, SECRETFS, clean_environment, needs_root
from preloads import PRELOAD, children_of, preloaded, wait_until
from preloadscripts import HELPERS, run

from secretfs.confine import REFUSED

BACKENDS = ["kernel", "emulator"]
OPENSSL = "openssl = ctypes.CDLL('libcrypto.so.3')\nSIZE_MAX = ctypes.c_size_t(-1)\n"
NOBODY = 65534

# Sizes and pointers


@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes(backend: str) -> None:
    """No bytes, more than there can be, products that overflow, odd alignments: NULL as from OpenSSL, and no abort."""
    script = OPENSSL + (
        "def had(name, *words):\n"
        "    return secret(name, *words, b'', 0, library=openssl)\n"
        "assert had('CRYPTO_malloc', ctypes.c_size_t(0)) is None\n"
        "assert had('CRYPTO_malloc', SIZE_MAX) is None\n"
        "for more_than_the_range in ((1 << 34) + 1, 1 << 36, 1 << 40):\n"
        "    assert had('CRYPTO_malloc', ctypes.c_size_t(more_than_the_range)) is None\n"
        "kept = ctypes.c_void_p(had('CRYPTO_malloc', ctypes.c_size_t(100)))\n"
        "ctypes.memset(kept, 0x41, 100)\n"
        "assert had('CRYPTO_realloc', kept, SIZE_MAX) is None\n"
        "assert ctypes.string_at(kept, 100) == b'A' * 100\n"
        "assert had('CRYPTO_memdup', kept, SIZE_MAX) is None\n"
        "whole = ctypes.c_void_p()\n"
        "aligned = ctypes.CDLL(None).CRYPTO_aligned_alloc\n"
        "aligned.restype = ctypes.c_void_p\n"
        "for alignment in (0, 3, 48):\n"
        "    assert aligned(ctypes.c_size_t(10), ctypes.c_size_t(alignment), ctypes.byref(whole), b'', 0) is None\n"
        "    assert whole.value is None\n"
        "for alignment in (1, 64, 4096, 65536):\n"
        "    start = aligned(ctypes.c_size_t(10), ctypes.c_size_t(alignment), ctypes.byref(whole), b'', 0)\n"
        "    assert start % alignment == 0 and locked(start + 9)\n"
        "    secret('CRYPTO_free', whole, b'', 0)\n"
        "assert secret('secretfs_alloc', SIZE_MAX) is None and secret('secretfs_map', SIZE_MAX) is None\n"
        "assert secret('secretfs_map', ctypes.c_size_t(0)) is None\n"
        "gnutls = ctypes.CDLL('libgnutls.so.30')\n"
        "kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)\n"
        "calloc = kind(ctypes.c_void_p.in_dll(gnutls, 'gnutls_calloc').value)\n"
        "assert calloc(1 << 33, 1 << 33) is None and calloc(10, 10)\n"
    )  # fmt: skip
    run(script, preloaded(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_foreign_pointers(backend: str) -> None:
    """libc's memory goes into OpenSSL's free and realloc, OpenSSL's into libc's; what is resized keeps its bytes."""
    script = OPENSSL + (
        "size = ctypes.c_size_t(100)\n"
        "for name, words in (('malloc', ()), ('CRYPTO_malloc', (b'', 0))):\n"
        "    for release, more in (('free', ()), ('CRYPTO_free', (b'', 0))):\n"
        "        secret(release, ctypes.c_void_p(secret(name, size, *words)), *more)\n"
        "    for resize, more in (('realloc', ()), ('CRYPTO_realloc', (b'', 0))):\n"
        "        memory = secret(name, size, *words)\n"
        "        ctypes.memset(memory, 0x41, 100)\n"
        "        moved = secret(resize, ctypes.c_void_p(memory), ctypes.c_size_t(70000), *more)\n"
        "        assert ctypes.string_at(moved, 100) == b'A' * 100\n"
        "        assert locked(moved) == ('CRYPTO' in name + resize)\n"
        "        assert secret('realloc', ctypes.c_void_p(moved), ctypes.c_size_t(0)) is None\n"
    )  # fmt: skip
    run(script, preloaded(backend))


def test_freed_twice() -> None:
    """What is freed twice in a row ends the program with a message, as does what was never allocated."""
    script = "memory = ctypes.c_void_p(secret('secretfs_alloc', 100))\nsecret('secretfs_free', memory)\n"
    done = run(script + "secret('secretfs_free', memory)", preloaded("emulator"), code=-6)
    assert "freed that was never allocated, or twice" in done.stderr
    script = "memory = secret('secretfs_map', ctypes.c_size_t(8192))\nsecret('free', ctypes.c_void_p(memory + 4096))\n"
    done = run(script, preloaded("emulator"), code=-6)
    assert "freed that was never allocated, or twice" in done.stderr


@pytest.mark.slow
def test_threads_that_end() -> None:
    """What a thread keeps of freed pieces goes to the others when it ends: 300 threads need no more than 10."""
    script = (
        "def work():\n"
        "    for memory in [secret('secretfs_alloc', size) for size in range(16, 4096, 64)]:\n"
        "        secret('secretfs_free', ctypes.c_void_p(memory))\n"
        "def lock():\n"
        "    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmLck'))\n"
        "for number in range(300):\n"
        "    thread = threading.Thread(target=work)\n"
        "    thread.start()\n"
        "    thread.join()\n"
        "    if number == 10:\n"
        "        before = lock()\n"
        "assert 0 < lock() < before + 4096\n"  # KiB; a thread may not be gone when it is joined
    )
    run(script, preloaded("kernel"))


# Files


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_reader_that_waits(backend: str) -> None:
    """A thread that waits in fread(3) for a pipe keeps neither another thread nor a forked child from reading."""
    script = (
        "libc = ctypes.CDLL(None)\n"
        "def opened(fd):\n"
        "    return ctypes.c_void_p(secret('fdopen', fd, b'r'))\n"
        "def read(stream, size):\n"
        "    memory = ctypes.c_void_p(secret('secretfs_alloc', size))\n"
        "    got = secret('fread', memory, ctypes.c_size_t(1), ctypes.c_size_t(size), stream, result=ctypes.c_size_t)\n"
        "    return ctypes.string_at(memory, got)\n"
        "reader, writer = os.pipe()\n"
        "got = []\n"
        "thread = threading.Thread(target=lambda: got.append(read(opened(reader), 4)))\n"
        "thread.start()\n"
        "task = f'/proc/self/task/{thread.native_id}/syscall'\n"
        "while not open(task).read().startswith('0 '):\n"
        "    pass\n"
        "def other():\n"
        "    return read(opened(os.open('/proc/version', os.O_RDONLY)), 5) == b'Linux'\n"
        "assert other()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if other() else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "os.write(writer, b'done')\n"
        "thread.join()\n"
        "assert got == [b'done']\n"
    )
    run(script, preloaded(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_descriptor_left(backend: str) -> None:
    """At its limit of descriptors a program still has secret memory, and forks; none is used up."""
    script = (
        "import resource\n"
        "before = secret('secretfs_alloc', 100)\n"
        "ctypes.memset(before, 0x41, 100)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "held = []\n"
        "try:\n"
        "    while True:\n"
        "        held.append(os.dup(0))\n"
        "except OSError:\n"
        "    pass\n"
        "made = [secret('secretfs_alloc', 1000) for _ in range(3000)]\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if ctypes.string_at(before, 100) == b'A' * 100 else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "try:\n"
        "    os.dup(0)\n"
        "    raise AssertionError('a descriptor is free')\n"
        "except OSError:\n"
        "    pass\n"
        "os.close(held.pop())\n"
        "assert all(locked(memory) for memory in made[::500])\n"
    )
    run(script, preloaded(backend))


# Children

KEPT = "kept = secret('secretfs_alloc', 100)\nctypes.memset(kept, 0x41, 100)\n"
RIGHT = "ctypes.string_at(kept, 100) == b'A' * 100"


@pytest.mark.parametrize("backend", BACKENDS)
def test_children_that_are_no_forks(backend: str) -> None:
    """Programs are started by posix_spawn and vfork; the parent's memory stays as it is."""
    script = KEPT + (
        "import subprocess\n"
        "pid = os.posix_spawn('/bin/true', ['true'], os.environ)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert subprocess._USE_VFORK and subprocess.run(['/bin/true']).returncode == 0\n"
        f"assert {RIGHT}\n"
    )
    run(script, preloaded(backend))


def test_raw_clone() -> None:
    """A child of a clone that does not go through fork(3) has none of it: it dies if it looks, and may execute."""
    script = KEPT + (
        "libc = ctypes.CDLL(None)\n"
        "pid = libc._Fork()\n"
        "if pid == 0:\n"
        "    ctypes.string_at(kept, 1)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] & 127 == 11\n"
        "pid = libc._Fork()\n"
        "if pid == 0:\n"
        "    os.execv('/bin/true', ['true'])\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        f"assert {RIGHT}\n"
    )
    run(script, preloaded("kernel"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_forks_from_many_threads(backend: str) -> None:
    """Four threads fork at the same time, while others allocate; every child has what its parent had."""
    script = KEPT + (
        "libc, stop, failed = ctypes.CDLL(None), threading.Event(), []\n"
        "def allocate():\n"
        "    while not stop.is_set():\n"
        "        secret('secretfs_free', ctypes.c_void_p(secret('secretfs_alloc', 3000)))\n"
        "def fork():\n"
        "    for _ in range(15):\n"
        "        pid = os.fork()\n"
        "        if pid == 0:\n"
        f"            os._exit(0 if {RIGHT} and secret('secretfs_alloc', 500) else 1)\n"
        "        failed.append(os.waitpid(pid, 0)[1])\n"
        "others = [threading.Thread(target=allocate) for _ in range(3)]\n"
        "forkers = [threading.Thread(target=fork) for _ in range(4)]\n"
        "for thread in others + forkers:\n"
        "    thread.start()\n"
        "for thread in forkers:\n"
        "    thread.join()\n"
        "stop.set()\n"
        "assert failed == [0] * 60\n"
    )
    run(script, preloaded(backend))


STOPS = """
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
static void stop(void) { if (getenv("STOP")) raise(SIGSTOP); }
__attribute__((constructor)) static void start(void) { pthread_atfork(NULL, NULL, stop); }
"""
FORK_STOPPED = KEPT + (
    "os.environ['STOP'] = '1'\n"
    "print('ready', flush=True)\n"
    "pid = os.fork()\n"
    "if pid == 0:\n"
    f"    code = 0 if {RIGHT} else 1\n"
    "    sys.stdout.write(f'child {code}\\n')\n"
    "    sys.stdout.flush()\n"
    "    os._exit(code)\n"
    "ctypes.memset(kept, 0x42, 100)\n"
    "print('parent', os.waitpid(pid, 0)[1], flush=True)\n"
)
"""A process whose child stops itself before it copies anything; afterwards the parent writes to what is copied."""


@pytest.fixture
def stopping(tmp_path: Path) -> str:
    """What to preload so that a forked child stops itself before our library's part in it."""
    (tmp_path / "stops.c").write_text(STOPS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "stops.so", tmp_path / "stops.c"], check=True)
    return f"{PRELOAD} {tmp_path / 'stops.so'}"


class Stopped:
    """A script whose child is stopped in the middle of a fork."""

    def __init__(self, preload: str, backend: str) -> None:
        environment = {**preloaded(backend), "LD_PRELOAD": preload}
        words = ["/usr/bin/python3", "-I", "-c", HELPERS + FORK_STOPPED]
        self.parent = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.parent.stdout
        assert self.parent.stdout.readline() == "ready\n"
        wait_until(self.parent, lambda: self._state() == "T")
        (self.child,) = children_of(self.parent.pid)

    def _state(self) -> str:
        children = children_of(self.parent.pid)
        return Path(f"/proc/{children[0]}/stat").read_text().rpartition(")")[2].split()[0] if children else ""

    def go_on(self) -> str:
        """Let the child go on; what both print."""
        os.kill(self.child, signal.SIGCONT)
        assert self.parent.stdout
        with self.parent, self.parent.stdout:
            return self.parent.stdout.read()


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_stopped_child(stopping: str, backend: str) -> None:
    """A parent waits for a child that is stopped before it has its copies, and then the child has the right bytes."""
    stopped = Stopped(stopping, backend)
    poll = "7 "
    wait_until(stopped.parent, lambda: Path(f"/proc/{stopped.parent.pid}/syscall").read_text().startswith(poll))
    assert stopped.go_on() == "child 0\nparent 0\n"


@needs_root
@pytest.mark.slow
def test_parent_that_dies(stopping: str) -> None:
    """A child whose parent is killed before it has its copies goes on, with the right bytes."""
    stopped = Stopped(stopping, "kernel")
    stopped.parent.kill()
    assert stopped.parent.wait(PATIENCE) == -9
    assert stopped.go_on() == "child 0\n"


@needs_root
@pytest.mark.long
def test_child_that_is_stopped_too_long(stopping: str) -> None:
    """After half a minute the parent goes on; the child must not copy what may have changed, and ends."""
    stopped = Stopped(stopping, "kernel")
    child = Path(f"/proc/{stopped.parent.pid}/syscall")
    wait_until(stopped.parent, lambda: child.read_text().startswith("61 "), patience=60)
    assert stopped.go_on() == f"parent {125 << 8}\n"


# Who may say what


def open_to_all(folder: Path) -> None:
    """Let every user look into a folder of pytest's."""
    for part in (folder, *folder.parents):
        if part.name.startswith(("pytest-", "test_", "tmp")) and part != Path("/tmp"):
            part.chmod(0o755)


@needs_root
def test_set_user_id(tmp_path: Path) -> None:
    """A set-user-ID program that links the library heeds no variable: no bad value ends it, no report is written."""
    source, program, report = tmp_path / "program.c", tmp_path / "program", tmp_path / "report"
    source.write_text("void *secretfs_alloc(unsigned long);\nint main(void) { return !secretfs_alloc(100); }\n")
    library = PRELOAD.split()[-1]
    subprocess.run(["gcc", "-o", program, source, library, f"-Wl,-rpath,{os.path.dirname(library)}"], check=True)
    open_to_all(tmp_path)
    environment = {**clean_environment(), "SECRETFS_BACKEND": "nonsense", "SECRETFS_PRELOAD_REPORT": str(report)}

    def started() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program], env=environment, user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False
        )

    assert started().returncode == 125
    program.chmod(0o4755)
    assert (started().returncode, report.exists()) == (0, False)


@needs_root
def test_launcher_refuses(tmp_path: Path) -> None:
    """`secretfs preload` starts no program that nothing can be preloaded into, and names the reason."""
    (tmp_path / "static.c").write_text("int main(void) { return 0; }\n")
    static, other = tmp_path / "static", tmp_path / "other"
    subprocess.run(["gcc", "-static", "-o", static, tmp_path / "static.c"], check=True)
    subprocess.run(["gcc", "-o", other, tmp_path / "static.c"], check=True)
    other.chmod(0o4755)
    open_to_all(tmp_path)
    for program, reason in ((static, "is statically linked"), (other, "is set-user-ID or set-group-ID")):
        done = subprocess.run(
            [SECRETFS, "preload", "--", program],
            env=clean_environment(), user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 125
        assert reason in done.stderr


def test_no_library() -> None:
    """Without the library the launcher says how to get it; LD_PRELOAD alone is the dynamic linker's: it only warns."""
    script = "import secretfs.preload as p; p.LIBRARY = '/nowhere.so'; import secretfs.cli as c; sys.exit(c.main())"
    words = [sys.executable, "-I", "-c", f"import sys; sys.argv[1:] = ['preload', '--', 'true']; {script}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 125, done.stderr
    assert "the preload library is not built" in done.stderr
    environment = {**clean_environment(), "LD_PRELOAD": "/nowhere.so"}
    alone = subprocess.run(["/bin/true"], env=environment, capture_output=True, text=True, check=False)
    assert (alone.returncode, "cannot be preloaded" in alone.stderr) == (0, True)


def test_loaded_late() -> None:
    """A program may load the library with dlopen(3) and use the C API."""
    script = (
        f"library = ctypes.CDLL('{PRELOAD.split()[-1]}')\n"
        "memory = secret('secretfs_alloc', 100, library=library)\n"
        "assert locked(memory)\n"
        "secret('secretfs_free', ctypes.c_void_p(memory), library=library)\n"
    )
    run(script, clean_environment())


def test_report_that_cannot_be_written(tmp_path: Path) -> None:
    """A report that cannot be written is a warning; a path that no file can have ends the program before it starts."""
    script = "secret('secretfs_alloc', 100)"
    done = run(script, preloaded("emulator", REPORT=str(tmp_path / "missing" / "report")))
    assert done.stderr.startswith("secretfs: warning: the report cannot be written to ")
    done = run(script, preloaded("emulator", REPORT="/" + 4096 * "x"), code=125)
    assert "SECRETFS_PRELOAD_REPORT is longer than a path can be" in done.stderr


@pytest.mark.long
def test_many_large_pieces() -> None:
    """Thousands of pieces that each have an area of their own are there at the same time, also for a child."""
    script = (
        "made = [secret('secretfs_alloc', 33000) for _ in range(4500)]\n"
        "assert all(made) and len(set(made)) == 4500\n"
        "for memory in made[::100]:\n"
        "    ctypes.memset(memory, 0x41, 33000)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if all(ctypes.string_at(memory, 33000) == b'A' * 33000 for memory in made[::100]) else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    run(script, preloaded("kernel"), patience=100)


def test_the_command_is_as_it_was_started() -> None:
    """Signals and variables that Python changes for itself are not passed on to the command."""
    environment = {name: value for name, value in clean_environment().items() if not name.startswith(("LC_", "LANG"))}
    script = "grep SigIgn /proc/self/status; echo ${LC_CTYPE-none}"
    done = subprocess.run(
        [SECRETFS, "preload", "--", "sh", "-c", script], env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[1] == "none"
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)


# What the kernel refuses


@needs_root
@pytest.mark.parametrize("backend", ["auto", "kernel"])
@pytest.mark.parametrize(("without", "reason"), [("EPERM", "is blocked (EPERM)"), ("ENOSYS", "Linux 5.14")])
def test_says_what_is_missing(backend: str, without: str, reason: str) -> None:
    """Where the call is forbidden, as in a container, the warning and the refusal blame the profile, not the kernel."""
    words = box([SECRETFS, "preload", "--backend", backend, "--", "true"], without=without)
    done = subprocess.run(words, capture_output=True, text=True, env=clean_environment(), timeout=PATIENCE, check=False)
    assert done.returncode == (125 if backend == "kernel" else 0)
    assert reason in done.stderr
    assert "seccomp profile" in done.stderr


@pytest.mark.parametrize("forbidden", ["process_vm_readv", "vmsplice"])
def test_proof_where_one_way_to_pin_is_forbidden(forbidden: str) -> None:
    """Secret memory is proven by process_vm_readv or vmsplice: Docker 20.10 forbids the one, others the other."""
    environment = preloaded("kernel")
    number = REFUSED[forbidden][platform.machine() != "x86_64"]
    script = (
        "import os, struct, sys\n"
        "from secretfs import libc\n"
        f"program = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]\n"
        "libc.set_no_new_privs()\n"
        "libc.seccomp_filter(b''.join(struct.pack('=HBBI', *one) for one in program))\n"
        f"os.environ['LD_PRELOAD'] = {environment.pop('LD_PRELOAD')!r}\n"
        "os.environ['SECRETFS_PRELOAD_REPORT'] = '/dev/stderr'\n"
        "os.execvp('openssl', ['openssl', 'genrsa', '-out', '/dev/null', '2048'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"backend": "kernel"' in done.stderr
