"""Logs: one line a unit of work, JSON for machines, never a secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from processor import log, redact
from processor.log import Format, Level

SECRET = "correct-horse-battery-staple"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A planted secret, and logging as it was."""
    monkeypatch.setenv("SOME_API_TOKEN", SECRET)
    redact.forget()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    redact.forget()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def configured(fmt: Format = "auto", level: Level = "info") -> io.StringIO:
    stream = io.StringIO()
    log.configure(fmt=fmt, level=level, stream=stream)
    return stream


def test_a_unit_of_work_is_one_line_with_all_that_was_added() -> None:
    """Job, task and attempt are bound around it; how long it took is always there."""
    stream = configured()
    with log.bind(job_id="j", attempt="1-ab"), log.unit_of_work("task", task=3) as line:
        line.add(outcome="done", files=2)
    [written] = lines(stream)
    assert written.items() >= {"event": "task", "job_id": "j", "task": 3, "outcome": "done"}.items()
    assert written["taken_s"] >= 0
    assert written["level"] == "info"


def test_a_failing_unit_says_why_and_lets_the_error_go_on() -> None:
    """The line never swallows what happened."""
    stream = configured()
    with pytest.raises(ValueError, match="no"), log.unit_of_work("task"):
        raise ValueError("no")
    [written] = lines(stream)
    assert (written["level"], written["error"]) == ("error", "ValueError: no")


def test_no_secret_leaves_in_any_value() -> None:
    """Not in the event, deep in a value, in an exception, nor in what a library logs."""
    stream = configured()
    logger = log.get_logger()
    logger.info(f"started with {SECRET}", deep={"list": [1, f"x {SECRET}"]}, odd=ValueError(SECRET))
    logger.error("failed", exc_info=RuntimeError(SECRET))
    logging.getLogger("urllib3").warning("retrying %s", f"https://user:{SECRET}@host/")
    text = stream.getvalue()
    assert SECRET not in text
    assert text.count(redact.MASK) >= 5
    assert lines(stream)[2]["logger"] == "urllib3"


def test_levels_and_formats() -> None:
    """What is below the level costs nothing; people get words, machines JSON."""
    stream = configured(level="warning")
    log.get_logger().info("hidden")
    assert stream.getvalue() == ""
    stream = configured(fmt="console")
    log.get_logger().info("shown", job_id="j")
    assert "shown" in stream.getvalue()
    assert not stream.getvalue().startswith("{")


def test_a_closed_stream_never_stops_the_work() -> None:
    """A terminal that went away is no reason to fail a job."""
    stream = configured()
    stream.close()
    log.get_logger().info("to nobody")


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + "a" * 34,
        "K005" + "b" * 27,
        "AKIA" + "C" * 16,
        "Authorization: Bearer abcdefghijkl",
        "https://s3/x?X-Amz-Signature=0123456789abcdef",
        'config {"api_key": "abcdef123456"}',
    ],
)
def test_known_shapes_of_tokens_are_masked(text: str) -> None:
    """Even those that no variable holds; and twice is the same as once."""
    once = redact.redact(f"before {text} after")
    assert redact.MASK in once
    assert once.startswith("before ")
    assert redact.redact(once) == once


def test_plain_text_stays_as_it_is() -> None:
    """A log that garbles paths and prompts helps nobody."""
    text = "comfy_outputs/a-1/00001-ab/ComfyUI_00001_.png seed 42 https://example.org/x?y=1"
    assert redact.redact(text) == text
