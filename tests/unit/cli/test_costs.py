"""`costs` and `check --cost`: money spent, and money to be spent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from processor.cli.costs import parse_since
from processor.cli.exits import UsageError
from tests.unit.cli.conftest import Dropbatch

JobFile = Callable[..., Path]
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _real_handler(monkeypatch: pytest.MonkeyPatch, dropbatch: Dropbatch) -> None:
    monkeypatch.delenv("DROPBATCH_HANDLERS")
    monkeypatch.setenv("DROPBATCH_MACHINE_USD_PER_H", "3.6")
    monkeypatch.setenv("DROPBATCH_MACHINE_GPU", "desk")


def render(dropbatch: Dropbatch, path: Path) -> None:
    dropbatch("drop", path)
    assert dropbatch("run", "--once", "--plain").code == 0


def test_costs_are_summed_by_day_job_gpu_and_workflow(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """The sums agree, whichever way they are cut."""
    render(dropbatch, job_file(workflow="gradient", matrix={"top": ["#000000", "#ffffff"]}))
    found = dropbatch("costs", "--json").json
    total = found["total"]["cost_usd"]
    assert total > 0
    assert found["total"]["tasks"] == 2
    for way in ("day", "job", "gpu", "workflow"):
        assert sum(row["cost_usd"] for row in found[f"by_{way}"].values()) == pytest.approx(total, abs=1e-5)
    assert list(found["by_gpu"]) == ["desk"]
    assert list(found["by_workflow"]) == ["gradient"]
    assert "gradient" in dropbatch("costs", "--by", "workflow").out
    assert dropbatch("costs", "--since", "2100-01-01", "--json").json["total"]["jobs"] == 0


def test_an_estimate_learns_from_the_bucket(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """Twenty tasks teach what forty will take; before, the workflow's own word is all there is."""
    path = job_file(workflow="gradient", matrix={"top": [f"#0000{n:02x}" for n in range(40)]})
    [before] = dropbatch("check", path, "--cost", "--json").json
    assert before["cost"]["basis"] == "declared"
    few = job_file("few.json", workflow="gradient", matrix={"top": [f"#00{n:02x}00" for n in range(20)]})
    render(dropbatch, few)
    [after] = dropbatch("check", path, "--cost", "--json").json
    assert (after["cost"]["here"]["basis"], after["cost"]["here"]["samples"]) == ("learned", 20)
    assert after["cost"]["here"]["usd"] > 0
    said = dropbatch("check", path, "--cost").out
    assert "learned from 20 tasks like it" in said
    assert "A100-80GB" in said
    assert "Modal is cheaper" in said


def test_a_job_beyond_its_limit_is_warned_of(
    dropbatch: Dropbatch, job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DROPBATCH_MAX_JOB_COST_USD", "0.01")
    path = job_file(workflow="gradient", matrix={"top": ["#000000", "#ffffff"]})
    assert "stops fanning out" in dropbatch("check", path, "--cost").out


@pytest.mark.parametrize(("own", "warned"), [(0.01, True), (50, False)])
def test_a_jobs_own_limit_counts(
    dropbatch: Dropbatch, job_file: JobFile, own: float, *, warned: bool
) -> None:
    """It takes precedence when it runs, so it does here; and so does its GPU."""
    path = job_file(
        workflow="gradient",
        matrix={"top": [f"#0000{n:02x}" for n in range(200)]},
        max_cost_usd=own,
        gpu="H100",
    )
    [facts] = dropbatch("check", path, "--cost", "--json").json
    assert (facts["gpu"], facts["cost"]["gpu"]) == ("H100", "H100")
    assert facts["cost"]["over_limit"] is warned
    assert ("stops fanning out" in dropbatch("check", path, "--cost").out) is warned


def test_a_long_history_is_cut_at_its_beginning(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """What was spent lately is what people want to know; that the rest is missing is said."""
    render(dropbatch, job_file(workflow="gradient"))
    found = dropbatch("costs", "--since", "2000-01-01", "--json")
    assert found.json["total"]["jobs"] == 1
    assert "history.cut_short" in found.err


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("24h", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("7d", datetime(2026, 11, 17, 12, tzinfo=UTC)),
        ("2026-11-01", datetime(2026, 10, 31, 23, tzinfo=UTC)),
    ],
)
def test_since_is_a_day_or_a_span(text: str, instant: datetime) -> None:
    assert parse_since(text, NOW, ZoneInfo("Europe/Berlin")) == instant


@pytest.mark.parametrize("text", ["yesterday", "7", "2026-13-01", "-3d"])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_since(text, NOW, ZoneInfo("UTC"))


def test_an_unknown_heading_is_a_usage_error(dropbatch: Dropbatch, bucket: Path) -> None:
    assert dropbatch("costs", "--by", "moon").code == 2
