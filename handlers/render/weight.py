"""How heavy a prompt is, and which prompts compare: what estimates learn from. Rough on purpose."""

from __future__ import annotations

from typing import Any

from handlers.render.graph import Graph, is_link
from processor.records import canonical_hash

WEIGHTY = frozenset({"steps", "width", "height", "length", "batch_size"})
"""Inputs that change a weight."""
_REFERENCE = 512 * 512
"""Pixels of weight 1, with one step and one frame."""


def shape_of(graph: Graph) -> str:
    """A hash of classes and links: equal for all values that a job or a task may set."""
    return canonical_hash(
        {
            node_id: [
                node["class_type"],
                {name: value for name, value in node["inputs"].items() if is_link(value)},
            ]
            for node_id, node in graph.items()
        }
    )[:16]


def weight_of(graph: Graph) -> float:
    """Sampling steps times the pixels of the largest picture, clip or batch that a node makes.

    Where a graph samples nothing the pixels count alone. A picture that is loaded has the
    size it has, which nobody knows here.
    """
    steps = sum(_number(node["inputs"].get("steps"), 0) for node in graph.values())
    pixels = max((_pixels(node["inputs"]) for node in graph.values()), default=0.0)
    return round(max(steps, 1) * (pixels or _REFERENCE) / _REFERENCE, 6)


def _pixels(inputs: dict[str, Any]) -> float:
    area = _number(inputs.get("width"), 0) * _number(inputs.get("height"), 0)
    return area * max(_number(inputs.get("length"), 1), 1) * max(_number(inputs.get("batch_size"), 1), 1)


def _number(value: Any, otherwise: float) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else otherwise
