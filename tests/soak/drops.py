"""What is dropped in a soak, and what must become of it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from processor.records import Outcome
from processor.store import Store

Graph = dict[str, Any]


@dataclass(frozen=True)
class Dropped:
    """One drop as it was made."""

    key: str
    version: str
    outcome: Outcome
    tasks: int
    emits: int = 0
    """Jobs that its success drops."""


def drop_some(store: Store, draw: random.Random, serial: int) -> list[Dropped]:
    """Put one to three drops in the inbox; no key is used twice."""
    return [_drop(store, draw, f"{serial:05d}-{number}") for number in range(draw.randint(1, 3))]


def _drop(store: Store, draw: random.Random, name: str) -> Dropped:
    kind = draw.choices(("single", "matrix", "heavy", "parent", "bare", "invalid"), (4, 4, 2, 2, 2, 1))[0]
    color = draw.randrange(1 << 24)
    done, emits, tasks = Outcome.DONE, 0, 1
    value: dict[str, Any] = {"workflow": _graph(color), "max_attempts": 10}
    match kind:
        case "matrix":
            widths, colors = [16, 24, 32], [color, color ^ 0xFFFFFF]
            value["matrix"] = {"1.width": widths, "1.color": colors}
            tasks = 6
        case "heavy":
            value["matrix"] = {"1.color": [color, color ^ 0xFF]}
            value["workflow"] = _graph(color, width=1024, height=1024)
            tasks = 2
        case "parent":
            value["on_success"] = [{"kind": "render", "workflow": _graph(color ^ 0xFF00), "max_attempts": 10}]
            emits = 1
        case "bare":
            value = _graph(color)
        case "invalid":
            value["workflow"] = {"1": {"class_type": "NoSuchNode", "inputs": {}}}
            done, tasks = Outcome.INVALID, 0
    key = f"inbox/jobs/{kind}-{name}.json"
    info = store.put(key, json.dumps(value).encode(), media_type="application/json")
    return Dropped(key, info.version, done, tasks, emits)


def _graph(color: int, *, width: int = 32, height: int = 32) -> Graph:
    canvas = {"width": width, "height": height, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": canvas},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "soak/out"}},
    }
