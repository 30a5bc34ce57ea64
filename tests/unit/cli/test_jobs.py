"""From drop to results: run, status, logs, fetch, retry, cancel, pause, on a folder-bucket."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from processor.cli.fetch import nice_names
from processor.cli.jobs import find_job
from processor.layout import job_prefix, manifest_key, spend_key
from processor.records import Attempt, OutputFile, TaskResult, dump
from processor.store.memory import MemoryStore
from tests.unit.cli.conftest import GRAPH, Dropbatch

JobFile = Callable[..., Path]


@pytest.fixture
def finished(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> dict[str, str]:
    """Three jobs that were run: name → id."""
    failing: dict[str, Any] = {**GRAPH, "fail": {"class_type": "Fail", "inputs": {}}}
    ids = {
        "good": dropbatch("drop", job_file("good.json", seeds=[7, 8])).out.strip(),
        "half": dropbatch("drop", job_file("half.json", workflow=failing, seeds=[1, 2])).out.strip(),
    }
    broken = bucket / "inbox/jobs/broken.json"
    broken.write_text('{"workflow": 5}')
    os.utime(broken, (0, 0))  # old enough not to be taken for a file that is still being written
    assert dropbatch("run", "--once", "--json").code == 1
    return ids


def test_run_reports_outcomes_and_empties_the_inbox(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """Exit code 0 only if all ended well; a second run has nothing to do."""
    dropbatch("drop", job_file())
    result = dropbatch("run", "--once", "--json")
    assert (result.code, result.json["outcomes"]) == (0, {"done": 1})
    lines = [json.loads(line) for line in result.err.splitlines()]
    assert any(line["event"] == "job" and line["outcome"] == "done" for line in lines)
    assert dropbatch("run", "--once", "--json").json["outcomes"] == {}


def test_status_lists_what_waits_and_what_has_ended(
    dropbatch: Dropbatch, finished: dict[str, str], job_file: JobFile
) -> None:
    """Newest first, each with its outcome; waiting drops with the id they will have."""
    waiting = dropbatch("drop", job_file("next.json")).out.strip()
    facts = dropbatch("status", "--json").json
    assert [item["job_id"] for item in facts["waiting"]] == [waiting]
    states = {item["job_id"]: item["state"] for item in facts["finished"]}
    assert states.pop(finished["good"]) == "done"
    assert states.pop(finished["half"]) == "partial"
    assert list(states.values()) == ["invalid"]
    told = dropbatch("status").out
    assert finished["good"] in told
    assert waiting in told
    assert len(dropbatch("status", "--json", "-n", 1).json["finished"]) == 1


def test_a_job_that_was_given_back_waits_again(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """It was shown as running for ever; the newest attempt tells, by the number of its epoch."""
    job = dropbatch("drop", job_file()).out.strip()
    begun_at = datetime(2026, 1, 1, tzinfo=UTC)

    def attempt(epoch: int, **more: Any) -> None:
        record = Attempt(
            attempt=f"{epoch}-abc", job_id=job, host="desk", version="1", begun_at=begun_at, **more
        )
        folder = bucket / "comfy_outputs" / job / record.attempt
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "attempt.json").write_bytes(dump(record))

    def states() -> tuple[str, str]:
        (waiting,) = dropbatch("status", "--json").json["waiting"]
        return waiting["state"], dropbatch("status", job, "--json").json["state"]

    assert states() == ("waiting", "waiting")
    attempt(9)
    assert states() == ("running", "running")
    attempt(9, ended="this runner was stopped", released_at=begun_at)
    assert states() == ("waiting", "waiting")
    begun_at += timedelta(minutes=1)
    attempt(10)
    assert states() == ("running", "running")


@pytest.mark.parametrize("width", [60, 80, 240])
def test_status_loses_nothing_on_a_narrow_terminal(
    dropbatch: Dropbatch, finished: dict[str, str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """One job with an error left the others without their outcomes."""
    monkeypatch.setattr("processor.cli.console._PIPED_WIDTH", width)
    lines = dropbatch("status").out.splitlines()
    assert max(map(len, lines)) <= width

    def said_of(job: str) -> str:
        first = next(number for number, line in enumerate(lines) if line.startswith(job))
        return " ".join(" ".join(lines[first : first + 2]).split())

    assert re.match(rf"{finished['good']} done 2 2 [\d.]+ s \d+ s ago", said_of(finished["good"]))
    assert re.match(rf"{finished['half']} partial 1/2 1 [\d.]+ s \d+ s ago", said_of(finished["half"]))
    assert re.search(r"broken-\w{16} *(\n +)?invalid ", "\n".join(lines))
    assert "workflow: " in " ".join(lines)


def test_status_of_one_job_by_the_beginning_of_its_id(
    dropbatch: Dropbatch, finished: dict[str, str], job_file: JobFile
) -> None:
    """Enough of an id suffices; too little, or a wrong one, is said."""
    facts = dropbatch("status", finished["half"][:12], "--json").json
    assert (facts["tasks"], facts["tasks_done"], facts["state"]) == (2, 1, "partial")
    assert "this one always fails" in facts["failed_tasks"][0]["error"]
    assert "this one always fails" in dropbatch("status", finished["half"]).out
    assert dropbatch("status", "nothing-like-this").code == 5
    waiting = dropbatch("drop", job_file("goodish.json")).out.strip()
    assert dropbatch("status", waiting[:10], "--json").json["state"] == "waiting"


def test_an_ambiguous_beginning_names_the_candidates(dropbatch: Dropbatch, finished: dict[str, str]) -> None:
    """Nothing is guessed."""
    ids = [item["job_id"] for item in dropbatch("status", "--json").json["finished"]]
    first = {job[0] for job in ids}
    assert len(first) == len(ids)
    result = dropbatch("status", "")
    assert result.code == 5
    assert all(job in result.err for job in ids)


def test_results_are_not_fetched_into_a_file(
    dropbatch: Dropbatch, finished: dict[str, str], tmp_path: Path
) -> None:
    """A mistake on the command line, told as one."""
    (tmp_path / "file").touch()
    result = dropbatch("fetch", finished["good"], tmp_path / "file")
    assert (result.code, result.err) == (1, f"error: {tmp_path / 'file'}: File exists\n")


def test_a_waiting_job_is_a_candidate_like_one_that_has_begun(
    dropbatch: Dropbatch, finished: dict[str, str], job_file: JobFile
) -> None:
    """The beginning meant the one that waits: neither is taken for the other."""
    waiting = dropbatch("drop", job_file("good.json")).out.strip()
    result = dropbatch("cancel", "good-")
    assert result.code == 5
    assert waiting in result.err
    assert finished["good"] in result.err
    assert dropbatch("cancel", waiting).code == 0


def test_names_for_people_fit_into_a_directory() -> None:
    """255 bytes a name, and Chinese has three a character."""
    params: dict[str, Any] = {"prompt": "夜" * 200, "negative": "雨" * 200, "style": "墨" * 200}
    at = datetime(2026, 1, 1, tzinfo=UTC)
    file = OutputFile(
        key="k", name="out.png", node="1", sha256="0" * 64, size_bytes=1, media_type="image/png"
    )
    tasks = [
        TaskResult(
            index=index,
            hash="h",
            status="done",
            params=params,
            seed=7,
            files=[file, file],
            attempt="1-0",
            execution="x",
            started_at=at,
            seconds=0.0,
        )
        for index in range(2)
    ]
    manifest = SimpleNamespace(kind="render", tasks=tasks, job=None)
    names = [name for _, name in nice_names(manifest)]  # type: ignore[arg-type]
    assert len(set(names)) == 4
    assert all(len(f".{name}.part".encode()) <= 255 for name in names)
    assert all(name.startswith(("0-夜", "1-夜")) and name.endswith(".png") for name in names)


@pytest.mark.parametrize(
    ("name", "fetched"),
    [
        ("a cat/0001.png", ["a cat/0001.png", "a cat/0001-2.png"]),
        ("../../etc/x.png", ["etc/x.png", "etc/x-2.png"]),
        ("C:\\x.y.png", ["C_/x.y.png", "C_/x.y-2.png"]),
        ("...", ["0", "0-2"]),
    ],
)
def test_names_that_the_job_gave_are_kept(name: str, fetched: list[str]) -> None:
    """As far as they lead nowhere else."""
    file = SimpleNamespace(name=name)
    tasks = [SimpleNamespace(index=0, files=[file, file], params={}, seed=None)]
    manifest = SimpleNamespace(kind="render", tasks=tasks, job={"output": {"name": "{prompt}/{task}"}})
    assert [name for _, name in nice_names(manifest)] == fetched  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("runs", "fetched"),
    [
        (1, ["zoe-1.safetensors", "samples/step-000000250-0.jpg"]),
        (
            2,
            [
                "0-rank=8/zoe-1.safetensors",
                "0-rank=8/samples/step-000000250-0.jpg",
                "1-rank=16/zoe-1.safetensors",
                "1-rank=16/samples/step-000000250-0.jpg",
            ],
        ),
    ],
)
def test_a_trainings_files_keep_their_names(runs: int, fetched: list[str]) -> None:
    """They tell the LoRA and the step, which no task or parameter does."""
    files = [SimpleNamespace(name=name) for name in ("zoe-1.safetensors", "samples/step-000000250-0.jpg")]
    tasks = [
        SimpleNamespace(index=index, files=files, params={"rank": rank}, seed=None)
        for index, rank in enumerate([8, 16][:runs])
    ]
    manifest = SimpleNamespace(kind="train", tasks=tasks, job=None)
    assert [name for _, name in nice_names(manifest)] == fetched  # type: ignore[arg-type]


def test_logs_tell_engine_and_errors(dropbatch: Dropbatch, finished: dict[str, str]) -> None:
    """Both on stdout; where they lie on stderr."""
    result = dropbatch("logs", finished["half"])
    assert "painted it" in result.out
    assert "node_failed" in result.out
    document = dropbatch("logs", finished["half"], "--json").json
    assert document["errors"]["tasks"][0]["index"] == 0
    assert all(key.endswith("engine.log") for key in document["logs"])


def test_fetch_names_files_for_people_and_checks_them(
    dropbatch: Dropbatch, bucket: Path, finished: dict[str, str], tmp_path: Path
) -> None:
    """Right files are not fetched again; changed bytes in the bucket are refused."""
    target = tmp_path / "results"
    assert dropbatch("fetch", finished["good"], target).code == 0
    names = sorted(path.name for path in target.iterdir())
    assert names == ["0-shade-7-seed7.png", "1-shade-8-seed8.png"]
    before = (target / names[0]).stat().st_mtime_ns
    (target / names[1]).unlink()
    for picture in (bucket / "comfy_outputs" / finished["good"]).rglob("picture.png"):
        picture.write_bytes(b"changed")
    result = dropbatch("fetch", finished["good"], target)
    assert result.code == 4
    assert "its bytes are not those" in result.err
    assert [path.name for path in target.iterdir()] == [names[0]]
    assert (target / names[0]).stat().st_mtime_ns == before


def test_what_was_deleted_by_name_hides_no_job() -> None:
    """Where versions are kept, a listing's first page may hold nothing but hidden ones."""
    store = MemoryStore(page_size=3)
    old, new = "portrait-00000000000000aa", "portrait-00000000000000bb"
    for number in range(7):
        store.put(f"{job_prefix(old)}1-ab/{number}.png", b"")
        store.hide(f"{job_prefix(old)}1-ab/{number}.png")
    store.put(manifest_key(new), b"")
    assert find_job(store, "portrait") == new


def test_retry_drops_a_job_that_copies_what_is_good(
    dropbatch: Dropbatch, bucket: Path, finished: dict[str, str]
) -> None:
    """Failed tasks only, unless `--all`; a job without failures is not retried by accident."""
    assert dropbatch("retry", finished["good"]).code == 1
    new = dropbatch("retry", finished["half"]).out.strip()
    dropbatch("run", "--once")
    manifest = json.loads((bucket / "comfy_outputs" / new / "manifest.json").read_bytes())
    assert manifest["job"]["retry_of"] == finished["half"]
    assert manifest["tasks"][1]["reused_from"] == finished["half"]
    assert dropbatch("retry", finished["good"], "--all", "--json").json["retry_of"] == finished["good"]


def test_retry_of_a_dataset_says_where_its_files_are(
    dropbatch: Dropbatch, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a job it could only end invalid; the folder is to be dropped again."""
    monkeypatch.setenv("DROPBATCH_HANDLERS", '{"ingest": "handlers.ingest:IngestHandler"}')
    folder = bucket / "inbox/datasets/zoe"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "_READY").touch()
    dropbatch("run", "--once")
    (job,) = (item["job_id"] for item in dropbatch("status", "--json").json["finished"])
    result = dropbatch("retry", job)
    assert result.code == 1
    (named,) = re.findall(r"failed/\S+/zoe/", result.err)
    assert [path.name for path in (bucket / named).iterdir()] == ["a.png"]
    assert not list((bucket / "inbox").rglob("*.json"))


def test_retry_may_cost_more_than_the_first(
    dropbatch: Dropbatch, bucket: Path, finished: dict[str, str]
) -> None:
    """A cap that was too low is mended where it is told; one that is none is not dropped."""
    for wrong in ("-1", "nan", "inf"):
        result = dropbatch("retry", finished["half"], "--max-cost", wrong)
        assert result.code == 1, wrong
        assert "--max-cost" in result.err
    assert not list((bucket / "inbox").rglob("*.json"))
    new = dropbatch("retry", finished["half"], "--max-cost", "12.5").out.strip()
    dropbatch("run", "--once")
    manifest = json.loads((bucket / "comfy_outputs" / new / "manifest.json").read_bytes())
    assert manifest["job"]["max_cost_usd"] == 12.5


def test_retry_runs_what_a_cancelled_job_never_came_to(
    dropbatch: Dropbatch, bucket: Path, finished: dict[str, str]
) -> None:
    """Every task in its manifest is done, and yet it is not whole."""
    path = bucket / "comfy_outputs" / finished["good"] / "manifest.json"
    manifest = json.loads(path.read_bytes())
    path.write_text(json.dumps({**manifest, "outcome": "cancelled", "tasks": manifest["tasks"][:1]}))
    new = dropbatch("retry", finished["good"]).out.strip()
    dropbatch("run", "--once")
    again = json.loads((bucket / "comfy_outputs" / new / "manifest.json").read_bytes())
    assert again["outcome"] == "done"
    assert [task.get("reused_from") for task in again["tasks"]] == [finished["good"], None]


def test_cancel_asks_and_the_job_ends_cancelled(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """A job that has ended can't be cancelled any more."""
    job = dropbatch("drop", job_file()).out.strip()
    assert dropbatch("cancel", job).code == 0
    dropbatch("run", "--once")
    assert dropbatch("status", job, "--json").json["state"] == "cancelled"
    result = dropbatch("cancel", job)
    assert result.code == 1
    assert "has ended already" in result.err


def test_a_day_at_its_cap_is_said(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `status`, and by the run that leaves a job for tomorrow: all seemed well, and nothing ran."""
    dropbatch("drop", job_file())
    assert dropbatch("status", "--json").json["over_budget"] is None
    monkeypatch.setenv("DROPBATCH_MAX_DAY_COST_USD", "5")
    monkeypatch.setenv("DROPBATCH_MACHINE_USD_PER_H", "1")
    spent = spend_key(datetime.now(UTC).date(), "other-0123456789abcdef", "1-abc", 5_250_000)
    (bucket / spent).parent.mkdir(parents=True)
    (bucket / spent).touch()
    why = "the day has cost $5.25 of $5.00"
    result = dropbatch("run", "--once", "--json")
    assert (result.json["outcomes"], result.json["over_budget"]) == ({}, why)
    assert dropbatch("status", "--json").json["over_budget"] == why
    assert why in dropbatch("status").err


def test_pause_holds_everything_until_resume(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> None:
    """Drops wait; nothing is lost."""
    job = dropbatch("drop", job_file()).out.strip()
    assert dropbatch("pause").code == 0
    ran = dropbatch("run", "--once", "--json")
    assert (ran.json["outcomes"], ran.json["paused"]) == ({}, True)
    assert "dropbatch resume" in ran.err
    assert dropbatch("status", "--json").json["paused"] is True
    assert dropbatch("resume").code == 0
    assert dropbatch("run", "--once", "--json").json["outcomes"] == {"done": 1}
    assert dropbatch("status", job, "--json").json["state"] == "done"
    assert "was not paused" in dropbatch("resume").err


def test_the_newest_of_hundreds_is_found_by_its_whole_id(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the oldest are listed, but what was dropped by mistake can be called back."""
    monkeypatch.setattr("processor.cli.jobs.MAX_WAITING", 3)
    for _ in range(3):
        dropbatch("drop", job_file("older.json"))
    newest = dropbatch("drop", job_file("urgent.json")).out.strip()
    assert dropbatch("status", newest, "--json").json["state"] == "waiting"
    assert dropbatch("cancel", newest).code == 0
    assert (bucket / "inbox/control/cancel" / newest).exists()
    assert dropbatch("cancel", newest[:-1] + ("0" if newest[-1] != "0" else "1")).code == 5


def test_a_jobs_texts_do_not_drive_the_terminal(
    dropbatch: Dropbatch, bucket: Path, job_file: JobFile
) -> None:
    """Whoever may write to the inbox chose them."""
    graph = {**GRAPH, "fail": {"class_type": "Fail\x1b[2J", "inputs": {}}}
    dropbatch("drop", job_file("x.json", workflow=graph))
    checked = dropbatch("check", job_file("x.json", workflow=graph))
    assert dropbatch("run", "--once").code in (0, 1)
    assert "\x1b" not in checked.out + dropbatch("status").out
    assert "Fail[2J" in checked.out
