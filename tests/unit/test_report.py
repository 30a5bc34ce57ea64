"""Errors as people see them: any exception becomes a bounded, redacted report."""

from __future__ import annotations

import json

import pytest

from processor.errors import (
    AccessDenied,
    DropbatchError,
    ErrorKind,
    JobInvalid,
    LeaseLost,
    NotFound,
    StoreUnavailable,
    TaskFailed,
)
from processor.records import Outcome, dump
from processor.report import MAX_DETAILS, MAX_TEXT, error_json, error_line, error_report
from tests.unit.test_gallery import manifest, result


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (JobInvalid("x"), ErrorKind.INVALID),
        (JobInvalid("x", kind=ErrorKind.MISSING_NODE), ErrorKind.MISSING_NODE),
        (TaskFailed(ErrorKind.TIMED_OUT, "x"), ErrorKind.TIMED_OUT),
        (NotFound("x"), ErrorKind.BAD_INPUT),
        (AccessDenied("x"), ErrorKind.UNAVAILABLE),
        (StoreUnavailable("x"), ErrorKind.UNAVAILABLE),
        (LeaseLost("x"), ErrorKind.PREEMPTED),
        (DropbatchError("x"), ErrorKind.INTERNAL),
        (ZeroDivisionError("x"), ErrorKind.INTERNAL),
    ],
)
def test_every_exception_has_a_kind(error: Exception, kind: ErrorKind) -> None:
    """The kind decides whether a task is tried again."""
    assert error_report(error).kind is kind


def test_a_report_is_bounded_and_redacted() -> None:
    """Whatever an engine or a user puts in a message."""
    error = JobInvalid("hf_" + "a" * 34 + " x" * 5000, details=["d" * 9000] * 200)
    report = error_report(error)
    assert "hf_a" not in report.what
    assert len(report.what) <= MAX_TEXT
    assert len(report.details) == MAX_DETAILS
    assert all(len(detail) <= MAX_TEXT for detail in report.details)


def test_a_report_can_be_written_whatever_it_says() -> None:
    """ComfyUI names a file that is no UTF-8 with half a character, which no JSON takes."""
    report = error_report(TaskFailed(ErrorKind.NODE_FAILED, "No such file: gr\udcfcn.safetensors"))
    assert report.what == "No such file: gr?n.safetensors"
    assert b"gr?n" in dump(report)


def test_a_line_is_one_line() -> None:
    """Where, what, mend."""
    error = JobInvalid("two\nlines", where="a.json", mend="Do this")
    assert error_line(error_report(error)) == "a.json: two lines. Do this"
    assert error_line(error_report(KeyError("k"))) == "KeyError: 'k'"


def test_error_json_says_what_failed_and_where_it_came_from() -> None:
    """From the manifest only, so that whoever settles the drop writes the same."""
    failed = error_report(TaskFailed(ErrorKind.NODE_FAILED, "no", where="node 3"))
    one = manifest(
        result(0), result(1, status="failed", error=failed, seed=9), outcome=Outcome.PARTIAL, error=None
    )
    document = json.loads(error_json(one))
    assert document["outcome"] == "partial"
    assert document["drop"]["key"] == one.drop.key
    assert document["failed_tasks"] == 1
    assert document["tasks"][0]["error"] == {"kind": "node_failed", "what": "no", "where": "node 3"}
    assert error_json(one) == error_json(one)
