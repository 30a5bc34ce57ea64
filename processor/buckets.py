"""From settings to open stores, for the machine and for the commands that look where it looks.

Apart from `processor.assembly`, which imports the whole machine: that takes a command a third of
a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

from processor.config import Settings, credentials
from processor.store import Store
from processor.store.opening import open_store

if TYPE_CHECKING:
    from processor.handler import Stores

BucketName = Literal["main", "models", "datasets"]


def open_stores(settings: Settings) -> Stores:
    """The main bucket, and those of models and datasets where they have their own. Cost: none."""
    return stores_of(settings, partial(open_bucket, settings))


def stores_of(settings: Settings, opened: Callable[[str, BucketName], Store]) -> Stores:
    """The same, each opened by `opened`, by its URL and name."""
    from processor.handler import Stores

    main = opened(settings.store_url, "main")
    models, datasets = settings.models_bucket, settings.datasets_bucket
    return Stores(
        main=main,
        models=opened(models, "models") if models else main,
        datasets=opened(datasets, "datasets") if datasets else main,
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
