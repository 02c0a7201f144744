"""What `import secretfs` costs and loads, and what happens where there is no Linux."""

from __future__ import annotations

import pytest
from programs import works

HEAVY = (
    "trio", "pyfuse3", "importlib.metadata", "multiprocessing", "hmac", "hashlib", "ssl", "termios", "asyncio",
    "secretfs_kernel", "secretfs_emulator", "subprocess", "tempfile", "logging",
)  # fmt: skip

NOT_LINUX = {
    "darwin": "import sys; sys.platform = 'darwin'",
    "win32": """
import ctypes, os, signal, sys
sys.platform, os.name = "win32", "nt"
for module in ("resource", "fcntl", "termios", "pwd", "grp"): sys.modules[module] = None
for name in ("register_at_fork", "sysconf", "fork", "readv", "getuid", "geteuid", "O_CLOEXEC", "memfd_create"):
    delattr(os, name)
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGALRM"): delattr(signal, name)
def refuse(name, *_, **__): raise TypeError("bad argument type for built-in operation")
ctypes.CDLL = refuse
""",
}
USES = [
    "secretfs.Secret(32)", "secretfs.Secret.random(32)", "secretfs.SecretArea(4096)", "secretfs.mmap(100)",
    "secretfs.protection()", "secretfs.SecretArea.attach(0)", "secretfs.Secret.from_bytes(bytearray(3))",
    "secretfs.Secret(32, backend='emulator')", "secretfs.SecretArea.share(9)",
]  # fmt: skip


def test_import_loads_little() -> None:
    """Entry points, backends, trio and the like are loaded at first use only."""
    text = f"import sys, secretfs\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    assert works(text, header="") == ""


def test_a_secret_loads_little() -> None:
    """A secret on the default backend needs neither FUSE nor multiprocessing."""
    text = "import sys, secretfs\nwith secretfs.Secret.random(9).reveal(): pass\nprint(*sys.modules)"
    assert not {"trio", "pyfuse3", "multiprocessing", "hmac", "ssl", "asyncio"} & set(works(text, header="").split())


@pytest.mark.parametrize("platform", NOT_LINUX)
def test_elsewhere_it_imports_and_says_what_is_missing(platform: str) -> None:
    """Where there is no Linux the first use of anything is one sentence, and ending the process is quiet."""
    text = f"{NOT_LINUX[platform]}\nimport secretfs\nfor use in {USES!r}:\n    try: print('made', eval(use))\n" + (
        "    except secretfs.BackendUnavailable as error: print(error)\nsecretfs.release_all()"
    )
    expected = f"secret memory needs Linux, and this is {platform}"
    assert works(text, header="").splitlines() == [expected] * len(USES)
