"""Objects in parts: uploads above one part's size, copies above what one request does in time.

Not boto3's transfer manager: it keeps the VersionId of what it wrote to itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast

from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.utils import ReadFileChunk

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client
    from types_boto3_s3.type_defs import (
        CompletedPartTypeDef,
        CompleteMultipartUploadOutputTypeDef,
        CopySourceTypeDef,
    )

MIB: Final = 1 << 20
PART_BYTES: Final = 64 * MIB
MAX_PARTS: Final = 10_000
MAX_COPY_BYTES: Final = 512 * MIB
"""What one CopyObject moves. Stores take 5 GB (facts: B2, versions), but a copy slower than the read
timeout is asked for again by boto3, and each time becomes one more version. A part is done twice for
nothing, at worst."""
COPY_PART_BYTES: Final = 256 * MIB
_THREADS: Final = 4


def upload_parts(
    client: S3Client,
    target: dict[str, Any],
    path: Path,
    *,
    media_type: str,
    part_bytes: int,
    condition: dict[str, Any],
) -> CompleteMultipartUploadOutputTypeDef:
    """Send a file in parts, four at a time, none of them as a whole in memory.

    Args:
        target: Bucket and Key.
        condition: further arguments of the completing request, e.g. IfNoneMatch.
    """
    size_bytes = path.stat().st_size

    def send(upload_id: str, number: int, start: int, end: int) -> CompletedPartTypeDef:
        with ReadFileChunk.from_filename(str(path), start, end - start) as part:
            body = cast("IO[bytes]", part)
            reply = client.upload_part(**target, UploadId=upload_id, PartNumber=number, Body=body)
        return {"ETag": reply["ETag"], "PartNumber": number}

    return _in_parts(
        client,
        target,
        send,
        size_bytes=size_bytes,
        part_bytes=part_bytes,
        media_type=media_type,
        condition=condition,
    )


def copy_parts(
    client: S3Client,
    target: dict[str, Any],
    source: CopySourceTypeDef,
    *,
    size_bytes: int,
    media_type: str,
    part_bytes: int,
    condition: dict[str, Any],
) -> CompleteMultipartUploadOutputTypeDef:
    """Copy inside the store in parts.

    Args:
        condition: further arguments of each part's request, e.g. CopySourceIfMatch.
    """

    def send(upload_id: str, number: int, start: int, end: int) -> CompletedPartTypeDef:
        reply = client.upload_part_copy(
            **target,
            UploadId=upload_id,
            PartNumber=number,
            CopySource=source,
            CopySourceRange=f"bytes={start}-{end - 1}",
            **condition,
        )
        return {"ETag": reply["CopyPartResult"]["ETag"], "PartNumber": number}

    return _in_parts(
        client,
        target,
        send,
        size_bytes=size_bytes,
        part_bytes=part_bytes,
        media_type=media_type,
        condition={},
    )


def _in_parts(
    client: S3Client,
    target: dict[str, Any],
    send: Callable[[str, int, int, int], CompletedPartTypeDef],
    *,
    size_bytes: int,
    part_bytes: int,
    media_type: str,
    condition: dict[str, Any],
) -> CompleteMultipartUploadOutputTypeDef:
    part_bytes = max(part_bytes, -(-size_bytes // MAX_PARTS))
    upload_id = client.create_multipart_upload(**target, ContentType=media_type)["UploadId"]
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            sending = [
                pool.submit(send, upload_id, number, start, min(start + part_bytes, size_bytes))
                for number, start in enumerate(range(0, size_bytes, part_bytes), 1)
            ]
            try:
                parts = [each.result() for each in sending]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return client.complete_multipart_upload(
            **target, UploadId=upload_id, MultipartUpload={"Parts": parts}, **condition
        )
    except BaseException:
        # Parts of an upload that nobody completes are billed until someone aborts it. After
        # a completion whose reply was lost this finds no upload, and does nothing.
        with suppress(ClientError, BotoCoreError):
            client.abort_multipart_upload(**target, UploadId=upload_id)
        raise
