"""The pytest fixture: `from tests.loopback.fixture import loopback`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback.server import Loopback


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    """A fresh control plane for one test; fails the test if the loopback itself failed."""
    with Loopback(tmp_path / "modal") as running:
        yield running
