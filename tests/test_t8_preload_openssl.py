"""Each kind of OpenSSL: 1.1.1 that is bound to itself, several in one process, linked in, too old, in use before us."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
from mounts import PATIENCE, clean_environment, needs_root
from preloads import found_in, make_key, needles, preloaded, reading
from preloadscripts import run

BACKENDS = ["kernel", "emulator"]
WAIT = "print('ready', flush=True)\nsys.stdin.read()\n"
READ_KEY = """
file = secret("BIO_new_file", b"{key}", b"r", library=library)
kept = secret("PEM_read_bio_PrivateKey", ctypes.c_void_p(file), None, None, None, library=library)
assert kept
secret("BIO_free", ctypes.c_void_p(file), library=library)
"""
LINKED_IN = """
#include <openssl/bn.h>
#include <openssl/crypto.h>
#include <stdio.h>
int main(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned long start, end, number = (unsigned long)BN_new();
	char line[512];

	while (fgets(line, sizeof line, maps))
		if (sscanf(line, "%lx-%lx", &start, &end) == 2 && start <= number && number < end)
			puts(line);
	puts(OpenSSL_version(0));
}
"""


@pytest.fixture(scope="module")
def old() -> Path:
    """libcrypto 1.1.1 of a wheel; it is bound to itself, so that nothing can take the place of its functions."""
    found = importlib.util.find_spec("psycopg2")
    if found is None or found.origin is None:
        pytest.skip("OpenSSL 1.1.1: no wheel for this Python brings one")
    (library,) = (Path(found.origin).parent.parent / "psycopg2_binary.libs").glob("libcrypto-*.so.1.1")
    told = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True).stdout
    assert "(SYMBOLIC)" in told
    return library


def load(path: Path | str, mode: str = "ctypes.DEFAULT_MODE") -> str:
    """The line of a script that loads a library."""
    return f"library = ctypes.CDLL('{path}', mode={mode})\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_bound_to_itself(old: Path, backend: str) -> None:
    """OpenSSL 1.1.1 whose calls do not go through the dynamic linker has its numbers in secret memory all the same."""
    script = load(old) + (
        "assert secret('OpenSSL_version', 0, library=library, result=ctypes.c_char_p).startswith(b'OpenSSL 1.1.1')\n"
        "assert all(locked(address) for address in number(library))\n"
    )  # fmt: skip
    done = run(script, preloaded(backend, REPORT="/dev/stderr"))
    assert json.loads(done.stderr.splitlines()[-1])["openssl"] is True
    run(load(old) + "assert not any(locked(address) for address in number(library))\n", clean_environment())


@needs_root
def test_key_of_1_1_1(old: Path, tmp_path: Path) -> None:
    """A key that OpenSSL 1.1.1 has read is found in a plain program, and nothing of it in a preloaded one."""
    key = make_key(tmp_path)
    script = load(old) + READ_KEY.format(key=key) + WAIT
    with reading(script, clean_environment()) as pid:
        assert {"prime1 little", "prime2 little", "privateExponent little"} <= found_in(pid, needles(key))
    with reading(script, preloaded("kernel")) as pid:
        assert found_in(pid, needles(key)) == set()


@needs_root
def test_two_in_one_process(old: Path, tmp_path: Path) -> None:
    """Python's own OpenSSL and a second one of another version: the keys of both are in secret memory."""
    key = make_key(tmp_path)
    script = (
        "import ssl\n"
        f"context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\ncontext.load_cert_chain('{tmp_path}/cert', '{key}')\n"
        + load(old) + READ_KEY.format(key=key) + WAIT
    )  # fmt: skip
    with reading(script, preloaded("kernel")) as pid:
        assert found_in(pid, needles(key)) == set()


def test_deepbind() -> None:
    """An OpenSSL that is loaded so that it finds its own functions first (RTLD_DEEPBIND) is reached."""
    script = load("libcrypto.so.3", "os.RTLD_DEEPBIND | os.RTLD_NOW") + "assert all(map(locked, number(library)))\n"
    run(script, preloaded("emulator"))


def test_in_use_before(old: Path, tmp_path: Path) -> None:
    """One that a library's constructor has used while it was loaded is said, once, and the program goes on without us.

    Its memory is freed by itself, so none of ours may come to it: a context is made and freed by its libssl.
    """
    (libssl,) = old.parent.glob("libssl-*.so.1.1")
    (tmp_path / "early.c").write_text(
        "void *BN_new(void);\nvoid *number;\n"
        "__attribute__((constructor)) static void early(void) { number = BN_new(); }\n"
    )
    early = tmp_path / "early.so"
    words = ["gcc", "-shared", "-fPIC", "-o", early, tmp_path / "early.c", libssl, old, f"-Wl,-rpath,{old.parent}"]
    subprocess.run(words, check=True)
    script = load(early) + (
        f"tls = ctypes.CDLL('{libssl}')\n"
        "context = secret('SSL_CTX_new', ctypes.c_void_p(secret('TLS_method', library=tls)), library=tls)\n"
        "assert context and not locked(context)\n"
        "secret('SSL_CTX_free', ctypes.c_void_p(context), library=tls)\n"
    )
    done = run(script, preloaded("emulator", REPORT="/dev/stderr"))
    first, last = done.stderr.splitlines()
    assert "had allocated memory before it could be reached" in first
    assert json.loads(last)["late_openssl"] is True


def linked_in(folder: Path, *options: str) -> Path:
    """A program that OpenSSL is linked into."""
    (folder / "program.c").write_text(LINKED_IN)
    program = folder / "program"
    words = ["gcc", *options, "-o", program, folder / "program.c", "-l:libcrypto.a"]
    subprocess.run(words, check=True)
    return program


def start(program: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What a program says; it must end well."""
    done = subprocess.run([program], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_linked_in_and_exported(tmp_path: Path) -> None:
    """An OpenSSL that is linked into a program which exports its functions (as Node.js does) is reached."""
    done = start(linked_in(tmp_path, "-Wl,--export-dynamic"), preloaded("kernel"))
    assert "/secretmem" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("options", [(), ("-Wl,-z,noseparate-code",)])
def test_linked_in(options: tuple[str, ...], tmp_path: Path) -> None:
    """One that exports nothing cannot be reached, which is said once, however the linker has laid it out."""
    done = start(linked_in(tmp_path, *options), preloaded("emulator", REPORT="/dev/stderr"))
    first, last = done.stderr.splitlines()
    assert first.startswith("secretfs: warning: this program has an OpenSSL linked into it")
    assert json.loads(last)["static_openssl"] is True


def test_too_old(tmp_path: Path) -> None:
    """A program with an OpenSSL older than 1.1.1 does not run, or without protection of it if that is asked for."""
    (tmp_path / "old.c").write_text("int CRYPTO_set_mem_functions(void) { return 1; }\n")
    library = tmp_path / "libcrypto.so.1.0.0"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "old.c"], check=True)
    done = run(load(library), preloaded("emulator"), code=125)
    assert done.stderr.startswith("secretfs: error: libcrypto.so.1.0.0 is an OpenSSL older than 1.1.1")
    run(load(library), preloaded("emulator", TOOLKIT="libsodium"))


def test_memory_functions_of_a_program() -> None:
    """A program that sets OpenSSL's memory functions itself keeps running, and its numbers are in secret memory."""
    script = load("libcrypto.so.3", "ctypes.RTLD_GLOBAL") + (
        "assert secret('CRYPTO_set_mem_functions', None, None, None, result=ctypes.c_int) == 1\n"
        "assert all(map(locked, number(library)))\n"
    )  # fmt: skip
    run(script, preloaded("emulator"))


def test_left_alone() -> None:
    """Where OpenSSL is not among the toolkits it has its own memory, and its own secure heap."""
    script = load("libcrypto.so.3", "ctypes.RTLD_GLOBAL") + (
        "assert not any(map(locked, number(library)))\n"
        "assert secret('CRYPTO_secure_malloc_initialized', result=ctypes.c_int) == 0\n"
        "assert secret('CRYPTO_secure_malloc_init', 65536, 16, result=ctypes.c_int) == 1\n"
        "memory = secret('CRYPTO_secure_malloc', ctypes.c_size_t(100), b'', 0)\n"
        "assert secret('CRYPTO_secure_allocated', ctypes.c_void_p(memory), result=ctypes.c_int) == 1\n"
        "assert secret('CRYPTO_secure_used', result=ctypes.c_size_t) == 128\n"
        "secret('CRYPTO_secure_free', ctypes.c_void_p(memory), b'', 0)\n"
    )  # fmt: skip
    run(script, preloaded("emulator", TOOLKIT="gnutls"))
