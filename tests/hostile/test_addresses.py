"""Input URLs that point into the network this runs in, in every spelling, also by redirect."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.fetching import Limits, fetch, is_public
from processor.errors import ErrorKind, JobInvalid, TaskFailed
from tests.hostile.conftest import Judge

LIMITS = Limits(max_bytes=1000, total_timeout_s=10)
PUBLIC = "93.184.215.14"

PRIVATE = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "192.0.0.1", "198.18.0.1", "224.0.0.1"),
    *("240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a9fe:a9fe", "64:ff9b::a9fe:a9fe"),
    *("2002:a9fe:a9fe::1", "2002:7f00:1::", "64:ff9b:1::1", "::127.0.0.1", "fec0::1"),
]
SPELLED = [
    *(
        "http://127.0.0.1/x",
        "http://127.1/x",
        "http://2130706433/x",
        "http://0x7f000001/x",
        "http://0177.0.0.1/x",
    ),
    *(
        "http://0/x",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://localhost/x",
        "http://LOCALHOST./x",
    ),
    *(
        "http://user:secret-pass@127.0.0.1/x",
        "http://example.com@127.0.0.1/x",
        "http://169.254.169.254/latest",
    ),
    *("http://2852039166/latest", "http://[::ffff:a9fe:a9fe]/latest", "https://127.0.0.1/x"),
    *("http://①②⑦.⓪.⓪.①/x", "http://127。0。0。1/x"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_resolves_into_a_private_network(tmp_path: Path, address: str) -> None:
    """Alone, or hidden behind a public address."""
    for found in ([address], [PUBLIC, address]):
        with pytest.raises(TaskFailed) as caught:
            fetch("http://innocent.example/x.png", tmp_path / "x", limits=LIMITS, resolver=lambda *_: found)  # noqa: B023
        assert caught.value.kind is ErrorKind.REFUSED
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("url", SPELLED)
def test_every_spelling_of_a_private_address(tmp_path: Path, judge: Judge, url: str) -> None:
    """Refused or unreadable, never fetched; and no password in what is said."""
    with pytest.raises(TaskFailed) as caught:
        fetch(url, tmp_path / "x", limits=LIMITS)
    assert caught.value.kind in (ErrorKind.REFUSED, ErrorKind.UNAVAILABLE, ErrorKind.BAD_INPUT)
    assert "answers" not in caught.value.what
    assert "secret-pass" not in str(caught.value)


def test_a_job_is_refused_for_it(judge: Judge) -> None:
    """When it is planned, by the graph's own value and by `inputs` alike."""
    load = {"class_type": "LoadImage", "inputs": {"image": "http://169.254.169.254/latest/x.png"}}
    save = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}
    named = {**load, "inputs": {"image": "a.png"}}
    for job in (
        {"workflow": {"1": load, "2": save}},
        {"workflow": {"1": named, "2": save}, "inputs": {"a.png": "http://[::1]/x.png"}},
    ):
        verdict = judge(json.dumps(job).encode())
        assert isinstance(verdict, JobInvalid)
        assert verdict.kind is ErrorKind.REFUSED


class _Redirects(http.server.BaseHTTPRequestHandler):
    target = ""
    asked: list[str] = []

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        self.send_response(302)
        self.send_header("Location", self.target)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Not needed."""


@pytest.fixture(name="port")
def _port() -> Iterator[int]:
    _Redirects.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Redirects) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(timeout=10)


@pytest.mark.parametrize(
    "target",
    [
        "http://inner.example/x",
        "//inner.example/x",
        "file:///etc/passwd",
        "gopher://inner.example/x",
    ],
)
def test_a_redirect_starts_over(tmp_path: Path, port: int, target: str) -> None:
    """The first host is let through here; whatever it points to is vetted like any other."""
    _Redirects.target = target

    def resolver(host: str, _port: int) -> list[str]:
        return ["127.0.0.1"] if host == "outer.example" else ["10.0.0.7"]

    with pytest.raises(TaskFailed) as caught:
        fetch(
            f"http://outer.example:{port}/a",
            tmp_path / "x",
            limits=LIMITS,
            resolver=resolver,
            vet=lambda address: is_public(address) or str(address) == "127.0.0.1",
        )
    assert caught.value.kind in (ErrorKind.REFUSED, ErrorKind.BAD_INPUT)
    assert _Redirects.asked == ["/a"]


def test_a_name_is_resolved_once(tmp_path: Path, port: int) -> None:
    """What resolves differently the next moment (DNS rebinding) changes nothing: one look, one connection."""
    _Redirects.target = ""
    answers = iter([["127.0.0.1"], ["10.0.0.7"]])
    with pytest.raises(TaskFailed, match="redirects to nowhere"):
        fetch(
            f"http://outer.example:{port}/a",
            tmp_path / "x",
            limits=LIMITS,
            resolver=lambda *_: next(answers),
            vet=lambda address: str(address) == "127.0.0.1",
        )
    assert next(answers) == ["10.0.0.7"]
