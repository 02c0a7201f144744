"""Programs that people really use, on a real mount: as root and as an ordinary user, on each backend.

The examples are run whole; the tests below them look closer. What a snippet of shell finds wrong makes it fail
(set -e), so most tests need no assertion of their own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mounts import clean_environment
from sessions import EXAMPLES, Folder, Session, here, session

pytestmark = pytest.mark.mount


# The examples


@pytest.mark.slow
@pytest.mark.parametrize("example", ["openssl", "nginx", "ssh", "python-ssl", "backup", "editor"])
def test_example(session: Session, example: str) -> None:
    """The example does what it says, and leaves nothing in the mount nor in temporary folders."""
    script = session.examples / example / ("run.py" if example == "python-ssl" else "run.sh")
    done = session.run("/usr/bin/python3" if script.suffix == ".py" else "sh", script, session.mount)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ok: ")
    assert not done.stderr
    left = session.run("ls", "-A", session.mount, session.tmp, folder=session.tmp).stdout
    assert left.split() == [f"{session.mount}:", f"{session.tmp}:"]


@pytest.mark.parametrize("example", ["openssl", "python-ssl"])
def test_example_without_a_mountpoint(session: Session, example: str) -> None:
    """Without a mountpoint an example says how it is called and exits with 2."""
    script = session.examples / example / ("run.py" if example == "python-ssl" else "run.sh")
    done = session.run("/usr/bin/python3" if script.suffix == ".py" else "sh", script)
    assert done.returncode == 2
    assert "usage: " in done.stderr and "MOUNTPOINT" in done.stderr


def test_every_example_is_listed_and_tested() -> None:
    """The table in examples/README.md links to the script of each example of this file."""
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*/run.*"):
        assert f"({script.parent.name}/{script.name})" in table


# Copies: a tree with one of everything

TREE = """
import os, sys
os.umask(0o022)
def write(path, data, mode=0o644):
    with open(path, "wb") as file:
        file.write(data)
    os.chmod(path, mode)
os.mkdir("tree"); os.chdir("tree")
for size in (0, 1, 64, 65, 4095, 4096, 4097, 100000):
    write(f"size-{size}", os.urandom(size), 0o600)
for name in ("with space", "-dash", "new\\nline", "täglich", "x" * 255, b"latin-\\xe9"):
    write(name, os.fsencode(name))
for mode in (0o400, 0o000, 0o4711, 0o2755, 0o777):
    write(f"mode-{mode:o}", b"mode", mode)
os.mkdir("empty", 0o700); os.mkdir("closed", 0o755); os.mkdir("sticky"); os.chmod("sticky", 0o1777)
write("closed/inside", b"inside")
os.link("size-64", "closed/other-name"); os.link("size-64", "third-name")
os.symlink("size-1", "relative"); os.symlink("/nowhere/at/all", "dangling"); os.symlink("y" * 1000, "long")
os.symlink("closed", "to-a-folder"); os.mkfifo("fifo", 0o620)
with open("sparse", "wb") as file:
    file.seek(500_000); file.write(b"island" * 1000); file.truncate(1_000_000)
os.setxattr("size-1", "user.text", b"value"); os.setxattr("size-1", "user.empty", b"")
os.setxattr("size-1", "user.binary", bytes(range(256)) * 8); os.setxattr("sticky", "user.of-a-folder", b"value")
if os.geteuid() == 0:
    os.chown("size-65", 1234, 5678); os.chown("mode-4711", 1234, 5678); os.chmod("mode-4711", 0o4711)
    os.chown("relative", 1234, 5678, follow_symlinks=False)
    os.setxattr("size-1", "trusted.root", b"value")
os.chmod("closed", 0o555)
times = {"size-0": 0, "size-1": 1, "size-65": 1_000_000_000_123_456_789, "size-4095": -2_000_000_000,
         "size-4096": (1 << 33) * 10**9 + 7, "relative": 981_173_106_789_012_345, "empty": 981_173_106_000_000_001,
         "closed": 981_173_106_999_999_999, "fifo": 5}
for name, when in times.items():
    os.utime(name, ns=(when, when), follow_symlinks=False)
"""
RSYNC = "rsync -aH --modify-window=-1"  # or it takes times within one second for the same


@pytest.fixture
def tree(here: Folder) -> Folder:
    """A folder with one of everything in `tree`; what only root could read is there for root only."""
    here.python(TREE)
    if not here.session.root:
        here.sh("rm -f tree/mode-0")
    return here


def test_cp_archive_inside(tree: Folder) -> None:
    """`cp -a` within the mount makes a tree with the same bytes, modes, owners, times, links and attributes."""
    tree.sh("cp -a tree copy")
    assert tree.manifest("copy") == tree.manifest("tree")


def test_cp_archive_out_and_in(tree: Folder) -> None:
    """A tree that `cp -a` took out of the mount and in again is the same in everything."""
    tree.sh('cp -a tree "$out"/; cp -a "$out"/tree back')
    assert tree.manifest("back", attributes=False) == tree.manifest("tree", attributes=False)
    assert tree.manifest(str(tree.outside / "tree"), attributes=False) == tree.manifest("tree", attributes=False)


@pytest.mark.slow
def test_rsync(tree: Folder) -> None:
    """`rsync -aHX` makes the same tree, and a second run, also by checksum, finds nothing left to do."""
    tree.sh(f"{RSYNC} -X tree/ copy")
    assert tree.manifest("copy") == tree.manifest("tree")
    for how in ("", "--checksum", "--inplace", "--whole-file"):
        assert tree.sh(f"{RSYNC} -X --itemize-changes --delete {how} tree/ copy") == ""
    assert "Number of regular files transferred: 0" in tree.sh(f"{RSYNC} -X --stats tree/ copy")


@pytest.mark.slow
def test_rsync_out_and_in(tree: Folder) -> None:
    """rsync takes a tree out of the mount and in again, by delta transfer too, and it is the same."""
    tree.sh(f'{RSYNC} tree/ "$out"/tree; {RSYNC} --no-whole-file "$out"/tree/ back')
    assert tree.manifest("back", attributes=False) == tree.manifest("tree", attributes=False)


@pytest.mark.slow
def test_rsync_follows_changes(tree: Folder) -> None:
    """rsync notices a change within a second by the size, a deletion with --delete, a changed byte with --checksum."""
    tree.sh(f"""
        {RSYNC} -X tree/ copy
        echo more >>tree/size-4097; rm tree/size-1; rmdir tree/empty
        printf X | dd of=tree/size-100000 bs=1 seek=5000 conv=notrunc status=none
        touch -r copy/size-100000 tree/size-100000
        {RSYNC} -X --delete --no-whole-file tree/ copy
        cmp tree/size-4097 copy/size-4097; ! cmp -s tree/size-100000 copy/size-100000
        [ ! -e copy/size-1 ]; [ ! -e copy/empty ]
        {RSYNC} -X --delete --checksum --inplace --no-whole-file tree/ copy
        """)
    assert tree.manifest("copy") == tree.manifest("tree")


def test_tar_out_and_in(tree: Folder) -> None:
    """`tar --xattrs` packs a tree from the mount, and unpacked into it again it is the same in everything."""
    tree.sh("""
        tar -c --xattrs --xattrs-include='*' -f "$out"/archive.tar tree
        mkdir back; tar -x -p --warning=no-timestamp --xattrs --xattrs-include='*' -f "$out"/archive.tar -C back
        """)
    assert tree.manifest("back/tree") == tree.manifest("tree")


def test_tar_archive_in_the_mount(tree: Folder) -> None:
    """An archive in the mount, compressed, compared and grown, unpacks to the same tree outside."""
    tree.sh("""
        tar -c --format=posix -z -f archive.tgz tree; tar -d --warning=no-timestamp -f archive.tgz; mkdir "$out"/back
        tar -x -p --warning=no-timestamp -f archive.tgz -C "$out"/back
        echo one >one; echo two >two; tar -cf grown.tar one; tar -rf grown.tar two
        [ "$(tar -tf grown.tar)" = "$(printf 'one\\ntwo')" ]
        tar --delete -f grown.tar one; [ "$(tar -tf grown.tar)" = two ]
        """)
    assert tree.manifest(str(tree.outside / "back/tree"), attributes=False) == tree.manifest("tree", attributes=False)


@pytest.mark.parametrize(
    "copy", ["cp -a a b", "cp --sparse=always a b", "rsync -S a b", "tar -cSf - a | tar -xSf - --transform s/a/b/"]
)
def test_sparse_files_stay_sparse(here: Folder, copy: str) -> None:
    """A copy that keeps holes takes no more memory than the original, and its bytes are the same."""
    here.sh(f"""
        truncate -s 2M a; printf island | dd of=a bs=1 seek=1000000 conv=notrunc status=none
        [ $(stat -c %b a) -eq 8 ]
        {copy}
        cmp a b; [ "$(stat -c %s b)" -eq 2097152 ]; [ $(stat -c %b b) -le 16 ]
        """)


# Keys and certificates


@pytest.mark.parametrize("outform", ["PEM", "DER"])
def test_openssl_key_with_a_passphrase(here: Folder, outform: str) -> None:
    """A key written over another one, encrypted, can be read back with its passphrase only."""
    here.sh(f"""
        openssl genpkey -quiet -algorithm ed25519 -out key; openssl pkey -in key -pubout >pub
        openssl pkcs8 -topk8 -in key -outform {outform} -passout pass:right -out key.enc
        [ $(stat -c %a key.enc) = 600 ]
        openssl pkey -in key.enc -inform {outform} -passin pass:right -pubout | cmp - pub
        ! openssl pkey -in key.enc -inform {outform} -passin pass:wrong -noout 2>/dev/null
        """)


@pytest.mark.slow
def test_ssh_keygen_rewrites_its_file(here: Folder) -> None:
    """ssh-keygen changes a key's passphrase and comment in place and leaves mode 0600 and nothing else behind."""
    here.sh("""
        ssh-keygen -q -t ed25519 -N '' -C first -f id; ssh-keygen -y -f id | cmp - id.pub
        ssh-keygen -q -p -P '' -N secret -f id >/dev/null; ssh-keygen -c -P secret -C second -f id >/dev/null
        [ "$(ssh-keygen -y -P secret -f id)" = "$(cat id.pub)" ]; grep -q second id.pub
        [ $(stat -c %a id) = 600 ]; [ "$(ls)" = "$(printf 'id\\nid.pub')" ]
        """)


def test_ssh_agent_with_its_socket_in_the_mount(here: Folder) -> None:
    """A Unix socket works in the mount: ssh-agent listens there, and ssh-add hands it a key.

    Debian's ssh-agent is set-group-ID, and FUSE keeps a process with changed ids out of an ordinary user's mount: the
    agent here is a plain copy.
    """
    here.sh("""
        cp /usr/bin/ssh-agent "$out"/ssh-agent
        ssh-keygen -q -t ed25519 -N '' -f id
        mkfifo "$out"/said; "$out"/ssh-agent -D -a "$PWD/agent" >"$out"/said & agent=$!
        exec 3<"$out"/said; read line <&3; [ -S agent ]; export SSH_AUTH_SOCK="$PWD/agent"
        ssh-add -q id; ssh-add -L | cmp - id.pub; kill $agent; wait $agent || true
        """)


@pytest.mark.parametrize(("mode", "taken"), [("600", True), ("400", True), ("644", False), ("640", False)])
def test_sshd_checks_the_mode_of_its_host_key(here: Folder, mode: str, taken: bool) -> None:
    """sshd takes a host key that only its owner can read, and refuses one that others can."""
    here.sh("[ $(id -u) -ne 0 ] || mkdir -p -m 755 /run/sshd; ssh-keygen -q -t ed25519 -N '' -f host")
    here.sh(f'chmod {mode} host; printf \'HostKey "%s/host"\\n\' "$PWD" >sshd_config')
    done = here.session.run("/usr/sbin/sshd", "-t", "-f", here.path / "sshd_config")
    assert (done.returncode == 0) == taken, done.stderr
    assert ("UNPROTECTED PRIVATE KEY FILE" in done.stderr) != taken


def test_nginx_refuses_a_key_of_another_certificate(here: Folder) -> None:
    """`nginx -t` reads key and certificate from the mount: it takes a pair that matches, and no other."""
    here.sh("""
        for name in one two; do
            openssl genpkey -quiet -algorithm ed25519 -out $name.key
            openssl req -x509 -key $name.key -subj /CN=$name -out $name.crt
        done
        check() {
            {
                printf 'pid "%s/pid"; events {} http { access_log off;\\n' "$out"
                for use in client_body proxy fastcgi uwsgi scgi; do
                    printf '%s_temp_path "%s/%s";\\n' $use "$out" $use
                done
                printf 'server { listen 127.0.0.1:4433 ssl; ssl_certificate "%s/%s.crt";\\n' "$PWD" "$1"
                printf 'ssl_certificate_key "%s/one.key"; } }\\n' "$PWD"
            } >nginx.conf
            nginx -p "$PWD" -c nginx.conf -e stderr -t >"$out"/said 2>&1
        }
        check one || { cat "$out"/said; exit 1; }
        ! check two; grep -q 'key values mismatch' "$out"/said
        """)


# Editors


@pytest.mark.slow
def test_vim_keeps_everything_in_the_folder(here: Folder) -> None:
    """vim with its swap, backup and undo files beside the text leaves no byte of it outside the mount."""
    here.sh("""
        echo 'needle one' >text; ln -s text link
        vim -u NONE -i NONE -N -es -c 'set directory=. backupdir=. undodir=. undofile backup' \\
            -c '%s/one/two/' -c wq link
        [ "$(cat text)" = 'needle two' ]; [ "$(cat link~)" = 'needle one' ]; [ -s .text.un~ ]; [ -L link ]
        [ -z "$(grep -rl needle "$out" "$HOME" || true)" ]
        """)


def test_vim_finds_a_swap_file(here: Folder) -> None:
    """vim recovers from its swap file in the mount what another vim, killed, did not write."""
    here.sh("""
        echo one >text
        edit() { vim -u NONE -i NONE -N -es --cmd 'set directory=.' "$@"; }
        (exec 2>/dev/null; edit -c '%s/one/two/' -c preserve -c 'call system("kill -9 " . getpid())' text || true)
        [ -e .text.swp ]; [ "$(cat text)" = one ]
        edit -r text -c 'w! recovered' -c 'q!' || true
        [ "$(cat recovered)" = two ]
        """)


@pytest.mark.parametrize("keep", ["", "-b -V numbered", "-b -V simple"])
def test_patch(here: Folder, keep: str) -> None:
    """patch replaces a file, keeps its mode and, if asked, a backup of the old one; a second time it refuses."""
    here.sh(f"""
        seq 100 >old; seq 100 | sed 's/^50$/fifty/' >new; diff -u old new >change || true; chmod 600 old
        patch -s {keep} old change; cmp old new; [ $(stat -c %a old) = 600 ]
        ! patch -s -N -r - old change >/dev/null
        patch -s -R old change; seq 100 | cmp - old
        """)


# Ordinary tools


def test_find(here: Folder) -> None:
    """find goes by name, type, mode, size, links, age and emptiness, and deletes."""
    here.sh("""
        mkdir -p a/b; touch -d 2001-01-01 a/old; echo x >a/b/new; chmod 640 a/b/new; ln a/b/new a/second; mkfifo a/fifo
        truncate -s 100k a/big
        [ "$(find a -newer a/old -type f -links 2 | sort)" = "$(printf 'a/b/new\\na/second')" ]
        [ "$(find a -samefile a/b/new | wc -l)" -eq 2 ]; [ "$(find a -perm 640 -name n*)" = a/b/new ]
        [ "$(find a -size +50k)" = a/big ]; [ "$(find a -mtime +365)" = a/old ]; [ "$(find a -type p)" = a/fifo ]
        [ "$(find a -xdev -type f -empty)" = a/old ]; [ "$(find . -fstype fuse.secretfs -name big)" = ./a/big ]
        find a -depth -delete; [ ! -e a ]
        """)


def test_du_and_df(here: Folder) -> None:
    """du counts memory or, with -b, bytes, and hard links once; df shows what a file takes until its last name goes."""
    here.sh("""
        truncate -s 1M hole; [ "$(du -B1 hole | cut -f1)" -eq 0 ]; [ "$(du -b hole | cut -f1)" -eq 1048576 ]
        used() { df -B1 --output=used . | tail -n 1; }
        before=$(used); head -c 65536 /dev/urandom >full; ln full again
        [ "$(du -B1 full | cut -f1)" -eq 65536 ]; [ "$(du -B1 -c full again | tail -n 1 | cut -f1)" -eq 65536 ]
        [ $(($(used) - before)) -eq 65536 ]; rm full; [ $(($(used) - before)) -eq 65536 ]
        rm again; [ $(used) -eq $before ]
        [ "$(df --output=fstype . | tail -n 1)" = fuse.secretfs ]; [ "$(df --output=iused . | tail -n 1)" -ge 2 ]
        """)


def test_shred(here: Folder) -> None:
    """shred overwrites a file and removes it under its changing names."""
    here.sh("""
        head -c 8192 /dev/urandom >file; before=$(stat -c %i file); shred -n 1 -z file
        head -c 8192 /dev/zero | cmp - file; [ $(stat -c %i file) -eq $before ]; shred -n 1 -u file; [ -z "$(ls -A)" ]
        """)


def test_split_and_cat(here: Folder) -> None:
    """The pieces of split, joined, are the file."""
    here.sh("head -c 300000 /dev/urandom >file; split -b 7000 file part.; cat part.* | cmp - file; csplit -s -z file 1")


def test_sort_onto_its_input(here: Folder) -> None:
    """sort -o replaces the file that it reads, with temporary files in the mount."""
    here.sh('seq 20000 | shuf >file; sort -n -S 64k -T . -o file file; seq 20000 | cmp - file; [ "$(ls)" = file ]')


def test_install(here: Folder) -> None:
    """install copies with the mode asked for, replaces what is there, and makes folders."""
    here.sh("""
        echo secret >"$out"/new; echo old >key; chmod 644 key
        install -m 600 "$out"/new key; cmp key "$out"/new; [ $(stat -c %a key) = 600 ]
        install -d -m 700 a/b/c; [ $(stat -c %a a/b/c) = 700 ]
        install -m 400 -D "$out"/new x/y/key; [ $(stat -c %a x/y/key) = 400 ]
        install -b -m 640 -p "$out"/new key; [ -e key~ ]; [ "$(stat -c %y key)" = "$(stat -c %y "$out"/new)" ]
        """)


def test_mktemp(here: Folder) -> None:
    """mktemp makes files of mode 0600 and folders of mode 0700 that nobody else has."""
    here.sh("""
        file=$(mktemp -p .); folder=$(mktemp -d -p .)
        [ $(stat -c %a "$file") = 600 ]; [ $(stat -c %a "$folder") = 700 ]
        for i in 1 2 3 4 5 6 7 8 9; do mktemp -p . XXX >/dev/null; done; [ $(ls | wc -l) -eq 11 ]
        """)


def test_flock(here: Folder) -> None:
    """flock shuts other processes out while the lock is held, and lets them in when its holder has ended."""
    here.sh("""
        flock lock sh -euc '! flock -n lock true; ! flock -n -s lock true'; flock -n lock true
        flock -s lock sh -euc 'flock -n -s lock true; ! flock -n -x lock true'
        """)


def test_posix_locks(here: Folder) -> None:
    """fcntl locks hold for a range of bytes between processes."""
    here.python("""if 1:
        import fcntl, os
        file = open("lock", "wb")
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        def free(start):
            child = os.fork()
            if child == 0:
                try:
                    fcntl.lockf(open("lock", "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
                except BlockingIOError:
                    os._exit(1)
                os._exit(0)
            return os.waitpid(child, 0)[1] == 0
        assert not free(5) and free(10)
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 0)
        assert free(5)
        """)


def test_moving_between_file_systems(here: Folder) -> None:
    """mv takes a file and a folder with modes and times out of the mount and in again."""
    here.sh("""
        mkdir -p d/e; echo secret >d/e/file; chmod 640 d/e/file; touch -d '2001-02-03 04:05:06.7' d/e/file
        chmod 700 d/e; before=$(stat -c '%a %y' d/e/file d/e)
        mv d "$out"/; [ ! -e d ]; mv "$out"/d d; [ ! -e "$out"/d ]
        [ "$(stat -c '%a %y' d/e/file d/e)" = "$before" ]; [ "$(cat d/e/file)" = secret ]
        """)


def test_running_a_program(here: Folder) -> None:
    """A script and a binary in the mount can be run; a binary that runs can be replaced by rename."""
    here.sh("""
        printf '#!/bin/sh\\necho "script $1"\\n' >script; chmod 700 script; [ "$(./script one)" = 'script one' ]
        cp /usr/bin/env program; [ "$(./program printf here)" = here ]
        ./program sh -euc 'cp /usr/bin/env next; mv next program; ./program true'
        """)


def test_pipes_and_appending(here: Folder) -> None:
    """A fifo hands data over, and two writers that append lose none of each other's lines."""
    here.sh("""
        mkfifo pipe; echo through >pipe & [ "$(cat pipe)" = through ]; wait
        for name in a b; do (for i in $(seq 200); do echo "$name $i" >>log; done) & done; wait
        [ "$(wc -l <log)" -eq 400 ]; [ "$(sort -u log | wc -l)" -eq 400 ]
        """)


def test_tail_follows(here: Folder) -> None:
    """tail -F, which polls on any FUSE, sees lines appended to a file and the file that replaces it."""
    here.sh("""
        echo first >log; mkfifo "$out"/seen
        tail -n +1 -s 0.02 --max-unchanged-stats=2 -F log >"$out"/seen 2>/dev/null & tail=$!
        exec 3<"$out"/seen
        read line <&3; [ "$line" = first ]; echo second >>log; read line <&3; [ "$line" = second ]
        echo third >next; mv next log; read line <&3; [ "$line" = third ]
        kill -PIPE $tail; wait $tail || true
        """)


def test_compressing(here: Folder) -> None:
    """gzip and xz replace a file by its compressed form and back, with mode and time."""
    here.sh("""
        seq 5000 >file; chmod 600 file; touch -d '2001-02-03 04:05:06' file; before=$(stat -c '%a %Y' file)
        for tool in gzip xz; do
            $tool file; [ "$(ls)" = file.?? ] || [ "$(ls | wc -l)" -eq 1 ]; $tool -d file.*; seq 5000 | cmp - file
            [ "$(stat -c '%a %Y' file)" = "$before" ]
        done
        """)
