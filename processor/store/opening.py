"""From a URL to a store, with the usual mistakes named before anything is sent."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, unquote, urlsplit

from processor.errors import ConfigError, InvalidKey
from processor.store.protocol import Capabilities, Store, check_key

if TYPE_CHECKING:
    from processor.store.s3 import S3Store

_BUCKET: Final = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9.-]{1,61}[a-zA-Z0-9]$")
_B2_REGION: Final = re.compile(r"^[a-z]{2}-[a-z]+-\d{3}$")
_HELP: Final = "Use file:///path, b2://bucket/prefix or s3://bucket/prefix."


def open_store(
    url: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    key_id: str | None = None,
    secret: str | None = None,
    capabilities: Capabilities | None = None,
    max_connections: int = 32,
) -> Store:
    """The store that a URL names. Sends nothing: a bucket is probed when first used.

    Args:
        url: `file:///path` or a plain path, `b2://bucket[/prefix]`, `s3://bucket[/prefix]`.
        endpoint_url: of an S3-compatible server; for B2 it follows from the region.
        region: e.g. `us-west-004`; for B2 it follows from the endpoint.
        key_id, secret: needed for B2; else boto3 looks where it always does.
        capabilities: of a bucket, if known already; saves the probe.
    Raises:
        ConfigError: the URL or the settings can't be right; says which, and the mend.
    """
    if "://" not in url and not url.startswith("file:"):
        return _open_folder(Path(url).expanduser())
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("not a URL", where="bucket", mend=_HELP) from None
    if "@" in parts.netloc:
        # Not repeated in the message: it may be a secret.
        raise ConfigError(
            "credentials don't belong in the URL",
            where="bucket",
            mend="Set DROPBATCH_KEY_ID and DROPBATCH_KEY instead.",
        )
    match parts.scheme:
        case "file":
            return _open_folder(_folder_path(url, parts))
        case "b2" | "s3":
            return _open_bucket(
                url,
                parts,
                endpoint_url=endpoint_url,
                region=region,
                key_id=key_id,
                secret=secret,
                capabilities=capabilities,
                max_connections=max_connections,
            )
        case "http" | "https":
            raise ConfigError(
                "an endpoint, not a bucket", where=url, mend=f"{_HELP} The endpoint is its own setting."
            )
        case scheme:
            raise ConfigError(f"there is no store for {scheme}://", where=url, mend=_HELP)


def locate(url: str, *, endpoint_url: str | None, region: str | None) -> tuple[str | None, str]:
    """Where a bucket is: its endpoint, None for AWS's own, and the region to sign for. Sends nothing.

    Args:
        url: `b2://bucket[/prefix]` or `s3://bucket[/prefix]`.
        endpoint_url, region: as set; see `open_store`.
    Raises:
        ConfigError: they can't be right; says which, and the mend.
    """
    from processor.store.s3_client import b2_endpoint, b2_region, region_of

    parts = urlsplit(url)
    if endpoint_url is not None:
        endpoint_url = _checked_endpoint(endpoint_url, parts.netloc)
        of_endpoint = b2_region(endpoint_url)
        if of_endpoint and region and region != of_endpoint:
            raise ConfigError(
                f"the endpoint is in {of_endpoint}, the region says {region}",
                where="region",
                mend="Leave the region out; it follows from the endpoint.",
            )
    elif parts.scheme == "b2":
        endpoint_url = b2_endpoint(_checked_b2_region(region))
    return endpoint_url, region_of(endpoint_url, region)


def _open_folder(path: Path) -> Store:
    from processor.store.directory import DirectoryStore

    return DirectoryStore(path)


def _folder_path(url: str, parts: SplitResult) -> Path:
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(
            "a file URL has three slashes before an absolute path",
            where=url,
            mend=f"Did you mean file:///{parts.netloc}{parts.path}?",
        )
    # A folder's name may hold `?` and `#`, which a URL would have escaped.
    path = url.removeprefix("file:").removeprefix("//").removeprefix("localhost")
    return Path(unquote(path)).expanduser()


def _open_bucket(
    url: str,
    parts: SplitResult,
    *,
    endpoint_url: str | None,
    region: str | None,
    key_id: str | None,
    secret: str | None,
    capabilities: Capabilities | None,
    max_connections: int,
) -> S3Store:
    from processor.store.s3 import S3Store

    bucket, prefix = parts.netloc, unquote(parts.path).strip("/")
    _check_bucket(url, bucket)
    _check_prefix(url, parts, prefix)
    _check_key_pair(key_id, secret)
    if parts.scheme == "b2" and key_id is None:
        raise ConfigError(
            "B2 needs an application key",
            where="key_id",
            mend="Set DROPBATCH_KEY_ID and DROPBATCH_KEY.",
        )
    endpoint_url, region = locate(url, endpoint_url=endpoint_url, region=region)
    return S3Store(
        bucket,
        prefix,
        endpoint_url=endpoint_url,
        region=region,
        key_id=key_id,
        secret=secret,
        scheme=parts.scheme,
        capabilities=capabilities,
        max_connections=max_connections,
    )


def _check_bucket(url: str, bucket: str) -> None:
    if not bucket:
        raise ConfigError("names no bucket", where=url, mend=_HELP)
    if re.fullmatch(r"[0-9a-f]{24}", bucket):
        raise ConfigError(
            "that is a bucket's id, not its name", where=url, mend="Use the name that B2's page shows."
        )
    if not _BUCKET.match(bucket):
        raise ConfigError(
            f"{bucket!r} can't be a bucket's name",
            where=url,
            mend="A name has 3 to 63 letters, digits, dots and dashes.",
        )


def _check_prefix(url: str, parts: SplitResult, prefix: str) -> None:
    if parts.query or parts.fragment:
        raise ConfigError(
            "a bucket's URL has no ? and no #", where=url, mend="Write %3F and %23 in a prefix."
        )
    try:
        if prefix:
            check_key(prefix)
    except InvalidKey as error:
        raise ConfigError(f"the prefix can't be used: {error.what}", where=url) from error


def _check_key_pair(key_id: str | None, secret: str | None) -> None:
    if (key_id is None) != (secret is None):
        given, missing = ("key_id", "secret") if secret is None else ("secret", "key_id")
        raise ConfigError(
            f"{given} is set, {missing} is not", where=missing, mend="A key is both of them, or neither."
        )
    if key_id is None:
        return
    if re.fullmatch(r"[0-9a-f]{12}", key_id):
        raise ConfigError(
            "that looks like B2's master key, which doesn't work with the S3 API",
            where="key_id",
            mend="Make an application key for this bucket on B2's page 'Application Keys'.",
        )
    if re.fullmatch(r"K\d{3}[A-Za-z0-9+/]{27}", key_id):
        raise ConfigError(
            "that looks like a key's secret", where="key_id", mend="Swap the key's id and its secret."
        )


def _checked_endpoint(endpoint_url: str, bucket: str) -> str:
    if "://" not in endpoint_url:
        endpoint_url = f"https://{endpoint_url}"
    try:
        parts = urlsplit(endpoint_url)
        host = parts.hostname or ""
    except ValueError:
        host = ""
    if not host or parts.scheme not in ("http", "https"):
        raise ConfigError(
            "not an endpoint",
            where="endpoint_url",
            mend="For example https://s3.us-west-004.backblazeb2.com.",
        )
    if "@" in parts.netloc:
        raise ConfigError("credentials don't belong in the endpoint", where="endpoint_url")
    if parts.path.strip("/") or host.startswith(f"{bucket}."):
        raise ConfigError(
            "the endpoint names a bucket",
            where="endpoint_url",
            mend=f"Leave the bucket out: {parts.scheme}://{parts.netloc.removeprefix(f'{bucket}.')}",
        )
    if host.endswith(".backblazeb2.com"):
        if not host.startswith("s3."):
            raise ConfigError(
                "that host isn't B2's S3 API",
                where="endpoint_url",
                mend="It is s3.<region>.backblazeb2.com, as the bucket's page shows.",
            )
        if parts.scheme == "http":
            raise ConfigError("B2 answers over https only", where="endpoint_url", mend="Write https://.")
    return endpoint_url.rstrip("/")


def _checked_b2_region(region: str | None) -> str:
    if region is None:
        raise ConfigError(
            "B2 needs a region or an endpoint",
            where="region",
            mend="B2's page 'Buckets' shows the endpoint, s3.<region>.backblazeb2.com.",
        )
    if not _B2_REGION.match(region):
        raise ConfigError(
            f"{region!r} is no region of B2",
            where="region",
            mend="One looks like us-west-004 or eu-central-003.",
        )
    return region
