"""Extended attributes of an inode: which names are allowed, and their values, which lie in secret memory like a file's.

Called by the file system only. Values go in as bytes and come out as bytes that wipe themselves.
"""

from __future__ import annotations

import errno
import os

from secretfs.content import Content, Space
from secretfs.errors import FileError
from secretfs.names import Names
from secretfs.nodes import Attribute, Node
from secretfs.plaintext import Plaintext

__all__ = [
    "LARGEST",
    "drop_capabilities",
    "get_value",
    "has_capabilities",
    "join_names",
    "list_names",
    "read_all",
    "remove",
    "set_value",
]

LARGEST = 65536
"""The longest value in bytes (XATTR_SIZE_MAX, xattr(7))."""
LARGEST_LIST = 65536
"""The longest list of names in bytes (XATTR_LIST_MAX, xattr(7))."""
NAMESPACES = (b"user.", b"trusted.", b"security.")
CAPABILITIES = b"security.capability"


def set_value(space: Space, node: Node, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set one attribute; an existing one keeps its old value if the new one does not fit.

    Raises:
        FileError: EOPNOTSUPP for an unknown namespace, EINVAL for a namespace alone, EEXIST with XATTR_CREATE and
            ENODATA with XATTR_REPLACE (setxattr(2)), E2BIG, ENOSPC.
    """
    _check(name)
    there = node.xattrs is not None and node.xattrs.get(name) is not None
    if flags & os.XATTR_CREATE and there:
        raise FileError(errno.EEXIST)
    if flags & os.XATTR_REPLACE and not there:
        raise FileError(errno.ENODATA)
    if len(value) > LARGEST:
        raise FileError(errno.E2BIG)
    fresh = Content(space)
    try:
        if fresh.write(0, memoryview(value)) < len(value):
            raise FileError(errno.ENOSPC)
        if node.xattrs is None:
            node.xattrs = Names(space)
        entry = node.xattrs.get(name)
        if entry is None:
            node.xattrs.add(name, fresh)
        else:
            entry.value.clear()
            entry.value = fresh
    except FileError:
        fresh.clear()
        raise


def get_value(node: Node, name: bytes) -> Plaintext:
    """The value of one attribute.

    Raises:
        FileError: ENODATA where there is none, EOPNOTSUPP and EINVAL as above.
    """
    return read_all(_existing(node, name).value)


def list_names(node: Node, *, trusted: bool) -> list[Plaintext]:
    """The names of all attributes; the trusted ones only for those who may see them."""
    names = [] if node.xattrs is None else [entry.name() for entry in node.xattrs]
    return [name for name in names if trusted or not name.startswith(b"trusted.")]


def join_names(names: list[Plaintext]) -> Plaintext:
    """Names as listxattr(2) returns them, each with a zero byte after it.

    Raises:
        FileError: E2BIG, they are more than the kernel takes.
    """
    size = sum(len(name) + 1 for name in names)
    if size > LARGEST_LIST:
        raise FileError(errno.E2BIG)

    def fill(buffer: memoryview) -> None:
        at = 0
        for name in names:
            buffer[at : at + len(name)] = name
            at += len(name) + 1

    return Plaintext.read(size, fill)


def remove(node: Node, name: bytes) -> None:
    """Wipe one attribute.

    Raises:
        FileError: ENODATA where there is none, EOPNOTSUPP and EINVAL as above.
    """
    entry = _existing(node, name)
    entry.value.clear()
    assert node.xattrs is not None
    node.xattrs.remove(entry)
    if not node.xattrs:
        node.xattrs = None


def has_capabilities(node: Node) -> bool:
    """Whether it is a program with capabilities(7) of its own."""
    return node.xattrs is not None and node.xattrs.get(CAPABILITIES) is not None


def drop_capabilities(node: Node) -> None:
    """Take the capabilities from a file that changed, whoever did that: the kernel leaves it to us."""
    if has_capabilities(node) and not node.is_dir():
        remove(node, CAPABILITIES)


def read_all(content: Content) -> Plaintext:
    """All bytes of a short content, as bytes that wipe themselves: the FUSE library takes nothing else here."""
    return Plaintext.read(content.size, lambda buffer: content.read_into(0, buffer))


def _check(name: bytes) -> None:
    if not name.startswith(NAMESPACES):
        raise FileError(errno.EOPNOTSUPP)
    if name in NAMESPACES:
        raise FileError(errno.EINVAL)


def _existing(node: Node, name: bytes) -> Attribute:
    _check(name)
    entry = None if node.xattrs is None else node.xattrs.get(name)
    if entry is None:
        raise FileError(errno.ENODATA)
    return entry
