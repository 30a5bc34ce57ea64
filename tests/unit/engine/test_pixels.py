"""Every node's pixels equal those that a real ComfyUI made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import ImageChops

from tests.unit.engine import pictures
from tests.unit.engine.serving import Listener, engine

GOLDENS: dict[str, Any] = json.loads(pictures.GOLDENS.read_text())


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    folder = tmp_path_factory.mktemp("pixels")
    with engine(folder) as server, server.listener() as client:
        pictures.write_inputs(folder / "input")
        yield client


def test_every_graph_has_a_golden() -> None:
    """Nothing is compared with nothing."""
    assert set(GOLDENS["exact"]) == set(pictures.graphs())
    assert set(GOLDENS["near"]) == set(pictures.near())


@pytest.mark.parametrize("name", pictures.graphs())
def test_equal(client: Listener, name: str) -> None:
    """To the last bit, through float32 arithmetic and the truncation of saving."""
    assert pictures.digest(pictures.run(client, pictures.graphs()[name])) == GOLDENS["exact"][name]


@pytest.mark.parametrize("name", pictures.near())
def test_within_one_level(client: Listener, name: str) -> None:
    """Large kernels: one level of 255 at most, in two fifths of the values at most.

    The gradient is the worst case: its exact values are whole levels, which truncation tips either way.
    """
    picture, *_ = pictures.run(client, pictures.near()[name])
    golden = pictures.unpacked(GOLDENS["near"][name], picture.size)
    histogram = ImageChops.difference(picture, golden).histogram()
    counts = [sum(histogram[level::256]) for level in range(256)]
    assert sum(counts[2:]) == 0
    assert counts[1] <= 0.4 * sum(counts)
