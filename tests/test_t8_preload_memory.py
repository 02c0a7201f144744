"""The preload library's memory: limits and policies, forks, threads, toolkits that lock their own pages, the C API."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import box
import pytest
from mounts import PATIENCE, SECRETFS, clean_environment, have_secretmem, needs_root
from preloads import PRELOAD, found_in, preloaded, reading
from preloadscripts import HELPERS, run

EXAMPLES = Path(__file__).parent.parent / "examples"
MIB = 1 << 20
BACKENDS = ["kernel", "emulator"]
SODIUM = """
sodium = ctypes.CDLL("libsodium.so.23")
call = lambda name, *words: secret(name, *words, library=sodium)
call("sodium_init")
"""
KEPT = 'kept = ctypes.c_void_p(call("sodium_malloc", 64))\nctypes.memset(kept, 0x42, 64)\n'


# Running out


def boxed(environment: dict[str, str], script: str, **limits: int) -> subprocess.CompletedProcess[str]:
    """Run a script that is preloaded inside a box only: what makes the box is not."""
    variables = [f"{name}={value}" for name, value in environment.items() if name.startswith(("SECRETFS_", "LD_"))]
    words = ["env", *variables, "/usr/bin/python3", "-I", "-c", HELPERS + script]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SECRETFS_")}
    made = box.command(words, **limits)  # type: ignore[arg-type]
    return subprocess.run(made, env=plain, capture_output=True, text=True, timeout=PATIENCE, check=False)


FILL = """
address = total = 0
while total < (64 << 20):
    address = secret("secretfs_alloc", 1000)
    if not address:
        break
    total += 1000
print(total)
"""
ALLOCATE = """
import ssl
for _ in range(3000):
    context = secret("CRYPTO_malloc", ctypes.c_size_t(1000), b"", 0)
    assert context
print("lived")
"""


@needs_root
@pytest.mark.parametrize("backend", BACKENDS)
def test_cgroup_refuses_instead_of_killing(backend: str) -> None:
    """In a memory cgroup of 24 MiB allocation ends with an error before the kernel would kill; most of it was had."""
    done = boxed(preloaded(backend), FILL, cgroup_limit=24 * MIB)
    if box.NO_CGROUP in done.stderr:
        pytest.skip("needs a writable memory cgroup")
    assert done.returncode == 0, done.stderr
    assert 8 * MIB < int(done.stdout) < 24 * MIB


@needs_root
def test_cgroup_is_named() -> None:
    """Under the policy abort the message names the memory cgroup's limit, not the lock limit."""
    done = boxed(preloaded("emulator", EXHAUSTED="abort"), ALLOCATE.replace("3000", "60000"), cgroup_limit=24 * MIB)
    if box.NO_CGROUP in done.stderr:
        pytest.skip("needs a writable memory cgroup")
    assert done.returncode == -6, done.stdout + done.stderr
    assert "memory cgroup" in done.stderr


@needs_root
@pytest.mark.parametrize("backend", BACKENDS)
def test_abort(backend: str) -> None:
    """Under the policy abort, which the kernel backend always has, running out ends the program with a message."""
    more = {} if backend == "kernel" else {"EXHAUSTED": "abort"}
    done = boxed(preloaded(backend, **more), ALLOCATE, memlock=MIB)
    assert done.returncode == -6, done.stdout + done.stderr
    assert "lived" not in done.stdout
    assert done.stderr.startswith("secretfs: error: no more secret memory can be locked")


@needs_root
def test_fallback(tmp_path: Path) -> None:
    """Under the policy fallback the program goes on, with one warning, and the report counts what was not protected."""
    report = tmp_path / "report"
    done = boxed(preloaded("emulator", REPORT=str(report)), ALLOCATE, memlock=MIB)
    assert (done.returncode, done.stdout) == (0, "lived\n"), done.stderr
    assert done.stderr.count("keys go into ordinary memory from now on") == 1
    told = json.loads(report.read_text())
    assert told["fallbacks"] > 1000
    assert told["locked"] <= MIB


@needs_root
def test_nothing_can_be_locked() -> None:
    """Where nothing at all can be locked the program does not start."""
    done = boxed(preloaded("emulator"), "print('started')", memlock=0)
    assert (done.returncode, done.stdout) == (125, "")
    assert "leave out LD_PRELOAD" in done.stderr


# Children


@pytest.mark.parametrize(("children", "inherited"), [("1", True), ("0", False)])
def test_children(children: str, inherited: bool) -> None:
    """What a preloaded program executes is preloaded too, unless it is told not to."""
    script = "os.execv('/bin/cat', ['cat', '/proc/self/maps'])"
    done = run(script, preloaded(CHILDREN=children))
    assert (PRELOAD.split()[-1] in done.stdout) == inherited


FORK = """
before = secret("secretfs_alloc", 100)
ctypes.memset(before, 0x41, 100)
done, stop = threading.Barrier(9), threading.Event()
def work():
    done.wait()
    while not stop.is_set():
        memory = ctypes.c_void_p(secret("secretfs_alloc", 200))
        ctypes.memset(memory, 0x55, 200)
        secret("secretfs_free", memory)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
done.wait()
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        right = ctypes.string_at(before, 100) == b"A" * 100 and locked(before)
        ctypes.memset(before, 0x43, 100)  # its own: the parent does not see it
        fresh = [secret("secretfs_alloc", 500) for _ in range(1000)]
        os._exit(0 if right and all(fresh) and len(set(fresh)) == 1000 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert ctypes.string_at(before, 100) == b"A" * 100
stop.set()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_fork_of_a_threaded_program(backend: str) -> None:
    """A child forked while eight threads allocate has a heap of its own with the same bytes, and allocates from it."""
    script = FORK if backend == "kernel" else FORK.replace(" and locked(before)", "")
    run(script, preloaded(backend))


# Toolkits that lock pages of their own


@pytest.mark.parametrize("backend", BACKENDS)
def test_libsodium(backend: str) -> None:
    """sodium_malloc() gives locked or secret memory for more pieces than the table of them has entries."""
    script = SODIUM + KEPT + (
        "for number in range(1100):\n"
        "    piece = ctypes.c_void_p(call('sodium_malloc', 100))\n"
        "    assert number % 500 or locked(piece.value)\n"
        "    call('sodium_free', piece)\n"
        "assert ctypes.string_at(kept, 64) == b'B' * 64\n"
    )  # fmt: skip
    told = run(script, preloaded(backend, REPORT="/dev/stderr")).stderr
    answer = json.loads(told.splitlines()[-1])
    assert (answer["libsodium"], answer["locked"], answer["fallbacks"]) == (True, 4096, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_libsodium_and_fork(backend: str) -> None:
    """A child has what its parent holds, with the same rights, and freed pieces neither disturb it nor come back."""
    script = SODIUM + KEPT + (
        "call('sodium_mprotect_noaccess', kept)\n"
        "call('sodium_free', ctypes.c_void_p(call('sodium_malloc', 100)))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    closed = mapping(kept.value).split()[1].startswith('---')\n"
        "    call('sodium_mprotect_readonly', kept)\n"
        "    os._exit(0 if closed and ctypes.string_at(kept, 64) == b'B' * 64 else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )  # fmt: skip
    run(script, preloaded(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_libsodium_unlocks(backend: str) -> None:
    """Whole pages given to sodium_mlock() are ordinary again after sodium_munlock(), also for a forked child."""
    script = SODIUM + (
        "import mmap\n"
        "pages = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n"
        "start = ctypes.addressof(ctypes.c_char.from_buffer(pages))\n"
        "where = (ctypes.c_void_p(start), ctypes.c_size_t(8192))\n"
        "call('sodium_mlock', *where)\n"
        "assert locked(start)\n"
        "call('sodium_munlock', *where)\n"
        "assert not locked(start)\n"
        "pages[:3] = b'own'\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if pages[:3] == b'own' else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )  # fmt: skip
    run(script, preloaded(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_libgcrypt(backend: str) -> None:
    """libgcrypt's pool of secure memory is replaced."""
    script = (
        "gcrypt = ctypes.CDLL('libgcrypt.so.20')\n"
        "secret('gcry_check_version', None, library=gcrypt)\n"
        "init_secmem = 24\n"
        "assert not secret('gcry_control', init_secmem, 32768, library=gcrypt, result=ctypes.c_int)\n"
        "assert locked(secret('gcry_malloc_secure', 100, library=gcrypt))\n"
    )
    told = run(script, preloaded(backend, REPORT="/dev/stderr")).stderr
    assert json.loads(told.splitlines()[-1])["gcrypt"] is True


SECURE = {
    "libsodium": SODIUM + "kept = call('sodium_malloc', 64)\n",
    "libgcrypt": (
        "gcrypt = ctypes.CDLL('libgcrypt.so.20')\n"
        "secret('gcry_check_version', None, library=gcrypt)\n"
        "secret('gcry_control', 24, 32768, library=gcrypt)\n"
        "kept = secret('gcry_malloc_secure', 64, library=gcrypt)\n"
    ),
}


@needs_root
@pytest.mark.parametrize("toolkit", list(SECURE))
def test_secure_memory_is_not_found(toolkit: str) -> None:
    """What a program reads into its toolkit's secure memory is found in a plain one, and not in a preloaded one."""
    script = SECURE[toolkit] + (
        "assert secret('read', 0, ctypes.c_void_p(kept), 64, result=ctypes.c_int) == 64\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    wanted = {"secret": os.urandom(64)}
    with reading(script, clean_environment(), wanted["secret"]) as pid:
        assert found_in(pid, wanted) == {"secret"}
    with reading(script, preloaded("kernel"), wanted["secret"]) as pid:
        assert found_in(pid, wanted) == set()


def test_gmp() -> None:
    """GMP's numbers are in secret memory, also where it is loaded late."""
    script = (
        "gmp = ctypes.CDLL('libgmp.so.10')\n"
        "class Number(ctypes.Structure):\n"
        "    _fields_ = [('room', ctypes.c_int), ('size', ctypes.c_int), ('limbs', ctypes.c_void_p)]\n"
        "number = Number()\n"
        "gmp.__gmpz_init_set_str(ctypes.byref(number), b'7' * 500, 10)\n"
        "assert locked(number.limbs)\n"
        "gmp.__gmpz_mul(ctypes.byref(number), ctypes.byref(number), ctypes.byref(number))\n"
        "assert number.size > 40 and locked(number.limbs)\n"
        "gmp.__gmpz_clear(ctypes.byref(number))\n"
    )
    run(script, preloaded("kernel"))


def test_gnutls() -> None:
    """GnuTLS's exported pointers lead to secret memory, also where it is loaded late and for itself."""
    script = (
        "gnutls = ctypes.CDLL('libgnutls.so.30')\n"
        "function = lambda name, *kinds: ctypes.CFUNCTYPE(*kinds)(ctypes.c_void_p.in_dll(gnutls, name).value)\n"
        "memory = function('gnutls_malloc', ctypes.c_void_p, ctypes.c_size_t)(100)\n"
        "assert locked(memory)\n"
        "function('gnutls_free', None, ctypes.c_void_p)(memory)\n"
    )
    run(script, preloaded("kernel"))


# A statically linked OpenSSL


@pytest.mark.parametrize("version", ["1.1.1w  11 Sep 2023", "3.0.19 27 Jan 2026", "4.0.0 14 Apr 2026"])
def test_static_openssl_is_said(version: str, tmp_path: Path) -> None:
    """An object with OpenSSL's version among its constants, and no libcrypto, is named once and reported."""
    source = tmp_path / "static.c"
    source.write_text(f'const char constants[1 << 20] = "OpenSSL {version}";\n')
    library = tmp_path / "pretends.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    done = run(f"for _ in range(2): ctypes.CDLL('{library}')", preloaded("emulator", REPORT="/dev/stderr"))
    first, last = done.stderr.splitlines()
    assert first.startswith("secretfs: warning: pretends.so has an OpenSSL linked into it")
    assert json.loads(last)["static_openssl"] is True


# The C API


def test_c_example(tmp_path: Path) -> None:
    """The example compiles with what pkg-config says, and runs without LD_PRELOAD."""
    environment = {"PATH": os.environ["PATH"], "SECRETFS": SECRETFS, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["sh", EXAMPLES / "c" / "run.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"ok: backend {'kernel' if have_secretmem() else 'emulator'}, ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows(backend: str) -> None:
    """Memory from secretfs_map() cannot be read while it is hidden: the program dies of SIGSEGV; revealed, it can."""
    script = (
        "memory = ctypes.c_void_p(secret('secretfs_map', ctypes.c_size_t(100)))\n"
        "ctypes.memset(memory, 0x41, 100)\n"
        "secret('secretfs_hide', memory)\n"
        "assert secret('secretfs_reveal', memory, 0, result=ctypes.c_int) == 0\n"
        "assert ctypes.string_at(memory, 100) == b'A' * 100\n"
        "secret('secretfs_hide', memory)\n"
    )
    run(script, preloaded(backend))
    run(script + "ctypes.string_at(memory, 1)", preloaded(backend), code=-11)


def test_command_becomes_the_program(tmp_path: Path) -> None:
    """`secretfs preload` ends as its command does: by exit code or by signal; its own failures have their codes."""

    def code(*words: str) -> int:
        return subprocess.run([SECRETFS, "preload", *words], capture_output=True, check=False).returncode

    assert code("--", "sh", "-c", "exit 7") == 7
    assert code("--", "sh", "-c", "kill -TERM $$") == -15
    assert code("--", "/nonexistent") == 127
    assert code("--", str(tmp_path)) == 126
    assert code("--toolkit", "nonsense", "--", "true") == 125
