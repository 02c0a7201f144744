"""Declares the native parts; everything else is in pyproject.toml. SECRETFS_NATIVE=auto (default), off or require."""

import os
import shlex
import subprocess

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = os.environ.get("SECRETFS_NATIVE", "auto")
STRICT = ["-O2", "-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wconversion", "-Wshadow"]
HARDENED = ["-Wl,-z,relro,-z,now", "-Wl,--no-as-needed"]


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


PRELOAD = ["api", "cgroup", "config", "files", "heap", "lock", "memory", "openssl", "pages", "replaced", "sandbox"]
PRELOAD += ["toolkits"]
HEADERS = ["areas", "cgroup", "config", "heap", "memory", "pages", "secretfs", "toolkits"]


def extensions() -> list[Extension]:
    if NATIVE == "off":
        return []
    preload = Extension(
        "secretfs.preload.libsecretfs-preload",
        [f"secretfs/preload/{name}.c" for name in PRELOAD],
        depends=[f"secretfs/preload/{name}.h" for name in HEADERS],
        extra_compile_args=STRICT,
        extra_link_args=[*HARDENED, "-ldl", "-lpthread"],
        optional=NATIVE != "require",
    )
    libraries = pkg_config("--libs")
    if not libraries:
        return [preload]
    return [
        preload,
        Extension(
            "secretfs.native.libsecretfs-shim",
            [f"secretfs/native/{name}.c" for name in ("shim", "fast", "registers", "rewrite")],
            depends=[f"secretfs/native/{name}.h" for name in ("fast", "registers", "rewrite")],
            extra_compile_args=STRICT + pkg_config("--cflags"),
            extra_link_args=HARDENED + libraries,
            optional=NATIVE != "require",
        ),
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": PlainName, "bdist_wheel": AnyPython})
