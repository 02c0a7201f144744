"""Takes the place of functions that a loaded library calls, by changing the table that it calls them through.

That table is the library's global offset table (ELF gABI, chapter 5; the psABI of each architecture): one word for each
function of another library, filled by the dynamic linker. It is found from the library's dynamic section, as it lies
in memory. Only the words of the functions that are asked for are written, whether or not they lie in memory that the
dynamic linker has made read-only since (RELRO).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Iterator, Mapping

from secretfs import libc
from secretfs.native import ShimUnavailable

__all__ = ["replace"]

RELOCATIONS = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
"""R_*_GLOB_DAT and R_*_JUMP_SLOT."""
_RTLD_DI_LINKMAP = 2
_DT_NULL, _DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_RELA, _DT_RELASZ, _DT_JMPREL = 0, 2, 5, 6, 7, 8, 23
_WORD = 8
_SYMBOL, _RELOCATION = struct.Struct("=IBBHQQ"), struct.Struct("=QQq")  # Elf64_Sym, Elf64_Rela
_DYNAMIC = struct.Struct("=qQ")  # Elf64_Dyn


def replace(library: ctypes.CDLL, functions: Mapping[str, int]) -> None:
    """Let `library` call what lies at these addresses instead of other libraries' functions of these names.

    Raises:
        ShimUnavailable: it cannot be done on this machine, or `library` does not call one of them through its table;
            then nothing was changed.
    """
    machine = platform.machine()
    if machine not in RELOCATIONS or ctypes.sizeof(ctypes.c_void_p) != _WORD:
        raise ShimUnavailable(f"the call table of a library is not known on {machine!r}")
    slots: dict[str, list[int]] = {name: [] for name in functions}
    for name, slot in _slots(library, RELOCATIONS[machine]):
        if name in slots:
            slots[name].append(slot)
    missing = [name for name, found in slots.items() if not found]
    if missing:
        raise ShimUnavailable(f"pyfuse3 does not call {missing[0]!r} through its call table (linked statically)")
    _store({slot: functions[name] for name, found in slots.items() for slot in found})


def _slots(library: ctypes.CDLL, kinds: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Every function or object of another library that `library` refers to: its name, and where its address lies."""
    base, section = _link_map(library)
    dynamic = dict(_dynamic(section))

    def address(tag: int) -> int:
        """glibc has relocated what the section says, musl has not."""
        return dynamic[tag] if dynamic[tag] >= base else base + dynamic[tag]

    for table, size in ((_DT_JMPREL, _DT_PLTRELSZ), (_DT_RELA, _DT_RELASZ)):
        if table not in dynamic:
            continue
        for offset, info, _ in _RELOCATION.iter_unpack(ctypes.string_at(address(table), dynamic[size])):
            if info & 0xFFFFFFFF in kinds:
                symbol = ctypes.string_at(address(_DT_SYMTAB) + (info >> 32) * _SYMBOL.size, _SYMBOL.size)
                name = ctypes.string_at(address(_DT_STRTAB) + _SYMBOL.unpack(symbol)[0])
                yield name.decode("ascii", "replace"), base + offset


def _link_map(library: ctypes.CDLL) -> tuple[int, int]:
    """Where `library` was loaded, and where its dynamic section lies: l_addr and l_ld (dlinfo(3))."""
    found = ctypes.c_void_p()
    handle = ctypes.c_void_p(library._handle)
    if ctypes.CDLL(None).dlinfo(handle, _RTLD_DI_LINKMAP, ctypes.byref(found)) != 0 or not found.value:
        raise ShimUnavailable("the dynamic linker does not tell where pyfuse3 lies")
    base, _, section = (ctypes.c_size_t * 3).from_address(found.value)
    return base, section


def _dynamic(section: int) -> Iterator[tuple[int, int]]:
    """The entries of a dynamic section: tag and value."""
    while True:
        tag, value = _DYNAMIC.unpack(ctypes.string_at(section, _DYNAMIC.size))
        if tag == _DT_NULL:
            return
        yield tag, value
        section += _DYNAMIC.size


def _store(words: Mapping[int, int]) -> None:
    """Write words of the table, by address."""
    opened = []
    try:
        for page in {slot & -libc.PAGE_SIZE for slot in words if not _is_writable(slot)}:
            libc.mprotect(page, libc.PAGE_SIZE, libc.PROT_READ | libc.PROT_WRITE)
            opened.append(page)
        for slot, value in words.items():
            ctypes.c_size_t.from_address(slot).value = value
    except OSError as error:
        raise ShimUnavailable("the call table of pyfuse3 is sealed") from error
    finally:
        for page in opened:
            libc.mprotect(page, libc.PAGE_SIZE, libc.PROT_READ)


def _is_writable(address: int) -> bool:
    """What /proc/self/maps says of a page (proc(5))."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            start, _, end = line.partition(" ")[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                return line.split()[1].startswith("rw")
    return False
