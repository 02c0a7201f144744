"""What tests of backends, and tests that need no locked memory, are made of. Public; imports only the standard library.

- `secretfs.testing.backends.BackendConformance`: the contract of `secretfs.interface` as tests; it needs pytest.
- `FakeBackend`: ordinary memory behind the same contract, with a limit to run into.
- `secretfs.testing.plugin`: a pytest plug-in for tests of applications, loaded by pytest itself (docs/testing.md).
- `in_child` and `outcome_in_child`: what happens in a forked process, its death by a signal included.
"""

from __future__ import annotations

from secretfs.testing.children import Outcome, in_child, outcome_in_child
from secretfs.testing.fake import FakeBackend

__all__ = ["FakeBackend", "Outcome", "in_child", "outcome_in_child"]
