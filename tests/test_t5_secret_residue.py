"""A planted secret is looked for wherever Python or the kernel might have put it: text, logs, tracebacks, pickles, and
the core dump of a real crash.
"""

from __future__ import annotations

import io
import logging
import pickle
import resource
import signal
import traceback

import pytest
from mounts import public_directory
from programs import BACKENDS, HEADER, program
from runs import core_dumps

from secretfs import Secret, SecretArea, protection
from secretfs.errors import SecretFSError

NEEDLE = b"Q7#vK9!xTz@pL4&mWd%8rJ^2cYb*6nHs=5Gf"
"""Eight bytes of it are nowhere else in the memory of a Python process."""
FILL = """
def filled(masked):
    made = bytearray(len(masked))  # never moved: a bytearray that grows leaves copies behind
    for at, byte in enumerate(masked): made[at] = byte ^ 0x55
    return made
"""


def planted(**kind) -> Secret:
    """A secret that holds the needle."""
    return Secret.from_bytes(bytearray(NEEDLE), **kind)


def assert_absent(text: str | bytes) -> None:
    """No eight bytes of the needle are there: as text, in hex, or as Python writes a list."""
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    for at in range(0, len(NEEDLE) - 8):
        piece = NEEDLE[at : at + 8]
        assert piece not in data
        assert piece.hex().encode() not in data
        assert ", ".join(map(str, piece)).encode() not in data


def test_text_and_logs() -> None:
    """repr, str, f-strings, logging, protection() and its JSON show none of it."""
    secret = planted(backend="emulator")
    stream = io.StringIO()
    log = logging.getLogger("planted")
    log.addHandler(handler := logging.StreamHandler(stream))
    log.warning("%s %r %s", secret, [secret], {"key": secret})
    log.removeHandler(handler)
    with secret.reveal() as view, secret.reveal(write=True) as other:
        shown = [repr(secret), str(secret), f"{secret!r:>99}{secret}", repr(view), repr(other), repr(secret.reveal())]
    report = protection(secret)
    assert_absent("\n".join([*shown, stream.getvalue(), str(report), report.to_json(), repr(report)]))
    assert "<Secret 36 bytes" in stream.getvalue()
    inside = [secret._cell, secret._cell.slab, secret._kind, secret._kind.heap]
    assert_absent("\n".join(f"{one!r} {getattr(one, '__dict__', '')!r}" for one in inside))


def stale(secret: Secret) -> None:
    """A slice that survives."""
    with secret.reveal() as view:
        kept = view[3:]
    assert kept


def inside(secret: Secret) -> None:
    """An error of somebody else inside a window."""
    with secret.reveal() as view:
        raise ZeroDivisionError(view)


def area_of(data: bytes) -> SecretArea:
    """An area that holds this."""
    area = SecretArea(4096, backend="emulator")
    area.write(bytearray(data))
    return area


FAILURES = {
    "compare": lambda secret: secret == NEEDLE.decode()[:3],
    "pickle": pickle.dumps,
    "slice": lambda secret: secret[30:2],
    "split": lambda secret: secret.split(90),
    "hex": lambda _: Secret.from_hex(bytearray(NEEDLE), backend="emulator"),
    "odd hex": lambda _: Secret.from_hex(bytearray(NEEDLE.hex().encode()[1:]), backend="emulator"),
    "base64": lambda _: Secret.from_base64(bytearray(NEEDLE + b"!"), backend="emulator"),
    "immutable": lambda _: Secret.from_bytes(memoryview(NEEDLE).toreadonly(), backend="emulator"),
    "write": lambda secret: secret.write_to(1 << 20),
    "limit": lambda _: Secret.from_bytes(bytearray(NEEDLE), backend="nonsense"),
    "stale": stale,
    "inside": inside,
    "area": lambda _: area_of(NEEDLE).read_into(bytearray(9000)),
}


@pytest.mark.parametrize("what", FAILURES)
def test_tracebacks(what: str) -> None:
    """Whatever goes wrong, neither the exception nor a local variable of our frames shows any of it."""
    secret = planted(backend="emulator")
    with pytest.raises(
        (SecretFSError, OSError, ValueError, TypeError, BufferError, IndexError, ZeroDivisionError)
    ) as e:
        FAILURES[what](secret)
    frame = e.tb
    while frame is not None:  # only ours: the test's own frames hold the needle
        if "secretfs" in frame.tb_frame.f_globals["__name__"]:
            assert_absent(repr(frame.tb_frame.f_locals))
        frame = frame.tb_next
    assert_absent("".join(traceback.format_exception_only(e.value)) + repr(e.value.args) + repr(vars(e.value)))


def test_what_is_left_in_python() -> None:
    """After digits and files were read, and a secret was sent, no bytes object of ours holds it: looked for in the
    process's own memory, where it may only be in secret pages.
    """
    text = """
    key, digits = bytes.fromhex(sys.argv[1]), bytes.fromhex(sys.argv[2])
    secrets = [Secret.from_bytes(filled(key)), Secret.from_hex(filled(digits))]
    secrets += [secrets[0][2:30], Secret.concat(*secrets), *secrets[0].split(16)]
    reader, writer = os.pipe()
    secrets[1].write_to(writer); os.close(writer)
    secrets.append(Secret.read(reader))
    assert secrets[-1] == secrets[0] == secrets[1]
    gc.collect()
    wanted = [key[:8], key[20:28], digits[:8], digits[40:48]]
    table = bytes(b ^ 0x55 for b in range(256))
    found, looked = [], 0
    with open("/proc/self/maps") as lines, open("/proc/self/mem", "rb", 0) as memory:
        for line in list(lines):
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1][0] != "r" or line.split()[-1].startswith("[v"): continue
            for at in range(start, end, 1 << 20):
                memory.seek(at)
                try: block = bytearray(memory.read(min(1 << 20, end - at)))
                except OSError: continue
                masked = block.translate(table)
                block[:] = bytes(len(block))
                looked += len(masked)
                if any(one in masked for one in wanted): found.append(line.strip())
    print(looked > 1 << 20, found)
    """
    masked, digits = (bytes(byte ^ 0x55 for byte in data).hex() for data in (NEEDLE, NEEDLE.hex().encode()))
    done = program(text, masked, digits, header=HEADER + FILL)
    assert (done.returncode, done.stdout.strip()) == (0, "True []"), done.stderr + done.stdout


CRASH = """
masked = bytes.fromhex(sys.argv[1])
kept = [Secret.from_bytes(filled(masked)), Secret.from_bytes(filled(masked), alone=True)]
area, mapping = SecretArea(4096), secretfs.mmap(100)
for target in (area.view(), mapping):
    source = filled(masked); target[:36] = source; source[:] = bytes(36)
del target
ordinary = [bytearray(b ^ 0x33 for b in masked) for _ in range(3)]  # what an ordinary process leaves
if sys.argv[2] == "revealed":
    window = kept[0].reveal(); view = window.__enter__()
secretfs.libc.set_dumpable(dumpable=True)
os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("state", ["closed", "revealed"])
def test_core_dump(backend: str, state: str) -> None:
    """The kernel's own dump of a crashed process has the ordinary memory, and no secret, revealed or not."""
    if reason := core_dumps():
        pytest.skip(reason)
    masked = bytes(byte ^ 0x55 for byte in NEEDLE)
    with public_directory() as folder:
        limit = resource.getrlimit(resource.RLIMIT_CORE)[1]
        done = program(CRASH, masked.hex(), state, backend=backend, cwd=folder, core=limit, header=HEADER + FILL)
        assert done.returncode == -signal.SIGSEGV, done.stderr
        (core,) = folder.glob("*core*")
        dump = core.read_bytes()
    assert dump.startswith(b"\x7fELF")
    assert bytes(byte ^ 0x33 for byte in masked) in dump  # the dump is whole
    assert [at for at in range(len(NEEDLE) - 8) if NEEDLE[at : at + 8] in dump] == []


def test_at_rest_nothing_is_in_the_clear() -> None:
    """While no window is open, a secret at rest has other bytes in its place, which change with each window."""
    text = """
    masked = bytes.fromhex(sys.argv[1])
    secret = Secret.from_bytes(bytearray(b ^ 0x55 for b in masked), backend="emulator", at_rest=True)
    slab = secret._cell.slab
    seen = []
    for _ in range(600):  # past the renewal of the key
        with secret.reveal() as view: assert view == bytes(b ^ 0x55 for b in masked)
        with secretfs.turns.lock, slab.opened(): seen.append(ctypes.string_at(secret._cell.address, 36))
    print(len(set(seen)), any(bytes(b ^ 0x55 for b in masked)[:8] in one for one in seen))
    with secretfs.turns.lock, slab.opened(): ctypes.memset(secret._cell.address, 1, 1)
    try: secret.reveal().__enter__()
    except secretfs.SecretFSError as error: print(error)
    """
    done = program(text, bytes(byte ^ 0x55 for byte in NEEDLE).hex())
    assert done.stdout.splitlines() == ["600 False", "a secret at rest was changed by somebody: it does not decipher"]
