"""What a Secret refuses, what it shows of itself, and how bytes get in and out of it."""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import pickle
import pty
import select
import socket
import struct
import termios
import threading
from pathlib import Path

import pytest
import trio
from mounts import Mounted, wait_readable
from programs import BACKENDS, works

from secretfs import BoundsError, ClosedError, Secret, SecretArea
from secretfs.errors import UsageError
from secretfs.testing import FakeBackend, in_child

REFUSED = {
    "hash": hash,
    "bool": bool,
    "iter": iter,
    "list": list,
    "reversed": lambda secret: list(reversed(secret)),
    "pickle": pickle.dumps,
    "pickle 0": lambda secret: pickle.dumps(secret, 0),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "in": lambda secret: 7 in secret,
    "index": lambda secret: secret[3],
    "== bytes": lambda secret: secret == b"planted!",
    "!= str": lambda secret: secret != "planted!",
    "== None": lambda secret: secret == None,  # noqa: E711
    "<": lambda secret: secret < secret,
    "+": lambda secret: secret + secret,
    "int": int,
    "json": json.dumps,
    "join": lambda secret: b"".join([secret]),
    "setattr": lambda secret: setattr(secret, "note", 1),
    "dict": lambda secret: {secret: 1},
}


@pytest.fixture(params=[*BACKENDS, "at rest"])
def kind(request) -> dict:
    """How secrets are made: each backend, and at rest."""
    at_rest = request.param == "at rest"
    return {"backend": "emulator" if at_rest else request.param, "at_rest": at_rest}


def content(secret: Secret) -> bytes:
    """Its bytes."""
    with secret.reveal() as view:
        return bytes(view)


def planted(data: bytes = b"planted!", **kind) -> Secret:
    """A secret that holds this."""
    return Secret.from_bytes(bytearray(data), **kind)


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    """Whatever would show, copy or keep bytes by accident raises, and says nothing of them."""
    secret = planted(backend="emulator")
    with pytest.raises((TypeError, AttributeError)) as caught:
        REFUSED[what](secret)
    assert "planted" not in repr(caught.value) + repr(vars(caught.value))


def test_shown(kind: dict) -> None:
    """repr, str and format give the length and the backend."""
    secret, word = planted(**kind), kind["backend"]
    expected = f"<Secret 8 bytes, {word}>"
    assert {repr(secret), str(secret), f"{secret}", f"{secret:>80}", "%s" % secret, format(secret, "x")} == {expected}  # noqa: UP031
    assert (len(secret), secret.backend, secret.mode, secret.closed) == (8, word, "exclusive", False)
    secret.close()
    assert repr(secret) == f"<Secret 8 bytes, {word}, closed>"


def test_lengths(kind: dict) -> None:
    """A secret has at least one byte, and less than memory has addresses."""
    for length in (0, -1, 1 << 41):
        with pytest.raises(BoundsError):
            Secret(length, **kind)
    with pytest.raises(UsageError, match="there is no mode 'cached'"):
        Secret(3, mode="cached", **kind)


def test_immutable_bytes() -> None:
    """What cannot be wiped is refused, unless that is said to be known; a str always."""
    with pytest.raises(TypeError, match="bytes cannot be wiped"):
        Secret.from_bytes(b"planted!", backend="emulator")
    with pytest.raises(TypeError, match="str cannot be wiped"):
        Secret.from_bytes("planted!", wipe=False, backend="emulator")
    assert content(Secret.from_bytes(b"planted!", wipe=False, backend="emulator")) == b"planted!"
    kept = bytearray(b"kept")
    assert content(Secret.from_bytes(kept, wipe=False, backend="emulator")) == kept == b"kept"
    with pytest.raises(BoundsError):
        Secret.from_bytes(bytearray(), backend="emulator")


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("from_hex", b"00ff Ab\n7e", b"\x00\xff\xab\x7e"),
        ("from_base64", b"AP+rfg==", b"\x00\xff\xab\x7e"),
        ("from_base64", b"AP-rfg", b"\x00\xff\xab\x7e"),
        ("from_base64", b"AP\n+r\nfgA=\n", b"\x00\xff\xab\x7e\x00"),
        ("from_base64", b"AP_r", b"\x00\xff\xeb"),
    ],
)
def test_decoding(kind: dict, how: str, text: bytes, expected: bytes) -> None:
    """Digits are decoded, and wiped where they came from."""
    source = bytearray(text)
    assert content(getattr(Secret, how)(source, **kind)) == expected
    assert not any(source)


@pytest.mark.parametrize("how", ["from_hex", "from_base64"])
@pytest.mark.parametrize("text", [b"", b"  ", b"SEC!RET-", b"\xff\xfe", b"53454352455=4", b"A", b"=", b"4=34"])
def test_bad_digits(how: str, text: bytes) -> None:
    """One clear sentence, without a byte of what was given, in the exception or in the frames of its traceback."""
    source = bytearray(text)
    with pytest.raises(ValueError, match=r"^there (is|are) .*|^this is no whole") as caught:
        getattr(Secret, how)(source, backend="emulator")
    assert not any(source)
    assert text not in str(caught.value).encode() or len(text) < 3
    frame = caught.tb
    while frame.tb_next:
        frame = frame.tb_next
        assert not {"digit", "value", "high", "held"} & set(frame.tb_frame.f_locals)


def test_random(kind: dict) -> None:
    """Random bytes differ, and are not all of one half."""
    one, other = Secret.random(64, **kind), Secret.random(64, **kind)
    assert one != other
    assert len(set(content(one))) > 20
    assert len(Secret.random(70_000, **kind)) == 70_000


def test_files(kind: dict, tmp_path: Path) -> None:
    """Files of every size, by path, by descriptor, and by an object that has one."""
    for length in (1, 4095, 4096, 70_000, 200_000):
        path = tmp_path / "key"
        path.write_bytes(os.urandom(length - 1) + b"\n")
        expected = path.read_bytes()
        assert content(Secret.read(path, **kind)) == expected
        with path.open("rb") as file:
            assert content(Secret.read(file, **kind)) == expected
            if length > 1:
                assert content(Secret.read(str(path), strip_newline=True, **kind)) == expected[:-1]
    with pytest.raises(ValueError, match="nothing to read"):
        Secret.read("/dev/null", **kind)
    with pytest.raises(FileNotFoundError):
        Secret.read(tmp_path / "none", **kind)
    assert content(Secret.read("/proc/self/comm", **kind)) == Path("/proc/self/comm").read_bytes()


@pytest.mark.parametrize("strip", [False, True])
def test_what_is_read_is_as_it_was_asked_for(kind: dict, tmp_path: Path, strip: bool) -> None:
    """A secret from a file has pages of its own, or is inherited, if that was asked for."""
    path = tmp_path / "key"
    path.write_bytes(b"sixteen bytes...\n")
    assert Secret.read(path, strip_newline=strip, alone=True, **kind)._cell.slab.cells == 1
    inherited = Secret.read(path, strip_newline=strip, inherit=True, **kind)
    expected = path.read_bytes()[: 16 if strip else 17]
    assert in_child(lambda: content(inherited) == expected)


def test_pipes(kind: dict) -> None:
    """A pipe is read to its end, in pieces as they come; write_to() fills another, also one that is slow."""
    data = os.urandom(300_000)
    reader, writer = os.pipe()
    back, out = os.pipe()
    fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 4096)

    def write() -> None:
        for at in range(0, len(data), 7001):
            os.write(writer, data[at : at + 7001])
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    secret = Secret.read(reader, **kind)
    thread.join()
    got = bytearray()

    def drain() -> None:
        while piece := os.read(back, 3000):
            got.extend(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    assert secret.write_to(out) == len(data)
    os.close(out)
    thread.join()
    assert got == data == content(secret)
    for fd in (reader, back):
        os.close(fd)


@pytest.mark.mount
@pytest.mark.slow
def test_files_of_a_mount(kind: dict, tmp_path: Path) -> None:
    """A file in a secretfs mount is read and written, where the kernel refuses secret memory as a buffer."""
    data = os.urandom(150_000)
    with Mounted(tmp_path / "mnt") as mounted:
        path = mounted.path / "key"
        path.write_bytes(data)
        secret = Secret.read(path, **kind)
        assert content(secret) == data
        with (mounted.path / "copy").open("wb") as file:
            assert secret.write_to(file) == len(data)
        assert (mounted.path / "copy").read_bytes() == data


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    """Reading, writing and failing leave no descriptor open."""
    path = tmp_path / "key"
    path.write_bytes(b"planted!")
    before = os.listdir("/proc/self/fd")
    secret = Secret.read(path, backend="emulator")
    with pytest.raises(OSError, match="Is a directory"):
        Secret.read(tmp_path, backend="emulator")
    with pytest.raises(OSError, match="Bad file descriptor"):
        secret.write_to(1 << 20)
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        secret.write_to(writer)
    os.close(writer)
    assert content(secret) == b"planted!"
    assert len(os.listdir("/proc/self/fd")) == len(before)


# Terminals


def on_terminal(
    text: str, typed: bytes, *, wait_for: bytes = b"Passphrase: ", pipe: tuple[int, int] | None = None
) -> tuple[bytes, bytes, list, list]:
    """Run a program on a terminal of its own, type once it has asked (or write to a pipe that it has the end of): its
    output, what showed after that, and the terminal's modes before and after.
    """
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    shown: list[bytes] = []

    def type_it() -> None:
        seen = b""
        while not seen.endswith(wait_for):
            wait_readable(master)
            seen += os.read(master, 1000)
        os.write(pipe[1] if pipe else master, typed)

    typist = threading.Thread(target=type_it)
    typist.start()
    header = f"import fcntl, os, termios\nos.setsid(); fcntl.ioctl({slave}, termios.TIOCSCTTY, 0)\n"
    fds = [slave, pipe[0]] if pipe else [slave]
    output = works("from secretfs import Secret\n" + text, header=header, pass_fds=fds, backend="emulator")
    typist.join()
    while select.select([master], [], [], 0)[0]:
        shown.append(os.read(master, 1000))
    after = termios.tcgetattr(slave)
    os.close(master), os.close(slave)
    return output.encode(), b"".join(shown), before, after


@pytest.mark.slow
def test_prompt() -> None:
    """What is typed arrives without its newline, is not shown, and the terminal is as it was."""
    text = "with Secret.prompt() as s, s.reveal() as view: print(bytes(view).hex())"
    output, shown, before, after = on_terminal(text, "pässword\n".encode())
    assert bytes.fromhex(output.decode()) == "pässword".encode()
    assert shown.strip() == b""
    assert before == after


@pytest.mark.slow
def test_prompt_of_nothing_and_interrupted() -> None:
    """An empty line, and an end of file, are a ValueError; the terminal shows again what is typed after Ctrl-C."""
    text = "try: Secret.prompt('Word? ')\nexcept ValueError as error: print(error)"
    for typed in (b"\n", b"\x04"):
        assert on_terminal(text, typed, wait_for=b"Word? ")[0] == b"nothing was typed"
    text = "try: Secret.prompt()\nexcept KeyboardInterrupt: print('interrupted')"
    output, _, before, after = on_terminal(text, b"half\x03")
    assert (output, before) == (b"interrupted", after)


@pytest.mark.slow
def test_prompt_interrupted_unnoticed() -> None:
    """A Ctrl-C is noticed that interrupts no system call, because another thread gets the signal."""
    pipe = os.pipe()
    text = f"""
import signal, threading
def interrupt():
    os.read({pipe[0]}, 1)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=interrupt, daemon=True).start()
try: Secret.prompt()
except KeyboardInterrupt: print('interrupted')
"""
    output, _, before, after = on_terminal(text, b"!", pipe=pipe)
    assert (output, before) == (b"interrupted", after)
    os.close(pipe[0]), os.close(pipe[1])


@pytest.mark.slow
def test_prompt_without_memory() -> None:
    """Where no memory can be had nobody is asked."""
    text = "from secretfs.errors import BackendUnavailable\n"
    text += "try: Secret.prompt('Word? ', backend='none-such')\nexcept BackendUnavailable: print('no memory')\n"
    text += "with open('/dev/tty', 'w') as terminal: terminal.write('Word? ')"
    output, shown, before, after = on_terminal(text, b"", wait_for=b"Word? ")
    assert (output, shown, before) == (b"no memory", b"", after)


@pytest.mark.slow
def test_the_longest_line() -> None:
    """The terminal keeps 4095 bytes of a line; all of them arrive."""
    text = "with Secret.prompt() as s: print(len(s))"
    assert on_terminal(text, b"x" * 4095 + b"\n")[0] == b"4095"


def test_no_terminal() -> None:
    """Without a terminal the error names what to do instead."""
    text = "import os\nos.setsid()\ntry: Secret.prompt()\nexcept OSError as error: print(error)"
    said = works(text, backend="emulator")
    assert said == "[Errno 25] there is no terminal to ask on; Secret.read(0) reads standard input"


# Async


async def test_trio_forms(kind: dict) -> None:
    """read_async() leaves the loop running, and can be given up while it waits for a pipe only when that ends."""
    reader, writer = os.pipe()
    secret = None

    async def read() -> None:
        nonlocal secret
        secret = await Secret.read_async(reader, strip_newline=True, **kind)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        os.write(writer, b"later\n")
        os.close(writer)
    os.close(reader)
    assert secret is not None
    assert content(secret) == b"later"


@pytest.mark.slow
def test_prompt_async() -> None:
    """The prompt in a worker thread."""
    text = "import trio\nasync def main():\n    print(len(await Secret.prompt_async()))\ntrio.run(main)"
    assert on_terminal(text, b"seven77\n")[0] == b"7"


# Sockets


def test_sending_descriptors(kind: dict) -> None:
    """A shared area sent through SCM_RIGHTS is the same memory at the other end, and says what it lacks."""
    ours, theirs = socket.socketpair()
    with SecretArea.share(5000, backend=kind["backend"]) as area:
        assert not area.guarantees.no_descriptor
        assert not area.guarantees.unforkable
        ours.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", area.fileno()))])
        _, ancillary, _, _ = theirs.recvmsg(1, socket.CMSG_SPACE(4))
        fd = struct.unpack("i", ancillary[0][2])[0]
        with SecretArea.attach(fd) as other:
            os.close(fd)
            area.write(b"there", 17)
            assert other.equals(b"there", 17)
            assert (other.size, other.backend, other.guarantees) == (area.size, area.backend, area.guarantees)
        assert area.equals(b"there", 17)  # who attached does not wipe
    ours.close(), theirs.close()


# Strangers


def test_a_backend_without_pages() -> None:
    """Secrets work on any backend's regions; where these have no guard pages, canaries are all there is."""
    backend = FakeBackend()
    secret = planted(b"x" * 100, backend=backend, at_rest=False)
    large = Secret.random(9000, backend=backend, at_rest=False)
    assert content(secret[3:50]) == b"x" * 47
    assert len(large) == 9000
    with contextlib.closing(large):
        assert secret.backend == "fake"
    secret.close()
    with pytest.raises(ClosedError):
        content(secret)
