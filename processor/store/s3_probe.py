"""What an S3-compatible server really does, found by trying (facts: B2, writes and limits).

Servers differ in what they say and do: B2 refuses a conditional put with 501, others
ignore the condition and answer 200. Only a second conditional put that is refused with 412
proves put-if-absent.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from botocore.exceptions import BotoCoreError, ClientError

from processor.errors import NotFound
from processor.store.protocol import Capabilities
from processor.store.s3_errors import is_bare_denial, status_of, translate

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

PROBE_PREFIX: Final = "state/probe/"
_NOT_IMPLEMENTED: Final = (400, 501)
_PROBE: Final = b"Written to find out what this store can do. May be removed.\n"


def probe(client: S3Client, bucket: str, prefix: str) -> Capabilities:
    """Find a bucket's capabilities by writing under `state/probe/` and cleaning up.

    A key that may only read is no error: nothing is promised then, and only whether the
    bucket says that it keeps versions is asked.

    Args:
        prefix: the root prefix, "" or with its slash.
    Raises:
        StoreUnavailable, AccessDenied: the bucket can't be reached or used at all.
    Cost: 4 requests; 5 where a condition is ignored and versions are kept.
    """
    nonce = secrets.token_hex(8)
    key = f"{prefix}{PROBE_PREFIX}{nonce}"
    try:
        made, put_if_absent = _try_condition(client, bucket, key)
    except (ClientError, BotoCoreError) as error:
        if is_bare_denial(error):
            return Capabilities(
                versions=_says_versions(client, bucket),
                put_if_absent=False,
                missing_is_403=_missing_is_403(client, bucket, f"{key}-never"),
            )
        raise translate(error, f"bucket {bucket}") from error
    # "null" is what a bucket answers whose versioning was suspended: puts replace.
    versions = all(version not in (None, "null") for version in made)
    try:
        missing_is_403 = _missing_is_403(client, bucket, f"{key}-never")
    finally:
        _clean_up(client, bucket, key, made if versions else [None])
    return Capabilities(versions=versions, put_if_absent=put_if_absent, missing_is_403=missing_is_403)


def _try_condition(client: S3Client, bucket: str, key: str) -> tuple[list[str | None], bool]:
    """Put one key twice if absent: the versions this made, and whether the second was refused."""
    made: list[str | None] = []
    for _ in range(2):
        try:
            reply = client.put_object(Bucket=bucket, Key=key, Body=_PROBE, IfNoneMatch="*")
            made.append(reply.get("VersionId"))
        except ClientError as error:
            if status_of(error) == 412:
                # Refused for what stands: proven, even if it was a retry of our first put
                # whose reply was lost.
                return made or [client.head_object(Bucket=bucket, Key=key).get("VersionId")], True
            if status_of(error) not in _NOT_IMPLEMENTED:
                raise
            # Whether a plain put makes a version still has to be found.
            return [client.put_object(Bucket=bucket, Key=key, Body=_PROBE).get("VersionId")], False
    return made, False


def _missing_is_403(client: S3Client, bucket: str, key: str) -> bool:
    try:
        client.head_object(Bucket=bucket, Key=key)
    except (ClientError, BotoCoreError) as error:
        if status_of(error) == 403:
            return True
        found = translate(error, key)
        if not isinstance(found, NotFound):
            raise found from error
    return False


def _says_versions(client: S3Client, bucket: str) -> bool:
    try:
        return client.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
    except (ClientError, BotoCoreError):
        return False


def _clean_up(client: S3Client, bucket: str, key: str, made: list[str | None]) -> None:
    # A key that may not delete shows itself when the machine first has to; what is left
    # here is one small object.
    with suppress(ClientError, BotoCoreError):
        for version in made:
            if version is None:
                client.delete_object(Bucket=bucket, Key=key)
            else:
                client.delete_object(Bucket=bucket, Key=key, VersionId=version)
