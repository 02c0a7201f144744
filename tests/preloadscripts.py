"""Python scripts that are run with the preload library, and call C libraries through ctypes."""

from __future__ import annotations

import subprocess

from mounts import PATIENCE

HELPERS = """
import ctypes, os, sys, threading
def mapping(address):
    for line in open("/proc/self/maps"):
        start, end = (int(word, 16) for word in line.split()[0].split("-"))
        if start <= address < end:
            return line
def locked(address):
    "Whether the page there is secret, or locked and left out of dumps and forks."
    if "/secretmem" in mapping(address):
        return True
    inside = False
    for line in open("/proc/self/smaps").read().splitlines():
        words = line.split()
        if "-" in words[0]:
            start, end = (int(word, 16) for word in words[0].split("-"))
            inside = start <= address < end
        elif inside and words[0] == "VmFlags:":
            flags = words[1:]
    return {"lo", "dd", "dc"} <= set(flags)
def secret(name, *arguments, library=None, result=ctypes.c_void_p):
    function = getattr(library or ctypes.CDLL(None), name)
    function.restype = result
    return function(*arguments)
def number(library):
    "The address of what a number of OpenSSL's has its digits in, and that of the number itself."
    made = secret("BN_new", library=library)
    secret("BN_set_word", ctypes.c_void_p(made), ctypes.c_ulong(42), library=library)
    return ctypes.c_void_p.from_address(made).value, made
"""


def run(
    script: str, environment: dict[str, str], *, under: tuple[str, ...] = (), code: int = 0, patience: float = PATIENCE
) -> subprocess.CompletedProcess[str]:
    """Run a Python script with the library; it must end with that exit code."""
    words = [*under, "/usr/bin/python3", "-I", "-c", HELPERS + script]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=patience, check=False)
    assert done.returncode == code, (done.returncode, done.stdout + done.stderr)
    return done
