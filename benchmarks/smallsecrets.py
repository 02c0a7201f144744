"""What a small secret costs, beside libsodium and OpenSSL: time, room within a lock limit, memory that stays behind.

Times are CPU time of the thread (nothing here waits), in one process, the systems in turn, a few milliseconds each:
what else the machine does disturbs all of them alike. What depends on limits runs in forked children of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat
from statistics import median
from typing import Any, NamedTuple

from secretpeers import LENGTH, Mprotect, OpenSSL, Sodium
from systems import Missing

from secretfs import LimitError, Secret, libc, registry
from secretfs.cells import SLAB
from secretfs.errors import SecretFSError

TITLES = {
    "create": "create + close, never revealed",
    "create_random": "random + close",
    "life": "from a bytearray + reveal + close",
    "reveal": "reveal and its end",
    "write": "reveal(write=True) and its end",
    "pointer": "pointer() and its end",
}
SHORT = {
    "create": "create+close", "create_random": "random+close", "life": "a whole life", "reveal": "reveal",
    "write": "reveal to write",
}  # fmt: skip
REFERENCE = {
    "create": "libsodium", "create_random": "libsodium", "life": "libsodium", "reveal": "2 mprotect",
    "write": "2 mprotect", "pointer": "2 mprotect",
}  # fmt: skip
CEILINGS = {"create": 0.25, "create_random": 1.0, "reveal": 2.0}
"""The most that `JUDGED` may take, as a multiple of the reference's time."""
JUDGED = "kernel"
REVEAL_LIMIT = 10.0
"""Microseconds for a reveal and its end."""
FLAT = 1.5
"""The most that a secret may cost among the largest number of them, as a multiple of the smallest number."""
LOCK_LIMIT = 8 << 20
FIT, FIT_LENGTH, FIT_END = 100_000, 64, 150_000
NUMBERS = (10, 100, 1_000, 10_000, 100_000)
SODIUM_NUMBERS = NUMBERS[:4]  # four mappings each: vm.max_map_count ends it soon after
IMPORT_LIMIT = 50.0
"""Milliseconds for `import secretfs`."""
CYCLES = 1_000_000
ALIVE = 300
"""How many secrets are alive at any time while memory is watched."""
KEPT = 64 * 1024
"""Bytes that may stay: less than what a single byte for each ten cycles would be."""
KINDS: dict[str, dict[str, Any]] = {
    "kernel": {"backend": "kernel"},
    "alone": {"backend": "kernel", "alone": True},
    "uncached": {"backend": "kernel", "mode": "uncached"},
    "emulator": {"backend": "emulator", "at_rest": False},
    "at rest": {"backend": "emulator", "at_rest": True},
}
NOBODY = 65534
Action = Callable[[], object]


class Samples(NamedTuple):
    """The actions of one operation by system, and how often each is done in a sample."""

    actions: dict[str, Action]
    number: int


def _import_time() -> float:
    """Milliseconds of CPU time for the import in a fresh interpreter, its start not counted."""
    program = "import time; before = time.process_time(); import secretfs; print(time.process_time() - before)"
    return 1000 * float(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout)


# Times


def measure(*, rounds: int, scale: float, progress: Callable[[str], None]) -> dict[str, Any]:
    """Everything; what cannot be measured here is in "missing", with the reason."""
    result: dict[str, Any] = {"missing": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result["import"] = round(median(_import_time() for _ in range(rounds)), 1)
        result["fit"] = fit(progress)
        result["cycles"] = cycles(int(CYCLES * scale), progress)
        kinds, peers = _usable(KINDS, result["missing"]), _peers(result["missing"])
        result["times"] = _times(kinds, peers, rounds, scale, progress)
        result["number"] = by_number(kinds, peers.get("libsodium"), rounds, scale, progress)
    return result


def _usable(kinds: dict[str, dict[str, Any]], missing: dict[str, str]) -> dict[str, dict[str, Any]]:
    usable = {}
    for name, words in kinds.items():
        try:
            Secret(LENGTH, **words).close()
            usable[name] = words
        except SecretFSError as error:
            missing[name] = str(error)
    return usable


def _peers(missing: dict[str, str]) -> dict[str, Any]:
    peers: dict[str, Any] = {}
    for name, make in (("libsodium", Sodium), ("OpenSSL", OpenSSL)):
        try:
            peers[name] = make()
        except Missing as error:
            missing[name] = str(error)
    return peers


def _times(
    kinds: dict[str, Any], peers: dict[str, Any], rounds: int, scale: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    taken: dict[str, dict[str, list[float]]] = {}
    with operations(kinds, peers) as found:
        for number in range(rounds * 5):
            for name, (actions, repeats) in found.items():
                names = list(actions)
                turn = number % len(names)
                for system in (*names[turn:], *names[:turn]):
                    few = max(10, int(repeats * scale * (0.1 if system == "at rest" else 1)))
                    taken.setdefault(name, {}).setdefault(system, []).append(_time(actions[system], few))
            if number % 5 == 4:
                progress(f"secrets: round {number // 5 + 1} of {rounds}")
    return {name: _summary(by_system, REFERENCE[name]) for name, by_system in taken.items()}


def _time(action: Action, number: int) -> float:
    """Microseconds for one of `number`."""
    start = time.thread_time_ns()
    for _ in repeat(None, number):
        action()
    return (time.thread_time_ns() - start) / number / 1000


def _summary(by_system: dict[str, list[float]], reference: str) -> dict[str, dict[str, float | None]]:
    """Medians: microseconds, and the ratio to the reference within a round."""
    base = by_system.get(reference)
    return {
        system: {
            "us": round(median(found), 2),
            "ratio": base and round(median(one / other for one, other in zip(found, base, strict=True)), 3),
        }
        for system, found in by_system.items()
    }


@contextlib.contextmanager
def operations(kinds: dict[str, dict[str, Any]], peers: dict[str, Any]) -> Iterator[dict[str, Samples]]:
    """What is timed, by operation."""
    found = {name: Samples({}, 100 if name in ("create_random", "life") else 300) for name in TITLES}
    with contextlib.ExitStack() as stack:
        for system, words in kinds.items():
            kept = stack.enter_context(Secret.random(LENGTH, **words))
            for name, action in _actions(words, kept).items():
                found[name].actions[system] = action
        if "kernel" in kinds:
            peers = {**peers, "2 mprotect": Mprotect(registry.named("kernel"), SLAB)}
            stack.callback(peers["2 mprotect"].close)
        for system, peer in peers.items():
            for name in TITLES:
                if action := getattr(peer, name, None):
                    found[name].actions[system] = action
        if "2 mprotect" in peers:
            found["pointer"].actions["2 mprotect"] = peers["2 mprotect"].reveal
        yield found


def _actions(words: dict[str, Any], kept: Secret) -> dict[str, Action]:
    def reveal() -> None:
        with kept.reveal():
            pass

    def write() -> None:
        with kept.reveal(write=True):
            pass

    def pointer() -> None:
        with kept.pointer():
            pass

    def life() -> None:
        with Secret.from_bytes(bytearray(LENGTH), **words) as secret, secret.reveal():
            pass

    return {
        "create": lambda: Secret(LENGTH, **words).close(),
        "create_random": lambda: Secret.random(LENGTH, **words).close(),
        "life": life, "reveal": reveal, "write": write, "pointer": pointer,
    }  # fmt: skip


# Many of them


def by_number(
    kinds: dict[str, Any], sodium: Sodium | None, rounds: int, scale: float, progress: Callable[[str], None]
) -> dict[str, Any]:
    """result[step, system][number alive]: median microseconds for one secret of 64 bytes."""
    taken: dict[str, dict[str, list[float]]] = {}
    numbers = NUMBERS if scale == 1 else NUMBERS[:4]
    for _ in range(rounds):
        for number in numbers:
            runs = max(1, 5_000 // number)
            if "kernel" in kinds:
                for step, cost in _ours(number, runs).items():
                    taken.setdefault(f"{step}, kernel", {}).setdefault(str(number), []).append(cost)
            if sodium is not None and number in SODIUM_NUMBERS:
                for step, cost in _theirs(sodium, number, max(1, runs // 10)).items():
                    taken.setdefault(f"{step}, libsodium", {}).setdefault(str(number), []).append(cost)
    progress("secrets: many of them")
    return {name: {number: round(median(cell), 2) for number, cell in row.items()} for name, row in taken.items()}


def _ours(number: int, runs: int) -> dict[str, float]:
    secrets: list[Secret] = []

    def reveal() -> None:
        for secret in chosen:
            with secret.reveal():
                pass

    taken = {"create": 0.0, "reveal": 0.0, "close": 0.0}
    for _ in range(runs):
        taken["create"] += _time(lambda: secrets.extend(Secret(FIT_LENGTH, backend="kernel") for _ in range(number)), 1)
        chosen = secrets[:: max(1, number // 1000)]
        taken["reveal"] += _time(reveal, 1) * number / len(chosen)
        taken["close"] += _time(lambda: [secret.close() for secret in secrets], 1)
        secrets.clear()
    return {step: cost / runs / number for step, cost in taken.items()}


def _theirs(sodium: Sodium, number: int, runs: int) -> dict[str, float]:
    secrets: list[int] = []
    taken = {"create": 0.0, "close": 0.0}
    for _ in range(runs):
        taken["create"] += _time(lambda: secrets.extend(sodium.malloc(FIT_LENGTH) for _ in range(number)), 1)
        taken["close"] += _time(lambda: [sodium.free(secret) for secret in secrets], 1)
        secrets.clear()
    return {step: cost / runs / number for step, cost in taken.items()}


# In children


def fit(progress: Callable[[str], None]) -> dict[str, int | str]:
    """How many secrets of 64 bytes an ordinary user can have within a lock limit of 8 MiB, by system."""
    found = {
        "kernel": in_child(_count_ours, "kernel", limit=LOCK_LIMIT),
        "emulator": in_child(_count_ours, "emulator", limit=LOCK_LIMIT),
        "libsodium": in_child(_count_sodium, limit=LOCK_LIMIT),
        "OpenSSL": in_child(_count_openssl, limit=LOCK_LIMIT),
    }
    progress("secrets: how many fit")
    return found


def _count_ours(backend: str) -> int:
    secrets = []
    with contextlib.suppress(LimitError):
        while len(secrets) < FIT_END:
            secrets.append(Secret(FIT_LENGTH, backend=backend))
    return len(secrets)


def _count_sodium() -> int:
    """It does not say when it could not lock: the last one that did made the locked bytes grow."""
    sodium, number, locked = Sodium(), 0, libc.locked_bytes()
    while number < FIT_END:
        sodium.malloc(FIT_LENGTH)
        if libc.locked_bytes() == locked:
            return number
        number, locked = number + 1, libc.locked_bytes()
    return number


def _count_openssl() -> int:
    openssl, number = OpenSSL(LOCK_LIMIT), 0
    while number < FIT_END and openssl.malloc(FIT_LENGTH):
        number += 1
    return number


def cycles(number: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Bytes by which a process grew over `number` secrets of all sizes that came and went."""
    found = {name: in_child(_grow, name, number) for name in ("kernel", "emulator")}
    progress(f"secrets: {number:,} came and went")
    return {"number": number, **found}


def _grow(backend: str, number: int) -> dict[str, int]:
    alive: deque[Secret] = deque()

    def one(length: int) -> None:
        secret = Secret(length, backend=backend, at_rest=False)
        if length % 8 == 0:
            with secret.reveal(write=True) as view:
                view[0] = 1
        alive.append(secret)
        if len(alive) > ALIVE:
            alive.popleft().close()

    before: dict[str, int] = {}
    for at in range(-number // 20, number):
        if at == 0:
            before = _memory()
        one(1 + at * 37 % 300)
    after = _memory()
    return {name: after[name] - before[name] for name in before}


def _memory() -> dict[str, int]:
    return {name: int(libc.proc_status(name).split()[0]) * 1024 for name in ("RssAnon", "VmLck")}


def in_child(work: Callable[..., Any], *words: Any, limit: int | None = None) -> Any:
    """What `work` returns in a forked child, or why it failed; with a lock limit as an ordinary user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if limit is not None:
                _become_ordinary(limit)
            answer = work(*words)
        except BaseException as error:  # noqa: BLE001 - a child must not return into its parent's code
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "it was ended by a signal"


def _become_ordinary(limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    if os.geteuid() == 0:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    elif hard == resource.RLIM_INFINITY or hard >= limit:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, hard))


# Judgement


def below_floor(result: dict[str, Any]) -> list[str]:
    """What is worse than it may be, in words."""
    return [f"{what}: {is_}, not {wanted}" for what, is_, wanted, good in judged(result) if not good]


def judged(result: dict[str, Any]) -> Iterator[tuple[str, str, str, bool]]:
    """What is judged, what it is, what it should be, whether it is."""
    times = result.get("times", {})
    for operation, ceiling in CEILINGS.items():
        found = times.get(operation, {}).get(JUDGED)
        if found and found["ratio"] is not None:
            name = f"{TITLES[operation]} / {REFERENCE[operation]}"
            yield name, f"{found['ratio']:.2f}", f"at most {ceiling:.2f}", found["ratio"] <= ceiling
            if operation == "reveal":
                good = found["us"] <= REVEAL_LIMIT
                yield TITLES[operation], f"{found['us']:.1f} µs", f"at most {REVEAL_LIMIT:.0f} µs", good
    number = result.get("fit", {}).get(JUDGED)
    if isinstance(number, int):
        yield f"secrets of {FIT_LENGTH} bytes in 8 MiB", f"{number:,}", f"at least {FIT:,}", number >= FIT
    rows = [row for name, row in result.get("number", {}).items() if name.endswith(JUDGED)]
    if rows:
        few, *_, many = rows[0]
        ratio = sum(row[many] for row in rows) / sum(row[few] for row in rows)
        what = f"create + reveal + close of one among {int(many):,} / among {few}"
        yield what, f"{ratio:.2f}", f"at most {FLAT}", ratio <= FLAT
    if "import" in result:
        good = result["import"] <= IMPORT_LIMIT
        yield "import secretfs", f"{result['import']} ms", f"at most {IMPORT_LIMIT:.0f} ms", good
    for name in ("kernel", "emulator"):
        found = result.get("cycles", {}).get(name)
        if isinstance(found, dict):
            grown = max(found.values())
            what = f"memory after {result['cycles']['number']:,} of them, {name}"
            yield what, f"{grown:+,} bytes", f"at most {KEPT:,}", grown <= KEPT
