"""secretfs.registry: which backend serves under which word, and what is said about it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import warnings

import pytest

import secretfs_emulator
import secretfs_kernel
from secretfs import SecretArea, registry
from secretfs.errors import BackendUnavailable, LimitError, PluginError
from secretfs.interface import Guarantees
from secretfs.registry import ReducedGuaranteesWarning

WHY = "memfd_secret is switched off in this test"
GOOD = """
from secretfs.testing import FakeBackend
class Backend(FakeBackend):
    name = "stranger"
"""


@pytest.fixture
def no_kernel(fresh_registry):
    """A machine without memfd_secret."""

    def unavailable(self) -> None:
        raise BackendUnavailable(WHY, hint="switch it on")

    fresh_registry.setattr(secretfs_kernel.Backend, "probe", unavailable)


@pytest.fixture
def both_work(fresh_registry):
    """A machine where the probes of both built-in backends succeed."""
    for module in (secretfs_kernel, secretfs_emulator):
        fresh_registry.setattr(module.Backend, "probe", lambda self: None)


@pytest.fixture
def install(fresh_registry, tmp_path):
    """Install a distribution with one backend: its name, its module's source."""

    def install_one(distribution: str, source: str, *, entry: str = "stranger") -> None:
        folder = tmp_path / distribution
        metadata = folder / f"{distribution}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[secretfs.backends]\n{entry} = {distribution}:Backend\n")
        (folder / f"{distribution}.py").write_text(textwrap.dedent(source))
        fresh_registry.syspath_prepend(folder)
        fresh_registry.delitem(sys.modules, distribution, raising=False)

    return install_one


@pytest.mark.parametrize(
    ("argument", "variable", "word"),
    [
        (None, None, "auto"),
        (None, "", "auto"),
        (None, "kernel", "kernel"),
        (None, "emulator", "emulator"),
        (None, "stranger", "stranger"),
        ("auto", None, "auto"),
        ("auto", "kernel", "kernel"),
        ("auto", "emulator", "auto"),
        ("auto", "stranger", "auto"),
        ("emulator", "kernel", "emulator"),
        ("kernel", "emulator", "kernel"),
        ("stranger", "kernel", "stranger"),
    ],
)
def test_variable_applies_without_argument_and_tightens_auto(fresh_registry, argument, variable, word) -> None:
    """SECRETFS_BACKEND counts where no argument is given; an explicit auto it may only tighten to kernel."""
    if variable is not None:
        fresh_registry.setenv("SECRETFS_BACKEND", variable)
    assert registry.wanted(argument) == word


@pytest.mark.parametrize("argument", [None, "auto"])
def test_variable_is_ignored_with_raised_privileges(fresh_registry, argument) -> None:
    """Under AT_SECURE the caller's environment decides nothing."""
    fresh_registry.setenv("SECRETFS_BACKEND", "kernel")
    fresh_registry.setattr(registry.libc, "at_secure", lambda: True)
    assert registry.wanted(argument) == "auto"


@pytest.mark.parametrize(
    ("word", "name", "policy"),
    [("auto", "kernel", "prefer"), ("kernel", "kernel", "require"), ("emulator", "emulator", "emulate")],
)
def test_word_chooses_backend_and_policy(both_work, word, name, policy) -> None:
    """Where both work, each word has its backend and its policy, and nothing is lost and nothing said."""
    choice = registry.choose(word)
    assert (choice.backend.name, choice.policy, choice.lost, choice.warning) == (name, policy, (), "")


def test_auto_falls_back_and_names_each_loss(no_kernel, emulator) -> None:
    """Without the kernel's, auto is the emulator, with one sentence that says why and names each lost guarantee."""
    choice = registry.choose("auto")
    assert (choice.backend.name, choice.policy) == ("emulator", "prefer")
    assert choice.lost == ("off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated")
    assert "emulator" in choice.warning
    assert WHY in choice.warning
    assert all(name in choice.warning for name in choice.lost)
    assert choice.hint == "switch it on"


def test_kernel_does_not_fall_back(no_kernel) -> None:
    """Under kernel the emulator never stands in; the reason and the remedy are the probe's."""
    with pytest.raises(BackendUnavailable, match=WHY) as caught:
        registry.choose("kernel")
    assert caught.value.hint == "switch it on"


def test_emulator_is_not_warned_about_when_it_was_asked_for(no_kernel, emulator) -> None:
    """Who asks for the emulator is told nothing."""
    assert registry.choose("emulator").warning == ""


@pytest.mark.parametrize("missing", ["kernel", "emulator"])
def test_one_of_the_two_is_not_installed(both_work, fresh_registry, missing) -> None:
    """Auto does without a backend that is not installed, and says what is lost for want of the kernel's."""
    entries = {name: values for name, values in registry._entry_points().items() if name != missing}
    fresh_registry.setattr(registry, "_entry_points", lambda: entries)
    choice = registry.choose("auto")
    if missing == "emulator":
        assert (choice.backend.name, choice.warning) == ("kernel", "")
        return
    assert (choice.backend.name, choice.policy) == ("emulator", "prefer")
    assert "because the backend 'kernel' is not installed; not guaranteed: off_direct_map, " in choice.warning
    assert choice.lost == ("off_direct_map", "refuses_pinning", "cleared_by_kernel", "not_hibernated")
    assert "install" in choice.hint
    with pytest.raises(BackendUnavailable, match="'kernel' is not installed"):
        registry.choose("kernel")


@pytest.mark.parametrize("first", [BackendUnavailable(WHY), LimitError("no room")], ids=["missing", "limit"])
@pytest.mark.parametrize("second", [BackendUnavailable(WHY), LimitError("no room")], ids=["missing", "limit"])
def test_limit_is_not_a_missing_backend(fresh_registry, first, second) -> None:
    """Where but for a limit one of the two would serve, the limit is the error, since raising it is the remedy."""
    for module, error in ((secretfs_kernel, first), (secretfs_emulator, second)):

        def probe(self, error=error) -> None:
            raise error

        fresh_registry.setattr(module.Backend, "probe", probe)
    expected = LimitError if isinstance(first, LimitError) or isinstance(second, LimitError) else BackendUnavailable
    with pytest.raises(expected) as caught:
        registry.choose("auto")
    assert type(caught.value) is expected


def test_limit_of_the_kernels_falls_back(fresh_registry) -> None:
    """Where a limit stops the kernel's backend and not the emulator, auto falls back like for any other reason."""

    def probe(self) -> None:
        raise LimitError("no room", hint="raise the limit")

    fresh_registry.setattr(secretfs_kernel.Backend, "probe", probe)
    fresh_registry.setattr(secretfs_emulator.Backend, "probe", lambda self: None)
    choice = registry.choose("auto")
    assert (choice.backend.name, choice.reason, choice.hint) == ("emulator", "no room", "raise the limit")


def test_nothing_works(no_kernel, fresh_registry) -> None:
    """Where neither works, auto says of each why."""

    def unavailable(self) -> None:
        raise BackendUnavailable("nothing can be locked", hint="raise the limit")

    fresh_registry.setattr(secretfs_emulator.Backend, "probe", unavailable)
    with pytest.raises(BackendUnavailable, match=f"kernel: {WHY}; emulator: nothing can be locked") as caught:
        registry.choose("auto")
    assert caught.value.hint == "raise the limit"


def test_fallback_warns_once_per_process(no_kernel, emulator) -> None:
    """Areas made in different places under auto warn once between them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SecretArea(1, backend="auto").close()
        SecretArea(1, backend="auto").close()
        SecretArea(1).close()
    assert [warning.category for warning in caught] == [ReducedGuaranteesWarning]
    assert "off_direct_map" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_fallback_that_is_an_error_stays_one(no_kernel, emulator) -> None:
    """Where warnings are errors, the second attempt does not pass silently."""
    for _ in range(2):
        with pytest.raises(ReducedGuaranteesWarning):
            SecretArea(1, backend="auto")


def test_unknown_name_lists_the_known_ones(fresh_registry) -> None:
    """A name that is not installed is refused with those that are."""
    with pytest.raises(BackendUnavailable, match="'tpm'") as caught:
        registry.choose("tpm")
    for name in ("auto", "emulator", "kernel"):
        assert name in caught.value.hint


def test_stranger_serves_when_named(install) -> None:
    """A third-party backend is used by its name, under require."""
    install("one", GOOD)
    choice = registry.choose("stranger")
    assert (choice.backend.name, choice.policy, choice.lost) == ("stranger", "require", ())


def test_stranger_is_never_chosen_by_auto(install, no_kernel, emulator) -> None:
    """Auto passes a third-party backend by, even one that promises everything."""
    everything = Guarantees(**dict.fromkeys(Guarantees.names(), True))
    install("one", f"from secretfs.interface import Guarantees\n{GOOD}    guarantees = {everything!r}\n")
    assert registry.choose("stranger").backend.guarantees == everything
    assert registry.choose("auto").backend.name == "emulator"


def test_two_of_one_name_are_an_error_naming_both(install) -> None:
    """If two distributions claim a name, nobody guesses."""
    install("one", GOOD)
    install("two", GOOD)
    with pytest.raises(PluginError, match=r"'stranger' is claimed twice") as caught:
        registry.choose("stranger")
    assert "one:Backend" in str(caught.value)
    assert "two:Backend" in str(caught.value)
    assert caught.value.hint


def test_nobody_can_take_the_kernels_name(install, both_work) -> None:
    """A second backend called kernel makes auto and kernel an error instead of a choice."""
    install("impostor", GOOD, entry="kernel")
    for word in ("auto", "kernel"):
        with pytest.raises(PluginError, match="impostor:Backend"):
            registry.choose(word)


def test_name_must_be_the_entry_points(install) -> None:
    """A backend that calls itself by another name than it is installed under is refused."""
    install("one", GOOD.replace('"stranger"', '"kernel"'))
    with pytest.raises(PluginError, match="calls itself 'kernel'") as caught:
        registry.choose("stranger")
    assert "uninstall one, " in caught.value.hint


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("Backend = 5", "TypeError"),
        ("nothing = 1", "AttributeError"),
        (GOOD + "    def __init__(self): raise KeyError('lost')", "KeyError"),
        ("class Backend: name = 'stranger'", "AttributeError"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("raise RuntimeError('two\\nlines.')", "RuntimeError: two; lines"),
        (GOOD + "    guarantees = None", "promises no Guarantees"),
        (GOOD + "    api = 999", "API version 999"),
        (GOOD + "    api = None", "API version None"),
    ],
)
def test_broken_plugin_is_an_error_of_its_own(install, source, words) -> None:
    """A plug-in that cannot be loaded or has another API version is a PluginError that names it and the cause."""
    install("one", source)
    with pytest.raises(PluginError, match="'stranger'") as caught:
        registry.choose("stranger")
    assert words in str(caught.value)
    assert "one:Backend" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "memfd-secretfs" not in caught.value.hint  # it is somebody else's
    assert caught.value.hint


def test_own_backend_that_is_broken_is_ours_to_repair(fresh_registry) -> None:
    """For a built-in backend the remedy is to install this distribution again."""
    fresh_registry.setattr(secretfs_kernel.Backend, "api", 0)
    fresh_registry.setattr(secretfs_emulator.Backend, "guarantees", None)
    with pytest.raises(PluginError) as caught:
        registry.choose("emulator")
    assert "install memfd-secretfs again" in caught.value.hint


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ZeroDivisionError('oops')", "failed to map 4096 bytes: ZeroDivisionError: oops"),
        ("return None", "failed to map 4096 bytes: AttributeError"),
        ("import sys; sys.exit(5)", "failed to map 4096 bytes: SystemExit: 5"),
        ("return super().map(2 * size)", "was asked for 4096 bytes and mapped 8192"),
        ("raise ValueError('two\\nlines')", "failed to map 4096 bytes: ValueError: two; lines"),
    ],
)
def test_map_that_breaks(install, body, words) -> None:
    """Whatever map() of a stranger's does but give a region or refuse, is a PluginError that names the backend."""
    install("one", GOOD + f"    def map(self, size, *, shared=False): {body}")
    with pytest.raises(PluginError, match="'stranger'") as caught:
        SecretArea(4096, backend="stranger")
    assert words in str(caught.value)
    assert "uninstall one, " in caught.value.hint


def test_map_that_refuses(install) -> None:
    """A refusal of the system's or of ours comes through as it is."""
    install("one", GOOD + "    def map(self, size, *, shared=False): raise OSError(28, 'full')")
    with pytest.raises(OSError, match="full"):
        SecretArea(4096, backend="stranger")


def test_probe_that_breaks_is_not_a_refusal(install) -> None:
    """A probe that raises anything but BackendUnavailable is a PluginError with the cause chained, each time."""
    install("one", GOOD + "    def probe(self): raise ZeroDivisionError('oops')")
    for _ in range(2):
        with pytest.raises(PluginError, match="ZeroDivisionError: oops") as caught:
            registry.choose("stranger")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert "uninstall one, " in caught.value.hint


def test_probe_that_leaves(install) -> None:
    """A probe that calls sys.exit ends nothing: it is a PluginError, and the list of backends has it."""
    install("one", GOOD + "    def probe(self): raise SystemExit(3)")
    with pytest.raises(PluginError, match="SystemExit: 3"):
        registry.choose("stranger")
    assert "SystemExit: 3" in registry.candidates()[-1].reason


def test_broken_kernel_backend_is_not_skipped(both_work, fresh_registry) -> None:
    """Auto does not fall back because of a bug: a broken probe of the preferred backend is an error."""

    def probe(self) -> None:
        raise ZeroDivisionError

    fresh_registry.setattr(secretfs_kernel.Backend, "probe", probe)
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        registry.choose("auto")


def test_broken_stranger_does_not_disturb_auto(install, both_work) -> None:
    """A third-party backend that cannot even be imported is nothing to those who did not name it."""
    install("one", "raise RuntimeError('boom')")
    assert registry.choose("auto").backend.name == "kernel"


def test_probe_runs_once(both_work, fresh_registry) -> None:
    """However often a backend is chosen, it is probed once, and a refusal is repeated from memory."""
    calls = []

    def probe(self) -> None:
        calls.append(1)
        raise BackendUnavailable(WHY)

    fresh_registry.setattr(secretfs_kernel.Backend, "probe", probe)
    for _ in range(3):
        with pytest.raises(BackendUnavailable):
            registry.choose("kernel")
    assert calls == [1]


def test_candidates_are_all_installed_ones(install, no_kernel, emulator) -> None:
    """Every installed backend is listed, ours first, usable or not with the reason, and none makes the list fail."""
    install("one", GOOD)
    install("two", "raise RuntimeError('boom')", entry="broken")
    found = registry.candidates()
    assert [(each.name, each.usable) for each in found] == [
        ("kernel", False),
        ("emulator", True),
        ("broken", False),
        ("stranger", True),
    ]
    assert (found[0].reason, found[0].hint) == (WHY, "switch it on")
    assert found[0].guarantees.off_direct_map
    assert "RuntimeError: boom" in found[2].reason


def test_import_reads_no_entry_points() -> None:
    """Importing secretfs loads neither importlib.metadata nor a backend; that waits for the first use."""
    code = "import sys, secretfs; print([n for n in sys.modules if n == 'importlib.metadata' or n[:9] == 'secretfs_'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
