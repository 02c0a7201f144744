"""Programs that keep their own store of files, on a real mount: sqlite, git and GnuPG, each in its usual way.

They lock, link, rename, map and sync their files as few others do, and they check their own stores.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mounts import Mounted
from sessions import Folder, here, session
from workers import Peer, working

pytestmark = [pytest.mark.mount, pytest.mark.slow]


# sqlite

WRITERS = """
import os, sqlite3, sys
def add(number):
    base = sqlite3.connect("data.db", timeout=60, isolation_level=None)
    for step in range(10):
        base.execute("begin immediate")
        (n,) = base.execute("select n from counter").fetchone()
        base.execute("update counter set n = ?", (n + 1,))
        base.execute("insert into t values (?, ?)", (f"{number}-{step}", os.urandom(5000)))
        base.execute("commit")
    base.close()

base = sqlite3.connect("data.db", isolation_level=None)
assert base.execute(f"pragma journal_mode = {sys.argv[1]}").fetchone() == (sys.argv[1],)
base.execute("create table t (name text primary key, data blob)")
base.execute("create table counter as select 0 as n")
base.close()
children = []
for number in range(4):
    children.append(os.fork())
    if not children[-1]:
        add(number)
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
base = sqlite3.connect("data.db")
assert base.execute("select n from counter").fetchone() == (40,)
assert base.execute("select count(*) from t").fetchone() == (40,)
assert base.execute("pragma integrity_check").fetchone() == ("ok",)
base.execute("delete from t")
base.commit()
base.execute("vacuum")
base.close()
assert os.path.getsize("data.db") < 20000
"""


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite_writers(here: Folder, journal: str) -> None:
    """Four processes that write to one data base, in any journal mode but WAL, lose no transaction."""
    here.python(WRITERS, journal)


HALF = """
import os, signal, sqlite3
if child := os.fork():
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    raise SystemExit
base = sqlite3.connect("data.db", isolation_level=None)
base.execute("create table t as select 'whole' as word")
base.execute("pragma cache_spill = 1")
base.execute("pragma cache_size = 10")
base.execute("begin")
base.execute("update t set word = 'half'")
base.execute("create table filling as with recursive c(x) as (values(1) union all select x + 1 from c limit 300)"
             " select hex(randomblob(2000)) from c")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_sqlite_rolls_back(here: Folder) -> None:
    """What a process had written of a transaction when it was killed is taken back by the next from the journal."""
    here.python(HALF)
    here.sh("test -s data.db-journal; test $(stat -c %s data.db) -gt 100000")
    script = "import sqlite3\nbase = sqlite3.connect('data.db')\n"
    script += "print(base.execute('select * from t').fetchall(), base.execute('pragma integrity_check').fetchall())"
    assert here.python(script) == "[('whole',)] [('ok',)]\n"
    assert here.sh("ls") == "data.db"


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount with --cached for the module."""
    with Mounted(tmp_path_factory.mktemp("cached") / "mnt", "--cached") as mounted:
        yield mounted.path


def test_sqlite_wal_with_cached(cached: Path) -> None:
    """With --cached the write-ahead log works: a reader keeps its view while another process writes and checkpoints."""
    path = cached / "data.db"

    def reader(peer: Peer) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as base:
            base.execute("begin")
            assert base.execute("select count(*) from t").fetchone() == (1,)
            peer.say()
            peer.hear("written")
            assert base.execute("select count(*) from t").fetchone() == (1,)
            base.execute("commit")
            assert base.execute("select count(*) from t").fetchone() == (301,)

    with closing(sqlite3.connect(path, isolation_level=None)) as base:
        assert base.execute("pragma journal_mode = wal").fetchone() == ("wal",)
        base.execute("create table t (data blob)")
        base.execute("insert into t values ('first')")
    with working(reader) as (worker,):
        worker.hear()
        with closing(sqlite3.connect(path, isolation_level=None)) as base:
            for number in range(300):
                base.execute("insert into t values (?)", (os.urandom(number * 10),))
            assert base.execute("pragma wal_checkpoint").fetchone()[0] == 0
            worker.say("written")
            assert worker.end() == 0
            assert base.execute("pragma integrity_check").fetchone() == ("ok",)
            assert sorted(entry.name for entry in cached.iterdir()) == ["data.db", "data.db-shm", "data.db-wal"]
    assert os.listdir(cached) == ["data.db"]


def test_sqlite_wal_without_cached(here: Folder) -> None:
    """Without --cached sqlite cannot map the log's index: it says so, and with the data base to itself it needs none.

    It has written the mode into the file by then (sqlite.org/wal.html, "Use of WAL Without Shared-Memory").
    """
    here.python("""if True:
        import sqlite3
        def connect():
            return sqlite3.connect("data.db", isolation_level=None)
        base = connect()
        base.execute("create table t as select 'kept' as word")
        base.execute("pragma journal_mode = wal")
        for base in (base, connect()):
            try:
                base.execute("insert into t values ('lost')")
            except sqlite3.OperationalError as error:
                assert str(error) == "disk I/O error", error
            else:
                raise AssertionError("it could map")
            base.close()
        base = connect()
        base.execute("pragma locking_mode = exclusive")
        base.execute("insert into t values ('in the log')")
        assert base.execute("pragma journal_mode = delete").fetchone() == ("delete",)
        base.close()
        base = connect()
        base.execute("insert into t values ('added')")
        assert base.execute("select word from t").fetchall() == [("kept",), ("in the log",), ("added",)]
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        base.close()
        """)


# git


def test_git(here: Folder) -> None:
    """A repository in the mount: commits, a merge, a rebase, a stash, a worktree, gc, fsck and clones in and out."""
    here.sh("""
        export GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=A GIT_AUTHOR_EMAIL=a@example GIT_COMMITTER_NAME=A
        export GIT_COMMITTER_EMAIL=a@example GIT_EDITOR=true
        git init -q -b main repository; cd repository
        for n in 1 2 3; do
            for f in 1 2 3 4 5; do seq $((n * f)) $((n * f + 200)) >f$f; done
            git add .; git commit -q -m "number $n"
        done
        git checkout -q -b side HEAD~1; echo side >side; chmod +x side; ln -s side link; git add .
        git commit -q -m side
        git checkout -q main; git merge -q -m merged side
        git checkout -q -b other HEAD~1; echo other >other; git add other; git commit -q -m other
        git rebase -q main; git checkout -q main; git merge -q --ff-only other
        echo changed >>f1; git stash -q; test -z "$(git status --porcelain)"; git stash pop -q
        test "$(git status --porcelain)" = " M f1"; git checkout -q f1
        git worktree add -q ../beside side; test -z "$(git -C ../beside status --porcelain)"
        git worktree remove ../beside
        git tag -a -m tagged v1
        git gc -q --prune=now; test "$(ls .git/objects/pack/*.pack | wc -l)" = 1
        git fsck --strict --no-progress
        git repack -q -a -d -f --depth=5; git fsck --full --no-progress
        cd ..
        git clone -q --local repository linked; git clone -q --no-local repository copied
        git clone -q repository $out/outside; git clone -q --bare $out/outside again.git
        for place in linked copied $out/outside again.git; do
            test "$(git -C $place rev-parse HEAD)" = "$(git -C repository rev-parse HEAD)"
            git -C $place fsck --no-progress
        done
        test "$(readlink copied/link)" = side; test -x copied/side
        (cd copied; echo pushed >pushed; git add .; git commit -q -m pushed; git push -q origin HEAD:refs/heads/new)
        test "$(git -C repository log -1 --format=%s new)" = pushed
        """)


# GnuPG


def test_gnupg(here: Folder) -> None:
    """With its home directory in the mount gpg makes a key, signs, encrypts, exports, and agent and key box work."""
    here.sh("""
        mkdir -m 700 home second; export GNUPGHOME=$PWD/home LC_ALL=C
        trap 'cat $out/log' EXIT
        printf 's2k-count 65536\ndebug-quick-random\n' | tee home/gpg-agent.conf >second/gpg-agent.conf  # faster
        gpg() { command gpg --batch --quiet --pinentry-mode loopback "$@" 2>>$out/log; }
        gpg --passphrase secret --quick-generate-key 'A <a@example>' ed25519 sign never
        print=$(gpg --list-keys --with-colons | awk -F: '/^fpr/ {print $10; exit}')
        gpg --passphrase secret --quick-add-key $print cv25519 encr never
        gpg --list-secret-keys a@example >/dev/null
        test "$(ls home/private-keys-v1.d | wc -l)" = 2
        seq 1 10000 >text
        gpg --passphrase secret --detach-sign text; gpg --verify text.sig text
        gpg --recipient a@example --encrypt text; gpg --passphrase secret --decrypt text.gpg >back; cmp text back
        echo x >>text; ! gpg --verify text.sig text
        gpgconf --kill all
        ! gpg --passphrase wrong --decrypt text.gpg >/dev/null
        gpg --passphrase secret --armor --export-secret-keys >exported
        GNUPGHOME=$PWD/second; export GNUPGHOME
        gpg --passphrase secret --import exported
        test "$(gpg --passphrase secret --decrypt text.gpg | tail -n 1)" = 10000
        gpg --yes --delete-secret-and-public-key $print; test -z "$(gpg --list-keys)"
        for GNUPGHOME in $PWD/home $PWD/second; do
            agent=$(gpg-connect-agent --no-autostart 'getinfo pid' /bye 2>/dev/null | awk '/^D/ {print $2}')
            gpgconf --kill all
            test -z "$agent" || tail --pid=$agent -s 0.02 -f /dev/null  # its socket keeps the mount busy
        done
        trap - EXIT
        """)
