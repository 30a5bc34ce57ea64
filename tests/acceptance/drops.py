"""Thirty drops as people make them: good, odd, broken, and some that mean harm."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from processor.records import Outcome

Graph = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """A drop and what must become of it."""

    key: str
    data: bytes
    outcome: Outcome
    tasks: int = 0
    says: str = ""
    """Something that the error report must name."""


def graph(color: int = 255, prefix: str = "out", **inputs: Any) -> Graph:
    """A graph without models: one small coloured picture, inverted and saved."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": color, **inputs},
            "_meta": {"title": "Canvas"},
        },
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def _good() -> list[Example]:
    done = Outcome.DONE
    ui_names = ("plain", "mit Leerzeichen und Ümläuten", "猫のワークフロー", "many.dots.in.name", "UPPER")
    exports = [
        Example(f"inbox/{name}.json", _json(graph(color)), done, 1) for color, name in enumerate(ui_names)
    ]
    long_name = "/".join(["x" * 200] * 4) + "/" + "y" * 85
    jobs: list[tuple[str, dict[str, Any], int]] = [
        ("inbox/jobs/by-id.json", {"overrides": {"1": {"color": 7}}}, 1),
        ("inbox/jobs/by-id-inputs.json", {"overrides": {"1": {"inputs": {"width": 40}}}}, 1),
        ("inbox/jobs/by-title.json", {"overrides": {"Canvas": {"color": 9}}}, 1),
        ("inbox/jobs/dotted.json", {"overrides": {"1.color": 11}}, 1),
        ("inbox/jobs/matrix.json", {"matrix": {"1.color": [1, 2, 3], "1.width": [16, 32]}}, 6),
        ("inbox/jobs/zip.json", {"matrix": {"zip": {"1.color": [1, 2], "1.width": [16, 32]}}}, 2),
        ("inbox/jobs/deep/er/nested.json", {"name": "nested"}, 1),
        ("inbox/jobs/escape.json", {"overrides": {"3": {"filename_prefix": "../../../escape"}}}, 1),
        (f"inbox/jobs/{long_name}.json", {}, 1),
        (
            "inbox/jobs/with-input.json",
            {"inputs": {"a.png": "inputs/a.png"}, "workflow": _loading("a.png")},
            1,
        ),
    ]
    return exports + [
        Example(key, _json({"workflow": graph(), **job}), done, tasks) for key, job, tasks in jobs
    ]


def _bad() -> list[Example]:
    invalid = Outcome.INVALID
    unknown = {"1": {"class_type": "SaveImagee", "inputs": {}}}
    dangling = {"3": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "x"}}}
    nowhere = _json({"workflow": _loading("b.png"), "inputs": {"b.png": "inputs/nowhere.png"}})
    private = _json({"workflow": _loading("c.png"), "inputs": {"c.png": "http://169.254.169.254/x.png"}})
    return [
        Example("inbox/ui-export.json", b'{"nodes": [{"id": 1}], "links": []}', invalid, says="Export (API)"),
        Example("inbox/broken.json", b'{"workflow": {', invalid, says="line 1"),
        Example("inbox/empty.json", b"", invalid, says="JSON"),
        Example("inbox/list.json", b"[1, 2]", invalid, says="array"),
        Example("inbox/junk.json", b"\0" * 50_000_000, invalid, says="50,000,000"),
        Example("inbox/latin1.json", '{"workflow": "é"}'.encode("latin-1"), invalid, says="UTF-8"),
        Example("inbox/wrong-node.json", _json(unknown), invalid, says="SaveImage"),
        Example(
            "inbox/jobs/unknown-key.json", _json({"workflow": graph(), "seedz": 1}), invalid, says="seeds"
        ),
        Example("inbox/jobs/no-such-workflow.json", _json({"workflow": "nope"}), invalid, says="nope"),
        Example("inbox/jobs/bad-value.json", _json(graph(width=0)), invalid, says="width"),
        Example("inbox/jobs/dangling.json", _json(dangling), invalid, says="9"),
        Example("inbox/jobs/missing-file.json", nowhere, invalid, says="inputs/nowhere.png"),
        Example("inbox/jobs/private-url.json", private, invalid, says="169.254.169.254"),
        Example("inbox/jobs/million.json", _million(), invalid, says="10,000"),
        Example(
            "inbox/jobs/deep.json", b'{"workflow": ' + b"[" * 5000 + b"]" * 5000 + b"}", invalid, says="nest"
        ),
    ]


def _loading(name: str) -> Graph:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}},
    }


def _million() -> bytes:
    axis = list(range(1000))
    return _json({"workflow": graph(), "matrix": {"1.color": axis, "1.width": axis}})


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


EXAMPLES = _good() + _bad()
IGNORED = ("inbox/notes.txt", "inbox/jobs/picture.png", "inbox/.DS_Store")
"""Things that are no drops: they stay, and stop nothing."""
