"""The same commands on a bucket that behaves as Backblaze B2 does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.b2like import B2Like, Kind, Request
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.unit.cli.conftest import Dropbatch


@pytest.fixture
def _on_b2(b2: B2Like, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new bucket behind the B2-like proxy, named by the environment with its key."""
    store = make_bucket(b2.url)
    b2.reset()
    for name, value in {
        "BUCKET": f"{store.url}/team",
        "ENDPOINT_URL": b2.url,
        "KEY_ID": KEY_ID,
        "KEY": SECRET,
        "FOUNDING_GRACE_S": "0",
    }.items():
        monkeypatch.setenv(f"DROPBATCH_{name}", value)


@pytest.mark.usefixtures("_on_b2")
def test_from_drop_to_pictures_on_this_machine(
    dropbatch: Dropbatch, job_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Versions, a prefix, 403 for what is missing, no put-if-absent: none of it shows."""
    job = dropbatch("drop", job_file(seeds=[7, 8])).out.strip()
    gone = dropbatch("drop", job_file("gone.json")).out.strip()
    assert dropbatch("cancel", gone).code == 0
    waiting = dropbatch("status", "--json").json["waiting"]
    # In no order: both may have arrived within one second of the store's clock.
    assert {item["job_id"] for item in waiting} == {job, gone}
    ran = dropbatch("run", "--once", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["outcomes"] == {"done": 1, "cancelled": 1}
    states = {item["job_id"]: item["state"] for item in dropbatch("status", "--json").json["finished"]}
    assert states == {job: "done", gone: "cancelled"}
    assert dropbatch("status", job[:12], "--json").json["files"] == 2
    assert dropbatch("fetch", job, tmp_path / "results").code == 0
    assert len(list((tmp_path / "results").iterdir())) == 2
    assert "painted it" in dropbatch("logs", job).out
    assert dropbatch("retry", job, "--all").code == 0
    assert SECRET not in ran.out + ran.err


@pytest.mark.usefixtures("_on_b2")
def test_pause_and_resume_leave_no_version_behind(
    dropbatch: Dropbatch, job_file: Callable[..., Path]
) -> None:
    """A delete by name would only hide the marker."""
    dropbatch("pause")
    dropbatch("pause")
    assert dropbatch("status", "--json").json["paused"] is True
    dropbatch("resume")
    assert dropbatch("status", "--json").json["paused"] is False
    dropbatch("drop", job_file())
    assert dropbatch("run", "--once", "--json").json["outcomes"] == {"done": 1}


@pytest.mark.usefixtures("_on_b2")
def test_a_key_that_may_only_write_to_the_inbox_is_enough_to_drop(
    b2: B2Like, dropbatch: Dropbatch, job_file: Callable[..., Path], tmp_path: Path
) -> None:
    """It can't learn what the store made of the drop, and that is no failure: a second try runs it twice."""
    (folder := tmp_path / "zoe").mkdir()
    (folder / "1.png").write_bytes(b"x")
    written: list[str] = []

    def writes(request: Request) -> Kind | None:
        if request.operation != "PutObject" or not request.key.startswith("team/inbox/"):
            return Kind.DENIED
        written.append(request.key.removeprefix("team/"))
        return None

    b2.decide = writes
    dropped = dropbatch("drop", job_file(), folder)
    assert dropped.code == 0, dropped.err
    assert dropped.out.split() == [written[0], "inbox/datasets/zoe/"]
    names = ["_manifest.json", "1.png", "_READY"]
    assert written[1:] == [f"inbox/datasets/zoe/{name}" for name in names]
