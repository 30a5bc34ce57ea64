"""Galleries of hostile outputs and texts: escaped, and no script runs in a real browser."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from markupsafe import escape

from processor.cli.serving import application
from processor.errors import ErrorKind
from processor.gallery import render_gallery
from processor.layout import OUTPUTS, gallery_key, manifest_key, settled_prefix
from processor.records import DropRef, ErrorReport, Manifest, Outcome, OutputFile, TaskResult, dump
from processor.store.memory import MemoryStore

JOB = "hostile-0123456789abcdef"
PREFIX = f"{OUTPUTS}{JOB}/1-aa/00000-bb/"
# What runs changes the title, which a browser tells even where it may call nobody.
SCRIPT = "document.title='PWNED'"
ATTACKS = [
    f"<script>{SCRIPT}</script>",
    f"</style><script>{SCRIPT}</script>",
    f'"><img src=x onerror="{SCRIPT}">',
    f'\'><svg/onload="{SCRIPT}">',
    f"javascript:{SCRIPT}",
    f"{{{{7*7}}}}<iframe srcdoc='<script>parent.{SCRIPT}</script>'>",
    "<base href='https://evil.example/'>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "\u202e<b>x</b>",
]
FILES = {
    "a.svg": (f'<svg xmlns="http://www.w3.org/2000/svg" onload="{SCRIPT}"/>', "image/svg+xml"),
    "b.html": (f"<script>{SCRIPT}</script>", "text/html"),
    "c.png": (f"<script>{SCRIPT}</script>", "image/png"),
    "d.xhtml": (f'<html xmlns="http://www.w3.org/1999/xhtml"><script>{SCRIPT}</script></html>', "image/png"),
    "e.json": (f"<script>{SCRIPT}</script>", "application/json"),
    "f.js": (SCRIPT, "text/javascript"),
    'g"><script>x.png': ("x", "image/png"),
}  # fmt: skip


def manifest() -> Manifest:
    """A job whose every text and file is an attack."""
    now = datetime.now(UTC)
    files = [
        OutputFile(key=PREFIX + name, name=name, size_bytes=len(text), sha256="0" * 64, media_type=kind)
        for name, (text, kind) in FILES.items()
    ]
    error = ErrorReport(
        kind=ErrorKind.NODE_FAILED, what=ATTACKS[0], where=ATTACKS[1], mend=ATTACKS[2], details=ATTACKS
    )
    results = [
        TaskResult(
            index=index,
            hash="h",
            status="failed" if index == 1 else "done",
            files=files if index == 0 else [],
            params={text: text for text in ATTACKS},
            error=error if index == 1 else None,
            attempt="1-aa",
            execution="bb",
            started_at=now,
            seconds=1.0,
            data={"text": ATTACKS},
            reused_from=ATTACKS[0],
        )
        for index in (0, 1)
    ]
    return Manifest(
        schema_version=1,
        job_id=JOB,
        kind="render",
        outcome=Outcome.PARTIAL,
        drop=DropRef(key=f"inbox/{ATTACKS[2]}.json", version="1"),
        job={"name": ATTACKS[0]},
        tasks=results,
        error=error,
        attempt="1-aa",
        started_at=now,
        finished_at=now,
    )


def test_texts_are_escaped() -> None:
    """Nothing of an attack is markup: neither a tag nor an attribute is its own."""
    page = render_gallery(manifest())
    for attack in ATTACKS:
        if "<" in attack:
            assert attack not in page
    assert escape(ATTACKS[0]) in page
    for tag in ("<script", "<iframe", "<base", "<svg/", "onerror=&#34;" + SCRIPT + "<"):
        assert tag not in page
    assert "default-src &#39;none&#39;" in page
    assert "script-src" not in page


@pytest.fixture(name="url")
def _url() -> Iterator[str]:
    """The bucket's pages as `dropbatch open` serves them."""
    from aiohttp import web

    store = MemoryStore()
    for name, (text, kind) in FILES.items():
        store.put(PREFIX + name, text.encode(), media_type=kind)
    store.put(manifest_key(JOB), dump(manifest()))
    store.put(settled_prefix(Outcome.PARTIAL, datetime.now(UTC), JOB) + "a.json", b"{}")
    store.put(gallery_key(JOB), render_gallery(manifest()).encode(), media_type="text/html")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = web.AppRunner(application(store), access_log=None)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        return port

    port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"http://127.0.0.1:{port}/"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.mark.parametrize("name", ["a.svg", "b.html", "d.xhtml", "f.js"])
def test_what_could_run_is_a_download(url: str, name: str) -> None:
    """Whatever media type its maker claimed."""
    with urllib.request.urlopen(f"{url}{PREFIX}{name}", timeout=30) as reply:
        headers = reply.headers
    assert headers["Content-Disposition"].startswith("attachment")
    assert headers["Content-Type"] == "application/octet-stream"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def _browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium here: whether a script runs is shown by a real browser only")
    return found


def _dom(browser: str, url: str, home: Path) -> str:
    """What a page has become after it was loaded."""
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={home}", "--virtual-time-budget=3000", "--dump-dom"),
    ]
    env = {"PATH": os.environ["PATH"], "HOME": str(home)}
    run = subprocess.run(
        [browser, *flags, url], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    return run.stdout


def test_no_script_runs_in_a_browser(url: str, tmp_path: Path) -> None:
    """The gallery, served and from a disk, and each output that a browser shows, by itself."""
    browser = _browser()
    control = tmp_path / "control.html"
    control.write_text(f"<title>quiet</title><script>{SCRIPT}</script>")
    assert "<title>PWNED" in _dom(browser, control.as_uri(), tmp_path / "profile"), "the test can't tell"
    page = tmp_path / "index.html"
    page.write_text(render_gallery(manifest()), "utf-8")
    pages = [f"{url}{OUTPUTS}{JOB}/", url, page.as_uri()]
    outputs = [f"{url}{PREFIX}{name}" for name in ("c.png", "e.json")]
    for number, address in enumerate((*pages, *outputs)):
        dom = _dom(browser, address, tmp_path / "profile")
        assert "<title>PWNED" not in dom, address
        assert number >= len(pages) or "hostile" in dom, address
