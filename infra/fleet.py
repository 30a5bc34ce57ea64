"""The app's pools of workers, as a launcher sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import modal

from handlers.render.settings import RenderSettings
from infra.settings import Deployment, ModalSettings
from processor.assembly import policy_of
from processor.execute import backstop_s
from processor.models import JobKind

if TYPE_CHECKING:
    from processor.config import Settings


LONGEST_S: Final = 24 * 3600
"""Modal's longest timeout."""
STARTUP_S: Final = 10 * 60
INGEST_CONTAINERS: Final = 2
INGEST_CONCURRENCY: Final = 4
_SLACK_S: Final = 10 * 60
"""Beyond what the worker allows: for uploads, and for it to say itself what went wrong."""


@dataclass(frozen=True)
class Pool:
    """A class of workers for one kind of task."""

    workers: Any
    """The `modal.Cls`; its method `run` takes an order."""
    gpus: tuple[str, ...]
    containers: int
    concurrency: int
    timeout_s: float
    """The longest limit of a task that Modal's own for an input, which is far longer, has room for."""
    chunk_tasks: int = 1


class Pools:
    """See `infra.launcher.Fleet`."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools

    def pool(self, kind: str, gpu: str | None, timeout_s: float) -> modal.Function[..., Any, Any]:
        """The kind's own pool, or for another GPU or far longer tasks one of its own."""
        pool = self._pools[kind]
        options: dict[str, Any] = {}
        if gpu is not None and gpu != self.default_gpu(kind):
            options["gpu"] = gpu
        if timeout_s > pool.timeout_s:
            options["timeout"] = LONGEST_S
        workers = pool.workers
        if options:
            workers = workers.with_options(max_containers=pool.containers, **options)
        function: modal.Function[..., Any, Any] = workers().run
        return function

    def default_gpu(self, kind: str) -> str | None:
        return next(iter(self._pools[kind].gpus), None)

    def window(self, kind: str) -> int:
        """Twice what runs at once: no container waits for the dispatcher."""
        pool = self._pools[kind]
        return max(2, 2 * pool.containers * pool.concurrency * pool.chunk_tasks)

    def chunk(self, kind: str, waiting: int) -> int:
        """At most `chunk_tasks`, but never so many that a container would have nothing to do."""
        pool = self._pools[kind]
        return max(1, min(pool.chunk_tasks, waiting // max(1, pool.containers)))


def sharing(modal_settings: ModalSettings, kind: JobKind) -> int:
    """Tasks in one container that may wait for each other: ComfyUI runs one prompt at a time."""
    return max(modal_settings.render_concurrency, RenderSettings.concurrency) if kind == "render" else 1


def timeout_s(settings: Settings, modal_settings: ModalSettings, kind: JobKind) -> int:
    """What Modal lets an input of this kind's own pool take: its tasks, and all that they wait for.

    Modal counts from when a container gets the input, the worker from when the engine begins a task.
    Beyond Modal's limit it kills the container, with the neighbours of whatever took too long.
    """
    if kind == "train":
        return LONGEST_S
    return _in_turn_s(settings, modal_settings, kind, modal_settings.chunk_tasks if kind == "render" else 1)


def studio_timeout_s(settings: Settings, modal_settings: ModalSettings, tasks: int) -> int:
    """What Modal lets a request to the API's own pool take: its tasks in turn, each beside another's.

    Its models were brought before, on a CPU: see `infra.desk`.
    """
    return _in_turn_s(settings, modal_settings, "render", tasks)


def _in_turn_s(settings: Settings, modal_settings: ModalSettings, kind: JobKind, tasks: int) -> int:
    one_s = backstop_s(_task_limit_s(settings, kind), sharing(modal_settings, kind))
    return min(LONGEST_S, int(tasks * one_s) + _SLACK_S)


def _task_limit_s(settings: Settings, kind: JobKind) -> float:
    """A task's own limit where its job names none."""
    return policy_of(settings).task_timeout_s[kind]


def pools_of(deployed: Deployment, *, render: Any, train: Any, ingest: Any) -> Pools:
    """The fleet that the settings describe, on the app's classes."""
    ours = deployed.modal
    builtin = ours.engine == "builtin"

    def pool(kind: JobKind, workers: Any, gpus: list[str], containers: int, concurrency: int) -> Pool:
        limit_s = LONGEST_S if kind == "train" else _task_limit_s(deployed.settings, kind)
        chunk_tasks = ours.chunk_tasks if kind == "render" else 1
        return Pool(workers, () if builtin else tuple(gpus), containers, concurrency, limit_s, chunk_tasks)

    return Pools(
        {
            "render": pool(
                "render", render, ours.render_gpus, ours.render_containers, ours.render_concurrency
            ),
            "train": pool("train", train, ours.train_gpus, ours.train_containers, 1),
            "ingest": pool("ingest", ingest, [], INGEST_CONTAINERS, INGEST_CONCURRENCY),
        }
    )
