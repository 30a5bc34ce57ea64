"""From settings to a running machine: the one place where the parts meet."""

from __future__ import annotations

import hashlib
import os
import pkgutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast
from zoneinfo import ZoneInfo

from processor.buckets import open_stores
from processor.clock import StoreClock, SystemClock
from processor.config import Settings, resolve_handlers
from processor.errors import ConfigError
from processor.events import Observer, ignore
from processor.launch import LocalConfig, LocalLauncher
from processor.layout import slug
from processor.leases.authority import Authority
from processor.leases.inheritance import InheritedLeases
from processor.machine import Machine, new_nonce
from processor.notify import EVENTS, Notices, Notifier
from processor.policy import Policy
from processor.problems import did_you_mean
from processor.schedule import Night
from processor.slack import Slack
from processor.store import Store
from processor.store.directory import DirectoryStore
from processor.webhook import Webhook

if TYPE_CHECKING:
    from processor.leases.protocol import LeaseStore


def build(settings: Settings, observe: Observer = ignore) -> Machine:
    """Put a machine together for this computer.

    Raises:
        ConfigError: the settings can't work together; says which, and the mend.
        StoreError: the bucket can't be reached or refuses.
    Cost: none on a folder; a bucket is probed (up to 4 requests).
    """
    notices = open_notices(settings, os.environ)  # first: what is refused leaves nothing open
    stores = open_stores(settings)
    policy = policy_of(settings)
    clock = StoreClock(SystemClock())
    lease_store = open_leases(settings, stores.main)
    handlers = {
        kind: factory.configured(settings, stores) for kind, factory in resolve_handlers(settings).items()
    }
    launcher = LocalLauncher(handlers, stores, _local_config(settings), observe)
    return Machine(
        stores=stores,
        leases=InheritedLeases(
            lease_store,
            clock,
            lease_s=policy.lease_s,
            margin_s=policy.margin_s,
            folder=settings.scratch_path / "held" / _folder_name(stores.main),
        ),
        authority=Authority(stores.main, lease_store, clock, policy, nonce=new_nonce),
        clock=clock,
        launcher=launcher,
        handlers=handlers,
        policy=policy,
        observe=observe,
        notices=notices,
    )


def open_notices(settings: Settings, environ: Mapping[str, str]) -> Notices | None:
    """Who is told how jobs end, as settings and environment have it; None for nobody.

    Raises:
        ConfigError: a channel without a token, a webhook without a secret, an unknown event.
    """
    for event in settings.notify_on:
        if event not in EVENTS:
            raise ConfigError(
                f"there is no event {event!r}", where="notify_on", mend=did_you_mean(event, EVENTS)
            )
    notifiers: list[Notifier] = []
    channel = settings.slack_channel or environ.get("SLACK_ERROR_CHANNEL")
    token = environ.get("SLACK_BOT_TOKEN")
    if channel and token:
        notifiers.append(Slack(token, channel))
    elif settings.slack_channel:
        raise ConfigError(
            "notices to Slack need a bot's token", where="slack_channel", mend="Set SLACK_BOT_TOKEN"
        )
    if settings.webhook_url:
        notifiers.append(Webhook(settings.webhook_url, environ.get("DROPBATCH_WEBHOOK_SECRET", "")))
    return Notices(notifiers, frozenset(settings.notify_on), settings.page_url) if notifiers else None


def _local_config(settings: Settings) -> LocalConfig:
    return LocalConfig(
        settings.scratch_path / "tasks",
        gpu=settings.machine_gpu,
        usd_per_s=settings.machine_usd_per_h / 3600,
    )


def open_leases(settings: Settings, store: Store) -> LeaseStore:
    """The lease store that `lease_backend` names; `auto` picks the strongest that works here.

    Raises:
        ConfigError: the bucket can't hold leases, or the backend isn't for this command.
    """
    backend = settings.lease_backend
    if backend == "auto":
        backend = _best_backend(store)
    match backend:
        case "directory":
            from processor.leases.directory import DirectoryLeases

            return DirectoryLeases(_lease_folder(settings, store))
        case "store":
            from processor.leases.on_store import StoreLeases

            return StoreLeases(store)
        case "memory":
            from processor.leases.memory import MemoryLeases

            return MemoryLeases()
        case "modal":
            return _modal_leases(settings)
    raise ConfigError(f"there is no lease backend {backend!r}", where="lease_backend")


def _modal_leases(settings: Settings) -> LeaseStore:
    """Leases on a Modal Dict, found by name as handlers are: this package never imports `infra`."""
    try:
        opened = pkgutil.resolve_name("infra.leases:open_leases")(settings)
    except ImportError as error:
        raise ConfigError(
            f"leases on a Modal Dict need the modal extra ({error})",
            where="lease_backend",
            mend="pip install 'dropbatch[modal]'",
        ) from error
    return cast("LeaseStore", opened)


def _best_backend(store: Store) -> Literal["directory", "store"]:
    if isinstance(store, DirectoryStore):
        return "directory"
    return "store" if store.capabilities.put_if_absent else "directory"


def _lease_folder(settings: Settings, store: Store) -> Path:
    """In the folder-bucket itself; for a bucket without put-if-absent, on this machine.

    The second serves one machine only; `state/authority.json` keeps all others out.
    """
    if isinstance(store, DirectoryStore):
        return store.root / ".dropbatch" / "leases"
    return settings.scratch_path / "leases" / socket.gethostname() / _folder_name(store)


def _folder_name(store: Store) -> str:
    """A bucket's URL as the name of a folder: readable, and its own."""
    digest = hashlib.sha256(store.url.encode()).hexdigest()[:8]
    return f"{slug(store.url)}-{digest}"


def policy_of(settings: Settings) -> Policy:
    zone = ZoneInfo(settings.zone)
    return Policy(
        lease_s=settings.lease_s,
        renew_s=settings.renew_s,
        margin_s=min(30.0, settings.lease_s / 10),
        founding_grace_s=settings.founding_grace_s,
        max_attempts=settings.max_attempts,
        max_tasks=settings.max_tasks,
        max_job_bytes=settings.job_file_limit_bytes,
        task_timeout_s={
            "render": settings.render_timeout_s,
            "train": settings.train_timeout_s,
            "ingest": Policy().task_timeout_s["ingest"],
        },
        settle_s=settings.settle_s,
        dataset_deadline_s=settings.dataset_deadline_s,
        night=Night(settings.night_start, settings.night_end, zone),
        zone=zone,
        max_job_cost_usd=settings.max_job_cost_usd,
        max_day_cost_usd=settings.max_day_cost_usd,
        priced=settings.machine_usd_per_h > 0,
    )
