"""Drops whose names or origins mean harm: each is settled, none stays, none goes elsewhere."""

from __future__ import annotations

import json
from typing import Any

import pytest

from handlers.ingest import IngestHandler
from processor.layout import EMITTED, emitted_job_id
from processor.run import run
from processor.settle import kept_name
from processor.testing.machine import Bench

JUNK = b'{"neither": "a job"}'
_MAX_KEY_BYTES = 1024


def finish(bench: Bench) -> list[dict[str, Any]]:
    machine = bench.machine()
    run(machine, once=True)
    machine.close()
    return bench.manifests()


def _of_length(size_bytes: int, letter: str = "x") -> str:
    room = size_bytes - len("inbox/.json")
    return f"inbox/{letter * (room // len(letter.encode()))}.json"


@pytest.mark.parametrize(
    "key",
    [
        _of_length(_MAX_KEY_BYTES),
        _of_length(_MAX_KEY_BYTES, "猫"),
        _of_length(720),
        "inbox/jobs/" + "d/" * 500 + "a.json",
        "inbox/jobs/ .json",
        "inbox/jobs/-rf *; echo.json",
        "inbox/jobs/$(reboot)`id`.json",
        "inbox/jobs/<script>alert(1)<!--.json",
        "inbox/jobs/a\u202egnp.json",
        "inbox/jobs/…/...json",
        "inbox/jobs/%2e%2e%2f%2e%2e.json",
        "inbox/jobs/CON.json",
        "inbox/jobs/a\\..\\..\\b.json",
    ],
)
def test_any_name_that_a_store_takes_is_settled(bench: Bench, key: str) -> None:
    """With one manifest, in one folder, and nothing but ASCII in the job's id."""
    bench.drop(JUNK, key)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "invalid"
    assert manifest["drop"]["key"] == key
    assert manifest["job_id"].isascii()
    assert bench.keys("inbox/") == []
    settled = bench.keys("failed/")
    assert len(settled) == 2
    assert all(f"/{manifest['job_id']}/" in name for name in settled)


def test_a_shortened_name_keeps_its_end_and_its_difference() -> None:
    long = "y" * 1000 + ".json"
    assert kept_name(long).endswith("y.json")
    assert kept_name(long) != kept_name("z" + long[1:])
    assert kept_name("a.json") == "a.json"


@pytest.mark.parametrize("name", ["error.json", "ERROR.json", "receipt.json", "drop-error.json"])
def test_a_drop_with_the_name_of_a_report_is_kept_beside_it(bench: Bench, name: str) -> None:
    """On a folder that folds case as in a bucket."""
    bench.drop(JUNK, f"inbox/jobs/{name}")
    finish(bench)
    kept = {key.rpartition("/")[2]: key for key in bench.keys("failed/")}
    assert set(kept) == {"error.json", f"drop-{name}"}
    assert bench.read(kept["error.json"])["outcome"] == "invalid"


def _emitted(**job: Any) -> tuple[str, bytes]:
    """A job as the machine drops them: anyone who can write to the inbox can make one."""
    parent, name = job.get("inventory", "parent"), "forged"
    origin = {"parent": parent, "name": name}
    return f"{EMITTED}{emitted_job_id(parent, name)}.json", json.dumps({"origin": origin, **job}).encode()


@pytest.mark.parametrize(
    "inventory",
    [
        "inbox/mine.json",
        "state/authority.json",
        "state/inventories/../../inbox/mine.json",
        f"state/inventories/{'0' * 64}.json",
    ],
)
def test_a_forged_ingest_moves_and_deletes_nothing(bench: Bench, inventory: str) -> None:
    """It names an inventory of its own making, or none: it fails, and everything else stays."""
    bench.handler = IngestHandler()
    kept = {"inbox/datasets/other/a.png": b"a", "comfy_outputs/other/x.png": b"x"}
    for key, data in kept.items():
        bench.main.put(key, data)
    frozen = {"name": "a.png", "size_bytes": 1, "version": "", "modified": "2026-01-01T00:00:00Z"}
    bench.main.put("inbox/mine.json.txt", json.dumps({"dataset": "other", "files": [frozen]}).encode())
    key, data = _emitted(kind="ingest", dataset="other", inventory=inventory)
    bench.main.put(key, data)
    (manifest,) = finish(bench)
    assert manifest["outcome"] == "invalid"
    assert key not in bench.all_keys
    assert kept.keys() <= bench.all_keys


def test_an_origin_can_not_be_claimed(bench: Bench) -> None:
    """Neither by a drop elsewhere, nor under another job's id."""
    origin = {"parent": "p", "name": "n"}
    bench.drop({"workflow": "x", "origin": origin})
    bench.drop({"workflow": "x", "origin": origin}, f"{EMITTED}other-{'0' * 16}.json")
    said = [manifest["error"]["what"] for manifest in finish(bench)]
    assert len(said) == 2
    assert all("origin" in what for what in said)
