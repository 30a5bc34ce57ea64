"""Fixtures for tests against the loopback control plane."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.loopback import Loopback

APPS = Path(__file__).parent / "apps"
DEADLINE_S = 60


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """No test may hang: Modal's own calls wait without end for a container that never answers."""

    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"the test took longer than {DEADLINE_S} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(DEADLINE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def abilities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A loopback with `apps/abilities.py` deployed, shared by a module's tests."""
    with Loopback(tmp_path_factory.mktemp("loopback") / "modal") as running:
        running.set_secret("bucket", {"BUCKET_KEY": "k-1", "UNUSED": "x"})
        running.deploy(str(APPS / "abilities.py"))
        yield running
