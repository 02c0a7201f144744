"""The pytest plug-in on single tests of suites: the marker, what is reported of a marked test, the fixtures."""

from __future__ import annotations

import pytest
from mounts import needs_secretmem
from runs import may_emulate
from suites import EXPECTED, HEADER, run, suite

__all__ = ["suite"]

pytest_plugins = ["pytester"]
pytestmark = [pytest.mark.slow, may_emulate]


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


@needs_secretmem
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
    done = run(suite)
    done.assert_outcomes(skipped=1, errors=1)
    done.stdout.fnmatch_lines_random(["*needs secret memory*", "*cannot do without*"])


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


@pytest.mark.parametrize("marker", ['("never")', "", '("with", "without")', "(1)"])
def test_what_is_no_marker(suite: pytest.Pytester, marker: str) -> None:
    """A marker without a mode is an error of that test."""
    done = run(suite, test=f"@pytest.mark.secretmem{marker}\ndef test():\n    pass\n")
    done.assert_outcomes(errors=1)


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
