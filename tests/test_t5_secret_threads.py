"""Secrets in several threads, in signal handlers, in finalizers, and across forks while threads are busy."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from programs import BACKENDS, HEADER, program, works

from secretfs import Secret, SecretArea, turns
from secretfs.interface import Backend

KINDS = [*BACKENDS, "at rest"]
MAKE = """
sys.setswitchinterval(1e-6)
KIND = {"backend": "emulator", "at_rest": True} if sys.argv[1] == "at rest" else \\
       {"backend": sys.argv[1], "at_rest": False}
def made(byte, length=24, **more): return Secret.from_bytes(bytearray([byte]) * length, **KIND, **more)
def holds(secret, byte):
    with secret.reveal() as view: return view == bytes([byte]) * len(view)
failures = []
def run(*targets):
    def guarded(target):
        try: target()
        except BaseException as error: failures.append(repr(error))
    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    assert not failures, failures
ROUNDS = 60 if sys.argv[1] == "at rest" else 300
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_contention(kind: str) -> None:
    """Threads that make, reveal, write and close secrets of the same slabs see their own bytes, and no fault."""
    text = f"""{MAKE}
shared = made(77)
def work(byte):
    mine = [made(byte) for _ in range(6)]
    for n in range(ROUNDS):
        one = mine[n % 6]
        assert holds(one, byte) and holds(shared, 77)
        with one.reveal(write=True) as view, shared.reveal() as other:
            view[:] = bytes(24); view[:] = bytes([byte]) * 24
            assert other == bytes([77]) * 24
        if n % 3 == 0:
            mine[n % 6].close(); mine[n % 6] = made(byte)
        if n % 5 == 0: mine[(n + 1) % 6] = made(byte)
        assert mine[0].compare(mine[3])
run(*(lambda byte=byte: work(byte) for byte in range(1, 9)))
print(secretfs.kinds.all_kinds()[0].heap.locked < 200_000 + 2**18)
"""
    assert works(text, kind) == "True"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_collection_in_any_line(kind: str) -> None:
    """The collector gives up views and secrets in cycles, in threads that are busy with the same slabs."""
    text = f"""{MAKE}
gc.set_threshold(5, 2, 2)
class Cycle:
    def __init__(self, *kept): self.kept = [self, *kept]
def work(byte):
    for _ in range(ROUNDS):
        secret = made(byte)
        Cycle(secret)
        try:
            with made(byte).reveal() as view: Cycle(view[3:])
        except BufferError: pass
        area = SecretArea(4096, backend=KIND["backend"]) if _ % 20 == 0 else None
        Cycle(area, area and area.view())
        assert holds(secret, byte)
run(*(lambda byte=byte: work(byte) for byte in range(1, 7)))
gc.collect()
heap = secretfs.kinds.all_kinds()[0].heap
made(1)
print(sum(slab.cells - len(slab.free) for slab in heap.slabs.values() if slab.slot), len(secretfs.turns.late))
"""
    assert works(text, kind) == "0 0"


@pytest.mark.parametrize("kind", KINDS)
def test_closed_by_many_at_once(kind: str) -> None:
    """A place that many threads give back at the same time is given back once."""
    text = f"""{MAKE}
for _ in range(40):
    secret, start = made(5), threading.Barrier(6)
    run(*([lambda: (start.wait(), secret.close())] * 6))
    several = [made(n) for n in range(1, 30)]
    assert all(holds(one, n) for n, one in enumerate(several, 1))
    addresses = []
    for one in several:
        with one.pointer() as at: addresses.append(at)
    assert len(set(addresses)) == len(addresses)
print("once")
"""
    assert works(text, kind) == "once"


@pytest.mark.parametrize("kind", KINDS)
def test_closed_while_others_reveal(kind: str) -> None:
    """A reader sees the bytes, zeros or ClosedError, never those of the secret that gets the place."""
    text = f"""{MAKE}
for _ in range(ROUNDS // 10):
    secret, start = made(5), threading.Barrier(4)
    def read():
        start.wait()
        for _ in range(20):
            try:
                with secret.reveal() as view: seen = set(bytes(view))
            except ClosedError: return
            assert seen <= {{0, 5}}, seen
    def close():
        start.wait()
        with contextlib.suppress(BufferError): secret.close()
        others = [made(9) for _ in range(4)]
    run(read, read, read, close)
print("fine")
"""
    assert works(text, kind) == "fine"


def test_a_place_is_given_back_once() -> None:
    """The heap takes a place back once, however often it is told to."""
    secret = Secret(40, backend="emulator", at_rest=False)
    heap, cell = secret._kind.heap, secret._cell
    with turns.lock:
        free = len(cell.slab.free)
        heap.free(cell), heap.free(cell)
        assert len(cell.slab.free) == free + 1
    secret.close()
    assert len(cell.slab.free) == free + 1


def test_the_first_use_in_several_threads() -> None:
    """Threads that need a backend for the first time at once get one heap, whoever was first."""
    text = """
    import secretfs_emulator
    from secretfs import kinds, registry
    start = threading.Barrier(4)
    def choose(word):
        start.wait()
        return registry.Choice(secretfs_emulator.Backend(), "emulate")
    registry.choose_warning = choose
    made = []
    threads = [threading.Thread(target=lambda: made.append(Secret(32))) for _ in range(4)]
    [thread.start() for thread in threads]; [thread.join() for thread in threads]
    print(len(made), len(kinds.all_kinds()), len({id(one._kind) for one in made}))
    """
    assert works(text) == "4 1 1"


def test_a_finalizer_never_waits() -> None:
    """What a thread drops while another has the lock is given back by that one, when it is done."""
    secret, other = Secret(40, backend="emulator"), Secret(40, backend="emulator")
    heap, cell = secret._kind.heap, secret._cell
    window = other.reveal()
    view = window.__enter__()[3:]
    with pytest.raises(BufferError):
        window.__exit__(None, None, None)
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.lock:
            taken.set()
            assert go.wait(20)
        turns.catch_up()

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)
    del secret, view  # would wait for ever
    assert cell.taken
    assert other._cell.opens == 1
    go.set()
    thread.join()
    assert not cell.taken
    assert other._cell.opens == 0
    assert heap is other._kind.heap


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_in_a_signal_handler(kind: str) -> None:
    """A handler may do with secrets what it likes, whatever line of ours it interrupts; but with secrets at rest not
    while one is being enciphered, and then it is told so.
    """
    text = f"""{MAKE}
mine, calls = made(3), []
def handler(*_):
    calls.append(1)
    try:
        assert holds(mine, 3)
        one = made(4)
        assert holds(one, 4)
        if len(calls) % 2: one.close()
    except secretfs.SecretFSError as error: assert "signal handler" in str(error) and sys.argv[1] == "at rest", error
    if len(calls) % 7 == 0: gc.collect()
    if len(calls) < 150: signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + len(calls) % 40))
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 1e-4)
while len(calls) < 150:
    one, other = made(5), made(6, alone=len(calls) % 9 == 0)
    assert holds(one, 5) and holds(other, 6) and holds(mine, 3)
    with one.reveal(write=True) as view, other.reveal(): view[:] = bytes([8]) * 24
    assert holds(one, 8)
    one.close()
print("fine")
"""
    assert works(text, kind) == "fine"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_wipe_on_signals_in_any_line(kind: str) -> None:
    """The signal ends the process, whatever line of ours it comes in."""
    text = f"""{MAKE}
secretfs.wipe_on_signals(signal.SIGALRM)
kept = [made(2), SecretArea(4096, backend=KIND["backend"]), secretfs.mmap(100, backend=KIND["backend"])]
seen, window = kept[1].view(), kept[0].reveal()
revealed = window.__enter__()
seen[:3] = kept[2][:3] = b"abc"
kill = os.kill
def last(pid, number):
    os.write(1, bytes(seen[:3] == kept[2][:3] == bytes(3) and revealed == bytes(24)).hex().encode() + b"gone")
    kill(pid, number)
os.kill = last
signal.setitimer(signal.ITIMER_REAL, int(sys.argv[2]) * 1.7e-4)
while True:
    one = made(5)
    with one.reveal(write=True) as view: view[:] = bytes(24)
    if len(sys.argv[2]) % 2: one.close()
    SecretArea(4096, backend=KIND["backend"])
"""
    for n in range(1, 7):
        done = program(text, kind, str(n * 3))
        assert (done.returncode, done.stdout) == (-signal.SIGALRM, "00gone"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_forks_while_threads_are_busy(kind: str) -> None:
    """A child can make, reveal and inherit secrets, whatever other threads did at the fork; two threads may fork."""
    text = f"""{MAKE}
stop = threading.Event()
given = made(7, inherit=True)
def busy():
    while not stop.is_set():
        one = made(1)
        assert holds(one, 1)
        one.close()
def child():
    signal.alarm(20)
    assert holds(given, 7)
    one = made(2)
    assert holds(one, 2)
    one.close(); given.close()
    gc.collect()
def fork():
    for _ in range(8):
        if not (pid := os.fork()):
            try: child()
            except BaseException as error: print(repr(error), flush=True); os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert holds(given, 7)
def forks():
    try: run(fork, fork)
    finally: stop.set()
run(busy, busy, forks)
print("fine")
"""
    assert works(text, kind) == "fine"


def test_what_is_put_back_waits(emulator: Backend) -> None:
    """An area that a garbage collection closes while a secret is being enciphered waits for nothing: what cannot be
    done yet is done when the line that was interrupted is.
    """
    calls, busy = [], [True]

    def work() -> None:
        calls.append(len(calls))
        assert len(calls) < 9
        if busy:
            turns.late.append((work, ()))

    with turns.lock:
        turns.late.append((work, ()))
        SecretArea(4096, backend=emulator).close()
        assert len(turns.late) == 1
        tried = len(calls)
        busy.clear()
    turns.catch_up()
    assert (len(calls), len(turns.late)) == (tried + 1, 0)


def test_programs_are_what_they_seem() -> None:
    """The header of the programs above runs, alone, and its interpreter is the one that runs the tests."""
    done = subprocess.run([sys.executable, "-I", "-c", HEADER + MAKE, "emulator"], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
