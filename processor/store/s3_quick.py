"""Reads, small puts, plain deletes through obstore, a client in Rust: a sixth of boto3's CPU.

Most of a job's requests are such. Whatever goes wrong here is left to boto3, which tries the
same again and knows retries, clocks that are off, proxies, and what an error means.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

from processor.version import VERSION

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import ClientConfig, S3Config, S3Credential
    from obstore.store import S3Store as Client

T = TypeVar("T")
Reply = dict[str, Any]

_CHUNK_BYTES: Final = 1 << 20
_WHOLE: Final = timedelta(hours=1)
"""For a request with its body, which may be long; obstore's own limit is half a minute."""
_REST_S: Final = 30.0
"""After a failure: a busy server is not asked twice each time, nor one that this client can't reach."""


class QuickClient:
    """One bucket's simplest requests. Thread-safe; holds credentials, and shows none.

    Replies have what boto3's have, under the same names, as far as they are asked for.

    Args:
        region: as for boto3.
        read_timeout_s: how long a server may be silent.
    """

    def __init__(
        self, bucket: str, *, endpoint_url: str, region: str, key_id: str, secret: str, read_timeout_s: float
    ) -> None:
        self._bucket = bucket
        self._config: S3Config = {
            "endpoint": endpoint_url,
            "region": region,
            "virtual_hosted_style_request": False,
        }
        # Given by name, they would be joined by whatever session token the environment holds.
        self._credentials: S3Credential = {
            "access_key_id": key_id,
            "secret_access_key": secret,
            "token": None,
            "expires_at": None,
        }
        self._options: ClientConfig = {
            "allow_http": endpoint_url.startswith("http://"),
            "user_agent": f"dropbatch/{VERSION}",
            "connect_timeout": timedelta(seconds=10),
            "read_timeout": timedelta(seconds=read_timeout_s),
            "timeout": _WHOLE,
        }
        self._again_at: dict[str, float] = {}

    @cached_property
    def _client(self) -> Client:
        from obstore.store import S3Store as Client  # late: most commands put nothing

        return Client(
            self._bucket,
            config=self._config,
            credential_provider=lambda: self._credentials,
            client_options=self._options,
            retry_config={"max_retries": 0},
        )

    def put(self, key: str, body: bytes, *, media_type: str) -> Reply | None:
        """Write an object, whatever stands there.

        Returns:
            None if it isn't known to have taken effect: put it again, by boto3.
        Cost: at most 1 request.
        """

        def put() -> Reply:
            attributes = {"Content-Type": media_type}
            written = self._client.put(key, body, attributes=attributes, use_multipart=False)
            return _with_version({}, written["version"])

        try:
            return self._attempt("put", put)
        except FileNotFoundError:
            return None  # no such bucket: boto3 hears which

    def get(self, key: str, version: str | None, *, head: bool = False) -> Reply | None:
        """Open an object, or with `head` only describe it.

        Returns:
            None if boto3 has to ask.
        Raises:
            FileNotFoundError: the server says that there is no such object.
        Cost: at most 1 request.
        """
        options: GetOptions = {"head": head}
        if version is not None:
            options["version"] = version
        try:
            found = self._attempt("get", lambda: self._client.get(key, options=options))
        except FileNotFoundError as error:
            if head or "<Code>NoSuchKey</Code>" in str(error):
                raise
            return None  # no such bucket, or no such version: boto3 hears which
        if found is None:
            return None
        meta = found.meta
        reply = {
            "ContentLength": meta["size"],
            "ContentType": found.attributes.get("Content-Type", "application/octet-stream"),
            "LastModified": meta["last_modified"],
            "ETag": meta["e_tag"],
            "Body": _Chunks(found),
        }
        return _with_version(reply, meta["version"])

    def delete(self, key: str) -> bool:
        """Delete by name whatever stands there, in a bucket without versions.

        Returns:
            False if it isn't known to be gone: delete it again, by boto3.
        Cost: at most 1 request: obstore sends every delete as one of many, which not all servers know.
        """

        def delete() -> bool:
            self._client.delete(key)
            return True

        try:
            return self._attempt("delete", delete) or False
        except FileNotFoundError:
            return False  # no such bucket: boto3 hears which

    def _attempt(self, kind: str, request: Callable[[], T]) -> T | None:
        """One request, without another try; after a failure its kind is left to boto3 for a while."""
        if time.monotonic() < self._again_at.get(kind, 0.0):
            return None
        from obstore.exceptions import BaseError

        try:
            return request()
        except FileNotFoundError:
            raise
        except (BaseError, OSError, ValueError):  # it raises Python's own kinds, too
            self._again_at[kind] = time.monotonic() + _REST_S
            return None


class _Chunks:
    """A reply's body, read as botocore's is; a broken connection is an OSError."""

    def __init__(self, found: GetResult) -> None:
        self._found: GetResult | None = found
        self._stream: Iterator[Any] = iter(())
        self._left = memoryview(b"")

    def read(self, size: int) -> memoryview:
        """At most `size` bytes; none at the end."""
        from obstore.exceptions import BaseError

        if self._found is not None:
            self._stream, self._found = iter(self._found.stream(min_chunk_size=_CHUNK_BYTES)), None
        if not self._left:
            try:
                self._left = memoryview(next(self._stream, b""))
            except BaseError as error:
                raise OSError(f"the download broke off ({type(error).__name__})") from error
        data, self._left = self._left[:size], self._left[size:]
        return data

    def close(self) -> None:
        """Let go of the connection."""
        self._found, self._stream, self._left = None, iter(()), memoryview(b"")


def _with_version(reply: Reply, version: str | None) -> Reply:
    return reply if version is None else reply | {"VersionId": version}
