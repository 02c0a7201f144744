"""`secretfs run`: its words, what CMD gets, what the shell gets back, and what happens when something is killed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import box
import pytest
from launches import MADE, WHO, Looping, open_folder, program, run
from mounts import PATIENCE, SECRETFS, clean_environment, needs_root, needs_secretmem

__all__ = ["program"]

SHELL = "/bin/sh"


def ended(pidfd: int) -> bool:
    """Wait for the end of a process."""
    return bool(select.select([pidfd], [], [], PATIENCE)[0])


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("options", [[], ["--strict"], ["--rfc2020"], ["--backing", "memfd"]], ids=" ".join)
def test_a_static_program_has_secrets(program: str, who: str, options: list[str]) -> None:
    """A static program makes a secret, for root and for an ordinary user; its exit code is its own, nothing is said."""
    done = run("--emulate", *options, "--", program, "once", who=who)
    assert (done.returncode, done.stdout, done.stderr) == (7, MADE, "")


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
def test_children_have_secrets(program: str, who: str) -> None:
    """So do the children that it forks."""
    done = run("--emulate", program, "fork", who=who)
    assert (done.returncode, done.stdout) == (7, 3 * MADE)


@needs_secretmem
def test_without_options_the_kernel_does_it(program: str) -> None:
    """Where the kernel has the call nothing is emulated: the command takes our place."""
    shell = [SECRETFS, "run", SHELL, "-c", f"echo $$; exec {program} once"]
    with subprocess.Popen(shell, stdout=subprocess.PIPE, text=True, env=clean_environment()) as process:
        said, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, said) == (7, f"{process.pid}\n{MADE}")


@pytest.mark.slow
@needs_root
def test_on_a_kernel_that_lacks_it(program: str) -> None:
    """Where the kernel lacks the call (a filter plays that) it is emulated without being asked."""
    done = run("--", program, "once", under=box.command([], without="ENOSYS"))
    assert (done.returncode, done.stdout, done.stderr) == (7, MADE, "")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
    ],
)
def test_exit_codes(words: str, code: int) -> None:
    """The exit code is the command's own, 128+N where signal N ended it."""
    done = run("--emulate", SHELL, "-c", words)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_what_cannot_be_started(tmp_path: Path) -> None:
    """127 for what does not exist, 126 for what cannot be executed, with one sentence, with and without emulation."""
    plain, script = tmp_path / "plain", tmp_path / "script"
    plain.write_text("x")
    script.write_text("#!/nonexistent\n")
    script.chmod(0o755)
    cases = [
        ("nosuch-program", 127, "there is no program 'nosuch-program'"),
        (str(tmp_path / "none"), 127, f"there is no program '{tmp_path / 'none'}'"),
        ("", 127, "there is no program ''"),
        (str(plain), 126, f"'{plain}' cannot be executed: permission denied"),
        (str(tmp_path), 126, f"'{tmp_path}' cannot be executed: it is a directory"),
        (str(script), 126, f"'{script}' cannot be executed: its interpreter does not exist"),
    ]
    for option in "--emulate", "--without":
        for name, code, sentence in cases if option == "--emulate" else cases[::3]:
            done = run(option, "--", name)
            assert (done.returncode, done.stderr.splitlines()[0]) == (code, f"secretfs: error: {sentence}")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "which command is to be started?"),
        (["--"], "which command is to be started?"),
        (["--bogus", "true"], "unrecognized arguments: --bogus"),
        (["--without", "--emulate", "true"], "--without and --emulate contradict each other"),
        (["--without", "--fail-after", "1", "true"], "--without and --fail-after contradict each other"),
        (["--errno", "EFOO", "true"], "'EFOO' is not the name of an errno"),
        (["--fail-after", "x", "true"], "'x' is not a number of calls"),
        (["--limit-memlock", "64Q", "true"], "'64Q' is not a size"),
        (["--backing", "disk", "true"], "invalid choice: 'disk'"),
        (["--emulate", "--log", "/nonexistent/log", "true"], "the log '/nonexistent/log' cannot be written"),
    ],
)
def test_wrong_words(words: list[str], sentence: str) -> None:
    """Wrong words are one sentence, and 125: any other code could be the command's."""
    done = run(*words)
    assert done.returncode == 125
    assert sentence in done.stderr
    assert done.stdout == ""


def test_help() -> None:
    """The help names every option and the exit codes; the words after CMD are CMD's."""
    done = run("--help")
    assert done.returncode == 0
    for word in ("--emulate", "--without", "--strict", "--rfc2020", "--backing", "--limit-memlock", "--fail-after"):
        assert word in done.stdout
    assert "127" in done.stdout
    assert run("--emulate", "echo", "--help", "--emulate").stdout == "--help --emulate\n"


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
def test_without(program: str, who: str) -> None:
    """--without: the call is missing, or fails as --errno says, and the command takes our place."""
    done = run("--without", program, "once", who=who)
    assert (done.returncode, done.stdout, done.stderr) == (7, "made=ENOSYS\n", "")
    done = run("--without", "--errno", "EPERM", program, "once", who=who)
    assert (done.returncode, done.stdout) == (7, "made=EPERM\n")


@pytest.mark.slow
@needs_root
def test_without_by_root_keeps_privileges() -> None:
    """Installed by root the filter needs no no_new_privs: what is started under it may still gain privileges."""
    done = run("--without", SHELL, "-c", "grep NoNewPrivs /proc/self/status")
    assert done.stdout.split() == ["NoNewPrivs:", "0"]


@pytest.mark.slow
def test_the_ways_nest(program: str) -> None:
    """A stock kernel can be played around an emulation, and inside of one; an emulation inside of one is that one."""
    inside = [SECRETFS, "run"]
    assert run("--without", *inside, "--emulate", program, "once").stdout == MADE
    assert run("--emulate", *inside, "--without", program, "once").stdout == "made=ENOSYS\n"
    assert run("--emulate", *inside, "--emulate", program, "once").stdout == MADE
    done = run("--emulate", *inside, "--emulate", "--strict", program, "once")
    assert done.returncode == 125
    assert "another supervisor (secretfs run, or a container manager) already serves this process tree" in done.stderr


@pytest.mark.slow
def test_a_profile_that_forbids_it(program: str) -> None:
    """Nothing overrules a filter that answers the call with an error: that is said."""
    done = run("--without", "--errno", "EPERM", SECRETFS, "run", program, "once")
    assert (done.returncode, done.stdout) == (125, "")
    assert "memfd_secret is forbidden here (EPERM)" in done.stderr
    inside = [SECRETFS, "run", "--emulate", SECRETFS, "run", "--without", SECRETFS, "run", "--emulate", program, "once"]
    done = subprocess.run(inside, capture_output=True, text=True, env=clean_environment(), check=False)
    assert (done.returncode, done.stdout) == (125, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--emulate"], pytest.param([], marks=needs_secretmem)], ids=["emulated", "kernel"]
)
@pytest.mark.parametrize("who", WHO)
def test_fail_after(program: str, who: str, options: list[str]) -> None:
    """--fail-after: so many calls succeed in the whole tree, then they fail; --errno alone: all fail."""
    done = run(*options, "--fail-after", "2", program, "fork", who=who)
    assert (done.returncode, done.stdout) == (7, 2 * MADE + "made=EMFILE\n")
    done = run(*options, "--fail-after", "1", "--errno", "ENFILE", program, "fork", who=who)
    assert done.stdout == MADE + 2 * "made=ENFILE\n"
    assert run(*options, "--errno", "EPERM", program, "once", who=who).stdout == "made=EPERM\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--emulate"], pytest.param([], marks=needs_secretmem)], ids=["emulated", "kernel"]
)
@pytest.mark.parametrize("who", WHO)
def test_limit_memlock(program: str, who: str, options: list[str]) -> None:
    """--limit-memlock: more than that cannot be mapped, for root neither."""
    assert run(*options, "--limit-memlock", "64K", program, "map", "65536", who=who).stdout == "mapped=ok\n"
    assert run(*options, "--limit-memlock", "64K", program, "map", "65537", who=who).stdout == "mapped=EAGAIN\n"
    assert run(*options, "--limit-memlock", "0", program, "map", "1", who=who).stdout == "mapped=EAGAIN\n"


@pytest.mark.slow
@needs_root
def test_a_limit_that_may_not_be_raised(program: str) -> None:
    """A lock limit above the hard one is refused to an ordinary user, with the remedy."""
    done = run("--limit-memlock", "1G", program, "once", under=box.command([], user="nobody", memlock=65536))
    assert done.returncode == 125
    assert "the lock limit cannot be set to 1073741824 bytes" in done.stderr
    assert "hint: give a size of at most the hard limit" in done.stderr


@pytest.mark.slow
def test_streams_and_environment(tmp_path: Path) -> None:
    """stdin, stdout, stderr, other descriptors, the working directory and the environment are the command's."""
    (tmp_path / "other").write_text("other\n")
    other = os.open(tmp_path / "other", os.O_RDONLY)
    shell = f"cat; echo to stderr >&2; pwd; cat <&{other}; env | grep -c LC_CTYPE"
    try:
        for options in ["--emulate"], ["--without"]:
            os.lseek(other, 0, os.SEEK_SET)
            done = subprocess.run(
                [SECRETFS, "run", *options, "/bin/bash", "-c", shell], input="stdin\n", capture_output=True, text=True,
                cwd=tmp_path, env={"PATH": os.defpath}, pass_fds=[other], check=False,
            )  # fmt: skip
            assert done.stdout == f"stdin\n{tmp_path}\nother\n0\n"
            assert done.stderr == "to stderr\n"
    finally:
        os.close(other)


@pytest.mark.slow
def test_pipes_end() -> None:
    """Nobody but the command holds its output: a reader sees the end of it when the command closes it."""
    shell = "exec >&-; read line; exit 4"
    with subprocess.Popen(
        [SECRETFS, "run", "--emulate", SHELL, "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=clean_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read() == b""
        process.communicate(b"\n", timeout=PATIENCE)
        assert process.returncode == 4


@pytest.mark.slow
def test_signals_as_they_were() -> None:
    """The command has no signal blocked, and ignores none that we were not told to ignore."""
    shell = ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]
    native = subprocess.run(shell, capture_output=True, text=True, check=True).stdout
    assert run("--emulate", *shell).stdout == native
    assert run("--without", *shell).stdout == native


@pytest.mark.slow
def test_signals_are_passed_on() -> None:
    """A signal sent to us reaches the command; what it answers is its exit code."""
    answers = Path(__file__).parent / "runprograms" / "answers.py"
    with subprocess.Popen(
        [SECRETFS, "run", "--emulate", "/usr/bin/python3", "-I", answers, "HUP=hup", "USR1=usr1:9"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=clean_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "up-and-42\n"
        process.send_signal(signal.SIGHUP)
        assert process.stdout.readline() == "hup\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "usr1\n"
        assert process.wait(PATIENCE) == 9


@pytest.mark.slow
def test_the_command_s_own_signals_come_once() -> None:
    """kill 0 in the command reaches all its process group, us too: we do not send it once more."""
    first, last = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2  # these are queued, and taken in this order
    code = f"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [{first}, {last}])
os.kill(0, {first})
print("sent", flush=True)
while (number := signal.sigwait([{first}, {last}])) == {first}:
    print("one", flush=True)
"""
    with subprocess.Popen(
        [SECRETFS, "run", "--emulate", sys.executable, "-I", "-c", code], stdout=subprocess.PIPE,
        text=True, env=clean_environment(), start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        process.send_signal(last)  # passed on after what came before
        assert process.stdout.read() == "one\n"
        assert process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_the_follower_is_killed(program: str) -> None:
    """kill -9 of the process that the user knows: the command goes on, and so does the emulation, until both end."""
    with Looping(program) as looping:
        assert looping.ask() == "alive made=ok read=EINVAL"
        looping.process.kill()
        looping.process.wait()
        assert looping.ask() == "alive made=ok read=EINVAL"
        looping.process.stdin.close()
        assert ended(looping.pidfds[looping.command])
        assert ended(looping.pidfds[looping.supervisor])


@pytest.mark.slow
def test_the_supervisor_is_killed(program: str) -> None:
    """kill -9 of the supervisor: the command goes on with its secrets, and the call is missing as on a stock kernel."""
    with Looping(program) as looping:
        assert looping.ask() == "alive made=ok read=EINVAL"
        os.kill(looping.supervisor, signal.SIGKILL)
        assert ended(looping.pidfds[looping.supervisor])
        assert looping.ask() == "alive made=ENOSYS read=ENOSYS"
        code, said = looping.finish()
        assert code == 5 or (code == 125 and "the supervisor was killed" in said)


@pytest.mark.slow
def test_a_daemon_is_still_served(program: str) -> None:
    """We end with the command; what it leaves running still has secrets, and the supervisor ends with that."""
    shell = f"exec 3<&0; {{ read line <&3; {program} once; }} & echo $PPID"
    with subprocess.Popen(
        [SECRETFS, "run", "--emulate", SHELL, "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=clean_environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        supervisor = os.pidfd_open(int(process.stdout.readline()))
        assert process.wait(PATIENCE) == 0
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stdout.read() == MADE
        assert ended(supervisor)
        os.close(supervisor)


@pytest.mark.slow
def test_nothing_is_left(program: str) -> None:
    """When the command has ended, so have all processes of ours."""
    shell = f"echo $PPID; {program} once"
    supervisor = int(run("--emulate", SHELL, "-c", shell).stdout.split()[0])
    assert not os.path.exists(f"/proc/{supervisor}")


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
def test_backends_knows_that_it_is_emulated(who: str) -> None:
    """`secretfs backends` in the tree says emulated, not kernel, also with an empty environment."""
    for clean in ["env", "-i"], []:
        done = run("--emulate", *clean, SECRETFS, "backends", "--json", who=who)
        kernel, emulator = json.loads(done.stdout)["backends"]
        assert (kernel["name"], kernel["usable"]) == ("kernel", False)
        assert "memfd_secret is emulated here by secretfs run" in kernel["reason"]
        assert emulator["chosen"]


@pytest.mark.slow
@pytest.mark.parametrize("who", WHO)
def test_log_and_stats(program: str, who: str) -> None:
    """--log and --stats say which backing is in force, what it does not give, and what was answered."""
    with open_folder() as folder:
        log = Path(folder) / "log"
        done = run("--emulate", "--stats", "--log", str(log), program, "once", who=who)
        written = log.read_text()
    assert (done.returncode, done.stdout) == (7, MADE)
    for text in (done.stderr, written):
        assert f"secretfs run: memfd_secret is emulated, backing {'tmpfs' if who == 'root' else 'memfd'}\n" in text
        assert "secretfs run: not as natively: " in text
        assert "secretfs run: calls answered: " in text
    assert "] ftruncate(0x" in written
    assert "] read(0x" in written
    assert " = EINVAL\n" in written


@needs_secretmem
def test_stats_where_nothing_is_emulated() -> None:
    """--stats says that, too."""
    done = run("--stats", "true")
    assert done.stderr == "secretfs run: the kernel has memfd_secret, so nothing is emulated\n"
    assert run("--without", "--stats", "true").stderr == "secretfs run: memfd_secret answers ENOSYS\n"


@pytest.mark.slow
@needs_root
def test_a_proc_of_somebody_else() -> None:
    """With a /proc of another pid namespace processes cannot be looked at: that is said."""
    done = run("--emulate", "true", under=["unshare", "--pid", "--fork"])
    assert (done.returncode, done.stdout) == (125, "")
    assert "/proc is missing here, or shows the processes of another pid namespace" in done.stderr


@pytest.mark.slow
def test_children_that_are_not_waited_for() -> None:
    """We may be started with SIGCHLD ignored: the command's status is learned all the same, and it ignores it too."""
    bash = ["bash", "-c", "trap '' CHLD; exec \"$@\"", "bash"]
    done = run("--emulate", "grep", "SigIgn", "/proc/self/status", under=bash)
    assert done.returncode == 0
    assert int(done.stdout.split()[1], 16) >> (signal.SIGCHLD - 1) & 1
    assert run("--emulate", "bash", "-c", "exit 6", under=bash).returncode == 6


OLDER = {
    "no WAIT_KILLABLE_RECV (before 5.19)": "notify._WAIT_KILLABLE = 1 << 20",
    "no ADDFD_FLAG_SEND (before 5.14)": "notify._FLAG_SEND = 1 << 20",
    "no SYNC_WAKE_UP (before 6.6)": "notify._SET_FLAGS = 0",
    "no noswap (before 6.4)": """
real = system.fsopen_tmpfs
def older(options):
    if "noswap" in options:
        raise OSError(errno.EINVAL, "")
    return real(options)
system.fsopen_tmpfs = older
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("lacking", OLDER)
def test_older_kernels(program: str, lacking: str) -> None:
    """What a kernel lacks (it is made to refuse it) is done in the older way."""
    code = f"""
import errno, sys
from secretfs_emulator.supervisor import command, notify, system
{OLDER[lacking]}
sys.exit(command.main(["--emulate", {program!r}, "fork"]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (7, 3 * MADE, "")
