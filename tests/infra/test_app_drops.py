"""Drops through the whole of it: tick, dispatch, map, renderers, bucket, manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from processor.records import Outcome
from tests.acceptance.drops import graph
from tests.infra.deployed import Deployed, deadline, deployed
from tests.support.b2like import B2Like


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    with deadline(200):
        yield


@pytest.fixture
def here(tmp_path: Path, b2: B2Like) -> Iterator[Deployed]:
    with deployed(tmp_path, b2.url) as running:
        yield running


def test_one_drop_becomes_pictures_and_a_manifest(here: Deployed) -> None:
    """The smallest story, on a bucket that behaves as B2 does."""
    key = here.put_job("first", {"workflow": graph(), "matrix": {"1.color": [1, 2, 3]}})
    summary = here.tick()
    assert (summary["claimed"], summary["problem"]) == (1, None), here.loopback.logs()
    here.run_until_empty()
    manifest = here.manifests()[key]
    assert (manifest.outcome, len(manifest.tasks)) == (Outcome.DONE, 3)
    here.check_whole()
