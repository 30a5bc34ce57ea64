"""Finding which of B2's regions a bucket is in: the S3 API tells only the right one."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from processor.config import Credentials
from processor.errors import AccessDenied, CapReached, StoreError
from processor.layout import INBOX
from processor.store import Capabilities

REGIONS: Final = (
    "us-west-000",
    "us-west-001",
    "us-west-002",
    "us-west-004",
    "us-east-005",
    "eu-central-003",
    "ca-east-006",
)
"""Backblaze's regions, as of 2026-11."""

_STRANGER = 1
"""How telling the answer of a region is that doesn't know the key."""

_UNPROBED = Capabilities(versions=True, put_if_absent=False)


def b2_endpoints() -> dict[str, str]:
    """Region → S3 endpoint."""
    from processor.store.s3_client import b2_endpoint

    return {region: b2_endpoint(region) for region in REGIONS}


def find_region(bucket: str, prefix: str, key: Credentials, endpoints: Mapping[str, str]) -> str:
    """The region in which this key can list this bucket.

    Raises:
        StoreError: none; the most telling of the regions' answers, with its mend.
    Cost: 1 request per region.
    """
    with ThreadPoolExecutor(len(endpoints)) as pool:
        answers = pool.map(lambda item: _ask(bucket, prefix, key, *item), endpoints.items())
        tried = dict(zip(endpoints, answers, strict=True))
    for region, error in tried.items():
        if error is None:
            return region
    region, error = max(tried.items(), key=lambda item: _telling(item[1]))
    if error is None:
        raise AssertionError("a region that answered well was returned above")
    known = _telling(error) > _STRANGER
    where = f"{bucket} in {region}" if known else f"{bucket} in all regions"
    raise type(error)(error.what, where=where, mend=error.mend) from error


def _telling(error: StoreError | None) -> int:
    """How much an answer says: a region that knows the key is the right one, whatever it refuses."""
    from processor.store.s3_errors import CAPABILITIES_MEND

    if isinstance(error, AccessDenied):
        if error.mend == CAPABILITIES_MEND or isinstance(error, CapReached):
            return 3
        return 2 if "no such bucket" in error.what else _STRANGER
    return 0


def _ask(bucket: str, prefix: str, key: Credentials, region: str, endpoint_url: str) -> StoreError | None:
    from processor.store.s3 import S3Store

    store = S3Store(
        bucket,
        prefix,
        endpoint_url=endpoint_url,
        region=region,
        key_id=key.key_id,
        secret=key.key,
        capabilities=_UNPROBED,
        max_attempts=2,
    )
    try:
        next(iter(store.list(INBOX)))
    except StoreError as error:
        return error
    finally:
        store.close()
    return None
