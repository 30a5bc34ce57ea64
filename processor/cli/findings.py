"""What `doctor` looks at. Each examination yields findings and never raises."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from processor.config import KEY_VARIABLES, Settings, credentials, resolve_handlers, unknown_variables
from processor.errors import AccessDenied, DropbatchError, NotFound, StoreError
from processor.layout import (
    BASE_MODELS,
    COMFY_MODELS,
    DATASETS,
    INBOX,
    OUTPUTS,
    STATE,
    WORKFLOWS,
)
from processor.redact import redact
from processor.store import Store, read_bytes

if TYPE_CHECKING:
    from processor.buckets import BucketName
    from processor.store import Capabilities

State = Literal["ok", "warn", "fail"]

_MAX_SKEW_S = 30
_MIN_FREE_BYTES = 5 * 10**9
_MAX_WORKFLOWS = 50
_MAX_WORKFLOW_BYTES = 16 * 1024 * 1024
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    state: State
    name: str
    what: str
    mend: str | None = None

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything, in the order in which it would be mended."""
    yield from _guarded("settings", lambda: _settings(settings))
    store: list[Store] = []
    yield from _guarded("bucket", lambda: _bucket(settings, store))
    if store:
        yield from _guarded("writing", lambda: check_writing(store[0]))
        yield from _guarded("store", lambda: _capabilities(store[0].capabilities))
        yield from _guarded("leases", lambda: _leases(settings, store[0]))
        yield from _guarded("authority", lambda: _authority(settings, store[0]))
    others: dict[BucketName, str | None] = {
        "models": settings.models_bucket,
        "datasets": settings.datasets_bucket,
    }
    for name, url in others.items():
        if url:
            yield from _guarded(f"{name} bucket", partial(_other_bucket, settings, url, name))
    yield from _guarded("handlers", lambda: _handlers(settings))
    engine: dict[str, Any] = {}
    yield from _guarded("comfyui", lambda: _comfyui(settings, engine))
    if store and engine:
        yield from _guarded("nodes", lambda: _nodes(store[0], engine))
    yield from _guarded("notices", lambda: _notices(settings))
    yield from _guarded("disk", lambda: _disk(settings))


def _guarded(name: str, examination: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from examination()
    except DropbatchError as error:
        what = f"{error.where}: {error.what}" if error.where else error.what
        yield Finding("fail", name, redact(what), error.mend)
    except OSError as error:
        yield Finding("fail", name, redact(f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")))


def _settings(settings: Settings) -> Iterator[Finding]:
    where = str(settings.config_file) if settings.config_file else "no dropbatch.toml here; environment only"
    yield Finding("ok", "settings", where)
    for name, near in unknown_variables(os.environ).items():
        yield Finding(
            "warn",
            "settings",
            f"{name} is set, but nothing reads it",
            f"Did you mean {near}?" if near else None,
        )


def _bucket(settings: Settings, opened: list[Store]) -> Iterator[Finding]:
    from processor.buckets import open_bucket

    url = settings.store_url
    key = credentials(os.environ)
    store = open_bucket(settings, url, "main")
    if not url.startswith("file:"):
        first = f"{KEY_VARIABLES[0][0]} and {KEY_VARIABLES[0][1]}"
        yield (
            Finding("ok", "key", f"from {key.source}")
            if key
            else Finding("warn", "key", "none in the environment; boto3 looks elsewhere", f"Set {first}")
        )
    begun = time.monotonic()
    page = next(iter(store.list(INBOX)))
    taken_ms = (time.monotonic() - begun) * 1000
    opened.append(store)
    yield Finding("ok", "bucket", f"{store.url} answers in {taken_ms:.0f} ms")
    skew_s = (datetime.now(UTC) - page.date).total_seconds()
    if abs(skew_s) > _MAX_SKEW_S:
        side = "ahead of" if skew_s > 0 else "behind"
        yield Finding(
            "warn",
            "clock",
            f"this machine's clock is {abs(skew_s):.0f} s {side} the store's",
            "Leases go by the store's clock, but signed requests fail at 15 minutes: set the clock",
        )


def _other_bucket(settings: Settings, url: str, name: BucketName) -> Iterator[Finding]:
    """Whether it can be read; that of models need take no more."""
    from processor.buckets import open_bucket

    store = open_bucket(settings, url, name)
    next(iter(store.list(COMFY_MODELS if name == "models" else DATASETS)))
    yield Finding("ok", f"{name} bucket", f"{store.url} answers")


def check_writing(store: Store) -> Iterator[Finding]:
    key = f"{STATE}doctor-{secrets.token_hex(4)}"
    info = store.put(key, b"doctor")
    try:
        read = read_bytes(store, key, limit_bytes=100)
    finally:
        store.delete(key, version=info.version or store.stat(key).version)
    if read != b"doctor":
        yield Finding("fail", "writing", "what was written reads back differently")
        return
    yield Finding("ok", "writing", "an object was written, read and removed")


def _capabilities(capabilities: Capabilities) -> Iterator[Finding]:
    if capabilities.versions:
        yield Finding(
            "ok",
            "versions",
            "every drop keeps its version; a new upload never harms one that runs",
            "Old versions are billed until removed: a lifecycle rule (hide to delete: 1 day) on "
            f"{INBOX} and {STATE} keeps the bucket tidy",
        )
    else:
        yield Finding(
            "ok" if not capabilities.atomic_put else "warn",
            "versions",
            "this store keeps none",
            None
            if not capabilities.atomic_put
            else "Don't overwrite a drop that still waits; `dropbatch drop` uses a new name each time",
        )
    if capabilities.atomic_put:
        yield Finding(
            "ok",
            "large files",
            "go up in parts, and those that a killed runner had sent are billed until removed",
            f"A lifecycle rule on each of {OUTPUTS}, {COMFY_MODELS}, {BASE_MODELS} and {DATASETS} removes "
            "them (cancel unfinished large files after 7 days); B2 takes no two rules for one file, so none "
            "for the whole bucket",
        )
    proven = "proven" if capabilities.put_if_absent else "not offered; leases need another place"
    yield Finding("ok", "put-if-absent", proven)
    if capabilities.missing_is_403:
        yield Finding(
            "warn",
            "missing keys",
            "are answered with 403, like a refusal",
            "Make a key with the capabilities listBuckets, listFiles, readFiles, writeFiles, deleteFiles",
        )


def _leases(settings: Settings, store: Store) -> Iterator[Finding]:
    from processor.assembly import open_leases

    yield Finding("ok", "leases", open_leases(settings, store).backend)


def _authority(settings: Settings, store: Store) -> Iterator[Finding]:
    """Whether a runner with this configuration would claim anything: asked as it asks itself."""
    from processor.assembly import open_leases, policy_of
    from processor.clock import StoreClock, SystemClock
    from processor.leases.authority import Authority
    from processor.machine import new_nonce

    leases, clock = open_leases(settings, store), StoreClock(SystemClock())
    founding = Authority(store, leases, clock, policy_of(settings), nonce=new_nonce).look()
    if founding is None:
        yield Finding("ok", "authority", "none yet; the first runner founds it")
        return
    since = f"since {founding.founded_at:%Y-%m-%d %H:%M} UTC"
    moved = "" if founding.backend == leases.backend else f" (founded as {founding.backend})"
    yield Finding("ok", "authority", f"{leases.backend}, {since}{moved}")


def _notices(settings: Settings) -> Iterator[Finding]:
    from processor.assembly import open_notices

    notices = open_notices(settings, os.environ)
    told = ", ".join(notifier.name for notifier in notices.notifiers) if notices else "nobody is told"
    yield Finding("ok", "notices", told)


def _handlers(settings: Settings) -> Iterator[Finding]:
    yield Finding("ok", "handlers", ", ".join(resolve_handlers(settings)))


def _comfyui(settings: Settings, engine: dict[str, Any]) -> Iterator[Finding]:
    if settings.comfyui_url:
        url = settings.comfyui_url.rstrip("/")
        stats = ask(url + "/system_stats")
        engine.update(ask(url + "/object_info"))
        version = stats.get("system", {}).get("comfyui_version", "of unknown version")
        devices = ", ".join(str(device.get("name")) for device in stats.get("devices", []))
        yield Finding("ok", "comfyui", f"{version} at {url}, {len(engine):,} node classes, {devices}")
    elif settings.comfyui_dir:
        yield from _checkout(settings.comfyui_dir.expanduser(), settings.comfyui_python)
    else:
        yield Finding(
            "ok",
            "comfyui",
            "none is configured: the built-in engine runs graphs without models",
            "Set COMFYUI_URL (one that runs) or COMFYUI_DIR (one to start) for all others",
        )


def _checkout(folder: Path, python: Path | None) -> Iterator[Finding]:
    if not (folder / "main.py").is_file():
        yield Finding("fail", "comfyui", f"{folder} has no main.py", "COMFYUI_DIR names ComfyUI's own folder")
        return
    version = folder / "comfyui_version.py"
    text = version.read_text("utf-8") if version.is_file() else ""
    said = text.partition('__version__ = "')[2].partition('"')[0] or "of unknown version"
    yield Finding("ok", "comfyui", f"{said} in {folder}, started when needed")
    if python and not python.expanduser().exists():
        yield Finding("fail", "comfyui", f"{python} does not exist", "COMFYUI_PYTHON names its Python")


def ask(url: str) -> dict[str, Any]:
    """What a ComfyUI that runs answers.

    Raises:
        StoreError: nothing, or something else.
    """
    import urllib3

    try:
        reply = urllib3.request("GET", url, timeout=_TIMEOUT_S, retries=False)
        if reply.status != 200:
            raise StoreError(f"answers {reply.status}", where=url)
        value = reply.json()
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise StoreError(
            f"does not answer as ComfyUI does ({type(error).__name__})",
            where=url,
            mend="Is it running? COMFYUI_URL names it, e.g. http://127.0.0.1:8188",
        ) from None
    return value if isinstance(value, dict) else {}


def _nodes(store: Store, engine: dict[str, Any]) -> Iterator[Finding]:
    """Node classes that the bucket's own workflows use and this ComfyUI lacks."""
    looked = 0
    for page in store.list(WORKFLOWS):
        for item in page.objects:
            if not item.key.endswith(".json") or looked >= _MAX_WORKFLOWS:
                continue
            looked += 1
            if missing := sorted(_classes(store, item.key) - engine.keys()):
                yield Finding(
                    "warn", "nodes", f"{item.key} needs {', '.join(missing)}", "Install their custom nodes"
                )
    yield Finding("ok", "nodes", f"{looked} workflows of the bucket looked through")


def _classes(store: Store, key: str) -> set[str]:
    try:
        value = json.loads(read_bytes(store, key, limit_bytes=_MAX_WORKFLOW_BYTES))
    except (ValueError, NotFound, AccessDenied):
        return set()
    graph = value.get("graph", value) if isinstance(value, dict) else {}
    nodes = graph.values() if isinstance(graph, dict) else ()
    return {str(node["class_type"]) for node in nodes if isinstance(node, dict) and "class_type" in node}


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.scratch_path
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    yield Finding(
        "ok" if free > _MIN_FREE_BYTES else "warn",
        "disk",
        f"{free / 1e9:,.0f} GB free at {folder}",
        None if free > _MIN_FREE_BYTES else "Models and outputs pass through here: set DROPBATCH_WORK_DIR",
    )
