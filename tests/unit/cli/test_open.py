"""`open`: the bucket's pages on loopback, to this machine alone, and nothing that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from processor.cli.serving import application
from processor.store.directory import DirectoryStore
from tests.unit.cli.conftest import Dropbatch

JobFile = Callable[..., Path]
Get = Callable[..., tuple[int, dict[str, str], bytes]]


@pytest.fixture
def job(dropbatch: Dropbatch, bucket: Path, job_file: JobFile) -> str:
    """A finished job with one picture."""
    job = dropbatch("drop", job_file("postcard.json", seeds=[7])).out.strip()
    dropbatch("run", "--once")
    return job


@pytest.fixture
def get(bucket: Path) -> Get:
    """Asks the pages of the bucket for a path; returns status, headers and body."""

    def ask(path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
        async def talk() -> tuple[int, dict[str, str], bytes]:
            async with TestClient(TestServer(application(DirectoryStore(bucket)))) as client:
                reply = await client.request(method, path, headers=headers, allow_redirects=False)
                return reply.status, dict(reply.headers), await reply.read()

        return asyncio.run(talk())

    return ask


def picture(bucket: Path, job: str) -> tuple[str, bytes]:
    [path] = (bucket / "comfy_outputs" / job).rglob("picture.png")
    return "/" + path.relative_to(bucket).as_posix(), path.read_bytes()


def test_the_page_of_jobs_leads_to_the_gallery(get: Get, bucket: Path, job: str) -> None:
    """And the gallery to the pictures."""
    status, headers, page = get("/")
    assert status == 200
    assert f'href="./comfy_outputs/{job}/"' in page.decode()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert get(f"/comfy_outputs/{job}")[0] == 301
    status, _, gallery = get(f"/comfy_outputs/{job}/")
    assert status == 200
    path, data = picture(bucket, job)
    assert path.removeprefix(f"/comfy_outputs/{job}/") in gallery.decode()
    assert get(path)[2] == data
    assert get(f"/comfy_outputs/{job}/manifest.json")[0] == 200


def test_ranges_so_that_videos_can_be_sought(get: Get, bucket: Path, job: str) -> None:
    """Beginning, middle, end, and beyond."""
    path, data = picture(bucket, job)
    for asked, expected in (("0-3", data[:4]), ("10-", data[10:]), ("-5", data[-5:])):
        status, headers, body = get(path, Range=f"bytes={asked}")
        assert (status, body) == (206, expected)
        assert headers["Content-Range"].endswith(f"/{len(data)}")
    assert get(path, Range=f"bytes={len(data)}-")[0] == 416
    assert get(path, method="HEAD")[2] == b""


@pytest.mark.parametrize(
    "path",
    [
        "/state/authority.json",
        "/inbox/jobs/x.json",
        "/comfy_outputs/..%2Fstate/authority.json",
        "/comfy_outputs/%2e%2e/state/authority.json",
        "/comfy_outputs//etc/passwd",
        "/done/2026-01-01/x/picture.png",
        "/comfy_outputs/none-0123456789abcdef/a.png",
    ],
)
def test_nothing_else_is_served(get: Get, job: str, path: str) -> None:
    """Not the state, not the inbox, nothing outside."""
    assert get(path)[0] == 404


def test_only_reading_and_only_for_this_machine(get: Get, job: str) -> None:
    """A page elsewhere that has its name point here (DNS rebinding) gets nothing."""
    assert get("/", method="POST")[0] == 405
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", ""):
        assert get("/", Host=host)[0] == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert get("/", Host=host)[0] == 200


@pytest.mark.parametrize("name", ["x.svg", "x.html", "index.html", "x.js", "x"])
def test_what_a_browser_could_execute_is_a_download(get: Get, bucket: Path, job: str, name: str) -> None:
    """Also a page that someone put among the outputs."""
    folder = bucket / "comfy_outputs" / job / "1-ab"
    folder.mkdir()
    (folder / name).write_text("<script>alert(1)</script>")
    _, headers, _ = get(f"/comfy_outputs/{job}/1-ab/{name}")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_gallery_is_made_here_not_read(get: Get, bucket: Path, job: str) -> None:
    """Whatever stands in the bucket under its name."""
    (bucket / "comfy_outputs" / job / "index.html").write_text("<script>alert(1)</script>")
    assert b"<script>" not in get(f"/comfy_outputs/{job}/")[2]


def test_a_trainings_page_is_shown_and_made_here(get: Get, bucket: Path, job: str) -> None:
    """The gallery leads to it; whatever stands in the bucket under its name."""
    folder = bucket / "comfy_outputs" / job
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["kind"] = "train"
    manifest["plan"]["shared"] = {"dataset": "zoe", "fingerprint": "0" * 16, "trigger": "zoe"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "training.html").write_text("<script>alert(1)</script>")
    assert b'href="training.html"' in get(f"/comfy_outputs/{job}/")[2]
    status, headers, page = get(f"/comfy_outputs/{job}/training.html")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"Trigger word" in page
    assert b"<script>" not in page


def test_a_job_under_way_and_a_report(get: Get, bucket: Path) -> None:
    """The first is said, the second shown."""
    assert get("/comfy_outputs/none-0123456789abcdef/")[0] == 502
    report = bucket / "failed/2026-11-23/x-0123456789abcdef"
    report.mkdir(parents=True)
    (report / "error.json").write_text("{}")
    status, headers, _ = get("/failed/2026-11-23/x-0123456789abcdef/error.json")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
