"""The quick client: what it does, what it leaves to boto3, and that nobody sees a difference."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from processor.errors import AccessDenied, NotFound
from processor.store import Capabilities, read_bytes
from processor.store.s3 import S3Store
from processor.store.s3_quick import QuickClient
from tests.support.b2like import B2Like, Fault, Kind
from tests.support.fixtures import KEY_ID, SECRET, make_bucket
from tests.support.moto import SerialMotoServer

B2_CAPABILITIES = Capabilities(versions=True, put_if_absent=False, missing_is_403=True)
PLAIN = replace(B2_CAPABILITIES, versions=False)
BIG = bytes(range(256)) * 40_000
"""Ten megabytes: more than one piece."""
OPERATIONS = ("GetObject", "HeadObject", "PutObject", "DeleteObjects")
LATE = (Kind.SLOW, Kind.TRUNCATED)
"""These are answered, after all, as far as a reply has no body."""


@pytest.fixture
def store(b2: B2Like) -> Iterator[S3Store]:
    store = make_bucket(b2.url, capabilities=B2_CAPABILITIES, max_attempts=2)
    yield store
    store.close()


def test_after_a_failure_boto3_does_it_all(store: S3Store, b2: B2Like) -> None:
    """The same request is made again by boto3, and no request twice for a while."""
    b2.add(Fault("PutObject", Kind.INTERNAL_ERROR))
    first = store.put("a", b"x")
    assert b2.counts["PutObject"] == 2
    second = store.put("a", b"y")
    assert b2.counts["PutObject"] == 3
    assert first.version != second.version
    assert read_bytes(store, "a", limit_bytes=9) == b"y"


def test_a_version_is_read_by_its_name(store: S3Store) -> None:
    """Put, read and described with the version that the server named."""
    versions = [store.put("v", data).version for data in (b"old", b"newer")]
    assert [read_bytes(store, "v", version=each, limit_bytes=9) for each in versions] == [b"old", b"newer"]
    assert [store.stat("v", version=each).size_bytes for each in versions] == [3, 5]


def test_a_download_that_breaks_off_goes_on(store: S3Store, b2: B2Like) -> None:
    """By boto3, from where it was."""
    store.put("big", BIG)
    b2.add(Fault("GetObject", Kind.TRUNCATED))
    assert read_bytes(store, "big", limit_bytes=len(BIG)) == BIG
    assert b2.counts["GetObject"] == 2


@pytest.mark.parametrize("versions", [True, False])
def test_a_wrong_bucket_is_no_absent_object(b2: B2Like, versions: bool) -> None:
    """A missing bucket answers 404 as well; boto3 hears which it is, where a reply has a body."""
    wrong = S3Store(
        "no-such-bucket",
        endpoint_url=b2.url,
        key_id=KEY_ID,
        secret=SECRET,
        capabilities=Capabilities(versions=versions, put_if_absent=False),
    )
    for asked in (lambda: wrong.get("a"), lambda: wrong.put("a", b"x")):
        with pytest.raises(AccessDenied, match="no such bucket"):
            asked()
    wrong.close()


@pytest.mark.parametrize("kind", Kind)
def test_whatever_fails_is_left_to_boto3(store: S3Store, b2: B2Like, kind: Kind) -> None:
    """None of the client's own exceptions comes out, nor those of Python's that it raises."""
    store.put("k", b"there")
    quick = store._quick
    assert quick is not None
    b2.add(*(Fault(operation, kind, times=-1) for operation in OPERATIONS))
    got = quick.get("k", None)
    if got is not None:
        with suppress(OSError):  # the one kind that a reader of a body expects
            got["Body"].read(9)
    assert quick.get("k", None, head=True) is None or kind in LATE
    assert quick.put("k", b"x", media_type="text/plain") is None or kind in LATE
    assert quick.delete("k") is False or kind in LATE


def test_a_missing_object_is_absent_at_once(moto: SerialMotoServer) -> None:
    """Where the server says so by 404, boto3 is not asked; nothing rests."""
    store = make_bucket(moto.url)
    with pytest.raises(NotFound):
        store.get("missing")
    with pytest.raises(NotFound):
        store.stat("missing")
    assert store._quick is not None
    with pytest.raises(FileNotFoundError):
        store._quick.get("missing", None)
    store.close()


@pytest.fixture
def plain(b2: B2Like) -> Iterator[S3Store]:
    """A bucket without versions behind the proxy."""
    store = make_bucket(b2.url, capabilities=PLAIN)
    yield store
    store.close()


def test_a_small_copy_without_versions_is_of_what_was_compared(plain: S3Store, b2: B2Like) -> None:
    """Read and written, with its media type; another version is refused before anything is."""
    plain.put("drop", b"{}", media_type="application/json")
    version = plain.stat("drop").version
    b2.counts.clear()
    assert plain.copy("drop", "done", version=version).size_bytes == 2
    assert b2.counts == {"GetObject": 1, "PutObject": 1}
    assert plain._client.head_object(Bucket=plain._bucket, Key="done")["ContentType"] == "application/json"
    with pytest.raises(NotFound):
        plain.copy("drop", "again", version="another@1")
    assert not [info for page in plain.list("again") for info in page.objects]


def test_a_large_copy_without_versions_stays_in_the_store(plain: S3Store, b2: B2Like) -> None:
    """Nothing of it is uploaded from here."""
    plain.put("video", BIG)
    b2.counts.clear()
    assert plain.copy("video", "copy", version=plain.stat("video").version).size_bytes == len(BIG)
    assert b2.counts == {"HeadObject": 1, "GetObject": 1, "CopyObject": 1}


def test_a_delete_that_the_server_does_not_know_is_made_by_boto3(plain: S3Store, b2: B2Like) -> None:
    """And is not tried again at once; reads and puts go on."""
    b2.add(Fault("DeleteObjects", Kind.INTERNAL_ERROR))
    for key in ("a", "b"):
        plain.put(key, b"x")
        plain.delete(key, version=plain.stat(key).version)
        with pytest.raises(NotFound):
            plain.stat(key)
    assert (b2.counts["DeleteObjects"], b2.counts["DeleteObject"]) == (1, 2)
    assert b2.counts["PutObject"] == 2


def test_no_session_token_of_somebody_else_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may hold temporary credentials for another account."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "somebody-else's")
    seen: list[dict[str, str]] = []

    class Recorder(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(dict(self.headers))
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        quick = QuickClient(
            "bucket",
            endpoint_url=f"http://127.0.0.1:{server.server_port}",
            region="us-east-1",
            key_id=KEY_ID,
            secret=SECRET,
            read_timeout_s=5.0,
        )
        assert quick.put("k", b"x", media_type="text/plain") == {}
        server.shutdown()
    (headers,) = seen
    assert "x-amz-security-token" not in headers
    assert headers["content-type"] == "text/plain"
    assert headers["user-agent"].startswith("dropbatch/")
    assert SECRET not in repr(headers)
