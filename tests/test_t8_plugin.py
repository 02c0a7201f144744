"""The pytest plug-in in suites of its own: a whole run in a mode, one test in a mode, fixtures, what it refuses."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mounts import SECRETFS, clean_environment, needs_secretmem
from runs import may_emulate

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.slow, may_emulate]

HEADER = """
import ctypes, errno, mmap, os, pytest
libc = ctypes.CDLL(None, use_errno=True)

def made():
    "0, or the errno of memfd_secret(2) or of the mapping"
    if "failing:1" in os.environ.get("SECRETFS_TESTING_MODE", ""):
        os.close(libc.syscall(447, 0))
    fd = libc.syscall(447, 0)
    if fd == -1:
        return ctypes.get_errno()
    try:
        os.ftruncate(fd, 65536)
        mmap.mmap(fd, 65536).close()
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
"""
EXPECTED = {
    "with": 0,
    "emulated": 0,
    "without": 38,
    "over-limit": 11,
    "failing": 1,
    "failing:0:EMFILE": 24,
    "failing:1": 1,
}
RARE = ("with", "without", "failing", "failing:0:EMFILE", "failing:1")


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder for a suite, which starts without a mode."""
    for name in [name for name in os.environ if name.startswith("SECRETFS_")]:
        monkeypatch.delenv(name)
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:trio -p no:hypothesispytest\nfilterwarnings = error\n")
    return pytester


def run(suite: pytest.Pytester, *words: str, test: str = "") -> pytest.RunResult:
    """Run a suite of that text in a process of its own."""
    if test:
        suite.makepyfile(HEADER + test)
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *words, timeout=60)


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=pytest.mark.long) if mode in RARE else mode for mode in EXPECTED]
)
def test_the_whole_run(suite: pytest.Pytester, mode: str) -> None:
    """Under --secretmem=MODE each test meets what the mode promises, and knows the mode."""
    test = f"""
def test(secretmem_mode):
    assert secretmem_mode == "{mode.partition(":")[0]}"
    assert made() == {EXPECTED[mode]}
"""
    run(suite, f"--secretmem={mode}", test=test).assert_outcomes(passed=1)


def test_one_test(suite: pytest.Pytester) -> None:
    """A marked test meets what its mode promises, the ones beside it run here and as ever."""
    test = """
here = os.getpid()
os.environ.setdefault("SUITE", str(here))

def test_before(secretmem_mode):
    assert secretmem_mode == "unchanged" and os.environ["SUITE"] == str(here)
"""
    for number, (mode, result) in enumerate(EXPECTED.items()):
        test += f"""
@pytest.mark.secretmem("{mode}")
def test_{number}(secretmem_mode):
    assert secretmem_mode == "{mode.partition(":")[0]}" and os.environ["SUITE"] != str(here)
    assert made() == {result}

def test_after_{number}():
    assert os.environ["SUITE"] == str(here)
"""
    run(suite, test=test).assert_outcomes(passed=2 * len(EXPECTED) + 1)


def test_outcomes(suite: pytest.Pytester) -> None:
    """A marked test's outcome is its own: passed, failed, skipped, an error in a fixture, an expected failure."""
    test = """
pytestmark = pytest.mark.secretmem("without")

@pytest.fixture
def broken():
    raise ValueError("the fixture's words")

@pytest.fixture
def breaks_later():
    yield
    raise ValueError("the end's words")

def test_passes():
    print("words of its own")

def test_fails():
    print("printed before")
    assert made() == 0, "it should be there"

def test_skips():
    pytest.skip("its reason")

def test_error(broken):
    pass

def test_error_later(breaks_later):
    pass

@pytest.mark.xfail(reason="known")
def test_expected():
    assert False

@pytest.mark.parametrize("value", [1, "a b::c", "[x]"])
def test_parameters(value, tmp_path):
    assert value
"""
    done = run(suite, test=test)
    done.assert_outcomes(passed=5, failed=1, skipped=1, errors=2, xfailed=1)
    done.stdout.fnmatch_lines_random(
        [
            "*words of its own*", "*AssertionError: it should be there*", "*assert 38 == 0*", "*printed before*",
            "*its reason*", "*the fixture's words*", "*the end's words*",
        ]
    )  # fmt: skip
    assert done.ret == 1


def test_an_end_without_a_report(suite: pytest.Pytester) -> None:
    """A marked test whose process is killed has failed, and it is said how."""
    test = """
@pytest.mark.secretmem("without")
def test_dies():
    os.kill(os.getpid(), 9)

@pytest.mark.secretmem("without")
def test_leaves():
    os._exit(5)

def test_after():
    pass
"""
    done = run(suite, test=test)
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines_random(["*was ended by SIGKILL in mode*", "*ended with 5 in mode*"])


def test_a_module_that_depends_on_it(suite: pytest.Pytester) -> None:
    """A module that skips itself, or breaks, where secret memory is missing: so it is reported."""
    test = """
if made() == errno.ENOSYS:
    {}

@pytest.mark.secretmem("without")
def test():
    pass
"""
    suite.makepyfile(test_skips=HEADER + test.format("pytest.skip('needs secret memory', allow_module_level=True)"))
    suite.makepyfile(test_breaks=HEADER + test.format("raise RuntimeError('cannot do without')"))
    if not made_here():
        pytest.skip("memfd_secret: the kernel has none here")
    done = run(suite)
    done.assert_outcomes(skipped=1, errors=1)
    done.stdout.fnmatch_lines_random(["*needs secret memory*", "*cannot do without*"])


def made_here() -> bool:
    """Whether this kernel makes secrets."""
    import ctypes

    fd = ctypes.CDLL(None).syscall(447, os.O_CLOEXEC)
    if fd != -1:
        os.close(fd)
    return bool(fd != -1)


def test_fixtures_of_the_module(suite: pytest.Pytester) -> None:
    """What earlier tests hold for the module is given back in order, although a marked test runs elsewhere."""
    test = """
log = []

@pytest.fixture(scope="module")
def kept():
    log.append("made")
    yield
    print("given back")

def test_first(kept):
    pass

@pytest.mark.secretmem("emulated")
def test_marked(kept):
    assert log == ["made"]
"""
    suite.makepyfile(test_one=HEADER + test, test_two="def test_other():\n    pass\n")
    done = run(suite)
    done.assert_outcomes(passed=3)


def test_options_are_handed_on(suite: pytest.Pytester) -> None:
    """A marked test gets the options of the run: those of a conftest, and the ini file."""
    suite.makeconftest(
        "def pytest_addoption(parser):\n    parser.addoption('--colour')\n    parser.addini('taste', 'how it tastes')\n"
    )
    suite.makeini("[pytest]\ntaste = sweet\n")
    test = """
@pytest.mark.secretmem("without")
def test(pytestconfig):
    assert (pytestconfig.getoption("--colour"), pytestconfig.getini("taste")) == ("red", "sweet")
"""
    done = run(suite, "--colour", "red", "--junit-xml=report.xml", "-x", test=test)
    done.assert_outcomes(passed=1)
    assert 'tests="1"' in (suite.path / "report.xml").read_text(encoding="utf-8")


def test_exit_status(suite: pytest.Pytester) -> None:
    """The run in a mode ends as pytest ends: 0, 1 for failures, 2 for an interruption, 5 for no tests."""
    suite.makepyfile(
        test_a="def test(): pass", test_b="def test(): assert 0", test_c="def test(): raise KeyboardInterrupt"
    )
    for words, code in ((["test_a.py"], 0), (["test_b.py"], 1), (["test_c.py"], 2), (["test_a.py", "-k", "none"], 5)):
        assert run(suite, "--secretmem=without", *words).ret == code


def test_streams_pass_through(suite: pytest.Pytester) -> None:
    """Under a mode the process keeps its number and its stdin, and what it prints comes once."""
    suite.makepyfile("import os, sys\ndef test():\n    print('pid', os.getpid())\n    print(sys.stdin.read())\n")
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "--secretmem=without"],
        cwd=suite.path, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        output, _ = process.communicate("typed by someone", timeout=60)
    assert process.returncode == 0
    assert output.count("typed by someone") == 1
    assert output.count("1 passed") == 1


@pytest.mark.long
def test_ctrl_c(suite: pytest.Pytester) -> None:
    """Ctrl-C at the terminal interrupts the run in a mode, as it would without: exit status 2."""
    # Short waits: a signal between the print and one long wait would be seen at its end only, by any Python.
    suite.makepyfile(
        "import threading\ndef test():\n    print('ready', flush=True)\n"
        "    for _ in range(600):\n        threading.Event().wait(0.1)\n"
    )
    master, slave = os.openpty()
    with subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--secretmem=emulated"],
        cwd=suite.path, env=clean_environment(), stdin=slave, stdout=slave, stderr=slave,
    ) as process:  # fmt: skip
        os.close(slave)
        with open(master, "r+b", buffering=0) as terminal:
            _read_until(terminal, b"ready")
            terminal.write(b"\x03")
            _read_until(terminal, b"no tests ran")
            assert process.wait(60) == pytest.ExitCode.INTERRUPTED


def _read_until(terminal: io.FileIO, wanted: bytes) -> None:
    text = b""
    while wanted not in text:
        text += terminal.read(4096)  # the end is an OSError (EIO)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--secretmem=never"], "there is no mode 'never' of secret memory; there are with, emulated, without, over"),
        (["--secretmem=over-limit:much"], "there is no mode 'over-limit:much'"),
        (["--secretmem=failing:1:EWHAT"], "there is no mode 'failing:1:EWHAT'"),
    ],
)
def test_what_is_no_mode(suite: pytest.Pytester, words: list[str], said: str) -> None:
    """A mode that does not exist is a usage error, which names those that do."""
    suite.makepyfile("def test(): pass")
    done = run(suite, *words)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines([f"*{said}*"])


@pytest.mark.parametrize("marker", ['("never")', "", '("with", "without")', "(1)"])
def test_what_is_no_marker(suite: pytest.Pytester, marker: str) -> None:
    """A marker without a mode is an error of that test."""
    done = run(suite, test=f"@pytest.mark.secretmem{marker}\ndef test():\n    pass\n")
    done.assert_outcomes(errors=1)


def test_a_mode_that_is_not_in_force(suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was told that it is in a mode, and is not, does not begin."""
    monkeypatch.setenv("SECRETFS_TESTING_MODE", "failing:0:ENOSPC")
    suite.makepyfile("def test(): pass")
    done = run(suite)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    done.stderr.fnmatch_lines(["*the mode 'failing:0:ENOSPC' is not in force*not fails with ENOSPC*"])


def test_a_mode_that_cannot_be_had(suite: pytest.Pytester) -> None:
    """Where `secretfs run` refuses, a marked test is an error with its reason, and a whole run ends with 125."""
    test = """
@pytest.mark.secretmem("failing:1")
def test():
    pass
"""
    done = run(suite, "--secretmem=emulated", test=test)
    done.assert_outcomes(errors=1)
    done.stdout.fnmatch_lines(["*ended with 125 in mode 'failing:1:EPERM'*", "secretfs: error: another supervisor*"])
    command = [SECRETFS, "run", "--emulate", "--", sys.executable, "-m", "pytest", "--secretmem=failing:1"]
    whole = suite.run(*command, timeout=60)
    assert whole.ret == 125
    whole.stderr.fnmatch_lines(["secretfs: error: another supervisor*"])


def test_running_a_command(suite: pytest.Pytester) -> None:
    """secretfs_run runs a command in a mode, and returns its exit code and output."""
    test = """
import sys
PROGRAM = "import ctypes, sys; sys.stdout.write(str(ctypes.CDLL(None).syscall(447, 0))); sys.exit(7)"

def test(secretfs_run):
    done = secretfs_run([sys.executable, "-c", PROGRAM], "without")
    assert (done.returncode, done.stdout) == (7, "-1")
    done = secretfs_run([sys.executable, "-c", PROGRAM], "emulated")
    assert done.returncode == 7 and int(done.stdout) > 2
    assert secretfs_run(["/does/not/exist"], "without").returncode == 127
"""
    run(suite, test=test).assert_outcomes(passed=1)


@pytest.mark.mount
def test_areas_and_mounts(suite: pytest.Pytester) -> None:
    """secret_area makes areas that are closed afterwards; secretfs_mount mounts, and unmounts afterwards."""
    test = """
kept = []

def test(secret_area, secretfs_mount):
    area = secret_area(backend="emulator")
    area.write(b"key")
    kept.append(area)
    path = secretfs_mount("--backend", "emulator", "--size", "1M")
    (path / "file").write_text("words")
    assert os.path.ismount(path)
    kept.append(path)

def test_after():
    area, path = kept
    with pytest.raises(Exception, match="closed"):
        area.write(b"key")
    assert not os.path.ismount(path)

def test_refusal(secretfs_mount):
    secretfs_mount("--size", "-1")
"""
    done = run(suite, test=test)
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(["*secretfs mount ended with 2: secretfs: error: *"])


@needs_secretmem
def test_the_kernels_own(suite: pytest.Pytester) -> None:
    """Where the kernel has secret memory, "with" is the kernel's, and "emulated" is not."""
    test = """
import secretfs
from secretfs.registry import choose

def backend():
    return secretfs.SecretArea(4096).guarantees.off_direct_map

@pytest.mark.secretmem("with")
def test_with():
    assert backend()

@pytest.mark.secretmem("emulated")
@pytest.mark.filterwarnings("ignore")
def test_emulated():
    assert not backend()
"""
    run(suite, test=test).assert_outcomes(passed=2)


def test_it_is_cheap() -> None:
    """The plug-in, which every pytest run loads, imports neither trio nor pyfuse3, and does nothing until asked."""
    program = "import pytest, sys, secretfs.testing.plugin; print(sorted({'trio', 'pyfuse3'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("words", [[], pytest.param(["--secretmem=emulated"], marks=pytest.mark.long)])
def test_the_example(words: list[str]) -> None:
    """The suite in examples/pytest-plugin passes as it stands, and in a mode."""
    folder = Path(__file__).parents[1] / "examples" / "pytest-plugin"
    done = subprocess.run(
        [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-c", "/dev/null", *words, "."],
        cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout
