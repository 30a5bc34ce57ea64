"""Downloading a user's URL without becoming a way into the network this runs in.

The host is resolved once, every address it has is vetted, and the connection goes to a
vetted address with the original Host and SNI: a name that resolves differently the next
moment changes nothing. Each redirect starts over. Proxies of the environment are not used.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

from processor.errors import ErrorKind, TaskFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Vet = Callable[[Address], bool]
"""Whether an address may be connected to."""
Resolve = Callable[[str, int], list[str]]
"""Host and port → the addresses it has; raises OSError."""

_CHUNK_BYTES: Final = 256 * 1024
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True)
class Limits:
    """What a download may cost."""

    max_bytes: int
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    """Between two pieces."""
    total_timeout_s: float = 300.0
    max_redirects: int = 3
    media_types: tuple[str, ...] = (
        "image/",
        "video/",
        "audio/",
        "model/",
        "application/octet-stream",
        "binary/",
    )
    """Accepted beginnings of Content-Type; a reply without one is accepted."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was downloaded."""

    size_bytes: int
    sha256: str
    media_type: str


def is_url(text: str) -> bool:
    """Whether this is an http(s) URL and not a key or file name."""
    return text.lower().startswith(("http://", "https://"))


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet: not private, loopback, link-local (where
    clouds serve credentials), multicast or reserved, nor any of these in an IPv6 disguise."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if inner:
            return is_public(inner)
        if address in _NAT64 or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def redact_url(url: str) -> str:
    """A URL as errors may show it: without user, password, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(unreadable URL)"
    return f"{parts.scheme}://{host}{port}{parts.path}"[:300]


def credentials_of(url: SplitResult) -> dict[str, str]:
    """The header that a URL's `user:password@` asks for; none without one."""
    if url.username is None:
        return {}
    # Written in a URL, an `@` or a `/` of a password is `%40` or `%2F`.
    plain = f"{unquote(url.username)}:{unquote(url.password or '')}"
    return {"authorization": f"Basic {base64.b64encode(plain.encode()).decode()}"}


def resolve(host: str, port: int) -> list[str]:
    """The system resolver's addresses of a host."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def fetch(
    url: str, target: Path, *, limits: Limits, vet: Vet = is_public, resolver: Resolve = resolve
) -> Fetched:
    """Download to a new file, hashing on the way; nothing is left behind on failure.

    Raises:
        TaskFailed: REFUSED (address, scheme), BAD_INPUT (4xx, too large, wrong type),
            UNAVAILABLE (does not resolve, does not answer, 5xx). No credentials in any.
    Cost: 1 request, one more per redirect; memory for one piece.
    """
    deadline = time.monotonic() + limits.total_timeout_s
    current = url
    for _ in range(limits.max_redirects + 1):
        response = _open(current, limits, vet, resolver)
        try:
            if response.status not in _REDIRECTS:
                return _save(response, current, target, limits, deadline)
            location = response.headers.get("Location")
        finally:
            response.release_conn()
            response.close()
        if not location:
            raise _bad(current, "redirects to nowhere")
        current = urljoin(current, location)
    raise _bad(url, f"redirects more than {limits.max_redirects} times")


def _open(url: str, limits: Limits, vet: Vet, resolver: Resolve) -> urllib3.BaseHTTPResponse:
    parts, host, port = _split(url)
    address = _vetted(url, host, port, vet, resolver)
    timeout = urllib3.Timeout(connect=limits.connect_timeout_s, read=limits.read_timeout_s)
    pool: urllib3.HTTPConnectionPool
    if parts.scheme == "https":
        pool = urllib3.HTTPSConnectionPool(
            address, port, timeout=timeout, server_hostname=host, assert_hostname=host
        )
    else:
        pool = urllib3.HTTPConnectionPool(address, port, timeout=timeout)
    default_port = 443 if parts.scheme == "https" else 80
    shown_host = f"[{host}]" if ":" in host else host
    headers = {
        "Host": shown_host if port == default_port else f"{shown_host}:{port}",
        "User-Agent": "dropbatch",
        "Accept-Encoding": "identity",
    }
    headers |= credentials_of(parts)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        return pool.urlopen(
            "GET", path, headers=headers, redirect=False, retries=False, preload_content=False
        )
    except SSLError:
        raise _bad(url, "its TLS certificate is not accepted") from None
    except (HTTPError, MaxRetryError, OSError) as error:
        raise _away(url, f"does not answer ({type(error).__name__})") from None


def _split(url: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _bad(url, "is not a valid URL") from None
    if parts.scheme not in ("http", "https"):
        raise TaskFailed(ErrorKind.REFUSED, f"{redact_url(url)} is neither http nor https")
    if not host or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise _bad(url, "is not a valid URL")
    return parts, host, port or (443 if parts.scheme == "https" else 80)


def _vetted(url: str, host: str, port: int, vet: Vet, resolver: Resolve) -> str:
    try:
        found = resolver(host, port)
    except (OSError, UnicodeError):
        raise _away(url, "has a host that does not resolve") from None
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    if not addresses:
        raise _away(url, "has a host that does not resolve")
    if not all(vet(address) for address in addresses):
        raise TaskFailed(
            ErrorKind.REFUSED,
            f"{redact_url(url)} is in a private network",
            mend="Inputs are fetched from public addresses only; put the file in the bucket instead",
        )
    return str(addresses[0])


def _save(
    response: urllib3.BaseHTTPResponse, url: str, target: Path, limits: Limits, deadline: float
) -> Fetched:
    if response.status >= 500 or response.status in (408, 425, 429):
        raise _away(url, f"answers {response.status}")
    if response.status != 200:
        raise _bad(url, f"answers {response.status}")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type and not media_type.startswith(limits.media_types):
        raise _bad(url, f"is of type {media_type[:80]!r}, which is no picture, video or sound")
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise _too_large(url, limits)
    digest, size_bytes = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("xb") as file:
            for piece in response.stream(_CHUNK_BYTES, decode_content=False):
                size_bytes += len(piece)
                if size_bytes > limits.max_bytes:
                    raise _too_large(url, limits)
                if time.monotonic() > deadline:
                    raise _away(url, f"takes longer than {limits.total_timeout_s:g} s")
                digest.update(piece)
                file.write(piece)
        if length.isdigit() and size_bytes != int(length):
            raise _away(url, "ended early")
    except (HTTPError, OSError) as error:
        target.unlink(missing_ok=True)
        raise _away(url, f"broke off ({type(error).__name__})") from None
    except TaskFailed:
        target.unlink(missing_ok=True)
        raise
    return Fetched(size_bytes, digest.hexdigest(), media_type)


def _bad(url: str, what: str) -> TaskFailed:
    return TaskFailed(ErrorKind.BAD_INPUT, f"{redact_url(url)} {what}")


def _away(url: str, what: str) -> TaskFailed:
    return TaskFailed(ErrorKind.UNAVAILABLE, f"{redact_url(url)} {what}")


def _too_large(url: str, limits: Limits) -> TaskFailed:
    return _bad(url, f"is larger than {limits.max_bytes / 1024**2:,.0f} MiB")
