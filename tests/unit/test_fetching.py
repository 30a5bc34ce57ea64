"""Downloads of users' URLs: what is refused, what is bounded, what is never shown."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handlers.fetching import Limits, credentials_of, fetch, is_public, redact_url
from processor.errors import ErrorKind, TaskFailed

LIMITS = Limits(max_bytes=1000, connect_timeout_s=2, read_timeout_s=2, total_timeout_s=5)
PICTURE = b"\x89PNG" + b"x" * 500


class Site(BaseHTTPRequestHandler):
    """A web server whose paths are cases."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        type(self).seen.append((self.path, self.headers["Host"]))
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["redirect", count] if int(count) > 0:
                self.reply(302, b"", Location=f"/redirect/{int(count) - 1}")
            case ["to-metadata"]:
                self.reply(302, b"", Location="http://169.254.169.254/latest/meta-data")
            case ["to-file"]:
                self.reply(302, b"", Location="file:///etc/passwd")
            case ["html"]:
                self.reply(200, b"<html>", **{"Content-Type": "text/html; charset=utf-8"})
            case ["large"]:
                self.reply(200, b"x" * 1001)
            case ["large-unsaid"]:
                self.send_response(200)
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(b"x" * 5000)
                self.close_connection = True
            case ["short"]:
                self.send_response(200)
                self.send_header("Content-Length", "600")
                self.end_headers()
                self.wfile.write(b"x" * 100)
                self.close_connection = True
            case ["gone"]:
                self.reply(404, b"")
            case ["broken"]:
                self.reply(503, b"")
            case _:
                self.reply(200, PICTURE, **{"Content-Type": "image/png"})

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: object = "-", size: object = "-") -> None:
        """Quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    Site.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def get(
    url: str, target: Path, addresses: tuple[str, ...] = ("127.0.0.1",), limits: Limits = LIMITS
) -> object:
    """Fetch, with loopback taken for public."""
    return fetch(
        url,
        target,
        limits=limits,
        vet=lambda address: address.is_loopback or is_public(address),
        resolver=lambda host, _port: [host] if host[0].isdigit() else list(addresses),
    )


def fails(url: str, target: Path, **options: object) -> TaskFailed:
    with pytest.raises(TaskFailed) as caught:
        get(url, target, **options)  # type: ignore[arg-type]
    assert not target.exists()
    return caught.value


def test_download_is_hashed(port: int, tmp_path: Path) -> None:
    target = tmp_path / "f"
    got = get(f"http://pictures.example:{port}/cat.png?size=1", target)
    assert target.read_bytes() == PICTURE
    assert got.sha256 == hashlib.sha256(PICTURE).hexdigest()  # type: ignore[attr-defined]
    assert Site.seen == [("/cat.png?size=1", f"pictures.example:{port}")]


def test_three_redirects_and_no_more(port: int, tmp_path: Path) -> None:
    get(f"http://a.example:{port}/redirect/3", tmp_path / "f")
    assert fails(f"http://a.example:{port}/redirect/4", tmp_path / "g").kind is ErrorKind.BAD_INPUT


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("to-metadata", ErrorKind.REFUSED),
        ("to-file", ErrorKind.REFUSED),
        ("html", ErrorKind.BAD_INPUT),
        ("large", ErrorKind.BAD_INPUT),
        ("large-unsaid", ErrorKind.BAD_INPUT),
        ("gone", ErrorKind.BAD_INPUT),
        ("broken", ErrorKind.UNAVAILABLE),
        ("short", ErrorKind.UNAVAILABLE),
    ],
)
def test_refused(port: int, tmp_path: Path, path: str, kind: ErrorKind) -> None:
    """The kind decides about another try; nothing is left behind; no credentials are shown."""
    error = fails(f"http://user:hunter22@a.example:{port}/{path}?sig=topsecret", tmp_path / "f")
    assert error.kind is kind
    assert "hunter22" not in str(error)
    assert "topsecret" not in str(error)


def test_credentials_are_decoded() -> None:
    """A URL can hold an `@` or a `/` of a password only as `%40` or `%2F`."""
    header = credentials_of(urlsplit("http://me:p%40ss%2F%C3%BC@host/x"))["authorization"]
    assert base64.b64decode(header.removeprefix("Basic ")).decode() == "me:p@ss/ü"
    assert credentials_of(urlsplit("http://host/x")) == {}


def test_one_private_address_among_many(tmp_path: Path) -> None:
    """A host with a public and a private address is refused, not tried."""
    error = fails("http://mixed.example/x", tmp_path / "f", addresses=("93.184.216.34", "10.0.0.1"))
    assert error.kind is ErrorKind.REFUSED


def test_nobody_there(tmp_path: Path) -> None:
    assert fails("http://a.example:1/x", tmp_path / "f").kind is ErrorKind.UNAVAILABLE


@pytest.mark.parametrize(
    "url", ["http://", "http://[::1", "http://a b/", "http://a.example:99999/", "http://a\x00b/"]
)
def test_no_url(tmp_path: Path, url: str) -> None:
    assert fails(url, tmp_path / "f").kind is ErrorKind.BAD_INPUT


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1"),
        *("::ffff:169.254.169.254", "2002:7f00:1::", "64:ff9b::a9fe:a9fe", "fd00:ec2::254"),
    ],
)
def test_private_addresses(address: str) -> None:
    """None of these, in any disguise."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address: str) -> None:
    assert is_public(ip_address(address))


@given(st.text(max_size=40))
def test_redaction_takes_anything(text: str) -> None:
    assert "@" not in redact_url(f"https://user:pw@h/{text}").partition("/h")[0]
    redact_url(text)
