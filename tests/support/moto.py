"""moto's S3 over HTTP, in this process."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.s3.models import FakeDeleteMarker, FakeKey, S3Backend
from moto.server import ThreadedMotoServer
from werkzeug.serving import make_server


def _list_object_versions(  # noqa: PLR0917 - as moto calls it
    self: S3Backend,
    bucket_name: str,
    delimiter: str | None = None,
    key_marker: str | None = None,
    max_keys: int | None = 1000,
    prefix: str = "",
    version_id_marker: str | None = None,
) -> tuple[list[FakeKey], list[str], list[FakeDeleteMarker], str | None, str | None]:
    """As S3 answers. moto's own (5.2.5) loses the first key after a marker that is no key,
    and what follows a version that was deleted between two pages; and it copies the
    contents of the whole bucket for every page."""
    assert delimiter is None
    bucket = self.get_bucket(bucket_name)
    page: list[Any] = []
    for name in sorted(bucket.keys.keys()):
        if not name.startswith(prefix) or name < (key_marker or ""):
            continue
        versions = list(reversed(bucket.keys.getlist(name)))
        start = 0
        if name == key_marker:
            ids = [version.version_id for version in versions]
            start = ids.index(version_id_marker) + 1 if version_id_marker in ids else len(ids)
        for number, version in enumerate(versions[start:], start):
            if len(page) == max_keys:
                return *_by_kind(page), page[-1].name, page[-1].version_id
            entry = copy.copy(version)
            entry.is_latest = number == 0
            page.append(entry)
    return *_by_kind(page), None, None


def _by_kind(page: list[Any]) -> tuple[list[FakeKey], list[str], list[FakeDeleteMarker]]:
    return (
        [each for each in page if isinstance(each, FakeKey)],
        [],
        [each for each in page if isinstance(each, FakeDeleteMarker)],
    )


class _Quiet(MotoRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """A line per request would bury what a failing test says."""


class SerialMotoServer(ThreadedMotoServer):
    """moto's threaded server, but for a lock around each request.

    moto looks whether a key stands and writes it in two steps. What it imitates does both
    in one, and the races of five workers are here to tell a store that doesn't.
    """

    def __init__(self) -> None:
        super().__init__(ip_address="127.0.0.1", port=0, verbose=False)
        S3Backend.list_object_versions = _list_object_versions  # type: ignore[method-assign]

    @property
    def url(self) -> str:
        host, port = self.get_host_and_port()
        return f"http://{host}:{port}"

    def _server_entry(self) -> None:
        app = DomainDispatcherApplication(create_backend_app)
        one_at_a_time = threading.Lock()

        def serial(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with one_at_a_time:
                return app(environ, start_response)  # type: ignore[no-any-return]

        self._server = make_server(
            self._ip_address, self._port, serial, threaded=True, request_handler=_Quiet
        )
        self._server_ready_event.set()
        self._server.serve_forever(poll_interval=0.05)


@contextmanager
def serve_moto() -> Iterator[SerialMotoServer]:
    """A running server on a free loopback port; its buckets end with the process."""
    server = SerialMotoServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
