"""Where a graph's rules come from: the best `/object_info` at hand, without starting anything."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from handlers.render.api import Api
from handlers.render.graph import Schema
from handlers.render.settings import RenderSettings
from processor import layout
from processor.errors import ConfigError, NotFound, TaskFailed
from processor.store import Store, read_bytes

_MAX_BYTES = 64 * 1024**2
_STALE_S = 300.0
_NEVER = float("-inf")


class SchemaSource:
    """The node schema for preflight. Thread-safe; remembers an answer for five minutes.

    In this order: the file in the settings; the attached server, if it answers; the
    built-in engine's own, if that is the engine; what our ComfyUI said when it started
    (`learn`); `state/object_info.json` in the store. None when nothing is known: then the
    server's own validation has the word.

    What is remembered is good enough to pass a graph, not to refuse one: its user may have
    mended meanwhile what it lacked. Ask with `newer_than` before refusing.

    Args:
        running: what a ComfyUI that we started says now; None if none runs, or its word no
            longer counts.
    """

    def __init__(self, settings: RenderSettings, running: Callable[[], Schema | None] = lambda: None) -> None:
        self._settings = settings
        self._running = running
        self._lock = threading.Lock()
        self._known: Schema | None = None
        self._asked_at = _NEVER
        self._learned: Schema | None = None
        self._learned_at = _NEVER

    def learn(self, schema: Schema) -> None:
        """Keep what a started server says of itself."""
        with self._lock:
            self._learned, self._learned_at = schema, time.monotonic()

    def get(self, store: Store | None, *, newer_than: float = _NEVER) -> Schema | None:
        """The schema, or None.

        Args:
            newer_than: by `time.monotonic()`; what was learnt before is not good enough.
        Cost: at most 1 request in five minutes, and 1 for each `newer_than`.
        """
        with self._lock:
            if self._settings.object_info is None and self._learned is not None:
                return self._learned if self._learned_at >= newer_than else self._learn_again()
            asked_at = time.monotonic()
            if self._asked_at < max(newer_than, asked_at - _STALE_S):
                self._known, self._asked_at = self._look(store), asked_at
            return self._known

    def _learn_again(self) -> Schema | None:
        asked_at = time.monotonic()
        schema = self._running()
        # Where none can say, nothing is refused for it; for what comes next the old word still stands.
        if schema is not None:
            self._learned, self._learned_at = schema, asked_at
        return schema

    def elsewhere(
        self, store: Store, classes: Collection[str], *, newer_than: float = _NEVER
    ) -> Schema | None:
        """The schema for a graph that may run on another machine.

        This machine's, unless that is the built-in engine's and lacks some of these classes:
        then what the bucket's machine said of its own, or None.

        Cost: at most 1 request more than `get`.
        """
        schema = self.get(store, newer_than=newer_than)
        ours = self._settings.engine == "builtin" and self._settings.object_info is None
        if not ours or schema is None or all(each in schema for each in classes):
            return schema
        return _from_store(store)

    def _look(self, store: Store | None) -> Schema | None:
        if self._settings.object_info is not None:
            return _from_file(self._settings.object_info)
        if self._settings.comfyui_url:
            return _ask(self._settings.comfyui_url)
        if self._settings.engine == "builtin":
            return _builtin()
        return None if store is None else _from_store(store)


def _builtin() -> Schema:
    from handlers.engine.nodes import NODES  # late: attached and supervised engines don't need it

    return {name: node.object_info(_NoInputs()) for name, node in NODES.items()}


class _NoInputs:
    """The input folder of an engine that has not started."""

    def input_pictures(self) -> list[str]:
        return []


def _from_file(path: Path) -> Schema:
    try:
        return _checked(json.loads(path.read_bytes()))
    except (OSError, ValueError):
        raise ConfigError("no readable /object_info answer", where=str(path)) from None


def _ask(url: str) -> Schema | None:
    api = Api(url, connections=1)
    try:
        return _checked(api.object_info())
    except (TaskFailed, ValueError):
        # An attached server that is down now may be up when the task runs.
        return None
    finally:
        api.close()


def _from_store(store: Store) -> Schema | None:
    try:
        return _checked(json.loads(read_bytes(store, layout.OBJECT_INFO, limit_bytes=_MAX_BYTES)))
    except NotFound:
        return None
    except ValueError:
        raise ConfigError(
            "not JSON", where=layout.OBJECT_INFO, mend="Capture it again, or remove it"
        ) from None


def _checked(value: Any) -> Schema:
    if not isinstance(value, dict) or not all(isinstance(info, dict) for info in value.values()):
        raise ValueError("not an object of node classes")
    return value
