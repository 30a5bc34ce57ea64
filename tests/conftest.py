"""What every test may rely on: no credentials in reach, repeatable examples, a word on what will skip."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.fixtures"]

_FOREIGN = ("AWS_", "B2_", "DROPBATCH_", "MODAL_", "SLACK_")
"""A developer's own buckets, tokens and settings: no test may reach or depend on them."""

for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]

# Shared cores make single examples slow without meaning anything; the suite's own limit is what counts.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("dev", _patient)
settings.register_profile("ci", _patient, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """A command sets up logging for its process, which the next test shares."""
    yield
    structlog.reset_defaults()


def pytest_xdist_auto_num_workers() -> int:
    """Three for two cores: the long tests wait for leases, trainers and containers more than they work."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_report_header() -> list[str]:
    """Say up front which tests of the real thing will skip, and how to run them."""
    comfyui = os.environ.get("COMFYUI_URL") or os.environ.get("COMFYUI_DIR")
    recordings = Path(__file__, "../../../shared/recordings").resolve()
    return [
        f"comfyui: {comfyui or 'built-in engine only; set COMFYUI_DIR or COMFYUI_URL for a real one'}",
        f"recordings: {'found' if recordings.is_dir() else 'absent; tests that read them skip'}",
    ]
