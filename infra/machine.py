"""The machine of `processor`, put together for a container without a GPU."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from functools import partial
from typing import Final

import modal
import structlog

from infra.paths import SLACK_NODES, here
from infra.settings import Deployment, in_container
from processor import log as logs
from processor.assembly import open_leases, open_notices, policy_of
from processor.buckets import BucketName, stores_of
from processor.clock import StoreClock, SystemClock
from processor.config import Settings, credentials, resolve_handlers
from processor.errors import ConfigError
from processor.events import Observer, ignore
from processor.handler import Handler, HandlerFactory, Stores
from processor.launch import Launcher
from processor.leases.authority import Authority
from processor.leases.lease import Leases
from processor.machine import Machine, new_nonce
from processor.models import JobKind
from processor.notify import Notices
from processor.policy import Policy
from processor.prices import prices
from processor.redact import forget
from processor.store import Capabilities, Store, open_store

log = structlog.get_logger(__name__)

_PROBE_AGAIN_S: Final = 24 * 3600.0


def container_start(deployed: Deployment) -> Deployment:
    """What every container does first: its own settings, and logs as JSON lines."""
    ours = in_container(deployed)
    forget()  # secrets may be others than those that a log before the snapshot knew
    logs.configure_from(ours.settings)
    _tell_nodes()
    return ours


def _tell_nodes() -> None:
    """Give the Slack variables to the custom nodes that want them, in the file that they read.

    Our engines' own environment is scrubbed; this is the one thing of a secret that ComfyUI gets.
    """
    folder = here(SLACK_NODES)
    given = {name: os.environ.get(name, "") for name in ("SLACK_BOT_TOKEN", "SLACK_ERROR_CHANNEL")}
    if folder.is_dir() and given["SLACK_BOT_TOKEN"]:
        file = folder / ".env"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}={value}\n" for name, value in given.items()), encoding="utf-8")


def open_stores(deployed: Deployment) -> Stores:
    """The buckets, with capabilities as some container found them in the last day.

    A tick is a new process every minute; probing each time would be most of its cost.
    """
    return stores_of(deployed.settings, partial(_open, deployed, open_notes(deployed)))


def open_notes(deployed: Deployment) -> modal.Dict:
    """The Dict of what may be forgotten."""
    return modal.Dict.from_name(deployed.modal.notes_name, create_if_missing=True)


def factory_of(deployed: Deployment, kind: JobKind) -> HandlerFactory:
    """What makes the handler of one kind, of which alone the libraries need be in this image.

    Raises:
        ConfigError: this deployment has none for that kind.
    """
    settings = deployed.settings
    if kind not in settings.handlers:
        raise ConfigError(f"this deployment has no handler for {kind} tasks", where="handlers")
    only = settings.model_copy(update={"handlers": {kind: settings.handlers[kind]}})
    factory: HandlerFactory = resolve_handlers(only)[kind]
    return factory


def open_handlers(deployed: Deployment, stores: Stores) -> dict[str, Handler]:
    """Every handler that the settings name, for planning; engines start only when tasks run."""
    settings = deployed.settings
    return {
        kind: factory.configured(settings, stores) for kind, factory in resolve_handlers(settings).items()
    }


def rented_policy(deployed: Deployment) -> Policy:
    """The machine's numbers where every container is rented, so that the day's cap holds from the first task.

    Under either engine: with the built-in one a job's own `gpu` still rents that GPU.
    """
    return replace(policy_of(deployed.settings), priced=True)


def build(deployed: Deployment, launcher: Launcher, observe: Observer = ignore) -> Machine:
    """A machine that claims, plans and commits here and runs its tasks on the launcher.

    Raises:
        StoreError: a bucket can't be reached or refuses.
    """
    settings = deployed.settings
    stores, policy = open_stores(deployed), rented_policy(deployed)
    clock, lease_store = StoreClock(SystemClock()), open_leases(settings, stores.main)
    return Machine(
        stores=stores,
        leases=Leases(lease_store, clock, lease_s=policy.lease_s, margin_s=policy.margin_s),
        authority=Authority(stores.main, lease_store, clock, policy, nonce=new_nonce),
        clock=clock,
        launcher=launcher,
        handlers=open_handlers(deployed, stores),
        policy=policy,
        observe=observe,
        notices=_notices(settings),
        gpus=prices().modal,
        host=f"modal:{os.environ.get('MODAL_TASK_ID', 'local')}",
    )


def _notices(settings: Settings) -> Notices | None:
    """Who is told how jobs end, by the secrets that this function was given.

    The deploy has refused what can be known without their values (`infra.settings.deployable`). A
    value that is no secret must not keep ticks from their work: `dropbatch doctor --modal` tells it.
    """
    try:
        return open_notices(settings, os.environ)
    except ConfigError as error:
        log.error("notices.off", why=str(error))  # noqa: TRY400 - where it happened tells nothing
        return None


def _open(deployed: Deployment, notes: modal.Dict, url: str, name: BucketName) -> Store:
    settings = deployed.settings
    key = credentials(os.environ, bucket=name)
    note = f"capabilities/{url}"
    known = _capabilities(notes.get(note))
    store = open_store(
        url,
        endpoint_url=settings.endpoint_url,
        region=settings.region,
        key_id=key.key_id if key else None,
        secret=key.key if key else None,
        capabilities=known,
    )
    if known is None:
        found = store.capabilities
        value = {
            "at": time.time(),
            "versions": found.versions,
            "put_if_absent": found.put_if_absent,
            "atomic_put": found.atomic_put,
            "missing_is_403": found.missing_is_403,
        }
        notes.put(note, json.dumps(value))
    return store


def _capabilities(note: str | None) -> Capabilities | None:
    if note is None:
        return None
    known = json.loads(note)
    if time.time() - known.pop("at") > _PROBE_AGAIN_S:
        return None
    return Capabilities(**known)
