"""What each container does when it starts: from the baked settings to a worker or a machine."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import modal
import structlog

from handlers.model_cache import ModelCache
from infra.api import MAX_BODY_BYTES as API_BODY_BYTES
from infra.api import Api
from infra.asgi import AsgiApp, asgi_app
from infra.desk import Desk
from infra.fleet import Pools, sharing
from infra.launcher import ModalLauncher
from infra.machine import build, container_start, factory_of, open_notes, open_stores, rented_policy
from infra.models import Problem, raise_problem
from infra.settings import Deployment
from infra.stops import StopNotes, StopWatch
from infra.ticking import Load
from infra.unanswered import NO_ANSWER
from infra.waking import Waking
from infra.webhook import MAX_BODY_BYTES, Door
from infra.worker import Worker
from processor.assembly import open_leases
from processor.budget import DayBudget
from processor.clock import SystemClock
from processor.errors import ErrorKind, TaskFailed
from processor.events import Observer, ignore
from processor.handler import Stores, Work
from processor.layout import INBOX
from processor.machine import Machine
from processor.models import JobKind
from processor.records import Plan
from processor.report import error_report

log = structlog.get_logger(__name__)

Render = Callable[[dict[str, Any]], dict[str, Any]]
API_INPUTS: Final = 50
WEBHOOK_INPUTS: Final = 20
"""Requests that Modal sends a container of the door at once."""
PULL_WAIT_S: Final = 120.0
"""Below the 150 s after which Modal answers with a redirect, and far below the API's own timeout."""
PULLED_FOR_S: Final = 3600.0
"""So long a model is taken to be on its Volume."""
Pull = Callable[[list[dict[str, Any]]], Problem]
"""Brings models to a Volume, on a CPU; says what kept it."""


def preload(deployed: Deployment, kind: JobKind) -> None:
    """Load the code of a worker of this kind, and nothing else, for a snapshot to keep.

    A container that starts from the snapshot has its own day's secrets in `os.environ`; a store or a
    connection that was made before would go on with those of the snapshot's day.

    Raises:
        ConfigError: no handler is configured for that kind.
    """
    from processor.store import s3  # noqa: F401 - boto3 is most of what there is to load

    factory_of(deployed, kind)


def open_worker(
    deployed: Deployment,
    kind: JobKind,
    *,
    gpus: Sequence[str] = (),
    volume: modal.Volume | None = None,
) -> Worker:
    """The worker of a container for tasks of one kind. Starts no engine yet.

    Raises:
        ConfigError: no handler is configured for that kind.
    """
    ours = container_start(deployed)
    factory = factory_of(ours, kind)
    stores = open_stores(ours)
    return Worker(
        factory.configured(ours.settings, stores),
        stores,
        StopWatch(StopNotes(open_notes(ours)), open_leases(ours.settings, stores.main)),
        default_gpu=next(iter(gpus), None),
        sharing=sharing(ours.modal, kind),
        drain=modal.experimental.stop_fetching_inputs,
        reload_models=volume.reload if volume else lambda: None,
    )


def open_machine(
    deployed: Deployment, pools: Pools, pulls: Mapping[str, Pull], observe: Observer = ignore
) -> tuple[Machine, Deployment]:
    """The machine of a tick or a dispatcher, and the settings it works by.

    Args:
        pulls: by kind of task; `render` is given models, `train` tasks.
    """
    ours = container_start(deployed)
    launcher = ModalLauncher(pools, StopNotes(open_notes(ours)), _Preparing(pulls))
    return build(ours, launcher, observe), ours


def load_of(function: modal.Function[..., Any, Any]) -> Load:
    """What its containers have to do; nothing if Modal does not say."""
    try:
        stats = function.get_current_stats()
    except NO_ANSWER as error:
        log.warning("load.unknown", why=str(error))
        return Load()
    return Load(stats.num_running_inputs, stats.backlog)


def fetch_bases(deployed: Deployment) -> Callable[[Plan, Stores], None]:
    """What brings base models here: the train handler's own way."""
    ours = container_start(deployed)
    handler: Any = factory_of(ours, "train").configured(ours.settings, open_stores(ours))
    fetch: Callable[[Plan, Stores], None] = handler.fetch_bases
    return fetch


def open_api(
    deployed: Deployment,
    *,
    render: Render,
    gpus: Sequence[str],
    pull: modal.Function[..., Any, Any],
    volume: modal.Volume,
    spawn: Callable[[float], object],
) -> AsgiApp:
    """The headless API of a container.

    Args:
        render: runs an order on a GPU.
        gpus: what that may be.
        spawn: has a tick begin after so many seconds.
    """
    ours = container_start(deployed)
    stores, policy = open_stores(ours), rented_policy(ours)
    desk = Desk(
        handler=factory_of(ours, "render").configured(ours.settings, stores),
        stores=stores,
        budget=DayBudget(stores.main, policy, SystemClock()),
        max_job_cost_usd=policy.max_job_cost_usd,
        gpus=gpus,
        timeout_s=ours.settings.render_timeout_s,
        cache=ModelCache(ours.settings.models_path, stores.models),
        reload_models=volume.reload,
        pull=partial(pull_in_time, pull),
        note_use=partial(_pull_some_time, pull),
        render=render,
    )
    wake = Waking(open_notes(ours), spawn, time.time)
    api = Api(stores.main, open_leases(ours.settings, stores.main), desk, wake)
    return asgi_app(api, limit_bytes=API_BODY_BYTES, threads=API_INPUTS)


def pull_in_time(function: modal.Function[..., Any, Any], wanted: list[dict[str, Any]]) -> Problem:
    """What a pull came to, for one who does not wait behind a whole batch's; it goes on by itself."""
    try:
        problem: Problem = function.spawn(wanted).get(timeout=PULL_WAIT_S)
    except TimeoutError:
        late = TaskFailed(
            ErrorKind.UNAVAILABLE,
            f"after {PULL_WAIT_S:.0f} s its models are not on the Volume yet",
            mend="They are on their way: ask again in some minutes; POST /jobs waits for them",
        )
        return error_report(late).model_dump(mode="json", exclude_defaults=True)
    return problem


def open_webhook(deployed: Deployment, *, spawn: Callable[[float], object]) -> AsgiApp:
    """The webhook's door of a container; its secret is in the environment."""
    ours = container_start(deployed)
    door = Door(
        secret=os.environ["DROPBATCH_WEBHOOK_SECRET"],
        inbox=inbox_in_bucket(ours.settings.store_url),
        notes=(notes := open_notes(ours)),
        wake=Waking(notes, spawn, time.time),
    )
    return asgi_app(door, limit_bytes=MAX_BODY_BYTES, threads=WEBHOOK_INPUTS)


def inbox_in_bucket(url: str) -> str:
    """The inbox's prefix as Backblaze sees it, with the root prefix of our keys."""
    prefix = unquote(urlsplit(url).path).strip("/")
    return f"{prefix}/{INBOX}" if prefix else INBOX


def _pull_some_time(function: modal.Function[..., Any, Any], wanted: list[dict[str, Any]]) -> None:
    with suppress(*NO_ANSWER):  # a note less: the models may leave the Volume sooner
        function.spawn(wanted)


class _Preparing:
    """Has models pulled before the first task that needs them goes to a GPU; asks once for each, and
    again after a while: a busy dispatcher lives for days, and the Volume lets models go."""

    def __init__(self, pulls: Mapping[str, Pull]) -> None:
        self._pulls = pulls
        self._there: dict[str, float] = {}

    def __call__(self, works: Sequence[Work]) -> None:
        for kind, pull in self._pulls.items():
            wanted = {json.dumps(each, sort_keys=True): each for work in works for each in _needs(work, kind)}
            now = time.monotonic()
            missing = {
                text: each
                for text, each in wanted.items()
                if now - self._there.get(text, -PULLED_FOR_S) >= PULLED_FOR_S
            }
            if missing:
                raise_problem(pull(list(missing.values())))
                self._there.update(dict.fromkeys(missing, time.monotonic()))


def _needs(work: Work, kind: str) -> list[dict[str, Any]]:
    if work.kind != kind:
        return []
    if kind == "train":
        return [work.task.model_dump(mode="json", include={"index", "hash", "payload"})]
    return [model.model_dump() for model in work.models]
