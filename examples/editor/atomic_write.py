"""Replace a file's contents so that a reader sees the old ones or the new ones and never a mixture.

Use: python3 atomic_write.py FILE < new-contents
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Write a new file beside `path`, with the same mode, and rename it into place.

    The two fsync calls do nothing on secret memory, where nothing survives a power cut; they are here because programs
    that replace files this way make them.
    """
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    fd, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), path.stat().st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
        os.fsync(folder)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(folder)


if __name__ == "__main__":
    atomic_write(Path(sys.argv[1]), sys.stdin.buffer.read())
