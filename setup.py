"""Declares the native parts; everything else is in pyproject.toml. SECRETFS_NATIVE=auto (default), off or require."""

import os
import shlex
import subprocess
from collections.abc import Sequence

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = os.environ.get("SECRETFS_NATIVE", "auto")
STRICT = ["-O2", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"]
HARDENED = ["-Wl,-z,relro,-z,now", "-Wl,--no-as-needed"]
SHIM = ("shim", "fast", "names", "registers", "rewrite")


def pkg_config(option: str) -> list[str]:
    try:
        found = subprocess.run(["pkg-config", option, "fuse3"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        if NATIVE == "require":
            raise SystemExit("SECRETFS_NATIVE=require: apt-get install gcc libc6-dev pkg-config libfuse3-dev") from None
        return []
    return shlex.split(found.stdout)


class PlainName(build_ext):
    """A library that is loaded with dlopen, not imported: no Python version in its name."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class AnyPython(bdist_wheel):
    """The libraries do not use Python's C API, so one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


PRELOAD = ["api", "bindings", "cgroup", "config", "files", "foreign", "forks", "heap", "loaded", "lock", "memory"]
PRELOAD += ["openssl", "pages", "replaced", "sandbox", "secureheap", "spans", "toolkits"]
PRELOAD_LINK = ["-Wl,-z,nodelete", "-ldl", "-lpthread"]
PRELOAD_HEADERS = ["api", "areas", "bindings", "cgroup", "config", "files", "foreign", "heap", "loaded"]
PRELOAD_HEADERS += ["memory", "pages", "secretfs", "spans", "toolkits"]


def library(
    name: str, folder: str, sources: Sequence[str], headers: Sequence[str], *, flags: list[str], link: list[str]
) -> Extension:
    return Extension(
        f"secretfs.{folder}.{name}",
        [f"secretfs/{folder}/{source}.c" for source in sources],
        depends=[f"secretfs/{folder}/{header}.h" for header in headers],
        extra_compile_args=STRICT + flags,
        extra_link_args=HARDENED + link,
        optional=NATIVE != "require",
    )


def extensions() -> list[Extension]:
    if NATIVE == "off":
        return []
    found = [
        library("libsecretfs-flush", "native", ["flush"], [], flags=[], link=[]),
        library("libsecretfs-preload", "preload", PRELOAD, PRELOAD_HEADERS, flags=[], link=PRELOAD_LINK),
    ]
    fuse = pkg_config("--libs")
    if fuse:
        headers = [name for name in SHIM if name != "shim"]
        found.append(library("libsecretfs-shim", "native", SHIM, headers, flags=pkg_config("--cflags"), link=fuse))
    return found


setup(ext_modules=extensions(), cmdclass={"build_ext": PlainName, "bdist_wheel": AnyPython})
