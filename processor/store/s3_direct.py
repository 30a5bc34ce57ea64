"""The five requests that every job makes, signed and sent without boto3's machinery.

boto3 spends about 1.5 ms of CPU on each request before it is sent: endpoint rules, hooks,
a serializer. A worker shares its cores with an engine, so the requests that a job makes a
dozen of are written down here. They answer as boto3's client does, in its words and its
exceptions, and are sent by botocore's own HTTP session (proxies, certificates, pooling).
All else, and whatever is not an endpoint with a key of its own, stays with boto3.
"""

# ruff: noqa: N803 - the arguments have boto3's names

from __future__ import annotations

import hashlib
import hmac
import random
import re
import socket
import threading
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import ClientError, HTTPClientError
from botocore.httpsession import URLLib3Session
from botocore.response import StreamingBody
from botocore.utils import get_environ_proxies

_NOTHING: Final = hashlib.sha256(b"").hexdigest()
_UNRESERVED: Final = "/-_.~"
_RETRIED: Final = frozenset({408, 429, 500, 502, 503, 504})
_RETRIED_CODES: Final = frozenset({"RequestTimeout", "SlowDown", "InternalError"})
_OVERLOADED: Final = (429, 503)
_LONGEST_PAUSE_S: Final = 20.0
_ERROR_BYTES: Final = 64 * 1024
_FIELDS: Final = {"x-amz-version-id": "VersionId", "etag": "ETag"}


class DirectClient:
    """The hot part of boto3's S3 client: same arguments, replies and exceptions. Thread-safe.

    Failures in passing are tried again, as botocore does: connections that break, 5xx
    except 501, and overload, after which all threads of this client pause together.

    Args:
        endpoint_url: of an S3-compatible server; the bucket is put in the path.
        max_attempts: how often a request is sent at most.
    """

    def __init__(
        self,
        endpoint_url: str,
        region: str,
        key_id: str,
        secret: str,
        *,
        max_connections: int,
        max_attempts: int,
        connect_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        self._endpoint = endpoint_url.rstrip("/")
        self._host = urlsplit(self._endpoint).netloc
        self._signer = _Signer(self._host, region, key_id, secret)
        self._max_attempts = max_attempts
        self._pace = _Pace()
        self._session = URLLib3Session(
            timeout=(connect_timeout_s, read_timeout_s),  # type: ignore[arg-type]  # the stubs lack the pair
            # Head and body are sent apart; together with the peer's delayed acknowledgement,
            # Nagle's algorithm would make every put wait for 40 ms.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],  # type: ignore[list-item]
            max_pool_connections=max_connections,
            proxies=get_environ_proxies(self._endpoint),
        )

    def put_object(
        self, *, Bucket: str, Key: str, Body: bytes, ContentType: str, IfNoneMatch: str | None = None
    ) -> dict[str, Any]:
        headers = {"content-type": ContentType}
        if IfNoneMatch is not None:
            headers["if-none-match"] = IfNoneMatch
        return _reply(self._send("PutObject", "PUT", Bucket, Key, headers=headers, body=Body))

    def head_object(self, *, Bucket: str, Key: str, VersionId: str | None = None) -> dict[str, Any]:
        return _described(self._send("HeadObject", "HEAD", Bucket, Key, version=VersionId))

    def get_object(
        self, *, Bucket: str, Key: str, VersionId: str | None = None, Range: str | None = None
    ) -> dict[str, Any]:
        headers = {"range": Range} if Range else {}
        response = self._send("GetObject", "GET", Bucket, Key, headers=headers, version=VersionId)
        described = _described(response)
        return described | {"Body": StreamingBody(response.raw, described["ContentLength"])}

    def copy_object(
        self, *, Bucket: str, Key: str, CopySource: dict[str, str], CopySourceIfMatch: str | None = None
    ) -> dict[str, Any]:
        source = f"/{CopySource['Bucket']}/{quote(CopySource['Key'], safe=_UNRESERVED)}"
        if "VersionId" in CopySource:
            source += f"?versionId={quote(CopySource['VersionId'], safe='')}"
        headers = {"x-amz-copy-source": source}
        if CopySourceIfMatch is not None:
            headers["x-amz-copy-source-if-match"] = CopySourceIfMatch
        response = self._send("CopyObject", "PUT", Bucket, Key, headers=headers)
        return _reply(response) | {"CopyObjectResult": {"ETag": _texts(response.content).get("ETag", "")}}

    def delete_object(self, *, Bucket: str, Key: str, VersionId: str | None = None) -> dict[str, Any]:
        return _reply(self._send("DeleteObject", "DELETE", Bucket, Key, version=VersionId))

    def close(self) -> None:
        self._session.close()

    def _send(
        self,
        operation: str,
        method: str,
        bucket: str,
        key: str,
        *,
        headers: dict[str, str] | None = None,
        version: str | None = None,
        body: bytes = b"",
    ) -> AWSResponse:
        path = f"/{bucket}/{quote(key, safe=_UNRESERVED)}"
        query = f"versionId={quote(version, safe='')}" if version is not None else ""
        digest = hashlib.sha256(body).hexdigest() if body else _NOTHING
        url = self._endpoint + path + (f"?{query}" if query else "")
        for attempt in range(1, self._max_attempts + 1):
            self._pace.wait()
            signed = self._signer.signed(method, path, query, headers or {}, digest)
            # The stubs want their own mapping; the session only reads it.
            request = AWSPreparedRequest(method, url, signed, body, operation == "GetObject")  # type: ignore[arg-type]
            try:
                response = self._session.send(request)
            except HTTPClientError:
                if attempt == self._max_attempts:
                    raise
                _pause(attempt)
                continue
            # A copy may fail after its 200 was sent: then the body says so.
            if response.status_code < 300 and not (operation == "CopyObject" and _failed_late(response)):
                self._pace.went_well()
                return response
            error = _error(response, operation)
            if attempt == self._max_attempts or not _passes(error):
                raise error
            if response.status_code in _OVERLOADED:
                self._pace.slow_down()
            _pause(attempt)
        raise AssertionError("max_attempts is at least 1")


class _Signer:
    """AWS's signature, version 4, of a request whose body's hash is known."""

    def __init__(self, host: str, region: str, key_id: str, secret: str) -> None:
        self._host = host
        self._region = region
        self._key_id = key_id
        self._secret = secret
        self._day_key = lru_cache(maxsize=2)(self._make_day_key)

    def signed(
        self, method: str, path: str, query: str, headers: dict[str, str], digest: str
    ) -> dict[str, str]:
        """The headers to send: those given, and the signature over them."""
        now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        given = {"host": self._host, "x-amz-content-sha256": digest, "x-amz-date": now, **headers}
        names = sorted(given)
        listed = ";".join(names)
        canonical = "\n".join(
            [method, path, query, *(f"{name}:{given[name].strip()}" for name in names), "", listed, digest]
        )
        scope = f"{now[:8]}/{self._region}/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{hashed}"
        signature = hmac.new(self._day_key(now[:8]), text.encode(), "sha256").hexdigest()
        given["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self._key_id}/{scope}, "
            f"SignedHeaders={listed}, Signature={signature}"
        )
        given["user-agent"] = "dropbatch"
        return given

    def _make_day_key(self, day: str) -> bytes:
        key = f"AWS4{self._secret}".encode()
        for part in (day, self._region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        return key


class _Pace:
    """After an overload all requests pause, twice as long each time until one goes well."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pause_s = 0.0
        self._until = 0.0

    def wait(self) -> None:
        left_s = self._until - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)

    def slow_down(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now >= self._until:  # what many threads are told at once counts once
                self._pause_s = min(max(0.1, 2 * self._pause_s), _LONGEST_PAUSE_S)
                self._until = now + self._pause_s

    def went_well(self) -> None:
        if self._pause_s:
            with self._lock:
                self._pause_s = 0.0


def _pause(attempt: int) -> None:
    time.sleep(min(random.random() * 2 ** (attempt - 1), _LONGEST_PAUSE_S))  # noqa: S311 - no secret


def _reply(response: AWSResponse) -> dict[str, Any]:
    """What boto3 makes of the headers of every reply, as far as it is used here."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    reply: dict[str, Any] = {
        "ResponseMetadata": {"HTTPStatusCode": response.status_code, "HTTPHeaders": headers}
    }
    for header, name in _FIELDS.items():
        if header in headers:
            reply[name] = headers[header]
    return reply


def _described(response: AWSResponse) -> dict[str, Any]:
    reply = _reply(response)
    headers = reply["ResponseMetadata"]["HTTPHeaders"]
    reply["ContentLength"] = int(headers["content-length"])
    reply["LastModified"] = parsedate_to_datetime(headers["last-modified"])
    if "content-type" in headers:
        reply["ContentType"] = headers["content-type"]
    return reply


def _failed_late(response: AWSResponse) -> bool:
    return re.match(rb"\s*(<\?xml[^>]*>)?\s*<Error[\s>]", response.content) is not None


def _error(response: AWSResponse, operation: str) -> ClientError:
    status = response.status_code
    said = _texts(response.raw.read(_ERROR_BYTES) if operation == "GetObject" else response.content)
    if operation == "GetObject":
        response.raw.close()
    detail = {"Code": said.get("Code", str(status)), "Message": said.get("Message", "")}
    reply: dict[str, Any] = {"Error": detail, **_reply(response)}
    return ClientError(reply, operation)  # type: ignore[arg-type]  # the part of a reply that is read


def _passes(error: ClientError) -> bool:
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    # A copy that failed late says so under a status of 200.
    return status in _RETRIED or status < 300 or error.response["Error"]["Code"] in _RETRIED_CODES


def _texts(document: bytes) -> dict[str, str]:
    """The texts of a small XML document by tag; nothing of one that is none."""
    try:
        root = ET.fromstring(document)  # noqa: S314 - expat expands no external entities
    except ET.ParseError:
        return {}
    return {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in root}
