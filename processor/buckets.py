"""From settings to open stores, for the machine and for the commands that look where it looks.

Apart from `processor.assembly`, which imports the whole machine: that takes a command a third of
a second.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from processor.config import Settings, credentials
from processor.store import Store
from processor.store.opening import open_store

if TYPE_CHECKING:
    from processor.handler import Stores

BucketName = Literal["main", "models", "datasets"]


def open_stores(settings: Settings) -> Stores:
    """The main bucket, and those of models and datasets where they have their own. Cost: none."""
    from processor.handler import Stores

    main = open_bucket(settings, settings.store_url, "main")
    models, datasets = settings.models_bucket, settings.datasets_bucket
    return Stores(
        main=main,
        models=open_bucket(settings, models, "models") if models else main,
        datasets=open_bucket(settings, datasets, "datasets") if datasets else main,
    )


def open_bucket(settings: Settings, url: str, name: BucketName) -> Store:
    """One bucket, with the key that the environment holds for it."""
    key = credentials(os.environ, bucket=name)
    return open_store(
        url,
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        key_id=key.key_id if key else None,
        secret=key.key if key else None,
    )
