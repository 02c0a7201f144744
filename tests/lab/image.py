"""What a guest is made of: a kernel, and an initramfs with Debian's Python, libfuse and busybox and with this project.

Kernel and Debian's part are made once and kept in `cache()`; the project's part is made for each run, because it
changes: an initramfs may consist of several archives, one after the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import lzma
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian import BACKPORTS, Apt, NotRun

__all__ = ["KERNELS", "Kernel", "NotRun", "Recipe", "base", "cache", "kernel", "overlay"]

HERE = Path(__file__).resolve().parent
CACHE = "SECRETFS_LAB_CACHE"
"""Environment variable: where images are kept, instead of ~/.cache/secretfs-lab."""
PACKAGES = ("busybox-static", "libfuse3-3", "python3")
GUEST_PYTHON = (3, 11)
"""Debian 12's: the project's compiled parts must have been built for the same."""
UNUSED = (
    *(f"usr/share/{name}" for name in ("doc", "lintian", "locale", "man")),
    *(f"usr/lib/python3.11/{name}" for name in ("ensurepip", "lib2to3", "pydoc_data", "test")),
    "usr/lib/valgrind", "usr/lib/x86_64-linux-gnu/gconv",
)  # fmt: skip
"""What is left out: all memory of a guest is searched, so less of it is quicker."""
SOURCES = {".c", ".h", ".pxd", ".pxi", ".pyi", ".pyx"}
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "etc", "var/lib", "var/log")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
COMMAND = "#!/usr/bin/python3 -I\nimport sys\nfrom secretfs.cli import main\nsys.exit(main())\n"
STRICT = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow", "-mgeneral-regs-only")


@dataclass(frozen=True)
class Recipe:
    """Where a kernel comes from: a metapackage, the suite if apt would not choose it by itself, and the modules to
    load, in that order; one that is no module is built in.
    """

    suite: str | None = None
    package: str = "linux-image-cloud-amd64"
    modules: tuple[str, ...] = (
        "fuse", "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    )  # fmt: skip


KERNELS = {"6.1": Recipe(), "6.12": Recipe(BACKPORTS)}
"""The kernels that can be booted, by the beginning of their version."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that is there."""

    folder: Path

    @property
    def image(self) -> Path:
        """What QEMU boots."""
        return self.folder / "vmlinuz"

    @property
    def package(self) -> str:
        """The name of its package, in which its version is."""
        return (self.folder / "package").read_text(encoding="ascii")

    @property
    def modules(self) -> list[Path]:
        """Files of modules to be loaded, in that order."""
        return [self.folder / name for name in (self.folder / "modules").read_text(encoding="ascii").split()]


def cache() -> Path:
    """Where images are kept; outside the repository, and shared by all its copies."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(os.environ.get(CACHE) or os.path.join(home, "secretfs-lab"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def kernel(name: str) -> Kernel:
    """The kernel of that name in KERNELS, downloaded if it is not there yet.

    Raises:
        NotRun: it cannot be downloaded.
    """
    recipe = KERNELS[name]
    folder = f"kernel-{name}-{_digest(recipe)}"
    with _made_once(folder) as fresh:
        if fresh is not None:
            apt = Apt(cache() / "apt")
            package = apt.newest_kernel(recipe.package, recipe.suite)
            apt.unpack(package, recipe.suite, fresh / "unpacked")
            _pick_kernel(fresh, package, recipe.modules)
    return Kernel(cache() / folder)


def base() -> Path:
    """The archive of Debian's part.

    Raises:
        NotRun: its packages cannot be downloaded, or this Python is not the guest's.
    """
    folder = f"base-{_digest((PACKAGES, UNUSED, FOLDERS, PASSWD))}"
    with _made_once(folder) as fresh:
        if fresh is not None:
            root = fresh / "root"
            Apt(cache() / "apt").unpack_with_dependencies(PACKAGES, root)
            _finish(root)
            _archive(root, fresh / "cpio")
            shutil.rmtree(root)
    return cache() / folder / "cpio"


def _digest(recipe: object) -> str:
    """What a folder of the cache is called after: another recipe makes another folder."""
    return hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]


def overlay(
    folder: Path,
    script: Path,
    arguments: Sequence[str],
    files: Sequence[Path],
    modules: Sequence[Path],
    token: str,
    more: Sequence[str] = (),
) -> Path:
    """The archive of the project's part, made in `folder`: the installed wheel and what it needs, and what to run;
    `more` are other distributions of this Python's environment.

    Raises:
        RuntimeError: the project is not installed for this Python, or this is not the guest's Python.
    """
    root = folder / "root"
    lab = root / "lab"
    (lab / "bin").mkdir(parents=True)
    _install(root / "usr/local/lib/python3.11/dist-packages", more)
    _write(root / "usr/local/bin/secretfs", COMMAND)
    for name in ("kcore", "client"):
        subprocess.run(["gcc", "-static", *STRICT, "-o", lab / "bin" / name, HERE / f"{name}.c"], check=True)
    for file in (*files, *modules):
        shutil.copy2(file, lab)
    _write(root / "init", (HERE / "init").read_text(encoding="utf-8"))
    _write(lab / "script", script.read_text(encoding="utf-8"))
    _write(lab / "run", f"#!/bin/sh\nexec /lab/script {shlex.join(arguments)}\n")
    _write(lab / "modules", "".join(f"{module.name}\n" for module in modules))
    _write(lab / "token", token + "\n")
    _archive(root, folder / "cpio")
    return folder / "cpio"


@contextlib.contextmanager
def _made_once(name: str) -> Iterator[Path | None]:
    """A folder in the cache: where to make it, or None if it is there. Others who want it wait."""
    target, fresh = cache() / name, cache() / f"{name}.new"
    with open(cache() / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            yield None
            return
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            yield fresh
            fresh.rename(target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


def _pick_kernel(folder: Path, package: str, modules: tuple[str, ...]) -> None:
    """Keep of the unpacked package what is needed."""
    unpacked = folder / "unpacked"
    next(unpacked.glob("boot/vmlinuz-*")).rename(folder / "vmlinuz")
    found = []
    for name in modules:
        for file in (*unpacked.rglob(f"{name}.ko"), *unpacked.rglob(f"{name}.ko.xz")):  # neither: it is built in
            content = file.read_bytes()
            (folder / f"{name}.ko").write_bytes(lzma.decompress(content) if file.suffix == ".xz" else content)
            found.append(f"{name}.ko")
    (folder / "modules").write_text("\n".join(found), encoding="ascii")
    (folder / "package").write_text(package, encoding="ascii")
    shutil.rmtree(unpacked)


def _finish(root: Path) -> None:
    """What the packages' own scripts would have done, as far as it matters; Python's own modules compiled."""
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    _write(root / "etc/passwd", PASSWD)
    _write(root / "etc/group", "root:x:0:\nnogroup:x:65534:\n")
    libraries = f"{root}/lib/x86_64-linux-gnu:{root}/usr/lib/x86_64-linux-gnu"
    python = ("usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    loader = next(root / name for name in python if (root / name).exists())
    compile_all = ("-m", "compileall", "-q", "-s", str(root), "-p", "/", str(root / "usr/lib/python3.11"))
    subprocess.run(
        [loader, "--library-path", libraries, root / "usr/bin/python3.11", *compile_all],
        env={"PYTHONHOME": f"{root}/usr"}, check=False, stdout=subprocess.DEVNULL,  # some are not meant to compile
    )  # fmt: skip


def _install(target: Path, more: Sequence[str]) -> None:
    """Copy the project, what it needs, and more, out of this Python's environment."""
    if sys.version_info[:2] != GUEST_PYTHON:
        raise RuntimeError("the lab needs Python {}.{}".format(*GUEST_PYTHON))
    lock = HERE.parent.parent / "requirements-mount.txt"
    locked = [line.partition("==")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    for name in ("memfd-secretfs", *locked, *more):
        try:
            files = importlib.metadata.distribution(name).files or []
        except importlib.metadata.PackageNotFoundError as error:
            raise RuntimeError(f"{name} is not installed for {sys.executable}; `make lab` does it") from error
        for file in files:
            if not {"..", "_tests"} & set(file.parts) and file.suffix not in SOURCES:
                copy = target / file
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), copy)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def _archive(root: Path, target: Path) -> None:
    """Make a cpio archive of a folder; all in it is root's."""
    names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with target.open("wb") as archive:
        subprocess.run(
            ["cpio", "--null", "--create", "--format=newc", "--owner=0:0", "--quiet"],
            input=names.encode(), cwd=root, stdout=archive, check=True,
        )  # fmt: skip
