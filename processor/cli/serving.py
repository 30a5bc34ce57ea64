"""A bucket's pages on loopback: results and reports, nothing else, to this machine alone.

What lies in a bucket comes from users and engines. So: only GET, only below
`comfy_outputs/` and the reports of settled drops; a Host header that is not loopback is
refused (DNS rebinding); only pages that are made here are served as HTML, and no page may run
scripts; what a browser could execute is a download.
"""

from __future__ import annotations

import asyncio
import mimetypes
import re
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import PurePosixPath
from typing import BinaryIO, Final
from urllib.parse import quote

from aiohttp import web

from processor.cli.jobs import read_manifest, recent
from processor.errors import AccessDenied, DropbatchError, InvalidKey, NotFound, StoreError
from processor.gallery import SHOWN, job_entry, render_gallery, render_index
from processor.layout import DONE, FAILED, NIGHTS, OUTPUTS, is_job_id, night_report_key, training_page_key
from processor.night_page import render_night
from processor.nightly import NightReport
from processor.records import Manifest
from processor.redact import redact
from processor.store import Store, check_key, read_bytes
from processor.training_page import render_training

_CHUNK_BYTES: Final = 256 * 1024
_POLICY: Final = (
    "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TEXTS: Final = {
    ".json": "application/json",
    ".log": "text/plain",
    ".txt": "text/plain",
    ".csv": "text/plain",
}
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_NIGHT: Final = re.compile(NIGHTS + r"(?P<day>\d{4}-\d\d-\d\d)/(index\.html)?")
_MAX_REPORT_BYTES: Final = 64 * 1024 * 1024
_SHOWN_JOBS: Final = 60
_DAYS: Final = 30

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def serve(store: Store, *, port: int, ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; `ready` is told the port once it listens."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(application(store), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        ready(runner.addresses[0][1])
        await stop.wait()
    finally:
        await runner.cleanup()


def application(store: Store) -> web.Application:
    """The pages of a bucket as an application; GET and HEAD only."""
    pages = _Pages(store)
    app = web.Application(middlewares=[_careful])
    app.router.add_get("/", pages.index)
    app.router.add_get("/" + OUTPUTS + "{path:.+}", pages.output)
    app.router.add_get("/{top:done|failed}/{path:.+}", pages.report)
    return app


@web.middleware
async def _careful(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse strangers' hosts, and answer errors in words."""
    if not _is_loopback(request.host):
        return web.Response(status=421, text="This server answers on loopback only.\n")
    try:
        return await handler(request)
    except (NotFound, InvalidKey):
        return web.Response(status=404, text="There is nothing here.\n", headers=_HEADERS)
    except DropbatchError as error:
        status = 403 if isinstance(error, AccessDenied) else 502
        return web.Response(status=status, text=redact(f"{error}\n"), headers=_HEADERS)


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name in ("127.0.0.1", "localhost", "[::1]")


class _Pages:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def index(self, _request: web.Request) -> web.StreamResponse:
        return _html(await asyncio.to_thread(self._index))

    def _index(self) -> str:
        manifests = recent(self._store, limit=_SHOWN_JOBS, now=datetime.now(UTC), days=_DAYS)
        entries = [job_entry(manifest, root="./" + OUTPUTS) for manifest in manifests]
        return render_index(entries, title="Jobs", place=self._store.url)

    async def output(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        job, _, rest = path.partition("/")
        if night := _NIGHT.fullmatch(OUTPUTS + path):
            return _html(await asyncio.to_thread(self._night, night["day"]))
        if is_job_id(job) and path.count("/") == 0:
            raise web.HTTPMovedPermanently(f"/{OUTPUTS}{quote(job)}/")
        if is_job_id(job) and rest in ("", "index.html"):
            return _html(await asyncio.to_thread(self._gallery, job))
        if is_job_id(job) and OUTPUTS + path == training_page_key(job):
            return _html(await asyncio.to_thread(self._training, job))
        return await self._file(request, OUTPUTS + path)

    async def report(self, request: web.Request) -> web.StreamResponse:
        key = f"{request.match_info['top']}/{request.match_info['path']}"
        if not key.startswith((DONE, FAILED)) or not key.endswith(".json"):
            raise NotFound("not a report", where=key)
        return await self._file(request, key)

    def _gallery(self, job: str) -> str:
        """Made from the manifest, not read: whatever page lies there, this one is ours."""
        return render_gallery(self._manifest(job))

    def _training(self, job: str) -> str:
        """As `_gallery`."""
        page = render_training(self._manifest(job))
        if page is None:
            raise NotFound("no training", where=job)
        return page

    def _manifest(self, job: str) -> Manifest:
        manifest = read_manifest(self._store, job)
        if manifest is None:
            raise StoreError("this job has not finished yet", where=job)
        return manifest

    def _night(self, day: str) -> str:
        """As `_gallery`: from the report's data, whatever page lies beside it."""
        try:
            key = night_report_key(date.fromisoformat(day))
        except ValueError:
            raise NotFound("there is no such day", where=day) from None
        data = read_bytes(self._store, key, limit_bytes=_MAX_REPORT_BYTES)
        return render_night(NightReport.model_validate_json(data))

    async def _file(self, request: web.Request, key: str) -> web.StreamResponse:
        download = await asyncio.to_thread(self._store.get, check_key(key))
        size_bytes = download.info.size_bytes
        response = web.StreamResponse(headers={**_HEADERS, **_described(key), "Accept-Ranges": "bytes"})
        with suppress(ConnectionResetError), download:
            try:
                wanted = request.http_range
            except ValueError:
                wanted = slice(None)
            start, stop, _ = wanted.indices(size_bytes)
            if wanted.start is not None and wanted.start >= size_bytes:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size_bytes}"})
            if wanted.start is not None or wanted.stop is not None:
                response.set_status(206)
                response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size_bytes}"
            response.content_length = stop - start
            await response.prepare(request)
            if request.method != "HEAD":
                await _send(response, download.body, start, stop - start)
        return response


async def _send(response: web.StreamResponse, body: BinaryIO, skip: int, count: int) -> None:
    if skip and body.seekable():
        body.seek(skip)
        skip = 0
    while skip:  # a bucket's body only goes forward
        skipped = await asyncio.to_thread(body.read, min(skip, _CHUNK_BYTES))
        if not skipped:
            return
        skip -= len(skipped)
    while count:
        chunk = await asyncio.to_thread(body.read, min(count, _CHUNK_BYTES))
        if not chunk:
            return
        await response.write(chunk)
        count -= len(chunk)


def _html(page: str) -> web.Response:
    return web.Response(text=page, content_type="text/html", headers=_HEADERS)


def _described(key: str) -> dict[str, str]:
    """The type that a name stands for; anything a browser might execute is a download."""
    path = PurePosixPath(key)
    suffix = path.suffix.lower()
    if suffix in SHOWN:
        return {"Content-Type": mimetypes.guess_type(f"x{suffix}")[0] or f"{SHOWN[suffix]}/{suffix[1:]}"}
    if suffix in _TEXTS:
        return {"Content-Type": f"{_TEXTS[suffix]}; charset=utf-8"}
    return {
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(path.name)}",
    }
