"""Models on the Volume: brought from the bucket before a GPU is rented, and let go when long unused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import structlog

from handlers.model_cache import ModelCache
from infra.machine import container_start, open_stores
from infra.settings import Deployment
from processor.log import unit_of_work
from processor.records import ModelFile

log = structlog.get_logger(__name__)


def pull(
    deployed: Deployment,
    wanted: Sequence[dict[str, Any]],
    *,
    commit: Callable[[], None],
    reload: Callable[[], None],
) -> None:
    """Have these models on the Volume.

    Raises:
        TaskFailed: MISSING_MODEL, naming folder and file.
        StoreError: the bucket could not be read.
    """
    ours = container_start(deployed)
    models = [ModelFile.model_validate(each) for each in wanted]
    with unit_of_work("pull", models=[f"{model.folder}/{model.name}" for model in models]) as line:
        reload()
        stores = open_stores(ours)
        cache = ModelCache(ours.settings.models_path, stores.models)
        replaced = cache.ensure(models)
        line.add(replaced=replaced)
        commit()
