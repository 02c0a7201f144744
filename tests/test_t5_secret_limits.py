"""Secrets in numbers: memory that does not grow, many in little locked memory, and limits that are named."""

from __future__ import annotations

import json
import re

import pytest
from box import NO_CGROUP
from box import command as box
from mounts import ROOT, needs_root
from programs import BACKENDS, program, works

MIB = 1 << 20


def limited(size: int) -> list[str]:
    """What a command goes behind to run as an ordinary user who may lock so many bytes."""
    return box([], user="nobody", memlock=size) if ROOT else ["prlimit", f"--memlock={size}"]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_growth(backend: str) -> None:
    """Memory, mappings and locked bytes stay what they are over many secrets made, revealed and closed."""
    text = """
    def state():
        gc.collect()
        maps = open("/proc/self/maps").read().count("\\n")
        return int(secretfs.libc.proc_status("VmRSS").split()[0]), maps, secretfs.libc.locked_bytes()
    def work(rounds):
        for n in range(rounds):
            one = Secret(32, at_rest=False); one.close()
            two = Secret.random(200, at_rest=False, alone=n % 20 == 0)
            with two.reveal() as view: pass
            large = Secret(5000, at_rest=False) if n % 20 == 1 else None
            if n % 50 == 2: SecretArea(4096).close()
            if n % 50 == 3: secretfs.mmap(100)
            if n % 50 == 4: two[:7], Secret.concat(two, two)
    work(2000); before = state(); work(8000); after = state()
    print(after[0] - before[0] < 500, after[1] - before[1], after[2] - before[2])
    """
    assert works(text, backend=backend) == "True 0 0"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hundred_thousand(backend: str) -> None:
    """100,000 secrets of 64 bytes fit a lock limit of 8 MiB, each with its own bytes; afterwards slabs go back."""
    text = """
    import resource
    assert not secretfs.libc.effective_capability(14) and secretfs.libc.lock_limit() <= 8 << 20
    made = []
    for n in range(100_000):
        made.append(Secret(64, at_rest=False))
        if n % 100 == 0:
            with made[n].reveal(write=True) as view: view[:8] = n.to_bytes(8, "big")
    for n in range(0, 100_000, 100):
        with made[n].reveal() as view: assert view[:8] == n.to_bytes(8, "big") and not any(view[8:])
    full = secretfs.libc.locked_bytes()
    heap = made[0]._kind.heap
    del made[10_000:]
    part = heap.locked
    made.clear()
    print(full <= 8 << 20, full > 6_400_000, part < full // 8, heap.locked <= 4 * 16384)
    """
    under = limited(8 * MIB)
    assert works(text, backend=backend, under=under) == "True True True True"


def test_fragmentation_is_bounded() -> None:
    """Secrets of all sizes, most of them closed again in random order: what stays takes a bounded multiple of itself,
    and the free places are used before a new slab is made.
    """
    text = """
    import random
    draw = random.Random(7)
    made = [Secret(draw.randint(1, 2048), at_rest=False) for _ in range(3000)]
    heap = made[0]._kind.heap
    full, wanted = heap.locked, sum(map(len, made))
    draw.shuffle(made)
    for one in made[1500:]: one.close()
    del made[1500:]
    half = heap.locked
    made += [Secret(draw.randint(1, 2048), at_rest=False) for _ in range(1400)]
    again = heap.locked
    for one in made: one.close()
    print(full < 2.2 * wanted, half <= full, again <= full * 1.05, heap.locked < 30 * 16384)
    """
    assert works(text, backend="emulator") == "True True True True"


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_over_the_lock_limit(backend: str) -> None:
    """What does not fit names the limit, what is used of it, and the command; nothing stays half allocated, and once
    something is closed there is room again.
    """
    text = """
    import json
    limit = secretfs.libc.lock_limit()
    kept = [Secret(32, at_rest=False)]
    def state(): return secretfs.libc.locked_bytes(), len(os.listdir("/proc/self/fd"))
    before = state()
    answers = []
    for make in (lambda: Secret(2 << 20, at_rest=False), lambda: SecretArea(2 << 20), lambda: secretfs.mmap(2 << 20),
                 lambda: SecretArea.share(2 << 20), lambda: Secret.from_bytes(bytearray(2 << 20), at_rest=False),
                 lambda: [Secret(2048, at_rest=False, alone=True) for _ in range(1000)],
                 lambda: [Secret(500, at_rest=False) for _ in range(10_000)]):
        try: make()
        except secretfs.LimitError as error: answers.append([type(error).__name__, str(error), error.hint])
        gc.collect()
        assert secretfs.libc.locked_bytes() - before[0] <= 12 * 16384, secretfs.libc.locked_bytes()
        Secret(100, at_rest=False).close()
    assert state()[1] == before[1]
    print(json.dumps([limit, answers]))
    """
    under = limited(MIB)
    limit, answers = json.loads(works(text, backend=backend, under=under))
    assert limit == MIB
    assert len(answers) == 7
    for kind, said, hint in answers:
        assert kind == "LockLimitExceeded"
        found = re.fullmatch(
            r"cannot lock (\d+) bytes of memory: (\d+) of the (\d+) bytes that RLIMIT_MEMLOCK allows are in use", said
        )
        assert found is not None, said
        wanted, used, named = map(int, found.groups())
        assert named == limit
        assert used + wanted > limit
        assert "ulimit -l" in hint


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_without_headroom_in_the_cgroup(backend: str) -> None:
    """A memory cgroup that is nearly full is named before the OOM killer comes, for small secrets too."""
    text = """
    used = []
    answers = []
    for make in (lambda: Secret(80 << 20, at_rest=False), lambda: SecretArea(80 << 20), lambda: secretfs.mmap(80 << 20),
                 lambda: [used.append(Secret(2000, at_rest=False)) for _ in range(100_000)]):
        try: make()
        except secretfs.CgroupLimitExceeded as error:
            assert str(error).startswith("cannot take ")
            answers.append(error.hint)
    used.clear()
    Secret(32).close()
    print(len(answers), *{"memory.max" in answer for answer in answers})
    """
    done = program(text, backend=backend, under=box([], cgroup_limit=64 * MIB))
    if NO_CGROUP in done.stderr:
        pytest.skip(f"needs a writable memory cgroup: {done.stderr.strip()}")
    assert (done.returncode, done.stdout.strip()) == (0, "4 True"), done.stderr


def test_limits_of_a_file() -> None:
    """A secret that cannot grow while a pipe is read gives everything back, and the pipe stays the caller's."""
    text = """
    reader, writer = os.pipe()
    def write(): os.write(writer, bytes(60_000)), os.write(writer, bytes(60_000)), os.close(writer)
    threading.Thread(target=write).start()
    before = secretfs.libc.locked_bytes()
    try: Secret.read(reader, at_rest=False)
    except secretfs.LockLimitExceeded: print("limit")
    while os.read(reader, 65536): pass
    gc.collect()
    print(secretfs.libc.locked_bytes() - before <= 65536 + 16384)
    """
    under = limited(160 * 1024)
    assert works(text, backend="emulator", under=under).split() == ["limit", "True"]
