"""An HTTP proxy that makes an S3 server behave as Backblaze B2 does, or fail as told.

What it does on its own (facts: B2): buckets keep versions from their creation,
conditional writes answer 501, and a missing key is answered with 403, as to an application
key without `listBuckets`. What it does when told: fail requests in all the ways that a
network and B2 know, and list new objects late.

    with serve_b2like(moto.url) as b2:
        b2.add(Fault("PutObject", Kind.CUT_AFTER))
        b2.lag_listings(3)
        ...
        assert b2.counts["PutObject"] == 2
"""

from __future__ import annotations

import http.client
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.s3_listing import Entry, without

CLASS_C: Final = frozenset(
    {"ListObjectsV2", "ListObjectVersions", "CopyObject", "UploadPartCopy", "HeadBucket"}
)
"""What B2 bills most (facts: B2, price)."""
_SLOW_S: Final = 1.0
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})
_ENABLE_VERSIONS: Final = (
    b'<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"<Status>Enabled</Status></VersioningConfiguration>"
)


class Kind(StrEnum):
    """How a request goes wrong."""

    SLOW_DOWN = "slow_down"
    """503 before the effect."""
    INTERNAL_ERROR = "internal_error"
    """500 before the effect."""
    INTERNAL_ERROR_AFTER = "internal_error_after"
    """500 though the effect stands."""
    CUT_BEFORE = "cut_before"
    """The connection is closed before the effect."""
    CUT_AFTER = "cut_after"
    """The connection is closed after the effect, without a reply."""
    TRUNCATED = "truncated"
    """Half of the reply's body arrives, then the connection is closed."""
    CAP = "cap"
    """403: a daily cap of the account is reached."""
    DENIED = "denied"
    """403: the application key lacks a capability."""
    SLOW = "slow"
    """The reply comes, but a second late."""


@dataclass
class Fault:
    """What is to go wrong.

    Args:
        operation: S3's name, e.g. "PutObject"; "*" for any.
        key: part of the key that is hit; "" hits all.
        times: how many requests fail; then the fault is spent.
        after: how many matching requests go well first.
    """

    operation: str
    kind: Kind
    key: str = ""
    times: int = 1
    after: int = 0

    def hits(self, request: Request) -> bool:
        """Whether this request fails; counts it."""
        if self.operation not in ("*", request.operation) or self.key not in request.key or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass(frozen=True)
class Request:
    """One request of the S3 API."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    operation: str
    bucket: str
    key: str


@dataclass(frozen=True)
class Reply:
    """One reply of the S3 API."""

    status: int
    headers: dict[str, str]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for each, value in self.headers.items() if each.lower() == name), None)


class B2Like:
    """The proxy's switches and counters. Thread-safe.

    Args:
        upstream: URL of an S3 server that doesn't check signatures, such as moto's.
        decide: asked about each request that no planned fault hits, so that a seeded soak
            can draw its faults; returns how to fail, or None.
    """

    def __init__(self, upstream: str, *, decide: Callable[[Request], Kind | None] | None = None) -> None:
        address = urlsplit(upstream)
        self._upstream = (address.hostname or "", address.port or 80)
        self.missing_is_403 = True
        self.refuse_conditions = True
        self.ignore_conditions = False
        """Instead of refusing them, as some servers do."""
        self.date: str | None = None
        """What every reply is dated with, instead of the truth."""
        self.decide = decide
        self.url = ""
        self.counts: Counter[str] = Counter()
        """Requests by operation, failed ones too."""
        self.struck: list[tuple[str, str, Kind]] = []
        """Operation, key and fault of each request that was made to fail."""
        self._faults: list[Fault] = []
        self._lag = 0
        self._late: dict[Entry, int] = {}
        self._lock = threading.Lock()

    def add(self, *faults: Fault) -> None:
        """Plan faults."""
        with self._lock:
            self._faults += faults

    def lag_listings(self, listings: int) -> None:
        """From now on a new version is missing from so many listings that should have it."""
        with self._lock:
            self._lag = listings

    def catch_up(self) -> None:
        """Listings are complete at once."""
        with self._lock:
            self._lag = 0
            self._late.clear()

    def reset(self) -> None:
        """No faults, no lag, counters at zero, and B2's own ways again."""
        self.catch_up()
        self.missing_is_403 = self.refuse_conditions = True
        self.ignore_conditions = False
        self.date = None
        with self._lock:
            self._faults.clear()
            self.struck.clear()
            self.counts.clear()
            self.decide = None

    def answer(self, request: Request) -> tuple[Reply | None, bool]:
        """The reply, None for a cut connection, and whether it is to be truncated."""
        kind = self._strike(request)
        match kind:
            case Kind.CUT_BEFORE:
                return None, False
            case Kind.SLOW_DOWN:
                return _error(request, 503, "SlowDown", "no tomes available"), False
            case Kind.INTERNAL_ERROR:
                return _error(request, 500, "InternalError", "incident"), False
            case Kind.CAP:
                return _error(request, 403, "AccessDenied", "Transaction cap exceeded"), False
            case Kind.DENIED:
                return _error(request, 403, "AccessDenied", "not entitled"), False
        reply = self._behave(request)
        match kind:
            case Kind.CUT_AFTER:
                return None, False
            case Kind.INTERNAL_ERROR_AFTER:
                return _error(request, 500, "InternalError", "incident"), False
            case Kind.SLOW:
                time.sleep(_SLOW_S)
        return reply, kind is Kind.TRUNCATED

    def _strike(self, request: Request) -> Kind | None:
        with self._lock:
            self.counts[request.operation] += 1
            fault = next((each for each in self._faults if each.hits(request)), None)
            kind = fault.kind if fault else self.decide(request) if self.decide else None
            if kind is not None:
                self.struck.append((request.operation, request.key, kind))
            return kind

    def _behave(self, request: Request) -> Reply:
        conditions = [name for name in request.headers if name.lower() in ("if-none-match", "if-match")]
        writes = request.operation in ("PutObject", "CompleteMultipartUpload")
        if writes and conditions and self.ignore_conditions:
            headers = {name: value for name, value in request.headers.items() if name not in conditions}
            request = replace(request, headers=headers)
        elif writes and conditions and self.refuse_conditions:
            what = "A header you provided implies functionality that is not implemented"
            return _error(request, 501, "NotImplemented", what)
        reply = self._forward(request)
        if request.operation == "CreateBucket" and reply.status == 200:
            self._forward(
                Request("PUT", f"/{request.bucket}?versioning", {}, _ENABLE_VERSIONS, "", request.bucket, "")
            )
        if request.operation in ("PutObject", "CopyObject", "CompleteMultipartUpload"):
            self._note_new(request, reply)
        if request.operation in ("ListObjectsV2", "ListObjectVersions") and reply.status == 200:
            return self._lagging(request, reply)
        if self.missing_is_403 and reply.status == 404 and request.key and b"NoSuchBucket" not in reply.body:
            return _error(request, 403, "AccessDenied", "not entitled")
        return reply

    def _note_new(self, request: Request, reply: Reply) -> None:
        version = reply.header("x-amz-version-id")
        with self._lock:
            if self._lag and reply.status == 200 and version:
                self._late[Entry(request.key, version)] = self._lag

    def _lagging(self, request: Request, reply: Reply) -> Reply:
        with self._lock:
            if not self._late:
                return reply
            body, left_out = without(reply.body, set(self._late))
            for entry in left_out:
                self._late[entry] -= 1
                if self._late[entry] <= 0:
                    del self._late[entry]
        return Reply(reply.status, reply.headers, body)

    def _forward(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection(*self._upstream, timeout=30)
        try:
            connection.request(request.method, request.target, request.body, request.headers)
            response = connection.getresponse()
            headers = dict(response.getheaders())
            if self.date:
                headers["Date"] = self.date
            return Reply(response.status, headers, response.read())
        finally:
            connection.close()


@contextmanager
def serve_b2like(upstream: str) -> Iterator[B2Like]:
    """A running proxy on a free loopback port."""
    b2 = B2Like(upstream)

    class Handler(_Handler):
        proxy = b2

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    b2.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield b2
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or gave up waiting, is what some tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    proxy: B2Like
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        """Pass one request on, and what is to come of it back."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        reply, truncated = self.proxy.answer(_parse(self.command, self.path, headers, body))
        if reply is None:
            self.close_connection = True
            return
        self.send_response_only(reply.status)
        # HEAD announces the length of a body that it doesn't send.
        length = reply.header("content-length") if self.command == "HEAD" else str(len(reply.body))
        for name, value in reply.headers.items():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: len(reply.body) // 2] if truncated else reply.body)
        if truncated:
            self.close_connection = True

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """A line per request would bury what a failing test says."""


def _parse(method: str, target: str, headers: dict[str, str], body: bytes) -> Request:
    url = urlsplit(target)
    bucket, _, key = url.path.removeprefix("/").partition("/")
    query = set(parse_qs(url.query, keep_blank_values=True))
    copies = "x-amz-copy-source" in {name.lower() for name in headers}
    operation = _object_operation(method, query, copies=copies) if key else _bucket_operation(method, query)
    return Request(method, target, headers, body, operation, unquote(bucket), unquote(key))


def _object_operation(method: str, query: set[str], *, copies: bool) -> str:
    match method:
        case "PUT" if "partNumber" in query:
            return "UploadPartCopy" if copies else "UploadPart"
        case "PUT":
            return "CopyObject" if copies else "PutObject"
        case "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        case "DELETE":
            return "AbortMultipartUpload" if "uploadId" in query else "DeleteObject"
        case "HEAD":
            return "HeadObject"
        case _:
            return "GetObject"


def _bucket_operation(method: str, query: set[str]) -> str:
    match method:
        case "GET" if "versions" in query:
            return "ListObjectVersions"
        case "GET" if "versioning" in query:
            return "GetBucketVersioning"
        case "GET":
            return "ListObjectsV2" if "list-type" in query else "ListBuckets"
        case "PUT":
            return "PutBucketVersioning" if "versioning" in query else "CreateBucket"
        case "POST":
            return "DeleteObjects"
        case "DELETE":
            return "DeleteBucket"
        case _:
            return "HeadBucket"


def _error(request: Request, status: int, code: str, message: str) -> Reply:
    if request.method == "HEAD":
        return Reply(status, {}, b"")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())
