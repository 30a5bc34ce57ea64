"""The store of `b2://` and `s3://`: Backblaze B2 and every S3-compatible server."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from botocore.exceptions import BotoCoreError, ClientError

from processor.errors import NotFound, StoreUnavailable, VersionMismatch
from processor.store.protocol import (
    Capabilities,
    Download,
    ObjectInfo,
    Page,
    check_key,
    require_put_if_absent,
)
from processor.store.s3_body import body_file
from processor.store.s3_client import SMALL_BODY_BYTES, connect, region_of
from processor.store.s3_errors import Failure, is_bare_denial, status_of, translate
from processor.store.s3_listing import every_version, newest_versions, plain_objects
from processor.store.s3_multipart import (
    COPY_PART_BYTES,
    MAX_COPY_BYTES,
    PART_BYTES,
    copy_parts,
    upload_parts,
)
from processor.store.s3_probe import probe
from processor.store.s3_quick import QuickClient
from processor.store.s3_seen import Seen, SeenVersions

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from types_boto3_s3.type_defs import (
        CopySourceTypeDef,
        GetObjectOutputTypeDef,
        HeadObjectOutputTypeDef,
    )

_NULL: Final = "null"
"""The VersionId of what was put before a bucket kept versions."""

_RANGE_NOT_SATISFIABLE: Final = 416
_CARRIED_BYTES: Final = 256 << 10
"""Without versions a copy up to here is read and written: a drop, not a video."""


class S3Store:
    """A `Store` over S3's API. Thread-safe; holds no credentials, nor shows any.

    The bucket's capabilities are probed when first needed, unless they are given. On a
    bucket that keeps versions every reply and listing names them. On one that doesn't, the
    version is a token of ETag and Last-Modified that only `stat` and `get` tell: the reply
    of a put lacks the time, and asking for it would double what a put costs.

    Requests that fail in passing are retried by botocore (adaptive, at most
    `max_attempts`), a download that breaks off goes on where it was. Reads, small puts and, without
    versions, deletes go through `QuickClient` first, where endpoint and key are given.

    Args:
        prefix: the root of all keys in the bucket; "" for the whole bucket.
        region: derived from a B2 endpoint if not given.
        key_id, secret: without them boto3 looks where it always does.
        scheme: the first part of `url`.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint_url: str | None = None,
        region: str | None = None,
        key_id: str | None = None,
        secret: str | None = None,
        scheme: str = "s3",
        capabilities: Capabilities | None = None,
        max_connections: int = 32,
        max_attempts: int = 6,
        read_timeout_s: float = 60,
        page_size: int = 1000,
        part_bytes: int = PART_BYTES,
        max_copy_bytes: int = MAX_COPY_BYTES,
    ) -> None:
        prefix = prefix.strip("/")
        self._bucket = bucket
        self._scheme = scheme
        self._prefix = check_key(prefix) + "/" if prefix else ""
        self._page_size = page_size
        self._part_bytes = part_bytes
        self._max_copy_bytes = max_copy_bytes
        self._capabilities = capabilities
        self._probing = threading.Lock()
        self._seen = SeenVersions()
        self._ahead = timedelta()
        region = region_of(endpoint_url, region)
        # Without an address and keys of our own boto3 finds both, in ways that are its business. What
        # goes wrong there is tried again by boto3, so that it takes more than one attempt.
        self._quick = (
            QuickClient(
                bucket,
                endpoint_url=endpoint_url,
                region=region,
                key_id=key_id,
                secret=secret,
                read_timeout_s=read_timeout_s,
            )
            if endpoint_url and key_id and secret and max_attempts > 1
            else None
        )
        self._client = connect(
            endpoint_url=endpoint_url,
            region=region,
            key_id=key_id,
            secret=secret,
            max_connections=max_connections,
            max_attempts=max_attempts,
            read_timeout_s=read_timeout_s,
        )

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    @property
    def url(self) -> str:
        return f"{self._scheme}://{self._bucket}/{self._prefix}".rstrip("/")

    def below(self, prefix: str) -> S3Store:
        """The same bucket from a prefix further down, with the same connections and, if
        they are known by now, capabilities. Closing one closes both."""
        below = copy.copy(self)
        below._seen = SeenVersions()  # noqa: SLF001 - a copy of ourselves; its keys are others
        below._prefix = f"{self._prefix}{check_key(prefix)}/"  # noqa: SLF001 - a copy of ourselves
        return below

    @property
    def capabilities(self) -> Capabilities:
        with self._probing:
            if self._capabilities is None:
                self._capabilities = probe(self._client, self._bucket, self._prefix)
            return self._capabilities

    def list(self, prefix: str, *, versions: bool = False, start_after: str = "") -> Iterator[Page]:
        """As `Store.list`. Objects whose keys `check_key` refuses, such as the empty
        `folder/` that some consoles make, are not listed."""
        versioned = self.capabilities.versions
        walk = every_version if versioned and versions else newest_versions if versioned else plain_objects
        pages = walk(
            self._client,
            bucket=self._bucket,
            root=self._prefix,
            prefix=prefix,
            start_after=start_after,
            page_size=self._page_size,
        )
        with self._translated(prefix):
            for found, reply in pages:
                yield Page(found, self._date(reply))

    def stat(self, key: str, *, version: str | None = None) -> ObjectInfo:
        return self._describe(key, self._head(key, version), version)

    def get(self, key: str, *, version: str | None = None) -> Download:
        info, _, body = self._open(key, version)
        return Download(info, body)

    def _open(self, key: str, version: str | None) -> tuple[ObjectInfo, Any, BinaryIO]:
        wanted = self._arguments(key, version)
        reply = self._asked(key, version, head=False)
        try:
            info = self._describe(key, reply, version)
        except NotFound:
            reply["Body"].close()
            raise
        if self.capabilities.versions:
            wanted["VersionId"] = info.version

        def reopen(start: int) -> StreamingBody:
            try:
                again = self._client.get_object(**wanted, Range=f"bytes={start}-")
            except (ClientError, BotoCoreError) as error:
                if status_of(error) != _RANGE_NOT_SATISFIABLE:
                    raise translate(error, f"{self.url}/{key}") from error
                raise _replaced(key) from error
            if again["ETag"] != reply["ETag"]:
                again["Body"].close()
                raise _replaced(key)
            return again["Body"]

        return info, reply, body_file(reply["Body"], reopen, size_bytes=info.size_bytes, key=key)

    def put(
        self,
        key: str,
        data: bytes | Path,
        *,
        media_type: str = "application/octet-stream",
        if_absent: bool = False,
    ) -> ObjectInfo:
        target = self._arguments(key, None)
        if if_absent:
            require_put_if_absent(self)
        condition: dict[str, Any] = {"IfNoneMatch": "*"} if if_absent else {}
        size_bytes = len(data) if isinstance(data, bytes) else data.stat().st_size
        reply: Any
        with self._translated(key):
            if isinstance(data, bytes) or size_bytes <= SMALL_BODY_BYTES:
                body = data if isinstance(data, bytes) else data.read_bytes()
                size_bytes = len(body)
                if self._quick and not if_absent:
                    written = self._quick.put(target["Key"], body, media_type=media_type)
                    if written is not None:
                        return self._written(key, size_bytes, written)
                reply = self._client.put_object(**target, Body=body, ContentType=media_type, **condition)
            elif size_bytes <= self._part_bytes:
                with data.open("rb") as file:
                    reply = self._client.put_object(**target, Body=file, ContentType=media_type, **condition)
            else:
                reply = upload_parts(
                    self._client,
                    target,
                    data,
                    media_type=media_type,
                    part_bytes=self._part_bytes,
                    condition=condition,
                )
        return self._written(key, size_bytes, reply)

    def copy(self, source: str, target: str, *, version: str | None = None) -> ObjectInfo:
        known = self._seen.get(source, version)
        if known is not None and known.size_bytes <= self._max_copy_bytes:
            return self._copy_known(source, target, known)
        if self._quick and not self.capabilities.versions:
            return self._carry(source, target, version)
        head = self._head(source, version)
        return self._copy_described(source, target, version, self._describe(source, head, version), head)

    def _carry(self, source: str, target: str, version: str | None) -> ObjectInfo:
        """Copy what is small by reading and writing it: no more requests than to compare and to copy,
        and those bytes that were compared, whether or not the server heeds conditions."""
        found, reply, body = self._open(source, version)
        with body:
            if found.size_bytes <= _CARRIED_BYTES:
                return self.put(target, body.read(), media_type=reply["ContentType"])
        return self._copy_described(source, target, version, found, reply)

    def _copy_described(
        self, source: str, target: str, version: str | None, found: ObjectInfo, head: Any
    ) -> ObjectInfo:
        goal = self._arguments(target, None)
        origin: CopySourceTypeDef = {"Bucket": self._bucket, "Key": self._prefix + source}
        condition: dict[str, Any] = {}
        if self.capabilities.versions:
            origin["VersionId"] = found.version
        elif version is not None or found.size_bytes > self._max_copy_bytes:
            # The version that is wanted; or whichever it is, one for all parts.
            condition["CopySourceIfMatch"] = head["ETag"]
        reply: Any
        with self._translated(source):
            if found.size_bytes <= self._max_copy_bytes:
                reply = self._client.copy_object(**goal, CopySource=origin, **condition)
            else:
                reply = copy_parts(
                    self._client,
                    goal,
                    origin,
                    size_bytes=found.size_bytes,
                    media_type=head.get("ContentType", "application/octet-stream"),
                    part_bytes=min(COPY_PART_BYTES, self._max_copy_bytes),
                    condition=condition,
                )
        return self._written(target, found.size_bytes, reply)

    def _copy_known(self, source: str, target: str, known: Seen) -> ObjectInfo:
        """Copy a version that was read here before, so that its size and ETag are known.

        The reply to a copy has no size, but an ETag: where that is the source's, so are the
        bytes. Where it isn't (sources that went up in parts), the copy itself is asked.
        """
        goal = self._arguments(target, None)
        origin: CopySourceTypeDef = {
            "Bucket": self._bucket,
            "Key": self._prefix + source,
            "VersionId": known.version,
        }
        with self._confirmed(source, known.version):
            reply = self._client.copy_object(**goal, CopySource=origin)
        if reply["CopyObjectResult"]["ETag"] != known.etag:
            return self.stat(target, version=reply.get("VersionId"))
        return self._written(target, known.size_bytes, reply)

    def delete(self, key: str, *, version: str) -> None:
        target = self._arguments(key, None)
        if self.capabilities.versions:
            target["VersionId"] = version
        else:
            try:
                standing = self.stat(key)
            except NotFound:
                return
            if standing.version != version:
                raise VersionMismatch("another version stands there", where=key)
            if self._quick and self._quick.delete(target["Key"]):
                return
        try:
            with self._translated(key):
                self._client.delete_object(**target)
        except NotFound:
            return

    def close(self) -> None:
        self._client.close()

    def _arguments(self, key: str, version: str | None) -> dict[str, Any]:
        arguments: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}
        check_key(arguments["Key"])  # with the prefix it may be too long
        if version is not None and self.capabilities.versions:
            arguments["VersionId"] = version
        return arguments

    def _head(self, key: str, version: str | None) -> Any:
        return self._asked(key, version, head=True)

    def _asked(self, key: str, version: str | None, *, head: bool) -> Any:
        wanted = self._arguments(key, version)
        if self._quick:
            try:
                reply = self._quick.get(wanted["Key"], wanted.get("VersionId"), head=head)
            except FileNotFoundError:
                raise NotFound("there is no such object", where=f"{self.url}/{key}") from None
            if reply is not None:
                return reply
        with self._confirmed(key, version):
            return self._client.head_object(**wanted) if head else self._client.get_object(**wanted)

    def _describe(
        self, key: str, reply: HeadObjectOutputTypeDef | GetObjectOutputTypeDef, version: str | None
    ) -> ObjectInfo:
        """What stands, if it is the version that was asked for."""
        modified = reply["LastModified"].astimezone(UTC)
        if self.capabilities.versions:
            found = reply.get("VersionId", _NULL)
            if found != _NULL:  # the one version that a put may replace, where they are suspended
                self._seen.add(key, Seen(found, reply["ContentLength"], reply["ETag"]))
        else:
            etag = reply["ETag"].strip('"')
            found = f"{etag}@{int(modified.timestamp())}"
            if version is not None and version != found:
                raise NotFound("that version is gone; another stands there", where=key)
        return ObjectInfo(key, reply["ContentLength"], found, modified)

    def _written(self, key: str, size_bytes: int, reply: Any) -> ObjectInfo:
        version = reply.get("VersionId", _NULL) if self.capabilities.versions else ""
        return ObjectInfo(key, size_bytes, version, self._date(reply))

    def _date(self, reply: Any) -> datetime:
        """The server's clock when it replied; by our own where a reply doesn't tell."""
        now = datetime.now(UTC)
        if date := reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date"):
            told = parsedate_to_datetime(date).astimezone(UTC)
            self._ahead = told - now
            return told
        return now + self._ahead

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise translate(error, f"{self.url}/{key}") from error

    @contextmanager
    def _confirmed(self, key: str, version: str | None) -> Iterator[None]:
        """Like `_translated`, for reads: what a 403 means is asked by listing."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            if self._is_absent(error, key, version):
                raise NotFound("there is no such object", where=key) from error
            raise translate(error, f"{self.url}/{key}") from error

    def _is_absent(self, error: Failure, key: str, version: str | None) -> bool:
        """Whether an error other than 404 means that the key, or that version, isn't there.

        A cap or a missing capability answers 403 as well, so absence is believed only
        where the probe saw a missing key answered so, and a listing of that very key
        succeeds without it (facts: B2, §16). A VersionId that the server can't have made
        is answered with 400; that is confirmed in the same way.
        """
        capabilities = self.capabilities
        if not (
            (is_bare_denial(error) and capabilities.missing_is_403)
            or (status_of(error) == 400 and version is not None and capabilities.versions)
        ):
            return False
        for page in self.list(key, versions=version is not None):
            for info in page.objects:
                if info.key != key:
                    return True
                if version in (None, info.version) and not info.delete_marker:
                    return False
        return True


def _replaced(key: str) -> StoreUnavailable:
    return StoreUnavailable("replaced while it was read; read it again", where=key)
