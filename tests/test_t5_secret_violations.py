"""What must not be done with secrets, each in a program of its own: how it ends, and what it says last."""

from __future__ import annotations

import signal

import pytest
from programs import BACKENDS, dies, program, works

pytestmark = [pytest.mark.parametrize("backend", BACKENDS), pytest.mark.slow]

OVERWRITTEN = "secretfs: fatal: a secret was written past its bounds; ending before more is lost"
TOUCHES = {
    "over-read of a large secret": "with large.pointer() as at: print(before()), peek(at + 5000)",
    "over-read of one that is alone": "with alone.pointer() as at: print(before()), peek(at + 32)",
    "over-write of a large secret": "with large.pointer(write=True) as at: print(before()), poke(at + 5000)",
    "a read before the slab": "with small.pointer() as at: print(before()), peek((at & -4096) - 1)",
    "a read outside a window": "at = address(small); print(before()), peek(at)",
    "a read of a large one outside a window": "at = address(large); print(before()), peek(at)",
    "a write in a window for reading": "with small.pointer() as at: print(before()), poke(at)",
    "a read after close": "at = address(small); small.close(); print(before()), peek(at)",
    "a read of a large one after close": "at = address(large); large.close(); secretfs.release_all(); "
    "print(before()), peek(at)",
    "a write between windows": "at = address(small); print(before()), poke(at)",
    "a neighbour that is alone": "at = address(alone)\nwith small.reveal(): print(before()), peek(at)",
    "memory of mmap past its end": "view = secretfs.mmap(100)\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(view)); print(before()), peek(at + 100)",
    "a read after release_all": "at = address(small); secretfs.release_all(); print(before()), peek(at)",
}
SECRETS = """
def before(): sys.stdout.write("before\\n"); sys.stdout.flush(); return ""
def peek(at): print(ctypes.c_ubyte.from_address(at).value)
def poke(at): ctypes.c_ubyte.from_address(at).value = 7; print("written")
def address(secret):
    with secret.pointer() as at: return at
def print(*words): [sys.stdout.write(f"{word}\\n") for word in words if word != ""]; sys.stdout.flush()
small, large, alone = Secret.random(32), Secret.random(5000), Secret.random(32, alone=True)
"""


@pytest.mark.parametrize("what", TOUCHES)
def test_touching_is_a_fault(backend: str, what: str) -> None:
    """Bytes outside an open window, and bytes around a secret that has a page of its own, are SIGSEGV."""
    assert dies(signal.SIGSEGV, SECRETS + TOUCHES[what], backend=backend) == ""


@pytest.mark.parametrize("offset", ["32", "-1", "47", "-16"])
@pytest.mark.parametrize("end", ["small.close()", "del small", "sys.exit(0)", "secretfs.release_all()"])
def test_writing_around_is_found(backend: str, offset: str, end: str) -> None:
    """A write past either end of a small secret ends the process when that is closed, and at exit, with a last line."""
    text = f"{SECRETS}\nwith small.pointer(write=True) as at: ctypes.c_ubyte.from_address(at + {offset}).value ^= 1\n"
    assert dies(signal.SIGABRT, f"{text}before()\n{end}\nprint('survived')", backend=backend) == OVERWRITTEN


def test_writing_into_the_slack_is_found(backend: str) -> None:
    """What lies before a secret in a cell that is larger than it must stay zero, too."""
    text = f"""{SECRETS}
odd = Secret.random(33)
with odd.pointer(write=True) as at: ctypes.c_ubyte.from_address(at - 9).value ^= 1
before()
odd.close()
"""
    assert dies(signal.SIGABRT, text, backend=backend) == OVERWRITTEN


def test_writing_before_a_large_one_is_found(backend: str) -> None:
    """The canary before a large secret is looked at when it is closed."""
    text = f"{SECRETS}\nwith large.pointer(write=True) as at: ctypes.c_ubyte.from_address(at - 1).value ^= 1\n"
    assert dies(signal.SIGABRT, f"{text}before()\nlarge.close()", backend=backend) == OVERWRITTEN


def test_the_last_words_leave_nothing(backend: str) -> None:
    """What other secrets, areas and mappings held is wiped before the process ends itself."""
    text = f"""{SECRETS}
area = SecretArea(4096); area.write(b"planted")
seen = area.view()
os.abort = lambda: (print(bytes(seen[:7]).hex()), os.kill(os.getpid(), signal.SIGABRT))
with small.pointer(write=True) as at: ctypes.c_ubyte.from_address(at + 32).value ^= 1
small.close()
"""
    done = program(text, backend=backend)
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, "00" * 7 + "\n"), done.stderr


def test_double_free_is_harmless(backend: str) -> None:
    """Closed twice, and collected by name, a secret gives its place back once: two new ones never share one."""
    text = f"""{SECRETS}
small.close(), small.close(), small.__del__(), small.__del__()
other = Secret.random(32); other.__del__(); other.close(); other.__del__()
several = [Secret.from_bytes(bytearray([n] * 32)) for n in range(1, 20)]
for n, secret in enumerate(several, 1):
    with secret.reveal() as view: assert view == bytes([n] * 32)
try: other.reveal().__enter__()
except ClosedError as error: print(error)
"""
    assert works(text, backend=backend) == "this secret was closed"


def test_a_view_after_its_block(backend: str) -> None:
    """The view itself is dead after its block; its raw address is SIGSEGV."""
    text = f"""{SECRETS}
with small.reveal() as view:
    at = ctypes.addressof(ctypes.c_char.from_buffer_copy(view)) and address(small)
try: view[0]
except ValueError as error: print("before") if "released" in str(error) else print(error)
peek(at)
"""
    assert dies(signal.SIGSEGV, text, backend=backend) == ""


def test_a_stale_export(backend: str) -> None:
    """A view that survives keeps the memory mapped: its bytes while the secret lives, zeros once that is closed; when
    it is gone, so is the memory.
    """
    text = f"""{SECRETS}
small = Secret.from_bytes(bytearray(b"s" * 32), alone=True)
try:
    with small.reveal() as view:
        kept = memoryview(view)[4:8]
except BufferError as error: print(error)
at = address(small)
print(bytes(kept).decode())
try: small.close()
except BufferError as error: print(error)
print(bytes(kept).hex())
secretfs.Secret.random(32, alone=True)
print(bytes(kept).hex())
del kept
before()
peek(at)
"""
    done = program(text, backend=backend)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert done.stdout.splitlines() == [
        "a view of a secret is used outside its block; the secret stays open until that is gone",
        "ssss",
        "a closed secret is still revealed; it is wiped, and goes with the last view",
        "00000000",
        "00000000",
        "before",
    ]


def test_a_child_has_nothing(backend: str) -> None:
    """In a forked child every use of a secret is ClosedError, closing does nothing, and what the child makes is its
    own; touching the parent's view is SIGSEGV there, and the parent's bytes stay what they are.
    """
    text = f"""{SECRETS}
small = Secret.from_bytes(bytearray(b"s" * 32))
other = Secret.from_bytes(bytearray(b"o" * 32))
uses = [lambda: small.reveal().__enter__(), lambda: small.compare(other), lambda: small.write_to(1),
        lambda: small[:3], lambda: small.split(3), lambda: Secret.concat(small), lambda: small.pointer().__enter__()]
with small.reveal() as view:
    if not (pid := os.fork()):
        for use in uses:
            try: print(use())
            except ValueError as error: assert type(error) is ClosedError; assert "forked from" in str(error), error
        small.close(); del other
        with Secret.from_bytes(bytearray(b"c" * 32)).reveal() as mine: assert mine == b"c" * 32
        secretfs.release_all()
        view[0]
    assert os.waitpid(pid, 0)[1] == signal.SIGSEGV
    assert view == b"s" * 32
with other.reveal() as view: print(bytes(view[:3]).decode())
"""
    assert works(text, backend=backend) == "ooo"


def test_a_child_that_inherits(backend: str) -> None:
    """inherit=True gives each child a copy of its own, and its children too, until the secret is closed."""
    text = f"""{SECRETS}
given = Secret.from_bytes(bytearray(b"g" * 40), inherit=True)
closed = Secret.random(9, inherit=True); closed.close()
def child(what):
    sys.stdout.flush()
    if not (pid := os.fork()):
        try: what()
        except BaseException as error: print(type(error).__name__, error); os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
def grandchild():
    with given.reveal() as view: assert view == b"c" * 40
    given.close()
def look():
    assert not given.guarantees.unforkable
    with given.reveal(write=True) as view:
        assert view == b"g" * 40
        view[:] = b"c" * 40
    child(grandchild)
    with given.reveal() as view: assert view == b"c" * 40
    with given.pointer() as at: given_at = at
    gone = lambda: print(small.reveal().__enter__())
    try: gone()
    except ClosedError: print("no other")
child(look); child(look)
with given.reveal() as view: print(bytes(view[:2]).decode())
given.close()
def refused():
    try: given.reveal().__enter__()
    except ClosedError as error: print(error)
child(refused)
"""
    assert works(text, backend=backend).splitlines() == ["no other", "no other", "gg", "this secret was closed"]


def test_exec_leaves_nothing(backend: str) -> None:
    """Another program in the same process has neither the memory nor a descriptor of it."""
    text = f"""{SECRETS}
given = Secret.random(40, inherit=True); area = SecretArea.share(4096)
show = "import os; maps = open('/proc/self/maps').read(); files = [f'/proc/self/fd/{{n}}' for n in range(3, 64)]; " \\
       "print(*(os.readlink(file) for file in files if os.path.exists(file)), 'secret' in maps)"
with small.reveal(): os.execv(sys.executable, [sys.executable, "-I", "-c", show])
"""
    assert works(text, backend=backend) == "False"


@pytest.mark.parametrize(
    "left",
    [
        "keep = [small, large, alone]; keep.append(keep)",
        "view = small.reveal().__enter__(); kept = view[3:]",
        "area = SecretArea(4096); view = area.view(); mapping = secretfs.mmap(33)",
        "class Odd:\n    def __del__(self): small.close()\nodd = Odd()",
        "secretfs.release_all(); late = Secret(12)",
        "threading.Thread(target=lambda: (small.reveal().__enter__(), threading.Event().wait()), daemon=True).start()",
    ],
)
def test_exit_with_something_left(backend: str, left: str) -> None:
    """The interpreter ends well and silently, whatever is open."""
    assert works(f"{SECRETS}\n{left}\nprint('end')", backend=backend) == "end"
