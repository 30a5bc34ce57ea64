"""What is wrong with a document: one mistake is one problem, told with place and mend."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from processor.models import Job
from processor.problems import did_you_mean, find_problems, nearest


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Job).validate_python(document)
    return [str(problem) for problem in find_problems(raised.value, document, Job)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"matrx": {}}, ["unknown key 'matrx'. Did you mean 'matrix'?"]),
        ({"where": "modl"}, ["where: \"modl\" is none of: modal, local, any. Did you mean 'modal'?"]),
        ({"priority": 1000}, ["priority: 1000 is not less than or equal to 100"]),
        (
            {"seeds": {"start": 1, "cont": 3}},
            ["seeds: unknown key 'cont'. Did you mean 'count'?", "seeds: 'count' is missing"],
        ),
        (
            {"seeds": [-1, "q"]},
            [
                "seeds.0: -1 is not greater than or equal to 0",
                'seeds.1: "q" is not a valid integer, unable to parse string as an integer',
            ],
        ),
        (
            {"seeds": "abc"},
            ['seeds: "abc" is none of: a valid list; an object (SeedRange); an object (SeedDraw)'],
        ),
        ({"matrix": {"product": {"a": []}}}, ["matrix: axis 'a' has no values"]),
        (
            {"on_success": [{"kind": "render", "workflw": 2}]},
            [
                "on_success.0: unknown key 'workflw'. Did you mean 'workflow'?",
                "on_success.0: 'workflow' is missing",
            ],
        ),
    ],
)
def test_each_mistake_is_told_once(fields: dict[str, Any], expected: list[str]) -> None:
    """However many members of a union pydantic has tried."""
    assert problems({"kind": "render", "workflow": "x", **fields}) == expected


def test_unknown_keys_come_first() -> None:
    """They explain the rest: what is missing was misspelt."""
    told = problems({"kind": "render", "workfow": "x", "priority": "high"})
    assert told[0] == "unknown key 'workfow'. Did you mean 'workflow'?"
    assert "'workflow' is missing" in told


def test_a_wrong_kind_or_none() -> None:
    """The word that decides all others."""
    assert problems({"kind": "rendr"}) == [
        "kind: \"rendr\" is none of: render, train, ingest. Did you mean 'render'?"
    ]
    assert problems({"workflow": "x"}) == ["'kind' is missing"]


def test_long_values_are_cut() -> None:
    """A megabyte in a wrong place is not repeated."""
    [told] = problems({"kind": "render", "workflow": "x", "priority": "9" * 10_000})
    assert len(told) < 200


def test_nearest_names() -> None:
    """By likeness, whatever the case; a list if nothing is near and there are few."""
    assert nearest("KSampler", ["Ksampler", "VAEDecode"]) == "Ksampler"
    assert nearest("zzz", ["abc"]) is None
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b"
    assert did_you_mean("zzz", [str(n) for n in range(100)]) is None
