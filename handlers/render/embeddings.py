"""Textual inversions, which prompts name by `embedding:NAME`, as ComfyUI reads them (comfy/sd1_clip.py)."""

from __future__ import annotations

import re
from collections.abc import Iterable

from handlers.render.graph import Graph

FOLDER = "embeddings"
_NAMED = re.compile(r"(?:^|(?<=[\s()]))embedding:((?:\\[()]|[^\s()])+)")
_WEIGHT = re.compile(r":[0-9.]+$")
_SUFFIXES = ("", ".safetensors", ".pt", ".bin")
"""In the order in which ComfyUI looks."""


def named_embeddings(graph: Graph) -> list[str]:
    """The names in a graph's texts, each once, without the weight of a `(embedding:NAME:1.2)`."""
    found: dict[str, None] = {}
    for node in graph.values():
        for value in node["inputs"].values():
            if isinstance(value, str) and "embedding:" in value:
                found.update(dict.fromkeys(_names(value)))
    return list(found)


def file_names(name: str) -> list[str]:
    """The files that ComfyUI takes for this name, in its order."""
    return [name + suffix for suffix in _SUFFIXES]


def _names(text: str) -> Iterable[str]:
    for match in _NAMED.finditer(text):
        name = _WEIGHT.sub("", match[1]) if text[match.end() : match.end() + 1] == ")" else match[1]
        name = name.replace("\\(", "(").replace("\\)", ")").strip(",")
        if name:
            yield name
