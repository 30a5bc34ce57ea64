"""The buckets as folders, for whoever wants to look around in them.

Slower than a Volume, and Modal's guide names S3, R2 and GCS but not B2: never in the hot path, off
by default, tried at deploy (docs/modal.md). Files can be written whole and read, not changed.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import modal

from infra.settings import ModalSettings
from processor.layout import OUTPUTS
from processor.store.opening import locate

if TYPE_CHECKING:
    from processor.config import Settings

MODELS: Final = "/b2_models"
OUTPUT_FILES: Final = "/b2_outputs"


def of(
    settings: Settings, options: ModalSettings
) -> dict[str | PurePosixPath, modal.Volume | modal.CloudBucketMount]:
    """The models bucket, read-only, and the outputs of the browser, read-write; nothing unless asked for."""
    if not options.mount_bucket:
        return {}
    models = settings.models_bucket
    return {
        MODELS: _mount(
            settings, models or settings.store_url, options.models_mount_secret, "", read_only=True
        ),
        OUTPUT_FILES: _mount(
            settings, settings.store_url, options.bucket_secret, f"{OUTPUTS}ui/", read_only=False
        ),
    }


def _mount(
    settings: Settings, url: str, secret: str, folder: str, *, read_only: bool
) -> modal.CloudBucketMount:
    parts = urlsplit(url)
    prefix = "/".join(part for part in (unquote(parts.path).strip("/"), folder.strip("/")) if part)
    endpoint, _ = locate(url, endpoint_url=settings.endpoint_url, region=settings.region)
    return modal.CloudBucketMount(
        bucket_name=parts.netloc,
        bucket_endpoint_url=endpoint,
        key_prefix=f"{prefix}/" if prefix else None,
        secret=modal.Secret.from_name(secret, required_keys=["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        read_only=read_only,
        force_path_style=True,
    )
