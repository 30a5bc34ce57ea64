"""The boto3 client as Backblaze B2 and the other S3-compatible servers want it."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

import boto3.session
from botocore.config import Config

from processor.version import VERSION

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

DEFAULT_REGION: Final = "us-east-1"
SMALL_BODY_BYTES: Final = 8 << 20
"""Bodies up to here are sent from memory, and at once; larger files are streamed."""
_B2_HOST: Final = re.compile(r"^https?://s3\.([a-z0-9-]+)\.backblazeb2\.com/?$", re.IGNORECASE)


def b2_endpoint(region: str) -> str:
    """B2's S3 endpoint of a region such as `us-west-004`."""
    return f"https://s3.{region}.backblazeb2.com"


def b2_region(endpoint_url: str) -> str | None:
    """The region that a B2 endpoint belongs to, or None if it is no B2 endpoint."""
    match = _B2_HOST.match(endpoint_url)
    return match[1].lower() if match else None


def region_of(endpoint_url: str | None, region: str | None) -> str:
    """What to sign for: the region given, or the one that a B2 endpoint names."""
    return region or (b2_region(endpoint_url) if endpoint_url else None) or DEFAULT_REGION


def connect(
    *,
    endpoint_url: str | None,
    region: str,
    key_id: str | None,
    secret: str | None,
    max_connections: int,
    max_attempts: int,
    read_timeout_s: float,
) -> S3Client:
    """A client of its own session, so that it is safe to share among threads.

    Without `key_id`, boto3 looks where it always does (environment, profile, instance).
    """
    session = boto3.session.Session(aws_access_key_id=key_id, aws_secret_access_key=secret)
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        # Since 1.36 boto3 adds CRC32 to everything by default, which broke B2 and others;
        # Backblaze's own samples pin both (facts: B2, boto3).
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # Adaptive: after a 503 SlowDown the whole client slows down, not one request.
        retries={"mode": "adaptive", "total_max_attempts": max_attempts},
        connect_timeout=10,
        read_timeout=read_timeout_s,
        max_pool_connections=max_connections,
        # Whole: boto3's own is put together anew for each request, for a tenth of its CPU time.
        user_agent=f"dropbatch/{VERSION}",
        # Keys are checked by `check_key`; the other arguments are our own.
        parameter_validation=False,
    )
    client = session.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    client.meta.events.register_last("before-call.s3", _send_small_bodies_at_once)
    return client


def _send_small_bodies_at_once(params: dict[str, Any], **_more: object) -> None:
    """Don't ask before sending a small body: `100-continue` costs each put a round trip."""
    body = params.get("body")
    if isinstance(body, io.BytesIO) and body.getbuffer().nbytes <= SMALL_BODY_BYTES:
        params["headers"].pop("Expect", None)
