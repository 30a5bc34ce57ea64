"""Job files made to break the reader, the plan, or the patience of those behind them."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processor.errors import ErrorKind, JobInvalid
from processor.expand import choose
from processor.reading import read_job
from processor.records import Plan
from processor.store.memory import MemoryStore
from tests.acceptance.drops import graph
from tests.hostile.conftest import Bounded, Judge

MIB = 1024 * 1024


def job(**more: Any) -> bytes:
    return json.dumps({"workflow": graph(), **more}).encode()


def _raw(value: str) -> bytes:
    return b'{"workflow": %s, "name": %s}' % (json.dumps(graph()).encode(), value.encode())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        (b'{"workflow":' + b"[" * 70 + b"]" * 70 + b"}", "64 levels"),
        (_raw("9" * 5000), "digits"),
        (_raw("9" * 4000), "4,000 digits"),
        (_raw("1e400"), "1e400"),
        (_raw("-1e400"), "1e400"),
        (_raw("NaN"), "NaN"),
        (_raw("-Infinity"), "Infinity"),
        (_raw('"\\ud800"'), "surrogate"),
        (b'{"\\ud800": 1, "workflow": "x"}', "surrogate"),
        (b'{"workflow": "x", "workflow": "y"}', "twice"),
        (b'{"workflow": "x", "work\\u0066low": "y"}', "twice"),
        (b'{"workflow": "x", "workflow\\u0000": "y"}', "workflow"),
        ('{"wоrkflow": "x"}'.encode(), "no `workflow`"),  # noqa: RUF001 - a Cyrillic o
        ('{"workflow": "x", "sееds": [1]}'.encode(), "Did you mean 'seeds'"),  # noqa: RUF001
        ('{"workflow": "x", "\u202egnp.exe": 1}'.encode(), "\\u202e"),
        (b"\xff\xfe{\x00}\x00", "UTF-8"),
        (gzip.compress(b"{" + b" " * 10_000_000), "UTF-8"),
        (b"\0" * 4096, "JSON"),
    ],
)
def test_bytes_that_are_no_job(judge: Judge, bounded: Bounded, data: bytes, says: str) -> None:
    """Refused in a sentence that shows what is wrong, even where it can't be seen."""
    with bounded():
        verdict = judge(data)
    assert isinstance(verdict, JobInvalid)
    assert says in str(verdict)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (json.dumps({"workflow": "x"} | {f"k{n}": 1 for n in range(200_000)}).encode(), "unknown key"),
        (
            b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b',"k7":2}',
            "'k7' is given twice",
        ),
        (job(prompts=[1] * 300_000), "prompts.0"),
    ],
)
def test_mistakes_by_the_hundred_thousand(judge: Judge, bounded: Bounded, data: bytes, says: str) -> None:
    """Explaining costs what a person can read, not what a file can hold."""
    with bounded():
        verdict = judge(data)
    assert isinstance(verdict, JobInvalid)
    assert says in str(verdict)
    assert len(verdict.details) <= 200


def _axis(size: int) -> list[int]:
    return list(range(size))


@pytest.mark.parametrize(
    "more",
    [
        {"matrix": {"1.color": _axis(1000), "1.width": _axis(1000)}},
        {"matrix": {f"1.a{n}": _axis(10) for n in range(300)}},
        {"matrix": {"zip": {"1.color": _axis(400_000), "1.width": _axis(400_000)}}},
        {"matrix": {"include": [{"1.color": 1}] * 300_000}},
        {"seeds": {"random": 10**12}},
        {"seeds": {"start": 0, "count": 10**90}},
        {"seeds": _axis(500_000)},
        {"matrix": {"1.color": _axis(200)}, "seeds": {"start": 0, "count": 200}},
    ],
)
def test_too_many_tasks_are_refused_before_they_are_made(
    judge: Judge, bounded: Bounded, more: dict[str, Any]
) -> None:
    """By arithmetic: neither time nor memory grow with what was asked for."""
    data = job(**more)
    with bounded():
        verdict = judge(data)
    assert isinstance(verdict, JobInvalid)
    assert verdict.kind is ErrorKind.REFUSED
    assert "tasks; the limit is 10,000" in verdict.what


def test_a_million_cells_cost_no_memory(judge: Judge) -> None:
    data = job(matrix={"1.color": _axis(1000), "1.width": _axis(1000)})
    judge(data)  # what is imported and built once
    tracemalloc.start()
    judge(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * MIB


@pytest.mark.parametrize("shapes", [1, 2])
def test_exclusions_are_looked_up_not_compared(judge: Judge, bounded: Bounded, shapes: int) -> None:
    """A hundred thousand cells less thirty thousand combinations: three thousand million comparisons."""
    rules: list[dict[str, int]] = [{"1.color": -n} for n in range(1, 30_000)]
    if shapes == 2:
        rules += [{"1.color": -n, "1.width": -n} for n in range(1, 30_000)]
    with bounded():
        verdict = judge(
            job(matrix={"product": {"1.color": _axis(316), "1.width": _axis(316)}, "exclude": rules})
        )
    assert isinstance(verdict, JobInvalid)


def test_exclusions_by_ever_other_axes_are_refused(judge: Judge, bounded: Bounded) -> None:
    axes = {f"1.a{n}": [1, 2] for n in range(16)}
    names = list(axes)
    rules = [{name: 1 for bit, name in enumerate(names) if number >> bit & 1} for number in range(1, 3000)]
    with bounded():
        verdict = judge(job(matrix={"product": axes, "exclude": rules}))
    assert isinstance(verdict, JobInvalid)
    assert "kinds of exclusion" in verdict.what


def test_texts_of_all_tasks_are_bounded(judge: Judge, bounded: Bounded) -> None:
    """A plan is written and read whole; ten thousand long prompts would make it gigabytes."""
    matrix = {"3.filename_prefix": ["x" * 90_000], "1.color": _axis(9_999)}
    with bounded():
        verdict = judge(job(matrix=matrix))
    assert isinstance(verdict, JobInvalid)
    assert "characters" in verdict.what


@pytest.mark.parametrize(
    "text", ["{" * 30_000 + "a|b" + "}" * 30_000, "{a|b}" * 20_000, "{|" * 40_000, "{a|" * 3000 + "}" * 3000]
)
def test_wildcards_that_nest_or_swarm(bounded: Bounded, text: str) -> None:
    with bounded():
        assert len(choose(text, "key")) <= len(text)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (("million.txt", b"x\n" * 1_000_000), "more than 10,000 prompts"),
        (("bomb.txt", gzip.compress(b"x\n" * 5_000_000)), "UTF-8"),
        (("bomb.txt.gz", gzip.compress(b"x\n" * 5_000_000)), "UTF-8"),
        (("huge.txt", b"x" * (33 * MIB)), "bytes"),
        (("deep.jsonl", b'{"prompt":' + b"[" * 100_000 + b"}"), "nested"),
        (("nan.jsonl", b'{"1.color": NaN}'), "line 1: NaN"),
        (("inf.jsonl", b'{"1.color": 1e400}'), "1e400"),
        (("half.jsonl", b'{"3.filename_prefix": "\\ud800"}'), "surrogate"),
        (("twice.jsonl", b'{"1.color": 1, "1.color": 2}'), "twice"),
        (("open.csv", b"1.color\n" + b'"a\n' * 200_000), "line"),
        (("wide.csv", b",".join(b"c%d" % n for n in range(50_000)) + b"\n1"), "columns"),
    ],
)
def test_prompt_files(
    judge: Judge, bounded: Bounded, store: MemoryStore, file: tuple[str, bytes], says: str
) -> None:
    name, data = file
    store.put(f"inbox/jobs/{name}", data)
    with bounded():
        verdict = judge(job(prompts=name))
    assert isinstance(verdict, JobInvalid)
    assert says in str(verdict)


@pytest.mark.parametrize(
    "text", ['{"1": {"class_type": "A", "inputs": {"x": "\\ud800"}}}', "[" * 90_000, "NaN"]
)
def test_workflow_files_are_read_as_strictly(judge: Judge, store: MemoryStore, text: str) -> None:
    """They come from users, too."""
    store.put("comfy_workflows/mine.json", text.encode())
    assert isinstance(judge(json.dumps({"workflow": "mine"}).encode()), JobInvalid)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "a//b", "a\0b", "a\nb", ".", "/", "x" * 200]
)
@pytest.mark.parametrize("field", ["workflow", "prompts", "inputs"])
def test_names_that_are_no_keys(judge: Judge, field: str, name: str) -> None:
    given: Any = {"a.png": name} if field == "inputs" else name
    assert isinstance(judge(job(**{field: given})), JobInvalid)


_KEYS = ("workflow", "kind", "matrix", "product", "zip", "include", "exclude", "seeds")
_MORE = (
    "random",
    "start",
    "count",
    "prompts",
    "overrides",
    "inputs",
    "class_type",
    "on_success",
    "output",
    "name",
)
_ODD = (
    "render",
    "train",
    "1",
    "1.color",
    "3",
    "EmptyImage",
    "../..",
    "\0",
    "\u202e",
    "__value__",
    "{a|b}",
    "",
)
_WORDS = st.sampled_from(_KEYS + _MORE + _ODD)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), _WORDS,
    st.sampled_from([2**63, 2**64, 10**30, -1, 1e308, 0.5]),
)  # fmt: skip
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(_WORDS | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(more=st.dictionaries(_WORDS, _VALUES, max_size=5))
def test_any_json_becomes_a_plan_or_a_reason(judge: Judge, more: dict[str, Any]) -> None:
    """Nothing that JSON can say is a defect of ours."""
    judge(json.dumps({"workflow": graph(), **more}).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    inputs=st.dictionaries(
        st.sampled_from(["image", "images", "color", "width", "ckpt_name", "path", "url"]), _VALUES
    ),
    class_type=st.sampled_from(
        ["EmptyImage", "LoadImage", "ImageInvert", "CheckpointLoaderSimple", "SaveImage", "\0"]
    ),
)
def test_any_graph_becomes_a_plan_or_a_reason(judge: Judge, inputs: dict[str, Any], class_type: str) -> None:
    nodes = graph() | {"1": {"class_type": class_type, "inputs": inputs}}
    judge(json.dumps(nodes).encode())


@given(st.binary(max_size=400) | st.text(max_size=400).map(str.encode))
def test_any_bytes_are_a_job_or_a_reason(data: bytes) -> None:
    try:
        read_job(data, key="inbox/x.json")
    except JobInvalid as error:
        str(error).encode()


def test_a_good_job_is_still_planned(judge: Judge) -> None:
    """The judge can say yes."""
    verdict = judge(job(matrix={"1.color": [1, 2]}))
    assert isinstance(verdict, Plan)
    assert len(verdict.tasks) == 2
