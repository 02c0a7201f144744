"""What README says of other programs, tried as it is written there."""

from __future__ import annotations

import errno
import mmap
import os
import pty
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounts import PATIENCE, Mounted

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.mount, pytest.mark.slow]

VIMRC = """
set directory=~/swp backupdir=~/bak undodir=~/undo undofile backup writebackup
set viminfo='100,<50,s10,h nocompatible
"""


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mount."""
    with Mounted(tmp_path_factory.mktemp("readme") / "mnt") as made:
        yield made


def test_vim_leaves_nothing_outside(mounted: Mounted, tmp_path: Path) -> None:
    """README's way to edit a secret with vim writes nothing outside, whatever the vimrc says, not even briefly."""
    found = re.search(r"^vim .* DIR/key$", README, re.MULTILINE)
    assert found is not None
    (tmp_path / ".vimrc").write_text(VIMRC)
    for name in ("swp", "bak", "undo"):
        (tmp_path / name).mkdir()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())}
    (mounted.path / "key").write_text("password=needle\nkeep\n")
    edit = "'+g/needle/d' '+w' '+s/keep/needle-two/' '+wq'"
    command = found[0].replace("DIR", str(mounted.path)) + f" {edit}"
    master, slave = pty.openpty()
    with subprocess.Popen(
        ["sh", "-c", command], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "TERM": "dumb", "LC_ALL": "C.UTF-8"}, cwd=tmp_path,
    ) as vim:  # fmt: skip
        assert vim.wait(PATIENCE) == 0
    os.close(master)
    os.close(slave)
    assert (mounted.path / "key").read_text() == "needle-two\n"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path, *tmp_path.iterdir())} == before
    assert sorted(os.listdir(mounted.path)) == ["key"]


def test_shared_mmap_takes_cached(mounted: Mounted) -> None:
    """A shared mmap, also a read-only one, is ENODEV; a private one works."""
    (mounted.path / "f").write_bytes(b"bytes")
    with open(mounted.path / "f", "r+b") as file:
        for protection in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
            with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
                mmap.mmap(file.fileno(), 5, mmap.MAP_SHARED, protection)
        with mmap.mmap(file.fileno(), 5, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
            assert mapped[:] == b"bytes"


def use(path: Path, *pragmas: str) -> list[tuple[int]]:
    """Use a database, with these pragmas first."""
    connection = sqlite3.connect(path)
    try:
        for pragma in pragmas:
            connection.execute(f"pragma {pragma}")
        connection.execute("create table if not exists t(a)")
        connection.execute("insert into t values(1)")
        connection.commit()
        return connection.execute("select a from t").fetchall()
    finally:
        connection.close()


def test_sqlite(mounted: Mounted, tmp_path: Path) -> None:
    """SQLite works in its default mode, and with WAL if it locks exclusively or on a --cached mount; else it fails."""
    assert use(mounted.path / "default") == [(1,)]
    assert use(mounted.path / "exclusive", "locking_mode=exclusive", "journal_mode=wal") == [(1,)]
    assert use(mounted.path / "exclusive", "locking_mode=exclusive") == [(1,), (1,)]
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        use(mounted.path / "wal", "journal_mode=wal")
    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        use(mounted.path / "wal")
    with Mounted(tmp_path / "cached", "--cached") as cached:
        assert use(cached.path / "wal", "journal_mode=wal") == [(1,)]
