"""What each container does when it starts: from the baked settings to a worker or a machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import modal
import structlog

from infra import paths
from infra.fleet import Pools
from infra.launcher import ModalLauncher
from infra.machine import build, container_start, open_notes, open_stores
from infra.settings import Deployment
from infra.stops import StopNotes, StopWatch
from infra.worker import Worker
from processor.assembly import open_leases
from processor.config import resolve_handlers
from processor.errors import ConfigError
from processor.events import Observer, ignore
from processor.handler import Work
from processor.machine import Machine

log = structlog.get_logger(__name__)

Pull = Callable[[list[dict[str, Any]]], None]
"""Brings models to the Volume, on a CPU; raises TaskFailed where one can't be had."""


def open_worker(
    deployed: Deployment,
    kind: str,
    *,
    gpus: Sequence[str] = (),
    volume: modal.Volume | None = None,
) -> Worker:
    """The worker of a container for tasks of one kind. Starts no engine yet.

    Raises:
        ConfigError: no handler is configured for that kind.
    """
    ours = container_start(deployed)
    named = ours.settings.handlers
    if kind not in named:
        raise ConfigError(f"this deployment has no handler for {kind} tasks", where="handlers")
    # Only its own: the others' libraries need not be in this image.
    (factory,) = resolve_handlers(ours.settings.model_copy(update={"handlers": {kind: named[kind]}})).values()
    stores = open_stores(ours)
    return Worker(
        factory.configured(ours.settings, stores),
        stores,
        StopWatch(StopNotes(open_notes(ours)), open_leases(ours.settings, stores.main)),
        default_gpu=next(iter(gpus), None),
        drain=modal.experimental.stop_fetching_inputs,
        reload_models=volume.reload if volume else lambda: None,
    )


def open_machine(
    deployed: Deployment, pools: Pools, pull: Pull, observe: Observer = ignore
) -> tuple[Machine, Deployment]:
    """The machine of a tick or a dispatcher, and the settings it works by."""
    ours = container_start(deployed)
    launcher = ModalLauncher(pools, StopNotes(open_notes(ours)), _Preparing(pull))
    return build(ours, launcher, observe), ours


def started() -> None:
    """Say that a container is ready to work, with what it is."""
    log.info("container.ready", task=os.environ.get("MODAL_TASK_ID"), root=str(paths.here("/")))


class _Preparing:
    """Has models pulled before the first task that needs them goes to a GPU; asks once for each."""

    def __init__(self, pull: Pull) -> None:
        self._pull = pull
        self._there: set[tuple[str, str]] = set()

    def __call__(self, works: Sequence[Work]) -> None:
        named = {(model.folder, model.name) for work in works for model in work.models}
        missing = sorted(named - self._there)
        if missing:
            self._pull([{"folder": folder, "name": name} for folder, name in missing])
            self._there.update(missing)
