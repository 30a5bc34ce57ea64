"""Listings page by page: of a bucket without versions, or of every version or the newest ones."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC
from typing import TYPE_CHECKING, Any

from processor.errors import InvalidKey
from processor.store.protocol import ObjectInfo, check_key

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

Reply = Any
Found = tuple[list[ObjectInfo], Reply]
"""One page, and the reply that it was in, which knows the server's time."""


def plain_objects(
    client: S3Client, *, bucket: str, root: str, prefix: str, start_after: str, page_size: int
) -> Iterator[Found]:
    """What stands in a bucket that keeps no versions, by key.

    Args:
        root: begins all keys, and is not part of what is found.
    Cost: 1 request a page.
    """
    arguments: dict[str, Any] = {"StartAfter": root + start_after} if start_after else {}
    while True:
        reply = client.list_objects_v2(Bucket=bucket, Prefix=root + prefix, MaxKeys=page_size, **arguments)
        found = [_entry(each, root, "") for each in reply.get("Contents", [])]
        yield [each for each in found if _is_listed(each.key, start_after)], reply
        if not reply.get("IsTruncated"):
            return
        arguments = {"ContinuationToken": reply["NextContinuationToken"]}


def newest_versions(
    client: S3Client, *, bucket: str, root: str, prefix: str, start_after: str, page_size: int
) -> Iterator[Found]:
    """The versions that stand: as `every_version`, without older ones and delete markers."""
    pages = every_version(
        client, bucket=bucket, root=root, prefix=prefix, start_after=start_after, page_size=page_size
    )
    for found, reply in pages:
        yield [each for each in found if each.latest and not each.delete_marker], reply


def every_version(
    client: S3Client, *, bucket: str, root: str, prefix: str, start_after: str, page_size: int
) -> Iterator[Found]:
    """Every version and delete marker, by key, of each the newest first. Cost: 1 request a page."""
    arguments: dict[str, Any] = {"KeyMarker": root + start_after} if start_after else {}
    while True:
        reply = client.list_object_versions(
            Bucket=bucket, Prefix=root + prefix, MaxKeys=page_size, **arguments
        )
        found = [_entry(each, root, each["VersionId"]) for each in reply.get("Versions", [])]
        found += [_entry(each, root, each["VersionId"]) for each in reply.get("DeleteMarkers", [])]
        # Two lists, each newest first within a key; only the newest of a key is certain
        # where two were written in the same second.
        found.sort(key=lambda each: (each.key, not each.latest, -each.modified.timestamp()))
        yield [each for each in found if _is_listed(each.key, start_after)], reply
        if not reply.get("IsTruncated"):
            return
        arguments = {"KeyMarker": reply["NextKeyMarker"]}
        if reply.get("NextVersionIdMarker"):
            arguments["VersionIdMarker"] = reply["NextVersionIdMarker"]


def _entry(entry: Any, root: str, version: str) -> ObjectInfo:
    return ObjectInfo(
        entry["Key"].removeprefix(root),
        entry.get("Size", 0),
        version,
        entry["LastModified"].astimezone(UTC),
        latest=entry.get("IsLatest", True),
        delete_marker="Size" not in entry,
    )


def _is_listed(key: str, start_after: str) -> bool:
    # Not every server heeds a start that lies outside the prefix.
    if key <= start_after:
        return False
    try:
        check_key(key)
    except InvalidKey:
        return False
    return True
