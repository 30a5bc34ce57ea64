"""The engine that tasks run on: shared by threads, started when first needed, replaced when dead."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from handlers.model_cache import ModelState
from handlers.render import leftovers
from handlers.render.api import Api, EngineUnreachable
from handlers.render.client import Client
from handlers.render.graph import Schema
from handlers.render.inputplace import InputPlace, LocalInputs, UploadedInputs
from handlers.render.outputplace import KeptOutputs
from handlers.render.server import Server
from handlers.render.settings import RenderSettings
from handlers.render.turns import Turns
from processor.clock import Clock
from processor.errors import ErrorKind, TaskFailed
from processor.handler import Stop
from processor.models import Scalar

log = structlog.get_logger(__name__)


@dataclass
class Engine:
    """A running engine and our connections to it."""

    api: Api
    client: Client
    inputs: InputPlace
    server: Server | None
    """None when attached."""
    facts: dict[str, Scalar] = field(default_factory=dict)
    outputs: KeptOutputs = field(default_factory=KeptOutputs)
    previews: KeptOutputs = field(default_factory=KeptOutputs)
    """Temporary files: a node may still read one that ComfyUI's cache reports to it."""
    turns: Turns = field(default_factory=Turns)
    used: bool = False
    broken: bool = False
    """To be replaced before anything else runs on it."""
    outdated: bool = False
    """To be replaced likewise, but what runs on it is well, and is waited for."""
    models: dict[Path, ModelState] = field(default_factory=dict)
    """What lay under each model's path when a task last ran with it: what is loaded may be that."""

    def drop_replaced(self, models: Mapping[Path, ModelState]) -> None:
        """Have these models read anew where they were replaced since a task last ran with them.

        The engine caches what it loaded by name. Of what was never used here it holds nothing.

        Raises:
            TaskFailed: it could not be told to; the next call tells it again.
        Cost: 1 request if one was replaced.
        """
        if any(self.models.get(path, state) != state for path, state in models.items()):
            log.info("engine.models_replaced")
            self.api.free()
        # Only now: until the engine was told, it may hold the old ones.
        self.models.update(models)

    def close(self) -> None:
        self.client.close()
        if self.server is None:
            self.api.close()
        else:
            self.server.remove()


class EnginePool:
    """Hands out the one engine of this handler; replaces it when nobody uses it.

    Restarting under a running prompt would fail prompts that did nothing wrong, so a
    restart that is asked for waits until those who use the engine are through, and new
    ones wait for the restart.
    """

    def __init__(self, settings: RenderSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._changed = threading.Condition()
        self._engine: Engine | None = None
        self._users = 0
        self._restarting = False
        self._closed = False
        if settings.engine != "attached":
            # Now, not when an engine is next needed: a leftover one holds a GPU's memory.
            leftovers.sweep(settings.work_dir.resolve())

    @contextmanager
    def use(
        self, *, fresh: bool = False, folders: Collection[str] = (), stop: Stop | None = None
    ) -> Iterator[Engine]:
        """The engine, running, for the time of one prompt.

        Args:
            fresh: restart it first, unless nothing has run on it yet.
            folders: of models that it must know; one of ours that was not told of them is replaced.
            stop: ends the wait for an attached one.
        Raises:
            TaskFailed: it does not start; NO_ENGINE where an attached one is not there, or has gone;
                PREEMPTED once this is closed.
        """
        stop = stop or Stop()
        engine = self._enter(fresh, folders, stop)
        try:
            yield engine
        except EngineUnreachable as error:
            if engine.server is None and not engine.client.wait_reachable(stop):
                stop.check()
                _is_away(error)
            raise
        finally:
            with self._changed:
                self._users -= 1
                engine.used = True
                self._changed.notify_all()

    @property
    def current(self) -> Engine | None:
        """The engine if one runs."""
        return self._engine

    def schema(self) -> Schema | None:
        """What an engine of ours says of its nodes now, if it can speak for the next prompt.

        One that runs without custom nodes that were added since can't: None then, and the
        next prompt gets a new engine. Cost: 1 request, of some megabytes.
        """
        engine = self._engine
        if engine is None or engine.server is None or engine.outdated or self._is_dead(engine):
            return None
        if engine.server.lacks_custom_nodes():
            engine.outdated = True
            return None
        return schema_of(engine)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            engine, self._engine = self._engine, None
            self._changed.notify_all()
        if engine is not None:
            engine.close()

    def _enter(self, fresh: bool, folders: Collection[str], stop: Stop) -> Engine:
        with self._changed:
            while self._restarting:
                self._changed.wait()
            if self._closed:
                raise _is_closed()
            if self._engine is not None and not self._must_replace(self._engine, fresh, folders):
                self._users += 1
                return self._engine
            self._restarting = True
            try:
                # A dead engine's users notice by themselves; only a live one is waited for.
                while self._users and self._engine is not None and not self._is_dead(self._engine):
                    self._changed.wait(1.0)
            except BaseException:
                self._restarting = False
                raise
        return self._replace(stop)

    def _replace(self, stop: Stop) -> Engine:
        """Start a new engine outside the lock; only one thread at a time gets here."""
        try:
            old, self._engine = self._engine, None
            if old is not None:
                log.info("engine.replace", dead=self._is_dead(old))
                old.close()
            engine = self._start(stop)
        except BaseException:
            with self._changed:
                self._restarting = False
                self._changed.notify_all()
            raise
        with self._changed:
            self._restarting = False
            self._changed.notify_all()
            if not self._closed:
                self._engine = engine
                self._users += 1
                return engine
        engine.close()  # while it started, `close` could not see it
        raise _is_closed()

    def _must_replace(self, engine: Engine, fresh: bool, folders: Collection[str]) -> bool:
        if engine.outdated or self._is_dead(engine):
            return True
        if engine.server is None:
            return False
        return (fresh and engine.used) or engine.server.lacks_folders(folders)

    @staticmethod
    def _is_dead(engine: Engine) -> bool:
        return engine.broken or (engine.server is not None and not engine.server.is_alive())

    def _attach(self, url: str, stop: Stop) -> Engine:
        settings, api = self._settings, Api(url)
        client = Client(api, lost_s=settings.lost_server_s, grace_s=settings.interrupt_grace_s)
        try:
            if not client.wait_reachable(stop):  # both may have been switched on just now
                stop.check()
            stats = api.system_stats()
        except TaskFailed as error:
            client.close()
            if error.kind is ErrorKind.UNAVAILABLE:
                _is_away(error)
            raise
        return Engine(api, client, UploadedInputs(api), None, engine_facts(stats, "attached"))

    def _start(self, stop: Stop) -> Engine:
        settings = self._settings
        if settings.comfyui_url is not None:
            return self._attach(settings.comfyui_url, stop)
        server = Server(settings, self._clock)
        try:
            stats = server.start()
        except BaseException:
            server.remove()
            raise
        client = Client(
            server.api,
            alive=server.is_alive,
            lost_s=settings.lost_server_s,
            grace_s=settings.interrupt_grace_s,
        )
        return Engine(
            server.api,
            client,
            LocalInputs(server.directories.input),
            server,
            engine_facts(stats, settings.engine),
        )


def _is_away(error: TaskFailed) -> None:
    error.kind = ErrorKind.NO_ENGINE
    error.mend = "Is ComfyUI running there? Check COMFYUI_URL"


def _is_closed() -> TaskFailed:
    return TaskFailed(ErrorKind.PREEMPTED, "the engine was stopped, as all here is")


def engine_facts(stats: dict[str, Any], kind: str) -> dict[str, Scalar]:
    """Names and versions for the manifest, from `/system_stats`."""
    system = stats.get("system") or {}
    devices = stats.get("devices") or [{}]
    facts: dict[str, Scalar] = {"engine": "ComfyUI" if kind != "builtin" else "built-in"}
    for source, name in (
        ("comfyui_version", "version"),
        ("pytorch_version", "pytorch"),
        ("python_version", "python"),
    ):
        if isinstance(system.get(source), str) and system[source]:
            facts[name] = system[source].split(" ")[0]
    if isinstance(devices[0].get("name"), str):
        facts["device"] = devices[0]["name"]
    return facts


def schema_of(engine: Engine) -> Schema | None:
    """What a started engine says of its nodes; None if it can't say just now."""
    try:
        return engine.api.object_info()
    except TaskFailed:
        return None
